"""The batched optimizer against other people's draws: the published bootstrap, and scipy's optimum of a round."""

import numpy as np
import pytest
from planted import LAW, draw_grid

from jaxscale.fit.cells import gather_cells
from jaxscale.fit.design import Problem, build_design, residuals
from jaxscale.fit.newton import BLOCK
from jaxscale.fit.parametric import fit_parametric
from jaxscale.fit.solver import Lanes, polish
from jaxscale.source import read_observations

COLUMNS = {"N": "n_params", "D": "d_tokens", "C": "c_train_flop", "loss": "loss_nats_per_token"}
PUBLISHED_ERRORS = {"A": 124.49, "B": 1293.2, "E": 0.02566, "alpha": 0.01540, "beta": 0.02059}
PUBLISHED_INTERVALS = {"A": (286.1, 743.6), "B": (1042.4, 5810.4), "E": (1.7694, 1.8712),
                       "alpha": (0.3168, 0.3733), "beta": (0.3313, 0.4154)}  # fmt: skip
ROUNDS, DELTA = 4000, 1e-3


@pytest.fixture(scope="module")
def published(shared_data):
    """The 4000 rounds of Besiroglu et al. 2024: rows drawn by numpy's legacy generator at seed 42."""
    path = shared_data / "epoch_chinchilla" / "epoch_chinchilla_245.csv"
    obs = read_observations(path, columns=COLUMNS, where="excluded_in_published_fit == 0")
    cells = gather_cells(obs)
    place = {cell: i for i, cell in enumerate(zip(cells.N, cells.D, strict=True))}
    cell_of_row = np.array([place[row] for row in zip(obs.frame["N"], obs.frame["D"], strict=True)])
    drawn = cell_of_row[np.random.RandomState(42).choice(240, (ROUNDS, 240))]
    counts = np.stack([np.bincount(row, minlength=240) for row in drawn]).astype(float)
    design = build_design(cells.N, cells.D, {})
    fit = fit_parametric(obs, delta=DELTA, bootstrap=0)
    theta = design.theta_of({name: np.full(ROUNDS, value) for name, value in fit.params.items()})
    y = np.log(cells.loss)
    found = polish(design.problem, Lanes(theta, np.tile(y, (ROUNDS, 1)), counts), DELTA, start_delta=0.01)
    return design, y, counts, found


def test_the_published_bootstrap_is_reproduced_draw_by_draw(published):
    design, _, _, found = published
    draws = design.params_of(found.theta)
    for name, error in PUBLISHED_ERRORS.items():
        assert np.std(draws[name], ddof=1) == pytest.approx(error, rel=5e-4), name
        ends = np.quantile(draws[name], [0.025, 0.975])
        np.testing.assert_allclose(ends, PUBLISHED_INTERVALS[name], rtol=2e-4)


def test_no_start_of_scipy_ends_below_a_round(published):
    optimize = pytest.importorskip("scipy.optimize")
    design, y, counts, found = published

    def objective(theta, w):
        r = residuals(design.problem, theta, y)
        m, psi = np.minimum(np.abs(r), DELTA), w * np.clip(r, -DELTA, DELTA)
        return (w * m * (np.abs(r) - m / 2)).sum() / DELTA**2, -psi @ design.jacobian(theta) / DELTA**2

    for i in [int(np.argmax(found.theta[:, 1])), *range(7)]:  # the largest B, then the first rounds
        ours = objective(found.theta[i], counts[i])[0]
        for start in found.theta[[i, i + 100, i + 200]]:
            theirs = optimize.minimize(objective, start, args=(counts[i],), jac=True, method="L-BFGS-B")
            assert ours <= theirs.fun * (1 + 1e-9)


@pytest.fixture(scope="module")
def planted_lanes():
    """48 rounds of a planted grid with 2% noise, from its true law: 48 fits for 16 to 256 slots."""
    grid = draw_grid(noise=0.02, seed=4)
    design = build_design(grid["N"].to_numpy(), grid["D"].to_numpy(), {})
    truth = {name: np.full(48, getattr(LAW, name)) for name in LAW.param_names()}
    theta = design.theta_of(truth)
    y = np.log(grid["loss"].to_numpy()) + 0.01 * np.random.default_rng(0).standard_normal((48, len(grid)))
    return design, Lanes(theta, y, np.ones_like(y))


def test_a_fit_does_not_depend_on_the_fits_in_its_queue(planted_lanes):
    design, lanes = planted_lanes
    together = polish(design.problem, lanes, 0.01, tolerance=1e-9)
    alone = polish(design.problem, Lanes(*(part[7:8] for part in lanes)), 0.01)
    np.testing.assert_allclose(together.theta[7], alone.theta[0], rtol=1e-7)
    assert np.linalg.norm(together.gradient, axis=1).max() <= 1e-9


def test_rows_in_blocks_give_the_optimum_of_their_weights(planted_lanes):
    design, lanes = planted_lanes
    times = 2 * BLOCK // lanes.y.shape[1] + 1  # more than two blocks of rows
    many = Problem(np.tile(design.problem.Z, (1, times, 1)), np.tile(design.problem.offset, (1, times)))
    few = Lanes(*(part[:3] for part in lanes))
    repeated = polish(many, few._replace(y=np.tile(few.y, times), w=np.tile(few.w, times)), 0.01)
    weighted = polish(design.problem, few._replace(w=times * few.w), 0.01)
    np.testing.assert_allclose(repeated.theta, weighted.theta, rtol=1e-7)
    np.testing.assert_allclose(repeated.hessian, weighted.hessian, rtol=1e-5, atol=1e-6)
