"""The cells of a grid that is simulated: laid around a law's optima, or those of a plan, a table, a fit.

Repeated runs of a cell are its seeds. A trunk is what shares an error beyond the seed's: in a laid grid the same
place in every budget's row of sizes, else a size N.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np

from jaxscale.errors import MisuseError, VerdictError
from jaxscale.fit.cells import assign_budgets, gather_cells
from jaxscale.fit.result import Fit
from jaxscale.fit.summary import describe_rule
from jaxscale.laws import SIX_ND, FlopRule
from jaxscale.runs import Observations, Plan
from jaxscale.simulate.forms import Form

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Layout", "lay_fit", "lay_grid", "lay_observations", "lay_plan"]

Rule = Literal["6ND", "exact"]


@dataclass(frozen=True)
class Layout:
    """The cells of a grid, one entry a cell: N, D, C, the budget it belongs to, its trunk, its seeds.

    `rule` is how C counts: 6ND, or the exact count of own runs (then k N^p D as fits describe it).
    """

    N: tuple[float, ...]
    D: tuple[float, ...]
    C: tuple[float, ...]
    budget: tuple[float, ...] | None
    trunk: tuple[int, ...]
    seeds: tuple[int, ...]
    rule: Rule = "6ND"

    def __len__(self) -> int:
        return len(self.N)

    @property
    def runs(self) -> int:
        """Runs in all, seeds included."""
        return sum(self.seeds)

    @property
    def budgets(self) -> int:
        """How many budgets; 0 where the cells form none."""
        return len(set(self.budget)) if self.budget else 0

    @cached_property
    def flop_rule(self) -> FlopRule:
        """C = k N^p D, by the same least squares as in a fit."""
        if self.rule == "6ND":
            return SIX_ND
        obs = Observations(self.to_frame().assign(loss=1.0), rule="exact")
        counted = describe_rule(obs, gather_cells(obs))
        return FlopRule(counted["k"], counted["p"])

    def to_frame(self) -> pd.DataFrame:
        """One row a run, without losses: N, D, C, seed, and where known budget."""
        import pandas as pd

        cell = np.repeat(np.arange(len(self)), self.seeds)
        rows = {name: np.asarray(getattr(self, name), float)[cell] for name in ("N", "D", "C")}
        seed = np.concatenate([np.arange(count) for count in self.seeds])
        frame = pd.DataFrame({**rows, "seed": seed})
        return frame.assign(budget=np.asarray(self.budget)[cell]) if self.budget else frame


def lay_grid(law: Form, budgets: Sequence[float], *, sizes: int = 7, span: float = 6.0, seeds: int = 1) -> Layout:
    """An IsoFLOP grid: `sizes` sizes even in log N within a factor `span` of the optimum at each budget (6ND)."""
    C = np.sort(np.asarray(budgets, float))
    if not len(C) or not (np.isfinite(C) & (C > 0)).all():
        raise MisuseError("budgets: give one or more training FLOPs above 0, as in 1e18 3e18 9e18")
    if sizes < 1 or seeds < 1 or not span > 1:
        raise MisuseError(f"grid: {sizes} sizes within a factor {span:g} and {seeds} seeds; use at least one size, "
                          f"one seed and a span above 1")  # fmt: skip
    place = np.geomspace(1 / span, span, sizes) if sizes > 1 else np.ones(1)
    N = np.concatenate([law.optimum(c, SIX_ND).N * place for c in C])
    budget = np.repeat(C, sizes)
    trunk = tuple(range(sizes)) * len(C)
    return Layout(
        tuple(N.tolist()), tuple((budget / 6 / N).tolist()), tuple(budget.tolist()), tuple(budget.tolist()), trunk,
        (seeds,) * len(N),
    )  # fmt: skip


def lay_plan(plan: Plan) -> Layout:
    """The grid cells of a plan; held-out ones are no part of a fit."""
    import pandas as pd

    rows = [
        {"budget": cell.spec.budget_flops, "N": float(cell.n_params), "D": float(cell.spec.tokens), "C": cell.flops}
        for cell in plan.cells
        if cell.role == "grid"
    ]
    if not rows:
        raise VerdictError(f"plan of {plan.study}: no cell of role grid to simulate")
    cells = pd.DataFrame(rows).groupby(["budget", "N", "D"], as_index=False)
    return _lay_frame(cells.agg(C=("C", "mean"), weight=("C", "size")), "exact")


def lay_observations(obs: Observations) -> Layout:
    """The cells that a fit of these observations would see."""
    import pandas as pd

    cells = gather_cells(obs)
    frame = pd.DataFrame({"N": cells.N, "D": cells.D, "C": cells.C, "weight": cells.seed_dof + 1})
    return _lay_frame(frame.assign(budget=cells.budget) if len(cells.budget_C) else frame, obs.rule)


def lay_fit(fit: Fit) -> Layout:
    """The cells that a parametric fit saw, budgets as C shows them."""
    import pandas as pd

    return _lay_frame(pd.DataFrame(fit.diagnostics["residuals"]), fit.diagnostics["flops"]["rule"])


def _lay_frame(frame: pd.DataFrame, rule: Rule) -> Layout:
    """Cells N, D, C, where known `budget` and `weight` (runs of a cell)."""
    import pandas as pd

    number, _ = assign_budgets(frame)
    log_C = np.log(frame["C"].to_numpy(float))
    budget = None if (number < 0).any() else tuple(float(np.exp(log_C[number == b].mean())) for b in number)
    runs = frame["weight"].to_numpy(float) if "weight" in frame else np.ones(len(frame))
    N, D, C = (tuple(frame[name].to_numpy(float).tolist()) for name in ("N", "D", "C"))
    trunk = tuple(pd.factorize(frame["N"])[0].tolist())
    return Layout(N, D, C, budget, trunk, tuple(max(1, round(count)) for count in runs), rule)
