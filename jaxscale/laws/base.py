"""What a scaling law is: a frozen value that predicts a loss, knows its optimum, and says what it is.

A law is a dataclass of its parameters with `loss(*inputs)`. Everything else has a general form here, and a
law overrides it where a closed form exists: gradient, optimum at a compute, the frontier, starts of a fit.

The optimum is taken under a `FlopRule` C = k N^p D; Kaplan's 6ND is k = 6, p = 1, and a study whose exact
count differs (attention, embedding not multiplied) has its own k and p. Methods take scalars or arrays, and
so may the fields: a bootstrap is one law whose fields are arrays. `loss` must only use operators and the
functions of `namespace(...)`, so that the same line serves numpy and a jax trace.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, NamedTuple

import numpy as np

__all__ = ["SIX_ND", "FlopRule", "Frontier", "Law", "Optimum", "guess_shares", "minimise", "namespace"]

STEP = 1e-30
"""Relative complex step: its square vanishes, so the derivative is exact to rounding."""
TINY_N, HUGE_N = 1.0, 1e18
"""Sizes between which an optimum without closed form is looked for."""
GOLDEN = (5**0.5 - 1) / 2
GOLDEN_STEPS = 90
"""Enough to narrow any range of logs here below rounding."""


def namespace(*values: Any) -> Any:
    """numpy, or the array library of the first value that is not numpy's (jax.numpy in a trace).

    >>> namespace(1.0, np.ones(2)).__name__
    'numpy'
    """
    for value in values:
        if not isinstance(value, int | float | complex | np.ndarray | np.generic) and hasattr(
            value, "__array_namespace__"
        ):
            return value.__array_namespace__()
    return np


def minimise(f: Callable[[Any], Any], low: Any, high: Any, shape: tuple[int, ...] = ()) -> np.ndarray:
    """Where f is lowest between low and high, by golden section; f may be infinite at the low end only.

    f takes and gives arrays of `shape`: many functions at once, each with one minimum.
    """
    left_end, right_end = np.broadcast_to(low, shape), np.broadcast_to(high, shape)
    for _ in range(GOLDEN_STEPS):
        reach = GOLDEN * (right_end - left_end)
        lower = f(right_end - reach) < f(left_end + reach)
        left_end, right_end = np.where(lower, left_end, right_end - reach), np.where(lower, left_end + reach, right_end)
    return (left_end + right_end) / 2


class Optimum(NamedTuple):
    """Compute-optimal N (parameters), D (tokens) and loss (nats per token)."""

    N: Any
    D: Any
    loss: Any


@dataclass(frozen=True)
class FlopRule:
    """C = k N^p D: training FLOPs of N parameters on D tokens.

    >>> float(SIX_ND.flops(7e9, 1e12))
    4.2e+22
    """

    k: float = 6.0
    p: float = 1.0

    def flops(self, N: Any, D: Any) -> Any:
        """Training FLOPs."""
        return self.k * np.power(N, self.p) * np.asarray(D)

    def tokens(self, C: Any, N: Any) -> Any:
        """Tokens that C FLOPs pay for at N parameters."""
        return np.asarray(C) / (self.k * np.power(N, self.p))

    def params(self, C: Any, D: Any) -> Any:
        """Parameters that C FLOPs pay for at D tokens."""
        return np.power(np.asarray(C) / (self.k * np.asarray(D)), 1 / self.p)


SIX_ND = FlopRule()
"""Kaplan et al. 2020: C = 6 N D."""


class Law:
    """Base of every law. A subclass is a frozen dataclass whose fields are its parameters.

    Class attributes: `name` for --law; `inputs` that `loss` takes, of N, D, C, U; `positive` parameters,
    which a fit moves in logs; `equation` and `source` for people; `units` of parameters that have one.
    """

    name: ClassVar[str]
    inputs: ClassVar[tuple[str, ...]] = ("N", "D")
    positive: ClassVar[tuple[str, ...]] = ()
    equation: ClassVar[str]
    source: ClassVar[str] = ""
    units: ClassVar[Mapping[str, str]] = {}
    power_optimum: ClassVar[bool] = False
    """Whether N_opt and D_opt are power laws of C, so that they have exponents."""

    @classmethod
    def param_names(cls) -> tuple[str, ...]:
        """The parameters in the order of the fields."""
        return tuple(field.name for field in fields(cls))  # type: ignore[arg-type]

    @property
    def params(self) -> dict[str, Any]:
        """Parameter values by name."""
        return {name: getattr(self, name) for name in self.param_names()}

    def loss(self, *inputs: Any) -> Any:
        """Predicted loss, nats per token, at the law's inputs in their order."""
        raise NotImplementedError

    def gradient(self, *inputs: Any) -> tuple[Any, ...]:
        """Derivative of the loss with respect to each input, exact to rounding (complex step)."""
        found = []
        for i, value in enumerate(inputs):
            step = STEP * np.asarray(value, float)
            moved = [x + 1j * step if j == i else x for j, x in enumerate(inputs)]
            found.append(np.imag(self.loss(*moved)) / step)
        return tuple(found)

    def optimum(self, C: Any, rule: FlopRule = SIX_ND) -> Optimum:
        """N and D of lowest loss at C FLOPs, by golden section in log N; one minimum is assumed."""
        C = np.asarray(C, float)
        shape = np.broadcast_shapes(C.shape, *(np.shape(value) for value in self.params.values()))
        high = np.minimum(np.log(HUGE_N), np.log(C / rule.k) / rule.p)
        N = np.exp(minimise(lambda x: self.loss(np.exp(x), rule.tokens(C, np.exp(x))), np.log(TINY_N), high, shape))
        D = rule.tokens(C, N)
        return Optimum(N, D, self.loss(N, D))

    def exponents(self, rule: FlopRule = SIX_ND) -> tuple[Any, Any]:
        """a, b of N_opt ~ C^a, D_opt ~ C^b, where `power_optimum` says that there are any."""
        raise NotImplementedError(f"{self.name}: N_opt and D_opt are no power laws of compute")

    def log_coefficients(self, rule: FlopRule = SIX_ND) -> tuple[Any, Any]:
        """Logs of the factors in N_opt = G C^a and D_opt = H C^b, where there are any."""
        raise NotImplementedError(f"{self.name}: N_opt and D_opt are no power laws of compute")

    def frontier(self, rule: FlopRule = SIX_ND) -> Any:
        """The loss along the optimum, with `.loss(C)`, `.compute(loss)` and its floor `.E`."""
        return Frontier(self, rule)

    @classmethod
    def guess(cls, inputs: Mapping[str, np.ndarray], loss: np.ndarray, u: np.ndarray) -> dict[str, np.ndarray]:
        """Starts of a fit: each parameter (starts,), from uniform numbers u (starts, parameters).

        General form: positive ones log-uniform in [1e-3, 1e3], the others in [-1, 1]; a law that knows its
        scales overrides it (`guess_shares` helps).
        """
        names = cls.param_names()
        return {
            name: 10 ** (6 * column - 3) if name in cls.positive else 2 * column - 1
            for name, column in zip(names, u.T, strict=True)
        }


