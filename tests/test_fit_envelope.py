"""Approach 1: planted laws, a stair's closed form, dense twins, horizons, biases measured against the truth."""

import itertools
import json

import numpy as np
import pandas as pd
import pytest
from planted import LAW, draw_grid
from simulated_study import simulate_study

from jaxscale.backtest import backtest_fit
from jaxscale.cli import dispatch
from jaxscale.collect import collect_curves
from jaxscale.errors import MisuseError, VerdictError
from jaxscale.fit import Fit, fit_all, fit_envelope
from jaxscale.fit.cells import gather_cells
from jaxscale.fit.family import find_hulls
from jaxscale.fit.runcurves import smooth_run
from jaxscale.fit.sizecurves import Chords, fit_power_curves, misfit_p, model_ends, model_roughness
from jaxscale.fit.stairs import Grid, climb_stairs, find_edges, fit_climbs, fit_steps
from jaxscale.fit.trajectories import Run, gather_runs
from jaxscale.forecast import forecast_optimum
from jaxscale.source import as_observations, read_observations

A, B = LAW.exponents()
SIZES = 1e8 * 2.0 ** np.arange(7)


def optimal_compute(N):
    return np.exp((np.log(N) - LAW.log_coefficients()[0]) / A)


def draw_ends(noise=0.0, seed=0, sizes=SIZES, ends=5):
    """Runs of each size with horizons of their own, 1/16 to 16 times the compute it is optimal for."""
    rng = np.random.default_rng(seed)
    N = np.repeat(sizes, ends)
    D = np.concatenate([optimal_compute(n) * np.geomspace(1 / 16, 16, ends) / 6 / n for n in sizes])
    loss = LAW.loss(N, D) * np.exp(noise * rng.standard_normal(len(N)))
    return pd.DataFrame({"run_id": [f"r{i}" for i in range(len(N))], "N": N, "D": D, "loss": loss})


def draw_curves(noise=0.0, luck=0.0, seed=0, points=60):
    """Three training curves a size, every point of which follows the law."""
    rng, parts = np.random.default_rng(seed), []
    for N, h in itertools.product(SIZES, range(3)):
        D = optimal_compute(N) * 4.0**h / 6 / N * np.arange(1, points + 1) / points
        error = luck * rng.standard_normal() + noise * rng.standard_normal(points)
        parts.append(pd.DataFrame({"run_id": f"{N:.0f}-{h}", "N": N, "D": D, "loss": LAW.loss(N, D) * np.exp(error)}))
    return pd.concat(parts, ignore_index=True)


def mean_bias(fit):
    """Loss along the envelope minus the truth, nats: corrected, and as the curves show it."""
    ok = [budget for budget in fit.budgets if budget.status == "ok"]
    corrected = np.mean([budget.loss_opt - LAW.optimum(budget.C).loss for budget in ok])
    return corrected, corrected + sum(fit.diagnostics["bias_nats"][name]["mean"] for name in ("noise", "steps"))


# ---- the planted law


@pytest.mark.parametrize("shared", [False, True])
def test_a_planted_law_comes_back(shared):
    table = draw_curves(points=200) if shared else draw_ends()
    fit = fit_envelope(table, allow_shared_horizon=shared, bootstrap=50)
    far = 10 * fit.diagnostics["largest_C"]
    truth, found = LAW.optimum(far), fit.predict_optimum(far)
    assert fit.params["a"] == pytest.approx(A, abs=0.003)
    assert fit.params["b"] == pytest.approx(B, abs=0.003)
    np.testing.assert_allclose([found.N, found.D], [truth.N, truth.D], rtol=0.03)
    np.testing.assert_allclose(found.loss, truth.loss, rtol=1e-3)


def test_steps_between_sizes_bias_least_squares_and_not_the_climbs():
    fit = fit_envelope(draw_ends(), bootstrap=0)
    assert fit.diagnostics["steps_reading"]["N"] < A - 0.01
    assert abs(fit.params["a"] - A) < 0.001


def test_the_loss_between_sizes_is_brought_down_to_the_optimum():
    corrected, plain = mean_bias(fit_envelope(draw_ends(), bootstrap=50))
    assert plain > 0.002 and abs(corrected) < plain / 10


# ---- stairs


