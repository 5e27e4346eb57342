"""Constrained allocations against closed forms, Lagrange's conditions, dense grids, duality and a published example."""

import numpy as np
import pytest

from jaxscale.allocate import Limits, Repeated, lowest_loss, lowest_spend, repeat_data
from jaxscale.errors import MisuseError
from jaxscale.laws import (
    KAPLAN_2020,
    MUENNIGHOFF_2023,
    SIX_ND,
    BrokenPower,
    Chinchilla,
    ChinchillaTied,
    FlopRule,
    RosenfeldTransition,
)

EPOCH = Chinchilla(E=1.8172, A=482.01, B=2085.43, alpha=0.3478, beta=0.3658)
LAWS = [
    EPOCH,
    ChinchillaTied(E=1.7, A=400.0, B=1500.0, gamma=0.35),
    KAPLAN_2020,
    RosenfeldTransition(L0=10.0, eta=3.0, E=0.5, A=200.0, B=800.0, alpha=0.3, beta=0.3),
]
RULES = [SIX_ND, FlopRule(k=2.7, p=1.08)]
NAMES = [law.name for law in LAWS]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("law", LAWS, ids=NAMES)
def test_a_cap_above_the_optimum_does_not_bind(law, rule):
    free = law.optimum(1e22, rule)
    for limits in (Limits(max_params=2 * free.N), Limits(max_tokens=2 * free.D), Limits(max_train_flops=2e22)):
        plan = lowest_loss(law, 1e22, limits, rule)
        assert pytest.approx(free.N, rel=1e-6) == plan.N
        assert plan.loss == pytest.approx(free.loss, rel=1e-13)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("law", LAWS, ids=NAMES)
def test_a_binding_cap_is_met_and_all_flops_are_spent(law, rule):
    free = law.optimum(1e22, rule)
    capped = lowest_loss(law, 1e22, Limits(max_params=free.N / 5), rule)
    assert pytest.approx(free.N / 5, rel=1e-12) == capped.N
    assert pytest.approx(rule.tokens(1e22, free.N / 5), rel=1e-12) == capped.D
    few = lowest_loss(law, 1e22, Limits(max_tokens=free.D / 5), rule)
    assert pytest.approx(free.D / 5, rel=1e-9) == few.D
    assert pytest.approx(rule.params(1e22, free.D / 5), rel=1e-9) == few.N
    late = lowest_loss(law, 1e22, Limits(max_train_flops=1e21), rule)
    assert pytest.approx(law.optimum(1e21, rule).N, rel=1e-6) == late.N


@pytest.mark.parametrize("ratio", [1.0, 3.0])
@pytest.mark.parametrize("law", LAWS, ids=NAMES)
def test_lagrange_conditions_hold_where_tokens_are_served(law, ratio):
    limits = Limits(served_tokens=3e11, serving_ratio=ratio)
    plan = lowest_loss(law, 1e22, limits)
    assert limits.lifetime_flops(plan.N, plan.D) == pytest.approx(1e22, rel=1e-12)
    dN, dD = law.gradient(plan.N, plan.D)
    # spend = 6 N D + 2 r N T: the loss a FLOP buys is the same through N and through D
    through_N = dN / (6 * plan.D + 2 * ratio * 3e11)
    assert through_N == pytest.approx(dD / (6 * plan.N), rel=1e-5)
    cheap = lowest_spend(law, float(plan.loss), limits)
    dN, dD = law.gradient(cheap.N, cheap.D)
    assert dN / (6 * cheap.D + 2 * ratio * 3e11) == pytest.approx(dD / (6 * cheap.N), rel=1e-5)


DUALS = {
    "free": Limits(),
    "served": Limits(served_tokens=5e11, serving_ratio=2.0),
    "capped": Limits(max_params=1e9),
    "served and capped": Limits(served_tokens=1e11, max_params=2e9),
    "few tokens": Limits(max_tokens=6e10),
}


