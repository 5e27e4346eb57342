"""Runs of a sweep that are stopped early: by the rule alone, the same ones again, and never as evidence."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from planted_sweep import plant_sweep
from rich.console import Console
from test_main_job import jaxscale
from tiny import make_study, write_study

from jaxscale.cli import dispatch
from jaxscale.cli import sweep as cli_sweep
from jaxscale.collect import collect_runs
from jaxscale.config import Study
from jaxscale.errors import MisuseError
from jaxscale.hopeless import (
    NARROWEST,
    NEAR,
    RUNGS,
    Contest,
    Rung,
    Trace,
    check_stoppable,
    is_beside,
    judge_run,
    keep_order,
    list_contests,
    list_unfounded,
    mean_loss,
    stop_margin,
)
from jaxscale.mup import analyse_sweep
from jaxscale.mup.rates import read_ladders
from jaxscale.mup.sweep import SweepGrid, plan_sweep
from jaxscale.plain import read_json, read_sealed, write_json
from jaxscale.plan import plan_isoflop
from jaxscale.resolve import describe_run
from jaxscale.runs import Cell, RunResult, RunSpec, State, run_dir
from jaxscale.sweep import Way, group_cells, pack_key, read_plan, read_status, reset_cell
from jaxscale.train.loop import Preempted, train_pack
from jaxscale.train.pool import train_cells
from jaxscale.train.stopping import Stopper

STEPS = 1600
RATES = tuple(0.02 * 2.0**k for k in range(-4, 5))


def trace(name: str, lr: float, loss: float, until: int = STEPS) -> Trace:
    """A run whose loss is the same at every step, a line every ten."""
    return Trace(name, lr, [{"step": step, "loss": loss} for step in range(10, until + 1, 10)])


@pytest.mark.parametrize("rung", RUNGS)
def test_a_gap_just_beyond_the_margin_stops_and_one_just_below_does_not(rung: Rung) -> None:
    """The margin is (log 1.06 + 3 sqrt 2 noise) / kept."""
    margin = (math.log(1.06) + 3 * math.sqrt(2) * rung.noise) / rung.kept
    rival = trace("rival", 0.02, 2.0)
    for factor, stops in ((1.001, True), (0.999, False)):
        run = trace("run", 0.01, 2.0 * math.exp(factor * margin))
        assert (judge_run(STEPS, run, [rival], rung) is not None) == stops
    stop = judge_run(STEPS, trace("run", 0.01, 3.0), [rival], rung)
    assert stop is not None and (stop.rival, stop.rival_loss, stop.loss) == ("rival", 2.0, 3.0)
    assert stop.margin == pytest.approx(margin) and stop.gap == pytest.approx(math.log(1.5))
    assert "of run rival (lr 0.02)" in str(stop) and f"the margin there is {math.expm1(margin):.1%}" in str(stop)


def test_a_rate_above_the_best_is_never_stopped() -> None:
    """It looks bad until the schedule decays; that another, higher still, could have it stopped does not matter."""
    best, higher = trace("best", 0.02, 2.0), trace("higher", 0.08, 2.5)
    for rung in RUNGS:
        assert judge_run(STEPS, trace("run", 0.04, 9.0), [best, higher], rung) is None


def test_a_run_that_wins_late_is_not_stopped() -> None:
    """Whatever ends within NEAR of its rival and keeps at least `kept` of its gap is never beyond the margin."""
    assert all(math.log1p(NEAR) / rung.kept < stop_margin(rung) for rung in RUNGS)


def test_margins_fall_along_the_run() -> None:
    assert all(stop_margin(one) > stop_margin(two) for one, two in pairwise(RUNGS))


def test_the_best_rival_at_the_rung_is_named_and_one_that_has_not_come_so_far_is_not_asked() -> None:
    run, best = trace("run", 0.001, 3.0), trace("best", 0.02, 2.0)
    rivals = [trace("second", 0.04, 2.1), best, trace("short", 0.02, 1.0, until=300)]
    stop = judge_run(STEPS, run, rivals, RUNGS[0])
    assert stop is not None and stop.rival == "best"
    assert judge_run(STEPS, run, [trace("short", 0.02, 1.0, until=300)], RUNGS[0]) is None
    assert judge_run(STEPS, run, [], RUNGS[0]) is None


def test_a_run_beside_the_best_is_spared_though_another_could_stop_it() -> None:
    """So the rates next to the best are all left, whichever rivals a contest has."""
    run, second = trace("run", 0.001, 3.0), trace("second", 0.04, 2.1)
    assert judge_run(STEPS, run, [second], RUNGS[0]) is not None
    assert judge_run(STEPS, run, [second, replace(trace("best", 0.02, 2.0), stops=False)], RUNGS[0]) is None


def test_the_mean_over_a_window_is_that_of_its_steps_however_they_were_logged() -> None:
    losses = np.random.default_rng(0).random(200)
    for every in (1, 4, 20):
        ends = range(every, 201, every)
        lines = [{"step": end, "loss": float(losses[end - every : end].mean())} for end in ends]
        assert mean_loss(lines, 40, 120) == pytest.approx(losses[40:120].mean(), rel=1e-12)
    assert mean_loss(lines, 160, 200.5) is None


def sweep_cells(seeds: int = 2, rates: Sequence[float] = RATES, study: Study | None = None) -> tuple[Cell, ...]:
    return plan_sweep(study or Study(), SweepGrid(("mup",), (16, 32), tuple(rates), seeds, (60_000.0,))).cells


def contests_of(cells: Sequence[Cell], file: Path, ended: Sequence[str] = ()) -> tuple[Contest, ...]:
    return list_contests(cells, "horizon", keep_order(file, cells, ended))


def test_a_contest_is_the_rates_of_one_model_and_seed_from_the_middle_out(tmp_path: Path) -> None:
    contests = contests_of(sweep_cells(), tmp_path / "hopeless.json")
    assert len(contests) == 2 * 2
    for contest in contests:
        rates = [cell.spec.lr for cell in contest.cells]
        assert sorted(rates) == list(RATES)
        assert [round(abs(math.log2(rate / 0.02))) for rate in rates] == [0, 1, 1, 2, 2, 3, 3, 4, 4]
        assert len({(cell.spec.model.d_model, cell.spec.seed) for cell in contest.cells}) == 1


def stoppers(contest: Contest, run_id: str) -> list[str]:
    return [rival for rival, stops in contest.rivals[run_id].items() if stops]


def test_rivals_come_before_a_run_and_spare_the_rates_beside_them(tmp_path: Path) -> None:
    for contest in contests_of(sweep_cells(), tmp_path / "hopeless.json"):
        place = {cell.run_id: sorted(RATES).index(cell.spec.lr) for cell in contest.cells}
        ids = [cell.run_id for cell in contest.cells]
        assert contest.rivals[ids[0]] == {}
        for i, run_id in enumerate(ids):
            assert list(contest.rivals[run_id]) == ids[:i]
            assert all(abs(place[run_id] - place[rival]) > NARROWEST // 2 for rival in stoppers(contest, run_id))
        assert {place[one] for one in stoppers(contest, ids[-1])} == set(range(6))  # 6 and 7 spare the highest


def test_every_rival_leaves_as_many_rates_as_the_analysis_reads_at_least() -> None:
    for rates in range(1, 12):
        for rival in range(rates):
            spared = [place for place in range(rates) if is_beside(place, rival, rates)]
            assert len(spared) == min(NARROWEST, rates) and rival in spared


def test_the_order_is_written_once_and_appended_to(tmp_path: Path) -> None:
    """What ended before the option was given comes first; a grown sweep's new rates come last."""
    file, cells = tmp_path / "hopeless.json", sweep_cells(1)
    early = [cells[0].run_id, cells[-1].run_id]
    order = keep_order(file, cells, early)
    assert set(order[:2]) == set(early) and keep_order(file, cells, ()) == order
    grown = sweep_cells(1, (*RATES, 0.64, 1.28))
    assert keep_order(file, grown, ())[: len(order)] == order
    assert set(keep_order(file, grown, ())) == {cell.run_id for cell in grown}


