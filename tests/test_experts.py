"""A mixture of experts against dense MLPs and dense mixtures: what it computes, what it depends on, what it counts."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_step import HYPER

from jaxscale.config import MeshConfig, ModelConfig, Recipe, Study
from jaxscale.errors import MisuseError
from jaxscale.flops import count_params
from jaxscale.layout import Layout
from jaxscale.limits import check_limits
from jaxscale.memory import estimate_memory
from jaxscale.model.decoder import apply_mlp, make_decoder, mix_experts
from jaxscale.model.experts import choose_block, route_tokens
from jaxscale.model.lowering import Lowering
from jaxscale.model.mup import param_role, param_rules
from jaxscale.mup.batch import random_windows
from jaxscale.mup.check import check_coordinates
from jaxscale.params import param_shapes
from jaxscale.resolve import describe_run, resolve_run
from jaxscale.train.optimizer import make_optimizer
from jaxscale.train.sharding import make_mesh
from jaxscale.train.step import Program

MODEL = ModelConfig(d_model=16, n_layers=1, seq_len=24, vocab_size=32, head_dim=8, n_experts=5, head_std=0.5)
FORMS = {"sorted": Lowering(), "blocks": Lowering(cpu_forms=True)}
X = jax.random.normal(jax.random.key(1), (3, 24, 16))

quick = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
by_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())


def draw_block(model: ModelConfig, seed: int = 0) -> dict[str, jax.Array]:
    """Weights of one block's feed-forward half; a router sharp enough to have an opinion."""
    shapes = {name.removeprefix("blocks."): [size for _, size in axes[1:]] for name, axes in param_shapes(model).items()
              if name.removeprefix("blocks.") in ("w_up", "w_gate", "w_down", "w_router")}  # fmt: skip
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    return {name: 0.4 * jax.random.normal(key, shape) for key, (name, shape) in zip(keys, shapes.items(), strict=True)}


@partial(jax.jit, static_argnums=(2, 3))
def mix(block: dict[str, jax.Array], x: jax.Array, model: ModelConfig, form: Lowering) -> jax.Array:
    return mix_experts(block, x, model, form)[0]


def expert(block: dict[str, jax.Array], e: int) -> dict[str, jax.Array]:
    return {name: w[e] for name, w in block.items() if name != "w_router"}


def mix_by_hand(block: dict[str, jax.Array], x: jax.Array, model: ModelConfig) -> jax.Array:
    """Every expert on every token, weighted as the docstring says."""
    p = jax.nn.softmax(x @ block["w_router"], axis=-1)
    least = jnp.sort(p, axis=-1)[..., -model.experts_per_token, None]
    gates = jnp.where(p >= least, p, 0)
    gates = gates / gates.sum(axis=-1, keepdims=True) if model.experts_per_token > 1 else gates
    dense = replace(model, n_experts=0)
    return sum(gates[..., e, None] * apply_mlp(expert(block, e), x, dense) for e in range(model.n_experts))


def close(found: Any, wanted: Any) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, wanted)


@pytest.mark.parametrize(("form", "k", "mlp"), [("blocks", 1, "gelu"), ("blocks", 2, "swiglu"), ("sorted", 2, "relu2")])
def test_values_and_gradients_equal_a_dense_mixture_by_hand(form: str, k: int, mlp: Any) -> None:
    """Alone, and as members of a pack with other weights, whose tokens go elsewhere; in float64."""
    with jax.enable_x64(True):
        model = replace(MODEL, experts_per_token=k, mlp=mlp, d_model=6, n_experts=4)
        x, weights = (jax.random.normal(jax.random.key(seed), (2, 40, 6)) for seed in (1, 2))

        def gradient(of: Any) -> Any:
            return jax.value_and_grad(lambda block, x: jnp.sum(weights * of(block, x)), argnums=(0, 1))

        ours = gradient(lambda block, x: mix_experts(block, x, model, FORMS[form])[0])
        wanted = gradient(lambda block, x: mix_by_hand(block, x, model))
        pack = jax.tree.map(lambda *w: jnp.stack(w), draw_block(model), draw_block(model, 1))
        alone = jax.tree.map(lambda w: w[1], pack)
        found = quick(lambda pack, alone: (ours(alone, x), jax.vmap(ours, (0, None))(pack, x)))(pack, alone)
        exact = quick(jax.vmap(wanted, (0, None)))(pack, x)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), found[1], exact)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b[1], rtol=1e-9, atol=1e-9), found[0], exact)
        assert np.max(np.abs(exact[1][0]["w_router"])) > 1e-3  # also where one chosen expert has no rival


