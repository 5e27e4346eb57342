"""Which schedules made the points of a fit: cosine or WSD runs of their own, or decayed branches of WSD trunks.

A law compares losses that differ in N and D alone. A branch's loss is close to that of a run of its own (Haegele et
al. 2024), a WSD run's is close to a cosine run's, but neither is equal, so a table that mixes them is told.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from jaxscale.fit.result import Fit

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["annotate_family", "count_families", "suspect_families"]


def count_families(frame: pd.DataFrame) -> dict[str, int]:
    """Runs of each family, the commonest first; empty where the table does not say."""
    if "family" not in frame:
        return {}
    return {str(name): int(count) for name, count in frame["family"].dropna().value_counts().items()}


def suspect_families(frame: pd.DataFrame) -> list[str]:
    """A sentence where runs of several families stand in one table."""
    families = count_families(frame)
    if len(families) < 2:
        return []
    seen = ", ".join(f"{count} {name}" for name, count in families.items())
    return [f"the table mixes runs of different schedules ({seen}): their losses differ by more than N and D at equal "
            f"size and tokens; fit them apart with --where \"family == '{next(iter(families))}'\""]  # fmt: skip


def annotate_family(fit: Fit, frame: pd.DataFrame) -> Fit:
    """The fit with diagnostics["family"], and of branches a note how many trunks they share."""
    families = count_families(frame)
    if not families or "family" in fit.diagnostics:
        return fit
    found = {**fit.diagnostics, "family": families}
    branches = frame[frame["family"].astype(str).str.endswith("-branch")]
    if len(branches) and not fit.verdict:
        trunks = f" of {branches['parent'].nunique()} trunks" if "parent" in branches else ""
        found["notes"] = [*fit.notes, f"{len(branches)} points are decayed branches{trunks}: points of one trunk share "
                          f"its luck and are resampled together; a branch stands for a run of its own"]  # fmt: skip
    return replace(fit, diagnostics=found)