def make_stair(steps):
    """S whole steps between an edge step on each side, climbs at the midpoints of a line of slope 1/2."""
    log_N = np.arange(steps + 2.0)
    log_C = np.linspace(0.0, 2.0 * steps, 40 * steps + 1)[:-1] + 0.025
    inner = np.floor(log_C / 2).astype(int) + 1
    grid = Grid(
        np.r_[-1.0, log_C, 2 * steps + 1.0],
        np.exp(log_N),
        np.log(6) + log_N,
        np.ones((steps + 2, 40 * steps + 2), bool),
    )
    return np.r_[0, inner, steps + 1][None], grid


@pytest.mark.parametrize("steps", [2, 3, 6])
def test_least_squares_through_whole_steps_loses_one_over_their_number_squared(steps):
    path, grid = make_stair(steps)
    path, grid = path[:, 1:-1], grid._replace(log_C=grid.log_C[1:-1], there=grid.there[:, 1:-1])
    assert fit_steps(path, grid).a[0] == pytest.approx(0.5 * (1 - 1 / steps**2), rel=2e-3)


@pytest.mark.parametrize("steps", [2, 3, 6])
def test_the_climbs_of_a_stair_give_its_line(steps):
    path, grid = make_stair(steps)
    inner = grid._replace(log_C=grid.log_C[1:-1], there=grid.there[:, 1:-1])
    lines = fit_climbs(path[:, 1:-1], inner)
    assert lines.climbs[0] == steps - 1
    if steps > 2:
        assert lines.a[0] == pytest.approx(0.5, rel=1e-9)
        assert lines.b[0] == pytest.approx(0.5, rel=1e-9)
        assert lines.log_H[0] == pytest.approx(-np.log(6) - lines.log_G[0], abs=1e-9)


def test_the_path_equals_the_best_of_all_rising_paths():
    rng = np.random.default_rng(1)
    losses, there = rng.standard_normal((20, 3, 6)), np.ones((3, 6), bool)
    there[0, 4:] = there[2, :2] = False
    rising = [p for p in itertools.product(range(3), repeat=6) if all(np.diff(p) >= 0)]
    allowed = [p for p in rising if all(there[s, i] for i, s in enumerate(p))]
    for round_, path in zip(losses, climb_stairs(losses, there), strict=True):
        cost = {p: sum(round_[s, i] for i, s in enumerate(p)) for p in allowed}
        assert cost[tuple(path)] == pytest.approx(min(cost.values()), rel=1e-12)


def test_the_smallest_and_the_largest_size_with_a_curve_are_edges():
    there = np.array([[1, 1, 0], [1, 1, 1], [1, 1, 1], [0, 1, 1]], bool)
    assert find_edges(np.array([[1, 1, 1], [2, 2, 2]]), there).tolist() == [[False, False, True], [True, False, False]]


# ---- curves


def test_power_curves_are_exact_on_a_law_and_their_noise_is_the_noise():
    cells = gather_cells(as_observations(draw_ends()))
    size = np.searchsorted(SIZES, cells.N)
    fit = fit_power_curves(np.log(cells.C), cells.loss[None], size, cells.weight)
    assert fit.beta[0] == pytest.approx(LAW.beta, rel=1e-4)
    np.testing.assert_allclose(fit.E[0], LAW.E + LAW.A * SIZES**-LAW.alpha, rtol=1e-4)
    found = []
    for seed in range(30):
        cells = gather_cells(as_observations(draw_ends(noise=0.01, seed=seed)))
        fit = fit_power_curves(np.log(cells.C), cells.loss[None], size, cells.weight)
        found.append(model_ends(cells, size, fit).residual_std)
    assert np.mean(np.square(found)) == pytest.approx(1e-4, rel=0.15)


def test_power_curves_are_left_where_they_miss_the_ends():
    table = draw_ends(noise=0.002, ends=13)
    table["loss"] *= 1 + 0.05 * np.sin(np.log(table["D"]))
    cells = gather_cells(as_observations(table))
    size = np.searchsorted(SIZES, cells.N)
    power = model_ends(cells, size, fit_power_curves(np.log(cells.C), cells.loss[None], size, cells.weight))
    assert misfit_p(power, model_roughness(cells, size)) < 0.05
    assert "power curves miss them" in fit_envelope(table, bootstrap=0).objective["smoothing"]


def test_chords_pass_through_the_ends():
    log_C, size = np.array([3.0, 1.0, 2.0, 1.0, 4.0]), np.array([0, 0, 0, 1, 1])
    losses = np.exp(np.array([[0.1, 0.5, 0.2, 0.9, 0.3]]))
    values = Chords.between(log_C, size, 2, np.array([1.0, 1.5, 3.0])).loss(losses)
    np.testing.assert_allclose(np.log(values[0]), [[0.5, 0.35, 0.1], [0.9, 0.8, 0.5]], atol=1e-12)


