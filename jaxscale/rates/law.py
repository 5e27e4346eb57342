"""The best learning rate at a horizon and a batch, from optima that a sweep measured.

    l(D, B) = l0 * (D/D0)^h * (B/B0)^g        D tokens of the run, B tokens a batch, l at base width

l0 is the mean of log2 l over the optima, weighted by their errors, at the weighted mean of log D and log B; muP
says that they share it over widths, and how far they do not is said. h and g are measured where optima of one
shape span a factor 2 in D or B: weighted least squares within shapes, so that a drift with width is never taken
for one with the horizon. Errors are the optima's own, widened by sqrt(chi2 / freedom) where they scatter more.

What was not measured is assumed, with a wide interval, since the literature disagrees:
    h  -.32 at a fixed batch of .5M tokens (760M parameters and more together; size by size -.32 to -.70: Bjorck et
       al. 2409.19913, sec. 4 and table 5); -.51 with l proportional to B (Shen et al. 2408.13359, eq. 5 and 6, muP,
       wsd schedule). Li et al. 2503.04715 have D^+.307, but along their best batch B ~ D^.571 and with N^-.713 at
       standard parameterization: no measure of h at a fixed batch.
    g  1/2 by the noise of Adam's updates (Malladi et al. 2205.10287); 1 in Shen et al.; rising and then falling in
       Li et al. 2405.14578.
Under B ~ D^(1/2) the two nearly cancel: -.32 + .25 = -.07 by the defaults, -.51 + .50 = -.01 by Shen et al. On this
code h = -.32 [-.45, -.19] and g = .50 [.36, .64] at width 32 (docs/studies/lr_horizon.md).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from jaxscale.errors import MisuseError
from jaxscale.format import format_factor

__all__ = ["DIGITS", "PUBLISHED", "Exponent", "Optimum", "RateLaw", "fit_rates"]

DIGITS = 4
"""Significant digits of a resolved rate: the last bits of a logarithm must not rename a run on another machine."""
PUBLISHED = {"horizon": (-0.32, (-0.70, 0.0)), "batch": (0.5, (0.0, 1.0))}
"""Exponent and the range that stands for its 95% interval; the sources are above."""
SPAN = 1.0
"""log2 of the span of D or B within one shape from which an exponent is measured."""
COLLINEAR = 0.02
"""1 - correlation^2 of log D and log B within shapes, under which only one exponent can be told."""
Z = 1.959964
"""Normal quantile of a two-sided 95% interval."""


@dataclass(frozen=True)
class Optimum:
    """The best rate of one shape at one horizon and batch: log2 of the base-width rate and its standard error."""

    width: int
    depth: int
    tokens: float
    batch_tokens: float
    log2_lr: float
    error: float


@dataclass(frozen=True)
class Exponent:
    """A power with its 95% interval and where it is from."""

    value: float
    interval: tuple[float, float]
    source: Literal["measured", "published", "asked"]

    @property
    def error(self) -> float:
        """Standard error, as the interval has it."""
        return (self.interval[1] - self.interval[0]) / (2 * Z)


@dataclass(frozen=True)
class RateLaw:
    """l(D, B) with its uncertainty. `lr` is meant at `tokens` and `batch_tokens`, `error` is of log2 lr there."""

    lr: float
    error: float
    tokens: float
    batch_tokens: float
    horizon: Exponent
    batch: Exponent
    covariance: float
    """Of the two exponents."""
    optima: tuple[Optimum, ...]
    notes: tuple[str, ...] = ()
    """What else there is to say: how the widths agree, what was left out, what differs."""
    source: str = ""
    """File of the optima, where they are from one."""

    def rate(self, tokens: float, batch_tokens: float) -> float:
        """Base-width peak rate for a run of so many tokens, in batches of so many; four significant digits.

        >>> one = Optimum(width=32, depth=2, tokens=1e6, batch_tokens=1024, log2_lr=-6, error=0.1)
        >>> law = fit_rates([one])
        >>> law.rate(1e6, 1024), law.rate(16e6, 1024), law.rate(16e6, 4096)
        (0.01562, 0.006434, 0.01287)
        """
        if not (0 < tokens < math.inf and 0 < batch_tokens < math.inf):
            raise MisuseError(f"tokens {tokens:g} and batch_tokens {batch_tokens:g} must be positive numbers")
        far, wide = self._distance(tokens, batch_tokens)
        return float(f"{self.lr * 2 ** (self.horizon.value * far + self.batch.value * wide):.{DIGITS}g}")

    def factor(self, tokens: float, batch_tokens: float) -> float:
        """95% uncertainty of that rate: it lies between rate / factor and rate * factor, if the powers hold."""
        far, wide = self._distance(tokens, batch_tokens)
        variance = (
            self.error**2 + (self.horizon.error * far) ** 2 + (self.batch.error * wide) ** 2
            + 2 * self.covariance * far * wide
        )  # fmt: skip
        return float(2 ** (Z * math.sqrt(max(variance, 0.0))))

    def reach(self, tokens: float) -> float:
        """How many times beyond the sweep's own horizons a run lies, above or below; 1 within them.

        >>> one = Optimum(width=32, depth=2, tokens=1e6, batch_tokens=1024, log2_lr=-6, error=0.1)
        >>> fit_rates([one]).reach(4e6), fit_rates([one]).reach(1e5)
        (4.0, 10.0)
        """
        swept = [one.tokens for one in self.optima]
        return max(tokens / max(swept), min(swept) / tokens, 1.0)

    def _distance(self, tokens: float, batch_tokens: float) -> tuple[float, float]:
        return math.log2(tokens / self.tokens), math.log2(batch_tokens / self.batch_tokens)


def fit_rates(optima: Sequence[Optimum], *, horizon: float | None = None, batch: float | None = None) -> RateLaw:
    """The law of one or more optima; `horizon` and `batch` fix an exponent, None measures it or takes the published.

    Raises MisuseError without an optimum, or for one that is not finite or has no error.
    """
    _check(optima)
    weights = [one.error**-2 for one in optima]
    x = {"horizon": [math.log2(one.tokens) for one in optima], "batch": [math.log2(one.batch_tokens) for one in optima]}
    y = [one.log2_lr for one in optima]
    shapes = [(one.width, one.depth) for one in optima]
    exponents, covariance = _exponents(x, y, weights, shapes, {"horizon": horizon, "batch": batch})
    center = {name: _mean(values, weights) for name, values in x.items()}
    level = [
        value - sum(exponents[name].value * (x[name][i] - center[name]) for name in x) for i, value in enumerate(y)
    ]
    mean = _mean(level, weights)
    measured = sum(one.source == "measured" for one in exponents.values())
    chi2, freedom = math.fsum(w * (v - mean) ** 2 for w, v in zip(weights, level, strict=True)), len(y) - 1 - measured
    spread = max(1.0, chi2 / freedom) if freedom > 0 else 1.0
    return RateLaw(
        lr=2**mean,
        error=math.sqrt(spread / math.fsum(weights)),
        tokens=2 ** center["horizon"],
        batch_tokens=2 ** center["batch"],
        horizon=exponents["horizon"],
        batch=exponents["batch"],
        covariance=covariance,
        optima=tuple(optima),
        notes=_disagreement([one.width for one in optima], level, weights, chi2, freedom),
    )


def _check(optima: Sequence[Optimum]) -> None:
    if not optima:
        raise MisuseError("no optimum to take a learning rate from; give one or more")
    for one in optima:
        numbers = (one.tokens, one.batch_tokens, one.error)
        if not (math.isfinite(one.log2_lr) and all(0 < number < math.inf for number in numbers)):
            raise MisuseError(f"optimum of width {one.width}: tokens, batch_tokens and error must be positive numbers "
                              f"and log2_lr finite, not {one}")  # fmt: skip


def _mean(values: Sequence[float], weights: Sequence[float]) -> float:
    return math.fsum(v * w for v, w in zip(values, weights, strict=True)) / math.fsum(weights)


def _within(values: Sequence[float], weights: Sequence[float], shapes: Sequence[tuple[int, int]]) -> list[float]:
    """Each value less the weighted mean of its shape."""
    rows: dict[tuple[int, int], list[int]] = defaultdict(list)
    for i, shape in enumerate(shapes):
        rows[shape].append(i)
    means = {s: _mean([values[i] for i in found], [weights[i] for i in found]) for s, found in rows.items()}
    return [value - means[shape] for value, shape in zip(values, shapes, strict=True)]


def _exponents(
    x: dict[str, list[float]],
    y: list[float],
    weights: list[float],
    shapes: list[tuple[int, int]],
    asked: dict[str, float | None],
) -> tuple[dict[str, Exponent], float]:
    """Both exponents and their covariance."""
    u = {name: _within(values, weights, shapes) for name, values in x.items()}
    v = _within(y, weights, shapes)
    free = [name for name in x if asked[name] is None and _span(x[name], shapes) >= SPAN]
    hh, gg, hg = (_dot(weights, u[a], u[b]) for a, b in (("horizon",) * 2, ("batch",) * 2, ("horizon", "batch")))
    if len(free) == 2 and hh * gg - hg**2 < COLLINEAR * hh * gg:
        free = ["horizon"]
    known = {name: _known(name, asked[name]) for name in x if name not in free}
    freedom = len(y) - len(set(shapes)) - len(free)
    if len(free) == 2:
        return _measure_both(u, v, weights, freedom)
    return _measure_one(free[0], known, u, v, weights, freedom) if free else (known, 0.0)


def _measure_both(
    u: dict[str, list[float]], v: list[float], weights: list[float], freedom: int
) -> tuple[dict[str, Exponent], float]:
    """Weighted least squares of v on both."""
    p, q = u["horizon"], u["batch"]
    hh, gg, hg = _dot(weights, p, p), _dot(weights, q, q), _dot(weights, p, q)
    det, pv, qv = hh * gg - hg**2, _dot(weights, p, v), _dot(weights, q, v)
    h, g = (gg * pv - hg * qv) / det, (hh * qv - hg * pv) / det
    left = [c - h * a - g * b for a, b, c in zip(p, q, v, strict=True)]
    scale = _scale(_dot(weights, left, left), freedom)
    return {"horizon": _measured(h, scale * gg / det), "batch": _measured(g, scale * hh / det)}, -scale * hg / det


def _measure_one(
    name: str,
    known: dict[str, Exponent],
    u: dict[str, list[float]],
    v: list[float],
    weights: list[float],
    freedom: int,
) -> tuple[dict[str, Exponent], float]:
    """Least squares given the other exponent, whose doubt goes into this one where the two varied together."""
    ((other, fixed),) = known.items()
    own = _dot(weights, u[name], u[name])
    rest = [c - fixed.value * b for b, c in zip(u[other], v, strict=True)]
    slope, mix = _dot(weights, u[name], rest) / own, _dot(weights, u[name], u[other]) / own
    left = [c - slope * a for a, c in zip(u[name], rest, strict=True)]
    variance = _scale(_dot(weights, left, left), freedom) / own + (mix * fixed.error) ** 2
    return {name: _measured(slope, variance), other: fixed}, -mix * fixed.error**2


def _dot(weights: Sequence[float], a: Sequence[float], b: Sequence[float]) -> float:
    return math.fsum(w * p * q for w, p, q in zip(weights, a, b, strict=True))


def _span(values: list[float], shapes: list[tuple[int, int]]) -> float:
    """The widest range within one shape."""
    rows = [[v for v, s in zip(values, shapes, strict=True) if s == shape] for shape in set(shapes)]
    return max(max(row) - min(row) for row in rows) + 1e-9


def _scale(chi2: float, freedom: int) -> float:
    return max(1.0, chi2 / freedom) if freedom > 0 else 1.0


def _known(name: str, asked: float | None) -> Exponent:
    if asked is not None:
        return Exponent(asked, (asked, asked), "asked")
    value, interval = PUBLISHED[name]
    return Exponent(value, interval, "published")


def _measured(value: float, variance: float) -> Exponent:
    half = Z * math.sqrt(variance)
    return Exponent(value, (value - half, value + half), "measured")


def _disagreement(
    widths: list[int], level: list[float], weights: list[float], chi2: float, freedom: int
) -> tuple[str, ...]:
    """What the optima say against one rate for all widths, where they scatter beyond their errors."""
    if freedom < 1 or len(set(widths)) < 2:
        return ()
    p = _chi2_tail(chi2, freedom)
    apart = max(level) - min(level)
    if p >= 0.05:
        return (f"widths agree within their errors (p = {p:.2g}, at most {format_factor(2**apart)} apart)",)
    u = [math.log2(width) for width in widths]
    middle, mean = _mean(u, weights), _mean(level, weights)
    own = math.fsum(w * (a - middle) ** 2 for w, a in zip(weights, u, strict=True))
    slope = math.fsum(w * (a - middle) * (b - mean) for w, a, b in zip(weights, u, level, strict=True)) / own
    return (f"WARNING: optima disagree beyond their errors (p = {p:.2g}), by up to {format_factor(2**apart)}, "
            f"{slope:+.2f} in log2 rate per doubling of width; the interval is widened by that, the trend is not "
            f"followed",)  # fmt: skip


def _chi2_tail(chi2: float, freedom: int) -> float:
    """Upper tail of chi-square by Wilson and Hilferty's cube root (1931); off by under .01 near .05.

    >>> round(_chi2_tail(3.84, 1), 2), round(_chi2_tail(11.07, 5), 2)
    (0.05, 0.05)
    """
    k = 2 / (9 * freedom)
    return 0.5 * math.erfc(((chi2 / freedom) ** (1 / 3) - (1 - k)) / math.sqrt(2 * k))
