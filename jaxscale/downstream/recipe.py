"""What a two-stage forecast assumes, as values: the published recipe, and ours, chosen by backtests.

    stage 1   L(N, D) = A / N^alpha + B / D^beta + E            NLL of the correct answer at the end of a run
    stage 2   accuracy = F(L)                                   over checkpoints

`olmo-ladder` is Bhagia et al. 2024 (arXiv 2412.04403): the two stages fitted freely. `default` differs in two ways:
exponents and floor are drawn towards what scaling laws usually show (a maximum a posteriori fit: five parameters on
sixteen runs, or eight, are otherwise ill determined, and an exponent of .8 beyond the data costs 9% of the NLL), and
stage 2 is the mean of two curves that agree on the data and differ beyond them. docs/downstream.md has the backtests.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxscale.errors import MisuseError

__all__ = ["LAWS", "RECIPES", "Prior", "Recipe", "find_recipe"]

LAWS = ("auto", "nd", "power", "log-linear")
"""Stage 1: L(N, D); A / C^alpha + E; A / C^alpha (Llama 3's line in logs). auto is nd where there are N and D."""


@dataclass(frozen=True)
class Prior:
    """Normal in logs: alpha and beta about `exponent`, E about `floor` times the lowest NLL measured, and the terms of
    N and D at the centre of the runs about one size."""

    exponent: float = 0.25
    exponent_sd: float = 0.2
    floor: float = 0.45
    floor_sd: float = 0.4
    share_sd: float = 1.0


@dataclass(frozen=True)
class Recipe:
    """How the stages are fitted; `window` and `skip` say which checkpoints count."""

    name: str
    prior: Prior | None
    forms: tuple[str, ...]
    chance_sd: float | None
    """Deviation of a curve's lower end about the chance level; None leaves it free."""
    huber_delta: float | None
    """Stage 1 by Huber on log residuals with this delta at its optimum; None: least squares with clipped outliers."""
    fewest: int
    """Runs that stage 1 needs."""
    window: int = 5
    """Checkpoints of a trailing mean, and of the mean that stands for a run's end."""
    sparse: bool = False
    """Shorten the window where a run has few checkpoints: the last five of eight are no end."""
    early_stop: bool = False
    """Stage 2 where the published optimizer stops, some 1e-6 short of the optimum (published.py)."""
    skip: float = 0.1
    """Share of a run's first checkpoints that stage 2 does not see."""


RECIPES = {
    "default": Recipe("default", Prior(), ("sigmoid", "loglogistic"), 0.05, None, fewest=4, sparse=True),
    "olmo-ladder": Recipe("olmo-ladder", None, ("sigmoid",), None, 1e-3, fewest=5, early_stop=True),
}


def find_recipe(name: str | Recipe) -> Recipe:
    """A recipe by name, or one made by hand; MisuseError for any other."""
    if isinstance(name, Recipe):
        return name
    if name not in RECIPES:
        raise MisuseError(f"recipe {name!r} is unknown; use one of {', '.join(RECIPES)}")
    return RECIPES[name]
