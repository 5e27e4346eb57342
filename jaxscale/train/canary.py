"""Do two kinds of machine compute the same: a short run on each, compared before any cell is trained there.

    <study>/canaries/<pool>.json          losses of the study's smallest cell cut to STEPS steps, a file a pool
                     hosts/<host>.json     that a host's pool agreed, and with which versions: it is not asked again

A pool is what `collect` would not mix: device kind, compute precision, versions of jax and jaxscale. Its canary is
compared with those of all other pools; a loss that is farther from theirs than `TOLERANCE` of itself means that one of
them computes something else (a driver, a precision, a text), and no cell is trained until somebody has looked.

    python -m jaxscale.train.canary DIR       0 agrees, 1 differs or failed; a JSON object with the verdict on stdout
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import sys
import time
import uuid
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jaxscale
from jaxscale.config import MeshConfig, Study
from jaxscale.errors import JaxscaleError
from jaxscale.plain import from_plain, read_lines, read_sealed, seal_json, unseal_json
from jaxscale.runs import METRIC_FIELDS, Plan, RunSpec
from jaxscale.storage import PosixStorage
from jaxscale.sweep import read_plan

__all__ = ["STEPS", "TOLERANCE", "Verdict", "choose_canary", "compare_canaries", "has_agreed", "main"]

STEPS = 20
"""Optimizer steps of a canary: enough to pass warmup's first updates, too few for rounding to grow."""
TOLERANCE = {"float32": 1e-3, "bfloat16": 1e-2}
"""Largest difference of two losses over the loss; of two precisions the coarser one's."""


@dataclass(frozen=True)
class Verdict:
    """Whether a pool agrees with those before it, and why not in a sentence."""

    agrees: bool
    reason: str
    pool: str
    others: int
    fresh: bool = False
    """Whether this machine was the first of its pool."""


def choose_canary(plan: Plan) -> RunSpec:
    """The plan's cheapest run, cut to STEPS steps; its text, shapes and rates stay."""
    spec = min(plan.cells, key=lambda cell: cell.flops).spec
    tokens = STEPS * spec.batch_seqs * spec.model.seq_len
    return replace(
        spec, steps=STEPS, tokens=tokens, warmup_steps=min(spec.warmup_steps, STEPS), average_steps=0,
        decay_steps=min(spec.decay_steps, STEPS), keeps=(), parent="", parent_step=0,
    )  # fmt: skip


def has_agreed(study_dir: Path, plan: Plan) -> bool:
    """Whether this host's pool was found to agree, by these versions and for this plan; loads no JAX."""
    raw = PosixStorage(study_dir).read(_host_name())
    try:
        told = unseal_json(json.loads(raw)) if raw is not None else None
    except ValueError:
        return False  # damaged: asked again
    return told == _stamp_host(choose_canary(plan))


def _host_name() -> str:
    return f"canaries/hosts/{re.sub('[^A-Za-z0-9.]+', '-', socket.gethostname())}.json"


def _stamp_host(spec: RunSpec) -> dict[str, str]:
    """What the agreement of a host rests on."""
    return {"run_id": spec.run_id, "jax": version("jax"), "jaxscale": jaxscale.__version__,
            "platforms": os.environ.get("JAX_PLATFORMS", "")}  # fmt: skip


def compare_canaries(own: dict[str, Any], others: list[dict[str, Any]]) -> str:
    """What is wrong between a pool's losses and those of the other pools; empty where all agree."""
    for other in others:
        limit = max(TOLERANCE.get(each["precision"], 1e-2) for each in (own, other))
        for name, loss in own["losses"].items():
            apart = abs(loss - other["losses"][name]) / abs(other["losses"][name])
            if not apart <= limit:  # also where one is not a number
                return (f"canary: {name} is {loss:.6g} on {own['pool']} ({own['host']}) and "
                        f"{other['losses'][name]:.6g} on {other['pool']} ({other['host']}), {apart:.2%} apart where "
                        f"{limit:.1%} is allowed; no cell is trained here until that is understood, or "
                        f"launch.canary is off")  # fmt: skip
    return ""


def main(argv: list[str]) -> int:
    """Run this machine's canary where its pool has none yet, and compare."""
    from jaxscale.train.worker import use_compile_cache

    study_dir = Path(argv[0])
    try:
        plan = read_plan(study_dir)
        mesh = from_plain(plan.config, Study).mesh
        use_compile_cache(mesh)
        verdict = _judge(study_dir, plan, mesh)
    except JaxscaleError as error:
        verdict = Verdict(False, str(error), "", 0)
    print(json.dumps(vars(verdict)))
    return 0 if verdict.agrees else 1


def _judge(study_dir: Path, plan: Plan, mesh: MeshConfig) -> Verdict:
    storage = PosixStorage(study_dir)
    spec = choose_canary(plan)
    pool = _describe_pool(mesh, spec.precision)
    name = f"canaries/{re.sub('[^A-Za-z0-9.]+', '-', ' '.join(pool.values()))}.json"
    fresh = storage.read(name) is None
    if fresh:
        told = _train(study_dir, plan, spec, mesh, pool)
        if not compare_canaries(told, _read_others(study_dir, name, spec)):
            storage.create(name, seal_json(told).encode())
    else:
        told = read_sealed(storage.path(name))
    others = _read_others(study_dir, name, spec)
    reason = compare_canaries(told, others)
    if not reason:
        storage.replace(_host_name(), seal_json(_stamp_host(spec)).encode())
    return Verdict(not reason, reason, told["pool"], len(others), fresh)


def _describe_pool(mesh: MeshConfig, precision: str) -> dict[str, str]:
    from jaxscale.train.execution import compute_dtype
    from jaxscale.train.provenance import describe_machine

    machine = describe_machine(compute_dtype(mesh, precision), precision)
    return {kind: str(machine[kind]) for kind in ("device_kind", "precision", "jax", "jaxscale")}


def _train(study_dir: Path, plan: Plan, spec: RunSpec, mesh: MeshConfig, pool: dict[str, str]) -> dict[str, Any]:
    """Losses of the canary: mean over its steps, and validation."""
    from jaxscale.train.loop import train_run

    place = study_dir / "canaries" / f"run-{uuid.uuid4().hex[:8]}"
    started, text = time.monotonic(), plan.text_of(next(cell for cell in plan.cells if cell.spec.data == spec.data))
    try:
        result = train_run(spec, place, mesh=mesh, data_sha256=text, keep_weights=False)
        lines = read_lines(place / spec.run_id / "metrics.jsonl", METRIC_FIELDS)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    losses = {"validation loss": result.loss if result.loss is not None else float("nan"),
              "training loss": sum(line["loss"] for line in lines) / len(lines) if lines else float("nan")}  # fmt: skip
    return {"schema": "jaxscale.canary/1", "pool": " ".join(pool.values()), **pool, "host": socket.gethostname(),
            "run_id": spec.run_id, "losses": losses, "seconds": round(time.monotonic() - started, 1)}  # fmt: skip


def _read_others(study_dir: Path, own: str, spec: RunSpec) -> list[dict[str, Any]]:
    """Canaries of the other pools, of this very run."""
    files = sorted((study_dir / "canaries").glob("*.json"))
    told = [read_sealed(file) for file in files if f"canaries/{file.name}" != own]
    return [each for each in told if each.get("run_id") == spec.run_id]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
