"""Approach 3: published optima, planted laws, a reference optimizer, what cannot be determined."""

import numpy as np
import pytest
from planted import LAW, draw_grid

from jaxscale.errors import MisuseError
from jaxscale.fit import fit_parametric
from jaxscale.fit.design import build_design, residuals
from jaxscale.fit.summary import percentile_interval
from jaxscale.source import read_observations

EPOCH_COLUMNS = {"N": "n_params", "D": "d_tokens", "C": "c_train_flop", "loss": "loss_nats_per_token"}
PUBLISHED = {
    "huber": {"A": 477.825868, "B": 2143.417363, "E": 1.817218099, "alpha": 0.347310499, "beta": 0.367172433},
    "lad": {"A": 482.0061, "B": 2085.4362, "E": 1.816864, "alpha": 0.347813, "beta": 0.365854},
}


@pytest.fixture(scope="module")
def epoch(shared_data):
    path = shared_data / "epoch_chinchilla" / "epoch_chinchilla_245.csv"
    return read_observations(path, columns=EPOCH_COLUMNS, where="excluded_in_published_fit == 0")


@pytest.mark.parametrize("objective", ["huber", "lad"])
def test_chinchilla_replication_is_reproduced(epoch, objective):
    delta = 1e-3 if objective == "huber" else "auto"
    fit = fit_parametric(epoch, objective=objective, delta=delta, bootstrap=0)
    for name, value in PUBLISHED[objective].items():
        assert fit.params[name] == pytest.approx(value, rel=1e-6), name
    if objective == "huber":
        assert fit.objective["value"] == pytest.approx(0.0010182740178006, rel=1e-12)
        assert fit.objective["gradient_norm"] < 1e-8
        assert fit.diagnostics["starts_at_optimum"] == 1.0
    else:
        assert fit.objective["gradient_norm"] == fit.objective["subgradient_residual"] < 1e-8


def test_pair_bootstrap_reproduces_the_published_standard_errors(epoch):
    fit = fit_parametric(epoch, delta=1e-3, resample="pairs", bootstrap=1000, seed=1)
    assert fit.diagnostics["bootstrap_converged"] == 1.0
    # 4000 rounds give these; a deviation from 1000 rounds has a relative error of a few percent
    for name, error in {"A": 124.49, "E": 0.02566, "alpha": 0.01540, "beta": 0.02059}.items():
        assert fit.std_errors[name] == pytest.approx(error, rel=0.12), name
    for name, ends in {"E": (1.7694, 1.8712), "alpha": (0.3168, 0.3733), "beta": (0.3313, 0.4154)}.items():
        np.testing.assert_allclose(fit.intervals[name], ends, rtol=0.03)


def test_all_245_points_move_B_sixfold(shared_data):
    path = shared_data / "epoch_chinchilla" / "epoch_chinchilla_245.csv"
    fit = fit_parametric(read_observations(path, columns=EPOCH_COLUMNS), delta=1e-3, bootstrap=0)
    for name, value in {"A": 495.7, "B": 12846, "E": 1.8913, "alpha": 0.3493, "beta": 0.4530}.items():
        assert fit.params[name] == pytest.approx(value, rel=2e-4), name


@pytest.mark.parametrize("objective", ["huber", "lad", "squares"])
def test_planted_law_is_recovered_exactly(objective):
    fit = fit_parametric(draw_grid(), objective=objective, bootstrap=0)
    for name in ("E", "A", "B", "alpha", "beta"):
        assert fit.params[name] == pytest.approx(getattr(LAW, name), rel=1e-5), name
    assert fit.exponents["N"].value == pytest.approx(LAW.exponents()[0], rel=1e-6)
    assert fit.predict_loss(1e9, 2e10) == pytest.approx(LAW.loss(1e9, 2e10), rel=1e-8)


def test_squares_equals_scipy_least_squares():
    optimize = pytest.importorskip("scipy.optimize")
    frame = draw_grid(noise=0.01, seed=4)
    fit = fit_parametric(frame, objective="squares", bootstrap=0)
    design = build_design(frame["N"].to_numpy(), frame["D"].to_numpy(), {})
    y = np.log(frame["loss"].to_numpy())
    start = design.theta_of({name: np.array([getattr(LAW, name)]) for name in LAW.param_names()})[0]
    reference = optimize.least_squares(
        lambda t: residuals(design.problem, t, y), start, jac=lambda t: -design.jacobian(t), xtol=1e-15,
        ftol=1e-15, gtol=1e-15,
    )  # fmt: skip
    assert fit.objective["value"] == pytest.approx(reference.cost, rel=1e-10)
    for name, value in design.params_of(reference.x[None]).items():
        assert fit.params[name] == pytest.approx(value[0], rel=1e-5)


