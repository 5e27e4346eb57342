"""What a benchmark of steps says: jaxscale.bench/1.

ratio          our tokens per second over the peer's, the median of the rounds' ratios
loop overhead  seconds of a step inside the training loop over those of the bare one, less 1, the same median
mfu            flops_per_s over the peak of the devices, where jaxscale.hardware knows them
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

from jaxscale.bench.contest import Turn
from jaxscale.bench.shapes import Shape
from jaxscale.hardware import find_peak
from jaxscale.tables import render_table

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["OURS", "Bench", "Loop", "Peer", "Row", "compare_turns"]

OURS = "jaxscale"


@dataclass(frozen=True)
class Peer:
    """A peer beside us; ratios are ours over theirs."""

    tokens_per_s: float
    flops_per_s: float
    ratio: float
    ratio_min: float
    ratio_max: float
    about: Mapping[str, Any]


@dataclass(frozen=True)
class Loop:
    """The training loop over the bare step: seconds of a step in each, and the relative overhead."""

    step_s: float
    bare_s: float
    overhead: float
    overhead_min: float
    overhead_max: float


@dataclass(frozen=True)
class Row:
    """A shape: our rates (medians of the rounds), the peers, and the loop where it was asked for."""

    shape: Shape
    tokens_per_s: float
    flops_per_s: float
    step_s: float
    rounds: int
    peers: Mapping[str, Peer]
    about: Mapping[str, Any]
    mfu: float | None = None
    loop: Loop | None = None


@dataclass(frozen=True)
class Bench:
    """All shapes of one call, and the machine."""

    rows: tuple[Row, ...]
    machine: Mapping[str, Any] = field(default_factory=dict)
    schema: str = "jaxscale.bench/1"

    def to_plain(self) -> dict[str, Any]:
        """As plain data, schema jaxscale.bench/1."""
        return {"schema": self.schema, "rows": [asdict(row) for row in self.rows], "machine": dict(self.machine)}

    def to_json(self) -> str:
        """As JSON, schema jaxscale.bench/1."""
        return json.dumps(self.to_plain(), indent=1)

    def to_frame(self) -> pd.DataFrame:
        """A row a shape and contestant."""
        import pandas as pd

        return pd.DataFrame([
            {"shape": str(row.shape), "contestant": name, "tokens_per_s": rate, "ratio": ratio}
            for row in self.rows
            for name, rate, ratio in [(OURS, row.tokens_per_s, 1.0),
                                      *((name, p.tokens_per_s, p.ratio) for name, p in row.peers.items())]
        ])  # fmt: skip

    def __str__(self) -> str:
        columns = ["D,L,H,B,T,V", "", "ms a step", "tokens/s", "GFLOP/s", "MFU", "ours over it", "lowest", "highest"]
        rows = [cells for row in self.rows for cells in _table_rows(row)]
        return render_table(f"a training step on {self.machine.get('device', 'this machine')}", columns, rows)


def _table_rows(row: Row) -> list[list[str | None]]:
    """Ours, the loop around it, and each peer."""

    def rates(tokens_per_s: float) -> list[str]:
        step_ms = 1e3 * row.shape.tokens / tokens_per_s
        return [f"{step_ms:.4g}", f"{tokens_per_s:,.0f}", f"{tokens_per_s * row.shape.flops / 1e9:.1f}"]

    mfu = f"{row.mfu:.1%}" if row.mfu else None
    found = [[str(row.shape), OURS, *rates(row.tokens_per_s), mfu, None, None, None]]
    if row.loop is not None:
        over = (row.loop.overhead, row.loop.overhead_min, row.loop.overhead_max)
        found.append(["", "its loop", *rates(row.shape.tokens / row.loop.step_s), None, *(f"{x:+.1%}" for x in over)])
    for name, peer in row.peers.items():
        ratios = (peer.ratio, peer.ratio_min, peer.ratio_max)
        found.append(["", name, *rates(peer.tokens_per_s), None, *(f"{x:.2f}" for x in ratios)])
    return found


def compare_turns(
    shape: Shape, about: Mapping[str, Mapping[str, Any]], turns: Mapping[tuple[str, str], Sequence[Turn]]
) -> Row:
    """The row of a contest: turns by (contestant, turn), ours among them, the same number of rounds for each."""
    ours = [shape.tokens / turn.step_s for turn in turns[OURS, "step"]]
    rate = median(ours)
    peers = {name: _compare(shape, ours, found, about[name]) for (name, _), found in turns.items() if name != OURS}
    loops = turns.get((OURS, "loop"))
    return Row(
        shape=shape,
        tokens_per_s=rate,
        flops_per_s=rate * shape.flops,
        step_s=shape.tokens / rate,
        rounds=len(ours),
        peers=peers,
        about=about[OURS],
        mfu=_mfu(rate * shape.flops, about[OURS]),
        loop=_measure_loop(loops, turns[OURS, "step"]) if loops else None,
    )


def _compare(shape: Shape, ours: Sequence[float], turns: Sequence[Turn], about: Mapping[str, Any]) -> Peer:
    theirs = [shape.tokens / turn.step_s for turn in turns]
    ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    rate = median(theirs)
    return Peer(rate, rate * shape.flops, median(ratios), min(ratios), max(ratios), about)


def _measure_loop(loops: Sequence[Turn], bare: Sequence[Turn]) -> Loop:
    over = [loop.step_s / step.step_s - 1 for loop, step in zip(loops, bare, strict=True)]
    return Loop(median(t.step_s for t in loops), median(t.step_s for t in bare), median(over), min(over), max(over))


def _mfu(flops_per_s: float, about: Mapping[str, Any]) -> float | None:
    peak = find_peak(str(about.get("device", "")))
    return flops_per_s / (peak * int(about.get("devices", 1))) if peak else None
