"""Backtests: what is fitted and what is not, errors against a planted law, scores against their definitions."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
from planted import LAW, draw_grid

from jaxscale.backtest import backtest_fit
from jaxscale.backtest.lowest import extend_lowest
from jaxscale.backtest.scores import score_interval
from jaxscale.backtest.splits import C_QUANTILES, list_splits
from jaxscale.backtest.summary import paired_difference
from jaxscale.errors import MisuseError, VerdictError
from jaxscale.fit import fit_isoflop
from jaxscale.laws import Chinchilla, Repetition
from jaxscale.source import as_observations

BOTH = ("isoflop", "parametric")


@pytest.fixture(scope="module")
def rolled():
    return backtest_fit(draw_grid(budgets=5, noise=0.003), bootstrap=128)


def scattered(runs=60, noise=0.0, seed=0):
    """Runs at sizes and token counts drawn independently: no budgets."""
    rng = np.random.default_rng(seed)
    N, D = np.exp(rng.uniform(np.log([1e7, 1e9]), np.log([1e9, 1e11]), (runs, 2)).T)
    return pd.DataFrame({"N": N, "D": D, "loss": LAW.loss(N, D) * np.exp(noise * rng.standard_normal(runs))})


def test_a_planted_law_without_noise_is_foretold_from_every_origin():
    rows = backtest_fit(draw_grid(budgets=4), methods=("parametric",), bootstrap=0).rows
    assert len(rows) > 21
    for row in (row for row in rows if row["quantity"] == "loss_at"):
        assert row["predicted"] == pytest.approx(LAW.loss(row["N"], row["D"]), rel=1e-5)
        assert row["compute_error"] == pytest.approx(1, abs=2e-3)


def test_every_origin_predicts_every_larger_budget(rolled):
    C = 1e18 * 3.0 ** np.arange(5)
    wanted = {(k, j) for k in (1, 2, 3) for j in range(k + 1, 5)}
    for method in (*BOTH, "average"):
        found = [(row["trained_to_C"], row["target_C"]) for row in rolled.rows
                 if (row["method"], row["quantity"]) == (method, "loss")]  # fmt: skip
        assert {tuple(np.abs(np.log(pair) - np.log(C)[:, None]).argmin(0)) for pair in found} == wanted
        assert len(found) == len(wanted)
    cells = [row for row in rolled.rows if row["quantity"] == "loss_at"]
    assert len(cells) == 7 * len(wanted) and {row["method"] for row in cells} == {"parametric"}
    for row in rolled.rows:
        assert row["ratio"] == pytest.approx(row["target_C"] / row["trained_to_C"])
        assert row["error"] == pytest.approx(row["predicted"] / row["measured"] - 1)
        assert abs(row["error"]) < (0.4 if row["quantity"] == "N_opt" else 0.1)


def test_the_json_and_the_table_hold_the_same(rolled):
    plain = json.loads(rolled.to_json())
    assert plain["schema"] == "jaxscale.backtest/1" and len(plain["rows"]) == len(rolled.to_frame())
    total = [row for row in plain["summary"] if row["ratio"] == "all" and row["quantity"] == "loss"]
    assert [row["count"] for row in total] == [6, 6, 6] and {row["origins"] for row in total} == {3}
    bins = [row for row in plain["summary"] if row["quantity"] == "loss" and row["method"] == "isoflop"]
    assert [(row["ratio"], row["count"]) for row in bins] == [("all", 6), ("1-3.2x", 3), ("3.2-10x", 2), ("10-32x", 1)]
    text = str(rolled)
    assert "choose no winner" in text and max(map(len, text.splitlines()[:30])) <= 120


def test_summary_is_the_rows_summed(rolled):
    mine = [row for row in rolled.rows if (row["method"], row["quantity"]) == ("parametric", "loss")]
    e, base = (np.log([row[name] / row["measured"] for row in mine]) for name in ("predicted", "baseline"))
    row = next(r for r in rolled.summary if (r["method"], r["quantity"], r["ratio"]) == ("parametric", "loss", "all"))
    assert row["rms_error"] == pytest.approx(np.sqrt((e**2).mean()))
    assert row["skill"] == pytest.approx(1 - np.sqrt((e**2).mean() / (base**2).mean()))
    assert row["inside"] == sum(r["inside"] for r in mine)


def test_held_out_rows_are_predicted_from_every_origin_and_never_fitted():
    frame = draw_grid(budgets=4, sizes=6, noise=0.003).assign(role="grid")
    target = draw_grid(budgets=1, sizes=2, span=1.5, first=1e20).assign(role="holdout")
    result = backtest_fit(pd.concat([frame, target], ignore_index=True), bootstrap=128)
    final = [row for row in result.rows if row["split"] == "holdout"]
    losses = [row for row in final if row["quantity"] == "loss"]
    assert [row["measured_by"] for row in losses] == ["lowest of 2 sizes"] * 3
    assert all(row["measured"] == target["loss"].min() for row in losses)
    assert sum(row["quantity"] == "loss_at" for row in final) == 2
    assert not any(row["quantity"] == "N_opt" for row in final)
    rolling = [row for row in result.rows if row["split"] == "rolling" and row["target_C"] > 0.9e20]
    assert len({row["trained_to_C"] for row in rolling}) == 2
    fit = fit_isoflop(pd.concat([frame, target], ignore_index=True), bootstrap=0)
    assert (fit.source["rows_used"], fit.source["rows_held_out"]) == (24, 2)
    spoiled = pd.concat([frame, target.assign(loss=9.9)], ignore_index=True)
    again = backtest_fit(spoiled, bootstrap=128)
    assert [row["predicted"] for row in again.rows] == [row["predicted"] for row in result.rows]


def test_without_budgets_the_origins_are_quantiles_of_compute():
    frame = scattered()
    C = 6 * frame["N"] * frame["D"]
    splits = list_splits(as_observations(frame), "auto")
    assert [split.trained_to_C for split in splits] == pytest.approx(np.quantile(C, C_QUANTILES, method="lower"))
    for split in splits:
        assert len(split.trained) + len(split.held) == len(frame)
        assert split.trained.C.max() < split.held.C.min()
        for at, inside in split.optima:  # no run of less compute is better
            assert split.held.loss[inside[0]] <= frame["loss"][at * (1 + 1e-12) >= C].min()
    result = backtest_fit(frame, bootstrap=0)
    assert {row["method"] for row in result.rows} == {"parametric"}
    assert sum("no budgets" in row.get("verdict", "") for row in result.summary) == 5
    assert max(abs(row["error"]) for row in result.rows if row["quantity"] == "loss_at") < 1e-5
    assert all(row["error"] < 1e-6 for row in result.rows if row["quantity"] == "loss")  # a run never beats the optimum


def test_a_corner_predicts_only_what_lies_outside_it():
    result = backtest_fit(draw_grid(budgets=4), split="corner", bootstrap=0)
    assert {(row["method"], row["quantity"]) for row in result.rows} == {("parametric", "loss_at")}
    assert len({(row["trained_to_N"], row["trained_to_D"]) for row in result.rows}) > 3
    for row in result.rows:
        assert row["N"] > row["trained_to_N"] or row["D"] > row["trained_to_D"]
        assert row["predicted"] == pytest.approx(LAW.loss(row["N"], row["D"]), rel=1e-5)


def test_a_ratio_keeps_the_targets_about_that_far_and_says_where_there_are_none():
    grid = draw_grid(budgets=5, noise=0.003)
    rows = backtest_fit(grid, ratio=9, split="all", bootstrap=32).rows
    assert rows and all(4.5 <= row["ratio"] <= 18 for row in rows)
    with pytest.raises(VerdictError, match="no target lies at about 5000 times"):
        backtest_fit(grid, ratio=5000)
    with pytest.raises(MisuseError, match="ratio"):
        backtest_fit(grid, ratio=-1)


@pytest.mark.parametrize(
    ("frame", "split", "said"),
    [
        (draw_grid(budgets=1), "auto", "one budget only"),
        (draw_grid(budgets=2), "auto", "2 budgets, nothing can be held out"),
        (draw_grid(budgets=4), "holdout", "no row has role holdout"),
        (draw_grid(budgets=1, sizes=1), "corner", "no corner"),
    ],
)
def test_nothing_to_hold_out_is_a_verdict(frame, split, said):
    with pytest.raises(VerdictError, match=said):
        backtest_fit(frame, split=split)


@pytest.mark.parametrize("options", [{"split": "sideways"}, {"law": ()}, {"law": ("chinchilla", "chinchilla")}])
def test_an_unknown_split_or_a_law_twice_is_misuse(options):
    with pytest.raises(MisuseError, match=r"split|law"):
        backtest_fit(draw_grid(), **options)


def test_budgets_that_a_column_names_are_held_out_by_that_name():
    frame = draw_grid(budgets=4, sizes=7, noise=0.002).assign(budget=lambda f: "b" + f["C"].astype(str))
    frame["C"] *= np.tile([0.7, 1.0, 1.4, 1.0, 0.8, 1.2, 1.0], 4)
    result = backtest_fit(frame.assign(C=np.minimum(frame["C"], 2.7e19)), methods=("parametric",), bootstrap=32)
    cells = [row for row in result.rows if row["quantity"] == "loss_at"]
    assert len(cells) == 7 * 3


def test_the_baseline_is_right_where_the_frontier_is_a_pure_power_law():
    pure = dataclasses.replace(LAW, E=0.0)
    for split in list_splits(as_observations(draw_grid(budgets=5, law=pure)), "rolling"):
        lowest = extend_lowest(split)
        best = pure.optimum(1e22)
        assert lowest.predict("loss", 1e22) == pytest.approx(best.loss, rel=1e-9)
        assert lowest.predict("N_opt", 1e22) == pytest.approx(best.N, rel=1e-9)


def test_no_interval_scores_better_on_average_than_the_true_quantiles():
    rng = np.random.default_rng(0)
    x = np.exp(rng.standard_normal(20_000))
    ends = {"true": (-1.96, 1.96), "narrow": (-1.5, 1.5), "wide": (-2.5, 2.5), "shifted": (-1.6, 2.3)}
    scores = {name: np.mean([score_interval(tuple(np.exp(z)), one, 0.95) for one in x]) for name, z in ends.items()}
    assert min(scores, key=scores.get) == "true"
    assert scores["true"] == pytest.approx(2 * 0.058445 * 2 / 0.05, rel=0.03)  # 2 phi(1.96) 2 / alpha


def test_paired_standard_error_is_the_plain_one_where_nothing_is_shared_and_larger_where_it_is():
    rng = np.random.default_rng(1)
    one, other = rng.standard_normal((2, 12))
    alone = np.arange(12)
    d = np.abs(one) - np.abs(other)
    gap, error = paired_difference(one, other, alone, alone)
    assert (gap, error) == (pytest.approx(d.mean()), pytest.approx(d.std(ddof=1) / np.sqrt(12)))
    four = np.repeat(np.arange(3), 4)
    _, shared = paired_difference(np.repeat(one[:3], 4), np.repeat(other[:3], 4), four, alone)
    assert shared == pytest.approx(d[:3].std(ddof=1) / np.sqrt(3))
    assert paired_difference(one, other, np.zeros(12), alone)[1] is None


def test_runs_fall_inside_the_interval_of_one_future_run_as_often_as_promised():
    """The middle cell of the last budget, one a study, so that the trials are independent."""
    inside = []
    for seed in range(60):
        grid = draw_grid(budgets=4, noise=0.005, seed=seed)
        grid["role"] = np.where(grid["budget"] > 2e19, "holdout", "grid")
        rows = backtest_fit(grid, methods=("parametric",), bootstrap=200, split="holdout").rows
        inside.append([row for row in rows if row["quantity"] == "loss_at"][3]["inside"])
    assert np.mean(inside) == pytest.approx(0.95, abs=3 * np.sqrt(0.95 * 0.05 / 60))


def test_a_wrong_form_is_seen_by_its_errors():
    """A law whose exponent of N changes beyond the small sizes: the fit to small budgets must miss."""
    grid = draw_grid(budgets=5)
    broken = grid.assign(loss=grid["loss"] + 0.1 * np.maximum(0, np.log(grid["N"] / 2e8)))
    right, wrong = (backtest_fit(f, methods=("parametric",), bootstrap=0, split="rolling") for f in (grid, broken))
    rms = [r["rms_error"] for b in (right, wrong) for r in b.summary if (r["quantity"], r["ratio"]) == ("loss", "all")]
    assert rms[0] < 1e-3 < 5e-3 < rms[1]


def test_a_law_far_from_the_grid_is_predicted_at_its_own_place():
    other = Chinchilla(E=1.2, A=20.5, B=31.5, alpha=0.40, beta=0.34)
    rows = backtest_fit(draw_grid(law=other, first=3e10), methods=("parametric",), bootstrap=0).rows
    assert max(abs(row["error"]) for row in rows if row["quantity"] == "loss_at") < 1e-5


def test_several_laws_are_scored_alike_and_the_first_is_in_the_average():
    grid = draw_grid(budgets=4, noise=0.003)
    both = backtest_fit(grid, law=("chinchilla", "kaplan"), bootstrap=32)
    parametric = [row for row in both.rows if row["method"] == "parametric"]
    assert [row["law"] for row in parametric].count("kaplan") == len(parametric) / 2
    alone = backtest_fit(grid, law="chinchilla", bootstrap=32)
    kept = [row for row in both.rows if row["law"] != "kaplan"]
    assert [row["predicted"] for row in kept] == [row["predicted"] for row in alone.rows]
    rms = {
        row["law"]: row["rms_error"] for row in both.summary if (row["quantity"], row["ratio"]) == ("loss_at", "all")
    }
    assert rms["kaplan"] > 2 * rms["chinchilla"]  # the planted law has an irreducible loss, Kaplan's has none


@pytest.mark.parametrize("law", ["kaplan-n", "compute", "repetition"])
def test_a_law_of_other_inputs_is_scored_at_the_cells_and_leaves_the_average_alone(law):
    frame = draw_grid(noise=0.003)
    found = backtest_fit(frame, law=("chinchilla", law), bootstrap=20)
    mine = [row for row in found.rows if row["law"] == law]
    assert mine and {row["quantity"] for row in mine} >= {"loss_at"}
    if law != "repetition":
        assert {row["quantity"] for row in mine} == {"loss_at"} and {row["compute_error"] for row in mine} == {None}
    fits = [{key: row[key] for key in ("target_C", "predicted")} for row in found.rows if row["method"] == "average"]
    alone = backtest_fit(frame, law="chinchilla", bootstrap=20)
    assert fits == [{k: row[k] for k in ("target_C", "predicted")} for row in alone.rows if row["method"] == "average"]


def test_repeated_data_are_predicted_with_their_unique_tokens():
    frame = draw_grid(noise=0.002)
    law = Repetition(E=1.7, A=400.0, B=1500.0, alpha=0.34, beta=0.36, R_D=10.0, R_N=5.0)
    U = frame["D"] / np.tile([1.0, 4.0, 20.0, 60.0], len(frame))[: len(frame)]
    frame = frame.assign(U=U, loss=law.loss(*(x.to_numpy() for x in (frame["N"], frame["D"], U))))
    found = backtest_fit(frame, methods=("parametric",), law="repetition", split="rolling", bootstrap=0)
    errors = [abs(row["error"]) for row in found.rows if row["quantity"] == "loss_at"]
    assert len(errors) and max(errors) < 1e-3


def test_near_thins_what_is_fitted_and_leaves_the_measured_optimum_alone():
    obs = draw_grid(budgets=5, sizes=9, noise=0.002)
    plain, near = (backtest_fit(obs, methods=("isoflop",), bootstrap=0, near=factor) for factor in (None, 2.5))
    measured = [[row["measured"] for row in found.rows if row["quantity"] == "N_opt"] for found in (plain, near)]
    predicted = [[row["predicted"] for row in found.rows if row["quantity"] == "N_opt"] for found in (plain, near)]
    assert measured[0] == measured[1] and predicted[0] != predicted[1]
