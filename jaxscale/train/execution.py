"""How one run is executed on these devices: its mesh, its microbatch and its lowering.

On CPU what the study gives, with 1 for an axis left to auto and the recipe's microbatch. On accelerators the
quickest layout that the memory model says fits (`jaxscale.memory`). None of it is part of a run's identity.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxscale.config import MeshConfig
from jaxscale.errors import MisuseError
from jaxscale.memory import rank_layouts
from jaxscale.model.lowering import Lowering, choose_lowering, lower_layout
from jaxscale.model.quantize import check_int8
from jaxscale.runs import RunSpec
from jaxscale.sweep import Way
from jaxscale.train.sharding import check_batch, layout_mesh, make_mesh

__all__ = ["Execution", "apply_precision", "choose_execution", "choose_microbatch", "compute_dtype",
           "count_microbatch"]  # fmt: skip


@dataclass(frozen=True)
class Execution:
    """Concrete choices for one run on this process's devices and their peers."""

    mesh: Mesh
    microbatch_seqs: int
    lowering: Lowering


@lru_cache(maxsize=64)
def choose_execution(spec: RunSpec, config: MeshConfig, dtype: Any) -> Execution:
    """The execution of a run over all devices.

    MisuseError: a microbatch that does not divide the batch or does not divide over the devices, an attention that
    cannot work, nothing that fits.
    """
    devices = jax.devices()
    platform, name = devices[0].platform, jnp.dtype(dtype).name
    memory = _chip_bytes(jax.local_devices()[0])
    if not memory:
        mesh, microbatch = make_mesh(config), choose_microbatch(spec, config)
        check_batch(microbatch, mesh, "mesh.microbatch_seqs" if config.microbatch_seqs else "recipe.microbatch_seqs")
        return Execution(mesh, microbatch, choose_lowering(config, spec.model, platform, name))
    fixed = replace(config, microbatch_seqs=choose_microbatch(spec, config) if config.microbatch_seqs else 0)
    layouts = rank_layouts(
        spec.model, spec.batch_seqs, len(devices), memory, name, fixed, jax.local_device_count(),
        platform=platform, optimizer=spec.optimizer, averages=spec.average_steps > 0,
    )  # fmt: skip
    if not layouts:
        raise MisuseError(f"mesh: no layout of {spec.batch_seqs} sequences over {len(devices)} chips of "
                          f"{memory / 1e9:.0f} GB holds a model of width {spec.model.d_model} and "
                          f"{spec.model.n_layers} layers; use more chips, or leave mesh.fsdp, mesh.tensor, "
                          f"mesh.context and mesh.remat to auto")  # fmt: skip
    best = layouts[0]
    return Execution(layout_mesh(best), best.microbatch_seqs, lower_layout(best, spec.model, platform))


def choose_microbatch(spec: RunSpec, config: MeshConfig) -> int:
    """Sequences in one forward pass without a memory model; MisuseError unless they divide the batch."""
    rows = config.microbatch_seqs or spec.microbatch_seqs
    if spec.batch_seqs % rows:
        near = [n for n in range(1, spec.batch_seqs + 1) if spec.batch_seqs % n == 0 and n <= rows][-1]
        field, auto = ("mesh", ", or 0 for auto") if config.microbatch_seqs else ("recipe", "")
        raise MisuseError(f"{field}.microbatch_seqs: {rows} does not divide the batch of {spec.batch_seqs} sequences "
                          f"of run {spec.run_id}; use {near}{auto}")  # fmt: skip
    return rows


def _chip_bytes(device: Any) -> float:
    """Memory that programs may fill, as the device tells it; 0 where it does not, as on CPU."""
    return float((device.memory_stats() or {}).get("bytes_limit", 0))


def compute_dtype(config: MeshConfig, precision: str = "mesh") -> Any:
    """The float dtype of a run with this recipe.precision: its own, or what `mesh.dtype` means on this backend."""
    if precision in ("float32", "bfloat16"):
        return jnp.dtype(precision)
    if config.dtype == "auto":
        return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    return jnp.dtype(config.dtype)


def apply_precision(lowering: Lowering, precision: str) -> Lowering:
    """The lowering with int8 products where recipe.precision wants them; MisuseError where this backend has none."""
    if precision != "int8":
        return lowering
    check_int8()
    return replace(lowering, int8=True)


def count_microbatch(spec: RunSpec, way: Way, config: MeshConfig, dtype: Any) -> int:
    """Sequences in one forward pass of a run that goes this way."""
    if way != "process":
        return choose_microbatch(spec, config)
    return choose_execution(spec, config, dtype).microbatch_seqs
