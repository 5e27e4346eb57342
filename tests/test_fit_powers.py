"""The reading of two powers: exact on Chinchilla's law, a parabola in its limit, local where a law misfits."""

import numpy as np
import pytest
from planted import LAW, draw_grid

from jaxscale.fit.cells import gather_cells
from jaxscale.fit.curves import split_curves
from jaxscale.fit.minima import minimum_parabola
from jaxscale.fit.powers import EXPONENT_SUM, fit_shape, minimum_powers, powers_hat, soften, value_powers
from jaxscale.laws import Chinchilla


def law_of(delta, total=EXPONENT_SUM):
    return Chinchilla(E=1.7, A=400.0, B=2000.0, alpha=(total - delta) / 2, beta=(total + delta) / 2)


@pytest.mark.parametrize("delta", [-0.3, 0.0, 0.25])
def test_a_curve_of_chinchillas_law_is_read_exactly(delta):
    law = law_of(delta)
    curves = split_curves(gather_cells(draw_grid(span=10.0, law=law)))
    for curve in curves:
        x, loss = minimum_powers(curve, curve.loss[None], delta)
        assert np.exp(x[0]) == pytest.approx(law.optimum(curve.C).N, rel=1e-9)
        assert loss[0] == pytest.approx(law.optimum(curve.C).loss, rel=1e-12)
        np.testing.assert_allclose(value_powers(curve, delta, curve.x), curve.loss, rtol=1e-12)
        np.testing.assert_allclose(powers_hat(curve, delta) @ curve.loss, curve.loss, rtol=1e-10)


@pytest.mark.parametrize("delta", [-0.3, 0.25])
def test_the_skew_is_found_without_noise_and_leans_to_its_assumption_with_noise(delta):
    law = law_of(delta)
    quiet = fit_shape(split_curves(gather_cells(draw_grid(span=10.0, law=law, noise=1e-4))))
    assert quiet.delta == pytest.approx(delta, abs=0.02)
    noisy = fit_shape(split_curves(gather_cells(draw_grid(span=3.0, law=law, noise=0.05))))
    assert abs(noisy.delta) < 0.2


def test_an_exponent_of_zero_is_no_singularity():
    curve = split_curves(gather_cells(draw_grid()))[0]
    near, at = (minimum_powers(curve, curve.loss[None], d)[0][0] for d in (EXPONENT_SUM - 1e-4, EXPONENT_SUM))
    assert at == pytest.approx(near, abs=1e-4)


def test_close_to_the_minimum_two_powers_are_a_parabola():
    curve = split_curves(gather_cells(draw_grid(span=1.05)))[0]
    parabola = minimum_parabola(curve, slice(0, len(curve.x)), curve.loss[None])[0][0]
    assert minimum_powers(curve, curve.loss[None], 0.0)[0][0] == pytest.approx(parabola, abs=1e-4)


def test_no_misfit_is_found_in_noise_and_one_is_where_the_walls_are_another_law():
    found = [fit_shape(split_curves(gather_cells(draw_grid(budgets=5, noise=0.005, seed=s)))).rho for s in range(40)]
    assert np.mean(np.array(found) > 0) < 0.15
    frame = draw_grid(budgets=5, sizes=13, span=10.0, noise=0.001)
    t = np.log(frame["N"] / frame["budget"].map(lambda C: LAW.optimum(C).N))
    walled = frame.assign(loss=frame["loss"] * np.exp(0.05 * np.abs(t) ** 5 / 10))
    curves = split_curves(gather_cells(walled))
    shape = fit_shape(curves)
    assert shape.rho > 0
    soft = soften(curves[0], shape.rho)
    assert soft.weight.argmax() == np.argmin(curves[0].loss) and soft.weight.min() < 0.01


def test_rounds_without_a_minimum_end_at_the_lower_end_of_the_sizes():
    curve = split_curves(gather_cells(draw_grid()))[0]
    falling = np.linspace(4.0, 3.0, len(curve.x)) - 0.1 * np.linspace(-1, 1, len(curve.x)) ** 2
    assert minimum_powers(curve, falling[None], 0.0)[0][0] == curve.x[-1]


def test_seeds_enter_the_noise():
    cells = gather_cells(draw_grid(noise=0.01, seeds=3))
    shape = fit_shape(split_curves(cells), cells.seed_ss.sum(), cells.seed_dof.sum())
    assert shape.sigma == pytest.approx(0.01, rel=0.25)


def test_two_budgets_leave_the_odds_of_a_floor_as_they_were():
    from jaxscale.fit.frontier import average_loss_laws

    C, rng = np.array([1e18, 3e18]), np.random.default_rng(0)
    point, drawn, none = average_loss_laws(C, np.array([3.5, 3.2]), np.full(2, 1e-5), 10.0, 400, rng)
    assert none == pytest.approx(0.5, abs=0.02)
    assert point.E[0] == pytest.approx(0.25 * 3.2, rel=0.05)  # half of the odds on 0, half spread up to the lowest loss
    assert np.mean(drawn.E == 0) == pytest.approx(0.5, abs=0.08)
