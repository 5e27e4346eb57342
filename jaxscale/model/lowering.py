"""How a model's function is compiled: choices of which none changes what is computed, beyond rounding.

attention    which kernel computes softmax(q k^T) v
remat        what the backward pass computes again instead of keeping it
head_chunks  pieces in which head and cross-entropy are computed, so that no B x T x V array is held
unroll       layers as a loop in Python rather than a scan
cpu_forms    products, GELU, embedding and losses with the backward passes of `model.cpu`
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxscale.config import MeshConfig, ModelConfig

__all__ = ["Lowering", "choose_lowering"]

UNROLL_LAYERS = 8
"""On CPU stacks this short are unrolled: XLA runs a scan's body at about .8 of the unrolled speed."""


@dataclass(frozen=True)
class Lowering:
    """Concrete choices for one program; hashable."""

    attention: Literal["xla", "cudnn", "splash", "blocked"] = "xla"
    remat: Literal["none", "dots", "block"] = "none"
    head_chunks: int = 1
    unroll: bool = False
    cpu_forms: bool = False


def choose_lowering(mesh: MeshConfig, model: ModelConfig, platform: str) -> Lowering:
    """What `mesh` asks for, its "auto"s made concrete for a platform (cpu, gpu or tpu)."""
    attention = "xla" if mesh.attention == "auto" else mesh.attention
    remat = "none" if mesh.remat == "auto" else mesh.remat
    unroll = platform == "cpu" and model.n_layers <= UNROLL_LAYERS
    cpu_forms = platform == "cpu" and mesh.tensor * mesh.context == 1
    if cpu_forms and mesh.attention == "auto":
        attention = "blocked"
    return Lowering(attention, remat, max(1, mesh.head_chunks), unroll, cpu_forms)
