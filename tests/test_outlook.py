"""Where a training run will end: planted curves, counted coverage, and what `status` says of a registered target."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from tiny import make_study

from jaxscale.cli import dispatch
from jaxscale.plan import plan_isoflop
from jaxscale.register.chain import append_records, read_register
from jaxscale.register.outlook import FEWEST, Curve, Outlook, follow_run, judge_run, project_end
from jaxscale.register.watch import watch_cells
from jaxscale.runs import RunResult
from jaxscale.sweep import read_plan, read_status

STEPS = np.linspace(0.02, 1.0, 50)


def end_of(N, D):
    return 1.3 + 20 / N**0.3 + 30 / D**0.3


def draw_curve(N, D, rng, *, noise=0.0, own=0.0, drift=0.0, upto=1.0, final=True):
    """A curve whose excess over its end is linear in log N and log D at every share f of its steps.

    `noise`: of every logged loss; `own`: of the run's end; `drift`: how much it rises away from f = .4 on.
    """
    middle = STEPS - 0.01
    excess = (0.4 + 0.03 * np.log(N / 1e4) + 0.02 * np.log(D / 1e6)) * (1 - middle) ** 0.7 - 0.03
    loss = end_of(N, D) * np.exp(excess + noise * rng.standard_normal(50) + drift * np.maximum(middle - 0.4, 0))
    seen = upto >= STEPS
    end = end_of(N, D) * np.exp(own * rng.standard_normal())
    return Curve(N, D, STEPS[seen], loss[seen], float(end) if final else None)


def draw_grid(rng, **options):
    return [draw_curve(N, D, rng, **options) for N in (1e4, 2e4, 4e4, 8e4) for D in (1e6, 3e6, 9e6)]


def test_the_end_of_a_planted_curve_is_foretold_at_every_step_beyond_the_grid():
    rng = np.random.default_rng(0)
    looks = follow_run(draw_grid(rng), draw_curve(4e5, 4e7, rng, final=False))
    assert len(looks) > 45
    assert [look.loss for look in looks] == pytest.approx([end_of(4e5, 4e7)] * len(looks), rel=1e-4)
    assert all(look.high / look.low < 1.001 for look in looks)


@pytest.mark.parametrize("f", [0.31, 0.81])
def test_its_interval_covers_as_often_as_it_says(f):
    """Noise in every logged loss and in every end; the interval knows of both from the finished runs alone."""
    rng, inside = np.random.default_rng(1), []
    for _ in range(300):
        finished = draw_grid(rng, noise=0.01, own=0.004)
        run = draw_curve(2e5, 2e7, rng, noise=0.01, upto=f + 0.02, final=False)
        end = end_of(2e5, 2e7) * np.exp(0.004 * rng.standard_normal())
        look = project_end(finished, run, f, 0.9)
        inside.append(look.low <= end <= look.high)
    assert abs(np.mean(inside) - 0.9) < 3 * np.sqrt(0.9 * 0.1 / 300)


def test_few_finished_runs_give_a_mean_and_fewer_than_two_nothing():
    rng = np.random.default_rng(2)
    grid, run = draw_grid(rng, own=0.003), draw_curve(2e5, 2e7, rng, final=False)
    few = grid[: FEWEST - 1]
    q = [np.log(curve.level(0.51) / curve.final) for curve in few]
    look = project_end(few, run, 0.51)
    assert look.loss == pytest.approx(run.level(0.51) / np.exp(np.mean(q)), rel=1e-12)
    assert project_end(grid[:1], run, 0.51) is None
    assert project_end(grid, run, 0.04) is None  # less than the window is trained
    assert project_end(grid, replace(run, fraction=STEPS[:20], loss=run.loss[:20]), 0.51) is None


def test_a_run_that_drifts_away_leaves_the_band_and_one_that_does_not_stays():
    rng = np.random.default_rng(3)
    finished = draw_grid(rng, noise=0.004, own=0.004)
    end = end_of(2e5, 2e7)
    band = (end * 0.985, end * 1.015)
    good = follow_run(finished, draw_curve(2e5, 2e7, rng, noise=0.004, final=False))
    assert judge_run(good, band).state == "inside"
    bad = follow_run(finished, draw_curve(2e5, 2e7, rng, noise=0.004, drift=0.15, final=False))
    verdict = judge_run(bad, band)
    assert (verdict.state, verdict.side) == ("left", "above") and 0.5 < verdict.since < 0.9
    assert judge_run([look for look in bad if look.fraction < 0.4], band).state == "inside"
    assert judge_run([], band).state == "unknown"


def test_leaving_counts_from_the_last_time_it_was_in():
    looks = [Outlook(f, L, L - 0.1, L + 0.1) for f, L in ((0.3, 1.5), (0.5, 2.0), (0.7, 2.5), (0.9, 2.6))]
    assert judge_run(looks, (1.9, 2.1)).since == 0.7
    assert judge_run(looks[:1], (1.9, 2.1)).side == "below"
    assert judge_run([Outlook(0.5, 2.15, 2.0, 2.3)], (1.9, 2.1)).state == "outside"


@pytest.fixture
def folder(tmp_path):
    """A planned study whose grid has finished and whose held-out budget trains, curves planted."""
    study = make_study(tmp_path, holdout=(4e9,), holdout_sizes=2, seeds=(2, 2))
    plan = replace(plan_isoflop(study), data_sha256="text")
    out, rng = tmp_path / "study", np.random.default_rng(4)
    out.mkdir()
    (out / "plan.json").write_text(plan.to_json())
    for cell in plan.cells:
        write_run(out, cell, rng, ended=cell.role == "grid")
    return out


def write_run(out, cell, rng, *, ended, drift=0.0):
    own = out / cell.run_id
    own.mkdir(exist_ok=True)
    curve = draw_curve(cell.n_params, cell.spec.tokens, rng, noise=0.003, drift=drift, upto=1.0 if ended else 0.8)
    lines = [
        {"step": f * cell.spec.steps, "loss": L, "seconds": 1.0}
        for f, L in zip(curve.fraction, curve.loss, strict=True)
    ]
    (own / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if ended:
        D = cell.spec.tokens
        result = RunResult(cell.run_id, "done", "", curve.final, None, None, None, cell.n_params, 1, D, cell.flops,
                           cell.spec.steps, 1.0, 1.0, 1.0, 0)  # fmt: skip
        (own / "result.json").write_text(json.dumps(asdict(result)))


def write_register(path, folder, *, N, D, span=0.03, text="text"):
    loss = end_of(N, D)
    interval = [loss * (1 - span), loss * (1 + span)]
    answer = {"N": N, "D": D, "loss": loss, "intervals": {"loss_future_run": interval}}
    append_records(path, lambda _: [{"kind": "forecast", "C": 4e9, "confidence": 0.95, "answer": answer, "size": None,
                                     "evidence": {"path": str(folder), "data_sha256": text}}])  # fmt: skip


def watch(folder, path):
    plan = read_plan(folder)
    return watch_cells(folder, plan, read_status(folder, plan.cells), read_register(path))


def target_cells(folder):
    return [cell for cell in read_plan(folder).cells if cell.role == "holdout"]


def test_status_shows_a_running_target_beside_its_band(folder, tmp_path, capsys):
    (mine, other), path = target_cells(folder), tmp_path / "forecasts.jsonl"
    write_register(path, folder, N=mine.n_params, D=mine.spec.tokens)
    words = ["status", str(folder), "--register", str(path), "--out", str(tmp_path / "s.json")]
    assert dispatch(words) == 0
    told = capsys.readouterr().out
    assert "at 79% its end is expected at" in told and ": inside" in told and "another size" in told
    rows = {row["run_id"]: row for row in json.loads((tmp_path / "s.json").read_text())["rows"]}
    (found,) = rows[mine.run_id]["forecasts"]
    end = end_of(mine.n_params, mine.spec.tokens)
    assert found["state"] == "inside" and found["expected"]["loss"] == pytest.approx(end, rel=0.02)
    low, high = found["expected"]["interval"]
    assert low < end < high and high / low < 1.1
    assert rows[other.run_id]["forecasts"][0]["band"] is None
    assert sum("forecasts" in row for row in rows.values()) == 2


def test_status_says_when_a_target_leaves_its_band_and_how_it_ended(folder, tmp_path, capsys):
    (mine, _), path = target_cells(folder), tmp_path / "forecasts.jsonl"
    write_register(path, folder, N=mine.n_params, D=mine.spec.tokens)
    write_run(folder, mine, np.random.default_rng(5), ended=False, drift=0.4)
    verdict = next(one for one in watch(folder, path) if one.band)
    assert verdict.verdict.state == "left" and "LEFT THE BAND, above it since" in str(verdict)
    write_run(folder, mine, np.random.default_rng(5), ended=True)
    assert "ended at" in str(next(one for one in watch(folder, path) if one.band))
    assert "inside" in str(next(one for one in watch(folder, path) if one.band))
    file = folder / mine.run_id / "result.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"state": "diverged", "loss": None}))
    assert "diverged: not known" in str(next(one for one in watch(folder, path) if one.band))


def test_a_forecast_for_another_text_or_another_compute_says_nothing(folder, tmp_path):
    (mine, _), path = target_cells(folder), tmp_path / "forecasts.jsonl"
    write_register(path, folder, N=mine.n_params, D=mine.spec.tokens, text="another")
    assert watch(folder, path) == []


def test_a_run_begun_before_its_forecast_is_marked(folder, tmp_path):
    (mine, _), path = target_cells(folder), tmp_path / "forecasts.jsonl"
    write_register(path, folder, N=mine.n_params, D=mine.spec.tokens)
    for time, late in ((0.0, True), (4e9, False)):
        (folder / mine.run_id / "attempts.jsonl").write_text(json.dumps({"time": time}) + "\n")
        found = next(one for one in watch(folder, path) if one.band)
        assert found.late is late and ("made after the run began" in str(found)) is late


def test_outlooks_are_no_evidence(folder, tmp_path):
    """Whatever `status` says, the folder holds the same files with the same bytes, and none is added."""
    (mine, _), path = target_cells(folder), tmp_path / "forecasts.jsonl"
    write_register(path, folder, N=mine.n_params, D=mine.spec.tokens)
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    assert dispatch(["status", str(folder), "--register", str(path)]) == 0
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before


def test_status_without_a_register_is_as_before_and_with_a_broken_one_says_so(folder, tmp_path, capsys):
    path = tmp_path / "forecasts.jsonl"
    words = ["status", str(folder), "--register", str(path)]
    assert dispatch(words) == 0 and "forecast" not in capsys.readouterr().out
    write_register(path, folder, N=1e4, D=1e6)
    path.write_bytes(path.read_bytes().replace(b'"C":4', b'"C":5'))
    assert dispatch(words) == 1 and "broken at record 0" in capsys.readouterr().err
