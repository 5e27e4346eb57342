"""One run to its end: exact validation, bit-identical resume, divergence, damage, refusals."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import make_study

from jaxscale.collect import collect_runs
from jaxscale.config import MeshConfig
from jaxscale.data.tokens import build_tokens
from jaxscale.errors import MisuseError, VerdictError
from jaxscale.flops import training_flops
from jaxscale.leases import Claims, LeaseLost, find_holding
from jaxscale.model.decoder import make_decoder
from jaxscale.model.loss import token_losses
from jaxscale.plan import plan_isoflop
from jaxscale.runs import RunSpec
from jaxscale.storage import PosixStorage
from jaxscale.sweep import inspect_result
from jaxscale.train import dispatch, record
from jaxscale.train.checkpoint import Checkpoints
from jaxscale.train.loop import Preempted, Progress, train_run

OFTEN = MeshConfig(checkpoint_every_s=0.0)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("loop")


@pytest.fixture(scope="module")
def spec(root: Path) -> RunSpec:
    return plan_isoflop(make_study(root), train_tokens=1e5).cells[2].spec


@pytest.fixture(scope="module")
def finished(root: Path, spec: RunSpec) -> Path:
    """A study folder in which `spec` was trained undisturbed."""
    train_run(spec, root / "quiet")
    return root / "quiet"


def curve(folder: Path, spec: RunSpec) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / spec.run_id / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in ("seconds", "crc")} for line in lines]


def stop_after(count: int) -> Callable[[], bool]:
    calls = iter(range(10**6))
    return lambda: next(calls) >= count


def test_result_agrees_with_the_plan(finished: Path, spec: RunSpec) -> None:
    result = train_run(spec, finished)
    assert result.state == "done" and result.restarts == 0
    assert (result.tokens, result.flops) == (spec.tokens, training_flops(spec.model, spec.tokens))
    assert result.provenance["data_sha256"] == build_tokens(spec.data).info.data_sha256
    assert result.provenance["precision"] == "float32"


def test_training_lowers_the_loss_below_the_unigram_entropy(finished: Path, spec: RunSpec) -> None:
    tokens = build_tokens(spec.data)
    counts = np.bincount(tokens.train, minlength=256) + 1
    unigram = -np.mean(np.log(counts[tokens.val] / counts.sum()))
    loss = train_run(spec, finished).loss
    assert loss is not None and loss < 0.8 * unigram


def test_validation_loss_is_the_exact_mean_over_every_validation_token(finished: Path, spec: RunSpec) -> None:
    """Recomputed from the saved weights, one window at a time, with nothing of the trainer's evaluation."""
    graphdef, params = nnx.split(make_decoder(spec.model, 0), nnx.Param)
    manager = Checkpoints(finished / spec.run_id / "checkpoints")
    step = max(manager.manager.all_steps())
    saved = manager.manager.restore(step)
    manager.close()
    flat = {key.removeprefix("params/"): value for key, value in saved.items() if key.startswith("params/")}
    restored = jax.tree.map_with_path(
        lambda path, _: jnp.asarray(flat[jax.tree_util.keystr(path, simple=True, separator="/")]), params
    )
    model = nnx.merge(graphdef, restored)
    val, length = build_tokens(spec.data).val.astype(np.int32), spec.model.seq_len
    losses, total = jax.jit(lambda window: token_losses(model(window[:, :-1]), window[:, 1:])[0]), 0.0
    for start in range(0, len(val) - 1, length):
        window = jnp.asarray(val[start : start + length + 1])[None]
        total += float(np.sum(np.asarray(losses(window), np.float64)))
    assert train_run(spec, finished).loss == pytest.approx(total / (len(val) - 1), rel=1e-6)


def test_ended_run_is_read_not_trained_again(finished: Path, spec: RunSpec) -> None:
    before = (finished / spec.run_id / "result.json").stat().st_mtime_ns
    assert train_run(spec, finished) == train_run(spec, finished)
    assert (finished / spec.run_id / "result.json").stat().st_mtime_ns == before


