"""Runs of one shape in one program: each as if it were alone, whatever the others do."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import make_study

from jaxscale.errors import MisuseError
from jaxscale.plain import write_json
from jaxscale.plan import plan_isoflop
from jaxscale.resolve import describe_run
from jaxscale.runs import RunResult, RunSpec
from jaxscale.sweep import Way, group_cells, pack_key, reset_cell
from jaxscale.train.engine import Packed
from jaxscale.train.loop import Preempted, train_pack, train_run
from jaxscale.train.packs import Pack, PackFolder, open_packs
from jaxscale.train.pool import _resume_packs
from jaxscale.train.probe import _read

STEPS = 100
WAYS: tuple[Way, ...] = ("pack", "turn")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pack")


@pytest.fixture(scope="module")
def specs(root: Path) -> tuple[RunSpec, ...]:
    """Five runs of 100 steps that differ in all that may: rate, decay, seed, init."""
    spec = plan_isoflop(make_study(root), train_tokens=1e5).cells[2].spec
    tokens = STEPS * spec.batch_seqs * spec.model.seq_len
    spec = replace(spec, steps=STEPS, tokens=tokens, warmup_steps=5, decay_steps=20,
                   model=replace(spec.model, kv_groups=2))  # fmt: skip
    scaled = replace(spec.model, embed_std=0.5, hidden_std=0.3, head_std=0.1)
    return (
        replace(spec, lr=0.004), replace(spec, lr=0.01, weight_decay=2 * spec.weight_decay), replace(spec, seed=7),
        replace(spec, model=scaled), replace(spec, lr=0.005, seed=7, model=scaled),
    )  # fmt: skip


@pytest.fixture(scope="module")
def alone(root: Path, specs: tuple[RunSpec, ...]) -> tuple[RunResult, ...]:
    return tuple(train_run(spec, root / "alone") for spec in specs)


def with_diverging(specs: tuple[RunSpec, ...]) -> tuple[RunSpec, ...]:
    return (specs[0], replace(specs[1], lr=1e30), *specs[2:])


def losses(folder: Path, spec: RunSpec) -> np.ndarray:
    lines = (folder / spec.run_id / "metrics.jsonl").read_text().splitlines()
    return np.array([(line["step"], line["loss"]) for line in map(json.loads, lines)])


@pytest.mark.parametrize("way", WAYS)
def test_each_member_loses_as_much_as_alone(
    root: Path, specs: tuple[RunSpec, ...], alone: tuple[RunResult, ...], way: Way
) -> None:
    """Losses of 100 steps within 1e-5 relative, five members on a device each."""
    together = train_pack(specs, root / way, way)
    for spec, one, other in zip(specs, alone, together, strict=True):
        mine, own = losses(root / way, spec), losses(root / "alone", spec)
        assert np.array_equal(mine[:, 0], own[:, 0])
        np.testing.assert_allclose(mine[:, 1], own[:, 1], rtol=1e-5)
        assert other.loss == pytest.approx(one.loss, rel=1e-5)
        assert other.provenance["pack"]["members"] == len(specs)
    assert len({result.loss for result in together}) == len(specs)
    assert not (root / way / "packs").exists() or not list((root / way / "packs").iterdir())


@pytest.mark.parametrize("way", WAYS)
def test_diverging_member_ends_alone_and_the_others_keep_their_bits(
    root: Path, specs: tuple[RunSpec, ...], way: Way
) -> None:
    calm = train_pack(specs, root / f"{way}-calm", way)
    wild = train_pack(with_diverging(specs), root / f"{way}-wild", way)
    assert [result.state for result in wild] == ["done", "diverged", "done", "done", "done"]
    assert "at step" in wild[1].reason and wild[1].loss is None
    assert [r.loss for r in (wild[0], *wild[2:])] == [r.loss for r in (calm[0], *calm[2:])]


def test_preempted_pack_goes_on_to_the_same_bits(root: Path, specs: tuple[RunSpec, ...]) -> None:
    """Stopped after two intervals and resumed; a member that had diverged stays as it ended."""
    mixed = with_diverging(specs)
    quiet = train_pack(mixed, root / "quiet", "turn")
    out, calls = root / "stopped", iter(range(100))
    with pytest.raises(Preempted, match="pack of 5 runs saved at step"):
        train_pack(mixed, out, "turn", should_stop=lambda: next(calls) >= 1)
    assert [pack.run_ids for pack in open_packs(out)] == [tuple(spec.run_id for spec in mixed)]
    resumed = train_pack(mixed, out, "turn")
    assert [r.loss for r in resumed] == [r.loss for r in quiet]
    assert [r.restarts for r in resumed] == [1, 0, 1, 1, 1]
    assert np.array_equal(losses(out, specs[0]), losses(root / "quiet", specs[0]))
    assert not open_packs(out)


def test_a_pack_that_averages_goes_on_to_the_same_mean(root: Path, specs: tuple[RunSpec, ...]) -> None:
    """Preempted inside the averaging: the mean is part of the state; beside it each run alone, and without a mean."""
    averaging = tuple(replace(spec, average_steps=60) for spec in specs[:3])
    calls = iter(range(100))
    with pytest.raises(Preempted, match="saved at step 64 of 100"):
        train_pack(averaging, root / "mean", "turn", should_stop=lambda: next(calls) >= 1)
    resumed = [result.loss for result in train_pack(averaging, root / "mean", "turn")]
    whole = [result.loss for result in train_pack(averaging, root / "mean-whole", "turn")]
    assert resumed == whole
    assert whole == pytest.approx([train_run(spec, root / "mean-alone").loss for spec in averaging], rel=1e-5)
    last = [train_run(spec, root / "alone").loss for spec in specs[:3]]
    assert not any(a == pytest.approx(b, rel=1e-4) for a, b in zip(whole, last, strict=True))


def test_a_member_that_was_reset_begins_anew(root: Path, specs: tuple[RunSpec, ...]) -> None:
    """Not from the state that the pack had saved, where it had diverged or trained for a while."""
    mixed, out, calls = with_diverging(specs), root / "reset", iter(range(100))
    with pytest.raises(Preempted):
        train_pack(mixed, out, "turn", should_stop=lambda: next(calls) >= 1)
    first = json.loads((out / mixed[1].run_id / "result.json").read_text())["reason"]
    for spec in mixed[:2]:
        reset_cell(out, describe_run(spec))
    again = train_pack(mixed, out, "turn")
    assert again[1].reason == first and again[0].restarts == 0
    whole, whole_again = (losses(folder, mixed[0]) for folder in (root / "quiet", out))
    assert np.array_equal(whole, whole_again)


def test_of_two_open_packs_with_a_run_in_common_one_goes_on(root: Path) -> None:
    """As a kill between two groupings leaves them; both at once would wait for each other's runs."""
    planned, out = plan_isoflop(make_study(root, seeds=(2,)), train_tokens=1e5), root / "common"
    write_json(out / "plan.json", planned.to_json())
    ids = tuple(cell.run_id for cell in planned.cells[:3])
    for members in (ids[:2], ids[1:]):
        folder = PackFolder(out, Pack(members, "turn"))
        folder.prepare()
        (folder.checkpoints / "8").mkdir(parents=True)
    jobs = _resume_packs(out, planned.cells)
    assert len(jobs) == 1 and len(open_packs(out)) == 2


