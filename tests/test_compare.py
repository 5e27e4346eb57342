"""Variants compared: planted laws whose multipliers and crossings are known, coverage counted, invariances."""

import json

import numpy as np
import pytest
from planted_variants import FIRST, IDENTICAL, SAME, SEPARATE, SLOPES, draw_variants, loss_of

from jaxscale.cli import dispatch
from jaxscale.compare import compare_variants
from jaxscale.compare.cells import gather_variants
from jaxscale.compare.draws import draw_laws
from jaxscale.compare.points import find_points
from jaxscale.compare.settle import expected_variance

TOP = 27 * FIRST
EXACT = 1e-9


def row_of(result, variant, notion="flops", target=None):
    rows = [row for row in result.rows if row["variant"] == variant and row["notion"] == notion]
    return next(row for row in rows if target is None or row["target"] == target)


def points_of(frame, axis="C"):
    names = tuple(sorted(set(frame["variant"])))
    return find_points(gather_variants(frame, names, axis)[0], names)


@pytest.fixture(scope="module")
def noisy():
    frame = draw_variants(SAME, seeds=2, speed={"adam": 1e14, "sgd": 1e14})
    return frame, compare_variants(frame, tuned=True)


def test_the_multiplier_of_laws_that_differ_in_A_alone_is_the_closed_form():
    result = compare_variants(draw_variants(SAME, noise=EXACT), tuned=True)
    for target in (10 * TOP, 100 * TOP):
        row = row_of(result, "sgd", target=target)
        assert row["multiplier"] == pytest.approx((1.26 / 1.2) ** (1 / 0.15), rel=1e-3)
        assert row["loss"] == pytest.approx(loss_of(SAME["sgd"], target), rel=1e-5)
    assert result.verdict == "settled" and result.winner == "adam"
    shared = [form for form in result.forms if form["form"] == "shared"]
    assert [(round(f["E"], 4), round(f["alpha"], 5)) for f in shared] == [(1.8, 0.15)] * 2
    assert shared[1]["A"] / shared[0]["A"] == pytest.approx(1.05, rel=1e-6)


def test_the_crossing_of_two_exponents_is_the_closed_form():
    result = compare_variants(draw_variants(SLOPES, noise=EXACT), tuned=True)
    (crossing,) = result.crossings
    assert crossing["x"] == pytest.approx(FIRST * (1.23 / 1.2) ** (1 / 0.015), rel=1e-3)
    assert crossing["share"] > 0.999 and crossing["better_below"] == "adam"
    assert [row["p"] < 1e-6 for row in result.tests if row["less"] == "shared"] == [True, True]
    far = row_of(result, "adam", target=100 * TOP)
    lost = (loss_of(SLOPES["sgd"], 100 * TOP) - 1.8) / 1.2
    assert far["multiplier"] == pytest.approx(lost ** (-1 / 0.15) * FIRST / (100 * TOP), rel=1e-3)


def test_a_variant_that_never_gets_there_has_no_multiplier():
    laws = {"a": (1.5, 1.2, 0.15), "b": (2.4, 1.0, 0.15)}
    result = compare_variants(draw_variants(laws, noise=1e-5), targets=[1e5 * TOP], tuned=True)
    row = row_of(result, "b")
    assert row["multiplier"] is None and "never gets there" in result.words
    assert any("more than 1000x" in note and "backtests" in note for note in result.notes)


def test_neither_the_order_of_rows_nor_the_unit_of_compute_changes_an_answer(noisy):
    frame, result = noisy
    other = frame.sample(frac=1, random_state=1).iloc[::-1]
    scaled = frame.assign(C=frame.C * 1e3, budget=frame.budget * 1e3)
    for again, unit in ((compare_variants(other, tuned=True), 1), (compare_variants(scaled, tuned=True), 1e3)):
        for variant in ("adam", "sgd"):
            one, two = row_of(result, variant), row_of(again, variant)
            assert two["target"] == pytest.approx(unit * one["target"])
            for name in ("loss", "multiplier", "probability_best", "loss_interval", "multiplier_interval"):
                assert two[name] == pytest.approx(one[name], rel=2e-3), name


@pytest.mark.parametrize("laws", [SAME, SLOPES, SEPARATE, IDENTICAL], ids=["shared", "slopes", "separate", "identical"])
def test_intervals_hold_the_truth_of_every_form_and_probabilities_mean_what_they_say(laws):
    """Few budgets, few draws, few studies; docs/compare.md has the longer count."""
    hits, sure, wrong, probability = [], 0, 0, []
    x = np.log(10 * TOP)
    truth = loss_of(laws["sgd"], 10 * TOP) - loss_of(laws["adam"], 10 * TOP)
    studies = 24
    for seed in range(studies):
        draws = draw_laws(points_of(draw_variants(laws, seed=seed, noise=0.004)), 400, seed)
        gap = np.diff(draws.loss(x), axis=1)[:, 0]
        low, high = np.quantile(gap, [0.025, 0.975], method="weibull")
        hits.append(low <= truth <= high)
        probability.append((gap > 0).mean())
        sure += max(probability[-1], 1 - probability[-1]) > 0.95
        wrong += (probability[-1] > 0.95 and truth <= 0) or (probability[-1] < 0.05 and truth >= 0)
    assert np.mean(hits) > 0.95 - 3 * np.sqrt(0.95 * 0.05 / studies)
    assert wrong <= 3  # of 24 at 5% each side: more than three has odds below 4%
    if truth == 0:
        assert abs(np.mean(probability) - 0.5) < 3 * 0.3 / np.sqrt(studies)


