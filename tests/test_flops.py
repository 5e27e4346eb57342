"""Counts against independent counts: closed forms, the model's own tree, every dot in the traced program."""

from dataclasses import replace
from functools import partial
from math import prod

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from jaxscale.config import ModelConfig
from jaxscale.flops import count_params, flops_6nd, flops_per_token, training_flops
from jaxscale.model.decoder import make_decoder, mix_experts
from jaxscale.model.loss import token_losses
from jaxscale.model.lowering import Lowering
from jaxscale.params import param_shapes

MODELS = {
    "gelu": ModelConfig(d_model=32, n_layers=3, seq_len=48),
    "swiglu": ModelConfig(d_model=48, mlp="swiglu", mlp_ratio=8 / 3, mlp_multiple=16, seq_len=32),
    "gqa": ModelConfig(d_model=64, kv_groups=4, qk_norm=False, seq_len=40),
    "tied": ModelConfig(d_model=24, tied=True, vocab_size=300, mlp="relu2", seq_len=24),
    "geglu, learned": ModelConfig(d_model=32, mlp="geglu", position="learned", norm="layernorm", seq_len=24),
    "relu, alibi": ModelConfig(d_model=32, head_dim=8, kv_groups=2, mlp="relu", position="alibi", seq_len=20),
    "lstm": ModelConfig(d_model=24, n_layers=3, seq_len=20, architecture="lstm"),
    "experts": ModelConfig(d_model=24, seq_len=20, n_experts=6, experts_per_token=2, mlp="swiglu"),
}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())
def test_parameter_count_equals_the_models_own_tree(model: ModelConfig) -> None:
    shapes = nnx.eval_shape(partial(make_decoder, model, 0))
    leaves = {".".join(map(str, path)): p.shape for path, p in nnx.to_flat_state(nnx.state(shapes, nnx.Param))}
    total = sum(prod(shape) for shape in leaves.values())
    tables = prod(leaves["embed"]) + prod(leaves.get("positions", (0,)))
    outside = tables + (0 if model.tied else prod(leaves["head"]))
    counts = count_params(model)
    idle = sum(prod(leaves[name]) for name in leaves if name in ("blocks.w_up", "blocks.w_gate", "blocks.w_down"))
    idle = idle * (model.n_experts - model.experts_per_token) // model.n_experts if model.n_experts else 0
    assert counts["total"] == total
    assert counts["active"] == total - idle
    assert counts["non_embedding"] == total - idle - outside
    assert model.tied or counts["with_head"] == total - idle - tables


def test_parameter_count_equals_the_textbook_closed_form() -> None:
    model = ModelConfig(d_model=64, n_layers=5, vocab_size=1000, qk_norm=True, head_dim=16)
    d, layers, vocab = 64, 5, 1000
    gains = layers * (2 * d + 2 * 16) + d
    assert count_params(model)["total"] == 12 * layers * d**2 + 2 * vocab * d + gains


def _count_dots(jaxpr: jax.extend.core.Jaxpr) -> int:
    """Multiply-adds, times two, of every product in a program and the programs it calls, loops as often as they run."""
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contract, _), _ = eqn.params["dimension_numbers"]
            inner = prod(eqn.invars[0].aval.shape[axis] for axis in contract)
            total += 2 * inner * prod(eqn.outvars[0].aval.shape)
        if eqn.primitive.name == "ragged_dot_general":  # each row meets one matrix of the stack
            total += 2 * prod(eqn.invars[0].aval.shape) * eqn.outvars[0].aval.shape[-1]
        turns = eqn.params["length"] if eqn.primitive.name == "scan" else 1
        for value in eqn.params.values():
            for inner_jaxpr in value if isinstance(value, tuple | list) else (value,):
                if hasattr(inner_jaxpr, "eqns"):
                    total += turns * _count_dots(inner_jaxpr)
                elif hasattr(inner_jaxpr, "jaxpr"):
                    total += turns * _count_dots(inner_jaxpr.jaxpr)
    return total


