"""SGD, Muon, Lion, Adafactor: rules by their closed forms, steps by hand, run ids that stay."""

from dataclasses import replace
from math import sqrt
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxscale.config import ModelConfig, Recipe, Study
from jaxscale.errors import MisuseError
from jaxscale.limits import check_limits
from jaxscale.model.decoder import make_decoder
from jaxscale.model.mup import forward_multipliers, param_rules
from jaxscale.mup.batch import random_windows
from jaxscale.mup.check import check_coordinates
from jaxscale.plan import plan_isoflop
from jaxscale.train.optimizer import Hyper, make_optimizer

BASE = ModelConfig(d_model=32, base_d_model=32, head_dim=8, vocab_size=64)
WIDE = replace(BASE, d_model=128)
HYPER = Hyper(*(jnp.float32(x) for x in (1, 2, 3, 0.9, 0.95, 1e-12, 0.1, 0, 0, 20, 2, 4, 0.1, 0.5, 0.9)))


def updates(
    model: ModelConfig, optimizer: str, steps: int = 1
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Parameters, gradient and the last of `steps` updates under that gradient, by leaf name."""
    params = nnx.split(make_decoder(replace(model, head_std=1.0), 0), nnx.Param)[1]
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    gradient = jax.tree.unflatten(tree, [jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)])
    transform = make_optimizer(model, params, HYPER, optimizer)
    state = transform.init(params)
    for _ in range(steps):
        update, state = transform.update(gradient, state, params)
    return tuple(_by_name(tree) for tree in (params, gradient, update))  # type: ignore[return-value]


def packed_steps(
    model: ModelConfig, optimizer: str, scales: list[float], b1: tuple[float, ...]
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Parameters, gradient, and the last update after that gradient times each scale: a lane of a pack for each b1."""
    params = nnx.split(make_decoder(replace(model, head_std=1.0), 0), nnx.Param)[1]
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(1)
    gradient = jax.tree.unflatten(tree, [jnp.float32(rng.normal(size=x.shape)) for x in leaves])

    def run(b1: jax.Array) -> Any:
        transform = make_optimizer(model, params, HYPER._replace(b1=b1), optimizer)
        state = transform.init(params)
        for scale in scales:
            update, state = transform.update(jax.tree.map(lambda g, s=scale: s * g, gradient), state, params)
        return update

    told = jax.jit(jax.vmap(run))(jnp.float32(b1))
    return tuple(_by_name(tree) for tree in (params, gradient, told))  # type: ignore[return-value]


def _by_name(tree: Any) -> dict[str, Any]:
    plain = nnx.to_pure_dict(tree)
    return {k: np.asarray(v) for k, v in {**plain.pop("blocks"), **plain}.items()}


def test_sgd_rates_follow_the_gradients_of_each_class() -> None:
    rules = param_rules(WIDE, "sgd")
    assert {rules[n].lr for n in ("embed", "head", "final_norm", "blocks.attn_norm")} == {4.0}
    assert {rules[n].lr for n in ("blocks.wq", "blocks.wk", "blocks.wo", "blocks.w_up", "blocks.w_down")} == {1.0}
    assert rules["blocks.q_norm"].lr == 1.0  # one gain of eight serves all heads: its gradient does not fall
    assert all(rule.lr * rule.decay == (0 if rule.role == "vector" else 1) for rule in rules.values())


def test_sgd_with_d_ff_out_of_proportion_scales_up_and_down_by_both() -> None:
    """w = 4, d_ff grows by 8: up is fan_out/fan_in = 2, down a half (Yang, Simon, Bernstein 2023)."""
    rules = param_rules(replace(WIDE, mlp_ratio=8, base_mlp_ratio=4), "sgd")
    assert (rules["blocks.w_up"].lr, rules["blocks.w_down"].lr) == (2.0, 0.5)
    adam = param_rules(replace(WIDE, mlp_ratio=8, base_mlp_ratio=4))
    assert (adam["blocks.w_up"].lr, adam["blocks.w_down"].lr) == (1 / 4, 1 / 8)
    assert (adam["blocks.w_up"].eps, adam["blocks.w_down"].eps) == (1 / 8, 1 / 4)


def test_sgd_over_depth_undoes_the_blocks_smaller_gradient() -> None:
    """Gradient m^-a, update wanted m^(a-1): the rate is m^(2a-1), constant at a = 1/2."""
    deep = replace(BASE, n_layers=8, parameterization="completep")
    assert param_rules(replace(deep, depth_alpha=1.0), "sgd")["blocks.wq"].lr == pytest.approx(4)
    assert param_rules(replace(deep, depth_alpha=0.5), "sgd")["blocks.wq"].lr == pytest.approx(1)


def test_sgd_steps_by_momentum_and_decoupled_decay() -> None:
    """Second step under one gradient: m = 1.9 g; u = rate * (m + lambda p / rate_rule)."""
    params, g, update = updates(WIDE, "sgd", steps=2)
    np.testing.assert_allclose(update["wq"], 1.9 * g["wq"] + 0.1 * params["wq"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(update["embed"], 2 * 4 * (1.9 * g["embed"] + 0.1 / 4 * params["embed"]), rtol=1e-4)
    np.testing.assert_allclose(
        update["head"], 3 * 4 * (1.9 * g["head"] + 0.1 / 4 * params["head"]), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(update["final_norm"], 4 * 1.9 * g["final_norm"], rtol=1e-5)


@pytest.mark.parametrize("model", [BASE, WIDE], ids=["base", "wide"])
def test_muon_steps_are_orthogonal_with_the_spectral_norm_of_the_rule(model: ModelConfig) -> None:
    """.2 sqrt(max at base) sqrt(o/i) times the quintic of Newton-Schulz, five times, on the singular values."""
    params, g, update = updates(model, "muon")
    rules = param_rules(model, "muon")
    for name, widest in (("wq", 32), ("w_up", 128), ("w_down", 128)):
        rule = rules[f"blocks.{name}"]
        for layer, p, gradient in zip(update[name], params[name], g[name], strict=True):
            values = np.linalg.svd(gradient, compute_uv=False) / np.linalg.norm(gradient)
            for _ in range(5):
                values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
            got = np.linalg.svd(layer - 0.1 * p, compute_uv=False) / (0.2 * sqrt(widest))
            np.testing.assert_allclose(np.sort(got), np.sort(values), atol=0.01)
        assert rule.lr == pytest.approx(sqrt(32 / model.d_model))
        assert rule.optimizer == "muon"


def test_muon_at_base_width_has_the_rms_of_adam_and_leaves_the_rest_to_it() -> None:
    params, g, update = updates(BASE, "muon")
    for name in ("wq", "wk", "w_up", "w_down"):
        assert np.sqrt(np.mean((update[name] - 0.1 * params[name]) ** 2)) == pytest.approx(0.2, rel=0.2)
    adam = 0.5 * np.sign(g["final_norm"])  # first step of Adam is the sign; adam_lr = .5
    np.testing.assert_allclose(update["final_norm"], adam, rtol=1e-4)
    np.testing.assert_allclose(update["embed"], 2 * 0.5 * (np.sign(g["embed"]) + 0.1 * params["embed"]), rtol=1e-3)
    others = {name for name, rule in param_rules(BASE, "muon").items() if rule.optimizer != "muon"}
    assert others == {n for n in param_rules(BASE) if "norm" in n} | {"embed", "head"}


def test_any_other_optimizer_is_refused_by_name() -> None:
    with pytest.raises(MisuseError, match=r"recipe\.optimizer: 'shampoo' has no rule"):
        param_rules(BASE, "shampoo")
    with pytest.raises(MisuseError, match=r"recipe\.optimizer: 'shampoo' has no rules here; use adamw, sgd, muon"):
        check_limits(Study(recipe=Recipe(optimizer="shampoo")))  # type: ignore[arg-type]


def test_lion_and_adafactor_have_the_rates_of_adamw() -> None:
    """Their updates have entries of size one whatever the gradient's size, and keep its alignment."""
    model = replace(WIDE, mlp_ratio=8, base_mlp_ratio=4, n_layers=8, parameterization="completep", depth_alpha=0.5)
    adam = param_rules(model)
    for optimizer in ("lion", "adafactor"):
        for name, rule in param_rules(model, optimizer).items():
            assert (rule.lr, rule.decay, rule.init_std) == (adam[name].lr, adam[name].decay, adam[name].init_std)
            assert rule.optimizer == optimizer and rule.lr * rule.decay == (0 if rule.role == "vector" else 1)


def test_lion_steps_by_the_sign_of_its_two_averages() -> None:
    """A gradient that turns around in its third step: outvoted by b1 m while that is larger, in two lanes of a pack."""
    params, g, told = packed_steps(WIDE, "lion", [1.0, 1.0, -0.5], b1=(0.9, 0.5))
    kept = 0.05 * (0.95 + 1)  # m after two steps, b2 = .95
    for lane, b1 in enumerate((0.9, 0.5)):
        sign = np.sign(b1 * kept - (1 - b1) * 0.5)
        assert sign == (1 if b1 == 0.9 else -1)
        for name, rate, decay in (("wq", 1 / 4, 0.1), ("embed", 2, 0.1), ("head", 3, 0.1), ("final_norm", 1, 0.0)):
            wanted = rate * sign * np.sign(g[name]) + (rate if name in ("embed", "head") else 1) * decay * params[name]
            np.testing.assert_allclose(told[name][lane], wanted, rtol=1e-5, atol=1e-6, err_msg=name)


def adafactor_by_hand(gradients: list[np.ndarray], b1: float) -> np.ndarray:
    """Shazeer and Stern 2018, algorithms 4 and 5, of one matrix or vector, with momentum corrected as Adam's."""
    rows = columns = v = mean = 0.0
    for t, g in enumerate(gradients, start=1):
        decay = 1 - t**-0.8
        square = g.astype(np.float64) ** 2
        if g.ndim == 2:
            rows = decay * rows + (1 - decay) * square.mean(1)
            columns = decay * columns + (1 - decay) * square.mean(0)
            v = np.outer(rows, columns) / np.mean(rows)
        else:
            v = decay * v + (1 - decay) * square
        step = g / np.sqrt(v)
        step = step / max(1.0, np.sqrt(np.mean(step**2)))
        mean = b1 * mean + (1 - b1) * step
    return np.asarray(mean / (1 - b1 ** len(gradients)))


def test_adafactor_steps_matrix_by_matrix_as_published() -> None:
    """Every matrix factored, 8 wide ones too, and every layer by itself: the axis of layers is no axis of a matrix."""
    small, scales = replace(BASE, d_model=8, base_d_model=8), [1.0, -0.5, 3.0]
    params, g, told = packed_steps(small, "adafactor", scales, b1=(0.9, 0.0))
    for name, rate, axes, decay in (("wq", 1, 2, 0.1), ("w_down", 1, 2, 0.1), ("embed", 2, 2, 0.1), ("head", 3, 2, 0.1),
                                    ("attn_norm", 1, 1, 0.0), ("final_norm", 1, 1, 0.0)):  # fmt: skip
        for lane, b1 in enumerate((0.9, 0.0)):
            trees = (_tensors(tree, axes) for tree in (told[name][lane], g[name], params[name]))
            for got, gradient, p in zip(*trees, strict=True):
                wanted = rate * (adafactor_by_hand([scale * gradient for scale in scales], b1) + decay * p)
                np.testing.assert_allclose(got, wanted, rtol=2e-4, atol=2e-5, err_msg=name)


def _tensors(stack: np.ndarray, axes: int) -> np.ndarray:
    return stack.reshape(-1, *stack.shape[stack.ndim - axes :])


def test_adafactor_passes_the_coordinate_check() -> None:
    """From the base width to eight times it, with variants of the model that have to pass as well; Lion, whose steps
    have one size by construction, in docs/variants.md."""
    model = replace(BASE, n_layers=1, mlp="geglu", position="learned", norm="layernorm")
    study = Study(model=model, recipe=Recipe(optimizer="adafactor"))
    result = check_coordinates(study, random_windows(study, 4), widths=(32, 64, 256))
    assert result.passed, result.verdict


def test_a_base_with_other_heads_keeps_the_attention_scale_of_its_own() -> None:
    """Four heads at every width: d_head 8 at base, 32 at width 128; logits are scaled by sqrt(8)/32."""
    model = replace(WIDE, head_dim=32, base_head_dim=8)
    assert forward_multipliers(model).attention == pytest.approx(sqrt(8) / 32)
    assert param_rules(model, "sgd")["blocks.q_norm"].lr == 4.0  # a gain of 32 entries now grows with width


def test_fields_that_say_nothing_about_a_run_do_not_rename_it() -> None:
    """The golden plans hold ids from before momentum, adam_lr and the base shapes were fields."""
    spec = plan_isoflop(Study(), train_tokens=1e8).cells[0].spec
    assert replace(spec, momentum=0.5, adam_lr=2.0).run_id == spec.run_id
    sgd = replace(spec, optimizer="sgd")
    assert len({spec.run_id, sgd.run_id, replace(sgd, momentum=0.5).run_id}) == 3
    assert replace(sgd, adam_lr=2.0).run_id == sgd.run_id
    assert replace(spec, model=replace(spec.model, base_head_dim=8)).run_id != spec.run_id


def test_a_later_optimizer_is_named_by_what_it_reads() -> None:
    """Lion reads b1 and b2, Adafactor b1; a study that sets Adam's epsilon trains no second run of theirs."""
    spec = plan_isoflop(Study(), train_tokens=1e8).cells[0].spec
    reads = {"lion": {"b1", "b2"}, "adafactor": {"b1"}}
    for optimizer, fields in reads.items():
        one = replace(spec, optimizer=optimizer)
        moved = {name for name in ("b1", "b2", "eps", "momentum", "adam_lr")
                 if replace(one, **{name: 0.5}).run_id != one.run_id}  # fmt: skip
        assert moved == fields