@pytest.mark.parametrize("name", DUALS)
@pytest.mark.parametrize("law", [EPOCH, KAPLAN_2020, repeat_data(EPOCH, 2e10, 15.4, 5.3)], ids=lambda law: law.name)
def test_the_cheapest_way_to_the_best_loss_is_the_budget(law, name):
    limits, C = DUALS[name], 5e21
    best = lowest_loss(law, C, limits)
    cheapest = lowest_spend(law, float(best.loss), limits)
    assert limits.lifetime_flops(cheapest.N, cheapest.D) == pytest.approx(C, rel=1e-6)
    assert pytest.approx(best.N, rel=1e-3) == cheapest.N


def test_sardanas_first_figure():
    # Sardana et al. 2024 (arXiv 2401.00448), figure 1: at the quality of a 13B Chinchilla-optimal model and 2T
    # tokens served, a 7B model saves 1.7e22 FLOPs, 17%. Coefficients: E 1.69, A 406.4, B 410.7, and alpha .336,
    # beta .283 of the source of Hoffmann et al. (the printed .34 and .28 are rounded and give 10%)
    law = Chinchilla(E=1.69, A=406.4, B=410.7, alpha=0.336, beta=0.283)
    N = 13e9
    D = (law.beta * law.B * N**law.alpha / (law.alpha * law.A)) ** (1 / law.beta)
    served = Limits(served_tokens=2e12)
    plan = lowest_spend(law, law.loss(N, D), served)
    before, after = served.lifetime_flops(N, D), served.lifetime_flops(plan.N, plan.D)
    assert pytest.approx(7e9, rel=0.01) == plan.N
    assert before - after == pytest.approx(1.7e22, rel=0.01)
    assert 1 - after / before == pytest.approx(0.17, abs=0.005)


def test_serving_next_to_nothing_is_training_alone():
    free = EPOCH.optimum(1e22)
    assert pytest.approx(free.N, rel=1e-6) == lowest_loss(EPOCH, 1e22, Limits(served_tokens=1.0)).N
    assert pytest.approx(free.N, rel=1e-6) == lowest_spend(EPOCH, float(free.loss), Limits(served_tokens=1.0)).N


def test_more_served_tokens_mean_smaller_models_and_more_training():
    plans = [lowest_spend(EPOCH, 2.1, Limits(served_tokens=T)) for T in (0.0, 1e11, 1e12, 1e13)]
    assert np.all(np.diff([float(plan.N) for plan in plans]) < 0)
    assert np.all(np.diff([float(plan.D) for plan in plans]) > 0)


def test_a_deadline_binds_on_the_way_to_the_cheapest_lifetime():
    served = Limits(served_tokens=2e12)
    quickest, cheapest = (lowest_spend(EPOCH, 2.1, limits) for limits in (Limits(), served))
    between = np.sqrt(SIX_ND.flops(quickest.N, quickest.D) * SIX_ND.flops(cheapest.N, cheapest.D))
    plan = lowest_spend(EPOCH, 2.1, Limits(served_tokens=2e12, max_train_flops=between))
    assert SIX_ND.flops(plan.N, plan.D) == pytest.approx(between, rel=1e-9)
    assert cheapest.N < plan.N < quickest.N
    assert np.isnan(lowest_spend(EPOCH, 2.1, Limits(max_train_flops=0.9 * SIX_ND.flops(quickest.N, quickest.D))).N)


def test_unique_data_without_end_are_fresh_data():
    free = EPOCH.optimum(1e22)
    plan = lowest_loss(repeat_data(EPOCH, 1e18, 15.4, 5.3), 1e22)
    assert pytest.approx(free.N, rel=1e-6) == plan.N
    assert plan.loss == pytest.approx(free.loss, rel=1e-12)


@pytest.mark.parametrize("U", [1e9, 1e10, 4e10])
def test_the_plan_on_repeated_data_is_the_lowest_of_a_dense_grid(U):
    law = repeat_data(EPOCH, U, 15.4, 5.3)
    plan = lowest_loss(law, 3e21)
    N = plan.N * np.geomspace(0.2, 5, 40_001)
    losses = law.loss(N, SIX_ND.tokens(3e21, N))
    assert plan.loss <= losses.min() + 1e-12
    assert N[np.argmin(losses)] == pytest.approx(plan.N, rel=1e-3)


