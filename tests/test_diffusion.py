"""Masked diffusion: its estimator beside the textbook integral, what a prediction sees, and runs that are exact."""

import itertools
from dataclasses import replace
from functools import cache, partial
from math import comb, prod
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_flops import _count_dots
from test_loop import curve, stop_after
from test_step import HYPER, SLOTS, WINDOWS, pad
from tiny import make_study

from jaxscale.config import MeshConfig, ModelConfig, Recipe
from jaxscale.data.batches import BatchSource
from jaxscale.data.tokens import build_tokens
from jaxscale.errors import MisuseError
from jaxscale.evals.score import make_scorer
from jaxscale.flops import VALIDATION_DRAWS, count_params, flops_per_token
from jaxscale.limits import check_limits
from jaxscale.model import flash
from jaxscale.model.attention import attend_heads
from jaxscale.model.decoder import init_stds, make_decoder
from jaxscale.model.diffusion import draw_training, draw_validation, find_rows, hide_tokens
from jaxscale.model.loss import token_losses
from jaxscale.model.lowering import Lowering, choose_lowering
from jaxscale.resolve import resolve_run
from jaxscale.runs import RunSpec
from jaxscale.train.loop import Preempted, train_run
from jaxscale.train.sharding import make_mesh
from jaxscale.train.step import Program, make_program

MODEL = ModelConfig(d_model=32, n_layers=1, seq_len=16, vocab_size=64, head_dim=8, objective="masked_diffusion",
                    head_std=0.5)  # fmt: skip
SHORT = replace(MODEL, seq_len=5, vocab_size=11)


@cache
def build(
    mesh: MeshConfig | None = None, devices: int = 1, model: ModelConfig = MODEL, lowering: Lowering | None = None
) -> Program:
    made = make_mesh(mesh or MeshConfig(), jax.devices()[:devices])
    return Program(model, "cosine", SLOTS, made, jnp.float32, lowering=lowering)


@cache
def begin(program: Program) -> Any:
    return program.init(jnp.uint32(3)).params


