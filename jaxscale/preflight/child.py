"""The child that compiles: a request on stdin, the answer as JSON in the file that is its argument.

The program is the trainer's own (`jaxscale.train.step.Program`), over a mesh of the topology's devices, with shapes in
place of values.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jaxscale.config import ModelConfig
from jaxscale.layout import Layout
from jaxscale.preflight.hlo import Counts, count_hlo
from jaxscale.preflight.job import Job, Sent
from jaxscale.preflight.targets import parse_target

__all__ = ["compile_program", "main", "measure_program"]


SLOTS = 2
"""Microbatches that the compiled dispatch holds. With one, its index cannot change, and XLA moves the gradient out of
the loop over microbatches."""


def main() -> None:
    """Compile the job on stdin; a refusal by the compiler is an answer too."""
    request, out = json.loads(sys.stdin.read()), Path(sys.argv[1])
    job = Job(**{**request, "model": ModelConfig(**request["model"]), "layout": Layout(**request["layout"])})
    try:
        answer = compile_program(job)
    except Exception as error:  # the compiler's words, whatever their type, are what was asked for
        answer = {"reason": f"{type(error).__name__}: {error}"}
    out.write_text(json.dumps(answer))


def compile_program(job: Job) -> dict[str, Any]:
    """The fields of a `Compiled`."""
    from jax.experimental import topologies

    target = parse_target(job.target)
    if job.layout.attention == "cudnn":
        _claim_cudnn()
    devices = list(topologies.get_topology_desc(**target.topology()).devices)
    return measure_program(job, devices, [_place(device, target.chip.kind) for device in devices], target.backend)


def measure_program(
    job: Job, devices: Sequence[Any], places: Sequence[tuple[int, ...]], platform: str
) -> dict[str, Any]:
    """The fields of a `Compiled` for the first of these devices, which lie at these places."""
    import jax.numpy as jnp

    from jaxscale.model.lowering import lower_layout
    from jaxscale.train.sharding import layout_mesh
    from jaxscale.train.step import Program

    mesh = layout_mesh(job.layout, list(devices[: job.layout.chips]))
    started = time.monotonic()
    program = Program(job.model, job.schedule, SLOTS, mesh, jnp.bfloat16, job.optimizer, job.averages,
                      lower_layout(job.layout, job.model, platform))  # fmt: skip
    compiled = program.train(job.layout.microbatch_seqs)
    compile_s = time.monotonic() - started
    memory = compiled.memory_analysis()
    spot = {device.id: place for device, place in zip(devices, places, strict=True)}
    places = [spot[device.id] for device in mesh.devices.flat]
    text = compiled.as_text()
    once, all_of_it = count_hlo(text, (1, 0)), count_hlo(text, (1, 1))
    return {
        "argument_bytes": memory.argument_size_in_bytes, "output_bytes": memory.output_size_in_bytes,
        "alias_bytes": memory.alias_size_in_bytes, "temp_bytes": memory.temp_size_in_bytes,
        "code_bytes": memory.generated_code_size_in_bytes, "step_moved_bytes": once.memory_bytes,
        "microbatch_moved_bytes": all_of_it.memory_bytes - once.memory_bytes, "compile_s": compile_s,
        "step_operations": once.operations, "microbatch_operations": all_of_it.operations - once.operations,
        "step_sent": _gather_sent(once, places), "microbatch_sent": _gather_sent(all_of_it, places, without=once),
    }  # fmt: skip


def _claim_cudnn() -> None:
    """Let JAX take the target's word for cuDNN: it asks this machine's driver, which is not there.

    The attention becomes a call that the target resolves; what workspace cuDNN wants there is not counted.
    """
    from jax._src.cudnn import fused_attention_stablehlo as fused

    fused.check_cudnn_version = lambda: 90800  # that of gpus/*.txtpb
    fused.check_compute_capability = lambda capability: True


def _place(device: Any, kind: str) -> tuple[int, ...]:
    """Where a device is: its coordinates on the torus, or its host and place there."""
    coords = tuple(device.coords)
    return coords[1:] if kind == "gpu" else coords


def _gather_sent(
    counts: Counts, places: Sequence[tuple[int, ...]], without: Counts | None = None
) -> list[dict[str, Any]]:
    """Collectives added up by kind and by the form of their groups, as records."""
    found: dict[tuple[Any, ...], list[float]] = {}
    for sign, part in ((1, counts), (-1, without)):
        for one in part.collectives if part else ():
            spots = [places[device] for device in one.group if device < len(places)]
            span = tuple(len(set(axis)) for axis in zip(*spots, strict=True))
            row = found.setdefault((one.kind, len(one.group), span), [0, 0.0, 0.0])
            row[0] += sign * one.times
            row[1] += sign * one.times * one.payload_bytes
            row[2] += sign * one.sent_bytes
    return [
        asdict(Sent(kind, size, span, int(row[0]), row[1], row[2]))
        for (kind, size, span), row in sorted(found.items())
        if row[0]
    ]


if __name__ == "__main__":
    main()
