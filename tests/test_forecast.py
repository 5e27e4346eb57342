"""Forecasts against the planted law, and backtests that know what they predict."""

import json

import numpy as np
import pytest
from planted import LAW, draw_grid

from jaxscale.backtest import backtest_fit
from jaxscale.errors import MisuseError, VerdictError
from jaxscale.fit import fit_all, fit_isoflop, fit_parametric
from jaxscale.forecast import forecast_optimum
from jaxscale.runs import Observations
from jaxscale.source import read_observations


@pytest.fixture(scope="module")
def parametric():
    return fit_parametric(draw_grid(noise=0.005), bootstrap=192)


def test_forecast_of_a_planted_law_is_that_law():
    forecast = forecast_optimum(fit_parametric(draw_grid(), bootstrap=0), flops=[1e21, 1e23])
    for row, C in zip(forecast.rows, (1e21, 1e23), strict=True):
        best = LAW.optimum(C)
        assert row["N_opt"] == pytest.approx(best.N, rel=1e-4)
        assert row["D_opt"] == pytest.approx(best.D, rel=1e-4)
        assert row["loss"] == pytest.approx(best.loss, rel=1e-6)
        assert row["tokens_per_param"] == pytest.approx(best.D / best.N, rel=1e-4)
        assert row["extrapolation"] == pytest.approx(C / 2.7e19)


def test_intervals_widen_with_extrapolation_and_a_run_is_less_sure_than_the_law(parametric):
    rows = forecast_optimum(parametric, flops=[1e20, 1e22, 1e24]).rows
    widths = [np.ptp(np.log(row["intervals"]["N_opt"])) for row in rows]
    assert widths == sorted(widths)
    for row in rows:
        low, high = row["intervals"]["loss"]
        assert low < row["loss"] < high
        run = row["intervals"]["loss_future_run"]
        assert run[1] - run[0] > 0.9 * (high - low)  # far out the law's own doubt is nearly all of it
    near = rows[0]["intervals"]
    assert np.ptp(near["loss_future_run"]) > 1.1 * np.ptp(near["loss"])


def test_schema_and_tables(parametric):
    forecast = forecast_optimum(parametric, flops=[3.8e25])
    plain = json.loads(forecast.to_json())
    assert plain["schema"] == "jaxscale.forecast/1" and plain["rule"] == "6ND"
    assert plain["fit"]["schema"] == "jaxscale.fit/1" and "draws" not in plain["fit"]
    assert set(plain["rows"][0]["intervals"]) == {"N_opt", "D_opt", "loss", "loss_future_run"}
    assert "3.8e+25" in str(forecast) and "loss_low" in forecast.to_frame()


def test_every_method_gives_its_row_and_a_silent_one_none():
    fits = fit_all(draw_grid(noise=0.003), bootstrap=64)
    assert [row["method"] for row in forecast_optimum(fits, flops=[1e21]).rows] == ["isoflop", "parametric"]
    assert fits.weights == (0.5, 0.5, 0.0)  # no size has a curve: no envelope
    silent = fit_isoflop(draw_grid(budgets=1))
    with pytest.raises(VerdictError, match="1 usable budgets of 1"):
        forecast_optimum(silent, flops=[1e21])


@pytest.mark.parametrize("flops", [[], [-1.0], [float("nan")]])
def test_impossible_compute_is_misuse(parametric, flops):
    with pytest.raises(MisuseError, match="flops"):
        forecast_optimum(parametric, flops=flops)


def test_exact_counts_of_own_runs_carry_into_the_forecast():
    frame = draw_grid()
    frame["C"] = 2.5 * frame["N"] ** 1.05 * frame["D"]
    obs = Observations(read_observations(frame.drop(columns="budget")).frame, rule="exact")
    forecast = forecast_optimum(fit_parametric(obs, bootstrap=0), flops=[1e21])
    row = forecast.rows[0]
    assert forecast.rule == "exact"
    assert 2.5 * row["N_opt"] ** 1.05 * row["D_opt"] == pytest.approx(1e21, rel=1e-9)


