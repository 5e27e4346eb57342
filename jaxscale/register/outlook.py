"""Where a run that still trains will end: its loss so far, and how much finished runs still fell from there.

A forecast's band is for the end of a run. In mid-course a training loss lies elsewhere: above its end while the
learning rate is high, and off the validation loss by what the two texts differ. Both are in the finished runs of the
same recipe. At the same share f of the steps

    q(f) = log(training loss over the last WINDOW of the steps before f / final validation loss)
    q(f) = c0 + c1 log N + c2 log D + noise          least squares over the finished runs, anew at every f

and the run's end is expected at log(its own loss there) - q(f), with the interval of one new observation:
t s sqrt(1 + x' (X'X)^-1 x), s the deviation of the finished runs about the line. With fewer than FEWEST runs a plain
mean of q stands for the line, with fewer than two nothing is said. Why N and D: on the quickstart study, 90 looks at 5
runs of larger budgets, such intervals held 84 ends, those of a mean 80 though they are 1.4 times as wide.

An assumption carries it: that the run trains as the finished ones did. It is a look, not evidence, and is kept nowhere.
Each interval is for one look: who looks a hundred times will see one of a hundred leave the band by luck.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxscale.fit.resample import t_quantile

__all__ = ["Curve", "Outlook", "Verdict", "follow_run", "judge_run", "project_end"]

WINDOW = 0.05
"""Share of the steps whose training losses are averaged: over less the noise of the batches is all one sees."""
FEWEST = 8
"""Finished runs from which the line over log N and log D is taken."""


@dataclass(frozen=True)
class Curve:
    """A training curve: `fraction` (n,) of the steps at the ends of logging intervals, `loss` (n,) the mean training
    loss of each, nats per token; `final` the validation loss at its end, None for a run that has not ended."""

    N: float
    D: float
    fraction: np.ndarray
    loss: np.ndarray
    final: float | None = None

    @property
    def middle(self) -> np.ndarray:
        """Middles (n,) of the logging intervals, as shares of the steps: where their losses stand."""
        return (self.fraction + np.concatenate([[0.0], self.fraction[:-1]])) / 2

    def level(self, f: float) -> float:
        """Mean training loss over the shares f - WINDOW to f of the steps; NaN where the curve does not cover them."""
        middle = self.middle
        last = 1.0 if self.final else middle[-1] if len(middle) else 0.0  # after the last middle an ended run stays
        if len(middle) == 0 or f - WINDOW < middle[0] or f > last:
            return float("nan")
        return float(np.interp(np.linspace(f - WINDOW, f, 9), middle, self.loss).mean())


@dataclass(frozen=True)
class Outlook:
    """The validation loss expected at a run's end, as seen at a share of its steps, with the interval of one run."""

    fraction: float
    loss: float
    low: float
    high: float


@dataclass(frozen=True)
class Verdict:
    """How a run stands to the band of its forecast: inside, outside (the expected end lies outside, its interval
    reaches in), left (no overlap any more, since share `since` of the steps), or unknown."""

    state: str
    side: str = ""
    since: float | None = None


def project_end(finished: Sequence[Curve], run: Curve, f: float, confidence: float = 0.95) -> Outlook | None:
    """The run's end as seen at share f of its steps; None with fewer than two finished runs, or too short a curve.

    >>> steps = np.linspace(0.02, 1, 50)
    >>> runs = [Curve(1e4, 1e6, steps, L * (1 + 0.3 * (1 - steps)), L) for L in (2.0, 2.1, 2.2)]
    >>> run = Curve(1e5, 1e7, steps[:25], 1.5 * (1 + 0.3 * (1 - steps[:25])))
    >>> round(project_end(runs, run, 0.48).loss, 6)
    1.5
    """
    ends = [(curve, float(np.log(curve.level(f) / curve.final))) for curve in finished if curve.final]
    ends = [(curve, q) for curve, q in ends if np.isfinite(q)]
    here = float(np.log(run.level(f)))
    if len(ends) < 2 or not np.isfinite(here):
        return None
    q = np.array([value for _, value in ends])
    X, x = _design([curve for curve, _ in ends], run)
    solved, _, rank, _ = np.linalg.lstsq(X, q, rcond=None)
    spread = np.sqrt(((q - X @ solved) ** 2).sum() / (len(q) - rank) * (1 + x @ np.linalg.pinv(X.T @ X) @ x))
    end, half = here - float(x @ solved), float(spread) * t_quantile(confidence, len(q) - int(rank))
    return Outlook(f, float(np.exp(end)), float(np.exp(end - half)), float(np.exp(end + half)))


def _design(finished: Sequence[Curve], run: Curve) -> tuple[np.ndarray, np.ndarray]:
    """Rows (runs, 1 or 3) of the finished runs and the run's own, log N and log D about the finished runs' means."""
    size = np.log([[curve.N, curve.D] for curve in finished])
    here = np.log([run.N, run.D]) - size.mean(0)
    size = size - size.mean(0)
    if len(finished) < FEWEST or np.linalg.matrix_rank(size, tol=0.1) < 2:
        return np.ones((len(finished), 1)), np.ones(1)
    return np.column_stack([np.ones(len(finished)), size]), np.concatenate([[1.0], here])


def follow_run(finished: Sequence[Curve], run: Curve, confidence: float = 0.95) -> list[Outlook]:
    """The outlook at every logging interval of the run that allows one."""
    found = (project_end(finished, run, float(f), confidence) for f in run.middle)
    return [outlook for outlook in found if outlook is not None]


def judge_run(outlooks: Sequence[Outlook], band: tuple[float, float]) -> Verdict:
    """How the newest outlook stands to the band, and since when it left it for good.

    >>> looks = [Outlook(0.4, 2.0, 1.8, 2.2), Outlook(0.6, 2.3, 2.2, 2.4), Outlook(0.8, 2.3, 2.25, 2.35)]
    >>> judge_run(looks, (1.9, 2.1))
    Verdict(state='left', side='above', since=0.6)
    >>> judge_run(looks[:1], (1.9, 2.1)).state
    'inside'
    """
    if not outlooks:
        return Verdict("unknown")
    last, (low, high) = outlooks[-1], band
    side = "above" if last.loss > high else "below" if last.loss < low else ""
    if low <= last.high and last.low <= high:
        return Verdict("outside" if side else "inside", side)
    since = last.fraction
    for outlook in reversed(outlooks):
        if low <= outlook.high and outlook.low <= high:
            break
        since = outlook.fraction
    return Verdict("left", side, since)
