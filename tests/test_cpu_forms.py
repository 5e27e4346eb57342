"""The CPU forms: values and gradients of their plain forms, in every shape, under vmap and in float64."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxscale.config import MeshConfig, ModelConfig
from jaxscale.model import cpu
from jaxscale.model.attention import attend_heads
from jaxscale.model.decoder import apply_block, apply_mlp, make_decoder, rope_table
from jaxscale.model.loss import head_losses, token_losses
from jaxscale.model.lowering import Lowering, choose_lowering

PLAIN, FORMS = Lowering(), Lowering(attention="blocked", cpu_forms=True)


def draw(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def compare(form: Callable[..., Any], plain: Callable[..., Any], *inputs: jax.Array, tol: float = 2e-5) -> None:
    """Values, and gradients by random slopes, agree to `tol` of the largest entry."""

    def evaluate(function: Callable[..., Any]) -> Any:
        values, pull = jax.vjp(function, *inputs)
        slopes = jax.tree.map(lambda v: draw(99, *v.shape).astype(v.dtype), values)
        return values, pull(slopes)

    for got, want in zip(*(jax.tree.leaves(evaluate(jax.jit(function))) for function in (form, plain)), strict=True):
        assert got.dtype == want.dtype
        np.testing.assert_allclose(got, want, rtol=0, atol=tol * max(1e-30, float(jnp.max(jnp.abs(want)))))


@pytest.mark.parametrize(("inputs", "outputs"), [(8, 24), (24, 8), (16, 16), (1, 5)])
def test_products(inputs: int, outputs: int) -> None:
    compare(cpu.project, jnp.matmul, draw(0, 3, 20, inputs), draw(1, inputs, outputs))


def test_gelu_is_that_of_jax_and_finite_far_out() -> None:
    x = jnp.concatenate([jnp.linspace(-12, 12, 481), jnp.array([-1e4, 1e4])])
    compare(cpu.gelu, jax.nn.gelu, x)
    assert np.isfinite(jax.grad(lambda x: jnp.sum(cpu.gelu(x)))(x)).all()


@pytest.mark.parametrize("vocab", [7, 256, cpu.ONE_HOT_VOCAB + 1])
def test_embedding_rows(vocab: int) -> None:
    tokens = jax.random.randint(jax.random.key(0), (2, 33), 0, vocab)
    compare(lambda table: cpu.embed_rows(table, tokens), lambda table: table[tokens], draw(1, vocab, 12))


@pytest.mark.parametrize("vocab", [5, 256, 2000])
def test_losses_and_log_z(vocab: int) -> None:
    targets = jax.random.randint(jax.random.key(0), (2, 19), 0, vocab)
    logits = 4 * draw(1, 2, 19, vocab)
    compare(lambda x: cpu.token_losses(x, targets), lambda x: token_losses(x, targets), logits)
    forms = (lambda x, w: cpu.head_losses(x, w, targets, 0.3), lambda x, w: head_losses(x, w, targets, 0.3, PLAIN))
    compare(*forms, draw(2, 2, 19, 8), draw(3, 8, vocab))


@pytest.mark.parametrize(
    ("length", "heads", "kv_heads", "width"),
    [(64, 4, 4, 8), (128, 2, 1, 32), (200, 4, 2, 16), (257, 6, 3, 10), (1, 2, 2, 4), (300, 1, 1, 2)],
)
def test_attention_by_blocks(length: int, heads: int, kv_heads: int, width: int) -> None:
    q = 3 * draw(0, 2, length, heads, width)
    k, v = draw(1, 2, length, kv_heads, width), draw(2, 2, length, kv_heads, width)
    blocked, plain = (
        lambda q, k, v, lowering=lowering: attend_heads(q, k, v, width**-0.5, lowering) for lowering in (FORMS, PLAIN)
    )
    compare(blocked, plain, q, k, v)


def test_attention_by_blocks_with_biases_that_grow_with_distance() -> None:
    slopes, q, k, v = (0.5, 0.125), draw(0, 1, 150, 2, 8), draw(1, 1, 150, 1, 8), draw(2, 1, 150, 1, 8)
    blocked, plain = (
        lambda q, k, v, form=form: attend_heads(q, k, v, 0.3, form, slopes=slopes) for form in (FORMS, PLAIN)
    )
    compare(blocked, plain, q, k, v)


def test_gated_gelu() -> None:
    model = replace(MODEL, d_model=8, mlp="geglu")
    weights = {"w_up": draw(1, 8, 32), "w_gate": draw(2, 8, 32), "w_down": draw(3, 32, 8)}
    forms, plain = (lambda x, form=form: apply_mlp(weights, x, model, form) for form in (FORMS, PLAIN))
    compare(forms, plain, draw(0, 2, 9, 8))


def test_attention_keeps_scores_far_apart_finite() -> None:
    q, k, v = (1e3 * draw(i, 1, 130, 2, 4) for i in range(3))
    total = lambda *x: jnp.sum(jnp.sin(cpu.attend_blocked(*x, 1.0)))  # noqa: E731
    grads = jax.jit(jax.grad(total, argnums=(0, 1, 2)))(q, k, v)
    assert all(np.isfinite(g).all() for g in grads)


def test_no_row_sees_a_later_one_across_blocks() -> None:
    """d(out at t)/d(key or value at s) is zero for s > t, for rows around a block's end."""
    length, around = cpu.BLOCK + 3, slice(cpu.BLOCK - 3, cpu.BLOCK + 3)
    q, k, v = (draw(i, 1, length, 1, 4) for i in range(3))

    def rows(kv: tuple[jax.Array, jax.Array]) -> jax.Array:
        return jnp.sum(cpu.attend_blocked(q, *kv, 1.0), axis=(0, 2, 3))[around]

    for jacobian in jax.jit(jax.jacrev(rows))((k, v)):
        reach = np.abs(np.asarray(jacobian)[:, 0, :, 0]).sum(-1)[:, around]
        assert np.all(reach[np.triu_indices(6, 1)] == 0) and np.all(reach[np.tril_indices(6)] > 0)


