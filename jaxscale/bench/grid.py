"""A study's grid by us beside the same cells by NanoDO's model and a plain loop, in seconds of wall-clock.

Ours is `jaxscale run` (a subset of the cells: `jaxscale train --all`) in a fresh folder with an empty compile cache:
start-up, compiling, training, validation, checkpoints, and for a whole study fits and report. Theirs is one process
that takes the cells one after another, each with its width, layers, heads, length, vocabulary, batch and steps:
optax.adamw on a warmup and cosine schedule, one jitted step with donated state, windows drawn from the same token file,
the mean loss over the same validation tokens at the end; it saves nothing. The token file is made beforehand.

    ratio         their seconds over ours; they compile each cell, as a loop does that builds a model and an optimizer
    ratio_shared  the same, had they compiled once for all seeds of a cell
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jaxscale.bench import peers
from jaxscale.bench.contest import Contestant, start_contestant
from jaxscale.bench.step import check_checkout, describe, our_environment, peer_environment
from jaxscale.config import MeshConfig
from jaxscale.errors import MisuseError, VerdictError
from jaxscale.format import format_seconds
from jaxscale.plain import write_json
from jaxscale.plan import plan_isoflop
from jaxscale.runs import Cell, Plan
from jaxscale.study import load_study
from jaxscale.sweep import read_status
from jaxscale.train.pool import count_workers

__all__ = ["GridBench", "bench_grid", "check_done", "spread_cells"]


@dataclass(frozen=True)
class GridBench:
    """One study; seconds of wall-clock. `peers` by name: seconds, and ratios, theirs over ours."""

    study: str
    cells: int
    planned_cells: int
    flops: float
    planned_s: float
    seconds: float
    peers: Mapping[str, Mapping[str, Any]]
    machine: Mapping[str, Any]

    def to_json(self) -> str:
        """As JSON, schema jaxscale.bench/1."""
        row = asdict(self)
        machine = row.pop("machine")
        return json.dumps({"schema": "jaxscale.bench/1", "rows": [row], "machine": machine}, indent=1)

    def __str__(self) -> str:
        part = "all" if self.cells == self.planned_cells else f"a subset, {self.cells} of"
        lines = [f"{self.study}: {part} {self.planned_cells} cells, {self.flops:.3g} FLOPs, "
                 f"{format_seconds(self.planned_s)} planned",
                 f"  jaxscale {'run' if self.cells == self.planned_cells else 'train --all'}: "
                 f"{format_seconds(self.seconds)}, empty compile cache, validation included"]  # fmt: skip
        lines += [f"  {name}, cells one after another, validation included: {format_seconds(peer['seconds'])}, "
                  f"{peer['ratio']:.2f} times as long; {format_seconds(peer['compile_s'])} of it compiling, "
                  f"{peer['ratio_shared']:.2f} times had it compiled once for all seeds of a cell"
                  for name, peer in self.peers.items()]  # fmt: skip
        return "\n".join(lines)


def bench_grid(
    study_file: Path, nanodo: Path | None, cells: int = 0, on_turn: Callable[[str], None] = lambda name: None
) -> GridBench:
    """Train the study in `study_file`, or `cells` of its cells evenly spread, by us and by a plain loop over NanoDO.

    MisuseError for a checkout that is none and more cells than the plan has; VerdictError where a side fails.
    """
    checkout = check_checkout("nanodo", nanodo) if nanodo is not None else None
    study = load_study(study_file)
    from jaxscale.data.tokens import build_tokens

    tokens = build_tokens(study.data)
    planned = plan_isoflop(study, train_tokens=tokens.info.train_tokens, data_sha256=tokens.info.data_sha256)
    chosen = planned.with_cells(spread_cells(planned.cells, cells))
    with tempfile.TemporaryDirectory() as root:
        seconds = _train_ours(study_file, chosen, len(chosen) < len(planned), Path(root))
        on_turn("jaxscale")
        theirs = {"nanodo": _train_theirs(chosen.cells, checkout, tokens, Path(root), on_turn)} if checkout else {}
    compared = {name: {**told, "ratio": told["seconds"] / seconds,
                       "ratio_shared": (told["seconds"] - told["repeated_compile_s"]) / seconds}
                for name, told in theirs.items()}  # fmt: skip
    return GridBench(study.name, len(chosen), len(planned), chosen.total_flops, chosen.total_seconds,
                     seconds, compared, describe({"nanodo": checkout} if checkout else {}))  # fmt: skip


def spread_cells(cells: Sequence[Cell], count: int) -> tuple[Cell, ...]:
    """`count` cells evenly spread over the plan's order, the first and the last among them; 0: all."""
    if count > len(cells):
        raise MisuseError(f"--cells: {count} are more than the plan's {len(cells)}; use 0 for all")
    if count in (0, len(cells)):
        return tuple(cells)
    if count == 1:
        return (cells[len(cells) // 2],)
    return tuple(cells[round(i * (len(cells) - 1) / (count - 1))] for i in range(count))


def _train_ours(study_file: Path, chosen: Plan, subset: bool, root: Path) -> float:
    """Seconds of our process from its start to its end."""
    folder, cache = root / "runs", root / "xla"
    words = ["run", str(study_file), "--out", str(folder), "--mesh.compile-cache", str(cache)]
    if subset:
        config = json.loads(chosen.to_json())
        config["config"]["mesh"]["compile_cache"] = str(cache)
        write_json(folder / "plan.json", json.dumps(config))
        words = ["train", str(folder), "--all"]
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "jaxscale", *words], env=_own_environment(), capture_output=True,
                          text=True)  # fmt: skip
    seconds = time.perf_counter() - start
    if done.returncode not in (0, 1):
        raise VerdictError(f"jaxscale {words[0]}: ended with code {done.returncode}: {done.stderr.strip()[-300:]}")
    check_done(folder, chosen.cells)
    return seconds


