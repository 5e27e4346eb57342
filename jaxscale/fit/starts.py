"""Where to start: variable projection over (alpha, beta).

With alpha and beta given, L = E + A / N^alpha + B / D^beta is linear in E, A, B. A grid of exponents with
nonnegative least relative squares at each shows the whole valley; the best beta of every alpha starts a
fit. Sixteen such starts find the global optimum where random ones mostly stop short (the 4500 of
Hoffmann et al. reach it in 7% at default tolerances).
"""

from __future__ import annotations

from itertools import combinations

import numpy as np

__all__ = ["project_starts"]

EXPONENTS = (0.03, 1.5)
ALPHAS, BETAS = 16, 32
FLOOR = 0.5
"""Least share of the loss that a term starts from. At small shares a start sits where log E or log A is flat,
and crawls: 150 steps against 35 (docs/fit_speed.md)."""


def project_starts(N: np.ndarray, D: np.ndarray, loss: np.ndarray, weight: np.ndarray) -> dict[str, np.ndarray]:
    """E, A, B, alpha, beta (16,): the best beta of each alpha."""
    alpha, beta = (np.geomspace(*EXPONENTS, count) for count in (ALPHAS, BETAS))
    x, y = np.log(N) - np.log(N).mean(), np.log(D) - np.log(D).mean()
    coefficients, ss = _project(np.exp(-np.outer(alpha, x)), np.exp(-np.outer(beta, y)), loss, weight)
    best = np.argmin(ss, 1)
    row = np.arange(ALPHAS)
    E, A, B = np.maximum(coefficients[row, best].T, FLOOR * loss.min())
    A = A * np.exp(alpha * np.log(N).mean())
    B = B * np.exp(beta[best] * np.log(D).mean())
    return {"E": E, "A": A, "B": B, "alpha": alpha, "beta": beta[best]}


def _project(
    n_terms: np.ndarray, d_terms: np.ndarray, loss: np.ndarray, weight: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Nonnegative (E, A', B') (alphas, betas, 3) and weighted relative squares (alphas, betas)."""
    normal, target = _normal_equations(n_terms, d_terms, loss, weight)
    best = np.zeros_like(target)
    lowest = np.full(target.shape[:2], np.inf)
    for size in (1, 2, 3):
        for kept in combinations(range(3), size):
            solved = _solve(normal, target, list(kept))
            ss = np.einsum("abi,abij,abj->ab", solved, normal, solved) - 2 * (solved * target).sum(-1)
            better = (solved >= 0).all(-1) & (ss < lowest)
            best, lowest = np.where(better[..., None], solved, best), np.where(better, ss, lowest)
    return best, lowest


def _normal_equations(
    n_terms: np.ndarray, d_terms: np.ndarray, loss: np.ndarray, weight: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Sums of products (alphas, betas, 3, 3) and with the loss (alphas, betas, 3), in relative errors.

    All are matrix products over the cells, so that memory grows with alphas + betas, not with their product.
    """
    relative = weight / loss**2
    normal = np.empty((len(n_terms), len(d_terms), 3, 3))
    normal[..., 0, 0] = relative.sum()
    normal[..., 0, 1] = normal[..., 1, 0] = (n_terms @ relative)[:, None]
    normal[..., 0, 2] = normal[..., 2, 0] = d_terms @ relative
    normal[..., 1, 1] = (n_terms**2 @ relative)[:, None]
    normal[..., 2, 2] = d_terms**2 @ relative
    normal[..., 1, 2] = normal[..., 2, 1] = (n_terms * relative) @ d_terms.T
    target = np.empty((len(n_terms), len(d_terms), 3))
    target[..., 0] = (weight / loss).sum()
    target[..., 1] = (n_terms @ (weight / loss))[:, None]
    target[..., 2] = d_terms @ (weight / loss)
    return normal, target


def _solve(normal: np.ndarray, target: np.ndarray, kept: list[int]) -> np.ndarray:
    """Least squares on some of the columns, the others 0; a little ridge keeps near-equal columns apart."""
    block = normal[..., kept, :][..., kept]
    ridge = 1e-13 * np.trace(block, axis1=-2, axis2=-1)[..., None, None] * np.eye(len(kept))
    solved = np.zeros_like(target)
    solved[..., kept] = np.linalg.solve(block + ridge, target[..., kept, None])[..., 0]
    return solved
