"""Which way is fastest for these runs on this machine: measured once a shape, then remembered.

Each way of `engine` gets its program compiled and a few dispatches of made-up tokens, the ways in turn round after
round, so that a busy moment hits all alike; its figure is the least time of a step of one run. `process` is taken
unless another is clearly faster: it needs no equal runs and shares work out best. The figures are kept beside the
compile cache under everything that decides them: shape, optimizer, batch, members, device, versions. A shape not
measured before is measured only where its runs are long enough to repay it.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxscale
from jaxscale.config import MeshConfig
from jaxscale.errors import MisuseError
from jaxscale.plain import read_json, to_plain, write_json
from jaxscale.runs import RunSpec
from jaxscale.sweep import Way, pack_key
from jaxscale.train.dispatch import lay_out
from jaxscale.train.engine import WAYS, Engine, make_engine, splits_runs
from jaxscale.train.execution import compute_dtype, count_microbatch

__all__ = ["choose_way"]

ROUNDS, SECONDS = 5, 1.0
"""Timed rounds, and the seconds of work in a round of one way, at most."""
REPAID_S = 60.0
"""Planned seconds of the runs below which nothing is measured: compiling three programs takes 10 to 20 s on a core."""
CLEARLY = 0.95
"""Another way than `process` must take less than this share of its time."""


def choose_way(
    specs: Sequence[RunSpec], mesh: MeshConfig, seconds: float = float("inf")
) -> tuple[Way, dict[str, float]]:
    """The fastest way for these runs of one `pack_key`, and each way's milliseconds a step of one run.

    `seconds` is what all of them will take, about; too little for a measurement leaves the milliseconds empty.
    """
    if len(specs) < 2 or splits_runs(mesh):
        return "process", {}
    file = _file(specs, mesh)
    ms = _read(file)
    if ms is None:
        if seconds < REPAID_S:
            return "process", {}
        ms = _measure(specs, mesh)
        if file is not None:
            write_json(file, json.dumps({"schema": "jaxscale.ways/1", "ms": ms}, indent=1))
    fastest: Way = min(WAYS, key=lambda way: ms[way])
    return (fastest if ms[fastest] < CLEARLY * ms["process"] else "process"), ms


def _file(specs: Sequence[RunSpec], mesh: MeshConfig) -> Path | None:
    """Where the figures of this shape are kept; None where nothing is kept between processes."""
    if not mesh.compile_cache:
        return None
    spec, device = replace(specs[0], steps=0, tokens=0), jax.devices()[0]
    shape = json.loads(pack_key(replace(spec, model=replace(spec.model, parameterization="mup"))))
    shape.pop("data")
    what = {"shape": shape, "members": len(specs), "device": device.device_kind, "devices": len(jax.devices()),
            "versions": [jaxscale.__version__, jax.__version__], "mesh": to_plain(mesh),
            "machine": _machine()}  # fmt: skip
    name = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]
    return Path(mesh.compile_cache).expanduser() / "ways" / f"{name}.json"


def _machine() -> list[Any]:
    """What JAX does not tell of a CPU: whose it is (homes are shared), its flags, the cores this process may use."""
    return [platform.node(), os.environ.get("XLA_FLAGS", ""), len(os.sched_getaffinity(0))]


def _read(file: Path | None) -> dict[str, float] | None:
    if file is None or not file.exists():
        return None
    try:
        ms: dict[str, float] = {way: float(read_json(file)["ms"][way]) for way in WAYS}
    except (MisuseError, KeyError, TypeError, ValueError):
        return None  # damaged, or of another version: measured anew
    return ms


def _measure(specs: Sequence[RunSpec], mesh: MeshConfig) -> dict[str, float]:
    runners = {way: _Runner(specs if way != "process" else specs[:1], way, mesh) for way in WAYS}
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(ROUNDS):
        for way, runner in runners.items():
            times[way].append(runner.time_step())
    return {way: round(1e3 * min(found), 4) for way, found in times.items()}


class _Runner:
    """One way, warmed up, on made-up tokens."""

    def __init__(self, specs: Sequence[RunSpec], way: Way, mesh: MeshConfig) -> None:
        spec, self.members = specs[0], len(specs)
        dtype = compute_dtype(mesh, spec.precision)
        microbatch_seqs = count_microbatch(spec, way, mesh, dtype)
        layout = lay_out(spec, microbatch_seqs, jax.default_backend(), len(jax.devices()), len(specs))
        self.steps = layout.steps
        self.engine: Engine = make_engine(specs, layout.slots, way, mesh, dtype)
        shape = (len(specs), layout.slots, microbatch_seqs, spec.model.seq_len + 1)
        self.windows = np.random.default_rng(0).integers(0, spec.model.vocab_size, shape).astype(np.int32)
        self.live = np.ones(len(specs), bool)
        self.engine.compile()
        self.state = self.engine.begin()
        once = self._dispatch()
        self.dispatches = int(np.clip(SECONDS / ROUNDS / max(once, 1e-9), 1, 20))

    def time_step(self) -> float:
        """Seconds of one step of one run."""
        return sum(self._dispatch() for _ in range(self.dispatches)) / self.dispatches / self.steps / self.members

    def _dispatch(self) -> float:
        start = time.perf_counter()
        self.state, metrics = self.engine.step(self.state, self.engine.stage(self.windows), self.live, self.steps)
        jax.block_until_ready((self.state, metrics))
        return time.perf_counter() - start
