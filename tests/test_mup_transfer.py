"""A sweep's optima, shifts and regrets against planted ones: values, counted coverage, invariances, refusals."""

import itertools
import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from planted_sweep import curve, plant_sweep

from jaxscale.errors import MisuseError
from jaxscale.mup import Transfer, analyse_sweep
from jaxscale.mup.rates import read_ladders
from jaxscale.mup.tilt import fit_joint, lean, take_window
from jaxscale.mup.transfer_figure import draw_transfer, write_transfer_figure


def planted(seed: int = 0, **options: Any) -> tuple[pd.DataFrame, dict[int, tuple[float, float]]]:
    return plant_sweep(np.random.default_rng(seed), **options)


def numbers(result: Transfer) -> list[Any]:
    """Every number of optima and transfers, in order."""

    def walk(value: Any) -> list[Any]:
        if isinstance(value, dict):
            return [one for key in sorted(value) for one in walk(value[key])]
        if isinstance(value, list):
            return [one for item in value for one in walk(item)]
        return [value] if isinstance(value, int | float) else []

    return walk(result.to_records())


@pytest.mark.parametrize(("tilt", "shift"), [*itertools.product((0.0, 0.6, 1.2), (0.0, -1.0))])
def test_without_noise_optima_shift_and_regret_are_the_planted_ones(tilt: float, shift: float) -> None:
    rows, truth = planted(noise=0.0, tilt=tilt, shift=shift)
    result = analyse_sweep(rows)
    for one in result.optima:
        assert one.status == "ok" and one.log2_lr is not None
        assert one.log2_lr == pytest.approx(truth[one.width][0], abs=2e-3)
        assert one.loss == pytest.approx(truth[one.width][1], rel=1e-5)
        assert one.curvature == pytest.approx(0.03, rel=0.01)
    told = result.transfers[0]
    regret = 0.03 * float(curve(np.array(truth[16][0] - truth[128][0]), tilt))
    assert told.shift == pytest.approx(shift, abs=1e-3)
    # three doublings above the optimum lie outside the window: the estimate then joins the two rates beside it
    x = np.log2(np.sort(rows["lr"].unique()))
    chord = float(np.interp(truth[16][0], x, 0.03 * curve(x - truth[128][0], tilt)))
    assert told.regret is not None and told.regret_high is not None
    assert regret - 1e-6 <= told.regret + 1e-5 and told.regret <= (chord if shift else 1e-6)
    assert regret - 1e-6 <= told.regret_high <= max(chord, 0.0 if shift else 1e-6) + 1e-5
    assert told.verdict == ("transfers" if shift == 0 else "moves")


def test_given_the_tilt_the_optimum_is_that_of_least_squares_by_scipy() -> None:
    """The profile over (x*, K, constants a seed, c) against a general optimizer on the same sum of squares."""
    from scipy.optimize import least_squares

    rows, _ = planted(1, rungs=(32,), seeds=2)
    window = take_window(read_ladders(rows)[0].curves[0], 9)
    joint = fit_joint([window], 0.95)

    def residual(p: np.ndarray) -> np.ndarray:
        x = window.t + window.origin
        return np.array([p[3], p[4]])[window.seed] + p[1] * lean(np.full(len(x), p[2]), x - p[0]) - window.loss

    dense = least_squares(residual, [-5.0, 0.03, 0.5, 2.2, 2.2], xtol=1e-14, ftol=1e-14, gtol=1e-14)
    assert joint.lanes[0].optimum()[joint.best] == pytest.approx(dense.x[0], abs=2e-3)
    assert joint.variance * joint.residual_dof == pytest.approx(2 * dense.cost, rel=1e-6)


def test_the_interval_of_an_optimum_is_where_scipy_says_that_forcing_it_costs_t_squared() -> None:
    from scipy.optimize import least_squares
    from scipy.stats import t as student

    rows, _ = planted(2, rungs=(32,), seeds=1)
    window = take_window(read_ladders(rows)[0].curves[0], 9)
    joint = fit_joint([window], 0.95)
    ends = joint.interval(0, 0.95)
    x = window.t + window.origin

    def forced(at: float) -> float:
        found = least_squares(lambda p: p[2] + p[0] * lean(np.full(len(x), p[1]), x - at) - window.loss,
                              [0.03, 0.5, 2.2], bounds=([0, -1.5, 0], [1, 1.5, 9]), xtol=1e-14, ftol=1e-14)  # fmt: skip
        return 2 * float(found.cost)

    most = joint.variance * (joint.residual_dof + student.ppf(0.975, joint.dof) ** 2)
    for end in ends:
        assert end is not None
        assert forced(end) == pytest.approx(most, rel=0.02)


