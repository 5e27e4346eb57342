"""From compute to task accuracy in two stages, with intervals and a record of how wrong it was."""

from jaxscale.downstream.fit import fit_downstream
from jaxscale.downstream.result import Downstream

__all__ = ["Downstream", "fit_downstream"]
