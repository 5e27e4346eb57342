"""Parameter and FLOP counts, each convention named, and the units people quote them in.

Training FLOPs are 3x the forward pass (one forward, two backward products per matrix product):

    C_exact = D * (6 * N_matmul + 6 * L * T * d)           causal attention, the default
    C_full  = D * (6 * N_matmul + 12 * L * T * d)          every query sees all T keys (S^2)
    C_6nd   = 6 * N * D                                    Kaplan et al. 2020, N = total parameters

N_matmul counts weights that enter a matrix product: attention, MLP and head (a tied head is multiplied
too), not the embedding lookup or the norm gains. The causal form is half the full one (the diagonal's
extra T/2 keys a sequence are not counted, as in MaxText). Softmax, norms and the optimizer are left out:
they are below 1% at d >= 512, more at toy widths.

Masked diffusion (model.objective) has no causal mask, so its exact count is C_full; a hidden token and one that is
seen go through the same products, head included, and count alike.
"""

from __future__ import annotations

from jaxscale.config import ModelConfig
from jaxscale.params import param_shapes, param_size

__all__ = [
    "PF_DAY_FLOPS",
    "VALIDATION_DRAWS",
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
    """Parameters by convention: total; non_embedding (without the embedding table, an untied head and learned
    positions, Kaplan's count); with_head (without the tables only, Porian et al.'s count).

    >>> count_params(ModelConfig(d_model=8, n_layers=2))
    {'total': 5704, 'non_embedding': 1608, 'with_head': 3656}
    """
    sizes = {name: param_size(axes) for name, axes in param_shapes(model).items()}
    total = sum(sizes.values())
    table, head, positions = sizes["embed"], sizes.get("head", 0), sizes.get("positions", 0)
    return {
        "total": total,
        "non_embedding": total - table - head - positions,
        "with_head": total - positions - (table - model.vocab_size * model.d_model if model.tied else table),
    }


def count_matmul_params(model: ModelConfig) -> int:
    """N_matmul: weights multiplied once per token, the tied head included."""
    shapes = param_shapes(model)
    blocks = sum(param_size(axes) for name, axes in shapes.items() if name.startswith("blocks.w"))
    return blocks + model.d_model * model.vocab_size


def flops_per_token(model: ModelConfig, *, causal: bool = True) -> int:
    """Training FLOPs for one token: 6 N_matmul + (6 causal, 12 full) L T (n_heads d_head); diffusion is never causal.

    >>> flops_per_token(ModelConfig(d_model=32, n_layers=2, vocab_size=256, seq_len=64))
    221184
    """
    attention = model.n_layers * model.seq_len * model.n_heads * model.d_head
    halved = causal and model.objective == "autoregressive"
    return 6 * count_matmul_params(model) + (6 if halved else 12) * attention


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