def test_repetition_of_a_law_is_muennighoffs_law():
    law, N, D, U = MUENNIGHOFF_2023, np.array([1e8, 2.8e9, 6e10]), 4.4e10, 4.4e9
    repeated = repeat_data(law.unlimited, U, law.R_D, law.R_N)
    np.testing.assert_allclose(repeated.loss(N, D), law.loss(N, D, U), rtol=1e-14)


def test_little_data_are_best_used_for_more_epochs_rather_than_more_parameters():
    # Muennighoff et al. 2023, section 5: with 25B unique tokens at 9.3e21 FLOPs fewer parameters and more epochs
    # than the unlimited law says (8.9B on 174B tokens) give a lower loss
    law = MUENNIGHOFF_2023
    free = law.unlimited.optimum(9.3e21)
    plan = lowest_loss(repeat_data(law.unlimited, 25e9, law.R_D, law.R_N), 9.3e21)
    assert plan.N < 0.8 * free.N and plan.D / 25e9 > free.D / 25e9 > 1
    assert plan.loss < law.loss(free.N, free.D, 25e9)


def test_tokens_to_a_loss_on_repeated_data_give_that_loss_or_none():
    law = repeat_data(EPOCH, 1e10, 15.4, 5.3)
    plan = lowest_spend(law, 2.4, Limits(served_tokens=1e12))
    assert law.loss(plan.N, plan.D) == pytest.approx(2.4, rel=1e-12)
    assert np.isnan(lowest_spend(law, 1.9).N)  # what 1e10 tokens can never teach


def test_units_do_not_matter():
    # N in millions, D in billions: A, B, k and the price of serving change, the plan does not
    scaled = Chinchilla(EPOCH.E, EPOCH.A * 1e-6**EPOCH.alpha, EPOCH.B * 1e-9**EPOCH.beta, EPOCH.alpha, EPOCH.beta)
    rule, served = FlopRule(k=6e15), Limits(served_tokens=1e11)
    units = Limits(served_tokens=1e2, serving_ratio=1e15)
    plain, other = lowest_loss(EPOCH, 1e22, served), lowest_loss(scaled, 1e22, units, rule)
    assert pytest.approx(plain.N, rel=1e-6) == other.N * 1e6
    assert pytest.approx(plain.D, rel=1e-6) == other.D * 1e9
    assert other.loss == pytest.approx(plain.loss, rel=1e-12)


@pytest.mark.parametrize("kind", ["loss", "spend"])
@pytest.mark.parametrize("repeats", [False, True])
def test_rounds_at_once_are_rounds_one_by_one(kind, repeats):
    rng = np.random.default_rng(0)
    values = {name: value * np.exp(0.01 * rng.standard_normal(7)) for name, value in EPOCH.params.items()}
    limits = Limits(served_tokens=1e12, max_params=5e9, max_train_flops=8e21)

    def solve(law):
        law = repeat_data(law, 3e10, 15.4, 5.3) if repeats else law
        return lowest_loss(law, 3e22, limits) if kind == "loss" else lowest_spend(law, 2.35, limits)

    together = solve(Chinchilla(**values))
    alone = [solve(Chinchilla(**{name: float(v[i]) for name, v in values.items()})) for i in range(7)]
    np.testing.assert_allclose(together.N, [float(plan.N) for plan in alone], rtol=1e-6)
    np.testing.assert_allclose(together.loss, [float(plan.loss) for plan in alone], rtol=1e-12)


def test_a_law_without_a_sum_refuses_repetition_in_words():
    with pytest.raises(MisuseError, match="no rule for repeated data; use max_tokens"):
        repeat_data(BrokenPower(1.0, 2.0, 0.1, 0.1, 1e20, 0.3), 1e9, 15.4, 5.3)
    assert isinstance(repeat_data(KAPLAN_2020, 1e9, 15.4, 5.3), Repeated)
