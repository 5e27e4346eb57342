"""Where arrays live: the mesh, and the shardings that `jaxscale.axes` gives on it."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxscale.axes import AXES, BATCH, split_axes
from jaxscale.config import MeshConfig
from jaxscale.errors import MisuseError
from jaxscale.memory import Layout

__all__ = ["batch_sharding", "check_batch", "layout_mesh", "local_rows", "make_mesh", "param_sharding", "replicated",
           "row_group"]  # fmt: skip


def make_mesh(config: MeshConfig, devices: list[Any] | None = None) -> Mesh:
    """A (data, fsdp, tensor, context) mesh over `devices` (default: all); MisuseError if the product is off.

    An axis of 0 (auto) that nobody has chosen counts as 1.
    """
    devices = jax.devices() if devices is None else devices
    fsdp, tensor, context = max(1, config.fsdp), max(1, config.tensor), max(1, config.context)
    inner = fsdp * tensor * context
    data = len(devices) // inner if config.data == -1 else config.data
    if data * inner != len(devices):
        raise MisuseError(
            f"mesh: data={config.data} x fsdp={fsdp} x tensor={tensor} x context={context} "
            f"does not make {len(devices)} devices; use --mesh.data -1 and a divisor of {len(devices)}"
        )
    return _mesh((data, fsdp, tensor, context), devices)


def layout_mesh(layout: Layout, devices: list[Any] | None = None) -> Mesh:
    """The mesh of a layout, over as many devices as it names; they may be those of a topology."""
    devices = jax.devices() if devices is None else devices
    if len(devices) != layout.chips:
        raise MisuseError(f"mesh: a layout of {layout.chips} chips does not cover {len(devices)} devices; choose anew")
    return _mesh((layout.data, layout.fsdp, layout.tensor, layout.context), devices)


def _mesh(shape: tuple[int, ...], devices: list[Any]) -> Mesh:
    """An axis may take a part of one of the torus's: 8 of the 24 chips along one side of a v5p:16x16x24."""
    placed = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(placed, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def param_sharding(mesh: Mesh, axes: tuple[str, ...], shape: tuple[int, ...]) -> NamedSharding:
    """Sharding of a parameter with these logical axes."""
    return NamedSharding(mesh, PartitionSpec(*split_axes(axes, shape, mesh.shape)))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Of windows [n, b, t + 1]: rows over the batch axes, every position on all devices that share a row."""
    return NamedSharding(mesh, PartitionSpec(None, BATCH))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def local_rows(mesh: Mesh, rows: int) -> tuple[int, int]:
    """(first, end) of the rows of a batch that this process's devices hold, together; several may hold the same.

    MisuseError where they are not neighbours: then the mesh puts a process's devices far from each other.
    """
    places = batch_sharding(mesh).addressable_devices_indices_map((1, rows))
    cuts = [place[1] for place in places.values() if place is not None]
    spans = sorted({(cut.start or 0, rows if cut.stop is None else cut.stop) for cut in cuts})
    for (_, end), (start, _) in pairwise(spans):
        if start != end:
            raise MisuseError(f"mesh: the rows of process {jax.process_index()} are not neighbours; let fsdp x tensor "
                              f"x context be a divisor or a multiple of its {len(places)} devices")  # fmt: skip
    return spans[0][0], spans[-1][1]


def row_group(mesh: Mesh) -> tuple[int, int]:
    """(index, count): this process feeds part `index` of `count` equal parts of every batch, with those that share it.

    The part follows from where the mesh puts its devices: processes along tensor and context hold the same rows.
    """
    replicas = mesh.shape["data"] * mesh.shape["fsdp"]
    first, end = local_rows(mesh, replicas)
    return first // (end - first), replicas // (end - first)


def check_batch(microbatch_seqs: int, mesh: Mesh, field: str = "recipe.microbatch_seqs") -> None:
    """MisuseError unless a microbatch divides evenly over the data and fsdp axes."""
    replicas = mesh.shape["data"] * mesh.shape["fsdp"]
    if microbatch_seqs % replicas:
        low = max(replicas, microbatch_seqs // replicas * replicas)
        raise MisuseError(
            f"{field}: {microbatch_seqs} does not divide over {replicas} devices; "
            f"use {low} or {low + replicas}, or fewer devices"
        )
