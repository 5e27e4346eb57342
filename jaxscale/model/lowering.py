"""How a model's function is compiled: choices of which none changes what is computed, beyond rounding.

attention    which kernel computes softmax(q k^T) v
remat        what the backward pass computes again instead of keeping it: nothing, all but matrix products, or all of
             a block but its input
head_chunks  pieces in which head and cross-entropy are computed, so that no B x T x V array is held
unroll       layers as a loop in Python rather than a scan
cpu_forms    products, GELU, embedding and losses with the backward passes of `model.cpu`
mesh         the devices over which values are cut; None for one
interpret    accelerator kernels step by step on a CPU, for tests
int8         products of blocks with both sides rounded to int8: the recipe's wish (recipe.precision), and the one
             choice here that is more than rounding of the last bits
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxscale.config import MeshConfig, ModelConfig
from jaxscale.layout import Attention, Layout, Remat, check_attention, choose_attention
from jaxscale.limits import check_mesh

if TYPE_CHECKING:
    from jax.sharding import Mesh

__all__ = ["Lowering", "choose_lowering", "lower_layout"]

UNROLL_LAYERS = 8
"""On CPU stacks this short are unrolled, unless blocks are to be computed again: XLA runs a scan's body at about .8 of
the unrolled speed."""


@dataclass(frozen=True)
class Lowering:
    """Concrete choices for one program; hashable."""

    attention: Attention = "xla"
    remat: Remat = "none"
    head_chunks: int = 1
    unroll: bool = False
    cpu_forms: bool = False
    mesh: Mesh | None = None
    interpret: bool = False
    int8: bool = False


def lower_layout(layout: Layout, model: ModelConfig, platform: str) -> Lowering:
    """The lowering of a layout; `Program` adds its mesh."""
    unroll = platform == "cpu" and layout.remat == "none" and model.n_layers <= UNROLL_LAYERS
    cpu_forms = platform == "cpu" and layout.tensor * layout.context == 1
    return Lowering(layout.attention, layout.remat, layout.head_chunks, unroll, cpu_forms)


def choose_lowering(mesh: MeshConfig, model: ModelConfig, platform: str, dtype: str = "float32") -> Lowering:
    """What `mesh` asks for, its "auto"s made concrete for a platform (cpu, gpu or tpu) without a memory model.

    MisuseError for an attention that cannot work here, or a mesh that cannot split an LSTM.
    """
    check_mesh(model, mesh)
    tensor, context = max(1, mesh.tensor), max(1, mesh.context)
    attention = choose_attention(model, platform, dtype, context) if mesh.attention == "auto" else mesh.attention
    if mesh.attention == "auto" and platform == "cpu" and tensor * context == 1:
        attention = "blocked"
    check_attention(attention, model, platform, dtype, context)
    remat: Remat = "none" if mesh.remat == "auto" else mesh.remat
    layout = Layout(tensor=tensor, context=context, attention=attention, remat=remat,
                    head_chunks=max(1, mesh.head_chunks))  # fmt: skip
    return lower_layout(layout, model, platform)
