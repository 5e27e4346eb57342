"""Do model families share one curve from NLL to accuracy? An F test, and what to do where they do not.

    shared    one curve for all
    apart     lower end and ceiling of the shared curve, a position x0 and a slope k for each family
    F = ((RSS_shared - RSS_apart) / (2 (families - 1))) / (RSS_apart / (n - p))

n counts WORTH independent points a run: the checkpoints of a run are one model growing, and counting each would find
every difference significant. Stage 1 is always the law of the grid's own family; another family only helps stage 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxscale.downstream.accuracy import BOUNDS, RESIDUALS, WORTH, Curve, fit_curves
from jaxscale.downstream.points import Pairs, Run
from jaxscale.downstream.recipe import Recipe
from jaxscale.downstream.solve import solve
from jaxscale.errors import MisuseError
from jaxscale.fit.resample import f_tail

__all__ = ["FAMILY_CHOICES", "choose_family", "compare_families"]

FAMILY_CHOICES = ("auto", "shared", "grid", "compare")
"""auto: shared unless the test says otherwise; compare: the same, and misuse where there is only one family."""
LEVEL = 0.01
"""Families are told apart below this p-value."""


def choose_family(runs: Sequence[Run], targets: Sequence[Run], asked: str) -> str:
    """The family stage 1 belongs to: the targets' own, else the one with most fitted runs."""
    if asked not in FAMILY_CHOICES:
        raise MisuseError(f"families {asked!r} is unknown; use one of {', '.join(FAMILY_CHOICES)}")
    names = [run.family for run in runs]
    if asked == "compare" and len(set(names)) < 2:
        raise MisuseError(f"families: all fitted runs are of {names[0]!r}, there is nothing to compare; map a column "
                          f"with two or more as family=NAME")  # fmt: skip
    wanted = {run.family for run in targets} & set(names)
    if len(wanted) == 1:
        return wanted.pop()
    return max(dict.fromkeys(names), key=names.count)


def compare_families(
    pairs: Pairs, runs: Sequence[Run], own: str, recipe: Recipe, chance: float, asked: str
) -> dict[str, Any] | None:
    """What the test says and which families stage 2 uses; None with a single family."""
    family = np.array([run.family for run in runs])
    names = list(dict.fromkeys(family))
    if len(names) < 2:
        return None
    counted = {name: int((family == name).sum()) for name in names}
    shared, apart = _squares(pairs, family, names, recipe, chance)
    n = WORTH * len(runs) if len(pairs.x) >= WORTH * len(runs) else len(pairs.x)
    more, left = 2 * (len(names) - 1), n - 4 - 2 * (len(names) - 1)
    p = f_tail(max(shared - apart, 0.0) / more / max(apart / left, 1e-300), more, left) if left > 0 else float("nan")
    differ = p < LEVEL
    use_all = asked == "shared" or (asked in ("auto", "compare") and not differ)
    rms = {name: float(np.sqrt(value / len(pairs.x))) for name, value in (("shared", shared), ("apart", apart))}
    return {"own": own, "runs": counted, "p_value": None if np.isnan(p) else float(p), "level": LEVEL,
            "differ": bool(differ), "stage2": names if use_all else [own], "rms": rms,
            "words": _say(names, own, p, differ, use_all)}  # fmt: skip


def _squares(
    pairs: Pairs, family: np.ndarray, names: Sequence[str], recipe: Recipe, chance: float
) -> tuple[float, float]:
    """Sums of squares about the shared curve, and about a curve of each family with the same ends."""
    form = "loglogistic"
    every = np.ones((1, len(family)))
    shared, _ = fit_curves(pairs, recipe, form, chance, every)
    lanes = np.stack([(family == name).astype(float) for name in names])
    w = np.sqrt(lanes[:, pairs.run])
    start = np.tile(shared.theta[0], (len(names), 1))
    none = np.zeros(len(names))
    free = np.array([[1.0, 1.0, 0.0, 0.0]])
    found = solve(RESIDUALS[form], start, [pairs.x[None], pairs.y[None], w, none, none, none],
                  bounds=BOUNDS[form], free=free)  # fmt: skip
    apart = Curve(form, found.theta[:, None]).accuracy(pairs.x)
    which = np.array([names.index(name) for name in family])[pairs.run]
    own = apart[which, np.arange(len(pairs.x))]
    off = shared.accuracy(pairs.x)
    return float(((off - pairs.y) ** 2).sum()), float(((own - pairs.y) ** 2).sum())


def _say(names: Sequence[str], own: str, p: float, differ: bool, use_all: bool) -> str:
    if np.isnan(p):
        return f"too few runs to test whether {', '.join(names)} share a curve"
    word = "differ" if differ else "share a curve as far as the runs can tell"
    used = "stage 2 is fitted on all of them" if use_all else f"stage 2 is fitted on {own} alone"
    return f"families {', '.join(names)} {word} (F test, p = {p:.2g}); {used}"