def losses_of_every_mask(program: Program, windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All masks of SHORT's five tokens [32, 5], and the tokens' losses under each [32, 5], of one window."""
    masks = np.array(list(itertools.product([False, True], repeat=5)))
    apply = jax.jit(program.apply)
    return masks, np.asarray(apply(begin(program), np.repeat(windows, len(masks), 0), masks)[0], np.float64)


def test_estimator_is_the_integral_over_time_of_the_papers_bound() -> None:
    """int_0^1 1/t sum_S t^n (1-t)^(T-n) sum_{i in S} CE dt, all masks, by Gauss-Legendre: exact for its polynomial."""
    windows = np.random.default_rng(0).integers(0, 11, (1, 6)).astype(np.int32)
    masks, losses = losses_of_every_mask(build(model=SHORT), windows)
    hidden = masks.sum(1)
    nodes, weights = np.polynomial.legendre.leggauss(8)
    times, weights = (nodes + 1) / 2, weights / 2
    chance = times[:, None] ** hidden * (1 - times[:, None]) ** (5 - hidden)
    bound = np.sum(weights[:, None] / times[:, None] * chance * (losses * masks).sum(1)) / 5
    draws = jax.vmap(lambda step: draw_training(jnp.uint32(0), step, jnp.arange(20), 20, 5))(jnp.arange(1000))
    which = np.asarray(draws.hidden) @ (2 ** np.arange(4, -1, -1))
    values = np.sum(np.asarray(draws.share) * losses[which], axis=-1)  # [steps, rows]
    error = values.mean(1).std() / np.sqrt(1000)
    assert values.mean() == pytest.approx(bound, abs=4 * error) and error < 0.005 * bound
    assert np.array_equal(np.asarray(draws.share) > 0, np.asarray(draws.hidden))
    np.testing.assert_allclose(np.asarray(draws.share).sum(-1), 1, rtol=1e-6)


def test_every_set_of_hidden_tokens_is_as_likely_as_its_weight_says() -> None:
    """P(S) = 1 / (T binom(T, n)) over 20,000 rows, by a chi-square of 31 sets; and each batch has every count alike."""
    draws = jax.vmap(lambda step: draw_training(jnp.uint32(1), step, jnp.arange(20), 20, 5))(jnp.arange(1000))
    hidden = np.asarray(draws.hidden)
    found = np.bincount((hidden @ (2 ** np.arange(5))).ravel(), minlength=32)
    wanted = [20_000 / (5 * comb(5, bin(i).count("1"))) if i else 0 for i in range(32)]
    assert found[0] == 0
    assert 10 < sum((found[1:] - wanted[1:]) ** 2 / np.array(wanted[1:])) < 61  # 30 degrees of freedom, p = .0007
    assert np.all(np.apply_along_axis(np.bincount, 1, hidden.sum(-1), minlength=6)[:, 1:] == 4)


def with_head(program: Program, logits: np.ndarray) -> Any:
    """Parameters under which every position predicts these logits, whatever it sees: norms of 1 and a bias by a trick.

    The last state is the final gain alone where the stream is constant: an embedding of equal rows, no branches.
    """
    params = jax.tree.map(jnp.zeros_like, begin(program))
    params["embed"][...] = jnp.ones_like(params["embed"][...])
    params["final_norm"][...] = jnp.ones_like(params["final_norm"][...])
    scale = program.model.d_model / program.model.base_d_model
    params["head"][...] = jnp.tile(jnp.float32(logits) * scale, (program.model.d_model, 1)) / program.model.d_model
    return params


def test_bound_of_independent_tokens_is_their_entropy() -> None:
    """Tokens drawn from p, a model that says p: nothing is learned from neighbours, and the bound is tight."""
    rng, p = np.random.default_rng(0), np.random.default_rng(1).dirichlet(np.ones(64))
    windows = rng.choice(64, (4, 32, 17), p=p).astype(np.int32)
    program = build()
    params = with_head(program, np.log(p))
    sums = np.asarray(program.evaluate(params, windows, np.ones((4, 32, 16), np.float32)), np.float64)
    empirical = -np.log(p)[windows[..., 1:]].mean()
    estimate, entropy = sums.mean(-1) / 16, -np.sum(p * np.log(p))
    masks_error = np.sqrt(np.sum((sums[..., 1] - sums[..., 0]) ** 2)) / 2 / (128 * 16)
    error = estimate.std() / np.sqrt(128)
    assert estimate.mean() == pytest.approx(entropy, abs=3 * error)
    assert estimate.mean() == pytest.approx(empirical, abs=3 * masks_error)
    assert 0.3 * error < masks_error < error < 0.1


def test_a_prediction_sees_both_sides_and_never_the_token_itself() -> None:
    """d loss_i / d embedding of the token at j: zero at i = j, which is hidden, and at no j that is seen."""
    program, windows, hidden = build(), np.arange(17, dtype=np.int32)[None], np.zeros((1, 16), bool)
    hidden[0, [0, 7, 15]] = True
    grads = jax.jit(jax.jacrev(lambda p: program.apply(p, windows, hidden)[0][0]))(begin(program))
    for reach in np.abs(np.asarray(grads["embed"][...])).sum(-1)[[0, 7, 15]]:  # [65] of one place's loss
        assert np.all(reach[1:17][~hidden[0]] > 0) and np.all(reach[1:17][hidden[0]] == 0)
        assert reach[64] > 0 and reach[0] == 0  # the mask token's row; the window's first id is not shown


def test_all_hidden_is_the_unconditional_prediction() -> None:
    """Whatever stands in the window, the losses are those of one fixed distribution a place."""
    program = build()
    params, hidden = begin(program), np.ones((8, 16), bool)
    losses = np.asarray(jax.jit(program.apply)(params, WINDOWS[0], hidden)[0])
    blank = jax.jit(lambda p: jax.nn.log_softmax(nnx.merge(program.graphdef, p)(np.full((1, 16), 64))))(params)
    blank = np.asarray(blank)[0]
    np.testing.assert_allclose(losses, -blank[np.arange(16), WINDOWS[0][:, 1:]], rtol=2e-5)


@pytest.mark.parametrize("kind", ["chunked", "blocked", "splash"])
def test_kernels_without_a_causal_mask_agree(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash, "SCORES_BYTES", 4 * 4 * 256 * 32)
    rng = np.random.default_rng(2)
    qkv = tuple(jnp.float32(rng.normal(size=(2, 256, heads, 16))) for heads in (4, 2, 2))

    def mixed(kind: str) -> Any:
        lowering = Lowering(attention=kind, interpret=True)  # type: ignore[arg-type]
        return jax.jit(jax.value_and_grad(lambda a: jnp.mean(jnp.sin(attend_heads(*a, 0.3, lowering, causal=False)))))(
            qkv
        )

    (value, grads), (wanted, wanted_grads) = mixed(kind), mixed("xla")
    np.testing.assert_allclose(value, wanted, rtol=1e-5, atol=1e-8)
    for a, b in zip(grads, wanted_grads, strict=True):
        assert np.abs(a - b).max() <= 1e-5 * np.abs(b).max()


@pytest.mark.parametrize("tied", [False, True])
def test_counts_are_those_of_the_models_own_tree_and_every_dot(tied: bool) -> None:
    model = replace(MODEL, tied=tied, n_layers=2)
    shapes = nnx.eval_shape(partial(make_decoder, model, 0))
    total = sum(prod(p.shape) for _, p in nnx.to_flat_state(nnx.state(shapes, nnx.Param)))
    plain = count_params(replace(model, objective="autoregressive"))
    assert count_params(model) == plain | {"total": total, "active": total} and total == plain["total"] + model.d_model
    graphdef, params = nnx.split(make_decoder(model, 0, lowering=Lowering(unroll=True)), nnx.Param)

    def loss(params: Any, tokens: jax.Array) -> jax.Array:
        logits = nnx.merge(graphdef, params)(hide_tokens(tokens, tokens > 30, model.vocab_size))
        return jnp.mean(token_losses(logits, tokens)[0])

    traced = jax.make_jaxpr(jax.value_and_grad(loss))(params, jnp.zeros((2, 16), jnp.int32))
    assert _count_dots(traced.jaxpr) == 2 * 16 * flops_per_token(model)


def train(program: Program, windows: np.ndarray, accumulate: int, seed: int = 0) -> np.ndarray:
    steps = len(windows) // accumulate
    _, metrics = program.train(windows.shape[1])(
        program.init(jnp.uint32(seed)), program.put_batch(pad(windows)), jnp.int32(steps), jnp.int32(accumulate), HYPER
    )
    return np.asarray(metrics.loss)[:steps]


def test_masks_do_not_depend_on_microbatches_or_the_mesh() -> None:
    small = train(build(), WINDOWS[:8], accumulate=2)
    np.testing.assert_allclose(small, train(build(), WINDOWS[:8].reshape(4, 16, 17), accumulate=1), rtol=2e-5)
    assert not np.allclose(small, train(build(), WINDOWS[:8], accumulate=2, seed=1), rtol=1e-3)
    mesh = build(devices=4)
    params = jax.device_put(jax.device_get(begin(build())), mesh.state_sharding.params)
    alone, cut = (
        jax.jit(lambda p, w, of=of: of.loss(p, w, HYPER, *of.draw(jnp.uint32(0), 3, 1, 2, 8))[0])(own, WINDOWS[3])
        for of, own in ((build(), begin(build())), (mesh, params))
    )
    np.testing.assert_allclose(cut, alone, rtol=1e-6)


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_rows_are_those_that_the_processes_feed(processes: int) -> None:
    """Each process cuts its own rows of the batch into microbatches; together they are a microbatch."""
    tokens, rows, batch = np.arange(1000, dtype=np.uint16), 8, 24
    fed = [BatchSource(tokens, 4, batch, 0, i, processes).batch(2).reshape(3, rows // processes, 5)
           for i in range(processes)]  # fmt: skip
    whole = BatchSource(tokens, 4, batch, 0).batch(2)
    for i in range(3):
        microbatch = np.concatenate([part[i] for part in fed])
        assert np.array_equal(whole[np.asarray(find_rows(i, rows, batch, processes))], microbatch)


def test_validation_masks_are_the_windows_own_and_the_end_of_the_text_is_not_shown() -> None:
    """In other batches the same sums; what stands behind the text's end changes nothing, and an empty row adds none."""
    program = build()
    params, windows = begin(program), WINDOWS[:2]
    mask = np.ones((2, 8, 16), np.float32)
    mask[1, 6, 9:], mask[1, 7] = 0, 0
    sums = np.asarray(program.evaluate(params, windows, mask))
    flat = (x.reshape(4, 4, *x.shape[2:]) for x in (windows, mask))
    np.testing.assert_allclose(np.asarray(program.evaluate(params, *flat)).reshape(2, 8, 2), sums, rtol=1e-5)
    other = np.where(np.pad(mask, ((0, 0), (0, 0), (1, 0)), constant_values=1) > 0, windows, 5)
    assert np.array_equal(program.evaluate(params, other, mask), sums)
    assert np.all(sums[1, 7] == 0) and np.all(np.isfinite(sums))
    draws = [draw_validation(jnp.arange(50), jnp.int32(k), jnp.ones((50, 16), bool)) for k in range(VALIDATION_DRAWS)]
    counts = np.sort(np.array([np.asarray(draw.hidden).sum(1) for draw in draws]).reshape(2, 4, 50), axis=1)
    assert np.all((counts - 1) // 4 == np.arange(4)[:, None])  # a half has one count in each quarter of 1 .. 16


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("diffusion")


@pytest.fixture(scope="module")
def spec(root: Path) -> RunSpec:
    """A thousand steps: filling in is learned later than the next token is."""
    study = make_study(root)
    model = replace(study.model, d_model=16, objective="masked_diffusion")
    return resolve_run(
        replace(study, recipe=replace(study.recipe, lr=0.03)), model, 1e10, 1e10 / flops_per_token(model), 1
    )


@pytest.fixture(scope="module")
def finished(root: Path, spec: RunSpec) -> Path:
    train_run(spec, root / "quiet")
    return root / "quiet"


def test_training_lowers_the_bound_below_the_unigram_entropy(finished: Path, spec: RunSpec) -> None:
    tokens = build_tokens(spec.data)
    counts = np.bincount(tokens.train, minlength=256) + 1
    unigram = -np.mean(np.log(counts[tokens.val] / counts.sum()))
    result = train_run(spec, finished)
    assert result.loss is not None and result.loss_std_error is not None
    assert result.loss < 0.85 * unigram and curve(finished, spec)[0]["loss"] > 0.7 * np.log(256)
    told = result.provenance
    assert told["objective"] == "masked_diffusion" and told["bound"]["draws"] == VALIDATION_DRAWS
    assert 0.2 * result.loss_std_error < told["bound"]["std_error_of_masks"] < result.loss_std_error < 0.05


def test_resumed_run_continues_to_the_same_bits(root: Path, spec: RunSpec, finished: Path) -> None:
    with pytest.raises(Preempted, match="saved at step"):
        train_run(spec, root / "stopped", should_stop=stop_after(3))
    result = train_run(spec, root / "stopped")
    assert result.restarts == 1 and curve(root / "stopped", spec) == curve(finished, spec)
    assert result.loss == train_run(spec, finished).loss


def test_lanes_of_a_pack_draw_what_their_runs_draw_alone() -> None:
    begin_all = jax.jit(jax.vmap(lambda seed: build().begin(seed, init_stds(MODEL)).mask_seed))
    seeds = begin_all(jnp.uint32([4, 9]))
    draw = partial(draw_training, step=jnp.int32(5), rows_b=jnp.arange(4), batch=8, length=16)
    for together, seed in zip(jax.vmap(draw)(seeds).hidden, (4, 9), strict=True):
        assert np.array_equal(together, draw(jnp.uint32(seed)).hidden)


def test_what_has_no_next_token_is_refused(root: Path) -> None:
    study = make_study(root)
    model = replace(study.model, objective="masked_diffusion")
    for change, words in (
        ({"recipe": Recipe(evals=("x.jsonl",))}, "recipe.evals: .* has a bound only"),
        ({"model": replace(model, architecture="lstm")}, "an lstm reads from one"),
        ({"model": replace(model, position="none")}, "model.position: none"),
    ):
        with pytest.raises(MisuseError, match=words):
            check_limits(replace(study, **{"model": model} | change))
    with pytest.raises(MisuseError, match="no likelihood of the next ones"):
        make_scorer(model, make_mesh(MeshConfig(), jax.devices()[:1]), MeshConfig(), jnp.float32)
    with pytest.raises(MisuseError, match="cudnn was never tried here without a causal mask"):
        choose_lowering(MeshConfig(attention="cudnn"), model, "gpu", "bfloat16")
    assert choose_lowering(MeshConfig(), model, "gpu", "bfloat16").attention == "xla"
    with pytest.raises(ValueError, match="masks are needed"):
        build().read(WINDOWS[0])
    assert make_program(replace(MODEL, objective="autoregressive"), "cosine", 1, build().mesh,
                        jnp.float32).abstract_state().mask_seed is None  # fmt: skip
