"""Laws against finite differences, direct minimisation and published arithmetic."""

import numpy as np
import pytest

from jaxscale.errors import MisuseError
from jaxscale.laws import (
    KAPLAN_2020,
    LAWS,
    MUENNIGHOFF_2023,
    SIX_ND,
    BrokenPower,
    Chinchilla,
    ChinchillaTied,
    FlopRule,
    Frontier,
    KaplanBare,
    KaplanData,
    KaplanSize,
    Law,
    LossLaw,
    PowerLaw,
    Rosenfeld,
    RosenfeldTransition,
    effective,
    find_law,
)

EPOCH = Chinchilla(E=1.817218099, A=477.825868, B=2143.417363, alpha=0.347310499, beta=0.367172433)
RULES = [SIX_ND, FlopRule(k=2.7, p=1.08)]


def test_gradient_equals_finite_differences():
    N, D, h = 7e7, 2e9, 1e-5
    dN, dD = EPOCH.gradient(N, D)
    assert dN * N == pytest.approx((EPOCH.loss(N * np.exp(h), D) - EPOCH.loss(N * np.exp(-h), D)) / (2 * h), rel=1e-8)
    assert dD * D == pytest.approx((EPOCH.loss(N, D * np.exp(h)) - EPOCH.loss(N, D * np.exp(-h))) / (2 * h), rel=1e-8)


@pytest.mark.parametrize("rule", RULES)
def test_optimum_is_the_lowest_loss_that_the_compute_buys(rule):
    C = 3e21
    best = EPOCH.optimum(C, rule)
    assert rule.flops(best.N, best.D) == pytest.approx(C, rel=1e-12)
    N = best.N * np.exp(np.linspace(-0.5, 0.5, 2001))
    losses = EPOCH.loss(N, rule.tokens(C, N))
    assert abs(np.log(N[np.argmin(losses)] / best.N)) < 1e-3
    assert losses.min() >= best.loss


@pytest.mark.parametrize("rule", RULES)
def test_exponents_and_coefficients_reproduce_the_optimum(rule):
    C = np.array([1e18, 1e22, 1e26])
    a, b = EPOCH.exponents(rule)
    log_G, log_H = EPOCH.log_coefficients(rule)
    np.testing.assert_allclose(np.exp(log_G) * C**a, EPOCH.optimum(C, rule).N, rtol=1e-12)
    np.testing.assert_allclose(np.exp(log_H) * C**b, EPOCH.optimum(C, rule).D, rtol=1e-12)


@pytest.mark.parametrize("rule", RULES)
def test_frontier_is_the_loss_at_the_optimum_and_inverts(rule):
    C = np.geomspace(1e17, 1e27, 11)
    frontier = EPOCH.frontier(rule)
    np.testing.assert_allclose(frontier.loss(C), EPOCH.optimum(C, rule).loss, rtol=1e-12)
    np.testing.assert_allclose(frontier.compute(frontier.loss(C)), C, rtol=1e-9)


def test_published_numbers_of_the_chinchilla_replication():
    # shared/data/README.md: a = .51390, and D/N = 17.92 at 5.76e23 FLOPs
    assert EPOCH.exponents()[0] == pytest.approx(0.51390, abs=5e-6)
    best = EPOCH.optimum(5.76e23)
    assert pytest.approx(17.92, abs=5e-3) == best.D / best.N


def test_llama3_token_law_at_its_flagship():
    # D = 0.299 C^0.537 at 3.8e25 FLOPs gives 16.3T tokens and 389B parameters (shared/data/README.md)
    D = PowerLaw(A=0.299, a=0.537).at(3.8e25)
    assert pytest.approx(16.3e12, rel=5e-3) == D
    assert SIX_ND.tokens(3.8e25, 1.0) / D == pytest.approx(389e9, rel=5e-3)


def test_loss_below_the_irreducible_one_needs_infinite_compute():
    assert LossLaw(E=1.8, A=100.0, alpha=0.1).compute(1.7) == np.inf


def test_arrays_of_parameters_are_many_laws():
    many = Chinchilla(*(np.array([v, v * 1.1]) for v in (1.8, 480.0, 2085.0, 0.34, 0.37)))
    assert many.optimum(1e21).N.shape == (2,)


def test_tokens_at_a_loss_give_that_loss_or_none():
    N = np.geomspace(1e6, 1e11, 7)
    D = EPOCH.tokens(2.2, N)
    reached = np.isfinite(D)
    assert reached.any() and not reached.all()
    np.testing.assert_allclose(EPOCH.loss(N[reached], D[reached]), 2.2, rtol=1e-12)