def _gradient_of_loss(model: ModelConfig, batch: int):
    graphdef, params = nnx.split(make_decoder(model, 0, lowering=Lowering(unroll=True)), nnx.Param)

    def loss(params, windows):
        logits = nnx.merge(graphdef, params)(windows[:, :-1])
        return jnp.mean(token_losses(logits, windows[:, 1:])[0])

    return jax.value_and_grad(loss), params, jnp.zeros((batch, model.seq_len + 1), jnp.int32)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())
def test_full_attention_formula_equals_every_dot_of_the_training_step(model: ModelConfig) -> None:
    gradient, params, windows = _gradient_of_loss(model, batch=2)
    counted = _count_dots(jax.make_jaxpr(gradient)(params, windows).jaxpr)
    assert counted == 2 * model.seq_len * flops_per_token(model, causal=False)


def test_full_attention_formula_agrees_with_the_compilers_count() -> None:
    model = ModelConfig(d_model=128, n_layers=2, seq_len=64, head_dim=32)
    gradient, params, windows = _gradient_of_loss(model, batch=4)
    analysis = jax.jit(gradient).lower(params, windows).compile().cost_analysis()
    formula = 4 * model.seq_len * flops_per_token(model, causal=False)
    assert formula < analysis["flops"] < 1.06 * formula  # the compiler adds norms, softmax and activations


def test_an_lstm_unrolled_by_hand_costs_what_the_formula_says_by_the_compilers_count() -> None:
    """Forward, a third of the training FLOPs; the compiler adds the gates, and knows that h_0 = 0 needs no product."""
    model = ModelConfig(d_model=64, n_layers=1, seq_len=8, vocab_size=64, architecture="lstm")
    d, batch = model.d_model, 4

    def forward(x_tbd, w_in, w_rec, head):
        h = c = jnp.zeros((batch, d))
        states = []
        for x_bd in x_tbd:
            forget, write, read, fresh = jnp.split(x_bd @ w_in + h @ w_rec, 4, axis=-1)
            c = jax.nn.sigmoid(forget) * c + jax.nn.sigmoid(write) * jnp.tanh(fresh)
            h = jax.nn.sigmoid(read) * jnp.tanh(c)
            states.append(h)
        return jnp.stack(states) @ head

    shapes = ((8, batch, d), (d, 4 * d), (d, 4 * d), (d, model.vocab_size))
    compiled = jax.jit(forward).lower(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes)).compile()
    formula = batch * model.seq_len * flops_per_token(model) / 3
    assert formula - 2 * batch * 4 * d * d <= compiled.cost_analysis()["flops"] < 1.06 * formula


def test_experts_in_blocks_multiply_the_rows_that_their_blocks_hold() -> None:
    """The form for CPUs: 160 choices among 6 experts in blocks of 16 are up to 15 blocks, 1.5 times the active rows."""
    model = replace(MODELS["experts"], seq_len=80)
    x, low = jnp.zeros((1, 80, model.d_model)), Lowering(cpu_forms=True)
    block = {name.removeprefix("blocks."): jnp.zeros([size for _, size in axes[1:]])
             for name, axes in param_shapes(model).items() if name.startswith("blocks.w_")}  # fmt: skip
    counted = _count_dots(jax.make_jaxpr(lambda block, x: mix_experts(block, x, model, low)[0])(block, x).jaxpr)
    each = sum(prod(value.shape[1:]) for name, value in block.items() if name != "w_router")
    assert counted == 2 * (15 * 16 * each + 80 * prod(block["w_router"].shape))


def test_causal_count_is_the_full_one_less_half_the_attention() -> None:
    model = MODELS["gelu"]
    full, causal = flops_per_token(model, causal=False), flops_per_token(model)
    attention = 12 * model.n_layers * model.seq_len * model.d_model
    assert full - causal == attention / 2


def test_6nd_brackets_the_exact_count_as_width_grows() -> None:
    ratios = []
    for width in (8, 32, 128, 1024):
        model = ModelConfig(d_model=width, seq_len=64)
        ratios.append(flops_6nd(count_params(model)["total"], 1e6) / training_flops(model, 1e6))
    assert ratios == sorted(ratios, reverse=True)
    assert ratios[0] > 1.2 and 0.9 < ratios[-1] < 1.05