def test_weights_count_as_repeated_rows():
    frame = draw_grid(noise=0.01)
    twice = frame.assign(weight=1.0 + (np.arange(len(frame)) % 2))
    extra = frame.iloc[1::2].assign(N=lambda f: f["N"] * (1 + 1e-13))
    import pandas as pd

    rows = fit_parametric(pd.concat([frame, extra]), objective="squares", bootstrap=0)
    assert fit_parametric(twice, objective="squares", bootstrap=0).params == pytest.approx(rows.params, rel=1e-6)


@pytest.mark.parametrize("by", [0.5, 1e-6, 1e6])
def test_weights_are_relative(by):
    frame = draw_grid(noise=0.01).assign(weight=np.tile([1.0, 2.0], 14))
    one, other = (fit_parametric(f, bootstrap=32) for f in (frame, frame.assign(weight=by * frame["weight"])))
    assert other.params == pytest.approx(one.params, rel=1e-9)
    assert other.noise["residual_std"] == pytest.approx(one.noise["residual_std"], rel=1e-9)
    assert other.exponents["N"].interval == pytest.approx(one.exponents["N"].interval, rel=1e-7)


def test_order_and_units_do_not_matter():
    frame = draw_grid(noise=0.01)
    fit = fit_parametric(frame, bootstrap=0)
    other = fit_parametric(frame.sample(frac=1, random_state=0), bootstrap=0)
    assert other.params == pytest.approx(fit.params, rel=1e-9)
    millions = fit_parametric(frame.assign(N=frame["N"] / 1e6), bootstrap=0)
    assert millions.params["alpha"] == pytest.approx(fit.params["alpha"], rel=1e-7)
    assert millions.params["A"] * 1e6 ** fit.params["alpha"] == pytest.approx(fit.params["A"], rel=1e-5)


def test_fixed_parameters_stay_and_the_rest_is_optimal():
    frame = draw_grid(noise=0.005)
    for fix in ({"E": 1.7}, {"alpha": 0.34, "beta": 0.34}, {"A": 480.0}, {"E": 0.0}):
        fit = fit_parametric(frame, fix=fix, bootstrap=20)
        assert {name: fit.params[name] for name in fix} == pytest.approx(fix)
        assert fit.objective["gradient_norm"] < 1e-8
    free, held = (fit_parametric(frame, objective="squares", bootstrap=0, fix=f) for f in (None, {"E": 1.7}))
    assert free.objective["value"] <= held.objective["value"]


def test_no_irreducible_loss_ends_at_zero_and_says_so():
    from jaxscale.laws import Chinchilla

    fit = fit_parametric(draw_grid(law=Chinchilla(0.0, 480.0, 2085.0, 0.34, 0.37)), bootstrap=0)
    assert fit.params["E"] < 1e-4 and fit.params["alpha"] == pytest.approx(0.34, rel=1e-4)
    assert any("E ends at 0" in note for note in fit.notes)


def test_auto_delta_is_the_efficient_multiple_of_the_noise_and_shrugs_off_outliers():
    frame = draw_grid(budgets=6, sizes=9, noise=0.01)
    fit = fit_parametric(frame, bootstrap=0)
    assert fit.objective["delta"] == pytest.approx(1.345 * 0.01, rel=0.3)
    spoiled = frame["loss"].where(frame.index % 11 != 5, frame["loss"] * 1.3)
    robust, fragile = (
        fit_parametric(frame.assign(loss=spoiled), objective=o, bootstrap=0) for o in ("huber", "squares")
    )
    truth = LAW.exponents()[0]
    assert abs(robust.exponents["N"].value - truth) < abs(fragile.exponents["N"].value - truth)


def test_least_absolute_deviations_end_at_a_proven_vertex():
    # the cells nearest to the smooth fit are not those of the optimum: seven in ten of these stopped beside it
    for seed in range(10):
        fit = fit_parametric(draw_grid(noise=0.005, budgets=5, sizes=7, seed=seed), objective="lad", bootstrap=0)
        assert fit.objective["gradient_norm"] < 1e-6