def test_ended_run_keeps_one_checkpoint_its_final_weights(finished: Path, spec: RunSpec) -> None:
    steps = [p.name for p in (finished / spec.run_id / "checkpoints").iterdir() if p.name.isdigit()]
    assert steps == [str(spec.steps)]


@pytest.mark.parametrize("intervals", [1, 7])
def test_resumed_run_continues_to_the_same_bits(root: Path, spec: RunSpec, finished: Path, intervals: int) -> None:
    out = root / f"stopped{intervals}"
    with pytest.raises(Preempted, match="saved at step"):
        train_run(spec, out, should_stop=stop_after(intervals))
    assert not (out / spec.run_id / "result.json").exists()
    result = train_run(spec, out)
    assert result.restarts == 1
    assert curve(out, spec) == curve(finished, spec)
    assert result.loss == train_run(spec, finished).loss


def test_metrics_beyond_the_checkpoint_are_cut_and_written_again(root: Path, spec: RunSpec, finished: Path) -> None:
    """As after kill -9: lines newer than the checkpoint, the last one torn."""
    out = root / "torn"
    with pytest.raises(Preempted):
        train_run(spec, out, should_stop=stop_after(3))
    with open(out / spec.run_id / "metrics.jsonl", "a") as stream:
        stream.write('{"step": 99999, "loss": 0.1, "seconds": 1}\n{"step": 100')
    train_run(spec, out)
    assert curve(out, spec) == curve(finished, spec)


def test_damaged_checkpoint_is_named_and_the_one_before_it_used(root: Path, spec: RunSpec, finished: Path) -> None:
    out = root / "damaged"
    with pytest.raises(Preempted):
        train_run(spec, out, mesh=OFTEN, should_stop=stop_after(4))
    steps = sorted((int(p.name), p) for p in (out / spec.run_id / "checkpoints").iterdir() if p.name.isdigit())
    for file in steps[-1][1].rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    result = train_run(spec, out)
    assert result.loss == train_run(spec, finished).loss
    assert f"checkpoint {steps[-1][0]}" in result.provenance["skipped_checkpoints"][0]
    assert (out / spec.run_id / "attempts.jsonl").read_text().count(f'"step": {steps[0][0]}') == 1


def test_runs_trained_without_a_plan_are_collected_from_their_folders(finished: Path, spec: RunSpec) -> None:
    observations = collect_runs(finished)
    assert list(observations.frame.run_id) == [spec.run_id] and list(observations.frame.role) == ["grid"]
    assert observations.frame.loss[0] == train_run(spec, finished).loss


def test_divergence_ends_the_run_with_step_and_value(root: Path, spec: RunSpec) -> None:
    wild = replace(spec, lr=1e30, clip_norm=0.0)
    result = train_run(wild, root / "wild")
    assert result.state == "diverged" and result.loss is None
    assert result.reason.startswith("training loss nan at step ") and f"of {spec.steps}" in result.reason
    assert train_run(wild, root / "wild") == result


def test_text_too_short_is_refused_with_the_epochs(root: Path, spec: RunSpec) -> None:
    short = replace(spec, data=replace(spec.data, max_epochs=0.01))
    with pytest.raises(MisuseError, match=r"epochs, and data.max_epochs allows 0.01"):
        train_run(short, root / "short")


def test_vocabulary_smaller_than_the_tokenizer_is_refused(root: Path, spec: RunSpec) -> None:
    small = replace(spec, model=replace(spec.model, vocab_size=100))
    with pytest.raises(MisuseError, match=r"model.vocab_size: 100 .* at least 256"):
        train_run(small, root / "vocab")


def test_foreign_run_folder_is_refused(root: Path, spec: RunSpec) -> None:
    out = root / "foreign"
    (out / spec.run_id).mkdir(parents=True)
    other = replace(spec, seed=77)
    (out / spec.run_id / "spec.json").write_text(json.dumps(record.to_plain(other)))
    with pytest.raises(MisuseError, match=f"describes run {other.run_id}"):
        train_run(spec, out)


def test_run_held_by_another_process_is_refused(root: Path, spec: RunSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "LOCK_PATIENCE_S", 0.0)
    folder = record.RunFolder(root / "held", spec)
    folder.prepare()
    with (
        record.hold_runs([folder], Claims(root / "held")),
        pytest.raises(MisuseError, match="another process is training it"),
    ):
        train_run(spec, root / "held")


