"""Sources of data: a learning curve for each, and the loss on one distribution against that on another.

    Sources   L_s(D) = E_s + A_s / D^alpha_s      one alpha for all: the source shifts the curve, not its slope
              (Hestness et al. 2017 found that of models, Kaplan et al. 2020 of test distributions)
    Transfer  L_t = E_t + K (L_s - E_s)^kappa     loss to loss (Brandfonbrener et al. 2024, arXiv 2411.12925;
              Mayilvahanan et al. 2025, arXiv 2502.12120)
              kappa = 1, K = 1: L_t = L_s + c     constant offset (Kaplan et al. 2020, section 3.2.2)

Two pure power laws of the same runs with exponents alpha_s and alpha_t give kappa = alpha_t / alpha_s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxscale.laws.curves import Pow3

__all__ = ["Sources", "Transfer"]


@dataclass(frozen=True)
class Sources:
    """A curve E + A / D^alpha for every source by name.

    >>> law = Sources({"code": Pow3(E=1.0, A=8.0, alpha=0.5), "web": Pow3(E=2.0, A=16.0, alpha=0.5)})
    >>> round(float(law.loss("web", 16.0)), 9), law.shared
    (6.0, True)
    """

    curves: Mapping[str, Pow3]
    equation = "L_s = E_s + A_s / D^alpha_s"

    @property
    def shared(self) -> bool:
        """Whether all sources have one exponent."""
        return len({float(curve.alpha) for curve in self.curves.values()}) == 1

    def loss(self, source: str, D: Any) -> Any:
        """Loss of a source at D tokens."""
        return self.curves[source].loss(D)

    def worth(self, source: str, other: str) -> Any:
        """Tokens of `other` that reduce its loss as far above its floor as one of `source`: shared exponents only.

        >>> law = Sources({"code": Pow3(1.0, 8.0, 0.5), "web": Pow3(2.0, 16.0, 0.5)})
        >>> round(float(law.worth("code", "web")), 9)
        4.0
        """
        if not self.shared:
            return np.nan
        one, two = self.curves[source], self.curves[other]
        return np.exp((np.log(two.A) - np.log(one.A)) / one.alpha)


@dataclass(frozen=True)
class Transfer:
    """L_t = E_t + K (L_s - E_s)^kappa; NaN below E_s.

    >>> float(Transfer(K=2.0, E_s=1.0, kappa=1.0, E_t=0.5).loss(3.0))
    4.5
    """

    K: Any
    E_s: Any
    kappa: Any
    E_t: Any
    equation = "L_t = E_t + K (L_s - E_s)^kappa"
    source = "Brandfonbrener et al. 2024, arXiv 2411.12925"

    def loss(self, loss: Any) -> Any:
        """Loss on t where the loss on s is `loss`, nats."""
        gap = np.asarray(loss, float) - self.E_s
        return self.E_t + self.K * np.power(np.where(gap >= 0, gap, np.nan), self.kappa)
