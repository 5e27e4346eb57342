"""The loss at the optimum and its interval: over other seeds too, where there are any.

    var L* = MSB / n + s^2 d' V d

n runs in the window, MSB the mean square between seeds (their offsets, pooled over the members of the ladder; it
holds s^2 itself, and s^2 stands for it with one seed: the interval is then that of this seed's curve). The second
term is that of the curve at x*, with d the step there from the mean of the basis; x* itself adds nothing, L is flat.
Degrees of freedom by Satterthwaite. Those of MSB are members times (seeds - 1) where a seed's offset is its own in
each member, and seeds - 1 where members share it: between, by the squared share of the products over members.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxscale.fit.resample import t_quantile
from jaxscale.mup.tilt import Joint, lean

__all__ = ["Between", "loss_interval", "measure_between"]


@dataclass(frozen=True)
class Between:
    """Mean square between seeds (nats^2) and its dof, 0 with one seed; the deviation of one run with and without
    what its seed does at every rate; the share that members have in common."""

    mean_square: float
    dof: float
    run_std: float
    seed_std: float | None
    shared: float


def measure_between(joint: Joint) -> Between:
    """Offsets of the seeds, pooled over the members."""
    own = float(np.sqrt(joint.variance))
    found = [_offsets(joint, member) for member in range(len(joint.lanes))]
    dof = float(sum(len(offset) - 1 for offset in found))
    if dof < 1:
        return Between(joint.variance, 0.0, own, None, 0.0)
    per_seed = float(np.mean([len(lane.window.t) / lane.window.seeds for lane in joint.lanes]))
    square = sum(value**2 for offset in found for value in offset.values()) * per_seed / dof
    shared = _share(found)
    distinct = len({number for offset in found for number in offset})
    seed_variance = max(square - joint.variance, 0.0) / per_seed
    effective = 1 / (shared**2 / max(distinct - 1, 1) + (1 - shared**2) / dof)
    return Between(max(square, joint.variance), effective,
                   float(np.sqrt(joint.variance + seed_variance)), float(np.sqrt(seed_variance)), shared)  # fmt: skip


def _offsets(joint: Joint, member: int) -> dict[int, float]:
    """Each seed's mean residual, less their mean."""
    lane, w = joint.lanes[member], joint.lanes[member].window
    b, k = lane.coef[joint.best]
    rest = w.loss - b * w.t - k * lean(joint.c[joint.best], w.t)
    mean = np.bincount(w.seed, rest) / np.bincount(w.seed)
    return dict(zip(w.numbers, (mean - mean.mean()).tolist(), strict=True))


def _share(found: Sequence[dict[int, float]]) -> float:
    """Products of one seed's offsets in two members over their squares, 0 to 1."""
    products = squares = 0.0
    for i, one in enumerate(found):
        for other in found[i + 1 :]:
            both = set(one) & set(other)
            products += sum(one[seed] * other[seed] for seed in both)
            squares += sum(one[seed] ** 2 + other[seed] ** 2 for seed in both) / 2
    return float(np.clip(products / squares, 0.0, 1.0)) if squares > 0 else 0.0


def loss_interval(joint: Joint, member: int, between: Between, confidence: float) -> tuple[float, tuple[float, float]]:
    """L* of a member and its interval: over every c that the profile allows, with what that c leaves of the budget."""
    lane, w = joint.lanes[member], joint.lanes[member].window
    u = lane.optimum() - w.origin
    loss = lane.level + lane.coef[:, 0] * u + lane.coef[:, 1] * lean(joint.c, u)
    phi = lean(joint.c[:, None], w.t[None]).mean(1)
    step = np.stack([u - w.t.mean(), lean(joint.c, u) - phi], -1)
    seeds = between.mean_square / len(w.t)
    curve = joint.variance * joint.inflation * np.einsum("mi,mij,mj->m", step, lane.cov, step)
    at = joint.best
    dof = (seeds + curve[at]) ** 2 / (seeds**2 / (between.dof or joint.dof) + curve[at] ** 2 / joint.dof)
    budget = joint.budget(confidence)
    share = np.sqrt(np.maximum(budget / budget.max(), 0.0))
    half = t_quantile(confidence, float(dof)) * np.sqrt(seeds + curve) * share
    known = (budget >= 0) & np.isfinite(loss)
    return float(loss[at]), (float((loss - half)[known].min()), float((loss + half)[known].max()))
