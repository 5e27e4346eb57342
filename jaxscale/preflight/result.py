"""The answer of a preflight: flat rows for programs, three short tables for people."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from jaxscale.format import UNKNOWN, format_count, format_flops, format_seconds
from jaxscale.hardware import CHIP_TABLE
from jaxscale.preflight.hlo import COLLECTIVES
from jaxscale.preflight.targets import parse_target
from jaxscale.tables import render_table

__all__ = ["Preflight"]

GIB = 2.0**30
MESH = (("data", "d"), ("fsdp", "f"), ("tensor", "t"), ("context", "c"))


@dataclass(frozen=True)
class Preflight:
    """Rows in the order checked; `assumptions` by target."""

    study: str
    rows: tuple[dict[str, Any], ...]
    assumptions: dict[str, tuple[str, ...]]
    schema: str = "jaxscale.preflight/1"

    @property
    def passed(self) -> bool:
        """Whether everything compiles and fits."""
        return all(row["state"] == "fits" for row in self.rows)

    def to_json(self) -> str:
        """Schema jaxscale.preflight/1: rows of flat records, bytes and seconds of one device, FLOPs of all."""
        plain = {"schema": self.schema, "study": self.study, "passed": self.passed, "rows": list(self.rows),
                 "assumptions": self.assumptions}  # fmt: skip
        return json.dumps(plain, indent=1)

    def __str__(self) -> str:
        parts = []
        for target in dict.fromkeys(row["target"] for row in self.rows):
            rows = [row for row in self.rows if row["target"] == target]
            parts += [*_tell_target(target, rows), *(_wrap(f"assumed: {line}") for line in self.assumptions[target])]
        return "\n".join(parts)


def _wrap(line: str) -> str:
    """A sentence under a table, as wide as that."""
    return textwrap.fill(line, 98, initial_indent="  ", subsequent_indent="    ")


def _tell_target(target: str, rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    programs = list(_group(rows))
    usable = rows[0]["chip_bytes"] / GIB
    yield render_table(
        f"{target}: layout, and bytes of the {usable:.1f} GiB that a program may take on a device",
        ("N", "d", "L", "runs", "batch", "mesh", "micro", "remat", "attn", "state", "temps", "total", ""),
        [_memory_cells(several) for several in programs],
    )
    yield from dict.fromkeys(f"  {format_count(row['params'])}: {row['reason']}" for row in rows if row["reason"])
    yield from _tell_partial(target, rows)
    timed = [several for several in programs if "step_s" in several[0]]
    if timed:
        toys = any(row["starts_s"] > max(row["compute_s"], row["memory_s"]) for row in (p[0] for p in timed))
        yield render_table(
            f"{target}: a step of the largest batch (bounds: links all hidden, none hidden), and all runs",
            ("N", "FLOP", "compute", "memory", *(["starts"] if toys else []), "links", "step", "bounds", "MFU", "days",
             "chip-h", "USD"),
            [_time_cells(several, toys) for several in timed],
        )  # fmt: skip
        yield render_table(f"{target}: bytes that a device sends in that step", ("N", *COLLECTIVES),
                           [_sent_cells(several) for several in timed])  # fmt: skip
    yield _total(target, rows)
    if any(row.get("extrapolated") for row in rows):
        yield "  deep programs are extrapolated from 2 and 4 layers, not compiled: a TPU's temporaries may be far off"


def _tell_partial(target: str, rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """That some runs leave a part of the target idle, and that the trainer takes all that it sees."""
    devices = parse_target(target).devices
    counts = sorted({row["devices"] for row in rows if row.get("devices", devices) < devices})
    if counts:
        runs = sum(row["runs"] for row in rows if row.get("devices") in counts)
        yield _wrap(f"{runs} runs take {' or '.join(map(str, counts))} of {devices} devices: over more their batch or "
                    f"model does not divide, or --one-layout chose so; the trainer takes all that it sees, so start "
                    f"them where it sees no more")  # fmt: skip


def _group(rows: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Rows that one program serves, the largest batch first."""
    names = ("params", "d_model", "n_layers", "state", *(name for name, _ in MESH), "microbatch_seqs", "remat",
             "attention", "head_chunks", "kind")  # fmt: skip
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row.get(name) for name in names), []).append(row)
    for several in groups.values():
        yield sorted(several, key=lambda row: -float(row["batch_seqs"]))