def test_intervals_hold_the_planted_truth_as_often_as_they_promise() -> None:
    """60 sweeps of two seeds: counts within 4 standard errors of 95%; tests/bench/sweep_coverage.py counts more."""
    held, asked = dict.fromkeys(("optimum", "shift", "bound"), 0), dict.fromkeys(("optimum", "shift", "bound"), 0)
    for seed in range(60):
        shift = (0.0, 0.1, 0.5)[seed % 3]
        rows, truth = planted(100 + seed, shift=shift, seed_noise=0.005, rungs=(16, 32, 64), diverge_at=3.5)
        result = analyse_sweep(rows)
        told = result.transfers[0]
        for one in result.optima:
            if one.status == "ok":
                low, high = np.log2([end for end in one.lr_interval if end is not None])
                held["optimum"] += low <= truth[one.width][0] <= high
                asked["optimum"] += 1
        if told.used == (16, 32, 64) and None not in told.shift_interval:
            held["shift"] += told.shift_interval[0] <= shift <= told.shift_interval[1]
            asked["shift"] += 1
            regret = 0.03 * float(curve(np.array(truth[16][0] - truth[64][0]), 0.6))
            held["bound"] += told.regret_high is None or regret <= told.regret_high
            asked["bound"] += 1
    assert asked["optimum"] >= 170 and asked["shift"] >= 55
    for name, lowest in (("optimum", 0.88), ("shift", 0.84), ("bound", 0.84)):
        assert lowest <= held[name] / asked[name], (name, held, asked)


def test_the_regrets_upper_bound_is_small_where_nothing_moves_and_large_where_the_optimum_does() -> None:
    still = analyse_sweep(planted(3)[0]).transfers[0]
    moved = analyse_sweep(planted(3, shift=-1.0, center=-4.8)[0]).transfers[0]
    assert still.regret_relative_high is not None and still.regret_relative_high < 0.003
    assert moved.verdict == "moves" and moved.regret_relative_low is not None and moved.regret_relative_low > 0.02


def test_order_of_rows_and_names_of_seeds_do_not_matter() -> None:
    rows, _ = planted(4, seed_noise=0.004, shared=0.5)
    shuffled = rows.sample(frac=1, random_state=1)
    renamed = rows.assign(seed=rows["seed"].map({0: 17, 1: 3}))
    base = numbers(analyse_sweep(rows))
    assert numbers(analyse_sweep(shuffled)) == base
    np.testing.assert_allclose(np.array(numbers(analyse_sweep(renamed)), float), np.array(base, float), rtol=1e-9)


def test_other_units_of_loss_and_rate_change_nothing_but_the_units() -> None:
    rows, _ = planted(5)
    one, other = analyse_sweep(rows), analyse_sweep(rows.assign(loss=rows["loss"] / np.log(2), lr=rows["lr"] * 8))
    for a, b in zip(one.optima, other.optima, strict=True):
        assert a.log2_lr is not None and b.log2_lr == pytest.approx(a.log2_lr + 3, abs=1e-9)
        assert a.loss is not None and b.loss == pytest.approx(a.loss / np.log(2), rel=1e-9)
        assert [end / 8 for end in b.lr_interval if end is not None] == pytest.approx(list(a.lr_interval), rel=1e-9)
    for name in ("shift", "shift_interval", "regret_relative", "regret_relative_high"):
        assert getattr(other.transfers[0], name) == pytest.approx(getattr(one.transfers[0], name), rel=1e-7, abs=1e-12)


def test_an_offset_of_a_seed_at_every_rate_moves_no_optimum_and_no_regret() -> None:
    """Seeds are paired over rates: what a seed adds everywhere is not noise of the optimum."""
    rows, _ = planted(6)
    lifted = rows.assign(loss=rows["loss"] + 0.05 * rows["seed"])
    one, other = (analyse_sweep(each).transfers[0] for each in (rows, lifted))
    assert other.shift_interval == pytest.approx(one.shift_interval, rel=1e-6)
    assert other.regret_high == pytest.approx(one.regret_high, rel=1e-6)
    before, after = (analyse_sweep(each).optima[0].loss_interval for each in (rows, lifted))
    assert after[1] - after[0] > 2 * (before[1] - before[0])  # type: ignore[operator]