def test_state_saved_on_eight_devices_is_the_one_of_one_device(specs: tuple[RunSpec, ...]) -> None:
    """Lanes that only fill the devices up are no part of it."""
    many, one = (Packed(specs, 8, "pack", jnp.float32, jax.devices()[:count]) for count in (8, 1))
    saved, plain = many.to_save(many.begin()), one.to_save(one.begin())
    for a, b in zip(jax.tree.leaves(saved), jax.tree.leaves(plain), strict=True):
        assert a.shape == b.shape and np.array_equal(a, b)
    again = many.to_save(many.place(saved))
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(saved), strict=True))


def test_weights_are_kept_only_where_asked(root: Path, specs: tuple[RunSpec, ...]) -> None:
    def kept(folder: Path) -> list[str]:
        return sorted(path.name for path in folder.glob("*/checkpoints/*") if path.name.isdigit())

    train_pack(specs, root / "kept", "pack")
    train_pack(specs, root / "light", "pack", keep_weights=False)
    train_run(specs[0], root / "light-alone", keep_weights=False)
    assert kept(root / "kept") == [str(STEPS)] * 5
    assert not kept(root / "light") and not kept(root / "light-alone")


@pytest.mark.parametrize("ms", [5, {"process": "1", "pack": None, "turn": 1}, {"process": 1.0}, "x"])
def test_a_damaged_probe_is_measured_anew(tmp_path: Path, ms: object) -> None:
    file = tmp_path / "ways.json"
    file.write_text(json.dumps({"schema": "jaxscale.ways/1", "ms": ms}))
    assert _read(file) is None


def test_what_may_differ_in_a_pack_and_what_may_not(specs: tuple[RunSpec, ...]) -> None:
    assert len({pack_key(spec) for spec in specs}) == 1
    first = specs[0]
    for other in (
        replace(first, steps=STEPS + 1), replace(first, batch_seqs=first.batch_seqs * 2),
        replace(first, model=replace(first.model, d_model=16)), replace(first, schedule="wsd"),
        replace(first, model=replace(first.model, parameterization="standard")), replace(first, optimizer="muon"),
    ):  # fmt: skip
        assert pack_key(other) != pack_key(first)


def test_runs_of_other_shapes_are_refused(root: Path, specs: tuple[RunSpec, ...]) -> None:
    other = replace(specs[0], model=replace(specs[0].model, d_model=16))
    with pytest.raises(MisuseError, match="cannot train in one program"):
        train_pack((specs[0], other), root / "refused", "pack")


def test_groups_are_split_evenly_over_workers(root: Path) -> None:
    cells = plan_isoflop(make_study(root, seeds=(3,)), train_tokens=1e5).cells
    jobs = group_cells(cells, 2, "auto")
    assert sorted(cell.run_id for job in jobs for cell in job.cells) == sorted(cell.run_id for cell in cells)
    assert all(len({pack_key(cell.spec) for cell in job.cells}) == 1 for job in jobs)
    assert {len(job.cells) for job in jobs} == {1, 2}
    assert all(len(job.cells) == 1 for job in group_cells(cells, 2, "process"))