def _memory_cells(several: Sequence[dict[str, Any]]) -> list[Any]:
    row = several[0]
    batches = sorted({one["batch_seqs"] for one in several})
    batch = f"{batches[0]}-{batches[-1]}" if len(batches) > 1 else str(batches[0])
    mesh = " ".join(f"{short}{row[name]}" for name, short in MESH if row.get(name, 1) > 1) or "one"
    if "data" not in row:
        mesh = UNKNOWN
    sizes = [_size(row.get(name)) for name in ("argument_bytes", "temp_bytes", "total_bytes")]
    runs = sum(one["runs"] for one in several)
    return [format_count(row["params"]), row["d_model"], row["n_layers"], runs, batch, mesh, row.get("microbatch_seqs"),
            row.get("remat"), row.get("attention"), *sizes, row["state"]]  # fmt: skip


def _size(value: float | None) -> str:
    """Bytes with the suffixes of powers of 1024.

    >>> _size(512), _size(24_000_000_000)
    ('512', '22.4G')
    """
    if value is None:
        return UNKNOWN
    power = max(0, min(5, math.floor(math.log2(max(value, 1)) / 10)))
    return f"{value / 1024**power:.3g}{('', 'k', 'M', 'G', 'T', 'P')[power]}"


def _seconds(value: float) -> str:
    """Also of a toy's step.

    >>> _seconds(3.21e-6), _seconds(0.0412), _seconds(4.2)
    ('3.2us', '41ms', '4.2s')
    """
    for size, unit in ((1e-6, "us"), (1e-3, "ms")):
        if value < 999.5 * size:
            return f"{value / size:.2g}{unit}" if value < 9.95 * size else f"{value / size:.0f}{unit}"
    return format_seconds(value)


def _time_cells(several: Sequence[dict[str, Any]], toys: bool) -> list[Any]:
    row = several[0]
    hours, days = (sum(one[name] for one in several) for name in ("chip_hours", "days"))
    money = None if row["usd"] is None else format_count(sum(one["usd"] for one in several))
    names = ("compute_s", "memory_s", *(["starts_s"] if toys else []), "links_s", "step_s")
    seconds = [_seconds(row[name]) for name in names]
    bounds = f"{_seconds(row['step_overlapped_s'])}-{_seconds(row['step_serial_s'])}"
    return [format_count(row["params"]), format_flops(row["flops_per_step"]), *seconds, bounds, _percent(row["mfu"]),
            f"{days:.2g}" if days < 10 else f"{days:.0f}", format_count(hours), money]  # fmt: skip


def _percent(share: float) -> str:
    return f"{100 * share:.2g}%"


def _sent_cells(several: Sequence[dict[str, Any]]) -> list[Any]:
    row = several[0]
    sizes = (row[f"{kind.replace('-', '_')}_bytes"] for kind in COLLECTIVES)
    return [format_count(row["params"]), *(_size(size) for size in sizes)]


def _total(target: str, rows: Sequence[dict[str, Any]]) -> str:
    """One line: what fits, and what all of it takes."""
    fit = [row for row in rows if row["state"] == "fits"]
    runs = sum(row["runs"] for row in rows)
    words = f"{target}: {sum(row['runs'] for row in fit)} of {runs} runs compile and fit"
    if not fit:
        return _wrap(words)
    chip = CHIP_TABLE[target.partition(":")[0]]
    flops, hours = (sum(row[name] for row in fit) for name in ("flops", "chip_hours"))
    rate = flops / hours / 3600
    words += (
        f"; {format_flops(flops)} FLOPs, {format_count(hours)} chip-hours at {_percent(rate / chip.flops_per_s)} MFU"
    )
    if fit[0]["usd"] is not None:
        price = fit[0]["usd_per_chip_hour"]
        source = chip.priced if price == chip.usd_per_hour else "as given"
        words += f", {format_count(sum(row['usd'] for row in fit))} USD at {price:g} a chip-hour ({source})"
    return _wrap(words)
