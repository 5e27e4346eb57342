"""All IsoFLOP curves under one reading: interpolant and window, the noise about them, and redrawn minima.

Window and weights stay where the data put them; each bootstrap round redraws the losses and refits. The noise
of an interpolant that passes through its points is measured about a cubic over six sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxscale.errors import MisuseError
from jaxscale.fit import minima
from jaxscale.fit.cells import Cells
from jaxscale.fit.minima import Curve
from jaxscale.fit.powers import Shape, fit_shape, has_minimum, minimum_powers, powers_hat, redraw_shapes, soften
from jaxscale.fit.resample import LARGEST_HAT, NoiseModel, draw_counts, draw_errors, estimate_intraclass
from jaxscale.fit.windows import NARROWEST, choose_window

__all__ = ["Reading", "choose_reading", "doubt_shape", "judge_curve", "locate_minimum", "model_noise", "redraw_minima",
           "split_curves", "weigh_curves"]  # fmt: skip


@dataclass(frozen=True)
class Reading:
    """How the curves are read: `powers` (shape shared), `akima`, or a `parabola` over `window` sizes."""

    kind: str
    window: int
    tried: list[dict[str, float]]
    shape: Shape | None = None

    @property
    def words(self) -> str:
        """Interpolant and window for people."""
        if self.kind == "akima":
            return "akima over all sizes"
        if self.kind == "parabola":
            return f"parabola over up to {self.window} sizes"
        fade = f", misfit {self.shape.rho * self.shape.sigma:.2g} of the rise" if self.shape and self.shape.rho else ""
        if self.shape and self.shape.kappa:
            fade = f", seeds of a cell share an error of {np.sqrt(self.shape.kappa) * self.shape.sigma:.2g} of the loss"
        return f"two powers over all sizes, skew {self.shape.delta if self.shape else 0:.2g}{fade}"


def split_curves(cells: Cells) -> list[Curve]:
    """One curve a budget, sizes rising; cells of one size in one budget (D differs) become their mean."""
    curves = []
    for number, C in enumerate(cells.budget_C):
        inside = np.flatnonzero(cells.budget == number)
        N, first, size = np.unique(cells.N[inside], return_index=True, return_inverse=True)
        weight = np.bincount(size, cells.weight[inside])
        log_D, loss = (
            np.bincount(size, cells.weight[inside] * values) / weight
            for values in (np.log(cells.D[inside]), cells.loss[inside])
        )
        curves.append(Curve(C, np.log(N), log_D, loss, weight, inside[first]))
    return curves


def choose_reading(curves: list[Curve], cells: Cells, interpolant: str, window: str | int) -> Reading:
    """Interpolant and window as asked: auto is two powers (powers.py), a parabola's window that of windows.py."""
    widest = max(NARROWEST, *(len(curve.x) for curve in curves))
    if interpolant == "akima":
        return Reading("akima", widest, [])
    if window != "auto":
        return Reading("parabola", int(window), [])
    judged = [curve for curve in curves if minima.judge_points(curve)[0] == "ok"]
    if interpolant != "parabola":
        seeds = (cells.seed_ss.sum(), cells.seed_dof.sum())
        return Reading("powers", widest, [], fit_shape(judged, *seeds) if judged else Shape(0.0, 0.0, 0.0))
    if not judged:
        return Reading("parabola", widest, [])
    mean_loss = float(np.exp(np.log(cells.loss).mean()))
    size, tried = choose_window(judged, cells.seed_ss.sum(), cells.seed_dof.sum(), mean_loss)
    return Reading("parabola", size or NARROWEST, tried)


def weigh_curves(curves: Sequence[Curve], reading: Reading) -> list[Curve]:
    """The curves with the weights of their reading."""
    return (
        [soften(curve, reading.shape.rho, reading.shape.kappa) for curve in curves] if reading.shape else list(curves)
    )


