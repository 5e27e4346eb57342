"""Which cores a worker runs on, and in what environment: on CPU a device a core, each with one thread.

XLA keeps most passes of a step (norms, softmax, activation, optimizer) on one thread of a device, so several cores
serve one run best as several devices that share its batch; each step then sums the gradients over them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from jaxscale.config import MeshConfig
from jaxscale.flops import flops_per_token
from jaxscale.runs import Cell, RunSpec

__all__ = ["CPU_ENVIRONMENT", "Seat", "seat_worker"]

CPU_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "MALLOC_MMAP_MAX_": "0",  # keep XLA's large temporaries: no page faults anew at each step
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "OMP_NUM_THREADS": "1",
}

DEVICE_FLOPS = 2.5e8
"""Training FLOPs of a device's share of a microbatch from which several devices pay: below, summing the gradients
takes what the second core saves (measured on 2 cores: 1e8 a device 1.6 times slower, 4e8 1.35 times faster)."""


@dataclass(frozen=True)
class Seat:
    """The cores of one worker, each a device."""

    cores: tuple[int, ...]

    @property
    def listed(self) -> str:
        """The cores as the worker's argument."""
        return ",".join(str(core) for core in self.cores)

    def environment(self) -> dict[str, str]:
        """The worker's environment: its devices, one thread each, and an allocator that keeps its memory."""
        given = os.environ.get("XLA_FLAGS", "").split()
        flags = [flag for flag in given if "host_platform_device_count" not in flag]
        if len(self.cores) > 1:
            flags.append(f"--xla_force_host_platform_device_count={len(self.cores)}")
        flags.append("--xla_cpu_multi_thread_eigen=false")
        return {**os.environ, **CPU_ENVIRONMENT, "XLA_FLAGS": " ".join(flags)}


def seat_worker(index: int, workers: int, mesh: MeshConfig, cells: Sequence[Cell]) -> Seat:
    """The seat of worker `index` of `workers`, which may train any of these cells.

    Of its share of this process's cores it gets as many as all the cells can use.
    """
    cores = sorted(os.sched_getaffinity(0))
    share = max(1, len(cores) // workers)
    usable = (n for n in range(share, 1, -1) if all(_pays(n, mesh, cell.spec) for cell in cells))
    first = index * share
    return Seat(tuple(cores[first : first + next(usable, 1)]))


def _pays(devices: int, mesh: MeshConfig, spec: RunSpec) -> bool:
    """Whether the mesh fits so many devices, each with whole sequences of a microbatch and, unless asked, enough."""
    fsdp, split = max(1, mesh.fsdp), max(1, mesh.tensor) * max(1, mesh.context)  # 0 is auto, on CPU 1
    inner, replicas = fsdp * split, devices // split
    if devices % inner or mesh.data not in (-1, devices // inner):
        return False
    rows = mesh.microbatch_seqs or spec.microbatch_seqs
    asked = inner > 1 or mesh.data > 1
    enough = rows * spec.model.seq_len * flops_per_token(spec.model) >= DEVICE_FLOPS * devices
    return rows % replicas == 0 and (asked or enough)
