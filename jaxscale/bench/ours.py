"""Our own contestant: the compiled train step as `jaxscale train` runs it, and the whole training loop around it.

    step   dispatches of the compiled program on batches that lie on the device, queued as the loop queues them
    loop   `train_run` on a made-up text: reading, staging, dispatches, metrics, lines, from the first line of
           metrics.jsonl to the last; starting, compiling, checkpoints and validation are outside

Run as `python -m jaxscale.bench.ours ORDER`, in the environment that the pool gives its workers; `peers` has the
protocol.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxscale.bench.peers import BATCHES, Turns, serve, timed
from jaxscale.bench.shapes import Shape
from jaxscale.config import DataConfig, MeshConfig
from jaxscale.runs import RunSpec
from jaxscale.train.dispatch import lay_out
from jaxscale.train.engine import Engine, make_engine
from jaxscale.train.execution import compute_dtype, count_microbatch
from jaxscale.train.loop import Progress, train_run

STEPS = 10_000
"""Steps of the run whose dispatches are timed: as long as a run of a study."""
LOOP_STEPS = 64
"""Steps of the run that a loop's turn begins with, at least: lines must be many enough to leave the ends out."""


def make_ours(order: dict[str, Any]) -> tuple[dict[str, Any], Turns]:
    """The contestant for a shape; `order` as of the peers, with `mesh` (plain MeshConfig) and `loop`."""
    shape = Shape(*(order[letter] for letter in "DLHBTV"))
    mesh = MeshConfig(**order["mesh"])
    start = time.perf_counter()
    step = _bare_step(shape.resolve(STEPS), mesh)
    step(1)
    about = {"device": jax.devices()[0].device_kind, "devices": len(jax.devices()), "platform": jax.default_backend(),
             "compile_s": time.perf_counter() - start, "version": f"jax {jax.__version__}"}  # fmt: skip
    turns = {"step": step}
    if order["loop"]:
        turns["loop"] = _whole_loop(shape, mesh, Path(tempfile.mkdtemp(dir=order["folder"])))
    return about, turns


def _bare_step(spec: RunSpec, mesh: MeshConfig) -> Callable[[int], dict[str, Any]]:
    dtype = compute_dtype(mesh, spec.precision)
    rows = count_microbatch(spec, "process", mesh, dtype)  # on accelerators what fits
    layout = lay_out(spec, rows, jax.default_backend(), len(jax.devices()))
    engine: Engine = make_engine([spec], layout.slots, "process", mesh, dtype)
    model, own = spec.model, layout.steps
    shape = (BATCHES, 1, layout.slots, rows, model.seq_len + 1)
    drawn = np.random.default_rng(0).integers(model.vocab_size, size=shape, dtype=np.int32)
    batches, live, held = [engine.stage(windows) for windows in drawn], np.ones(1, bool), [engine.begin()]

    def run(steps: int) -> float:
        metrics: Any = None
        for i in range(steps // own):
            held[0], metrics = engine.step(held[0], batches[i % BATCHES], live, own)
        jax.block_until_ready(held[0])
        return float(engine.fetch(metrics, own)[0][0, -1])

    return lambda steps: timed(-(-steps // own) * own, run)


def _whole_loop(shape: Shape, mesh: MeshConfig, folder: Path) -> Callable[[int], dict[str, Any]]:
    data = _made_up_text(shape, folder)
    runs = iter(range(10**9))

    def run(steps: int) -> dict[str, Any]:
        seen: list[tuple[float, Progress]] = []
        spec = replace(shape.resolve(max(steps, LOOP_STEPS), data), seed=next(runs))
        train_run(spec, folder / "runs", mesh=replace(mesh, checkpoint_every_s=1e9), keep_weights=False,
                  on_progress=lambda progress: seen.append((time.perf_counter(), progress)))  # fmt: skip
        (began, first), (ended, last) = seen[0], seen[-1]
        return {"steps": last.step - first.step, "seconds": ended - began, "loss": last.loss}

    return run


def _made_up_text(shape: Shape, folder: Path) -> DataConfig:
    """A text of random letters, read as bytes as often as a run wants."""
    rng = np.random.default_rng(0)
    for i in range(20):
        letters = rng.integers(97, 123, max(20_000, 8 * shape.T)).astype(np.uint8)
        letters[::60] = ord("\n")
        (folder / f"{i}.txt").write_bytes(letters.tobytes())
    return DataConfig(files=(f"{folder}/*.txt",), cache=str(folder / "cache"), max_epochs=1e12, val_fraction=0.1,
                      val_tokens=4 * shape.T + 1, drop_repeated_lines=False)  # fmt: skip


if __name__ == "__main__":
    sys.exit(serve(make_ours, json.loads(sys.argv[1])))