def test_full_disk_is_said_before_anything_is_trained(
    root: Path, spec: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("usage", (), {"free": 1 << 20})
    monkeypatch.setattr(record.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(VerdictError, match="1 MiB of disk left"):
        train_run(spec, root / "full")


def test_disk_full_in_the_middle_is_said_and_the_run_goes_on_later(
    root: Path, spec: RunSpec, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Orbax reports a full disk from its thread as a ValueError."""
    out = root / "filling"

    def fail(*_: object, **__: object) -> None:
        raise ValueError("RESOURCE_EXHAUSTED: Failed to write 8440 bytes to file 14: No space left on device")

    with monkeypatch.context() as full:
        full.setattr(Checkpoints, "save", fail)
        with pytest.raises(VerdictError, match=r"no disk space left.*run the same command again"):
            train_run(spec, out, mesh=OFTEN)
    assert train_run(spec, out).loss == train_run(spec, finished).loss


def test_text_other_than_the_plans_is_refused(root: Path, spec: RunSpec) -> None:
    with pytest.raises(MisuseError, match=r"the plan was made for text 000000000000 and .* is now"):
        train_run(spec, root / "other_text", data_sha256="0" * 64)


@pytest.mark.parametrize(
    ("kind", "said"), [("data_sha256", "training text other"), ("precision", r"compute precision .* other")]
)
def test_run_half_trained_on_another_text_or_precision_is_not_continued(
    root: Path, spec: RunSpec, kind: str, said: str
) -> None:
    out = root / f"half_{kind}"
    with pytest.raises(Preempted):
        train_run(spec, out, should_stop=stop_after(2))
    file = out / spec.run_id / "attempts.jsonl"
    attempt = json.loads(file.read_text())
    del attempt["crc"]
    attempt["kinds"][kind] = "other"
    file.write_text(json.dumps(attempt) + "\n")
    with pytest.raises(MisuseError, match=said):
        train_run(spec, out)


def test_result_names_every_device_kind_that_trained_the_run(root: Path, spec: RunSpec) -> None:
    out = root / "kinds"
    with pytest.raises(Preempted):
        train_run(spec, out, should_stop=stop_after(2))
    file = out / spec.run_id / "attempts.jsonl"
    attempt = json.loads(file.read_text())
    del attempt["crc"]
    attempt["kinds"] |= {"device_kind": "TPU v4", "devices": "1"}
    del attempt["kinds"]["threads"]  # as an older version wrote it
    file.write_text(json.dumps(attempt) + "\n")
    told = train_run(spec, out).provenance
    assert (told["device_kind"], told["devices"]) == ("TPU v4 then cpu", f"1 then {len(jax.devices())}")
    assert told["threads"] == len(os.sched_getaffinity(0))


def test_killed_between_the_last_save_and_the_result_it_ends_the_same(
    root: Path, spec: RunSpec, finished: Path
) -> None:
    out = root / "last_moment"
    whole = train_run(spec, out)
    (out / spec.run_id / "result.json").unlink()
    again = train_run(spec, out)
    assert (again.loss, again.train_loss, again.tokens) == (whole.loss, whole.train_loss, whole.tokens)
    assert again.tokens_per_s > 0 and curve(out, spec) == curve(finished, spec)


def test_resumed_with_other_dispatches_it_still_logs_and_saves(
    root: Path, spec: RunSpec, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint off the grid of the new logging intervals, as after a move to other devices."""
    out = root / "moved"
    with monkeypatch.context() as small:
        small.setattr(dispatch, "FEW_SLOTS", 8)
        with pytest.raises(Preempted):
            train_run(spec, out, should_stop=stop_after(1))
    train_run(spec, out)
    steps = [line["step"] for line in curve(out, spec)]
    assert steps[0] % 32 and len(steps) > len(curve(finished, spec)) - 2 and steps[-1] == spec.steps


def test_mesh_and_microbatch_of_the_execution_change_neither_the_run_nor_its_loss(
    root: Path, spec: RunSpec, finished: Path
) -> None:
    """Half the recipe's microbatch on tensor 2 x context 4 beside data 8. (Its lines are of other dispatches.)"""
    other = MeshConfig(tensor=2, context=4, microbatch_seqs=spec.microbatch_seqs // 2)
    result = train_run(spec, root / "execution", mesh=other)
    wanted = train_run(spec, finished)
    assert result.run_id == wanted.run_id and result.loss == pytest.approx(wanted.loss, rel=2e-5)


def test_dispatches_are_about_a_second_and_lines_about_two_hundred(spec: RunSpec) -> None:
    long = replace(spec, steps=100_000)
    layout = dispatch.lay_out(long, long.microbatch_seqs, "cpu", 1)
    assert layout.line % layout.steps == 0 and layout.steps * layout.accumulate <= layout.slots
    assert 100 <= long.steps / layout.line <= 400
    large = replace(long, model=replace(spec.model, d_model=4096, n_layers=32, seq_len=2048))
    assert dispatch.lay_out(large, large.microbatch_seqs, "cpu", 1).steps == 1


def test_slots_follow_from_the_microbatch_alone_until_a_batch_needs_more(spec: RunSpec) -> None:
    slots = dispatch.count_slots(spec, spec.microbatch_seqs)
    others = (replace(spec, steps=9), replace(spec, batch_seqs=spec.microbatch_seqs * slots),
              replace(spec, model=replace(spec.model, d_model=256)))  # fmt: skip
    assert {dispatch.count_slots(other, spec.microbatch_seqs) for other in others} == {slots}
    more = replace(spec, batch_seqs=spec.microbatch_seqs * (slots + 1))
    assert dispatch.count_slots(more, more.microbatch_seqs) == 2 * slots


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_a_curve_damaged_under_its_writer_is_written_again(
    finished: Path, spec: RunSpec, tmp_path: Path, damage: str
) -> None:
    file = tmp_path / spec.run_id / "metrics.jsonl"

    def harm(progress: Progress) -> None:
        if progress.step < spec.steps // 2 or (tmp_path / "harmed").exists():
            return
        (tmp_path / "harmed").touch()
        if damage == "gone":
            file.unlink()
        else:
            with open(file, "r+b") as stream:
                stream.write(b"x") if damage == "flipped" else stream.truncate(100)

    result = train_run(spec, tmp_path, on_progress=harm)
    assert (tmp_path / "harmed").exists()
    assert result.loss == train_run(spec, finished).loss
    assert curve(tmp_path, spec) == curve(finished, spec)
    assert ("damaged" in result.provenance) == (damage != "gone")
    assert inspect_result(tmp_path / spec.run_id) == (result, "")


def test_what_goes_wrong_after_a_take_over_is_a_lost_lease(spec: RunSpec, tmp_path: Path) -> None:
    """The successor has removed the half-made checkpoint: the woken holder's missing file is no error of the disk."""

    def lose(_: Progress) -> None:
        lease = find_holding(tmp_path, spec.run_id)
        assert lease is not None
        (tmp_path / "leases" / spec.run_id / f"{lease.generation + 1:06}.json").write_text("{}")
        raise FileNotFoundError(2, "No such file or directory")

    with pytest.raises(LeaseLost, match=f"run {spec.run_id}: taken over"):
        train_run(spec, tmp_path, on_progress=lose)
    assert not (tmp_path / spec.run_id / "result.json").exists()


def test_a_result_named_after_a_take_over_is_withdrawn(
    spec: RunSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker was stopped between its last look at the lease and the name; the curve is its successor's by now."""
    create = PosixStorage.create

    def late(storage: PosixStorage, name: str, data: bytes) -> bool:
        if name == "result.json":
            lease = find_holding(tmp_path, spec.run_id)
            assert lease is not None
            (tmp_path / "leases" / spec.run_id / f"{lease.generation + 1:06}.json").write_text("{}")
        return create(storage, name, data)

    monkeypatch.setattr(PosixStorage, "create", late)
    with pytest.raises(LeaseLost, match="taken over"):
        train_run(spec, tmp_path)
    assert not (tmp_path / spec.run_id / "result.json").exists()
