"""muP's table by its closed forms, on the shapes where public implementations slip."""

from dataclasses import replace
from math import sqrt

import jax
import numpy as np
import pytest
from flax import nnx

from jaxscale.config import ModelConfig
from jaxscale.model.decoder import make_decoder
from jaxscale.model.mup import forward_multipliers, param_role, param_rules
from jaxscale.params import param_shapes

BASE = ModelConfig(d_model=32, base_d_model=32, head_dim=8)
WIDE = replace(BASE, d_model=128)


def test_base_width_is_the_plain_parameterization() -> None:
    for name, rule in param_rules(BASE).items():
        assert (rule.lr, rule.eps) == (1.0, 1.0), name
        assert rule.decay == (0.0 if rule.role == "vector" else 1.0), name


def test_roles_follow_the_axes_that_grow_not_the_number_of_dimensions() -> None:
    model = ModelConfig(d_model=64, kv_groups=4, mlp="swiglu", mlp_ratio=3)
    roles = {name: param_role(axes) for name, axes in param_shapes(model).items()}
    vectors = {"blocks.attn_norm", "blocks.mlp_norm", "blocks.q_norm", "blocks.k_norm", "final_norm"}
    assert {name for name, role in roles.items() if role == "vector"} == vectors
    assert (roles["embed"], roles["head"]) == ("input", "head")
    assert all(role == "hidden" for name, role in roles.items() if name.startswith("blocks.w"))


def test_hidden_matrices_scale_by_their_own_fan_in() -> None:
    rules = param_rules(WIDE)
    for name in ("blocks.wq", "blocks.wk", "blocks.wo", "blocks.w_up", "blocks.w_down"):
        assert rules[name].lr == pytest.approx(1 / 4)
        assert rules[name].decay == pytest.approx(4)
        fan_in = dict(param_shapes(WIDE)[name])["mlp" if name == "blocks.w_down" else "embed"
                                                if name != "blocks.wo" else "heads"]  # fmt: skip
        assert rules[name].init_std == pytest.approx(1 / sqrt(fan_in))
    assert (rules["embed"].lr, rules["head"].lr) == (1.0, 1.0)


def test_grouped_keys_are_scaled_like_queries_though_their_fan_out_is_small() -> None:
    rules = param_rules(replace(WIDE, kv_groups=16))
    assert dict(param_shapes(replace(WIDE, kv_groups=16))["blocks.wk"])["kv"] == 8
    assert rules["blocks.wk"].lr == rules["blocks.wq"].lr == pytest.approx(1 / 4)


def test_effective_decay_does_not_move_with_width() -> None:
    for width in (8, 32, 512):
        rule = param_rules(replace(BASE, d_model=width))["blocks.w_up"]
        assert rule.lr * rule.decay == pytest.approx(1.0)


def test_epsilon_follows_the_gradient_in_every_class() -> None:
    assert {rule.eps for rule in param_rules(WIDE).values()} == {0.25}


def test_widths_below_the_base_go_the_other_way_unclamped() -> None:
    narrow = param_rules(replace(BASE, d_model=8))
    assert narrow["blocks.wq"].lr == pytest.approx(4)
    assert forward_multipliers(replace(BASE, d_model=8)).logits == pytest.approx(4)


def test_forward_multipliers_at_base_and_beyond() -> None:
    assert forward_multipliers(BASE).attention == pytest.approx(8**-0.5)
    assert forward_multipliers(WIDE).logits == pytest.approx(1 / 4)
    # one head of 24 (24 does not divide into heads of 16): 1/d_head beyond the base's 1/sqrt
    odd = replace(BASE, d_model=24, head_dim=16)
    assert odd.d_head == 24
    assert forward_multipliers(odd).attention == pytest.approx(sqrt(16) / 24)


def test_completep_depth_rules() -> None:
    deep = replace(WIDE, n_layers=8, base_n_layers=2, parameterization="completep", depth_alpha=0.5)
    rules = param_rules(deep)
    assert forward_multipliers(deep).residual == pytest.approx(4**-0.5)
    assert rules["blocks.wq"].lr == pytest.approx(4**-0.5 / 4)
    assert rules["blocks.wq"].lr * rules["blocks.wq"].decay == pytest.approx(1.0)
    assert rules["blocks.wq"].eps == pytest.approx(4**-0.5 / 4)
    assert rules["embed"].eps == pytest.approx(1 / 4)  # depth touches blocks only
    one = param_rules(replace(deep, depth_alpha=1.0))
    assert one["blocks.wq"].lr == pytest.approx(1 / 4)  # alpha = 1: the rate does not move with depth


def test_standard_parameterization_has_one_rate_and_fan_in_init() -> None:
    rules = param_rules(replace(WIDE, parameterization="standard"))
    assert {(rule.lr, rule.eps) for rule in rules.values()} == {(1.0, 1.0)}
    assert rules["blocks.wq"].init_std == pytest.approx(1 / sqrt(128))
    assert forward_multipliers(replace(WIDE, parameterization="standard")).logits == 1.0


def test_hidden_deviation_of_zero_is_zero_not_the_default() -> None:
    assert param_rules(replace(WIDE, hidden_std=0.0))["blocks.wq"].init_std == 0


def test_drawn_weights_have_the_tables_deviation() -> None:
    model = replace(WIDE, embed_std=0.7, head_std=0.3)
    rules = param_rules(model)
    state = nnx.to_pure_dict(nnx.state(make_decoder(model, 3), nnx.Param))
    flat = {"blocks." + k: v for k, v in state["blocks"].items()} | {k: v for k, v in state.items() if k != "blocks"}
    for name, value in flat.items():
        if rules[name].role == "vector":
            assert np.all(np.asarray(value) == 1)
        else:
            assert np.std(value) == pytest.approx(rules[name].init_std, rel=0.03), name


def test_logits_at_start_do_not_grow_with_width() -> None:
    def rms(width: int) -> float:
        model = replace(BASE, d_model=width, head_std=1.0)
        tokens = jax.random.randint(jax.random.key(1), (4, 64), 0, 256)
        return float(np.sqrt(np.mean(np.square(make_decoder(model, 0)(tokens)))))

    assert rms(256) < rms(32)  # a random head's sum grows as sqrt(width), tau/r takes width off
