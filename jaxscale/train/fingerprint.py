"""A fingerprint of a state, saved with it, so that a bit flipped on the disk or on the way is seen.

Of an array's words x_i, its bits as unsigned integers in the order of the whole array,

    sum_i x_i (2 i + 1)   and   sum_i (x_i xor i) (2654435761 i | 1)   modulo 2^32

Multipliers are odd, so no single changed word goes unnoticed; integer sums are the same in any order, on any mesh.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

__all__ = ["fingerprint"]

WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}
"""Bytes of an element -> what its bits are read as."""


def fingerprint(leaves: Mapping[str, Any]) -> np.ndarray:
    """uint32 [leaves, 2] of arrays by name, in the order of the names given.

    On the CPUs of one process by numpy, without a compilation; elsewhere on the devices, each adding up what it holds,
    and by all processes together.
    """
    if all(_is_here(leaf) for leaf in leaves.values()):
        return np.array([_sum_words(np.asarray(leaf), np) for leaf in leaves.values()], np.uint32)
    meshes = [leaf.sharding.mesh for leaf in leaves.values() if isinstance(leaf.sharding, NamedSharding)]
    return np.asarray(_compile(meshes[0] if meshes else None)(list(leaves.values())))


def _is_here(leaf: Any) -> bool:
    return isinstance(leaf, np.ndarray) or (
        leaf.is_fully_addressable and all(device.platform == "cpu" for device in leaf.sharding.device_set)
    )


@lru_cache(maxsize=8)
def _compile(mesh: Any) -> Any:
    """The sums of many arrays, whole on every device."""
    whole = None if mesh is None else NamedSharding(mesh, PartitionSpec())
    return jax.jit(lambda leaves: jnp.stack([jnp.stack(_sum_words(leaf, jnp)) for leaf in leaves]), out_shardings=whole)


def _sum_words(leaf: Any, xp: Any) -> list[Any]:
    """The two sums of one array; `xp` is numpy or jax.numpy."""
    kind = WORDS[leaf.dtype.itemsize]
    words = leaf.view(kind) if xp is np else jax.lax.bitcast_convert_type(leaf, kind)
    words, index = words.astype(xp.uint32), _count(leaf.shape, xp)
    odd = xp.uint32(2654435761) * index | xp.uint32(1)
    total = partial(xp.sum, dtype=xp.uint32)
    return [total(words * (index * xp.uint32(2) + xp.uint32(1))), total((words ^ index) * odd)]


def _count(shape: tuple[int, ...], xp: Any) -> Any:
    """Places 0, 1, .. of an array's elements, modulo 2^32; made in place, so that a sharded array needs no other's."""
    index, stride = xp.zeros(shape, xp.uint32), 1
    for axis in reversed(range(len(shape))):
        along = xp.arange(shape[axis], dtype=xp.uint32).reshape(-1, *[1] * (len(shape) - axis - 1))
        index = index + along * xp.uint32(stride % (1 << 32))
        stride *= shape[axis]
    return index
