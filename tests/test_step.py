"""The compiled step: devices, accumulation, schedules and the optimizer against references."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxscale.config import MeshConfig, ModelConfig
from jaxscale.errors import MisuseError
from jaxscale.model.decoder import make_decoder
from jaxscale.model.loss import token_losses
from jaxscale.train.optimizer import Hyper, learning_rate, make_optimizer
from jaxscale.train.sharding import check_batch, make_mesh
from jaxscale.train.step import Program, make_program

MODEL = ModelConfig(d_model=32, n_layers=1, seq_len=16, vocab_size=64, head_dim=8)
HYPER = Hyper(*(jnp.float32(x) for x in (0.02, 2, 3, 0.9, 0.95, 1e-12, 0.1, 1.0, 1e-4, 20, 2, 4, 0.1)))
WINDOWS = np.random.default_rng(0).integers(0, 64, (16, 8, 17)).astype(np.int32)


SLOTS = len(WINDOWS)


def pad(windows: np.ndarray) -> np.ndarray:
    """Fill a dispatch's slots with zeros that no step reads."""
    return np.concatenate([windows, np.zeros((SLOTS - len(windows), *windows.shape[1:]), np.int32)])


def train(mesh: MeshConfig, count: int, *, model: ModelConfig = MODEL, windows: np.ndarray = WINDOWS,
          accumulate: int = 2) -> tuple[np.ndarray, Program, object]:  # fmt: skip
    """Losses of the first steps on the first `count` devices."""
    program = make_program(model, "cosine", SLOTS, make_mesh(mesh, jax.devices()[:count]), jnp.float32)
    steps = len(windows) // accumulate
    state, metrics = program.train(windows.shape[1])(
        program.init(jnp.uint32(0)), program.put_batch(pad(windows)), jnp.int32(steps), jnp.int32(accumulate), HYPER
    )
    return np.asarray(metrics.loss)[:steps], program, state


@pytest.fixture(scope="module")
def reference() -> np.ndarray:
    return train(MeshConfig(), 1)[0]


@pytest.mark.parametrize(
    ("mesh", "count"),
    [(MeshConfig(), 8), (MeshConfig(fsdp=4), 8), (MeshConfig(fsdp=2, tensor=2), 8)],
    ids=["data8", "data2-fsdp4", "data2-fsdp2-tensor2"],
)  # fmt: skip
def test_losses_do_not_depend_on_the_mesh(mesh: MeshConfig, count: int, reference: np.ndarray) -> None:
    np.testing.assert_allclose(train(mesh, count)[0], reference, rtol=2e-5)


def test_parameters_and_moments_are_split_over_fsdp() -> None:
    _, _, state = train(MeshConfig(fsdp=4), 8)
    sizes = [leaf.addressable_shards[0].data.size / leaf.size for leaf in jax.tree.leaves(state) if leaf.ndim > 1]
    head_dim_gains = [size for size in sizes if size == 1.0]
    assert sizes.count(1 / 4) > len(sizes) * 0.7
    assert len(head_dim_gains) <= 6  # the QK-norm gains [layers, head_dim] and their moments


def test_accumulated_microbatches_equal_one_large_batch() -> None:
    whole = WINDOWS[:8].reshape(4, 16, 17)
    small = train(MeshConfig(), 1, windows=WINDOWS[:8], accumulate=2)[0]
    large = train(MeshConfig(), 1, windows=whole, accumulate=1)[0]
    np.testing.assert_allclose(small, large, rtol=2e-5)


def test_many_steps_in_a_dispatch_equal_one_at_a_time() -> None:
    together, program, _ = train(MeshConfig(), 1, accumulate=1)
    state, alone = program.init(jnp.uint32(0)), []
    for i in range(len(WINDOWS)):
        batch = program.put_batch(pad(WINDOWS[i : i + 1]))
        state, metrics = program.train(8)(state, batch, jnp.int32(1), jnp.int32(1), HYPER)
        alone.append(float(metrics.loss[0]))
    assert np.array_equal(np.float32(alone), together)


