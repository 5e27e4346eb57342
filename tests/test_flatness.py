"""Flatness against the second-order expansion of Chinchilla's law, its own surface, and isoflop fits of it."""

import json

import numpy as np
import pytest
from fit_values import fit_of
from planted import LAW, draw_grid

from jaxscale.constrain import constrain_optimum
from jaxscale.errors import MisuseError, VerdictError
from jaxscale.fit import Fits, fit_isoflop
from jaxscale.flatness import measure_curvature, measure_flatness
from jaxscale.laws import KAPLAN_2020, SIX_ND, FlopRule


def _rows(flatness, kind):
    return [row for row in flatness.rows if row["kind"] == kind]


@pytest.mark.parametrize("p", [1.0, 1.1])
def test_near_the_optimum_the_penalty_is_the_second_order_expansion(p):
    # along C = k N^p D: d2L/dx2 = alpha (alpha A/N^alpha) + p beta (p beta B/D^beta), both terms equal at the optimum
    C, rule = 1e22, FlopRule(6.0, p)
    best = LAW.optimum(C, rule)
    second = LAW.alpha**2 * LAW.A * best.N**-LAW.alpha + (p * LAW.beta) ** 2 * LAW.B * best.D**-LAW.beta
    for factor in (0.99, 1.01):
        row = _rows(measure_flatness(fit_of(LAW, p=p), [C], factors=[factor]), "off")[0]
        assert row["penalty_nats"] == pytest.approx(second * np.log(factor) ** 2 / 2, rel=0.01)
    if p == 1.0:  # and as a share of the reducible loss it is alpha beta
        assert second == pytest.approx(LAW.alpha * LAW.beta * (best.loss - LAW.E), rel=1e-12)


@pytest.mark.parametrize("law", [LAW, KAPLAN_2020], ids=lambda law: law.name)
def test_penalties_are_read_off_the_surface_and_their_compute_is_the_frontiers(law):
    C, best = 1e21, law.optimum(1e21)
    for row in _rows(measure_flatness(fit_of(law), [C]), "off"):
        assert row["N"] == pytest.approx(row["factor"] * best.N) and row["N"] * row["D"] * 6 == pytest.approx(C)
        assert row["penalty_nats"] == pytest.approx(law.loss(row["N"], row["D"]) - best.loss, rel=1e-9)
        shrunk = law.optimum(C / row["compute_factor"])
        assert shrunk.loss == pytest.approx(best.loss + row["penalty_nats"], rel=1e-10)


def test_the_ends_of_a_range_lose_exactly_its_tolerance():
    C, best = 1e21, LAW.optimum(1e21)
    rows = _rows(measure_flatness(fit_of(LAW), [C]), "range")
    assert [row["tolerance"] for row in rows] == [0.001, 0.005, 0.01]
    for row in rows:
        for end in ("low", "high"):
            N = row[f"N_{end}"]
            assert LAW.loss(N, SIX_ND.tokens(C, N)) == pytest.approx(best.loss * (1 + row["tolerance"]), rel=1e-12)
            assert row[end] == pytest.approx(N / best.N, rel=1e-9)
        assert row["tokens_per_param_low"] < best.D / best.N < row["tokens_per_param_high"]


def test_why_405_for_402_did_not_matter():
    # Grattafiori et al. 2024, section 3.2.1: the optimum was predicted at 402B and the model has 405B
    row = _rows(measure_flatness(fit_of(LAW), [3.8e25], factors=[405 / 402]), "off")[0]
    assert 0 < row["penalty"] < 1e-6
    assert row["compute_factor"] == pytest.approx(1, abs=1e-4)


def test_intervals_are_those_of_the_rounds_one_by_one():
    fit = fit_of(LAW, rounds=40)
    rows = measure_flatness(fit, [1e21], factors=[2.0], tolerances=[0.01]).rows
    alone = [
        _rows(measure_flatness(fit_of(type(LAW)(**{k: v[i] for k, v in fit.draws.items()})), [1e21], factors=[2.0],
                               tolerances=[0.01]), "off")[0]["penalty_nats"] for i in range(40)
    ]  # fmt: skip
    low, high = np.quantile(alone, [0.05, 0.95], method="weibull")
    assert rows[1]["penalty_nats_interval"] == pytest.approx([low, high], rel=1e-9)
    assert rows[0]["factor"] is None and rows[0]["penalty_nats_interval"][0] >= 0  # the fit's own error costs
    low, high = rows[2]["high_interval"]
    assert low < rows[2]["high"] < high