def test_three_budgets_leave_wide_intervals():
    wide, narrow = (compare_variants(draw_variants(SAME, budgets=n), tuned=True, targets=[1e21]) for n in (3, 6))
    spans = [np.ptp(row_of(result, "sgd")["difference_interval"]) for result in (wide, narrow)]
    assert spans[0] > 2 * spans[1]
    assert any("3 budgets" in note for note in wide.notes)


def test_equal_time_with_r_times_the_speed_is_r_times_the_compute(noisy):
    frame, result = noisy
    fast = frame.assign(seconds=frame.seconds / np.where(frame.variant == "sgd", 1.25, 1.0))
    again = compare_variants(fast, tuned=True)
    row, plain = row_of(again, "sgd", "seconds"), row_of(result, "sgd")
    assert row["x"] == pytest.approx(1.25 * plain["x"])
    assert row["multiplier"] == pytest.approx(plain["multiplier"] / 1.25, rel=1e-6)
    priced = compare_variants(frame, tuned=True, prices={"adam": 2.0, "sgd": 1.6})
    assert row_of(priced, "sgd", "dollars")["x"] == pytest.approx(1.25 * plain["x"])
    assert row_of(priced, "adam", "dollars")["dollars"] == pytest.approx(10 * TOP / 1e14 / 3600 * 2)


def test_speed_is_a_power_law_of_size_and_level_beyond_the_largest_run():
    frame = draw_variants(SAME, noise=1e-4)
    frame["flops_per_s"] = 1e13 * (frame.C / FIRST) ** 0.3 * np.where(frame.variant == "sgd", 2.0, 1.0)
    row = row_of(compare_variants(frame, tuned=True), "adam", "seconds")
    assert row["seconds"] == pytest.approx(10 * TOP / (1e13 * 27**0.3), rel=1e-6)
    kinds = frame.assign(device_kind=np.where(frame.variant == "sgd", "cpu", "H100"))
    result = compare_variants(kinds, tuned=True)
    assert {row["notion"] for row in result.rows} == {"flops"}
    assert any("several kinds of device" in note for note in result.notes)


def test_what_would_settle_it_is_the_linear_design_variance():
    """g' (J' W J)^-1 g of a line, by draws of its posterior."""
    rng, x = np.random.default_rng(0), np.arange(4.0)
    J, s2 = np.stack([np.ones(4), x], 1), 0.04
    g, new = np.array([1.0, 8.0]), np.array([1.0, 5.0])
    theta = rng.multivariate_normal([0, 0], s2 * np.linalg.inv(J.T @ J), 100_000)
    after = np.linalg.inv(J.T @ J / s2 + np.outer(new, new) / 0.01)
    found = expected_variance(theta @ g, (theta @ new)[:, None], np.array([0.01]))
    assert found == pytest.approx(g @ after @ g, rel=0.03)


def test_an_open_choice_says_what_would_settle_it():
    close = {"adam": (1.8, 1.2, 0.15), "sgd": (1.8, 1.21, 0.15)}
    result = compare_variants(draw_variants(close, noise=0.006), tuned=True, targets=[10 * TOP])
    (decision,) = result.decisions
    assert result.verdict == "open" and result.winner is None
    more = decision["settle"]
    assert more["probability"] > decision["probability"] and more["flops"] > 0
    assert more["over_spent"] == pytest.approx(more["flops"] / (2 * 5 * sum(3.0**k for k in range(4)) * FIRST))
    easy = compare_variants(draw_variants(SAME), tuned=True, targets=[3 * TOP]).decisions[0]["settle"]
    assert easy["words"] == "already settled"


def test_variants_of_a_budget_share_their_curvature_unless_it_differs():
    frame = draw_variants(SAME, noise=0.004)
    shared = points_of(frame)
    assert shared.curvature == "shared" and {row["status"] for row in shared.rows} == {"ok"}
    frame.loc[frame.variant == "sgd", "loss"] *= np.exp(0.2 * np.log(frame.N / 1e7 / (frame.C / FIRST) ** 0.5) ** 2)
    steep = points_of(frame)
    assert steep.curvature == "own" and steep.curvature_p < 0.05
    spread = {3: [], 1: []}
    for seed in range(30):
        three = draw_variants(IDENTICAL, noise=0.004, sizes=3, seed=seed, budgets=2)
        for name, names in ((3, ("adam", "sgd")), (1, ("sgd",))):
            found = find_points(gather_variants(three[three.variant.isin(names)], names, "C")[0], names)
            spread[name].append(found.y[-1] - np.log(loss_of(IDENTICAL["sgd"], 3 * FIRST)))
    assert np.std(spread[3]) < np.std(spread[1])


