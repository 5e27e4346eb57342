"""Where arrays live: one table from logical axes to mesh axes, and the mesh itself.

Mesh axes: data (replicas), fsdp (replicas that also split the parameters), tensor (splits products), context
(splits sequences).
A dimension that its mesh axis does not divide is replicated; results do not depend on the choice.
"""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxscale.config import MeshConfig
from jaxscale.errors import MisuseError

__all__ = ["AXIS_RULES", "BATCH", "check_batch", "make_mesh", "param_sharding", "replicated"]

AXIS_RULES: dict[str, str | None] = {
    "vocab": "tensor",
    "embed": "fsdp",
    "heads": "tensor",
    "kv": "tensor",
    "mlp": "tensor",
    "head_dim": None,
    "layers": None,
}
"""Logical axis -> mesh axis."""

AXES = ("data", "fsdp", "tensor", "context")
"""Mesh axes, outermost first."""

BATCH = ("data", "fsdp")
"""Mesh axes that split the batch."""


def make_mesh(config: MeshConfig, devices: list[Any] | None = None) -> Mesh:
    """A (data, fsdp, tensor, context) mesh over `devices` (default: all); MisuseError if the product is off."""
    devices = jax.devices() if devices is None else devices
    inner = config.fsdp * config.tensor * config.context
    data = len(devices) // inner if config.data == -1 else config.data
    if data * inner != len(devices):
        raise MisuseError(
            f"mesh: data={config.data} x fsdp={config.fsdp} x tensor={config.tensor} x context={config.context} "
            f"does not make {len(devices)} devices; use --mesh.data -1 and a divisor of {len(devices)}"
        )
    shape, auto = (data, config.fsdp, config.tensor, config.context), (AxisType.Auto,) * len(AXES)
    return jax.make_mesh(shape, AXES, auto, devices=devices)


def param_sharding(mesh: Mesh, axes: tuple[str, ...], shape: tuple[int, ...]) -> NamedSharding:
    """Sharding of a parameter with these logical axes."""
    wanted = [AXIS_RULES[axis] for axis in axes]
    fits = [name if name and size % mesh.shape[name] == 0 else None for name, size in zip(wanted, shape, strict=True)]
    return NamedSharding(mesh, PartitionSpec(*fits))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def check_batch(microbatch_seqs: int, mesh: Mesh) -> None:
    """MisuseError unless a microbatch divides evenly over the data and fsdp axes."""
    replicas = mesh.shape["data"] * mesh.shape["fsdp"]
    if microbatch_seqs % replicas:
        low = max(replicas, microbatch_seqs // replicas * replicas)
        raise MisuseError(
            f"recipe.microbatch_seqs: {microbatch_seqs} does not divide over {replicas} devices; "
            f"use {low} or {low + replicas}, or fewer devices"
        )
