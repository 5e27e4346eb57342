"""A few mixtures trained -> the best one for a budget, by what curve, how sure.

read a table -> laws, a law of each text's loss, and curve, a parabola through the weighted loss -> find the minimum of
each, its interval, its error on mixtures left out -> result
"""

from jaxscale.mixing.find import find_mixture
from jaxscale.mixing.result import MixtureFit

__all__ = ["MixtureFit", "find_mixture"]