def test_seeds_that_variants_share_narrow_their_difference():
    paired = points_of(draw_variants(SAME, noise=0.005, seeds=3, common=0.9))
    apart = points_of(draw_variants(SAME, noise=0.005, seeds=3, common=0.0))
    assert paired.pairing == pytest.approx(0.9, abs=0.1) and apart.pairing == 0
    half = len(paired) // 2
    gap = [p.cov[0, 0] + p.cov[half, half] - 2 * p.cov[0, half] for p in (paired, apart)]
    assert gap[0] < 0.3 * gap[1]


def test_one_size_a_budget_and_other_axes_work():
    one = compare_variants(draw_variants(SAME, sizes=1, budgets=5), tuned=True)
    assert {row["status"] for row in one.points} == {"single"} and one.noise["dof"] == 0
    fixed = draw_variants(SAME, sizes=1, budgets=5)
    fixed["D"], fixed["N"] = fixed["C"] / 6e8, 1e8
    along = compare_variants(fixed.drop(columns="budget"), x="D", tuned=True)
    assert along.rows[0]["notion"] == "tokens" and along.rows[0]["target"] == pytest.approx(10 * fixed["D"].max())
    for name in ("loss", "probability_best"):
        assert row_of(along, "sgd", "tokens")[name] == pytest.approx(row_of(one, "sgd")[name], rel=1e-3)


def test_the_backtest_predicts_the_differences_of_the_largest_budgets():
    result = compare_variants(draw_variants(SAME, noise=1e-4, budgets=5), tuned=True)
    last = [row for row in result.backtest if row["left_out"] == 1]
    assert len(last) == 1 and last[0]["decades"] == pytest.approx(np.log10(3))
    assert abs(last[0]["error"]) < 0.002 and last[0]["right"]
    assert 0 < result.error_per_decade < 0.01


def test_three_variants_are_compared_with_the_best_and_pair_by_pair():
    laws = SAME | {"lion": (1.8, 1.14, 0.15)}
    result = compare_variants(draw_variants(laws, noise=1e-4), tuned=True)
    assert result.leader == "lion" and len(result.pairs) == 2 * 3
    assert row_of(result, "sgd")["multiplier"] == pytest.approx((1.26 / 1.14) ** (1 / 0.15), rel=0.05)
    (pair,) = [p for p in result.pairs if {p["a"], p["b"]} == {"adam", "sgd"} and p["extrapolation"] == 10]
    assert pair["multiplier"] == pytest.approx(1.05 ** (1 / 0.15), rel=0.05)
    assert list(result.to_frame()["variant"][:3]) == ["adam", "sgd", "lion"]


def test_the_verb_prints_writes_draws_and_ends_with_its_code(tmp_path, capsys):
    table = tmp_path / "runs.csv"
    frame = draw_variants(SAME, noise=0.001).rename(columns={"variant": "optimizer", "loss": "val"})
    frame.to_csv(table, index=False)
    mapped = [str(table), "--columns", "variant=optimizer", "loss=val"]
    out = ["--figure", str(tmp_path / "fig"), "--out", str(tmp_path / "c.json")]
    assert dispatch(["compare", *mapped, "--tuned", "--flops", "3e20", *out]) == 0
    plain = json.loads((tmp_path / "c.json").read_text())
    assert plain["schema"] == "jaxscale.compare/1" and plain["winner"] == "adam" and len(plain["rows"]) == 2
    assert plain["tuning"]["by"] == "statement"
    assert (tmp_path / "fig.svg").read_text().count("sgd") >= 2 and (tmp_path / "fig.png").stat().st_size > 10_000
    assert "verdict: settled: adam wins" in capsys.readouterr().out
    assert dispatch(["compare", *mapped]) == 1
    assert "no winner is named" in capsys.readouterr().err
    assert dispatch(["compare", *mapped, "--tokens", "1e9"]) == 2


def test_the_page_of_a_study_shows_its_variants(tmp_path, noisy):
    from jaxscale.report import write_report
    from jaxscale.source import read_observations

    frame, result = noisy
    obs = read_observations(frame[frame.variant == "adam"])
    page = write_report(
        tmp_path, title="optimizers", plan=None, observations=obs, fits=(), provenance={}, comparison=result
    )
    text = page.read_text()
    assert "<h2>Variants</h2>" in text and f"{result.verdict}: adam" in text
    assert (tmp_path / "figures" / "compare.png").stat().st_size > 10_000