def guess_shares(
    x: np.ndarray, loss: np.ndarray, u_share: np.ndarray, u_exponent: np.ndarray, exponents: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Coefficient and exponent of a term A / x^alpha that makes up a share of the loss at the data's middle.

    Shares are log-uniform in [.02, 1] of the mean loss, exponents log-uniform in `exponents`.
    """
    alpha = exponents[0] * (exponents[1] / exponents[0]) ** u_exponent
    share = 0.02**u_share
    return share * float(np.mean(loss)) * np.exp(alpha * float(np.mean(np.log(x)))), alpha


@dataclass(frozen=True)
class Frontier:
    """L_opt(C) of a law without a closed form, and its inverse by bisection in log C."""

    law: Law
    rule: FlopRule
    equation = "L_opt(C) = min over N of L(N, D), C = k N^p D"

    @property
    def E(self) -> Any:
        """The loss at a compute nobody will spend, 1e60 FLOPs: the floor for practical purposes."""
        return self.loss(1e60)

    def loss(self, C: Any) -> Any:
        """Loss at C FLOPs."""
        return self.law.optimum(C, self.rule).loss

    def compute(self, loss: Any) -> Any:
        """FLOPs at which the frontier reaches a loss; infinite at or below its floor."""
        loss = np.asarray(loss, float)
        shape = np.broadcast_shapes(loss.shape, *(np.shape(value) for value in self.law.params.values()))
        low, high = np.full(shape, np.log(1e3)), np.full(shape, np.log(1e60))
        for _ in range(60):
            middle = (low + high) / 2
            above = self.loss(np.exp(middle)) > loss
            low, high = np.where(above, middle, low), np.where(above, high, middle)
        return np.where(loss > self.E, np.exp((low + high) / 2), np.inf)
