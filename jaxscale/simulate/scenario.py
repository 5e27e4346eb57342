"""What is simulated: a law, the cells of a grid, and the noise of its runs; one study of it is one draw.

    log loss = log L(N, D) + shared + trunk_t + s (C / C_smallest)^-power z + outlier

z is normal for each run, trunk_t normal for each trunk (sizes whose runs branch off one another), shared
normal for the whole study (one validation set). An outlier is a run that ended high: it adds
`outlier_size` with probability `outliers`. All deviations are in log loss, that is relative.
Study i of a simulation uses the generator (seed, i) and draws every kind of error in the same order also
where its deviation is 0, so that two scenarios of one seed differ in nothing but what was changed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from jaxscale.errors import MisuseError
from jaxscale.laws import Chinchilla
from jaxscale.runs import Observations
from jaxscale.simulate.forms import Form, build_form
from jaxscale.simulate.layout import Layout

__all__ = ["Draw", "Noise", "Scenario", "draw_study"]


@dataclass(frozen=True)
class Noise:
    """Deviations of log loss, as in the module's equation; shares between 0 and 1."""

    seed: float = 0.005
    power: float = 0.0
    outliers: float = 0.0
    outlier_size: float = 0.05
    shared: float = 0.0
    trunk: float = 0.0

    def __post_init__(self) -> None:
        for name in ("seed", "power", "outlier_size", "shared", "trunk"):
            value = getattr(self, name)
            if not (np.isfinite(value) and value >= 0):
                raise MisuseError(f"noise {name}: {value:g} must be finite and 0 or more; .005 is .5% of the loss")
        if not 0 <= self.outliers < 1:
            raise MisuseError(f"outliers: {self.outliers:g} must be a share from 0 to below 1, as in .02")


@dataclass(frozen=True)
class Scenario:
    """A law, a grid, its noise, the compute asked about, and how the truth departs from the law (`wrong`)."""

    law: Chinchilla
    layout: Layout
    target_C: float
    noise: Noise = field(default_factory=Noise)
    wrong: str = ""

    def __post_init__(self) -> None:
        if not (np.isfinite(self.target_C) and self.target_C > 0):
            raise MisuseError(f"target: {self.target_C:g} FLOPs must be finite and above 0, as in 1e21")
        if not len(self.layout) or min(self.layout.seeds) < 1:
            raise MisuseError("grid: it needs cells of at least one seed; give --budgets, or a source with runs in it")

    @cached_property
    def form(self) -> Form:
        """What losses are drawn from."""
        return build_form(self.wrong, self.law, np.asarray(self.layout.N), max(self.layout.C), self.layout.flop_rule)


@dataclass(frozen=True)
class Draw:
    """One study: its runs, the seed of its fits' bootstraps, and the error that one future run would have."""

    observations: Observations
    fit_seed: int
    future_error: float


def draw_study(scenario: Scenario, seed: int, number: int) -> Draw:
    """Study `number` of the simulation with this seed."""
    rng = np.random.default_rng([seed, number])
    fit_seed = int(rng.integers(2**31))
    layout, noise = scenario.layout, scenario.noise
    cell = np.repeat(np.arange(len(layout)), layout.seeds)
    N, D, C = (np.asarray(part)[cell] for part in (layout.N, layout.D, layout.C))
    future, shared = rng.standard_normal(2) * [noise.seed * _fade(scenario, scenario.target_C), noise.shared]
    trunk = noise.trunk * rng.standard_normal(max(layout.trunk) + 1)
    error = noise.seed * _fade(scenario, C) * rng.standard_normal(len(N))
    error += shared + trunk[np.asarray(layout.trunk)[cell]]
    error += noise.outlier_size * (rng.random(len(N)) < noise.outliers)
    frame = layout.to_frame().assign(loss=scenario.form.measured(N, D) * np.exp(error))
    if noise.trunk:
        frame["parent"] = [f"trunk {layout.trunk[i]}" for i in cell]
    source = {"path": f"study {number} of seed {seed}", "rows_total": len(N), "rows_used": len(N), "rows_refused": []}
    return Draw(Observations(frame, source=source, rule=layout.rule), fit_seed, float(future + shared))


def _fade(scenario: Scenario, C: np.ndarray | float) -> np.ndarray:
    """How much of the noise is left at C."""
    return (np.asarray(C) / min(scenario.layout.C)) ** -scenario.noise.power