def check_done(folder: Path, cells: Sequence[Cell]) -> None:
    """VerdictError unless every cell made all of its steps: a grid that ended early is not a fast one."""
    odd = [status for status in read_status(folder, cells) if status.state != "done"]
    if odd:
        which = f"{odd[0].cell.run_id} is {odd[0].state}"
        raise VerdictError(f"jaxscale: {len(odd)} of {len(cells)} cells did not make all their steps ({which}), so the "
                           f"time says nothing; train the study by itself to see why")  # fmt: skip


def _own_environment() -> dict[str, str]:
    """As a user's shell: the pool gives its workers their own."""
    given = peer_environment(count_workers(MeshConfig())[1])
    return given | {"PYTHONPATH": our_environment(True)["PYTHONPATH"]}


def _train_theirs(
    cells: Sequence[Cell], checkout: Path, tokens: Any, root: Path, on_turn: Callable[[str], None]
) -> dict[str, Any]:
    """Seconds from the start of their process to the end of its last cell, what of it compiled, and what of that again
    what an earlier seed had compiled."""
    import numpy as np

    for name in ("train", "val"):
        np.save(root / f"{name}.npy", getattr(tokens, name))
    on_cpu = count_workers(MeshConfig())[1]
    asked = [_describe_cell(cell) for cell in cells]
    order = {"checkout": str(checkout), "dtype": "float32" if on_cpu else "bfloat16", "cells": asked,
             "train": str(root / "train.npy"), "val": str(root / "val.npy")}  # fmt: skip
    command = (sys.executable, peers.__file__, "nanodo_grid", json.dumps(order))
    start = time.perf_counter()
    with start_contestant(Contestant("nanodo", command, peer_environment(on_cpu))) as child:
        turns = []
        for i in range(len(cells)):
            turns.append(child.take_turn("cell", i))
            on_turn("nanodo")
        seconds = time.perf_counter() - start
    seen: set[str] = set()
    again = 0.0
    for turn, cell in zip(turns, asked, strict=True):
        shape = json.dumps({**cell, "seed": 0})
        again += turn.compile_s if shape in seen else 0.0
        seen.add(shape)
    return {"seconds": seconds, "compile_s": sum(turn.compile_s for turn in turns), "repeated_compile_s": again,
            "cell_s": [round(turn.seconds, 2) for turn in turns]}  # fmt: skip


def _describe_cell(cell: Cell) -> dict[str, Any]:
    spec, model = cell.spec, cell.spec.model
    return {"D": model.d_model, "L": model.n_layers, "H": model.n_heads, "T": model.seq_len, "V": model.vocab_size,
            "B": spec.batch_seqs, "steps": spec.steps, "warmup": spec.warmup_steps, "seed": spec.seed}  # fmt: skip
