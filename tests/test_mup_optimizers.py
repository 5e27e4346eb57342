"""SGD and Muon: rules by their closed forms, one step by hand, run ids that stay."""

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
    with pytest.raises(MisuseError, match=r"recipe\.optimizer: 'lion' has no rule"):
        param_rules(BASE, "lion")
    with pytest.raises(MisuseError, match=r"recipe\.optimizer: 'adafactor' has no rules here; use adamw, sgd, muon"):
        check_limits(Study(recipe=Recipe(optimizer="adafactor")))  # type: ignore[arg-type]


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