@by_form
def test_one_expert_is_the_dense_mlp_and_equal_experts_are_too(form: Lowering) -> None:
    dense = replace(MODEL, n_experts=0)
    one = replace(MODEL, n_experts=1, experts_per_token=1)
    block = draw_block(one)
    wanted = quick(apply_mlp, static_argnums=(2, 3))(expert(block, 0), X, dense, form)
    np.testing.assert_allclose(mix(block, X, one, form), wanted, rtol=1e-6, atol=1e-6)
    all_of = replace(MODEL, n_experts=3, experts_per_token=3)
    equal = {name: jnp.repeat(w, 3, axis=0) for name, w in block.items() if name != "w_router"}
    found = mix({**equal, "w_router": draw_block(all_of)["w_router"]}, X, all_of, form)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


@by_form
def test_order_of_experts_tokens_and_company_change_nothing(form: Lowering) -> None:
    block, order = draw_block(MODEL), jnp.array([3, 0, 4, 1, 2])
    whole = mix(block, X, MODEL, form)
    renamed = {name: w[:, order] if name == "w_router" else w[order] for name, w in block.items()}
    close(mix(renamed, X, MODEL, form), whole)
    close(mix(block, X[:, ::-1], MODEL, form), whole[:, ::-1])
    close(mix(block, X[1:2], MODEL, form), whole[1:2])  # the tokens of other sequences
    close(mix(block, X[:, :7], MODEL, form), whole[:, :7])  # later tokens of its own: causality


@by_form
def test_no_token_is_dropped_when_all_choose_one_expert(form: Lowering) -> None:
    model = replace(MODEL, experts_per_token=1)
    block, x = draw_block(model), jnp.abs(X)
    block["w_router"] = jnp.zeros((16, 5)).at[:, 3].set(9.0)  # probability 1 for a stream above zero
    close(mix(block, x, model, form), apply_mlp(expert(block, 3), x, replace(model, n_experts=0)))
    _, _, load = route_tokens(block["w_router"], x, 1)
    np.testing.assert_allclose(load.share_be, np.eye(5)[[3, 3, 3]])
    assert float(load.balance) == pytest.approx(5)  # E for a collapsed router, 1 for an even one
    assert float(route_tokens(jnp.zeros((16, 5)), x, 2)[2].balance) == pytest.approx(1)


def test_blocks_are_as_large_as_an_experts_share_within_limits() -> None:
    assert [choose_block(rows, 8) for rows in (8, 200, 300, 10**6)] == [16, 16, 32, 64]


def test_microbatches_and_devices_change_no_gradient_and_balancing_no_loss_that_is_reported() -> None:
    """The balancing loss is made of sequences, so even with a large weight it does not see how a batch is cut."""
    windows = np.random.default_rng(0).integers(0, 32, (8, 25)).astype(np.int32)

    def descend(mesh: MeshConfig, devices: int, rows: int, *balances: float) -> list[Any]:
        """(reported loss, gradient), the mean over microbatches of so many rows, for each weight."""
        program = Program(MODEL, "cosine", 1, make_mesh(mesh, jax.devices()[:devices]), jnp.float32)
        step, params = quick(jax.grad(program.loss, has_aux=True)), program.init(jnp.uint32(0)).params
        cuts, hyper = windows.reshape(-1, rows, 25), HYPER._replace(z_loss=jnp.float32(0))
        ends = [[step(params, cut, hyper._replace(router_balance=jnp.float32(w))) for cut in cuts] for w in balances]
        return [
            jax.tree.map(lambda *each: np.mean(each, axis=0), *((loss, grad) for grad, loss in end)) for end in ends
        ]

    whole, unbalanced = descend(MeshConfig(), 1, 8, 1.0, 0.0)
    for mesh, devices, rows in ((MeshConfig(), 1, 2), (MeshConfig(fsdp=2, tensor=2), 4, 8)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
                     descend(mesh, devices, rows, 1.0)[0], whole)  # fmt: skip
    assert whole[0] == unbalanced[0]
    routers = [gradient["blocks"]["w_router"][...] for _, gradient in (whole, unbalanced)]
    assert np.max(np.abs(routers[0] - routers[1])) > 1e-3


