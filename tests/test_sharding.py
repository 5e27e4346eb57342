"""A step's losses and gradients on every mesh, under every remat, chunking and attention: equal within rounding."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from test_step import HYPER

from jaxscale.axes import split_axes
from jaxscale.config import MeshConfig, ModelConfig
from jaxscale.errors import MisuseError
from jaxscale.layout import check_attention
from jaxscale.model import flash
from jaxscale.model.attention import attend_heads
from jaxscale.model.loss import head_logits, token_losses
from jaxscale.model.lowering import Lowering, choose_lowering
from jaxscale.model.pieces import losses_in_pieces
from jaxscale.train.checkpoint import Checkpoints
from jaxscale.train.sharding import make_mesh
from jaxscale.train.step import Program

MODEL = ModelConfig(d_model=32, n_layers=2, seq_len=16, vocab_size=72, head_dim=8, kv_groups=2, mlp="swiglu",
                    head_std=0.02)  # fmt: skip
WINDOWS = np.random.default_rng(0).integers(0, 72, (8, 17)).astype(np.int32)
WITH_Z_LOSS = HYPER._replace(z_loss=np.float32(1e-2))

LOSS_RTOL, GRAD_RTOL = 1e-6, 2e-5
"""Float32 sums in another order: of the loss, and of a gradient against the largest of its array."""


def build(mesh: MeshConfig, devices: int, lowering: Lowering, model: ModelConfig = MODEL) -> Program:
    return Program(model, "cosine", 4, make_mesh(mesh, jax.devices()[:devices]), jnp.float32, lowering=lowering)


def loss_and_gradients(program: Program, params: Any) -> tuple[float, Any]:
    own = jax.device_put(params, program.state_sharding.params)
    (_, loss), grads = jax.jit(jax.value_and_grad(program.loss, has_aux=True))(own, WINDOWS, WITH_Z_LOSS)
    return float(loss), jax.tree.map(np.asarray, grads)


def assert_alike(got: tuple[float, Any], wanted: tuple[float, Any]) -> None:
    np.testing.assert_allclose(got[0], wanted[0], rtol=LOSS_RTOL)
    for a, b in zip(jax.tree.leaves(got[1]), jax.tree.leaves(wanted[1]), strict=True):
        assert np.abs(a - b).max() <= GRAD_RTOL * np.abs(b).max()


STDS = dict.fromkeys(("embed", "head", *(f"blocks.w{name}" for name in ("q", "k", "v", "o", "_up", "_gate", "_down"))),
                     0.1)  # fmt: skip


@pytest.fixture(scope="module")
def params() -> Any:
    return jax.tree.map(np.asarray, build(MeshConfig(), 1, Lowering()).begin(jnp.uint32(0), STDS).params)


@pytest.fixture(scope="module")
def reference(params: Any) -> tuple[float, Any]:
    return loss_and_gradients(build(MeshConfig(), 1, Lowering()), params)


@pytest.mark.parametrize(
    ("mesh", "devices", "lowering"),
    [
        (MeshConfig(tensor=2), 2, Lowering()),
        (MeshConfig(tensor=4), 4, Lowering(remat="dots")),
        (MeshConfig(context=4), 4, Lowering(attention="chunked")),
        (MeshConfig(data=2, fsdp=2, tensor=2), 8, Lowering(remat="dots", head_chunks=2)),
        (MeshConfig(fsdp=2, tensor=2, context=2), 8, Lowering(remat="block", head_chunks=3)),
    ],
    ids=lambda value: "-".join(f"{k}{v}" for k, v in vars(value).items() if k in ("data", "fsdp", "tensor", "context")
                               and v > 1) if isinstance(value, MeshConfig) else None,
)  # fmt: skip
def test_loss_and_gradients_do_not_depend_on_the_mesh(
    mesh: MeshConfig, devices: int, lowering: Lowering, params: Any, reference: tuple[float, Any]
) -> None:
    """tensor=4 has more chips than key heads (2)."""
    assert_alike(loss_and_gradients(build(mesh, devices, lowering), params), reference)


def test_learned_positions_do_not_depend_on_the_mesh() -> None:
    """The table's rows are whole on every chip, its columns and the sequences are cut, and heads over tensor."""
    model = replace(MODEL, n_layers=1, position="learned", norm="layernorm", mlp="relu")
    whole = build(MeshConfig(), 1, Lowering(), model)
    params = jax.tree.map(np.asarray, whole.begin(jnp.uint32(0), {**STDS, "positions": 0.1}).params)
    split = build(MeshConfig(fsdp=2, tensor=2, context=2), 8, Lowering(), model)
    assert_alike(loss_and_gradients(split, params), loss_and_gradients(whole, params))


