"""Which mesh axis splits which dimension of which array: one table, read by the training step and the memory model.

Mesh axes: data (replicas), fsdp (replicas that also split the parameters), tensor (splits products, as in Megatron,
Shoeybi et al. 2019: each block's first matrices by columns, its last by rows), context (splits sequences).
Between blocks the sequence is also split over tensor (Korthikanti et al. 2022, 2205.05198).
Of the mesh axes of a dimension the first that divide it together are used; results do not depend on the choice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

__all__ = ["AXES", "AXIS_RULES", "BATCH", "count_shards", "split_axes"]

AXES = ("data", "fsdp", "tensor", "context")
"""Mesh axes, outermost first."""

BATCH = ("data", "fsdp")
"""Mesh axes that split the batch."""

AXIS_RULES: dict[str, tuple[str, ...]] = {
    # parameters
    "vocab": ("tensor",),
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "kv": ("tensor",),
    "mlp": ("tensor",),
    "head_dim": (),
    "layers": (),
    "places": (),
    "experts": (),
    "state": ("fsdp",),
    "gates": (),
    # activations
    "batch": BATCH,
    "rows": ("data",),
    "sequence": ("context", "tensor"),
    "positions": ("context",),
    "keys": (),
    "width": (),
}
"""Logical axis -> mesh axes. "sequence" lies between blocks, "positions" inside them; "keys" are the positions that a
query looks at, gathered over context; "places" are the rows of a table of positions, whole on every chip; "rows" is a
batch while its tokens are looked up in a table split over fsdp. Every expert is split as a dense MLP is; "state" and
"gates" are an LSTM's, which no product splits."""


def split_axes(axes: Sequence[str], shape: Sequence[int], mesh: Mapping[str, int]) -> tuple[tuple[str, ...], ...]:
    """The mesh axes that split each dimension of an array with these logical axes.

    >>> split_axes(("embed", "heads"), (64, 30), {"data": 2, "fsdp": 4, "tensor": 4, "context": 1})
    (('fsdp',), ())
    """
    return tuple(_fitting(AXIS_RULES[axis], size, mesh) for axis, size in zip(axes, shape, strict=True))


def _fitting(names: tuple[str, ...], size: int, mesh: Mapping[str, int]) -> tuple[str, ...]:
    fits: tuple[str, ...] = ()
    for name in names:
        if size % prod(mesh[name] for name in (*fits, name)):
            break
        fits += (name,) if mesh[name] > 1 else ()
    return fits


def count_shards(axes: Sequence[str], shape: Sequence[int], mesh: Mapping[str, int]) -> int:
    """Into how many equal pieces such an array is cut.

    >>> count_shards(("embed", "heads"), (64, 32), {"data": 2, "fsdp": 4, "tensor": 4, "context": 1})
    16
    """
    return prod(mesh[name] for names in split_axes(axes, shape, mesh) for name in names)