def test_an_isoflop_fit_of_exact_curves_knows_the_curvature():
    fit = fit_isoflop(draw_grid(span=1.3, sizes=7, budgets=5), interpolant="parabola", window=7, bootstrap=0)
    C = fit.budgets[2].C
    best = LAW.optimum(C)
    for row in _rows(measure_flatness(fit, [C], factors=[0.8, 1.25]), "off"):
        N = best.N * row["factor"]
        lost = LAW.loss(N, SIX_ND.tokens(C, N)) - best.loss
        assert row["penalty_nats"] == pytest.approx(lost, rel=0.05)
        assert row["penalty_nats_interval"] == [None, None]


def test_beyond_its_budgets_an_isoflop_fit_keeps_curvature_over_reducible_loss():
    # the closed form says alpha beta / 2 at every C; the fit's own E is what the reducible loss is taken from
    fit = fit_isoflop(draw_grid(span=1.3, sizes=7, budgets=5), interpolant="parabola", window=7, bootstrap=0)
    shares = list(measure_curvature(fit).values())
    assert fit.loss_law["E"] == pytest.approx(LAW.E, rel=0.02)
    assert np.ptp(shares) < 0.02 * shares[0]
    flatness = measure_flatness(fit, [1e23], factors=[1.25], tolerances=[0.001])
    best = LAW.optimum(1e23)
    lost = LAW.loss(1.25 * best.N, best.D / 1.25) - best.loss
    assert flatness.rows[0]["penalty_nats"] == pytest.approx(lost, rel=0.1)
    assert "their median" in flatness.notes[0]


def test_akima_curves_give_a_curvature_too():
    grid = draw_grid(span=2.0, sizes=9, budgets=3)
    fit = fit_isoflop(grid, interpolant="akima", bootstrap=0)
    parabola = fit_isoflop(grid, interpolant="parabola", window=5, bootstrap=0)
    shares, others = measure_curvature(fit), measure_curvature(parabola)
    E, E_other = fit.loss_law["E"], parabola.loss_law["E"]
    for budget, other in zip(fit.budgets, parabola.budgets, strict=True):
        c = shares[budget.C] * (budget.loss_opt - E)
        assert c == pytest.approx(others[other.C] * (other.loss_opt - E_other), rel=1e-6)


def test_budgets_are_the_default_and_a_silent_method_is_a_note():
    isoflop = fit_isoflop(draw_grid(noise=0.002), bootstrap=0)
    assert {row["C"] for row in measure_flatness(isoflop).rows} == {b.C for b in isoflop.budgets}
    assert {row["C"] for row in measure_flatness(fit_of(LAW)).rows} == {1e20}
    bare = fit_isoflop(draw_grid(noise=0.002), bootstrap=0)
    bare.diagnostics.pop("curves")
    with pytest.raises(VerdictError, match="keeps no curve"):
        measure_flatness(bare)
    both = measure_flatness(Fits((bare, fit_of(LAW)), (0.5, 0.5)), [1e21])
    assert {row["method"] for row in both.rows} == {"parametric"} and "keeps no curve" in both.notes[0]


def test_tables_and_json_say_the_same():
    flatness = measure_flatness(fit_of(LAW, rounds=20), [1e21])
    plain = json.loads(flatness.to_json())
    assert plain["schema"] == "jaxscale.flatness/1" and len(plain["rows"]) == len(flatness.to_frame()) == 8
    assert "the fit's error" in str(flatness) and "0.5%" in str(flatness)


@pytest.mark.parametrize("options", [{"flops": [-1.0]}, {"factors": [0.0]}, {"tolerances": [np.nan]}])
def test_a_value_that_is_not_positive_is_misuse(options):
    with pytest.raises(MisuseError, match="must be finite and above 0"):
        measure_flatness(fit_of(LAW), **options)


def test_sizes_beyond_the_curves_are_told():
    fit = fit_isoflop(draw_grid(span=1.5, budgets=4), interpolant="parabola", window=7, bootstrap=0)
    notes = measure_flatness(fit, factors=[1.25, 2.0], tolerances=[0.001]).notes
    beyond = [note for note in notes if "the parabola is a guess" in note]
    assert len(beyond) == 1 and "off by 2 looks at 2x the optimal size" in beyond[0]
    plans = constrain_optimum(fit, flops=1e20, max_params=LAW.optimum(1e20).N / 4).notes
    assert any("max_params looks at 0.25x" in note for note in plans)