MODEL = ModelConfig(d_model=32, n_layers=1, head_dim=8, seq_len=24, vocab_size=64, head_std=0.5)
VARIANTS = {
    "default, scanned": replace(MODEL, n_layers=2),
    "swiglu": replace(MODEL, mlp="swiglu"),
    "relu2": replace(MODEL, mlp="relu2", qk_norm=False),
    "gqa": replace(MODEL, kv_groups=4),
    "tied": replace(MODEL, tied=True, embed_std=0.1),
    "completep": replace(MODEL, d_model=48, parameterization="completep", base_n_layers=2),
    "past a block": replace(MODEL, seq_len=cpu.BLOCK + 9),
}


@pytest.mark.parametrize("model", VARIANTS.values(), ids=VARIANTS.keys())
def test_a_model_has_the_plain_losses_and_gradients(model: ModelConfig) -> None:
    windows = jax.random.randint(jax.random.key(0), (2, model.seq_len + 1), 0, model.vocab_size)

    def evaluate(lowering: Lowering) -> Any:
        graphdef, params = nnx.split(make_decoder(model, 0, lowering=lowering), nnx.Param)

        def loss(params: Any) -> tuple[jax.Array, jax.Array]:
            losses, log_z = nnx.merge(graphdef, params).losses(windows[:, :-1], windows[:, 1:])
            return jnp.mean(losses) + 1e-2 * jnp.mean(jnp.square(log_z)), losses

        (_, losses), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
        return losses, jax.tree.leaves(grads)

    (losses, grads), (plain_losses, plain_grads) = (evaluate(x) for x in (FORMS, PLAIN))
    np.testing.assert_allclose(losses, plain_losses, rtol=1e-5, atol=1e-5)
    for grad, plain in zip(grads, plain_grads, strict=True):
        np.testing.assert_allclose(grad, plain, rtol=0, atol=3e-5 * float(jnp.max(jnp.abs(plain))))


def test_vmap_gives_each_lane_its_own_gradients() -> None:
    """As packs do: four weights at once equal one at a time."""
    x, w, q = draw(0, 4, 2, 20, 8), draw(1, 4, 8, 24), draw(2, 4, 2, 20, 2, 4)
    tokens = jax.random.randint(jax.random.key(3), (4, 2, 20), 0, 24)

    def loss(x: jax.Array, w: jax.Array, q: jax.Array, tokens: jax.Array) -> jax.Array:
        losses, _ = cpu.head_losses(cpu.gelu(x) + cpu.embed_rows(w.T, tokens), w, tokens, 0.5)
        return jnp.sum(losses) + jnp.sum(cpu.attend_blocked(q, q, q, 0.5) ** 2)

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    together = jax.jit(jax.vmap(gradient))(x, w, q, tokens)
    alone = [gradient(x[i], w[i], q[i], tokens[i]) for i in range(4)]
    for got, want in zip(together, zip(*alone, strict=True), strict=True):
        np.testing.assert_allclose(got, jnp.stack(want), rtol=1e-5, atol=1e-5)


