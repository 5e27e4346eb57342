"""The one declaration of a model's parameters: each name with its logical axes and their sizes.

Four readers share it: the Flax model builds the arrays, `train.sharding` maps axes to the mesh,
`mup` derives each tensor's role from the axes that grow with width, and `flops` counts.
"""

from __future__ import annotations

from math import prod

from jaxscale.config import ModelConfig

__all__ = ["EXPERT_MATRICES", "Axes", "count_mask_rows", "param_shapes", "param_size", "vector_start"]

Axes = tuple[tuple[str, int], ...]
"""Logical axes of one parameter, outermost first: ((name, size), ...)."""

EXPERT_MATRICES = ("w_up", "w_gate", "w_down")
"""Parameters of a block of which every expert has its own."""


def param_shapes(model: ModelConfig) -> dict[str, Axes]:
    """Every parameter as its logical axes with their sizes: {name: ((axis, size), ...)}.

    A matrix is (input axis, output axis); block parameters lead with the stacked "layers" axis, those of
    experts with "experts" after it.

    >>> param_shapes(ModelConfig(d_model=8, n_layers=2))["blocks.wq"]
    (('layers', 2), ('embed', 8), ('heads', 8))
    """
    d, ff = ("embed", model.d_model), ("mlp", model.d_ff)
    q, kv = ("heads", model.n_heads * model.d_head), ("kv", model.n_kv_heads * model.d_head)
    vocab, head_dim = ("vocab", model.vocab_size), ("head_dim", model.d_head)
    block: dict[str, Axes] = {
        "attn_norm": (d,), "wq": (d, q), "wk": (d, kv), "wv": (d, kv), "wo": (q, d), "mlp_norm": (d,),
    }  # fmt: skip
    if model.qk_norm:
        block |= {"q_norm": (head_dim,), "k_norm": (head_dim,)}
    block |= {"w_up": (d, ff)} | ({"w_gate": (d, ff)} if model.gated else {}) | {"w_down": (ff, d)}
    if model.n_experts:
        block = _with_experts(block, model)
    if model.architecture == "lstm":
        block = _lstm_block(model)
    shapes: dict[str, Axes] = {"embed": (("vocab", model.vocab_size + count_mask_rows(model)), d)}
    shapes |= {"positions": (("places", model.seq_len), d)} if model.position == "learned" else {}
    shapes |= {f"blocks.{name}": (("layers", model.n_layers), *axes) for name, axes in block.items()}
    shapes |= {"final_norm": (d,)}
    return shapes if model.tied else shapes | {"head": (d, vocab)}


def count_mask_rows(model: ModelConfig) -> int:
    """Rows of the embedding table beyond the vocabulary: under masked diffusion one, the last, for a hidden token.

    It is read and never predicted, so that the head, tied or not, has the vocabulary's columns alone.
    """
    return 1 if model.objective == "masked_diffusion" else 0


def _with_experts(block: dict[str, Axes], model: ModelConfig) -> dict[str, Axes]:
    """The MLP's matrices once an expert, stacked like layers, and the router that picks among them."""
    experts = ("experts", model.n_experts)
    many = {name: (experts, *axes) for name, axes in block.items() if name in EXPERT_MATRICES}
    return block | many | {"w_router": (("embed", model.d_model), experts)}


def _lstm_block(model: ModelConfig) -> dict[str, Axes]:
    d, state, gates = ("embed", model.d_model), ("state", model.d_model), ("gates", 4 * model.d_model)
    return {"norm": (d,), "w_in": (d, gates), "w_rec": (state, gates), "bias": (gates,)}


def vector_start(name: str) -> tuple[float, ...]:
    """What a vector begins as, one value for each of its equal parts: gains 1; an LSTM's bias 0, but 1 on the forget
    gate, which stands first, so that states are kept from the start (Jozefowicz et al. 2015).

    >>> vector_start("blocks.attn_norm"), vector_start("blocks.bias")
    ((1.0,), (1.0, 0.0, 0.0, 0.0))
    """
    return (1.0, 0.0, 0.0, 0.0) if name == "blocks.bias" else (1.0,)


def param_size(axes: Axes) -> int:
    """Number of scalars in a parameter."""
    return prod(n for _, n in axes)
