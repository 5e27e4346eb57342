"""The LSTM against Flax's own cell and plain derivatives, and its model under everything that trains one."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from test_step import HYPER

from jaxscale.config import MeshConfig, ModelConfig, Study
from jaxscale.errors import MisuseError
from jaxscale.limits import check_limits
from jaxscale.memory import rank_layouts
from jaxscale.model.decoder import make_decoder
from jaxscale.model.loss import token_losses
from jaxscale.model.lowering import Lowering, choose_lowering
from jaxscale.model.lstm import apply_lstm
from jaxscale.model.mup import param_rules
from jaxscale.mup.batch import random_windows
from jaxscale.mup.check import check_coordinates
from jaxscale.train.sharding import make_mesh
from jaxscale.train.step import Program

MODEL = ModelConfig(architecture="lstm", d_model=16, n_layers=2, seq_len=12, vocab_size=32, head_std=0.5)
TOKENS = jax.random.randint(jax.random.key(0), (4, 13), 0, 32)

quick = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def test_states_and_gradients_equal_those_of_flaxs_cell_in_float64() -> None:
    """An implementation of others, differentiated step by step."""
    with jax.enable_x64(True):
        d, keys = 6, jax.random.split(jax.random.key(0), 5)
        block = {"w_in": jax.random.normal(keys[0], (d, 4 * d)), "w_rec": jax.random.normal(keys[1], (d, 4 * d)),
                 "bias": jax.random.normal(keys[2], (4 * d,))}  # fmt: skip
        x_btd, weights = jax.random.normal(keys[3], (3, 5, d)), jax.random.normal(keys[4], (3, 5, d))
        cell = linen.OptimizedLSTMCell(d, param_dtype=jnp.float64)

        def theirs(block: dict[str, jax.Array], x_btd: jax.Array) -> jax.Array:
            parts = {name: jnp.split(w, 4, axis=-1) for name, w in block.items()}
            params = {f"i{gate}": {"kernel": parts["w_in"][n]} for n, gate in enumerate("fiog")}
            params |= {f"h{gate}": {"kernel": parts["w_rec"][n], "bias": parts["bias"][n]}
                       for n, gate in enumerate("fiog")}  # fmt: skip
            carry, states = (jnp.zeros((3, d)), jnp.zeros((3, d))), []
            for t in range(x_btd.shape[1]):
                carry, h_bd = cell.apply({"params": params}, carry, x_btd[:, t])
                states.append(h_bd)
            return jnp.sum(weights * jnp.stack(states, axis=1))

        def ours(block: dict[str, jax.Array], x_btd: jax.Array) -> jax.Array:
            return jnp.sum(weights * apply_lstm(block, x_btd, jnp.matmul))

        found, wanted = (quick(jax.value_and_grad(f, argnums=(0, 1)))(block, x_btd) for f in (ours, theirs))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), found, wanted)


def loss_and_gradient(model: ModelConfig, lowering: Lowering, dtype: object = jnp.float32, seed: int = 0):
    graphdef, params = nnx.split(make_decoder(model, seed, dtype, lowering=lowering), nnx.Param)

    def loss(params, tokens_bt):
        return jnp.mean(nnx.merge(graphdef, params).losses(tokens_bt[:, :-1], tokens_bt[:, 1:])[0])

    return jax.value_and_grad(loss), params


def test_lowerings_remat_and_members_of_a_pack_agree() -> None:
    plain, params = loss_and_gradient(MODEL, Lowering())
    loss, wanted = quick(plain)(params, TOKENS)
    for lowering in (Lowering(unroll=True, cpu_forms=True), Lowering(remat="block")):
        found = quick(loss_and_gradient(MODEL, lowering)[0])(params, TOKENS)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, (loss, wanted))
    two = jax.tree.map(lambda x: jnp.stack([x, 0.9 * x]), params)
    packed = quick(jax.vmap(plain, (0, None)))(two, TOKENS)[1]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[0], b, rtol=1e-4, atol=1e-6), packed, wanted)


def test_bfloat16_keeps_float32_weights_and_a_loss_near_the_exact_one() -> None:
    exact, params = loss_and_gradient(MODEL, Lowering())
    half = quick(loss_and_gradient(MODEL, Lowering(), jnp.bfloat16)[0])(params, TOKENS)
    assert float(half[0]) == pytest.approx(float(quick(exact)(params, TOKENS)[0]), rel=0.02)
    assert {g.dtype for g in jax.tree.leaves(half[1])} == {jnp.dtype("float32")}


def test_training_evaluation_and_inference_tell_one_loss() -> None:
    graphdef, params = nnx.split(make_decoder(MODEL, 0, lowering=Lowering(cpu_forms=True)), nnx.Param)
    place = jnp.array([3, 0, 11, 7])

    @quick
    def tell(params, tokens_bt):
        decoder, inputs, targets = nnx.merge(graphdef, params), tokens_bt[:, :-1], tokens_bt[:, 1:]
        logits = decoder(inputs)
        trained, told = decoder.losses(inputs, targets)[0], token_losses(logits, targets)[0]
        return (trained, decoder.logits_at(inputs, place)), (told, logits[jnp.arange(4), place])

    found, wanted = tell(params, TOKENS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, wanted)


def test_the_forget_gate_begins_open_and_the_rest_of_the_bias_at_zero() -> None:
    bias = make_decoder(MODEL, 0).blocks.bias[...]
    np.testing.assert_array_equal(bias, np.repeat([[1.0, 0.0, 0.0, 0.0]], 16, axis=1).repeat(2, axis=0))


def test_devices_change_no_gradient() -> None:
    windows, found = np.random.default_rng(0).integers(0, 32, (8, 13)).astype(np.int32), []
    for mesh, count in ((MeshConfig(), 1), (MeshConfig(fsdp=4), 8)):
        program = Program(MODEL, "cosine", 1, make_mesh(mesh, jax.devices()[:count]), jnp.float32)
        step = quick(jax.grad(program.loss, has_aux=True))
        found.append(jax.tree.map(np.asarray, step(program.init(jnp.uint32(0)).params, windows, HYPER)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *found)


def test_roles_follow_the_axes() -> None:
    rules = param_rules(replace(MODEL, d_model=64, base_d_model=16))
    assert {name: rule.role for name, rule in rules.items() if "blocks" in name} == {
        "blocks.norm": "vector", "blocks.w_in": "hidden", "blocks.w_rec": "hidden", "blocks.bias": "vector",
    }  # fmt: skip
    assert (rules["blocks.w_rec"].lr, rules["blocks.w_rec"].init_std) == (1 / 4, 1 / 8)
    assert (rules["blocks.bias"].lr, rules["blocks.bias"].decay, rules["blocks.bias"].eps) == (1.0, 0.0, 1 / 4)


def test_the_coordinate_check_passes() -> None:
    study = Study(model=replace(MODEL, n_layers=1, seq_len=32, vocab_size=64, head_std=0.0))
    result = check_coordinates(study, random_windows(study, 4), widths=(64, 128, 256))
    assert result.passed, result.verdict
    assert {"LSTM out", "recurrent", "bias"} <= {row.name for row in result.rows}


def test_what_only_a_transformer_can_do_is_refused() -> None:
    study = Study(model=MODEL)
    check_limits(study)
    for part, changes, words in (
        ("model", {"n_experts": 4}, "model.n_experts: 4 needs MLPs"),
        ("model", {"objective": "masked_diffusion"}, "model.objective: masked_diffusion fills in"),
        ("model", {"position": "alibi"}, "model.position: alibi is an attention's"),
        ("mesh", {"tensor": 2}, "mesh.tensor: 2 does not split an LSTM"),
        ("mesh", {"context": 2}, "mesh.context: 2 does not split an LSTM"),
        ("mesh", {"attention": "cudnn"}, "mesh.attention: cudnn is a kernel of attention"),
        ("recipe", {"precision": "int8"}, "recipe.precision: int8 has no form for an LSTM"),
    ):
        with pytest.raises(MisuseError, match=words):
            check_limits(replace(study, **{part: replace(getattr(study, part), **changes)}))
    with pytest.raises(MisuseError, match=r"mesh.tensor: 2 does not split an LSTM"):
        choose_lowering(MeshConfig(tensor=2), MODEL, "cpu")


def test_layouts_split_neither_products_nor_sequences() -> None:
    found = rank_layouts(replace(MODEL, d_model=512, seq_len=2048), 64, 8, 16e9, "bfloat16", MeshConfig())
    assert found and all(layout.tensor == layout.context == 1 for layout in found)
