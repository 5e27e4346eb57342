"""Parameter and FLOP counts, each convention named, and the units people quote them in.

Training FLOPs are 3x the forward pass (one forward, two backward products per matrix product):

    C_exact = D * (6 * N_matmul + 6 * L * T * d)           causal attention, the default
    C_full  = D * (6 * N_matmul + 12 * L * T * d)          every query sees all T keys (S^2)
    C_6nd   = 6 * N * D                                    Kaplan et al. 2020, N = total parameters

N_matmul counts weights that enter a matrix product: attention, MLP and head (a tied head is multiplied
too), not the embedding lookup or the norm gains; of experts those that a token passes through, and their router. An
LSTM has no term but N_matmul. The causal form is half the full one (the diagonal's
extra T/2 keys a sequence are not counted, as in MaxText). Softmax, norms and the optimizer are left out:
they are below 1% at d >= 512, more at toy widths.

Masked diffusion (model.objective) has no causal mask, so its exact count is C_full; a hidden token and one that is
seen go through the same products, head included, and count alike.
"""

from __future__ import annotations

from jaxscale.config import ModelConfig
from jaxscale.params import EXPERT_MATRICES, Axes, param_shapes, param_size

__all__ = [
    "PF_DAY_FLOPS",
    "VALIDATION_DRAWS",
    "count_attention",
    "count_last_params",
    "count_matmul_params",
    "count_params",
    "flops_6nd",
    "flops_per_token",
    "training_flops",
    "validation_flops",
]

PF_DAY_FLOPS = 1e15 * 86_400
"""One petaFLOP/s-day, the unit of Kaplan et al. 2020."""

VALIDATION_DRAWS = 8
"""Masks under which masked diffusion sees every validation window (`model.diffusion` says how they are drawn)."""


def count_params(model: ModelConfig) -> dict[str, int]:
    """Parameters by convention: total; active (of the experts only those that a token passes through: the N of a
    law); of the active ones non_embedding (without the embedding table, an untied head and learned positions, Kaplan's
    count) and with_head (without the tables only, Porian et al.'s count).

    >>> count_params(ModelConfig(d_model=8, n_layers=2))
    {'total': 5704, 'active': 5704, 'non_embedding': 1608, 'with_head': 3656}
    >>> count_params(ModelConfig(d_model=8, n_layers=2, n_experts=4))
    {'total': 8840, 'active': 6792, 'non_embedding': 2696, 'with_head': 4744}
    """
    shapes = param_shapes(model)
    sizes = {name: param_size(axes) for name, axes in shapes.items()}
    active = sum(_count_active(name, axes, model) for name, axes in shapes.items())
    table, head, positions = sizes["embed"], sizes.get("head", 0), sizes.get("positions", 0)
    return {
        "total": sum(sizes.values()),
        "active": active,
        "non_embedding": active - table - head - positions,
        "with_head": active - positions - (table - model.vocab_size * model.d_model if model.tied else table),
    }


def _count_active(name: str, axes: Axes, model: ModelConfig) -> int:
    """Scalars that one token meets: of a stack of experts experts_per_token."""
    size = param_size(axes)
    stacked = model.n_experts and name.removeprefix("blocks.") in EXPERT_MATRICES
    return size // model.n_experts * model.experts_per_token if stacked else size


def count_matmul_params(model: ModelConfig) -> int:
    """N_matmul: weights multiplied once per token, the tied head included; of experts the active ones, and the router.

    >>> count_matmul_params(ModelConfig(d_model=8, n_layers=1, vocab_size=256, architecture="lstm"))
    2560
    """
    shapes = param_shapes(model)
    blocks = sum(_count_active(name, axes, model) for name, axes in shapes.items() if name.startswith("blocks.w"))
    return blocks + model.d_model * model.vocab_size


def count_attention(model: ModelConfig) -> int:
    """L T n_heads d_head: FLOPs a token of all causal scores, or of their product with values; 0 without attention."""
    return 0 if model.architecture == "lstm" else model.n_layers * model.seq_len * model.n_heads * model.d_head


def count_last_params(model: ModelConfig) -> int:
    """Of N_matmul what ends a block: w_down, whose output no backward pass reads; of an LSTM nothing."""
    if model.architecture == "lstm":
        return 0
    return model.n_layers * model.d_ff * model.d_model * (model.experts_per_token if model.n_experts else 1)


def flops_per_token(model: ModelConfig, *, causal: bool = True) -> int:
    """Training FLOPs for one token: 6 N_matmul + (6 causal, 12 full) L T (n_heads d_head); diffusion is never causal.

    >>> flops_per_token(ModelConfig(d_model=32, n_layers=2, vocab_size=256, seq_len=64))
    221184
    """
    halved = causal and model.objective == "autoregressive"
    return 6 * count_matmul_params(model) + (6 if halved else 12) * count_attention(model)


def training_flops(model: ModelConfig, tokens: float) -> float:
    """Exact training FLOPs for `tokens` tokens, causal attention."""
    return float(flops_per_token(model) * tokens)


def validation_flops(model: ModelConfig, tokens: float) -> float:
    """FLOPs of one validation on `tokens` tokens: one forward pass; VALIDATION_DRAWS under masked diffusion."""
    passes = VALIDATION_DRAWS if model.objective == "masked_diffusion" else 1
    return flops_per_token(model) * tokens / 3 * passes


def flops_6nd(params: float, tokens: float) -> float:
    """6 N D, the rule of thumb of Kaplan et al. 2020."""
    return 6.0 * params * tokens
