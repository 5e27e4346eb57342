"""Cooldown branches: one trunk, many horizons, the same bits as runs of their own, paid once."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tiny import make_study, write_study

from jaxscale.collect import collect_curves, collect_runs
from jaxscale.config import MeshConfig, Study
from jaxscale.errors import MisuseError
from jaxscale.fit import fit_isoflop
from jaxscale.mup.arms import retune
from jaxscale.plain import read_sealed, write_json
from jaxscale.plan import plan_isoflop
from jaxscale.resolve import describe_run
from jaxscale.runs import Plan, RunSpec
from jaxscale.sweep import group_cells, read_plan, read_status
from jaxscale.train.loop import Preempted, train_pack, train_run
from jaxscale.train.pool import train_cells
from jaxscale.trunks import branch_off, kept_dir

OFTEN = MeshConfig(checkpoint_every_s=0.0)


def make_branches(root: Path, **grid: object) -> Study:
    study = make_study(root, schedule="wsd-branches", **grid)
    return replace(study, recipe=replace(study.recipe, schedule="wsd"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("branches")


@pytest.fixture(scope="module")
def planned(root: Path) -> Plan:
    return plan_isoflop(make_branches(root), train_tokens=1e5)


@pytest.fixture(scope="module")
def trunk(planned: Plan) -> RunSpec:
    return next(c.spec for c in planned.cells if c.role == "trunk" and c.spec.model.d_model == 8)


@pytest.fixture(scope="module")
def branches(planned: Plan, trunk: RunSpec) -> list[RunSpec]:
    return [cell.spec for cell in planned.cells if cell.spec.parent == trunk.run_id]


@pytest.fixture(scope="module")
def finished(root: Path, trunk: RunSpec, branches: list[RunSpec]) -> Path:
    """A study folder in which a trunk and its two branches were trained undisturbed."""
    for spec in (trunk, *branches):
        train_run(spec, root / "quiet")
    return root / "quiet"


def lines(folder: Path, run_id: str) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (folder / run_id / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in ("seconds", "crc")} for row in rows]


def test_branch_is_to_the_bit_the_uninterrupted_run(root: Path, finished: Path, branches: list[RunSpec]) -> None:
    """Validation loss, and rate and gradient norm wherever both logged; intervals begin elsewhere, so means differ."""
    for branch in branches:
        whole = train_run(replace(branch, parent="", parent_step=0), root / "whole")
        own = train_run(branch, finished)
        assert (own.loss, own.tokens, own.flops) == (whole.loss, whole.tokens, whole.flops)
        assert (own.begun_step, whole.begun_step) == (branch.parent_step, 0)
        ends = {row["step"]: row for row in lines(root / "whole", whole.run_id)}
        both = [(row, ends[row["step"]]) for row in lines(finished, own.run_id) if row["step"] in ends]
        assert len(both) > 1 and both[-1][0]["step"] == branch.steps
        assert all(row[name] == alone[name] for row, alone in both for name in ("lr", "grad_norm", "flops"))


def test_branches_share_the_trunks_curve(finished: Path, trunk: RunSpec, branches: list[RunSpec]) -> None:
    shared = lines(finished, trunk.run_id)
    for branch in branches:
        inherited = [row for row in lines(finished, branch.run_id) if row["step"] <= branch.parent_step]
        assert inherited == [row for row in shared if row["step"] <= branch.parent_step]
        assert inherited[-1]["step"] == branch.parent_step and inherited[-1]["lr"] == pytest.approx(branch.lr)


@pytest.mark.parametrize("which", ["trunk", "branch"])
def test_resumed_is_undisturbed(
    root: Path, finished: Path, trunk: RunSpec, branches: list[RunSpec], which: str
) -> None:
    """Trunk or branches stopped after the first logging interval."""
    out = root / f"stopped_{which}"
    for spec in (trunk, *branches):
        stopping = (spec is trunk) == (which == "trunk")
        for _ in range(1 if stopping else 0):
            with pytest.raises(Preempted):
                train_run(spec, out, should_stop=lambda: True)
        result = train_run(spec, out)
        assert result.restarts == (1 if stopping else 0)
        assert (result.loss, lines(out, spec.run_id)) == (train_run(spec, finished).loss, lines(finished, spec.run_id))


def test_paid_flops_counted_are_those_planned(planned: Plan, finished: Path, trunk: RunSpec) -> None:
    cells = [c for c in planned.cells if trunk.run_id in (c.run_id, c.spec.parent)]
    results = [status.result for status in read_status(finished, cells)]
    assert sum(r.paid_flops for r in results if r) == pytest.approx(sum(c.paid_flops for c in cells), rel=1e-12)
    steps = trunk.steps + sum(c.spec.decay_steps for c in cells)
    per_step = cells[0].flops / trunk.steps
    assert sum(c.paid_flops for c in cells) == pytest.approx(steps * per_step, rel=1e-12)
    assert planned.total_flops == pytest.approx(sum(c.paid_flops for c in planned.cells))


def test_seconds_of_a_branch_are_its_own(finished: Path, trunk: RunSpec, branches: list[RunSpec]) -> None:
    last = json.loads((finished / branches[1].run_id / "metrics.jsonl").read_text().splitlines()[-1])["seconds"]
    kept = (kept_dir(finished, trunk.run_id, branches[1].parent_step) / "metrics.jsonl").read_text().splitlines()
    before = json.loads(kept[-1])["seconds"]
    assert train_run(branches[1], finished).seconds == pytest.approx(last - before, abs=1.0)


def test_trunk_is_no_evidence_and_branches_name_their_parent(
    finished: Path, trunk: RunSpec, branches: list[RunSpec]
) -> None:
    observations = collect_runs(finished)
    assert set(observations.frame.run_id) == {branch.run_id for branch in branches}
    assert set(observations.frame.parent) == {trunk.run_id} and set(observations.frame.family) == {"wsd-branch"}
    (refused,) = observations.refused
    assert refused["run_id"] == trunk.run_id and "its branches are the evidence" in refused["reason"]


def test_every_size_and_seed_has_one_trunk_and_one_batch(root: Path) -> None:
    planned = plan_isoflop(make_branches(root, seeds=(2, 1)), train_tokens=1e5)
    for size in {c.spec.model for c in planned.cells}:
        own = [c for c in planned.cells if c.spec.model == size]
        assert len({(c.spec.batch_seqs, c.spec.lr, c.spec.weight_decay, c.spec.warmup_steps) for c in own}) == 1
        trunks = {c.spec.seed: c for c in own if c.role == "trunk"}
        assert sorted(trunks) == [0, 1]
        for c in own:
            if c.role != "trunk":
                assert c.spec.parent == trunks[c.spec.seed].run_id
                assert c.spec.parent_step in trunks[c.spec.seed].spec.keeps
                assert c.spec.parent_step + c.spec.decay_steps == c.spec.steps
                assert abs(c.flops / c.spec.budget_flops - 1) < 0.01
    assert Plan.from_json(planned.to_json()) == planned


def test_held_out_cells_are_runs_of_their_own(root: Path) -> None:
    planned = plan_isoflop(make_branches(root, holdout=(4e9,)), train_tokens=1e6)
    held = [c.spec for c in planned.cells if c.role == "holdout"]
    assert held and all((spec.parent, spec.keeps, spec.schedule) == ("", (), "wsd") for spec in held)


def test_run_ids_know_parent_and_step_and_nothing_new_where_there_is_none(branches: list[RunSpec]) -> None:
    spec = branches[0]
    alone = replace(spec, parent="", parent_step=0)
    ids = {spec.run_id, alone.run_id, replace(spec, parent="0" * 12).run_id, replace(spec, parent_step=3).run_id}
    assert len(ids) == 4


def test_a_run_that_decays_within_the_warmup_has_no_trunk(branches: list[RunSpec]) -> None:
    spec = replace(branches[0], parent="", parent_step=0)
    with pytest.raises(MisuseError, match=r"too short for a branch at step"):
        branch_off([replace(spec, decay_steps=spec.steps - spec.warmup_steps)])
    with pytest.raises(MisuseError, match="differ in more than"):
        branch_off([spec, replace(spec, lr=1.0)])


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ({"schedule": "cosine"}, r"grid.schedule: wsd-branches .*--recipe.schedule wsd"),
        ({"schedule": "wsd", "decay_fraction": 0.0}, r"recipe.decay_fraction: 0 leaves a branch nothing"),
        ({"schedule": "wsd", "decay_fraction": 0.1, "warmup_fraction": 0.9}, r"inside its trunk's warmup"),
    ],
)
def test_studies_that_cannot_branch_are_refused(root: Path, recipe: dict[str, object], said: str) -> None:
    study = make_branches(root)
    with pytest.raises(MisuseError, match=said):
        plan_isoflop(replace(study, recipe=replace(study.recipe, **recipe)), train_tokens=1e5)


def test_branch_before_its_trunk_says_what_to_train_first(root: Path, branches: list[RunSpec]) -> None:
    with pytest.raises(MisuseError, match=r"has not kept its state at step \d+ yet; train the trunk first"):
        train_run(branches[0], root / "early")


def test_branch_beyond_its_trunk_is_refused(finished: Path, trunk: RunSpec, branches: list[RunSpec]) -> None:
    beyond = replace(branches[1], parent_step=trunk.steps + 1)
    with pytest.raises(MisuseError, match=rf"has {trunk.steps} steps and keeps no state at {trunk.steps + 1}"):
        train_run(beyond, finished)


@pytest.mark.parametrize("damage", ["lost", "damaged"])
def test_lost_or_damaged_parent_state_is_one_sentence_with_the_next_step(
    root: Path, trunk: RunSpec, branches: list[RunSpec], damage: str
) -> None:
    import shutil

    out = root / damage
    train_run(trunk, out)
    state = kept_dir(out, trunk.run_id, branches[0].parent_step) / "state"
    if damage == "lost":
        shutil.rmtree(state)
    for file in state.rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(MisuseError, match=rf"(is gone|cannot be read).*jaxscale reset DIR {trunk.run_id}"):
        train_run(branches[0], out)
    assert train_run(branches[1], out).state == "done"  # the other state is untouched


def test_diverged_trunk_ends_its_later_branches_and_not_its_earlier_ones(
    root: Path, planned: Plan, trunk: RunSpec, branches: list[RunSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trunk is stopped between its two kept steps and said to have diverged there."""
    out = root / "diverged"
    early, late = sorted(branches, key=lambda spec: spec.parent_step)
    cells = [replace(describe_run(spec), seconds=1.0) for spec in (trunk, late, early)]
    write_json(out / "plan.json", replace(planned, cells=tuple(cells)).to_json())
    passed = kept_dir(out, trunk.run_id, early.parent_step) / "state"
    with pytest.raises(Preempted):
        train_run(trunk, out, should_stop=passed.exists)
    from jaxscale.sweep import fail_cell

    ended = fail_cell(out, cells[0], "training loss nan at step 99")
    write_json(out / trunk.run_id / "result.json", json.dumps({**vars(ended), "state": "diverged"}))
    events: list[dict[str, object]] = []
    train_cells(out, cells[1:], make_study(root).mesh, events.append)
    _, late_status, early_status = read_status(out, read_plan(out).cells)
    assert early_status.state == "done"
    assert late_status.state == "failed"
    assert late_status.reason == f"its trunk {trunk.run_id} diverged: training loss nan at step 99"
    assert sum(event["event"] == "ended" for event in events) == 2