def test_biases_on_scores_do_not_depend_on_the_mesh() -> None:
    slopes, rng = (0.5, 0.25, 0.125, 0.0625), np.random.default_rng(2)
    q, k, v = (jnp.float32(rng.normal(size=(2, 16, h, 8))) for h in (4, 2, 2))
    wanted = attend_heads(q, k, v, 0.3, Lowering(), slopes=slopes)
    mesh = make_mesh(MeshConfig(tensor=2, context=2), jax.devices()[:4])
    for attention in ("xla", "chunked"):
        lowering = Lowering(attention=attention, mesh=mesh)
        sharding = NamedSharding(mesh, PartitionSpec(None, "context", "tensor"))
        got = jax.jit(lambda *x, low=lowering: attend_heads(*x, 0.3, low, slopes=slopes))(
            *jax.device_put((q, k, v), sharding)
        )
        np.testing.assert_allclose(got, wanted, atol=2e-6)


@pytest.mark.parametrize(
    "lowering",
    [
        Lowering(remat="block", unroll=True),
        Lowering(head_chunks=5, attention="chunked"),
    ],
    ids=["block-unroll", "chunks"],
)
def test_loss_and_gradients_do_not_depend_on_the_lowering(
    lowering: Lowering, params: Any, reference: tuple[float, Any]
) -> None:
    assert_alike(loss_and_gradients(build(MeshConfig(), 1, lowering), params), reference)


