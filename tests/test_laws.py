"""Laws against finite differences, direct minimisation and published arithmetic."""

import numpy as np
import pytest

from jaxscale.laws import SIX_ND, Chinchilla, FlopRule, LossLaw, PowerLaw

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
