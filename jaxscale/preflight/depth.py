"""A deep program from two shallow ones: a scan over layers makes everything linear in the depth.

    x(L) = x(L1) + (x(L2) - x(L1)) (L - L1)/(L2 - L1)

for memory (weights, their moments, what the backward pass keeps), collectives and traffic. On a GPU that is exact but
for .3% of the temporaries; on a TPU, whose compiler keeps on chip what is small enough, only arguments and collectives
are, and small models miss their temporaries by 30% (docs/preflight.md). Where memory is short no compiler keeps to the
line: it computes again, or gives up. Compile time does not grow with depth, so this is for a compiler that dies.
"""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from jaxscale.preflight.job import Compiled, Job, Refused, Sent, compile_job

__all__ = ["DEPTHS", "compile_shallow", "extrapolate"]

DEPTHS = (2, 4)
"""Layers that are compiled in place of all."""


def compile_shallow(job: Job, *, timeout_s: float, cache: Path | None = None) -> Compiled | Refused:
    """The job's figures from programs of `DEPTHS` layers; a job as shallow as those is compiled itself."""
    if job.model.n_layers <= DEPTHS[1]:
        return compile_job(job, timeout_s=timeout_s, cache=cache)
    found = []
    for depth in DEPTHS:
        one = compile_job(replace(job, model=replace(job.model, n_layers=depth)), timeout_s=timeout_s, cache=cache)
        if isinstance(one, Refused):
            return one
        found.append(one)
    return extrapolate(found[0], found[1], DEPTHS, job.model.n_layers)


def extrapolate(low: Compiled, high: Compiled, depths: tuple[int, int], depth: int) -> Compiled:
    """Every figure of a program `depth` layers deep, from those of two shallower ones."""
    share = (depth - depths[0]) / (depths[1] - depths[0])

    def line(a: float, b: float) -> float:
        return a + (b - a) * share

    values: dict[str, Any] = {}
    for name in (field.name for field in fields(Compiled)):
        a, b = getattr(low, name), getattr(high, name)
        values[name] = _line_sent(a, b, share) if isinstance(a, tuple) else line(a, b)
    values["code_bytes"] = high.code_bytes
    values["compile_s"] = low.compile_s + high.compile_s
    return Compiled(**values)


def _line_sent(low: tuple[Sent, ...], high: tuple[Sent, ...], share: float) -> tuple[Sent, ...]:
    first, second = ({(one.kind, one.size, one.span): one for one in row} for row in (low, high))
    found = []
    for key in dict.fromkeys((*first, *second)):
        nothing = Sent(*key, 0, 0.0, 0.0)
        a, b = first.get(key, nothing), second.get(key, nothing)
        found.append(Sent(
            *key, round(a.times + (b.times - a.times) * share),
            a.payload_bytes + (b.payload_bytes - a.payload_bytes) * share,
            a.sent_bytes + (b.sent_bytes - a.sent_bytes) * share,
        ))  # fmt: skip
    return tuple(found)