def test_losses_in_pieces_equal_the_whole_and_never_hold_all_logits() -> None:
    """Pieces that do not divide the vocabulary (72 in 5), loss and log Z weighted apart."""
    rng = np.random.default_rng(1)
    x, head = (jnp.float32(rng.normal(size=shape)) for shape in ((2, 8, 16), (16, 72)))
    targets, weights = WINDOWS[:2, :8], jnp.float32(rng.normal(size=(2, 2, 8)))

    def in_pieces(x: jax.Array, head: jax.Array) -> jax.Array:
        return jnp.sum(weights * jnp.stack(losses_in_pieces(x, head, targets, 0.7, 5, None)))

    def whole(x: jax.Array, head: jax.Array) -> jax.Array:
        return jnp.sum(weights * jnp.stack(token_losses(head_logits(x, head, 0.7), targets)))

    np.testing.assert_allclose(in_pieces(x, head), whole(x, head), rtol=1e-5)
    wanted = jax.grad(whole, (0, 1))(x, head)
    for a, b in zip(jax.grad(in_pieces, (0, 1))(x, head), wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    held = str(jax.make_jaxpr(jax.grad(in_pieces, (0, 1)))(x, head))
    assert "f32[2,8,1,15]" in held and "f32[2,8,72]" not in held and "f32[5,2,8,1,15]" not in held


@pytest.mark.parametrize("mesh", [None, MeshConfig(data=2, context=2, tensor=2)], ids=["alone", "mesh"])
@pytest.mark.parametrize("kind", ["chunked", "splash"])
def test_attention_kinds_agree(kind: str, mesh: MeshConfig | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values and gradients beside jax.nn.dot_product_attention; splash is interpreted, chunked cut into 8."""
    monkeypatch.setattr(flash, "SCORES_BYTES", 4 * 4 * 256 * 32)
    rng, on = np.random.default_rng(2), None if mesh is None else make_mesh(mesh)
    q, k, v = (jnp.float32(rng.normal(size=(2, 256, heads, 16))) for heads in (4, 2, 2))
    kinds: dict[str, Callable[..., jax.Array]] = {
        "chunked": lambda *a: flash.attend_chunked(*a, 0.3, on),
        "splash": lambda *a: flash.attend_splash(*a, 0.3, on, interpret=True),
        "xla": lambda *a: jax.nn.dot_product_attention(*a, is_causal=True, scale=0.3),
    }

    def mixed(kind: str) -> tuple[jax.Array, Any]:
        return jax.jit(jax.value_and_grad(lambda a: jnp.mean(jnp.sin(kinds[kind](*a)))))((q, k, v))

    (value, grads), (wanted, wanted_grads) = mixed(kind), mixed("xla")
    np.testing.assert_allclose(value, wanted, rtol=1e-5, atol=1e-8)
    for a, b in zip(grads, wanted_grads, strict=True):
        assert np.abs(a - b).max() <= 1e-5 * np.abs(b).max()


@pytest.mark.parametrize("attention", ["xla", "chunked"])
def test_no_token_sees_what_follows_under_context_parallelism(attention: Any, params: Any) -> None:
    """d loss_t / d embedding of the token at s is zero for s > t, and not for s = t; every token is another."""
    program = build(MeshConfig(context=4), 4, Lowering(attention=attention))
    own = jax.device_put(params, program.state_sharding.params)
    windows = np.tile(np.arange(17, dtype=np.int32), (1, 1))

    @jax.jit
    def seen(t: jax.Array) -> jax.Array:
        grads = jax.grad(lambda p: program.apply(p, windows)[0][0, t])(own)
        return jnp.abs(grads["embed"][...]).sum(-1)[:16]

    for t in (0, 3, 4, 10):
        found = np.asarray(seen(jnp.int32(t)))
        assert np.all(found[t + 1 :] == 0) and np.all(found[: t + 1] > 0)


def test_a_checkpoint_goes_on_on_another_mesh(tmp_path: Any) -> None:
    """Two steps on fsdp 4 x tensor 2, two on context 2: the curve of one device."""
    windows = np.stack([WINDOWS] * 4) + np.arange(4, dtype=np.int32)[:, None, None] * 3 % 7
    windows %= 72
    model = replace(MODEL, n_layers=1, kv_groups=1, mlp="gelu")
    programs = [build(mesh, n, Lowering(), model) for mesh, n in
                ((MeshConfig(), 1), (MeshConfig(fsdp=4, tensor=2), 8), (MeshConfig(context=2), 2))]  # fmt: skip

    def advance(program: Program, state: Any, own: np.ndarray) -> tuple[Any, np.ndarray]:
        filled = np.concatenate([own, np.zeros((4 - len(own), *own.shape[1:]), np.int32)])
        args = (program.put_batch(filled), jnp.int32(len(own)), jnp.int32(1), HYPER)
        state, metrics = program.train(8)(state, *args)
        return state, np.asarray(metrics.loss)[: len(own)]

    _, wanted = advance(programs[0], programs[0].init(jnp.uint32(0)), windows)
    state, first = advance(programs[1], programs[1].init(jnp.uint32(0)), windows[:2])
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state, 2, wait=True)
    restored = checkpoints.restore(programs[2].abstract_state())
    checkpoints.close()
    _, second = advance(programs[2], restored, windows[2:])
    np.testing.assert_allclose(np.concatenate([first, second]), wanted, rtol=2e-5)


def test_every_dimension_goes_where_the_table_says() -> None:
    sizes = {"data": 2, "fsdp": 2, "tensor": 2, "context": 1}
    assert split_axes(("batch", "sequence", "width"), (8, 6, 32), sizes) == (("data", "fsdp"), ("tensor",), ())
    assert split_axes(("batch", "sequence", "width"), (6, 5, 32), sizes) == (("data",), (), ())
    assert PartitionSpec(*split_axes(("embed", "mlp"), (32, 33), sizes)) == PartitionSpec(("fsdp",), ())


PROCESS = """
import sys
import jax, jax.numpy as jnp, numpy as np
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"localhost:{sys.argv[1]}", 2, int(sys.argv[2]))
from jaxscale.config import MeshConfig
from jaxscale.train.sharding import batch_sharding, local_rows, make_mesh, row_group
batch = np.arange(8 * 3, dtype=np.int32).reshape(1, 8, 3)
for config in (MeshConfig(), MeshConfig(fsdp=2, tensor=2), MeshConfig(tensor=4), MeshConfig(tensor=2, context=2)):
    mesh = make_mesh(config)
    first, end = local_rows(mesh, 8)
    whole = jax.make_array_from_process_local_data(batch_sharding(mesh), batch[:, first:end], batch.shape)
    for shard in whole.addressable_shards:
        assert np.array_equal(shard.data, batch[shard.index])
    print(first, end, *row_group(mesh), int(jax.jit(jnp.sum)(whole)))
"""


def test_two_processes_feed_the_rows_of_their_devices() -> None:
    """Each with two devices: half the rows where rows are split, all of them where one row is (gloo on localhost)."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    started = [subprocess.Popen([sys.executable, "-c", PROCESS, port, str(i)], stdout=subprocess.PIPE, text=True,
                                env=environment) for i in range(2)]  # fmt: skip
    lines = [process.communicate(timeout=240)[0].splitlines() for process in started]
    said = [[line for line in own if not line.startswith("[Gloo]")] for own in lines]
    assert said[0] == ["0 4 0 2 276", "0 4 0 2 276", "0 8 0 1 276", "0 8 0 1 276"]
    assert said[1] == ["4 8 1 2 276", "4 8 1 2 276", "0 8 0 1 276", "0 8 0 1 276"]


