"""Observations and fits -> the next cells: which runs narrow the forecast's interval most per FLOP."""

from jaxscale.nextcells.belief import Belief, Places, form_belief
from jaxscale.nextcells.choose import MIN_ARM, MIN_SIZES, choose_cells
from jaxscale.nextcells.noise import RunNoise, estimate_noise
from jaxscale.nextcells.propose import MOST_RUNS, Candidate, NextCells, check_request, next_budgets, propose_cells

__all__ = ["MIN_ARM", "MIN_SIZES", "MOST_RUNS", "Belief", "Candidate", "NextCells", "Places", "RunNoise",
           "check_request", "choose_cells", "estimate_noise", "form_belief", "next_budgets",
           "propose_cells"]  # fmt: skip