def test_balancing_takes_tokens_off_the_busiest_expert() -> None:
    x = X + 1  # a mean, by which a router sends all tokens one way
    router = draw_block(MODEL)["w_router"].at[:, 2].add(0.6)

    def busiest(w: jax.Array) -> float:
        return float(jnp.max(jnp.mean(route_tokens(w, x, 2)[2].share_be, axis=0)))

    step = quick(jax.grad(lambda w: route_tokens(w, x, 2)[2].balance))
    balanced = router
    for _ in range(200):
        balanced = balanced - 0.2 * step(balanced)
    assert busiest(router) > 0.45 and busiest(balanced) < 0.3  # of .5 at most with two choices, .2 where even


def test_bfloat16_and_remat_agree_with_the_plain_model() -> None:
    tokens = jax.random.randint(jax.random.key(0), (2, 25), 0, 32)

    def loss_of(dtype: Any, lowering: Lowering) -> Any:
        graphdef, params = nnx.split(make_decoder(MODEL, 0, dtype, lowering=lowering), nnx.Param)
        return lambda p: jnp.mean(nnx.merge(graphdef, p).losses(tokens[:, :-1], tokens[:, 1:])[0]), params

    plain, params = loss_of(jnp.float32, Lowering())
    loss, wanted = quick(jax.value_and_grad(plain))(params)
    close(quick(jax.grad(loss_of(jnp.float32, Lowering(remat="block"))[0]))(params), wanted)
    assert float(quick(loss_of(jnp.bfloat16, Lowering())[0])(params)) == pytest.approx(float(loss), rel=0.02)


def test_roles_rates_and_starts_follow_the_axes() -> None:
    wide = replace(MODEL, d_model=64, base_d_model=16, mlp="swiglu")
    roles = {name: param_role(axes) for name, axes in param_shapes(wide).items()}
    assert {roles[f"blocks.{name}"] for name in ("w_up", "w_gate", "w_down")} == {"hidden"}
    rule = param_rules(wide)["blocks.w_router"]
    assert (rule.role, rule.lr, rule.decay) == ("router", 1 / 4, 4)
    assert rule.init_std == pytest.approx(16**-0.5 / 4)  # falls as 1/w, a hidden matrix's as w^-1/2
    assert param_rules(wide)["blocks.w_down"].init_std == pytest.approx(64**-0.5 / 2)


def test_muon_makes_every_expert_orthogonal_by_itself() -> None:
    model, hyper = replace(MODEL, base_d_model=16), HYPER._replace(clip_norm=0.0, weight_decay=0.0)
    _, params = nnx.split(make_decoder(model, 0), nnx.Param)
    optimizer = make_optimizer(model, params, hyper, "muon")
    updates = quick(lambda p: optimizer.update(p, optimizer.init(p), p)[0])(params)
    each = np.asarray(updates["blocks"]["w_up"][...])[0]  # [experts, embed, mlp]
    values = np.linalg.svd(each, compute_uv=False) / (0.2 * max(each.shape[1:]) ** 0.5)
    assert values.shape == (5, 16) and np.all((values > 0.6) & (values < 1.3))


def test_the_coordinate_check_passes() -> None:
    study = Study(model=ModelConfig(n_layers=1, head_dim=8, n_experts=4, qk_norm=False))
    result = check_coordinates(study, random_windows(study, 4), widths=(32, 64, 128))
    assert result.passed, result.verdict
    assert {"router logits", "router", "MLP out"} <= {row.name for row in result.rows}


def test_runs_are_told_by_their_active_parameters() -> None:
    study = Study(model=MODEL)
    cell = describe_run(resolve_run(study, MODEL, 1e9, 1e5, 0))
    idle = 3 * 2 * MODEL.d_model * MODEL.d_ff  # three of five experts
    assert (cell.n_params_total, cell.n_params) == (count_params(MODEL)["total"], count_params(MODEL)["total"] - idle)
    assert estimate_memory(MODEL, Layout(), "float32").weights == 4 * cell.n_params_total  # all of them lie in memory
    assert cell.flops == cell.spec.tokens * 6 * (cell.n_params - 32 * 16 - 3 * 16 - 2 * 8 + MODEL.seq_len * 16)


def test_choices_that_cannot_be_made_are_refused() -> None:
    study = Study(model=MODEL)
    check_limits(study)
    with pytest.raises(MisuseError, match=r"model.experts_per_token: 6 of 5 experts cannot be chosen"):
        check_limits(replace(study, model=replace(MODEL, experts_per_token=6)))
    with pytest.raises(MisuseError, match=r"recipe.precision: int8 has no form for the products of experts"):
        check_limits(replace(study, recipe=Recipe(precision="int8")))