def test_step_equals_a_reference_built_from_plain_optax() -> None:
    """At base width, one rate for all and no clipping, the step is optax.adamw with a mask on the gains."""
    plain = HYPER._replace(embed_lr=jnp.float32(1), head_lr=jnp.float32(1), clip_norm=jnp.float32(0),
                           z_loss=jnp.float32(0))  # fmt: skip
    program = make_program(MODEL, "cosine", SLOTS, make_mesh(MeshConfig(), jax.devices()[:1]), jnp.float32)
    _, metrics = program.train(8)(
        program.init(jnp.uint32(0)), program.put_batch(WINDOWS), jnp.int32(6), jnp.int32(1), plain
    )
    graphdef, params = nnx.split(make_decoder(MODEL, 0), nnx.Param)
    mask = jax.tree.map_with_path(lambda path, _: "norm" not in jax.tree_util.keystr(path), params)
    tx = optax.adamw(lambda n: learning_rate(n, plain, "cosine"), 0.9, 0.95, 1e-12, weight_decay=0.1, mask=mask)
    moments, losses = tx.init(params), []

    def loss_of(params, windows):
        return jnp.mean(token_losses(nnx.merge(graphdef, params)(windows[:, :-1]), windows[:, 1:])[0])

    @jax.jit
    def step(params, moments, windows):
        value, grads = jax.value_and_grad(loss_of)(params, windows)
        updates, moments = tx.update(grads, moments, params)
        return optax.apply_updates(params, updates), moments, value

    for i in range(6):
        params, moments, value = step(params, moments, jnp.asarray(WINDOWS[i]))
        losses.append(float(value))
    np.testing.assert_allclose(np.asarray(metrics.loss)[:6], losses, rtol=3e-5)


def test_every_parameter_belongs_to_exactly_one_group() -> None:
    _, params = nnx.split(make_decoder(MODEL, 0), nnx.Param)
    optimizer = make_optimizer(MODEL, params, HYPER)
    state = optimizer.init(params)
    moments = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim]
    assert sum(leaf.size for leaf in moments) == 2 * sum(leaf.size for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_schedule_warms_up_peaks_and_ends_where_it_says(schedule: str) -> None:
    hyper = HYPER._replace(steps=jnp.float32(100), warmup_steps=jnp.float32(10), decay_steps=jnp.float32(20))
    rates = np.array([float(learning_rate(jnp.float32(i), hyper, schedule)) for i in range(100)])
    assert rates[0] == pytest.approx(0.002) and rates[9] == pytest.approx(0.02)
    assert rates[-1] == pytest.approx(0.002, rel=1e-4)
    assert np.all(np.diff(rates[:10]) > 0) and np.all(np.diff(rates[10:]) <= 1e-9)
    if schedule == "wsd":
        assert np.ptp(rates[10:80]) < 1e-9 and rates[89] == pytest.approx(0.011, rel=1e-3)
    else:
        assert rates[54] == pytest.approx(0.011, rel=1e-3)  # halfway through the cosine


def test_token_losses_equal_the_closed_form_of_uniform_logits() -> None:
    losses, log_z = token_losses(jnp.zeros((1, 3, 7)), jnp.array([[0, 3, 6]]))
    np.testing.assert_allclose(losses, np.log(7), rtol=1e-6)
    np.testing.assert_allclose(log_z, np.log(7), rtol=1e-6)


def test_mesh_that_does_not_fit_the_devices_is_refused() -> None:
    with pytest.raises(MisuseError, match="fsdp=3"):
        make_mesh(MeshConfig(fsdp=3), jax.devices()[:8])


def test_batch_that_does_not_divide_names_the_way_out() -> None:
    with pytest.raises(MisuseError, match="6 does not divide over 4 devices; use 4 or 8"):
        check_batch(6, make_mesh(MeshConfig(), jax.devices()[:4]))


def test_the_average_is_the_mean_of_the_last_weights_and_changes_no_step() -> None:
    """Of 16 steps the last 5, gathered one dispatch at a time without averaging."""
    hyper = HYPER._replace(steps=jnp.float32(16), average_steps=jnp.float32(5))
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    plain = make_program(MODEL, "cosine", SLOTS, mesh, jnp.float32)
    averaging = make_program(MODEL, "cosine", SLOTS, mesh, jnp.float32, averages=True)
    state, gathered = plain.init(jnp.uint32(0)), []
    for i in range(16):
        batch = plain.put_batch(pad(WINDOWS[i : i + 1]))
        state, _ = plain.train(8)(state, batch, jnp.int32(1), jnp.int32(1), hyper)
        gathered.append(jax.tree.map(np.asarray, state.params))
    whole, _ = averaging.train(8)(
        averaging.init(jnp.uint32(0)), averaging.put_batch(WINDOWS), jnp.int32(16), jnp.int32(1), hyper
    )
    mean = jax.tree.map(lambda *weights: np.mean(weights[-5:], axis=0), *gathered)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), whole.answer, mean)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), whole.params, state.params)
    assert state.answer is state.params
