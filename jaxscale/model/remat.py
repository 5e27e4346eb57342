"""What the backward pass of a block keeps from its forward pass.

none   all that it reads in the compute dtype, but no second copy of a weight: not a cast one, not one that was gathered
       from other chips
dots   results of matrix products with weights
block  the block's input only

What comes from other chips is asked for again in all three: kept, a scan would hold every layer's weights whole at
once. Under bfloat16 the float32 insides of norms and rotations are computed again from their bfloat16 ends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxscale.model.lowering import Lowering

__all__ = ["rematerialize"]


def _keep_compute_dtype(dtype: Any) -> Callable[..., bool]:
    """The policy of "none"; arrays of up to two axes are weights and gains, larger ones activations."""
    width = jnp.dtype(dtype).itemsize

    def keep(primitive: Any, *inputs: Any, **options: Any) -> bool:
        if primitive.name == "sharding_constraint":
            return False
        if primitive.name == "reshape" and inputs[0].ndim <= 2:
            return False  # a stack of experts that was cast
        if primitive.name == "convert_element_type":
            return inputs[0].ndim > 2 and jnp.dtype(options["new_dtype"]).itemsize < inputs[0].dtype.itemsize
        return all(x.ndim <= 2 or x.dtype.itemsize <= width for x in inputs)

    return keep


def rematerialize(body: Callable[..., Any], lowering: Lowering, dtype: Any) -> Callable[..., Any]:
    """`body` of a loop over layers, keeping what `lowering` says; as it is where it keeps all and moves nothing."""
    moves = lowering.mesh is not None and lowering.mesh.shape["fsdp"] > 1
    if lowering.remat == "none" and not moves and dtype == jnp.float32:
        return body
    policy = {
        "none": _keep_compute_dtype(dtype),
        "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        "block": jax.checkpoint_policies.nothing_saveable,
    }[lowering.remat]
    return jax.checkpoint(body, policy=policy, prevent_cse=lowering.unroll)
