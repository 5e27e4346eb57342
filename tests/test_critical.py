"""Batch laws against their closed forms, published constants, planted sweeps and counted intervals."""

import numpy as np
import pytest
from scipy import stats

from jaxscale.critical import fit_critical_batch, fit_tradeoff
from jaxscale.errors import MisuseError
from jaxscale.fit.resample import t_quantile
from jaxscale.laws.batch import (
    KAPLAN_BATCH,
    CriticalBatch,
    Tradeoff,
    batch_with_overhead,
    estimate_noise_scale,
    least_compute,
    least_steps,
)

LAW = Tradeoff(S_min=2000.0, E_min=4e8)
SWEEP = np.geomspace(1e4, 4e6, 9)


def draw_steps(batch, noise, seed):
    return LAW.steps(batch) * np.exp(noise * np.random.default_rng(seed).standard_normal(len(batch)))


def test_steps_and_tokens_lie_on_the_hyperbola():
    S, E = LAW.steps(SWEEP), LAW.tokens(SWEEP)
    np.testing.assert_allclose((S / LAW.S_min - 1) * (E / LAW.E_min - 1), 1.0, rtol=1e-12)
    np.testing.assert_allclose(E, SWEEP * S, rtol=1e-12)
    np.testing.assert_allclose(LAW.batch_for(S), SWEEP, rtol=1e-12)
    assert LAW.batch_for(LAW.S_min) == np.inf


def test_the_critical_batch_costs_twice_the_least_of_both():
    assert LAW.steps(LAW.B_crit) == pytest.approx(2 * LAW.S_min)
    assert LAW.tokens(LAW.B_crit) == pytest.approx(2 * LAW.E_min)
    assert LAW.tokens(batch_with_overhead(LAW.B_crit, 0.2)) == pytest.approx(1.2 * LAW.E_min)


def test_adjusted_compute_and_steps_do_not_depend_on_the_batch():
    compute = 6e6 * LAW.tokens(SWEEP)
    np.testing.assert_allclose(least_compute(compute, SWEEP, LAW.B_crit), 6e6 * LAW.E_min, rtol=1e-12)
    np.testing.assert_allclose(least_steps(LAW.steps(SWEEP), SWEEP, LAW.B_crit), LAW.S_min, rtol=1e-12)


def test_the_published_critical_batch_doubles_for_each_fall_of_the_loss_by_an_eighth():
    # Kaplan et al. 2020, section 1.2: B_crit doubles for every 13% decrease of the loss; 1 to 2 million tokens at
    # convergence of their largest models (section 5.1)
    assert KAPLAN_BATCH.at(3.0 * 0.87) / KAPLAN_BATCH.at(3.0) == pytest.approx(2, rel=0.04)
    assert 1e6 < KAPLAN_BATCH.at(2.8) < 2e6


def test_the_noise_scale_is_unbiased_at_planted_gradients():
    rng = np.random.default_rng(0)
    G, sigma, small, large, rounds = np.full(50, 0.2), 1.5, 8, 64, 20_000
    norms = [((G + sigma / np.sqrt(B) * rng.standard_normal((rounds, 50))) ** 2).sum(1) for B in (small, large)]
    one = estimate_noise_scale(*norms, small, large)
    for estimate, truth in ((one.grad_squared, (G**2).sum()), (one.trace, 50 * sigma**2)):
        assert abs(estimate.mean() - truth) < 4 * estimate.std() / np.sqrt(rounds)
    whole = estimate_noise_scale(*(norm.mean() for norm in norms), small, large)
    assert whole.B_simple == pytest.approx(50 * sigma**2 / (G**2).sum(), rel=0.05)


def test_a_gradient_lost_in_noise_has_no_noise_scale():
    assert np.isnan(estimate_noise_scale(small=6.0, large=0.1, B_small=1, B_large=10).B_simple)


def test_a_planted_sweep_is_recovered():
    fit = fit_tradeoff(SWEEP, LAW.steps(SWEEP), bootstrap=0)
    assert fit["S_min"].value == pytest.approx(2000, rel=1e-6)
    assert fit["E_min"].value == pytest.approx(4e8, rel=1e-6) and not fit.notes


def test_intervals_of_the_critical_batch_hold_the_truth():
    studies, hits = 200, 0
    for seed in range(studies):
        low, high = fit_tradeoff(SWEEP, draw_steps(SWEEP, 0.05, seed), bootstrap=199, seed=seed)["B_crit"].interval
        hits += low <= LAW.B_crit <= high
    assert 0.95 - 3 * np.sqrt(0.95 * 0.05 / studies) <= hits / studies <= 0.99


def test_a_sweep_on_one_side_says_what_it_does_not_bound():
    small, large = np.geomspace(100, 5000, 6), np.geomspace(2e7, 1e9, 6)
    below = fit_tradeoff(small, draw_steps(small, 0.02, 1), bootstrap=300)
    above = fit_tradeoff(large, draw_steps(large, 0.02, 1), bootstrap=300)
    assert any("S_min is extrapolated" in note for note in below.notes)
    assert any("E_min is extrapolated" in note for note in above.notes)
    assert below["E_min"].value == pytest.approx(4e8, rel=0.1)
    assert above["S_min"].value == pytest.approx(2000, rel=0.1)


@pytest.mark.parametrize(("of", "x", "truth"), [
    ("loss", np.geomspace(2.2, 6, 7), lambda L: CriticalBatch(2e8, 0.21).at(L)),
    ("D", np.geomspace(1e9, 1e11, 7), lambda D: 30.0 * D**0.47),
])  # fmt: skip
def test_a_planted_growth_of_the_critical_batch_is_recovered_with_t_intervals(of, x, truth):
    exact = fit_critical_batch(x, truth(x), of=of)
    name, value = ("alpha_B", 0.21) if of == "loss" else ("a", 0.47)
    assert exact[name].value == pytest.approx(value, rel=1e-9)
    hits, studies = 0, 400
    for seed in range(studies):
        noisy = truth(x) * np.exp(0.1 * np.random.default_rng(seed).standard_normal(len(x)))
        low, high = fit_critical_batch(x, noisy, of=of)[name].interval
        hits += low <= value <= high
    assert abs(hits / studies - 0.95) < 3 * np.sqrt(0.95 * 0.05 / studies)


def test_weights_are_those_of_least_squares():
    x, B = np.array([1e9, 1e10, 1e11]), np.array([1e5, 2e5, 9e5])
    fit = fit_critical_batch(x, B, of="D", weight=[1.0, 4.0, 0.0])
    assert fit["a"].value == pytest.approx(np.log10(2)) and fit["a"].interval == (None, None)


def test_t_quantiles_are_those_of_scipy():
    for dof in (1, 2, 5, 30):
        assert t_quantile(0.95, dof) == pytest.approx(stats.t.ppf(0.975, dof), rel=1e-4)


@pytest.mark.parametrize(("batch", "steps", "what"), [
    ([1e5, 1e6], [10.0, 5.0], "give 3 or more"),
    ([1e5, 1e6, 1e7], [10.0, 5.0, np.inf], "missed the target"),
    ([1e5, 1e5, 1e5], [10.0, 11.0, 9.0], "two sizes"),
])  # fmt: skip
def test_a_sweep_that_is_none_is_misuse(batch, steps, what):
    with pytest.raises(MisuseError, match=what):
        fit_tradeoff(batch, steps)
