"""Studies drawn from a known law and fitted again: bias, coverage and width of what a grid would say."""

from jaxscale.simulate.forms import WRONG_FORMS
from jaxscale.simulate.result import Simulation
from jaxscale.simulate.run import Interrupted, simulate_studies
from jaxscale.simulate.scenario import Layout, Noise, Scenario, lay_grid

__all__ = ["WRONG_FORMS", "Interrupted", "Layout", "Noise", "Scenario", "Simulation", "lay_grid", "simulate_studies"]
