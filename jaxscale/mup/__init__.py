"""muP on this code: the rules of a concrete model, a coordinate check that can fail, and whether rates transfer.

`table` and `expect` are arithmetic on shapes and load no JAX; `measure` runs the steps, `check` judges them.
`rates`, `tilt`, `level`, `regret` and `transfer` read a learning-rate sweep's runs (`analyse_sweep`), without JAX.
"""

from jaxscale.mup.transfer import Transfer, analyse_sweep

__all__ = ["Transfer", "analyse_sweep"]
