"""Variants compared by their laws: a law for each, which one wins at the target scale, with what certainty."""

from jaxscale.compare.result import Comparison
from jaxscale.compare.run import compare_variants

__all__ = ["Comparison", "compare_variants"]
