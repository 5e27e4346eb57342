"""The noise of strata: closed forms of its effective degrees of freedom, and errors as large as each stratum's own."""

import numpy as np
import pytest

from jaxscale.fit.resample import NoiseModel, draw_errors


def make_model(scales, cells=50, prior_dof=1.0):
    stratum = np.repeat(np.arange(len(scales)), cells)
    residual = np.tile([1.0, -1.0], len(stratum) // 2) * np.asarray(scales)[stratum]
    zero, dof = np.zeros(len(scales)), np.full(len(scales), float(cells))
    ones = np.ones(len(stratum))
    return NoiseModel(residual, 0 * ones, ones, stratum, np.arange(len(stratum)), dof, zero, zero, prior_dof=prior_dof)


def test_equal_strata_keep_all_degrees_of_freedom():
    model = make_model([0.01, 0.01, 0.01])
    assert model.effective_dof == pytest.approx(model.total_dof) == pytest.approx(150.0)


def test_one_loud_stratum_counts_alone():
    model = make_model([0.01, 1e-9, 1e-9], prior_dof=0.0)
    assert model.effective_dof == pytest.approx(50.0)  # Satterthwaite: (50 s^2)^2 / (50 s^4)
    half = make_model([0.02, 0.01], prior_dof=0.0)
    assert half.effective_dof == pytest.approx((50 * 4 + 50) ** 2 / (50 * 16 + 50))


def test_no_noise_at_all_is_no_division_by_zero():
    assert make_model([0.0, 0.0]).effective_dof == 100.0


@pytest.mark.parametrize("kind", ["residual", "noise"])
def test_errors_are_as_large_as_their_stratum(kind):
    model = make_model([0.02, 0.005], prior_dof=0.0)
    errors = draw_errors(model, kind, 4000, np.random.default_rng(0))
    widened = np.sqrt(model.effective_dof / (model.effective_dof - 2))  # the variance of t
    np.testing.assert_allclose(
        [errors[:, :50].std(), errors[:, 50:].std()], widened * np.array([0.02, 0.005]), rtol=0.02
    )
