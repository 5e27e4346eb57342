"""The learning rate of a planned run, from the result of a sweep: `read_rates(path, study).rate(D, B)`."""

from jaxscale.rates.law import Exponent, Optimum, RateLaw, fit_rates
from jaxscale.rates.read import find_sweep, read_rates
from jaxscale.rates.tell import describe_rates, tell_rates

__all__ = ["Exponent", "Optimum", "RateLaw", "describe_rates", "find_sweep", "fit_rates", "read_rates", "tell_rates"]
