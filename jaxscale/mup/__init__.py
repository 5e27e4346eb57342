"""muP on this code: the rules of a concrete model, a coordinate check that can fail, and whether rates transfer.

`table` and `expect` are arithmetic on shapes and load no JAX; `measure` runs the steps, `check` judges them.
`rates`, `tilt`, `level` and `regret` read a learning-rate sweep's runs, `analyse` puts them together; no JAX either.
"""

from jaxscale.mup.analyse import analyse_sweep
from jaxscale.mup.transfer import Transfer

__all__ = ["Transfer", "analyse_sweep"]