@pytest.mark.parametrize("way", ["process", "turn", "auto"])
def test_jobs_hold_whole_contests_in_their_order(tmp_path: Path, way: Way) -> None:
    cells = sweep_cells()
    contests = contests_of(cells, tmp_path / "hopeless.json")
    jobs = group_cells(cells, 2, way, contests)
    assert sorted(cell.run_id for job in jobs for cell in job.cells) == sorted(cell.run_id for cell in cells)
    assert len(jobs) == 4
    for contest in contests:
        (job,) = [job for job in jobs if contest.cells[0] in job.cells]
        mine = [cell for cell in job.cells if cell in contest.cells]
        assert tuple(mine) == contest.cells and len({pack_key(cell.spec) for cell in job.cells}) == 1
    rest = [cell for cell in cells if cell not in contests[0].cells[:3]]
    assert sum(len(job.cells) for job in group_cells(rest, 2, way, contests)) == len(rest)


def test_runs_that_are_no_sweeps_are_never_stopped(tmp_path: Path) -> None:
    (cell, *_), study = sweep_cells(), make_study(tmp_path)
    for role in ("grid", "holdout", "trunk", "audit"):
        with pytest.raises(MisuseError, match=f"has the role {role}: only the runs of a sweep may be stopped"):
            check_stoppable([replace(cell, role=role)])
    grid = plan_isoflop(study, train_tokens=1e5).cells
    with pytest.raises(MisuseError, match="has the role grid"):
        train_cells(tmp_path, grid, study.mesh, contests=(Contest(grid),))
    wsd = replace(Study(), recipe=replace(Study().recipe, schedule="wsd"))
    with pytest.raises(MisuseError, match=r"measured under cosine and run .* has wsd"):
        check_stoppable(sweep_cells(study=wsd))
    averaging = replace(Study(), recipe=replace(Study().recipe, average_fraction=0.2))
    with pytest.raises(MisuseError, match=r"recipe.average_fraction: the margins"):
        check_stoppable(sweep_cells(study=averaging))
    with pytest.raises(MisuseError, match="is a trunk and is never stopped early"):
        Stopper(tmp_path, replace(cell.spec, keeps=(10,)), {})


