"""Cooldown branches: one run a size at a constant rate, and a decay from its states for every budget.

A WSD schedule is constant between warmup and decay, so runs of one size that differ only in their horizon are equal
until the first of them decays (Haegele et al. 2024, 2405.18392; Hu et al. 2024, 2404.06395). Of runs with S_1 < S_2 <
.. steps, each decaying over its last d_i, the trunk makes the shared part once and keeps its states at

    s_i = S_i - d_i,        paid = max(s_i) + sum(d_i) steps        instead of sum(S_i)

A branch is by its specification the uninterrupted run, plus where it takes its state from: trained without a trunk,
`replace(branch, parent="", parent_step=0)` gives the same numbers to the bit on the same device.

    <trunk>/kept/<step>/state  metrics.jsonl  attempts.jsonl     all that a branch takes over; state appears last
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from jaxscale.errors import MisuseError
from jaxscale.flops import flops_per_token
from jaxscale.runs import RunSpec, run_dir

__all__ = ["branch_off", "has_kept", "kept_dir", "mean_horizon"]

HORIZON = ("budget_flops", "tokens", "steps", "decay_steps")
"""What may differ between the runs of one trunk."""


def mean_horizon(tokens: Sequence[float]) -> float:
    """Geometric mean of the horizons of one size: batch, rate, decay and warmup of its trunk are set there.

    >>> round(mean_horizon([1e6, 4e6]))
    2000000
    """
    return math.exp(sum(math.log(D) for D in tokens) / len(tokens))


def branch_off(runs: Sequence[RunSpec]) -> tuple[RunSpec, tuple[RunSpec, ...]]:
    """The trunk of these runs (any order), and the runs as its branches in the order given.

    MisuseError where they differ in more than their horizon, are no WSD runs, or decay from within the warmup.
    """
    shared = {replace(run, budget_flops=0.0, tokens=0, steps=0, decay_steps=0) for run in runs}
    if len(shared) != 1:
        raise MisuseError(f"{len(runs)} runs share no trunk: they differ in more than {', '.join(HORIZON)}")
    first = runs[0]
    if first.average_steps:
        raise MisuseError("recipe.average_fraction: branches of a trunk end in their last weights; use 0, or "
                          "--grid.schedule runs")  # fmt: skip
    starts = [run.steps - run.decay_steps for run in runs]
    if first.schedule != "wsd" or min(starts) <= first.warmup_steps:
        raise MisuseError(f"a trunk of schedule {first.schedule!r} with {first.warmup_steps} steps of warmup is too "
                          f"short for a branch at step {min(starts)}; lengthen the smallest budget's runs, or lower "
                          f"recipe.warmup_fraction or recipe.decay_fraction")  # fmt: skip
    steps = max(starts)
    tokens = steps * first.batch_seqs * first.model.seq_len
    trunk = replace(
        first,
        budget_flops=float(flops_per_token(first.model) * tokens),
        tokens=tokens,
        steps=steps,
        decay_steps=0,
        final_fraction=1.0,  # its last update, too, is made at the full rate
        keeps=tuple(sorted(set(starts))),
    )
    branches = [replace(run, parent=trunk.run_id, parent_step=at) for run, at in zip(runs, starts, strict=True)]
    return trunk, tuple(branches)


def kept_dir(study_dir: Path, trunk: str, step: int) -> Path:
    """Where the trunk with this run id keeps its state after `step` steps."""
    return run_dir(study_dir, trunk) / "kept" / str(step)


def has_kept(study_dir: Path, trunk: str, step: int) -> bool:
    """Whether that state is there, whole."""
    return (kept_dir(study_dir, trunk, step) / "state").is_dir()