def judge_curve(curve: Curve, reading: Reading) -> tuple[minima.Status, str]:
    """Status of a weighed curve's minimum under its reading, and the reason in words."""
    if minima.judge_points(curve)[0] != "ok":
        return minima.judge_points(curve)
    if reading.shape is None:
        window = curve.window(reading.window)
        name = f"parabola over {window.stop - window.start} sizes"
        return minima.judge_vertex(curve, minima.vertex_parabola(curve, window), name)
    found = has_minimum(curve, reading.shape.delta)
    place = float(locate_minimum(curve, reading, curve.loss[None])[0][0]) if found else None
    return minima.judge_vertex(curve, place, "curve of two powers")


def locate_minimum(
    curve: Curve, reading: Reading, losses: np.ndarray, skew: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """log N_opt and loss_opt (rounds,) of a weighed curve for losses (rounds, sizes); `skew` (rounds,) of powers."""
    if reading.shape is not None:
        return minimum_powers(curve, losses, reading.shape.delta if skew is None else skew)
    if reading.kind == "akima":
        return minima.minimum_akima(curve, losses)
    window = curve.window(reading.window)
    return minima.minimum_parabola(curve, window, losses[:, window])


def _noise_hat(curve: Curve, reading: Reading) -> tuple[slice, np.ndarray, int]:
    """Sizes, hat matrix and coefficients of the fit whose residuals measure the noise of a curve."""
    if reading.shape is not None:
        return slice(0, len(curve.x)), powers_hat(curve, reading.shape.delta), 3
    akima = reading.kind == "akima"
    window, degree = (curve.window(NARROWEST + 1), 3) if akima else (curve.window(reading.window), 2)
    return window, minima.parabola_hat(curve.x[window], curve.weight[window], degree), degree + 1


def _shared(reading: Reading) -> float:
    """Coefficients fitted to all curves together."""
    return 0.0 if reading.shape is None else 1.0 + (reading.shape.rho > 0 or reading.shape.kappa > 0)


def model_noise(curves: Sequence[Curve], cells: Cells, reading: Reading) -> tuple[NoiseModel, list[slice]]:
    """Residuals of log loss about each curve's local polynomial, a stratum a budget."""
    parts: dict[str, list[np.ndarray]] = {name: [] for name in ("r", "h", "w", "b", "cell")}
    windows, dof, hats = [], [], []
    for number, curve in enumerate(curves):
        window, hat, spent = _noise_hat(curve, reading)
        fitted = hat @ curve.loss[window]
        parts["r"].append((curve.loss[window] - fitted) / fitted)
        parts["h"].append(np.diag(hat))
        parts["w"].append(curve.weight[window])
        parts["b"].append(np.full(len(fitted), number))
        parts["cell"].append(curve.cells[window])
        windows.append(window)
        hats.append(hat)
        dof.append(max(len(fitted) - spent - _shared(reading) / len(curves), 0.0))
    r, h, w, b, cell = (np.concatenate(part) for part in parts.values())
    inside = [curve.cells for curve in curves]
    cluster = np.unique(cells.cluster[cell], return_inverse=True)[1]
    seed_ss = np.array([cells.seed_ss[i].sum() for i in inside])
    seed_dof = np.array([cells.seed_dof[i].sum() for i in inside])
    misfit, side = _misfit_sides(cells, cell, w, b, reading.shape) if reading.shape is not None else (None, None)
    known = len(np.unique(cluster)) < len(cluster) <= LARGEST_HAT
    intraclass = estimate_intraclass(r, w, _block_diagonal(hats), cluster) if known else 0.0
    dofs = np.array(dof)
    model = NoiseModel(r, h, w, b, cluster, dofs, seed_ss, seed_dof, misfit=misfit, side=side, intraclass=intraclass)
    return model, windows


def _block_diagonal(blocks: list[np.ndarray]) -> np.ndarray:
    ends = np.cumsum([len(block) for block in blocks])
    whole = np.zeros((ends[-1], ends[-1]))
    for block, end in zip(blocks, ends, strict=True):
        whole[end - len(block) : end, end - len(block) : end] = block
    return whole


def _misfit_sides(
    cells: Cells, cell: np.ndarray, weight: np.ndarray, budget: np.ndarray, shape: Shape
) -> tuple[np.ndarray, np.ndarray]:
    """Share in each cell's variance of misfit by height, and its side: below or above the lowest size of its budget."""
    misfit = np.clip(1 - weight * (1 / cells.weight[cell] + shape.kappa), 0.0, 1.0)
    lowest = {b: cells.N[cell[budget == b]][np.argmin(cells.loss[cell[budget == b]])] for b in np.unique(budget)}
    above = cells.N[cell] > np.array([lowest[b] for b in budget])
    return misfit, 2 * budget + above


def redraw_minima(
    curves: Sequence[Curve], reading: Reading, model: NoiseModel, windows: list[slice], kind: str,
    rounds: int, rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """log N_opt, log D_opt and loss_opt (rounds, budgets) of each bootstrap round."""
    if kind == "pairs":
        return _redraw_pairs(curves, reading, model, windows, rounds, rng)
    errors = draw_errors(model, kind, rounds, rng)
    redrawn = []
    for number, (curve, window) in enumerate(zip(curves, windows, strict=True)):
        losses = np.repeat(curve.loss[None], rounds, 0)
        mine = np.flatnonzero(model.stratum == number)
        center = curve.loss[window] if reading.kind == "akima" else curve.loss[window] / (1 + model.residual[mine])
        losses[:, window] = center * (1 + errors[:, mine])
        redrawn.append(losses)
    skew = redraw_shapes(curves, redrawn, reading.shape, rng) if reading.shape and rounds else None
    return _stack(
        [
            _with_tokens(curve, *locate_minimum(curve, reading, losses, skew))
            for curve, losses in zip(curves, redrawn, strict=True)
        ]
    )


def doubt_shape(
    curves: Sequence[Curve], reading: Reading, drawn: tuple[np.ndarray, np.ndarray], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Redrawn log N_opt and log D_opt with the doubt that a proven misfit of the shape leaves.

    Where two powers miss the curves beyond their noise, the distance to an interpolant that assumes no shape
    (Akima's) is one standard deviation of an error in common to all budgets. The loss at a minimum hardly
    depends on the reading.
    """
    if reading.shape is None or reading.shape.rho == 0:
        return drawn
    plain = Reading("akima", reading.window, [])
    other, own = (
        _stack([_with_tokens(c, *locate_minimum(c, one, c.loss[None])) for c in curves]) for one in (plain, reading)
    )
    size = rng.standard_normal((len(drawn[0]), 1))
    return drawn[0] + size * (other[0] - own[0]), drawn[1] + size * (other[1] - own[1])


def _redraw_pairs(
    curves: Sequence[Curve], reading: Reading, model: NoiseModel, windows: list[slice], rounds: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """Cells drawn with replacement; a round that keeps under three sizes of a budget reuses its curve."""
    if reading.kind == "akima":
        raise MisuseError("resample pairs: an interpolant needs every point; use --interpolant parabola")
    counts = draw_counts(model, rounds, rng)
    found = []
    for number, (curve, window) in enumerate(zip(curves, windows, strict=True)):
        drawn = counts[:, model.stratum == number]
        drawn = np.where((drawn > 0).sum(1, keepdims=True) >= 3, drawn, 1.0)
        points = [_reweighted(curve, reading, window, row) for row in drawn]
        x, loss = (np.array(part) for part in zip(*points, strict=True))
        found.append(_with_tokens(curve, x, loss))
    return _stack(found)


def _reweighted(curve: Curve, reading: Reading, window: slice, counts: np.ndarray) -> tuple[float, float]:
    weight = curve.weight.copy()
    weight[window] *= np.maximum(counts, 1e-9)
    heavier = Curve(curve.C, curve.x, curve.log_D, curve.loss, weight, curve.cells)
    x, loss = locate_minimum(heavier, reading, curve.loss[None])
    return float(x[0]), float(loss[0])


def _with_tokens(curve: Curve, x: np.ndarray, loss: np.ndarray) -> tuple[np.ndarray, ...]:
    return x, np.interp(x, curve.x, curve.log_D), loss


def _stack(found: list[tuple[np.ndarray, ...]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    log_N, log_D, loss = (np.stack(part, 1) for part in zip(*found, strict=True))
    return log_N, log_D, loss