def test_backtest_holds_out_the_largest_budget_and_finds_a_planted_law():
    result = backtest_fit(draw_grid(budgets=5, sizes=7, noise=0.002), bootstrap=128)
    assert [row["target_C"] for row in result.rows] == pytest.approx([81e18] * len(result.rows))
    assert [row["trained_to_C"] for row in result.rows] == pytest.approx([27e18] * len(result.rows))
    kinds = {(row["method"], row["quantity"]) for row in result.rows}
    both = {(method, quantity) for method in ("isoflop", "parametric") for quantity in ("loss", "N_opt")}
    assert kinds == both | {("parametric", "loss_at")}
    for row in result.rows:
        assert row["error"] == pytest.approx(row["predicted"] / row["measured"] - 1)
        assert abs(row["error"]) < (0.25 if row["quantity"] == "N_opt" else 0.02)
        if row["quantity"] != "N_opt":
            assert row["compute_error"] == pytest.approx(1, abs=0.3)
    plain = json.loads(result.to_json())
    assert plain["schema"] == "jaxscale.backtest/1" and plain["summary"][0]["count"] == 1
    assert "backtest" in str(result) and len(result.to_frame()) == len(result.rows)


def test_held_out_rows_are_what_is_predicted_and_never_fitted():
    frame = draw_grid(budgets=4, sizes=6, noise=0.003).assign(role="grid")
    target = draw_grid(budgets=1, sizes=2, span=1.5, first=1e20).assign(role="holdout")
    import pandas as pd

    result = backtest_fit(pd.concat([frame, target], ignore_index=True), bootstrap=128)
    losses = [row for row in result.rows if row["quantity"] == "loss"]
    assert [row["measured_by"] for row in losses] == ["lowest of 2 sizes"] * 2
    assert all(row["measured"] == target["loss"].min() for row in losses)
    assert sum(row["quantity"] == "loss_at" for row in result.rows) == 2
    assert not any(row["quantity"] == "N_opt" for row in result.rows)
    fit = fit_isoflop(pd.concat([frame, target], ignore_index=True), bootstrap=0)
    assert (fit.source["rows_used"], fit.source["rows_held_out"]) == (24, 2)
    spoiled = pd.concat([frame, target.assign(loss=9.9)], ignore_index=True)
    again = backtest_fit(spoiled, bootstrap=128)
    assert [row["predicted"] for row in again.rows] == [row["predicted"] for row in result.rows]


def test_nothing_to_hold_out_is_a_verdict():
    with pytest.raises(VerdictError, match="one budget only"):
        backtest_fit(draw_grid(budgets=1))


def test_a_loss_asked_for_gives_the_compute_that_reaches_it(parametric):
    C = 1e22
    row = forecast_optimum(parametric, loss=float(parametric.predict_optimum(C).loss)).rows[0]
    assert row["C"] == pytest.approx(C, rel=1e-6)
    with pytest.raises(VerdictError, match="no compute reaches it"):
        forecast_optimum(parametric, loss=0.5 * parametric.params["E"])
    for both in ({}, {"flops": [1e22], "loss": 2.0}, {"loss": -1.0}):
        with pytest.raises(MisuseError, match=r"flops|loss"):
            forecast_optimum(parametric, **both)


def test_budgets_that_a_column_names_are_held_out_by_that_name():
    frame = draw_grid(budgets=4, sizes=7, noise=0.002).assign(budget=lambda f: "b" + f["C"].astype(str))
    frame["C"] *= np.tile([0.7, 1.0, 1.4, 1.0, 0.8, 1.2, 1.0], 4)
    result = backtest_fit(frame.assign(C=np.minimum(frame["C"], 2.7e19)), methods=("parametric",), bootstrap=32)
    assert sum(row["quantity"] == "loss_at" for row in result.rows) == 7