def test_the_hull_is_the_lower_convex_hull():
    rng = np.random.default_rng(2)
    x = np.sort(rng.uniform(0, 5, 60))
    y = -0.05 * x + 0.005 * (x - 5) ** 2 + 0.003 * rng.standard_normal(60)
    grid = Grid(np.linspace(x[0], x[-1], 1500), np.ones(1), np.zeros(1), np.ones((1, 1500), bool))
    hull = np.log(find_hulls(x, y[None], np.zeros(60, int), grid)[0, 0])
    low = np.min([np.interp(grid.log_C, x[[i, k]], y[[i, k]], left=9, right=9)
                  for i, k in itertools.combinations(range(60), 2)], axis=0)  # fmt: skip
    assert np.all(hull <= low + 6e-4)  # thinned grid and finite slopes: .021 x .1 x 1.2 / 4
    falling = grid.log_C < x[np.argmin(y)]
    np.testing.assert_allclose(hull[falling], low[falling], atol=6e-4)


def test_smoothing_leaves_a_straight_line_as_it_is_and_halves_white_noise():
    log_D = np.log(np.arange(1, 201) / 200.0)
    line = 1.0 - 0.1 * log_D
    straight = smooth_run(Run("r", 0, 1e8, log_D + 20, log_D, line), 0, 0.1)
    np.testing.assert_allclose(straight.log_loss, 1.0 - 0.1 * (straight.log_C - 20), atol=1e-3)
    rng = np.random.default_rng(4)
    noisy = smooth_run(Run("r", 0, 1e8, log_D + 20, log_D, line + 0.01 * rng.standard_normal(200)), 0, 0.1)
    error = noisy.log_loss - (1.0 - 0.1 * (noisy.log_C - 20))
    drawn = noisy.draw(400, rng)[:, len(error) // 2 :]
    assert np.std(error[len(error) // 2 :]) < 0.005
    assert np.std(drawn) == pytest.approx(np.std(error[len(error) // 2 :]), rel=0.4)


# ---- horizons and rows


def test_rows_before_the_end_of_a_run_are_refused_unless_told():
    refused = fit_envelope(draw_curves().query("run_id.str.endswith('-1')"))
    assert refused.exponents is None and "--allow-shared-horizon" in (refused.verdict or "")
    assert "413 rows before the ends of 7 runs are refused" in (refused.verdict or "")
    assert fit_envelope(draw_curves(), allow_shared_horizon=True, bootstrap=0).verdict is None


def test_the_ends_of_runs_are_evidence_and_the_rows_before_them_do_not_count():
    ends, rows = draw_ends(0.003), draw_ends(0.003)
    early = rows.assign(D=rows["D"] / 2, loss=rows["loss"] * 3)
    fit, plain = fit_envelope(pd.concat([early, ends]), bootstrap=20), fit_envelope(ends, bootstrap=20)
    assert fit.params == pytest.approx(plain.params)
    assert fit.diagnostics["rows_intermediate"] == 35 and any("are refused" in note for note in fit.notes)


@pytest.mark.parametrize("shared", [False, True])
def test_repeated_rows_of_a_checkpoint_change_nothing(shared):
    table = draw_curves(0.003, 0.002) if shared else draw_ends(0.003)
    options = {"allow_shared_horizon": shared, "bootstrap": 30}
    once, thrice = fit_envelope(table, **options), fit_envelope(pd.concat([table] * 3), **options)
    assert thrice.params == pytest.approx(once.params, rel=1e-9)
    assert thrice.intervals["a"] == pytest.approx(once.intervals["a"], rel=1e-9)
    assert thrice.diagnostics["rows_merged"] == 2 * len(table)


def test_a_run_column_is_read_as_run_id():
    named = draw_curves().rename(columns={"run_id": "run"})
    assert len(gather_runs(as_observations(named)).runs) == 21


def test_runs_that_are_no_curves_are_refused_by_name():
    table = draw_ends()
    table = pd.concat([table, pd.DataFrame({"run_id": "odd", "N": [1e8, 2e8], "D": [1e9, 2e9], "loss": 3.0})])
    fit = fit_envelope(table, bootstrap=0)
    assert [row["run_id"] for row in fit.source["rows_refused"]] == ["odd"]
    assert "N changes from 1e+08 to 2e+08" in fit.source["rows_refused"][0]["reason"]
    falling = pd.DataFrame({"run_id": "r", "N": 1e8, "D": [1e9, 2e9], "C": [2e18, 1e18], "loss": 3.0})
    with pytest.raises(VerdictError, match="C does not rise with D"):
        fit_envelope(falling)


def test_branches_of_a_trunk_count_by_their_ends_and_are_redrawn_together():
    table = draw_ends(0.003).assign(parent=lambda t: "trunk " + t["N"].astype(str))
    fit = fit_envelope(table, bootstrap=50)
    assert fit.resample == "wild" and fit.verdict is None
    assert len(set(gather_runs(as_observations(table)).ends.cluster)) == len(SIZES)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (draw_grid(), "no size has a curve"),
        (draw_ends().query("N < 3e8"), "inside the curves of 3 sizes"),
        (draw_ends().query("N < 6e8").assign(loss=lambda t: 3 + 1e-9 * t["N"]), "overtakes a smaller one 0 times"),
    ],
)
def test_data_without_an_envelope_get_a_verdict(table, said):
    fit = fit_envelope(table)
    assert said in (fit.verdict or "") and fit.exponents is None
    assert fit.to_plain()["exponents"] is None and said in str(fit)


def test_wrong_options_are_misuse_and_pairs_a_verdict():
    with pytest.raises(MisuseError, match="smoothing"):
        fit_envelope(draw_ends(), smoothing="some")
    with pytest.raises(MisuseError, match="between 0"):
        fit_envelope(draw_ends(), smoothing=-0.1)
    assert "would drop curves" in (fit_envelope(draw_ends(), resample="pairs").verdict or "")


# ---- noise


def test_the_bias_of_a_minimum_is_measured_and_taken_off():
    biases = {False: [], True: []}
    for seed in range(8):
        ends = fit_envelope(draw_ends(0.01, seed, sizes=1e8 * 1.5 ** np.arange(10)), bootstrap=0)
        curves = fit_envelope(draw_curves(0.01, seed=seed), allow_shared_horizon=True, bootstrap=0)
        biases[False].append(mean_bias(ends))
        biases[True].append(mean_bias(curves))
    for corrected, plain in (np.mean(biases[shared], 0) for shared in (False, True)):
        assert plain < -0.004 and abs(corrected) < abs(plain) / 2


@pytest.mark.parametrize("noise", [0.002, 0.01])
def test_intervals_cover_the_planted_law(noise):
    hits = np.zeros(4)
    for seed in range(25):
        fit = fit_envelope(draw_ends(noise, seed), bootstrap=99)
        far = 10 * fit.diagnostics["largest_C"]
        draws, truth = fit.sample_optimum(far), LAW.optimum(far)
        pairs = [(fit.draws["a"], A), (fit.draws["b"], B), (draws.N, truth.N), (draws.loss, truth.loss)]
        for i, (drawn, value) in enumerate(pairs):
            low, high = np.quantile(drawn, [0.025, 0.975], method="weibull")
            hits[i] += low <= value <= high
    assert np.all(hits >= 21), hits  # P(20 or fewer of 25 | 95%) = .7% each


def test_the_same_seed_gives_the_same_fit():
    one, two = (fit_envelope(draw_ends(0.005), bootstrap=20, seed=3).to_json() for _ in range(2))
    assert one == two


# ---- the contract, and the other verbs


def test_the_json_comes_back_and_forecasts(tmp_path):
    fit = fit_envelope(draw_ends(0.003), bootstrap=50)
    (tmp_path / "fit.json").write_text(fit.to_json())
    again = Fit.from_json(tmp_path / "fit.json")
    row = forecast_optimum(again, flops=[1e22]).rows[0]
    low, high = row["intervals"]["loss"]
    assert row["method"] == "envelope" and low < LAW.optimum(1e22).loss < high
    assert forecast_optimum(again, loss=row["loss"]).rows[0]["C"] == pytest.approx(1e22, rel=1e-6)
    assert {budget.status for budget in again.budgets or ()} <= {"ok", "edge"}


def test_fit_all_lists_an_envelope_it_cannot_make():
    fits = fit_all(draw_grid(noise=0.003), bootstrap=20)
    assert [fit.method for fit in fits.fits] == ["isoflop", "parametric", "envelope"]
    assert fits.weights == (0.5, 0.5, 0.0) and "no size has a curve" in (fits.fits[2].verdict or "")


def test_a_backtest_predicts_the_largest_budget_by_the_envelope():
    factor = 2.0
    rows = [(N, C / 6 / N, C) for C in 1e18 * factor ** np.arange(12) for N in SIZES[:6]
            if 1 / 30 < C / optimal_compute(N) < 30]  # fmt: skip
    N, D, C = np.array(rows).T
    table = pd.DataFrame({"N": N, "D": D, "C": C, "budget": C, "loss": LAW.loss(N, D)})
    result = backtest_fit(table, methods=("envelope",), bootstrap=20)
    assert all(abs(row["error"]) < 0.01 for row in result.rows if row["quantity"] == "loss") and result.rows


@pytest.fixture
def folder(tmp_path):
    """A study folder with observations.csv and the training curves of its runs."""
    study = simulate_study()
    study.observations.frame.to_csv(tmp_path / "observations.csv", index=False)
    for run_id, curve in study.curves.groupby("run_id"):
        (tmp_path / run_id).mkdir()
        lines = curve.rename(columns={"train_loss": "loss"}).assign(seconds=1.0).to_dict("records")
        (tmp_path / run_id / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def test_training_curves_of_a_study_stand_at_the_middle_of_their_intervals(folder):
    obs = read_observations(folder)
    curves = collect_curves(folder, obs)
    first = curves.frame[curves.frame["run_id"] == curves.frame["run_id"].iloc[0]]
    lines = [json.loads(line) for line in (folder / first["run_id"].iloc[0] / "metrics.jsonl").read_text().splitlines()]
    assert first["D"].iloc[1] == pytest.approx((lines[0]["tokens"] + lines[1]["tokens"]) / 2)
    assert set(curves.frame["run_id"]) == set(obs.frame["run_id"])
    with pytest.raises(VerdictError, match="has a training curve"):
        collect_curves(folder / "elsewhere", obs)


def test_the_verb_reads_a_study_folder_and_a_table(folder, tmp_path, capsys):
    out = tmp_path / "fit.json"
    command = ["fit", str(folder), "--method", "envelope", "--bootstrap", "30", "--out", str(out)]
    assert dispatch([*command, "--allow-shared-horizon"]) == 0
    plain = json.loads(out.read_text())
    assert plain["method"] == "envelope" and plain["diagnostics"]["horizon"] == "shared"
    assert plain["source"]["curves"] == "metrics.jsonl" and 0.2 < plain["exponents"]["N"]["value"] < 0.8
    assert dispatch(["forecast", str(out), "--flops", "1e13"]) == 0
    draw_curves(points=20).to_csv(tmp_path / "long.csv", index=False)
    capsys.readouterr()
    assert dispatch(["fit", str(tmp_path / "long.csv"), "--method", "envelope", "--where", "N < 3e8"]) == 1
    assert "--allow-shared-horizon" in capsys.readouterr().err
    assert dispatch(["fit", str(tmp_path / "long.csv"), "--allow-shared-horizon"]) == 2
    assert "--allow-shared-horizon belongs to --method envelope" in capsys.readouterr().err


# ---- public data


def test_olmo_checkpoints_run_when_told_and_are_refused_otherwise(shared_data):
    columns = {"N": "n_params_nonemb", "D": "d_tokens", "C": "c_flop", "loss": "c4_ce_nats_per_token", "run_id": "run"}
    file = shared_data / "olmo_ladder" / "olmo_ladder_checkpoints.csv.gz"
    one = read_observations(file, columns=columns, where="task == 'hellaswag_val_5shot'")
    fit = fit_envelope(one, allow_shared_horizon=True, bootstrap=100)
    assert 0.4 < fit.params["a"] < 0.65 and len(fit.diagnostics["climbs"]) >= 3
    assert "3550 rows before the ends" in (fit_envelope(one).verdict or "")
    every = fit_envelope(read_observations(file, columns=columns), allow_shared_horizon=True, bootstrap=100)
    assert every.params == pytest.approx(fit.params, rel=1e-9) and every.diagnostics["rows_merged"] == 3 * len(one)


def test_porian_exponents_from_the_curves_of_each_size(shared_data):
    published = pd.read_csv(shared_data / "porian_owt2" / "porian_published_fits.csv")
    columns = {"N": "n_params", "D": "d_tokens", "C": "c_flop", "loss": "loss_nats_per_token"}
    for experiment, a in zip(published["experiment"], published["n_exponent_a"], strict=True):
        obs = read_observations(shared_data / "porian_owt2" / "porian_isoflop_points.csv", columns=columns,
                                where=f"experiment == '{experiment}'")  # fmt: skip
        fit = fit_envelope(obs, bootstrap=100)
        low, high = fit.intervals["a"]
        assert fit.params["a"] == pytest.approx(a, abs=0.02) and low < a < high
