"""Slips of public implementations, planted one at a time in the code that trains: the check must fail each."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from flax import nnx

from jaxscale.config import ModelConfig, Recipe, Study
from jaxscale.model import decoder, mup
from jaxscale.model.decoder import Decoder
from jaxscale.model.loss import token_losses
from jaxscale.model.mup import Rule
from jaxscale.mup.batch import random_windows
from jaxscale.mup.check import CoordinateCheck, check_coordinates
from jaxscale.train import optimizer
from jaxscale.train.step import Program

MODEL = ModelConfig(n_layers=1, head_dim=8, kv_groups=2, seq_len=64, vocab_size=64, base_d_model=32)
WIDTHS = (64, 128, 256)


def check(model: ModelConfig = MODEL, **recipe: Any) -> CoordinateCheck:
    study = Study(model=model, recipe=Recipe(**recipe))
    return check_coordinates(study, random_windows(study, 4), widths=WIDTHS)


def failed(result: CoordinateCheck) -> set[tuple[str, str]]:
    return {(row.quantity, row.name) for row in result.rows if not row.passed}


def plant(monkeypatch: pytest.MonkeyPatch, slip: Callable[[str, Rule, ModelConfig], Rule]) -> None:
    """Replace the rules, for the optimizer and for the init, by rules with a slip."""

    def rules(model: ModelConfig, *args: str) -> dict[str, Rule]:
        return {name: slip(name, rule, model) for name, rule in mup.param_rules(model, *args).items()}

    monkeypatch.setattr(optimizer, "param_rules", rules)
    monkeypatch.setattr(decoder, "param_rules", rules)


def test_role_by_number_of_dimensions_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stacked gain [layers, d] taken for a matrix: rate l/w and decay lambda*w."""

    def slip(name: str, rule: Rule, model: ModelConfig) -> Rule:
        w = model.d_model / model.base_d_model
        return replace(rule, lr=1 / w, decay=w) if name in ("blocks.attn_norm", "blocks.mlp_norm") else rule

    plant(monkeypatch, slip)
    assert failed(check()) >= {("update", "gain"), ("decay", "gain")}


def test_grouped_keys_left_unscaled_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def slip(name: str, rule: Rule, _: ModelConfig) -> Rule:
        return replace(rule, lr=1.0, decay=1.0) if name in ("blocks.wk", "blocks.wv") else rule

    plant(monkeypatch, slip)
    found = failed(check())
    assert found >= {("update", "k"), ("update", "v"), ("change", "attention out")}
    assert ("update", "q") not in found


def test_rates_clamped_at_one_below_the_base_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, lambda name, rule, model: replace(rule, lr=min(rule.lr, 1.0)))
    assert {("update", "q"), ("update", "down")} <= failed(check(replace(MODEL, base_d_model=256)))


def test_tau_over_r_left_out_at_inference_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training sees scaled logits, `Decoder.__call__` gives them unscaled: the slopes of training stay right."""
    right = Decoder.__call__

    def unscaled(self: Decoder, tokens: Any, **options: Any) -> Any:
        return right(self, tokens, **options) * (self.model.d_model / self.model.base_d_model)

    def trained(self: Program, params: Any, windows: Any) -> Any:
        return token_losses(right(nnx.merge(self.graphdef, params), windows[:, :-1]), windows[:, 1:])

    monkeypatch.setattr(Decoder, "__call__", unscaled)
    monkeypatch.setattr(Program, "apply", trained)
    found = failed(check())
    assert found >= {("change", "logits"), ("paths", "loss")}
    assert not {row for row in found if row[0] in ("update", "decay")}


def test_uncoupled_weight_decay_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """lambda as it is under l/r: decay vanishes with width, and no activation shows it."""
    plant(monkeypatch, lambda name, rule, _: replace(rule, decay=min(rule.decay, 1.0)))
    found = failed(check())
    assert {name for quantity, name in found if quantity == "decay"} == {"q", "k", "v", "o", "up", "down"}
    assert not {row for row in found if row[0] in ("change", "update")}


def test_large_unscaled_epsilon_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """eps above the gradients and the same at every width: the updates die out as the gradients fall."""
    plant(monkeypatch, lambda name, rule, _: replace(rule, eps=1.0))
    found = failed(check(eps=1e-2))
    assert found >= {("epsilon", "q"), ("epsilon", "embedding"), ("update", "q"), ("change", "MLP out")}
