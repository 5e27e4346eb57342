"""A few mixtures trained -> the best one for a budget, by what curve, how sure.

read a table -> laws, a law of each text's loss, and curve, a parabola through the weighted loss -> find the minimum of
each, its interval, its error on mixtures left out -> result. filter: how much of a text to keep, for every budget.
"""

from jaxscale.mixing.filter import FilterFit, find_filter
from jaxscale.mixing.find import find_mixture
from jaxscale.mixing.result import MixtureFit

__all__ = ["FilterFit", "MixtureFit", "find_filter", "find_mixture"]
