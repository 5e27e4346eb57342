"""Two-stage forecasts: planted laws recovered, intervals that hold, families told apart, the inverse undone."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from planted_ladder import RATIOS, SIZES, TARGETS, Planted, draw_planted, make_ladder

import jaxscale as js
from jaxscale.downstream import Downstream
from jaxscale.downstream.accuracy import Curve, fit_curves
from jaxscale.downstream.chain import Chain
from jaxscale.downstream.inverse import reach_accuracy
from jaxscale.downstream.points import Pairs, infer_chance, infer_items
from jaxscale.downstream.recipe import RECIPES
from jaxscale.downstream.solve import solve
from jaxscale.errors import MisuseError, VerdictError

FIT, TARGET = "role == 'train'", "role == 'eval'"
QUIET = replace(Planted(), run_std=1e-4, items=10**7)


def forecast(table: pd.DataFrame, **options) -> Downstream:
    return js.fit_downstream(table, **{"fit_where": FIT, "target_where": TARGET, "bootstrap": 200, **options})


@pytest.fixture(scope="module")
def quiet() -> Downstream:
    return forecast(make_ladder({"task": QUIET}, np.random.default_rng(0)))


def test_a_planted_law_is_recovered(quiet):
    """Where noise is small, both stages are what was planted: NLL to 1%, accuracy to .03, at 100 times the compute."""
    for target in quiet.tasks["task"]["targets"]:
        N, D = TARGETS[target["run"]]
        assert target["nll_pred"] == pytest.approx(QUIET.nll(N, D), rel=1e-2)
        assert target["accuracy_pred"] == pytest.approx(QUIET.accuracy(QUIET.nll(N, D)), abs=0.03)
        low, high = target["accuracy_interval"]
        assert low <= target["accuracy_true"] <= high
        assert target["relative_error"] == pytest.approx(target["accuracy_pred"] / target["accuracy_true"] - 1)


def test_the_unit_of_the_nll_cancels(quiet):
    table = make_ladder({"task": QUIET}, np.random.default_rng(0))
    bits = forecast(table.assign(nll=table["nll"] / np.log(2)), nll_unit="bits_per_byte")
    for one, other in zip(quiet.tasks["task"]["targets"], bits.tasks["task"]["targets"], strict=True):
        assert other["accuracy_pred"] == pytest.approx(one["accuracy_pred"], rel=1e-6)
        assert other["nll_pred"] == pytest.approx(one["nll_pred"] / np.log(2), rel=1e-6)


def test_rows_in_two_units_are_brought_to_the_one_that_is_stated(quiet):
    table = make_ladder({"task": QUIET}, np.random.default_rng(0))
    half = (table["N"] > 5e8).to_numpy()
    mixed = table.assign(nll=np.where(half, table["nll"] / np.log(2), table["nll"]),
                         nll_unit=np.where(half, "bits_per_byte", "nats"))  # fmt: skip
    found = forecast(mixed, nll_unit="nats").tasks["task"]["targets"][0]
    assert found["accuracy_pred"] == pytest.approx(quiet.tasks["task"]["targets"][0]["accuracy_pred"], rel=1e-6)
    with pytest.raises(MisuseError, match=r"nll-unit: rows are in bits_per_byte and nats; state the one"):
        forecast(mixed)


def test_intervals_hold_what_is_measured():
    """24 tasks, a third of them of a curve the recipe does not have: 95% intervals hold most of 72 measurements."""
    rng = np.random.default_rng(3)
    frame = forecast(make_ladder({f"t{i}": draw_planted(rng) for i in range(24)}, rng)).to_frame()
    inside = (frame["accuracy_low"] <= frame["accuracy_true"]) & (frame["accuracy_true"] <= frame["accuracy_high"])
    assert len(frame) == 72 and inside.mean() > 0.9
    assert (frame["accuracy_high"] - frame["accuracy_low"]).median() < 0.2


def test_the_interval_carries_item_noise(quiet):
    few = forecast(make_ladder({"task": QUIET}, np.random.default_rng(0)).assign(items=100))

    def width(result: Downstream) -> float:
        low, high = result.tasks["task"]["targets"][0]["accuracy_interval"]
        return high - low

    p = few.tasks["task"]["targets"][0]["accuracy_pred"]
    assert width(few) > max(width(quiet), 3 * np.sqrt(p * (1 - p) / 100))


def test_the_chain_beats_one_stage_in_backtests_of_the_fitted_runs_alone(quiet):
    summary = {row["method"]: row for row in quiet.tasks["task"]["stages"]["backtest"]["summary"]}
    assert summary["chained"]["mean_abs_error"] < summary["one-stage"]["mean_abs_error"]
    rows = quiet.tasks["task"]["stages"]["backtest"]["rows"]
    assert rows and not {row["run"] for row in rows} & TARGETS.keys()
    assert all(row["C"] > row["fitted_to_C"] for row in rows)


@pytest.mark.parametrize("law", ["power", "log-linear"])
def test_laws_of_compute_alone_need_neither_n_nor_d(law):
    sizes = tuple(1e8 * 1.5**i for i in range(8))
    table = make_ladder({"task": Planted(items=10**6)}, np.random.default_rng(1), sizes, RATIOS[:1]).drop(
        columns=["N", "D"]
    )
    target = forecast(table, law=law).tasks["task"]["targets"][0]
    assert abs(target["relative_error"]) < 0.15
    with pytest.raises(MisuseError, match="law nd: the table has no N and D"):
        forecast(table, law="nd")


def test_a_target_not_yet_trained_has_a_forecast_and_no_error():
    table = make_ladder({"task": QUIET}, np.random.default_rng(0))
    ahead = table["role"] == "eval"
    table.loc[ahead, ["nll", "accuracy"]] = np.nan
    target = forecast(table).tasks["task"]["targets"][0]
    assert target["accuracy_pred"] > 0.5 and target["accuracy_true"] is None and target["relative_error"] is None


def test_families_that_share_the_curve_help_and_others_are_left_out():
    rng = np.random.default_rng(5)
    grid = make_ladder({"task": QUIET}, rng).assign(family="grid")
    large = make_ladder({"task": QUIET}, rng, (3e9, 7e9, 13e9), (20.0, 40.0))
    large = large[large["role"] == "train"].assign(family="older")
    large["run"] += "-older"
    same = forecast(pd.concat([grid, large], ignore_index=True)).tasks["task"]["stages"]["families"]
    assert not same["differ"] and same["stage2"] == ["grid", "older"] and same["own"] == "grid"
    shifted = large.assign(nll=large["nll"] * 1.15)
    result = forecast(pd.concat([grid, shifted], ignore_index=True))
    told = result.tasks["task"]["stages"]["families"]
    assert told["differ"] and told["p_value"] < 0.01 and told["stage2"] == ["grid"]
    assert any("families grid, older differ" in note for note in result.notes)
    alone = forecast(grid).tasks["task"]["targets"][0]["accuracy_pred"]
    assert result.tasks["task"]["targets"][0]["accuracy_pred"] == pytest.approx(alone, rel=1e-9)


def test_the_inverse_undoes_the_forward(quiet):
    chain = quiet.chain("task")
    for accuracy in (0.5, 0.7, 0.8):
        found = chain.compute_for(accuracy)
        assert float(chain.accuracy(chain.nll(found.N, found.D, found.C))) == pytest.approx(accuracy, abs=2e-3)
        low, high = found.interval
        assert low <= found.C <= high
        assert pytest.approx(1 / 6, rel=1e-6) == found.N * found.D / found.C


def test_the_optimal_split_has_the_lowest_nll(quiet):
    chain = quiet.chain("task")
    chain = replace(chain, reach=replace(chain.reach, ratio=(1e-3, 1e6)))
    C = np.array([1e20, 1e23])
    N, D = chain.optimal(C)
    best = chain.nll(N, D, C)
    for factor in (0.8, 1.25):
        assert (chain.nll(N * factor, D / factor, C) > best).all()


def test_the_inverse_refuses_what_it_cannot_answer(quiet):
    with pytest.raises(MisuseError, match=r"accuracy 0\.25 is not above chance, 0\.25"):
        reach_accuracy(quiet, {"task": 0.25})
    with pytest.raises(MisuseError, match="is not a fraction below 1"):
        reach_accuracy(quiet, {"task": 85})
    with pytest.raises(VerdictError, match="the fitted stages level off at"):
        reach_accuracy(quiet, {"task": 0.999})
    with pytest.raises(MisuseError, match="task 'tsk' is not there; the tasks are task"):
        reach_accuracy(quiet, {"tsk": 0.5})


def test_an_open_interval_is_said_in_words(quiet):
    chain = quiet.chain("task")
    answers = reach_accuracy(quiet, {"task": chain.ceiling - 0.03})
    assert answers.rows[0][1].interval[1] is None and "has no upper end" in answers.notes[0] and "open]" in str(answers)


def test_the_json_is_the_contract_and_reads_back(quiet, tmp_path):
    plain = json.loads(quiet.to_json())
    assert plain["schema"] == "jaxscale.downstream/1" and plain["recipe"] == "default"
    target = plain["tasks"]["task"]["targets"][0]
    assert {"run", "C", "nll_pred", "nll_true", "accuracy_pred", "accuracy_interval", "accuracy_given_true_nll",
            "accuracy_true", "relative_error"} <= target.keys()  # fmt: skip
    file = tmp_path / "downstream.json"
    file.write_text(quiet.to_json())
    again = Downstream.from_json(file)
    here, there = (result.chain("task").compute_for(0.6) for result in (again, quiet))
    assert float(np.log(here.C / there.C)) == pytest.approx(0, abs=1e-9)
    assert str(again) == str(quiet)
    assert isinstance(again.chain("task"), Chain)


def test_the_curves_end_where_they_should():
    sigmoid = Curve("sigmoid", np.array([-0.75, 0.8, 10.0, 1.0]))
    other = Curve("loglogistic", np.array([np.log(0.8), np.log(8.0), 0.25, 0.1]))
    assert sigmoid.accuracy(50.0) == pytest.approx(0.25) and other.accuracy(50.0) == pytest.approx(0.25)
    assert other.accuracy(0.0) == pytest.approx(0.9)


def test_a_noise_free_curve_is_found_to_rounding():
    truth = Curve("sigmoid", np.array([-0.7, 0.75, 9.0, 0.97]))
    x = np.linspace(0.01, 1.3, 200)
    pairs = Pairs(x, truth.accuracy(x), np.arange(200) // 20)
    recipe = replace(RECIPES["olmo-ladder"])
    found, gradient = fit_curves(pairs, recipe, "sigmoid", 0.25, np.ones((1, 10)))
    assert found.accuracy(x)[0] == pytest.approx(truth.accuracy(x)[0], abs=2e-3)
    assert gradient[0] < 1e-7


def rosenbrock(theta, shift):
    import jax.numpy as jnp

    return jnp.stack([10 * (theta[1] - theta[0] ** 2), shift - theta[0]])


def test_the_solver_finds_a_valley_and_a_bound():
    start = np.array([[-1.2, 1.0], [-1.2, 1.0]])
    found = solve(rosenbrock, start, [np.array([1.0, 0.5])], bounds=([-5, -5], [5, 5]))
    assert found.theta == pytest.approx(np.array([[1.0, 1.0], [0.5, 0.25]]), abs=1e-9)
    held = solve(rosenbrock, start[:1], [np.array([1.0])], bounds=([-5, -5], [0.5, 5]))
    assert held.theta[0] == pytest.approx([0.5, 0.25], abs=1e-9)


def test_items_are_read_off_the_accuracies():
    rng = np.random.default_rng(0)
    for items in (300, 1172, 10042):
        assert infer_items(rng.binomial(items, rng.uniform(0.3, 0.8, 40)) / items) == items
    assert infer_items(rng.uniform(0.3, 0.8, 40)) is None
    assert infer_items(rng.uniform(0.3, 0.8, 40).round(3)) is None


def test_chance_is_read_off_the_lowest_accuracies():
    rng = np.random.default_rng(0)
    for chance in (0.5, 1 / 3, 0.25, 0.2):
        assert infer_chance(chance + np.abs(rng.normal(0, 0.005, 60))) == pytest.approx(chance)


def test_the_loss_as_input_is_compared_where_there_is_a_column():
    table = make_ladder({"task": QUIET}, np.random.default_rng(0))
    result = forecast(table.assign(loss=2 + table["nll"]))
    methods = {row["method"] for row in result.tasks["task"]["stages"]["backtest"]["summary"]}
    assert methods == {"chained", "one-stage", "loss input"}


def test_sizes_of_a_ladder_are_those_of_the_public_one():
    assert len(SIZES) * len(RATIOS) == 16
