"""A fit's law as a value, and all of its bootstrap rounds as one law whose fields are arrays.

What reads a surface L(N, D) (flatness, constrained optima, known models beside a fit) takes it from here.
"""

from __future__ import annotations

from jaxscale.errors import MisuseError
from jaxscale.fit.result import Fit, Fits
from jaxscale.laws import Law, Repetition

__all__ = ["answered", "drawn_surface", "has_surface", "surface"]


def answered(fit: Fit | Fits) -> tuple[Fit, ...]:
    """The fits that have an answer; VerdictError with the reason where none has."""
    fits = fit.fits if isinstance(fit, Fits) else (fit,)
    found = tuple(one for one in fits if one.verdict is None)
    if not found:
        fits[0].require_answer()
    return found


def has_surface(fit: Fit) -> bool:
    """Whether the fit predicts the loss at any N and D."""
    return fit.method == "parametric" and fit.has_optimum


def surface(fit: Fit) -> Law:
    """L(N, D) of fresh data; MisuseError for a fit of the optimum alone."""
    fit.require_answer()
    if not has_surface(fit):
        raise MisuseError(f"{fit.method} fit of law {fit.law!r} has no loss over N and D; fit with --method parametric")
    return _of_fresh_data(fit.law_value())


def drawn_surface(fit: Fit) -> Law | None:
    """The same for every bootstrap round, fields (rounds,); None for a fit without rounds."""
    rounds = max((len(values) for values in fit.draws.values()), default=0)
    return _of_fresh_data(fit.sampled_law()) if rounds > 1 else None


def _of_fresh_data(law: Law) -> Law:
    return law.unlimited if isinstance(law, Repetition) else law