def ended(run_id: str, state: State, rival: str = "") -> RunResult:
    numbers = dict.fromkeys(("n_params", "n_params_non_embedding", "tokens", "steps_done", "restarts"), 0)
    rates = dict.fromkeys(("flops", "seconds", "tokens_per_s", "flops_per_s"), 0.0)
    nothing = dict.fromkeys(("loss", "loss_std_error", "bits_per_byte", "train_loss"))
    told = {"stop": {"rival": rival}} if rival else {}
    return RunResult(run_id=run_id, state=state, reason="", provenance=told, **numbers, **rates, **nothing)  # type: ignore[arg-type]


def test_a_stop_is_unfounded_where_the_last_rival_came_to_no_loss() -> None:
    results = {"good": ended("good", "done"), "a": ended("a", "censored", "good"), "b": ended("b", "censored", "a"),
               "wild": ended("wild", "diverged"), "c": ended("c", "censored", "wild"),
               "d": ended("d", "censored", "c"), "e": ended("e", "censored", "gone")}  # fmt: skip
    assert list_unfounded(results) == {"c": "its rival wild diverged", "d": "its rival wild diverged",
                                       "e": "its rival gone has no result"}  # fmt: skip


def test_runs_stopped_beside_one_that_diverged_later_are_put_back_and_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sweep's own loop over a trainer that writes planned results: a second call for the one run put back."""
    plan = plan_sweep(Study(), SweepGrid(("mup",), (16,), RATES, 1, (60_000.0,)))
    ids = [cell.run_id for cell in plan.cells]
    calls: list[list[str]] = []

    def train(folder: Path, *_: object, contests: Sequence[Contest], **__: object) -> bool:
        calls.append(
            [cell.run_id for cell in plan.cells if not (run_dir(folder, cell.run_id) / "result.json").exists()]
        )
        for run_id in calls[-1]:
            stops = run_id == ids[0] and len(calls) == 1
            result = (
                ended(run_id, "censored", ids[1])
                if stops
                else ended(run_id, "diverged" if run_id == ids[1] else "done")
            )
            write_json(run_dir(folder, run_id) / "result.json", json.dumps(asdict(result)))
        assert len(contests) == 1
        return True

    monkeypatch.setattr(cli_sweep, "train_pending", train)
    options = cli_sweep.SweepOptions(Study(), stop_hopeless=True)
    assert cli_sweep._train(options, tmp_path, plan, Console(quiet=True), [])
    assert calls == [ids, ids[:1]]
    assert [status.state for status in read_status(tmp_path, plan.cells)][:3] == ["done", "diverged", "done"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hopeless")


@pytest.fixture(scope="module")
def specs(root: Path) -> tuple[RunSpec, ...]:
    """A good run, a rate that learns nothing, another good run: 100 steps, a line at 32, 64, 96 and 100."""
    spec = plan_isoflop(make_study(root), train_tokens=1e5).cells[2].spec
    spec = replace(spec, steps=100, tokens=100 * spec.batch_seqs * spec.model.seq_len, warmup_steps=5, decay_steps=20)
    return replace(spec, lr=0.01), replace(spec, lr=1e-7), replace(spec, lr=0.009)


def name_rivals(specs: Sequence[RunSpec]) -> dict[str, dict[str, bool]]:
    """Every run against the first."""
    return {spec.run_id: {specs[0].run_id: True} if spec is not specs[0] else {} for spec in specs}


def lines(folder: Path, spec: RunSpec) -> list[tuple[int, float]]:
    text = (folder / spec.run_id / "metrics.jsonl").read_text()
    return [(line["step"], line["loss"]) for line in map(json.loads, text.splitlines())]


@pytest.fixture(scope="module")
def calm(root: Path, specs: tuple[RunSpec, ...]) -> tuple[RunResult, ...]:
    return train_pack(specs, root / "calm", "turn")


@pytest.fixture(scope="module")
def stopped(root: Path, specs: tuple[RunSpec, ...]) -> tuple[RunResult, ...]:
    return train_pack(specs, root / "stopped", "turn", rivals=name_rivals(specs))


def test_a_hopeless_run_is_stopped_at_the_first_line_past_a_rung_and_says_why(
    root: Path, specs: tuple[RunSpec, ...], stopped: tuple[RunResult, ...]
) -> None:
    """The expected values come from the curves themselves, by the rule's equation; one line holds the whole window."""
    one = stopped[1]
    assert (one.state, one.steps_done, one.loss, one.tokens) == ("censored", 32, None, 32 * specs[1].tokens // 100)
    own, rival = (lines(root / "stopped", spec)[0][1] for spec in specs[:2][::-1])
    told = one.provenance["stop"]
    assert (told["step"], told["rival"]) == (32, specs[0].run_id)
    assert told["loss"] == pytest.approx(own) and told["rival_loss"] == pytest.approx(rival)
    assert told["gap"] == pytest.approx(math.log(own / rival)) and told["gap"] > told["margin"]
    assert told["margin"] == stop_margin(RUNGS[0])
    assert one.reason.startswith("stopped at step 32 of 100: training loss") and specs[0].run_id in one.reason
    assert read_json(run_dir(root / "stopped", one.run_id) / "result.json")["state"] == "censored"


def test_good_runs_are_not_stopped_and_keep_their_bits(
    root: Path, specs: tuple[RunSpec, ...], calm: tuple[RunResult, ...], stopped: tuple[RunResult, ...]
) -> None:
    assert [result.state for result in stopped] == ["done", "censored", "done"]
    for i in (0, 2):
        assert stopped[i].loss == calm[i].loss
        assert lines(root / "stopped", specs[i]) == lines(root / "calm", specs[i])
    assert lines(root / "stopped", specs[1]) == lines(root / "calm", specs[1])[:1]


def test_one_after_the_other_the_same_run_is_stopped_at_the_same_step(
    root: Path, specs: tuple[RunSpec, ...], stopped: tuple[RunResult, ...]
) -> None:
    out = root / "alone"
    alone = [train_pack([spec], out, "process", keep_weights=False, rivals=name_rivals(specs))[0] for spec in specs]
    assert [(r.state, r.steps_done) for r in alone] == [(r.state, r.steps_done) for r in stopped]
    assert not (run_dir(out, specs[1].run_id) / "checkpoints").exists()


@pytest.mark.parametrize("interval", [0, 1])
def test_a_killed_pack_stops_the_same_run_and_a_stopped_one_is_not_begun_again(
    root: Path, specs: tuple[RunSpec, ...], stopped: tuple[RunResult, ...], interval: int
) -> None:
    out, calls = root / f"killed{interval}", iter(range(9))
    with pytest.raises(Preempted):
        train_pack(specs, out, "turn", should_stop=lambda: next(calls) >= interval, rivals=name_rivals(specs))
    again = train_pack(specs, out, "turn", rivals=name_rivals(specs))
    assert [(r.state, r.steps_done, r.loss) for r in again] == [(r.state, r.steps_done, r.loss) for r in stopped]
    assert again[1].restarts == 0 and again[1].reason == stopped[1].reason


def test_a_rung_behind_a_restart_is_not_asked_again(root: Path, specs: tuple[RunSpec, ...]) -> None:
    stopper = Stopper(root / "stopped", specs[1], {specs[0].run_id: True})
    stopper.start(75)
    assert stopper.judge(96) is None
    assert Stopper(root / "stopped", specs[1], {specs[0].run_id: True}).judge(32) is not None
    assert Stopper(root / "stopped", specs[1], {}).judge(32) is None


def test_a_rival_that_diverged_stops_nobody(root: Path, specs: tuple[RunSpec, ...]) -> None:
    out = root / "wild"
    train_pack(specs[:1], out, "process")
    file = run_dir(out, specs[0].run_id) / "result.json"
    write_json(file, json.dumps(read_sealed(file) | {"state": "diverged", "loss": None}))
    (one,) = train_pack([specs[1]], out, "process", rivals=name_rivals(specs))
    assert one.state == "done"


def test_a_stopped_run_is_no_evidence_and_is_put_back_by_a_reset(
    root: Path, specs: tuple[RunSpec, ...], stopped: tuple[RunResult, ...]
) -> None:
    observations = collect_runs(root / "stopped")
    assert set(observations.frame["run_id"]) == {specs[0].run_id, specs[2].run_id}
    (refused,) = observations.refused
    assert refused["run_id"] == specs[1].run_id and refused["reason"].startswith("censored: stopped at step 32")
    reset_cell(root / "stopped", cell := describe_run(specs[1]))
    assert read_status(root / "stopped", [cell])[0].state == "planned"


def test_the_analysis_reads_no_loss_of_a_censored_run() -> None:
    rows, _ = plant_sweep(np.random.default_rng(3), rungs=(16, 32, 64), noise=0.002, curvature=0.06)
    whole = analyse_sweep(rows)
    edge = rows["lr"].isin([rows["lr"].min()])
    rows.loc[edge, ["state", "loss"]] = ["censored", None]
    told = analyse_sweep(rows)
    assert [one.runs_censored for one in told.optima] == [2] * 3
    assert told.optima[0].censored_lr == (float(rows["lr"].min()),)
    assert [one.log2_lr for one in told.optima] == [one.log2_lr for one in whole.optima]
    assert "stopped as hopeless at width 16 at" in str(told) and "2 censored" in str(told)
    rows.loc[edge, "loss"] = 0.1
    assert analyse_sweep(rows).to_json() == told.to_json()


def test_beside_a_censored_rate_the_lowest_is_bracketed_and_rates_between_are_asked_for() -> None:
    rows, _ = plant_sweep(np.random.default_rng(3), rungs=(16,), noise=0.001, center=-7.3)
    assert analyse_sweep(rows).optima[0].reason == ""
    rows.loc[rows["lr"] <= 2.0**-8, ["state", "loss"]] = ["censored", None]
    one = analyse_sweep(rows).optima[0]
    assert one.status == "edge"
    assert "0.00391 was stopped as hopeless; add rates between, such as 0.00552" in one.reason


def test_a_rate_with_a_censored_seed_is_not_fitted_whatever_the_other_gave() -> None:
    rows, _ = plant_sweep(np.random.default_rng(5), rungs=(16, 32))
    half = (rows["lr"] == 2.0**-9) & (rows["seed"] == 1) & (rows["width"] == 16)
    rows.loc[half, ["state", "loss"]] = ["censored", None]
    assert 0 not in read_ladders(rows)[0].curves[0].stable
    assert 0 in read_ladders(rows)[0].curves[1].stable


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    write_study(folder)
    return folder


OPTIONS = ("--parameterizations", "mup", "--widths", "16", "--lrs", "1e-6", ".0025", ".005", ".01", ".02", ".04", ".08",
           "--seeds", "1", "--tokens", "20000", "--mesh.packs", "process")  # fmt: skip
BEST = ("lr", "lr_interval", "loss", "loss_interval", "status", "lowest_lr", "lowest_loss")


def test_a_sweep_with_stops_finds_the_same_optimum_and_is_finished_without_them(place: Path) -> None:
    """Stopped, called again, reset, finished: what the analysis says is the same, and what was stopped ends far off."""
    code, out, err = jaxscale("mup", "sweep", "tiny.py", *OPTIONS, "--stop-hopeless", "--out", "runs", cwd=place)
    assert code in (0, 1), err
    cells = read_plan(place / "runs").cells
    states = {one.cell.spec.lr: one.state for one in read_status(place / "runs", cells)}
    assert states == dict.fromkeys((1e-6, 0.0025), "censored") | dict.fromkeys((0.005, 0.01, 0.02, 0.04, 0.08), "done")
    assert "2 of 7 runs were stopped as hopeless" in out and "jaxscale reset runs --censored" in out
    record = read_json(place / "runs" / "sweep.json")
    rows = [row for row in record["rows"] if row["state"] == "censored"]
    assert all(row["loss"] is None and "stopped at step" in row["reason"] for row in rows)
    refused = {one["run_id"]: one["reason"] for one in collect_runs(place / "runs").refused}
    assert all("(censored: stopped at step" in refused[row["run_id"]] for row in rows)

    code, out, err = jaxscale("mup", "sweep", "tiny.py", *OPTIONS, "--stop-hopeless", "--out", "runs", cwd=place)
    assert code in (0, 1), err
    assert read_json(place / "runs" / "sweep.json")["rows"] == record["rows"]
    assert "censored" in jaxscale("status", "runs", cwd=place)[1]
    assert dispatch(["reset", str(place / "runs"), "--censored"]) == 0
    code, out, err = jaxscale("mup", "sweep", "tiny.py", *OPTIONS, "--out", "runs", cwd=place)
    assert code in (0, 1), err
    whole = read_json(place / "runs" / "sweep.json")
    assert {row["state"] for row in whole["rows"]} == {"done"}
    assert [one[name] for one in whole["optima"] for name in BEST] == [
        one[name] for one in record["optima"] for name in BEST
    ]
    ends = {row["lr"]: row["loss"] for row in whole["rows"]}
    assert all(ends[row["lr"]] > (1 + NEAR) * min(ends.values()) for row in rows)


def test_a_sweep_under_another_schedule_refuses_the_option(place: Path) -> None:
    code, _, err = jaxscale("mup", "sweep", "tiny.py", *OPTIONS, "--stop-hopeless", "--recipe.schedule", "wsd",
                            "--plan-only", cwd=place)  # fmt: skip
    assert code == 2 and "recipe.schedule: the margins of --stop-hopeless" in err