def test_gradients_equal_finite_differences_in_float64() -> None:
    """Of a block and the losses after it, along a random direction; norms and rotations round to float32 inside."""
    with jax.enable_x64(True):
        model = ModelConfig(d_model=8, n_layers=2, head_dim=4, seq_len=6, vocab_size=11)
        shapes = {"wq": (8, 8), "wk": (8, 8), "wv": (8, 8), "wo": (8, 8), "w_up": (8, 32), "w_down": (32, 8),
                  "head": (8, 11), "embed": (11, 8)}  # fmt: skip
        block = {name: 0.3 * draw(i, *shape).astype(jnp.float64) for i, (name, shape) in enumerate(shapes.items())}
        block |= {name: jnp.ones(n) for name, n in {"attn_norm": 8, "mlp_norm": 8, "q_norm": 4, "k_norm": 4}.items()}
        tokens = jax.random.randint(jax.random.key(9), (2, 7), 0, 11)
        rope = tuple(jnp.asarray(r, jnp.float64) for r in rope_table(6, 4, 10_000.0))

        @jax.jit
        def loss(weights: dict[str, jax.Array]) -> jax.Array:
            x = apply_block(weights, cpu.embed_rows(weights["embed"], tokens[:, :-1]), rope, model, FORMS)
            losses, log_z = cpu.head_losses(x, weights["head"], tokens[:, 1:], 0.7)
            return jnp.sum(losses) + jnp.sum(jnp.square(log_z))

        direction = {name: draw(20 + i, *v.shape) for i, (name, v) in enumerate(block.items())}
        exact = sum(jnp.vdot(g, direction[name]) for name, g in jax.jit(jax.grad(loss))(block).items())
        moved = [jax.tree.map(lambda v, u, s=s: v + s * 1e-3 * u, block, direction) for s in (1, -1)]
        assert float(loss(moved[0]) - loss(moved[1])) / 2e-3 == pytest.approx(float(exact), rel=2e-3)
        for name, slopes in _float64_slopes(block).items():
            exact_slope, found = slopes(block)
            assert found == pytest.approx(exact_slope, rel=1e-7), name


def _float64_slopes(block: dict[str, jax.Array]) -> dict[str, Callable[[Any], tuple[float, float]]]:
    """Exact and finite-difference slopes of the forms that keep float64 throughout."""
    tokens = jnp.array([[1, 3, 3, 0]])
    forms: dict[str, Callable[[jax.Array], jax.Array]] = {
        "project": lambda w: jnp.sum(jnp.sin(cpu.project(block["wq"], w))),
        "gelu": lambda w: jnp.sum(jnp.sin(cpu.gelu(3 * w))),
        "attention": lambda w: jnp.sum(jnp.sin(cpu.attend_blocked(*[w.reshape(1, 8, 2, 4)] * 3, 0.7))),
        "losses": lambda w: sum(jnp.sum(jnp.sin(x)) for x in cpu.token_losses(w[None, :4], tokens)),
    }

    def compare_slopes(form: Callable[[jax.Array], jax.Array]) -> Callable[[Any], tuple[float, float]]:
        def slopes(weights: Any) -> tuple[float, float]:
            w = weights["wk"]
            u, h = jnp.cos(jnp.arange(w.size, dtype=jnp.float64)).reshape(w.shape), 1e-6
            value = jax.jit(form)
            return float(jnp.vdot(jax.jit(jax.grad(form))(w), u)), float(value(w + h * u) - value(w - h * u)) / (2 * h)

        return slopes

    return {name: compare_slopes(form) for name, form in forms.items()}


def test_the_forms_are_chosen_on_cpus_alone() -> None:
    chosen = {platform: choose_lowering(MeshConfig(), MODEL, platform) for platform in ("cpu", "gpu", "tpu")}
    assert chosen["cpu"].cpu_forms and chosen["cpu"].attention == "blocked"
    assert not any(chosen[name].cpu_forms or chosen[name].attention == "blocked" for name in ("gpu", "tpu"))
    assert not choose_lowering(MeshConfig(tensor=2), MODEL, "cpu").cpu_forms
