"""The tuning audit: what it reruns, what it finds in planted studies, how often it cries wolf, who reads it."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from tiny import make_study, write_study

from jaxscale.cli import dispatch
from jaxscale.collect import collect_runs
from jaxscale.errors import MisuseError
from jaxscale.fit.isoflop import fit_isoflop
from jaxscale.mup.arms import choose_arms, list_cells, pick_budgets, plan_audit, retune
from jaxscale.mup.sensitivity import shift_exponent
from jaxscale.mup.tuned import Noise, judge_gains, read_gains, scatter_noise
from jaxscale.plain import write_json
from jaxscale.plan import plan_isoflop
from jaxscale.runs import Cell, Plan, RunResult
from jaxscale.source import read_observations
from jaxscale.sweep import read_plan
from jaxscale.tuning import read_tuning

BUDGETS = (6e8, 2.4e9, 9.6e9)
CURVATURE = 0.01
"""Rise of log loss a (log2 of the rate's distance)^2: a factor of two from the best costs 1%."""


def lost(cell: Cell, best: dict[tuple[float, int], float]) -> float:
    """What the planted cell loses by its rate: best holds log2 of the best rate over the study's .02."""
    center = best.get((cell.spec.budget_flops, cell.spec.model.d_model), 0.0)
    return CURVATURE * (np.log2(cell.spec.lr / 0.02) - center) ** 2


def planted_loss(cell: Cell, best: dict[tuple[float, int], float]) -> float:
    """A valley in log N whose floor is where the plan expects it, at N ~ C^.5, times what the rate loses."""
    x = np.log(cell.n_params / 3162.0) - 0.5 * np.log(cell.spec.budget_flops / 6e8)
    floor = 3.0 * (cell.spec.budget_flops / 6e8) ** -0.05
    return float(floor * np.exp(0.02 * x**2 + lost(cell, best)))


def write_result(folder: Path, cell: Cell, loss: float | None, state: str = "done", reason: str = "") -> None:
    done = state == "done"
    result = RunResult(
        run_id=cell.run_id, state=state, reason=reason, loss=loss, loss_std_error=None, bits_per_byte=None,  # type: ignore[arg-type]
        train_loss=loss, n_params=cell.n_params, n_params_non_embedding=cell.n_params_non_embedding,
        tokens=cell.spec.tokens if done else 0, flops=cell.flops, steps_done=cell.spec.steps, seconds=1.0,
        tokens_per_s=1.0, flops_per_s=1.0, restarts=0,
    )  # fmt: skip
    write_json(folder / cell.run_id / "result.json", json.dumps(asdict(result)))


def plant(folder: Path, best: dict[tuple[float, int], float], noise: float = 0.0005, seed: int = 0) -> Plan:
    """A finished study and its finished audit on disk, as the trainer would have left them."""
    rng = np.random.default_rng(seed)
    study = make_study(folder, budgets=BUDGETS, widths=(4, 6, 8, 12, 16, 24, 32, 48), spread=6.0)
    planned = plan_isoflop(study, train_tokens=1e9)
    write_json(folder / "plan.json", planned.to_json())
    for cell in planned.cells:
        write_result(folder, cell, planted_loss(cell, best) * np.exp(noise * rng.standard_normal()))
    for cell in (rerun for one in planned.cells for rerun in list_cells(as_arm(one), 2.0, "horizon")):
        write_result(folder / "audit", cell, planted_loss(cell, best) * np.exp(noise * rng.standard_normal()))
    return planned


def as_arm(cell: Cell):
    from jaxscale.mup.arms import Arm

    return Arm(cell.spec.budget_flops, "minimum", cell, 1.0)


def audit(folder: Path, *words: str) -> tuple[int, dict]:
    code = dispatch(["mup", "audit", str(folder), *words])
    return code, json.loads((folder / "audit.json").read_text())


def extremes(planned: Plan, budget: float) -> tuple[int, int]:
    widths = [cell.spec.model.d_model for cell in planned.cells if cell.spec.budget_flops == budget]
    return min(widths), max(widths)


@pytest.fixture(scope="module")
def shape(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return plant(tmp_path_factory.mktemp("shape"), {})


def test_a_rerun_differs_in_its_rate_alone_and_forgets_as_much(shape: Plan) -> None:
    spec = shape.cells[0].spec
    half = retune(spec, 0.5, "horizon")
    assert half.lr * half.weight_decay * half.steps == pytest.approx(spec.lr * spec.weight_decay * spec.steps)
    assert retune(spec, 0.5, "constant").weight_decay == spec.weight_decay
    assert replace(half, lr=spec.lr, weight_decay=spec.weight_decay) == spec
    assert len({spec.run_id, half.run_id, retune(spec, 2.0, "horizon").run_id}) == 3


def test_three_cells_a_budget_minimum_and_ends_with_the_first_seed(shape: Plan) -> None:
    again = [replace(c, spec=replace(c.spec, seed=7)) for c in shape.cells]
    cells = [*again, *shape.cells]
    losses = {c.run_id: planted_loss(c, {}) for c in cells}
    arms, skipped = choose_arms(cells, losses, dict.fromkeys(BUDGETS))
    assert not skipped and len(arms) == 9 and {arm.cell.spec.seed for arm in arms} == {0}
    for C in BUDGETS:
        mine = {arm.position: arm.cell for arm in arms if arm.budget == C}
        assert (mine["small arm"].spec.model.d_model, mine["large arm"].spec.model.d_model) == extremes(shape, C)
        lowest = min((c for c in cells if c.spec.budget_flops == C), key=lambda c: losses[c.run_id])
        assert mine["minimum"].n_params == lowest.n_params
    plan = plan_audit(shape, arms, 2.0)
    assert len(plan) == 18 and {cell.role for cell in plan.cells} == {"audit"}
    assert Plan.from_json(plan.to_json()) == plan
    assert pick_budgets(BUDGETS, [2.41e9]) == [2.4e9]
    with pytest.raises(MisuseError, match="--budgets: 1e\\+12"):
        pick_budgets(BUDGETS, [1e12])


def test_audit_runs_are_no_evidence(shape: Plan, tmp_path: Path) -> None:
    arms = [as_arm(shape.cells[0])]
    plan = plan_audit(shape, arms, 2.0)
    write_json(tmp_path / "plan.json", plan.to_json())
    for cell in plan.cells:
        write_result(tmp_path, cell, 2.0)
    obs = collect_runs(tmp_path)
    assert len(obs) == 0 and all(row["reason"].startswith("audit:") for row in obs.refused)


def test_a_tuned_study_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plant(tmp_path, {})
    code, plain = audit(tmp_path)
    assert code == 0 and plain["schema"] == "jaxscale.mup_audit/1"
    assert {row["state"] for row in plain["budgets"]} == {"tuned"} and "no mistuning" in capsys.readouterr().out
    assert abs(plain["sensitivity"]["a_after"] - plain["sensitivity"]["a_before"]) < 0.005
    fit = fit_isoflop(read_observations(tmp_path_with_table(tmp_path)), bootstrap=0)
    assert [budget.tuning for budget in fit.budgets] == ["tuned"] * 3
    assert not any("tuning audit" in note for note in fit.notes)


def tmp_path_with_table(folder: Path) -> Path:
    write_json(folder / "observations.csv", collect_runs(folder).frame.to_csv(index=False))
    return folder


def test_a_mistuned_arm_is_found_named_and_moves_the_exponent_back(tmp_path: Path) -> None:
    """Above its minimum the largest budget wants ever higher rates, 2.8 times at its end: those losses are lifted
    in proportion to log N, the minimum and a fall; a of the planted law is .5."""
    planned = plant(tmp_path, {})
    C, ends = BUDGETS[-1], {}
    for cell in planned.cells:
        if cell.spec.budget_flops == C:
            ends[cell.spec.model.d_model] = max(0.0, np.log(cell.n_params / 12648))
    best = {(C, width): 1.5 * np.sqrt(x / max(ends.values())) for width, x in ends.items()}
    for file in tmp_path.glob("**/result.json"):
        file.unlink()
    plant(tmp_path, best)
    code, plain = audit(tmp_path)
    assert code == 1
    row = next(row for row in plain["rows"] if row["flagged"])
    assert (row["budget"], row["position"], row["direction"]) == (C, "large arm", "rate too low")
    assert sum(row["flagged"] for row in plain["rows"]) == 1
    assert row["gain"] == pytest.approx(
        CURVATURE * (1.5**2 - 0.5**2), rel=0.15
    )  # at double, the edge of the rates tried
    assert {b["budget"]: b["state"] for b in plain["budgets"]} == {BUDGETS[0]: "tuned", BUDGETS[1]: "tuned",
                                                                  C: "mistuned"}  # fmt: skip
    moved = plain["sensitivity"]
    assert moved["a_before"] < moved["a_after"] - 3 * moved["shift_std_error"]
    assert abs(moved["a_after"] - 0.5) < 0.3 * abs(moved["a_before"] - 0.5)


def test_fits_and_report_say_what_is_flagged(tmp_path: Path) -> None:
    planned = plant(tmp_path, {})
    small = extremes(planned, BUDGETS[0])[0]
    plant(tmp_path, {(BUDGETS[0], small): -1.2})
    assert audit(tmp_path)[0] == 1
    out = tmp_path / "fit.json"
    tmp_path_with_table(tmp_path)
    assert dispatch(["fit", str(tmp_path), "--bootstrap", "0", "--out", str(out)]) == 0
    plain = json.loads(out.read_text())
    assert [b["tuning"] for b in plain["budgets"]] == ["mistuned", "tuned", "tuned"]
    assert plain["diagnostics"]["tuning"]["flagged"][0]["direction"] == "rate too high"
    assert "tuning" not in plain["source"] and plain["diagnostics"]["notes"][0].startswith("tuning audit, tolerance")
    from jaxscale.report import write_report

    obs = collect_runs(tmp_path)
    page = write_report(tmp_path / "page", title="t", plan=planned, observations=obs,
                        fits=[fit_isoflop(obs, bootstrap=0)], provenance={}).read_text()  # fmt: skip
    assert "Tuning audit at 0.30% of the loss: 6e8 mistuned (small arm: rate too high" in page
    assert page.count("<li>Tuning audit, tolerance 0.30%") == 1 and "rate too high" in page


def test_a_stale_audit_is_refused_with_a_sentence(tmp_path: Path) -> None:
    planned = plant(tmp_path, {})
    audit(tmp_path)
    assert "refused" not in read_tuning(tmp_path)
    cell = choose_first(tmp_path)
    write_result(tmp_path, cell, 1.0)  # trained anew since
    assert f"run {cell.run_id} had loss" in read_tuning(tmp_path)["refused"]
    write_json(tmp_path / "plan.json", replace(planned, data_sha256="f" * 64).to_json())
    assert "another plan" in read_tuning(tmp_path)["refused"]
    fit = fit_isoflop(collect_runs(tmp_path), bootstrap=0)
    assert "another plan" in fit.notes[0] and not any(budget.tuning for budget in fit.budgets)
    write_json(tmp_path / "audit.json", "{}")
    assert "is no jaxscale.mup_audit/1" in read_tuning(tmp_path)["refused"]


def choose_first(folder: Path) -> Cell:
    row = json.loads((folder / "audit.json").read_text())["rows"][0]
    return read_plan(folder).find_cell(row["run_id"])


def test_diverged_and_missing_reruns_are_told_and_judged_by_what_is_there(tmp_path: Path) -> None:
    planned = plant(tmp_path, {})
    audit(tmp_path)
    rows = json.loads((tmp_path / "audit.json").read_text())["rows"]
    double, failed = rows[0]["double_run_id"], (rows[3]["half_run_id"], rows[3]["double_run_id"])
    reruns = {c.run_id: c for one in planned.cells for c in list_cells(as_arm(one), 2.0, "horizon")}
    write_result(tmp_path / "audit", reruns[double], None, "diverged", "loss is nan at step 9")
    for run_id in failed:
        write_result(tmp_path / "audit", reruns[run_id], None, "failed", "killed three times")
    code, plain = audit(tmp_path)
    first, fourth = plain["rows"][0], plain["rows"][3]
    assert code == 0 and first["state"] == "tuned" and "double: diverged, loss is nan" in first["reason"]
    assert first["loss_double"] is None and first["gain"] == 0
    assert fourth["state"] == "incomplete" and fourth["gain"] is None and "half: failed" in fourth["reason"]
    assert {b["budget"]: b["state"] for b in plain["budgets"]}[BUDGETS[1]] == "incomplete"


def test_budgets_not_asked_for_are_named_and_earlier_ones_kept(tmp_path: Path) -> None:
    plant(tmp_path, {})
    (tmp_path / "audit").rename(tmp_path / "away")
    planned = read_plan(tmp_path)
    first = [c for c in planned.cells if c.spec.budget_flops == BUDGETS[0]]
    for cell in (rerun for one in first for rerun in list_cells(as_arm(one), 2.0, "horizon")):
        write_result(tmp_path / "audit", cell, planted_loss(cell, {}))
    code, plain = audit(tmp_path, "--budgets", "6e8")
    assert code == 0
    assert [b["state"] for b in plain["budgets"]][1:] == ["not audited"] * 2


def test_a_grid_whose_every_rate_is_too_low_is_told_so(tmp_path: Path) -> None:
    planned = plant(tmp_path, {})
    plant(tmp_path, {(c.spec.budget_flops, c.spec.model.d_model): 1.0 for c in planned.cells})
    code, plain = audit(tmp_path)
    assert code == 1 and len(plain["rows"]) == sum(row["flagged"] for row in plain["rows"]) == 9
    assert any(note.startswith("double the rate is lower in 9 of 9 cells") for note in plain["notes"])
    assert abs(plain["sensitivity"]["a_after"] - plain["sensitivity"]["a_before"]) < 0.005  # equal shares move nothing


@pytest.mark.parametrize(
    ("part", "fields"),
    [
        ("rows", {"rows": 3}), ("rows", {"rows": [{}]}), ("budgets", {"budgets": [3]}),
        ("tolerance", {"tolerance": "x"}), ("sensitivity", {"sensitivity": "x"}),
        ("sensitivity", {"sensitivity": {"a_before": 1, "a_after": "x"}}),
    ],
)  # fmt: skip
def test_a_damaged_audit_is_refused_and_the_study_still_fits(
    part: str, fields: dict[str, object], tmp_path: Path
) -> None:
    plant(tmp_path, {})
    plain = json.loads(json.dumps(audit(tmp_path)[1])) | fields
    write_json(tmp_path / "audit.json", json.dumps(plain))
    assert f"{part} is not what an audit writes" in read_tuning(tmp_path)["refused"]
    assert fit_isoflop(collect_runs(tmp_path), bootstrap=0).verdict is None


# ------------------------------------------------------------------ the judgement of three losses


def test_the_vertex_of_a_parabola_is_its_gain() -> None:
    x = np.array([-1.0, 0.0, 1.0])
    for best in (-0.8, -0.3, 0.0, 0.6):
        gain, at = read_gains(0.02 * (x - best)[None] ** 2, 0.02)
        assert gain[0] == pytest.approx(0.02 * best**2) and at[0] == pytest.approx(best)


def test_a_cliff_above_the_best_rate_is_no_mistuning() -> None:
    """Half the rate costs 1%, double 11% in every cell: a parabola alone would claim a gain of 1%."""
    y = np.tile([0.01, 0.0, 0.11], (9, 1)) + 0.0005 * np.random.default_rng(0).standard_normal((9, 3))
    judged = judge_gains(y, [Noise(0.0005, 10, "planted")])
    assert (judged.gain < 0.001).all()


@pytest.mark.parametrize("curvature", [0.003, 0.01])
def test_tuned_studies_with_half_a_percent_of_noise_are_flagged_one_time_in_twenty(curvature: float) -> None:
    """200 audits of 9 tuned cells, unpaired noise .5%, its deviation estimated from 10 runs: at most 5% + 2 s.e."""
    rng, flagged, studies = np.random.default_rng(5), 0, 200
    for i in range(studies):
        y = curvature * np.array([1.0, 0.0, 1.0]) + 0.005 * rng.standard_normal((9, 3))
        seen = Noise(0.005 * float(np.sqrt(rng.chisquare(10) / 10)), 10, "seeds")
        judged = judge_gains(y, [seen, *filter(None, [scatter_noise(y)])], seed=i)
        flagged += bool(((judged.gain > 0.003) & (judged.p < 0.05)).any())
    assert flagged / studies <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / studies)


def test_a_badly_tuned_arm_is_found_through_the_noise_more_often_than_not() -> None:
    rng, found, studies = np.random.default_rng(6), 0, 100
    best = np.array([1.5, *[0.0] * 8])[:, None]
    for i in range(studies):
        y = 0.01 * (np.array([-1.0, 0.0, 1.0]) - best) ** 2 + 0.005 * rng.standard_normal((9, 3))
        judged = judge_gains(y, [Noise(0.005, 10, "seeds")], seed=i)
        found += bool(judged.gain[0] > 0.003 and judged.p[0] < 0.05)
    assert found / studies > 0.5


def test_scatter_of_curvature_gives_the_noise_back() -> None:
    rng = np.random.default_rng(7)
    stds = [scatter_noise(0.01 * np.array([1, 0, 1]) + 0.005 * rng.standard_normal((9, 3))).std for _ in range(400)]
    assert np.median(stds) == pytest.approx(0.005, rel=0.1)


def test_the_closed_form_shift_is_that_of_a_parabola_through_lifted_points() -> None:
    """Two budgets, an arm of the larger lifted by a ramp of delta: least squares moves a as the equation says."""
    T, rise, delta, R = np.log(6.0), 0.05, 1e-5, np.log(10.0)
    t = np.linspace(-T, T, 9)
    c2, c1, _ = np.polyfit(t, rise * (t / T) ** 2 + delta * np.maximum(t, 0) / T, 2)
    assert -(-c1 / (2 * c2)) / R == pytest.approx(shift_exponent(delta, rise, 6.0, 10.0), rel=1e-3)


# ------------------------------------------------------------------ end to end


def test_a_real_study_of_seconds_is_audited_and_the_same_command_trains_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    repository = str(Path(__file__).parents[1])
    monkeypatch.setenv("PYTHONPATH", repository)
    write_study(tmp_path, "study = replace(study, grid=replace(study.grid, budgets=(6e8,), widths=(4, 6, 8, 12, 16)))")
    assert dispatch(["plan", "tiny.py"]) == 0
    assert dispatch(["mup", "audit", "runs/tiny"]) == 1 and "have not ended" in capsys.readouterr().err
    assert dispatch(["train", "runs/tiny", "--all"]) == 0
    assert dispatch(["mup", "audit", "runs/tiny", "--dry-run"]) == 0
    assert not Path("runs/tiny/audit").exists() and "to train:" in capsys.readouterr().out
    assert dispatch(["mup", "audit", "runs/tiny"]) in (0, 1)
    first = Path("runs/tiny/audit.json").read_text()
    capsys.readouterr()
    dispatch(["mup", "audit", "runs/tiny"])
    assert Path("runs/tiny/audit.json").read_text() == first and "cells have ended" in capsys.readouterr().out
    plain = json.loads(first)
    assert all(row["half_state"] == "done" for row in plain["rows"]) and read_tuning("runs/tiny")["tolerance"] == 0.003
