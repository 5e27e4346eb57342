"""The decoder's properties: causality by gradients, scan equals loop, options, dtypes."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxscale.config import ModelConfig
from jaxscale.model.decoder import apply_block, make_decoder, rms_norm, rope_table, rotate
from jaxscale.model.lowering import Lowering
from jaxscale.model.position import turns

MODEL = ModelConfig(d_model=32, n_layers=3, seq_len=16, head_std=0.5)
VARIANTS = {
    "default": MODEL,
    "swiglu": replace(MODEL, mlp="swiglu"),
    "relu2": replace(MODEL, mlp="relu2", qk_norm=False),
    "gqa": replace(MODEL, head_dim=8, kv_groups=4),
    "tied": replace(MODEL, tied=True, embed_std=0.1),
    "completep": replace(MODEL, parameterization="completep"),
    "standard": replace(MODEL, parameterization="standard"),
    "alibi": replace(MODEL, n_layers=2, head_dim=8, kv_groups=2, mlp="geglu", norm="layernorm", position="alibi"),
    "lstm": replace(MODEL, architecture="lstm", n_layers=2),
    "experts": replace(MODEL, n_experts=4, n_layers=2),
}
TOKENS = jax.random.randint(jax.random.key(0), (2, 16), 0, 256)


@pytest.mark.parametrize("model", VARIANTS.values(), ids=VARIANTS.keys())
def test_no_position_sees_a_later_token(model: ModelConfig) -> None:
    """d(logits at t)/d(embedding at s) is zero for s > t, and not for s <= t."""
    decoder = make_decoder(model, 0)
    names = [name for name, _ in nnx.to_flat_state(nnx.state(decoder.blocks))]
    layers = {name[0]: getattr(decoder.blocks, name[0])[...] for name in names}

    def run(x_td: jax.Array) -> jax.Array:
        x = x_td[None]
        for i in range(model.n_layers):
            block = {name: value[i] for name, value in layers.items()}
            x = apply_block(block, x, turns(16, model), model, Lowering())
        return jnp.sum(x[0] * jnp.arange(1, model.d_model + 1), axis=-1)

    jacobian = jax.jit(jax.jacobian(run))(jax.random.normal(jax.random.key(1), (16, model.d_model)))
    reach = np.abs(np.asarray(jacobian)).sum(axis=-1)  # [t, s]
    assert np.all(reach[np.triu_indices(16, 1)] == 0)
    assert np.all(reach[np.tril_indices(16)] > 0)


@pytest.mark.parametrize("model", VARIANTS.values(), ids=VARIANTS.keys())
def test_scan_over_layers_equals_the_unrolled_loop(model: ModelConfig) -> None:
    scan, loop = (make_decoder(model, 0, lowering=Lowering(unroll=unroll)) for unroll in (False, True))
    np.testing.assert_allclose(scan(TOKENS), loop(TOKENS), rtol=1e-5, atol=1e-5)


def test_grouped_heads_divide_at_every_width() -> None:
    """Five query heads do not split into two groups: one key/value head serves them all."""
    for width in (24, 40, 56):
        model = ModelConfig(d_model=width, head_dim=8, kv_groups=2, n_layers=1, seq_len=8)
        assert model.n_heads % model.n_kv_heads == 0
        assert make_decoder(model, 0)(TOKENS[:, :8]).shape == (2, 8, 256)


def test_every_parameter_gets_a_gradient() -> None:
    decoder = make_decoder(replace(MODEL, mlp="swiglu"), 0)
    graphdef, params = nnx.split(decoder, nnx.Param)
    grads = jax.grad(lambda p: jnp.sum(jnp.square(nnx.merge(graphdef, p)(TOKENS))))(params)
    for path, grad in nnx.to_flat_state(grads):
        assert float(jnp.max(jnp.abs(grad[...]))) > 0, path


def test_gradients_equal_finite_differences_in_float64() -> None:
    """A directional derivative of the loss, on a tiny model with everything in float64."""
    with jax.enable_x64(True):
        model = ModelConfig(d_model=8, n_layers=2, head_dim=4, seq_len=6, vocab_size=11, head_std=0.5)
        block_keys = jax.random.split(jax.random.key(0), 3)
        shapes = {"wq": (8, 8), "wk": (8, 8), "wv": (8, 8), "wo": (8, 8), "w_up": (8, 32), "w_down": (32, 8)}
        block = {n: jax.random.normal(jax.random.fold_in(block_keys[0], i), s) * 0.3 for i, (n, s) in
                 enumerate(shapes.items())}  # fmt: skip
        block |= {"attn_norm": jnp.ones(8), "mlp_norm": jnp.ones(8), "q_norm": jnp.ones(4), "k_norm": jnp.ones(4)}
        x = jax.random.normal(block_keys[1], (1, 6, 8))
        weights = jax.random.normal(block_keys[2], (1, 6, 8))
        rope = tuple(jnp.asarray(r, jnp.float64) for r in rope_table(6, 4, 10_000.0))

        def loss(block: dict[str, jax.Array]) -> jax.Array:
            return jnp.sum(weights * apply_block(block, x, rope, model))

        direction = {n: jax.random.normal(jax.random.key(i), v.shape) for i, (n, v) in enumerate(block.items())}
        step = 1e-3  # norms and rotations round to float32 inside, so the step cannot be smaller
        moved = [jax.tree.map(lambda v, u, s=s: v + s * step * u, block, direction) for s in (1, -1)]
        slope = (loss(moved[0]) - loss(moved[1])) / (2 * step)
        exact = sum(jnp.vdot(g, direction[n]) for n, g in jax.grad(loss)(block).items())
        assert float(slope) == pytest.approx(float(exact), rel=2e-3)


def test_rotation_keeps_lengths_and_depends_on_distance_only() -> None:
    rope = rope_table(12, 8, 10_000.0)
    q, k = (jax.random.normal(jax.random.key(i), (8,)) for i in (0, 1))
    q_bthe, k_bthe = (rotate(jnp.broadcast_to(v, (1, 12, 1, 8)), rope) for v in (q, k))
    scores = jnp.einsum("bthe,bshe->ts", q_bthe, k_bthe)
    for offset in range(4):
        np.testing.assert_allclose(np.diagonal(scores, -offset), scores[offset, 0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(jnp.linalg.norm(q_bthe, axis=-1), jnp.linalg.norm(q), rtol=1e-5)


def test_rms_norm_closed_form() -> None:
    x = jnp.array([3.0, 4.0])
    np.testing.assert_allclose(rms_norm(x, jnp.array([1.0, 2.0]), 0.0), x / np.sqrt(12.5) * np.array([1, 2]))


def test_bfloat16_compute_keeps_float32_weights_and_logits_near_float32_ones() -> None:
    exact, half = make_decoder(MODEL, 0), make_decoder(MODEL, 0, jnp.bfloat16)
    assert {p[...].dtype for _, p in nnx.to_flat_state(nnx.state(half, nnx.Param))} == {jnp.dtype("float32")}
    assert half(TOKENS).dtype == jnp.float32
    np.testing.assert_allclose(half(TOKENS), exact(TOKENS), atol=0.15)


def test_equal_seeds_equal_weights_and_widths_do_not_share_draws() -> None:
    a, b, c = (make_decoder(MODEL, seed) for seed in (0, 0, 1))
    assert np.array_equal(a.embed[...], b.embed[...])
    assert not np.array_equal(a.embed[...], c.embed[...])