def test_seeds_that_prefer_other_rates_widen_the_interval() -> None:
    plain, leaning = (analyse_sweep(planted(7, seeds=8, seed_lean=lean_)[0]).transfers[0] for lean_ in (0.0, 0.003))
    assert leaning.noise["lean_inflation"] > 2 > 1.5 > plain.noise["lean_inflation"]  # type: ignore[operator]


def test_one_seed_rests_on_the_scatter_about_the_curves_and_says_so() -> None:
    rows, _ = planted(8, seeds=1)
    result = analyse_sweep(rows)
    told = result.transfers[0]
    assert told.noise["seed_std"] is None and any("one seed" in note for note in told.notes)
    assert told.noise["residual_std"] == pytest.approx(0.004 * 2.1, rel=0.5)
    assert told.shift_interval[0] is not None and told.shift_interval[0] < 0 < told.shift_interval[1]  # type: ignore[operator]


def test_a_lowest_loss_at_an_end_is_an_edge_and_names_the_rates_to_add() -> None:
    rows, _ = planted(9, center=-0.2, noise=0.002, rates=9)
    result = analyse_sweep(rows)
    assert {one.status for one in result.optima} == {"edge"}
    assert "add 1 and 2" in result.optima[0].reason  # rates end at 2^-1
    assert result.optima[0].lr is None and result.optima[0].lowest_lr == 0.5
    assert result.transfers[0].verdict == "unsettled" and result.transfers[0].shift is None


def test_an_edge_before_divergence_asks_for_rates_between() -> None:
    rows, _ = planted(10, center=-4.0, diverge_at=0.0, noise=0.002)
    one = analyse_sweep(rows).optima[0]
    assert one.status == "edge" and "between" in one.reason and "diverged" in one.reason


def test_a_width_whose_runs_all_diverged_is_listed_and_the_others_are_read_without_it() -> None:
    rows, _ = planted(11)
    lost = rows["width"] == 32
    rows.loc[lost, ["state", "loss"]] = ["diverged", None]
    result = analyse_sweep(rows)
    assert [one.status for one in result.optima] == ["ok", "too_few", "ok", "ok"]
    assert result.optima[1].runs_diverged == 18 and result.optima[1].lowest_lr is None
    told, alone = result.transfers[0], analyse_sweep(rows[~lost]).transfers[0]
    assert told.used == (16, 64, 128) and any("32" in note for note in told.notes)
    assert (told.shift, told.regret_high) == (alone.shift, alone.regret_high)


def test_a_ladder_that_lost_an_end_is_not_said_to_transfer() -> None:
    rows, _ = planted(11)
    assert analyse_sweep(rows).transfers[0].verdict == "transfers"
    rows.loc[rows["width"] == 128, ["state", "loss"]] = ["diverged", None]
    told = analyse_sweep(rows).transfers[0]
    assert (told.verdict, told.to_rung) == ("unsettled", 64) and "without width 128" in told.words


def test_a_rate_where_one_seed_diverged_is_not_fitted_whatever_the_other_gave() -> None:
    rows, _ = planted(12)
    survivor = (rows["width"] == 64) & (rows["lr"] == 2.0**-3)
    rows.loc[survivor & (rows["seed"] == 1), ["state", "loss"]] = ["diverged", None]
    lucky = rows.copy()
    lucky.loc[survivor & (rows["seed"] == 0), "loss"] = 1.5
    assert numbers(analyse_sweep(lucky)) == numbers(analyse_sweep(rows))
    assert analyse_sweep(rows).optima[2].diverged_lr == (0.125,)


def test_a_failed_run_is_missing_and_its_rate_still_counts() -> None:
    rows, truth = planted(13, seed_noise=0.01)
    gone = (rows["width"] == 64) & (rows["lr"] == 2.0**-6) & (rows["seed"] == 0)
    rows.loc[gone, ["state", "loss"]] = ["failed", None]
    one = analyse_sweep(rows).optima[2]
    assert one.status == "ok" and one.runs_failed == 1 and one.runs_done == 17
    assert one.log2_lr == pytest.approx(truth[64][0], abs=0.35)


def test_noise_without_a_curve_has_no_optimum() -> None:
    rows, _ = planted(14, curvature=0.0, noise=0.005)
    assert not {one.status for one in analyse_sweep(rows).optima} & {"ok"}