SURFACES = [
    EPOCH,
    ChinchillaTied(E=1.7, A=400.0, B=1500.0, gamma=0.35),
    KAPLAN_2020,
    Rosenfeld(E=1.5, alpha=0.03, beta=0.05),
    RosenfeldTransition(L0=11.0, eta=9.0, E=1.8, A=480.0, B=2085.0, alpha=0.34, beta=0.37),
    KaplanBare(alpha=0.8, beta=0.1),
]


@pytest.mark.parametrize("law", SURFACES, ids=lambda law: law.name)
def test_every_surface_has_the_gradient_of_finite_differences(law):
    N, D, h = 7e7, 2e9, 1e-6
    for i, slope in enumerate(law.gradient(N, D)):
        ends = [law.loss(*(x * np.exp(s * h) if j == i else x for j, x in enumerate((N, D)))) for s in (1, -1)]
        assert slope * (N, D)[i] == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=1e-6)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("law", SURFACES, ids=lambda law: law.name)
def test_closed_optimum_is_the_numerical_one(law, rule):
    C = np.array([1e19, 1e22])
    closed, numerical = law.optimum(C, rule), Law.optimum(law, C, rule)
    np.testing.assert_allclose(closed.N, numerical.N, rtol=1e-5)
    np.testing.assert_allclose(closed.loss, numerical.loss, rtol=1e-12)
    a, b = law.exponents(rule)
    log_G, log_H = law.log_coefficients(rule)
    np.testing.assert_allclose(np.exp(log_G) * C**a, closed.N, rtol=1e-9)
    np.testing.assert_allclose(np.exp(log_H) * C**b, closed.D, rtol=1e-9)


@pytest.mark.parametrize("law", SURFACES, ids=lambda law: law.name)
def test_frontier_is_the_loss_at_the_optimum_for_every_surface(law):
    C = np.array([1e18, 1e21, 1e25])
    closed, general = law.frontier(), Frontier(law, SIX_ND)
    np.testing.assert_allclose(closed.loss(C), law.optimum(C).loss, rtol=1e-12)
    np.testing.assert_allclose(general.loss(C), closed.loss(C), rtol=1e-12)
    np.testing.assert_allclose(general.compute(closed.loss(C)), C, rtol=1e-4)


def test_kaplans_bound_against_overfitting_is_the_published_one():
    # Kaplan et al. 2020, eq. 4.4: D >= 5e3 N^0.74 keeps the excess below .02, with their fitted constants
    N = np.array([1e6, 1e8, 1e10])
    np.testing.assert_allclose(KAPLAN_2020.tokens_without_overfitting(N), 5e3 * N**0.74, rtol=0.15)
    D = KAPLAN_2020.tokens_without_overfitting(N, excess=0.05)
    np.testing.assert_allclose(KAPLAN_2020.loss(N, D) / KAPLAN_2020.loss(N, 1e60), 1.05, rtol=1e-9)


def test_repetition_is_chinchilla_on_fresh_data_and_published_on_repeated():
    law = MUENNIGHOFF_2023
    U = 1e10
    N = 0.5 * law.size_for(U)
    assert law.loss(N, U, U) == pytest.approx(law.unlimited.loss(N, U), rel=1e-12)
    assert pytest.approx(law.size_for(U), rel=1e-9) == law.unlimited.optimum(6 * law.size_for(U) * U).N
    # endless repetition is worth R_D more passes, the paper's reading of R_D
    assert effective(1e6 * U, U, law.R_D) == pytest.approx(U * (1 + law.R_D), rel=1e-12)
    assert effective(4 * U, U, 1e9) == pytest.approx(4 * U, rel=1e-6)


def test_kaplans_single_variable_laws_give_one_nat_at_their_scale():
    for law, x in ((KaplanSize(8.8e13, 0.076), "params"), (KaplanData(5.4e13, 0.095), "tokens")):
        assert law.units["scale"] == x
        assert law.loss(law.scale) == 1.0
        assert law.inverse(law.loss(3e9)) == pytest.approx(3e9)


def test_broken_power_law_is_two_power_laws_far_from_its_break():
    law = BrokenPower(E=0.0, A=1e3, alpha=0.1, dalpha=0.15, Cb=1e15, f=0.3)
    for C, slope in ((1e5, 0.1), (1e25, 0.25)):
        assert np.log(law.loss(C) / law.loss(C * np.e)) == pytest.approx(slope, rel=1e-6)
    straight = BrokenPower(E=1.0, A=1e3, alpha=0.1, dalpha=0.0, Cb=1e15, f=0.3)
    assert straight.loss(1e12) == pytest.approx(LossLaw(1.0, 1e3, 0.1).loss(1e12))


def test_unknown_law_proposes_the_nearest():
    with pytest.raises(MisuseError, match="did you mean 'kaplan'"):
        find_law("kaplen")
    assert all(LAWS[name].name == name for name in LAWS)