def test_what_cannot_be_determined_is_a_verdict():
    frame = draw_grid()
    assert "every loss is 3" in fit_parametric(frame.assign(loss=3.0)).verdict
    assert "values of N cannot determine" in fit_parametric(frame.assign(N=1e8)).verdict
    assert "5 cells for 5 free parameters" in fit_parametric(frame.head(5)).verdict


def test_a_loss_that_rises_with_size_is_a_verdict_and_no_exponent():
    frame = draw_grid(noise=0.002)
    accuracy = fit_parametric(frame.assign(loss=1 - frame["loss"] / 5), bootstrap=32)
    assert accuracy.verdict and accuracy.exponents is None
    no_D = fit_parametric(frame.assign(loss=1.7 + 400 / frame["N"] ** 0.34), bootstrap=0)
    assert "no size is optimal" in no_D.verdict and "beta" in no_D.verdict


def test_a_law_that_misses_and_a_search_that_does_not_end_are_said():
    frame = draw_grid(noise=0.002)
    fit = fit_parametric(frame.assign(loss=1 - frame["loss"] / 5), law="kaplan", bootstrap=0)
    assert any("the law misses the data" in note for note in fit.notes)
    assert (fit.objective["gradient_norm"] > 1e-6) == any("no optimum was reached" in note for note in fit.notes)
    fits = [fit_parametric(frame, law=law, bootstrap=0) for law in ("chinchilla", "kaplan")]
    assert not any(word in " ".join(fit.notes) for fit in fits for word in ("misses the data", "no optimum"))


def test_exponents_of_rounds_without_an_optimum_stay_out_of_the_interval():
    fit = fit_parametric(draw_grid(budgets=1, sizes=7, noise=0.005, seed=3), bootstrap=200)
    lost = np.minimum(fit.draws["alpha"], fit.draws["beta"]) <= 0
    assert lost.any() and fit.verdict is None
    low, high = fit.exponents["N"].interval
    assert 0 < low < high < 1


def test_a_count_of_flops_other_than_the_rule_is_said():
    frame = draw_grid(noise=0.002)
    assert not any("differ by up to" in note for note in fit_parametric(frame, bootstrap=0).notes)
    fit = fit_parametric(frame.assign(C=1.3 * frame["C"]), bootstrap=0)
    assert any("C of the table and 6 N D differ by up to 23%" in note for note in fit.notes)


def test_misuse_is_one_sentence():
    wrong = [{"law": "kaplen"}, {"objective": "mae"}, {"delta": -1.0}, {"delta": "1e-3"}]
    wrong += [{"fix": {"C": 1.0}}, {"fix": {"A": 0.0}}, {"fix": dict.fromkeys(LAW.param_names(), 1.0)}]
    for options in wrong:
        with pytest.raises(MisuseError):
            fit_parametric(draw_grid(), **options)


def test_the_callers_jax_precision_is_left_alone():
    import jax.numpy as jnp

    fit_parametric(draw_grid(), bootstrap=0)
    assert jnp.ones(1).dtype == jnp.float32


def test_intervals_cover_the_planted_law():
    # seeds 0-999 covered a in 94.7% and the loss in 94.3%, each within .7% of 95%
    studies, hits, C = 200, np.zeros(2), 2.7e20  # ten times the largest budget
    for seed in range(studies):
        fit = fit_parametric(draw_grid(noise=0.005, seed=seed), bootstrap=192, seed=seed)
        low, high = fit.exponents["N"].interval
        loss = percentile_interval(fit.sample_optimum(C).loss, 0.95)
        hits += [low < LAW.exponents()[0] < high, loss[0] < LAW.optimum(C).loss < loss[1]]
    # 95% of 200 is 190 with a binomial deviation of 3.1: three of them below
    assert (hits >= 190 - 9).all(), hits / studies


def test_rounds_without_an_optimum_are_said_and_warn_of_nothing():
    frame = draw_grid(budgets=1, sizes=6, noise=0.004)  # one budget: alpha and beta are hardly determined
    fit = fit_parametric(frame, bootstrap=64)
    assert any("have no optimum" in note for note in fit.notes) == (min(*fit.draws["alpha"], *fit.draws["beta"]) <= 0)
    fit_parametric(frame.assign(loss=frame["loss"].where(frame.index != 2, 1e30)), bootstrap=64)
