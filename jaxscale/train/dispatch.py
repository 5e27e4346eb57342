"""How a run is cut into dispatches: microbatches that one holds, steps that one makes, steps of a logging line.

A program's shape holds `slots` microbatches, a number that follows from the size of one microbatch only, so that all
cells of a model share one program; how many of them a dispatch uses is a runtime value. A dispatch is about a second
of work at most, and a line of the curve one dispatch or a few.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from jaxscale.flops import flops_per_token
from jaxscale.runs import RunSpec

__all__ = ["Dispatches", "count_slots", "lay_out"]

LOG_LINES = 200
"""Lines of metrics.jsonl a run writes, about; a long run more."""
LINE_DISPATCHES = 16
"""Dispatches of FEW_SLOTS in a logging interval at most: a run asked to stop ends its interval first, in seconds."""
DISPATCH_FLOPS = {"cpu": 1e10, "gpu": 2e14, "tpu": 2e14}
"""FLOPs of one dispatch on one device: about a second, so that a preempted run can stop in time."""
FEW_SLOTS = 32
"""Microbatches in a dispatch, at most, where that makes a line of its own."""
SLOT_BYTES, MIN_SLOTS, MAX_SLOTS = 1 << 20, 16, 256
"""A dispatch's token ids, about, and bounds: short windows are many, long ones few."""


@dataclass(frozen=True)
class Dispatches:
    """One run's dispatches."""

    slots: int
    """Microbatches that the program's arrays hold."""
    accumulate: int
    """Microbatches of a step."""
    steps: int
    """Optimizer steps of a dispatch."""
    line: int
    """Steps of a logging interval, whole dispatches."""


def count_slots(spec: RunSpec, microbatch_seqs: int) -> int:
    """Microbatches that a dispatch's arrays hold: a power of two, equal for all runs of a shape whose batch fits."""
    window = 4 * microbatch_seqs * (spec.model.seq_len + 1)
    slots = min(max(SLOT_BYTES // window, MIN_SLOTS), MAX_SLOTS)
    return max(1 << (slots.bit_length() - 1), 1 << (spec.batch_seqs // microbatch_seqs - 1).bit_length())


def lay_out(spec: RunSpec, microbatch_seqs: int, backend: str, devices: int, members: int = 1) -> Dispatches:
    """The dispatches of `members` runs like `spec` together, in microbatches of this many sequences."""
    slots, accumulate = count_slots(spec, microbatch_seqs), spec.batch_seqs // microbatch_seqs
    microbatch_flops = members * microbatch_seqs * spec.model.seq_len * flops_per_token(spec.model)
    affordable = DISPATCH_FLOPS.get(backend, 1e10) * devices / microbatch_flops
    few = max(1, min(FEW_SLOTS, slots, 1 << max(0, math.floor(math.log2(max(affordable, 1))))) // accumulate)
    parts = min(LINE_DISPATCHES, math.ceil(spec.steps / (few * LOG_LINES)))
    joined = max(1, min(slots, int(affordable)) // (few * accumulate))
    dispatches = math.ceil(parts / joined)
    steps = few * math.ceil(parts / dispatches)
    return Dispatches(slots, accumulate, steps, steps * dispatches)
