"""How a program's values are cut over a mesh, by the table in `jaxscale.axes`; without a mesh nothing happens.

fsdp: a weight is whole only while its block computes (Rajbhandari et al. 2020, 1910.02054, stage 3; Zhao et al. 2023,
2304.11277): gathered in the compute dtype on the way in, its gradient cut again on the way out.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from math import gcd
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxscale.axes import split_axes
from jaxscale.config import ModelConfig
from jaxscale.params import param_shapes

__all__ = ["gather", "gather_block", "gather_keys", "place"]


def place(x: jax.Array, axes: tuple[str, ...], mesh: Mesh | None) -> jax.Array:
    """`x`, told to lie where its logical axes say; its cotangent lies there too."""
    return x if mesh is None else jax.lax.with_sharding_constraint(x, _sharding(axes, x.shape, mesh))


def _sharding(axes: tuple[str, ...], shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec(*split_axes(axes, shape, mesh.shape)))


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def gather(weight: jax.Array, axes: tuple[str, ...], whole: tuple[str, ...], mesh: Mesh, dtype: Any) -> jax.Array:
    """A weight that lies as `axes` say, in `dtype` and lying as `whole` says; its gradient lies as `axes` again."""
    return place(weight.astype(dtype), whole, mesh)


def _gather_forward(weight: jax.Array, axes: Any, whole: Any, mesh: Any, dtype: Any) -> tuple[jax.Array, None]:
    return gather(weight, axes, whole, mesh, dtype), None


def _gather_backward(axes: Any, whole: Any, mesh: Any, dtype: Any, _: None, grad: jax.Array) -> tuple[jax.Array]:
    return (place(grad, axes, mesh).astype("float32"),)


gather.defvjp(_gather_forward, _gather_backward)


def gather_block(block: Mapping[str, jax.Array], model: ModelConfig, mesh: Mesh | None, dtype: Any) -> Any:
    """One block's parameters ready to compute with: whole over fsdp, matrices in `dtype`, heads not cut apart."""
    if mesh is None:
        return block
    shapes, tensor = param_shapes(model), mesh.shape["tensor"]
    cuts = {"embed": "width", "state": "width", "heads": model.n_heads % tensor, "kv": model.n_kv_heads % tensor}

    def ready(name: str, weight: jax.Array) -> jax.Array:
        axes = tuple(axis for axis, _ in shapes[f"blocks.{name}"][1:])
        whole = tuple("width" if cuts.get(axis) else axis for axis in axes)
        return gather(weight, axes, whole, mesh, dtype if weight.ndim > 1 else weight.dtype)

    return {name: ready(name, weight) for name, weight in block.items()}


def gather_keys(x_btke: jax.Array, model: ModelConfig, mesh: Mesh | None) -> jax.Array:
    """Keys or values of all positions, as every chip's queries need them (Llama 3, 2407.21783, section 3.3.2).

    Fewer key heads than chips along tensor are repeated, so that each chip has those of its own queries.
    """
    if mesh is None:
        return x_btke
    tensor, heads = mesh.shape["tensor"], x_btke.shape[2]
    copies = tensor // gcd(tensor, heads)
    if model.n_heads % tensor == 0 and copies > 1:
        x_btke = jnp.repeat(x_btke, copies, axis=2)
    return place(x_btke, ("batch", "keys", "kv", "head_dim"), mesh)