@pytest.mark.parametrize(
    ("config", "platform", "dtype", "words"),
    [
        (MeshConfig(attention="cudnn"), "cpu", "bfloat16", "cudnn runs on NVIDIA GPUs and this is a cpu"),
        (MeshConfig(attention="cudnn"), "gpu", "float32", "cudnn computes in bfloat16 and mesh.dtype is float32"),
        (MeshConfig(attention="cudnn", context=2), "gpu", "bfloat16", "takes whole sequences and mesh.context is 2"),
        (MeshConfig(attention="splash"), "gpu", "bfloat16", "splash runs on TPUs and this is a gpu"),
        (MeshConfig(attention="splash"), "tpu", "bfloat16", "a multiple of 128 positions a chip .* gives 16"),
        (MeshConfig(attention="blocked"), "tpu", "bfloat16", "blocked is a CPU kernel"),
    ],
)
def test_a_kernel_that_cannot_work_is_refused(config: MeshConfig, platform: str, dtype: str, words: str) -> None:
    with pytest.raises(MisuseError, match=f"mesh.attention: .*{words}.*; use --mesh.attention auto"):
        choose_lowering(config, MODEL, platform, dtype)


def test_auto_takes_the_platforms_kernel_where_it_works_and_pieces_where_scores_are_large() -> None:
    long = replace(MODEL, seq_len=8192)
    assert choose_lowering(MeshConfig(), long, "tpu", "bfloat16").attention == "splash"
    assert choose_lowering(MeshConfig(), long, "gpu", "bfloat16").attention == "cudnn"
    assert choose_lowering(MeshConfig(), long, "gpu", "float32").attention == "chunked"
    assert choose_lowering(MeshConfig(), MODEL, "tpu", "bfloat16").attention == "xla"
    check_attention("splash", long, "tpu", "float32", 64)
