"""Observations and fits -> the next cells: which runs narrow the forecast's interval most per FLOP."""

from jaxscale.nextcells.belief import Belief, Places, form_belief
from jaxscale.nextcells.choose import MIN_ARM, MIN_SIZES, choose_cells
from jaxscale.nextcells.propose import Candidate, NextCells, next_budgets, propose_cells

__all__ = ["MIN_ARM", "MIN_SIZES", "Belief", "Candidate", "NextCells", "Places", "choose_cells", "form_belief",
           "next_budgets", "propose_cells"]  # fmt: skip
