"""Positions and norms by their definitions: added rows, biases on scores, what is too long, what is refused."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxscale.config import ModelConfig
from jaxscale.errors import MisuseError
from jaxscale.layout import check_attention, choose_attention
from jaxscale.model.attention import attend_heads
from jaxscale.model.decoder import layer_norm, make_decoder
from jaxscale.model.lowering import Lowering
from jaxscale.model.mup import param_rules
from jaxscale.model.position import alibi_slopes, sinusoids

MODEL = ModelConfig(d_model=16, n_layers=1, head_dim=8, seq_len=12, vocab_size=32, head_std=0.5)
TOKENS = np.random.default_rng(0).integers(0, 32, (2, 12)).astype(np.int32)


@pytest.mark.parametrize("position", ["rope", "learned", "sinusoidal", "alibi", "none"])
def test_no_logit_moves_with_a_later_token_and_all_but_none_tell_positions_apart(position: Any) -> None:
    """The whole path from ids to logits, when later tokens change, all are alike, and two earlier ones are swapped."""
    decoder = jax.jit(make_decoder(replace(MODEL, position=position), 0).__call__)
    changed, swapped = TOKENS.copy(), TOKENS.copy()
    changed[:, 7:] = (changed[:, 7:] + 1) % 32
    swapped[:, [0, 1]] = swapped[:, [1, 0]]
    before, after = decoder(TOKENS), decoder(changed)
    np.testing.assert_array_equal(before[:, :7], after[:, :7])
    assert np.abs(before[:, 7:] - after[:, 7:]).max() > 1e-3
    uniform = decoder(np.full_like(TOKENS, 5))
    told = np.abs(uniform - uniform[:, :1]).max() > 1e-3
    assert told == (position in ("learned", "sinusoidal"))  # rope and alibi weigh values that are all the same
    order = np.abs(decoder(swapped)[:, -1] - before[:, -1]).max() > 1e-3
    assert order == (position != "none")  # one layer adds up a set


def test_learned_positions_are_an_input_like_the_embedding_and_end_with_their_table() -> None:
    model = replace(MODEL, d_model=64, position="learned", embed_scale=2.0, embed_std=0.5)
    rules = param_rules(model)
    assert replace(rules["positions"], init_std=0.0) == replace(rules["embed"], init_std=0.0)
    decoder = make_decoder(model, 0)
    assert decoder.positions[...].shape == (12, 64)
    assert np.std(decoder.positions[...]) == pytest.approx(0.5, rel=0.1)
    added = decoder.embedded(TOKENS[:, :5]) - 2 * decoder.embed[...][TOKENS[:, :5]]
    np.testing.assert_allclose(added, np.broadcast_to(2 * decoder.positions[...][:5], (2, 5, 64)), rtol=1e-4, atol=1e-5)
    with pytest.raises(MisuseError, match=r"model\.seq_len: 12 positions were learned and these sequences have 13"):
        decoder(jnp.zeros((1, 13), jnp.int32))


def test_sinusoids_turn_by_the_same_angle_from_place_to_place() -> None:
    """Row t + 1 is row t with each pair (sin, cos) turned by its frequency; every row has the length sqrt(d/2)."""
    rows = sinusoids(20, 8)
    turn = 10_000.0 ** (-np.arange(0, 8, 2) / 8)
    sin, cos = rows[:, :4], rows[:, 4:]
    np.testing.assert_allclose(sin[1:], sin[:-1] * np.cos(turn) + cos[:-1] * np.sin(turn), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 2.0, rtol=1e-6)
    np.testing.assert_array_equal(rows[0], [0, 0, 0, 0, 1, 1, 1, 1])


def test_every_kernel_that_takes_biases_subtracts_slope_times_distance() -> None:
    """Against softmax(s q k - m |t - s|) v written out, four query heads on two key heads; and its gradients."""
    slopes = alibi_slopes(replace(MODEL, d_model=32, position="alibi"))
    assert slopes == (2**-2, 2**-4, 2**-6, 2**-8)
    rng = np.random.default_rng(1)
    q, k, v, slope = (jnp.float32(rng.normal(size=(2, 9, h, 8))) for h in (4, 2, 2, 4))
    distance = np.arange(9)[:, None] - np.arange(9)

    def written_out(q: Any, k: Any, v: Any) -> Any:
        k, v = (jnp.repeat(x, 2, axis=2) for x in (k, v))
        scores = 0.3 * jnp.einsum("bthe,bshe->bhts", q, k) - jnp.array(slopes)[:, None, None] * distance
        return jnp.einsum("bhts,bshe->bthe", jax.nn.softmax(jnp.where(distance >= 0, scores, -jnp.inf)), v)

    kernels = [lambda *x, a=attention: attend_heads(*x, 0.3, Lowering(attention=a), slopes=slopes)
               for attention in ("xla", "chunked", "blocked")]  # fmt: skip

    @jax.jit
    def evaluate(*x: jax.Array) -> Any:
        forms = [jax.vjp(form, *x) for form in (written_out, *kernels)]
        return [(out, *pull(slope)) for out, pull in forms]

    wanted, *told = evaluate(q, k, v)
    for got in told:
        for a, b in zip(got, wanted, strict=True):
            np.testing.assert_allclose(a, b, atol=2e-5)


def test_kernels_without_biases_are_refused_and_auto_takes_another() -> None:
    model = replace(MODEL, d_model=64, head_dim=64, seq_len=4096, position="alibi")
    for kind, platform in (("cudnn", "gpu"), ("splash", "tpu")):
        with pytest.raises(MisuseError, match=f"mesh.attention: {kind} takes no biases on scores and model.position"):
            check_attention(kind, model, platform, "bfloat16")
        assert choose_attention(replace(model, position="rope"), platform, "bfloat16") == kind
        assert choose_attention(model, platform, "bfloat16") in ("xla", "chunked")


def test_layer_norm_takes_off_mean_and_deviation_and_multiplies_by_the_gain() -> None:
    x = jnp.array([1.0, 3.0])
    np.testing.assert_allclose(layer_norm(x, jnp.array([1.0, 2.0]), 0.0), [-1, 2])
    np.testing.assert_allclose(layer_norm(5 * x + 7, jnp.ones(2), 0.0), [-1, 1], rtol=1e-6)
    names = dict(nnx.to_flat_state(nnx.state(make_decoder(replace(MODEL, norm="layernorm"), 0), nnx.Param)))
    assert not any("bias" in str(path) for path in names)