def jaxscale(*words: str, cwd: Path) -> "subprocess.Popen[str]":
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.Popen(
        [sys.executable, "-m", "jaxscale", *words], cwd=cwd, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


def kill_all(process: "subprocess.Popen[str]") -> None:
    """kill -9 of the parent and of its workers."""
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    for worker in workers:
        os.kill(int(worker), signal.SIGKILL)
    process.communicate()


BRANCHED = (
    "study = replace(study, grid=replace(study.grid, schedule='wsd-branches'), "
    "recipe=replace(study.recipe, schedule='wsd'), mesh=replace(study.mesh, checkpoint_every_s=0.2))"
)


def test_killed_while_trunk_or_branches_train_it_goes_on_to_the_same_bits(
    root: Path, planned: Plan, trunk: RunSpec, branches: list[RunSpec]
) -> None:
    """The verbs as a person types them: plan, train, kill -9 of all processes twice, train, collect, reset."""
    write_study(root, BRANCHED)
    out, calm = root / "runs" / "tiny", root / "calm"
    plan = jaxscale("plan", "tiny.py", cwd=root)
    said, err = plan.communicate()
    assert plan.returncode == 0 and "2 branches" in said and "5 trunks, counted once, and 10 runs" in said, err
    whole = read_plan(out)
    assert {c.run_id for c in whole.cells} == {c.run_id for c in planned.cells}
    few = tuple(c for c in whole.cells if trunk.run_id in (c.run_id, c.spec.parent))
    for folder in (out, calm):
        write_json(folder / "plan.json", replace(whole, cells=few).to_json())
    train_cells(calm, few, make_study(root).mesh)
    for file in (kept_dir(out, trunk.run_id, trunk.keeps[0]) / "state", out / branches[1].run_id / "metrics.jsonl"):
        process = jaxscale("train", str(out), "--all", cwd=root)
        while not file.exists() and process.poll() is None:
            time.sleep(0.05)
        kill_all(process)
    process = jaxscale("train", str(out), "--all", cwd=root)
    said, err = process.communicate()
    assert process.returncode == 0, err
    for spec in (trunk, *branches):
        assert lines(out, spec.run_id) == lines(calm, spec.run_id)
    observations = collect_runs(out)
    assert list(observations.frame.loss) == list(collect_runs(calm).frame.loss)
    assert not collect_curves(out, observations).frame.duplicated(["parent", "D", "loss"]).any()
    file = out / branches[0].run_id / "result.json"
    write_json(file, json.dumps({**read_sealed(file), "state": "failed"}))
    said, _ = jaxscale("reset", str(out), trunk.run_id, cwd=root).communicate()
    assert f"{branches[0].run_id}: planned, a branch of {trunk.run_id}" in said and branches[1].run_id not in said


def test_fits_know_the_family_and_tell_a_mixture(finished: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [{"N": N, "D": C / 6 / N, "C": C, "budget": C, "parent": f"trunk {N:g}", "family": "wsd-branch",
             "run_id": f"{C:g} {N:g}", "loss": 1.7 + 400 / N**0.34 + 410 / (C / 6 / N) ** 0.28 + 1e-3 * rng.random()}
            for C in (1e18, 3e18, 1e19) for N in np.sqrt(C / 120) * np.geomspace(1 / 4, 4, 7)]  # fmt: skip
    table = pd.DataFrame(rows)
    fit = fit_isoflop(table, bootstrap=20)
    assert fit.diagnostics["family"] == {"wsd-branch": 21}
    assert any("21 points are decayed branches of 21 trunks" in note for note in fit.notes)
    assert not any("mixes" in note for note in fit.notes)
    mixed = fit_isoflop(table.assign(family=["cosine"] * 7 + ["wsd-branch"] * 14), bootstrap=20)
    assert any("mixes runs of different schedules (14 wsd-branch, 7 cosine)" in note for note in mixed.notes)
    assert "family" not in fit_isoflop(table.drop(columns="family"), bootstrap=20).diagnostics


def test_pool_without_the_trunk_says_so_instead_of_waiting(
    root: Path, planned: Plan, trunk: RunSpec, branches: list[RunSpec]
) -> None:
    out = root / "orphan"
    cells = (replace(describe_run(branches[0]), seconds=1.0),)
    write_json(out / "plan.json", replace(planned, cells=cells).to_json())
    with pytest.raises(MisuseError, match="train the trunk first"):
        train_cells(out, cells, make_study(root).mesh)


def test_packs_take_no_trunks_or_branches(root: Path, trunk: RunSpec, planned: Plan) -> None:
    with pytest.raises(MisuseError, match="trunks and branches train by themselves"):
        train_pack([trunk], root / "packed", "pack")
    assert {job.way for job in group_cells(planned.cells, 2, "auto")} == {"process"}
    assert len(group_cells(planned.cells, 2, "auto")) == len(planned)


def test_audit_of_a_branch_is_a_run_of_its_own(branches: list[RunSpec]) -> None:
    rerun = retune(branches[0], 2.0, "constant")
    assert (rerun.parent, rerun.parent_step, rerun.lr, rerun.family) == ("", 0, 2 * branches[0].lr, "wsd")
