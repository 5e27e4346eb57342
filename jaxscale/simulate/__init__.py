"""Studies drawn from a known law and fitted again: bias, coverage and width of what a grid would say."""

from jaxscale.simulate.forms import WRONG_FORMS
from jaxscale.simulate.layout import Layout, lay_fit, lay_grid, lay_observations, lay_plan
from jaxscale.simulate.result import Simulation
from jaxscale.simulate.run import Interrupted, simulate_studies
from jaxscale.simulate.scenario import Noise, Scenario

__all__ = [
    "WRONG_FORMS", "Interrupted", "Layout", "Noise", "Scenario", "Simulation", "lay_fit", "lay_grid",
    "lay_observations", "lay_plan", "simulate_studies",
]  # fmt: skip
