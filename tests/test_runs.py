"""Identity and evidence: ids, strict reading, whole-or-nothing writing."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import make_study

from jaxscale.config import Study
from jaxscale.errors import MisuseError
from jaxscale.plain import from_plain, read_json, read_lines, seal_json, seal_line, to_plain, write_json
from jaxscale.plan import plan_isoflop
from jaxscale.resolve import describe_run
from jaxscale.runs import METRIC_FIELDS, Plan, RunSpec, read_spec

SPEC = plan_isoflop(Study(), train_tokens=1e7).cells[0].spec


def test_id_changes_with_every_field_that_decides_the_loss() -> None:
    changes = {"lr": 0.01, "seed": 9, "tokens": 1, "weight_decay": 0.0, "budget_flops": 1.0, "b2": 0.9}
    changes = {"lr": 0.01, "seed": 9, "tokens": 1, "weight_decay": 0.0, "budget_flops": 1.0, "b2": 0.9}
    ids = {replace(SPEC, **{name: value}).run_id for name, value in changes.items()}
    ids |= {replace(SPEC, model=replace(SPEC.model, qk_norm=False)).run_id, SPEC.run_id}
    ids |= {replace(SPEC, data=replace(SPEC.data, val_tokens=1024)).run_id}
    assert len(ids) == 9


def test_id_ignores_where_token_files_lie() -> None:
    assert replace(SPEC, data=replace(SPEC.data, cache="/elsewhere")).run_id == SPEC.run_id


def test_id_does_not_tell_1_from_1_point_0() -> None:
    assert replace(SPEC, data=replace(SPEC.data, max_epochs=1)).run_id == SPEC.run_id


def test_id_survives_json() -> None:
    again = from_plain(json.loads(json.dumps(to_plain(SPEC))), RunSpec)
    assert again == SPEC and again.run_id == SPEC.run_id


@pytest.mark.parametrize("change", [{"extra": 1}, {"lr": "fast"}, {"model": {"d_model": 8, "wings": 2}}])
def test_foreign_fields_and_types_are_named(change: dict[str, object]) -> None:
    with pytest.raises(MisuseError, match=next(iter(change)) if "model" not in change else "wings"):
        from_plain({**to_plain(SPEC), **change}, RunSpec)


def test_missing_field_is_named() -> None:
    plain = to_plain(SPEC)
    del plain["steps"]
    with pytest.raises(MisuseError, match="steps"):
        from_plain(plain, RunSpec)


def test_json_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.json"
    write_json(file, "[1]")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_json(file, "[1, 2]")
    assert file.read_text() == "[1]" and list(tmp_path.iterdir()) == [file]


def test_truncated_json_says_which_file(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text('{"a": ')
    with pytest.raises(MisuseError, match=r"r\.json: not valid JSON"):
        read_json(tmp_path / "r.json")


@pytest.mark.parametrize("text", ["{}", "[]", '{"cells": [1]}', '{"cells": [{}]}'])
def test_a_foreign_plan_file_is_named(text: str) -> None:
    with pytest.raises(MisuseError, match=r"plan\.json: no plan of jaxscale"):
        Plan.from_json(text)


@pytest.mark.parametrize("tail", [b'{"step": 2, "lo', b"\xff\xfe\n", b"\0\0\0\n", b"17\n", b'{"loss": 1}\n'])
def test_lines_are_read_up_to_the_first_that_is_not_whole(tmp_path: Path, tail: bytes) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b'{"step": 1, "loss": 2.5, "seconds": 1}\n' + tail)
    assert [line["step"] for line in read_lines(file, METRIC_FIELDS)] == [1]


def test_a_trunk_that_would_lead_out_of_the_study_folder_is_refused(tmp_path: Path) -> None:
    plan = plan_isoflop(make_study(tmp_path), train_tokens=1e5)
    wild = describe_run(replace(plan.cells[0].spec, parent="../../elsewhere", parent_step=3))
    with pytest.raises(MisuseError, match="which is no run id"):
        Plan.from_json(plan.with_cells([wild]).to_json())


def test_a_sealed_line_tells_every_flipped_bit_and_what_follows_it_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    records = [{"step": 16 * i, "loss": 2 / i, "seconds": 0.5} for i in (1, 2, 3)]
    whole = "".join(map(seal_line, records)).encode()
    file.write_bytes(whole)
    assert read_lines(file, METRIC_FIELDS) == records
    first, second = whole.index(b"\n"), whole.index(b"\n", whole.index(b"\n") + 1)
    for place in range(first + 1, second):
        for bit in (0, 5):
            file.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
            assert read_lines(file, METRIC_FIELDS) == records[:1], (place, bit)


def test_a_sealed_file_tells_every_flipped_bit(tmp_path: Path) -> None:
    file = tmp_path / "spec.json"
    plan = plan_isoflop(make_study(tmp_path), train_tokens=1e5)
    spec = plan.cells[0].spec
    whole = seal_json(to_plain(spec)).encode()
    for place in range(len(whole)):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            assert read_spec(file) == spec  # white space became another
        except MisuseError as error:
            assert str(file) in str(error) or "RunSpec" in str(error)