def test_the_small_rate_diverging_at_the_large_width_bounds_the_regret_from_below_alone() -> None:
    rows, _ = planted(15, shift=-1.0, center=-4.8, diverge_at=2.6)
    told = analyse_sweep(rows).transfers[0]
    assert told.regret is None and told.regret_high is None and told.regret_low is not None and told.regret_low > 0.05
    assert told.verdict == "moves" and any("diverged" in note for note in told.notes)


def test_widths_and_depths_are_ladders_of_their_own_and_settings_keep_apart() -> None:
    wide, _ = planted(16)
    deep, _ = planted(17, against="depth", rungs=(4, 8, 16))
    other = wide.assign(weight_decay=4.0)
    found = {(one.against, one.fixed, one.settings["weight_decay"]): one.rungs
             for one in analyse_sweep(pd.concat([wide, deep, other])).transfers}  # fmt: skip
    assert found == {("width", 2, 2.0): (16, 32, 64, 128), ("depth", 32, 2.0): (2, 4, 8, 16),
                     ("width", 2, 4.0): (16, 32, 64, 128)}  # fmt: skip


def test_the_result_is_plain_json_a_frame_and_a_table() -> None:
    rows, _ = planted(18, diverge_at=3.4)
    result = analyse_sweep(rows)
    plain = json.loads(result.to_json())
    assert plain["schema"] == "jaxscale.mup_transfer/1" and len(plain["optima"]) == 4
    assert plain["optima"] == result.to_records()["optima"]
    assert list(result.to_frame()["width"]) == [16, 32, 64, 128]
    told = str(result)
    assert "shift of log2 lr per doubling of width" in told and "regret at width 128 of using 16's rate" in told
    assert "verdict: " in told and "diverged" in told


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: rows.drop(columns="seed"), "lack seed"),
        (lambda rows: rows.assign(lr=-rows["lr"]), "no logarithm"),
        (lambda rows: rows.assign(state="running"), "none of done"),
        (lambda rows: rows.assign(loss=np.nan), "no finite loss"),
        (lambda rows: pd.concat([rows, rows.head(1)]), "two runs"),
        (lambda rows: rows.head(0), "no rows"),
    ],
)
def test_rows_that_are_no_sweep_are_refused_in_a_sentence(change: Any, words: str) -> None:
    with pytest.raises(MisuseError, match=words):
        analyse_sweep(change(planted(19)[0]))


def test_the_figure_keeps_a_run_near_divergence_from_flattening_the_minima(tmp_path: Path) -> None:
    rows, _ = planted(20, diverge_at=3.4)
    both = pd.concat([rows, planted(21, shift=-1.0, center=-4.8, diverge_at=2.6, parameterization="standard")[0]])
    both.loc[both.index[both["lr"] == 0.25], "loss"] += 3.0
    result = analyse_sweep(both)
    spec = draw_transfer(result)
    assert spec is not None and len(spec["hconcat"]) == 2
    low, high = spec["hconcat"][0]["layer"][0]["encoding"]["y"]["scale"]["domain"]
    assert high < 3.0 and low < min(one.loss for one in result.optima if one.loss is not None)
    written = write_transfer_figure(result, tmp_path / "sweep")
    assert [path.name for path in written] == ["sweep.svg", "sweep.png"]
    crosses = [one.text for one in ET.parse(written[0]).iter() if one.text == "×"]
    assert len(crosses) == sum(len(one.diverged_lr) for one in result.optima)


def test_panels_of_one_parameterization_are_told_apart_and_ladders_over_depths_have_their_own_file(
    tmp_path: Path,
) -> None:
    rows, _ = planted(22)
    deep, _ = planted(23, against="depth", rungs=(4, 8))
    result = analyse_sweep(pd.concat([rows, rows.assign(weight_decay=4.0), deep]))
    spec = draw_transfer(result)
    assert spec is not None
    assert len({panel["title"]["text"] for panel in spec["hconcat"]}) == 2
    written = write_transfer_figure(result, tmp_path / "sweep")
    assert [path.name for path in written] == ["sweep.svg", "sweep.png", "sweep-depth.svg", "sweep-depth.png"]


def test_one_width_has_an_optimum_and_says_that_it_shows_no_transfer() -> None:
    rows, truth = planted(3, rungs=(32,))
    result = analyse_sweep(rows)
    assert result.optima[0].status == "ok"
    assert result.optima[0].lr_interval[0] <= 2 ** truth[32][0] <= result.optima[0].lr_interval[1]  # type: ignore[operator]
    assert (result.transfers[0].verdict, result.transfers[0].from_rung) == ("unsettled", None)
    assert "None" not in str(result) and "shows no transfer" in str(result)
