"""Fits made of a law, without observations: for tests of what reads a fit."""

import numpy as np

from jaxscale.fit.result import Fit


def fit_of(law, *, rounds=0, spread=0.01, seed=0, k=6.0, p=1.0, **diagnostics) -> Fit:
    """A parametric Fit whose rounds scatter log-normally about the law by `spread`."""
    rng = np.random.default_rng(seed)
    params = {name: float(value) for name, value in law.params.items()}
    draws = {name: list(value * np.exp(spread * rng.standard_normal(rounds))) for name, value in params.items()}
    return Fit(
        method="parametric", law=law.name, source={}, params=params, confidence=0.9, bootstrap=rounds,
        resample="residual", seed=0, intervals={}, std_errors={}, exponents=None, coefficients=None, loss_law=None,
        objective={}, noise={"seed_std": None, "residual_std": None}, draws=draws,
        diagnostics={"flops": {"rule": "6ND", "k": k, "p": p, "misfit": 0.0}, "largest_C": 1e20, **diagnostics},
    )  # fmt: skip
