"""The coordinate check on right code: it passes over options, fails the standard parameterization, says why."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxscale.cli import dispatch
from jaxscale.config import ModelConfig, Recipe, Study
from jaxscale.errors import MisuseError
from jaxscale.model.decoder import make_decoder
from jaxscale.mup.batch import random_windows
from jaxscale.mup.check import CoordinateCheck, check_coordinates, judge
from jaxscale.mup.expect import expect_ratio
from jaxscale.mup.measure import CLASSES, walk
from jaxscale.params import param_shapes

MODEL = ModelConfig(n_layers=1, head_dim=8, seq_len=64, vocab_size=64, base_d_model=32)


def check(model: ModelConfig = MODEL, **recipe: Any) -> CoordinateCheck:
    study = Study(model=model, recipe=Recipe(**recipe))
    return check_coordinates(study, random_windows(study, 4), widths=(64, 128, 256))


def failed(result: CoordinateCheck) -> set[tuple[str, str]]:
    return {(row.quantity, row.name) for row in result.rows if not row.passed}


def test_mup_passes_with_grouped_queries_tied_head_swiglu_and_widths_below_the_base() -> None:
    result = check(replace(MODEL, kv_groups=2, tied=True, embed_std=0.3, mlp="swiglu", base_d_model=128))
    assert failed(result) == set()


def test_a_large_epsilon_that_follows_the_gradient_bends_no_slope_but_that_of_qk_gains() -> None:
    """With eps above the gradients Adam is SGD; QK gains, summed over heads, have gradients that do not fall as 1/w
    while the table gives them eps/w as well: their updates grow until eps is out of the way."""
    assert failed(check(eps=1e-2)) <= {("update", "QK gain")}


def test_muon_passes_at_rates_that_keep_the_spectral_norm() -> None:
    assert failed(check(optimizer="muon")) == set()


def test_the_standard_parameterization_fails_where_it_should() -> None:
    result = check(replace(MODEL, parameterization="standard"))
    assert failed(result) >= {("update", "q"), ("change", "logits"), ("change", "MLP out")}
    assert result.verdict.startswith("fail")


def test_the_walk_sees_what_the_decoder_computes() -> None:
    """Its residual stream, normed and read out, is the Decoder's logits."""
    model = replace(MODEL, n_layers=2, head_std=1.0, kv_groups=2, d_model=32, embed_scale=2.0, base_d_model=16)
    decoder = make_decoder(model, 0)
    tokens = jax.random.randint(jax.random.key(0), (2, 16), 0, 64)
    x = walk(decoder, tokens)["residual stream"]
    normed = x / np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True) + model.norm_eps)
    np.testing.assert_allclose(normed @ decoder.head[...] / 2, decoder(tokens), rtol=2e-4, atol=2e-4)


def test_every_parameter_has_a_class() -> None:
    for model in (MODEL, replace(MODEL, mlp="swiglu", tied=True)):
        assert set(param_shapes(model)) <= set(CLASSES)


def test_expected_ratios_are_the_closed_forms() -> None:
    base = ModelConfig(d_model=32, head_dim=8)
    wide = replace(base, d_model=128, mlp_ratio=8)  # w = 4, d_ff grows by 8
    assert expect_ratio("update", "blocks.wq", wide, base, "adamw").low == pytest.approx(1 / 2)
    assert expect_ratio("update", "blocks.w_down", wide, base, "adamw").low == pytest.approx(8**-0.5)
    up = expect_ratio("gradient", "blocks.w_up", wide, base, "adamw")
    assert (up.low, up.high) == pytest.approx((1 / 8, 1 / (4 * 2) ** 0.5 / 2))
    assert expect_ratio("gradient", "head", wide, base, "adamw").low == pytest.approx(1 / 4)
    gain = expect_ratio("gradient", "blocks.q_norm", wide, base, "adamw")  # one gain, four times the heads
    assert (gain.low, gain.high) == pytest.approx((1 / 2, 1))
    deep = replace(base, n_layers=8, parameterization="completep", depth_alpha=0.5)
    assert expect_ratio("gradient", "blocks.wq", deep, base, "adamw").low == pytest.approx(1 / 2)
    assert expect_ratio("update", "blocks.wq", deep, base, "adamw").low == pytest.approx(1 / 2)


def planted(models: list[ModelConfig], **changed: list[float]) -> list[dict[tuple[str, str], float]]:
    """Sizes exactly as expected, but for the classes named."""
    rows: list[dict[tuple[str, str], float]] = []
    for k, model in enumerate(models):
        sizes = {
            ("change", name): 1.0 for name in ("embedding", "attention out", "MLP out", "residual stream", "logits")
        }
        for name in param_shapes(model):
            for quantity in ("gradient", "update"):
                sizes[quantity, CLASSES[name]] = expect_ratio(quantity, name, model, models[0], "adamw").low
            sizes["decay", CLASSES[name]] = 0.0 if name.endswith("norm") else 1.0
            sizes["epsilon", CLASSES[name]] = 1.0
        sizes |= {("change", name): values[k] for name, values in changed.items()} | {("paths", "loss"): 0.0}
        rows.append(sizes)
    return rows


def test_one_bent_step_of_a_ladder_fails_and_is_named() -> None:
    models = [replace(MODEL, d_model=width) for width in (32, 64, 128, 256, 512)]
    assert all(row.passed for row in judge("width", models, planted(models), "adamw"))
    bent = [row for row in judge("width", models, planted(models, logits=[1, 1, 2, 1, 1]), "adamw") if not row.passed]
    assert [row.name for row in bent] == ["logits"] and "from 64 to 128" in bent[0].reason
    lost = [row for row in judge("width", models, planted(models, logits=[1, 1, 1, 1, np.nan]), "adamw")
            if not row.passed]  # fmt: skip
    assert lost[0].reason == "nan at 512"


def test_ladders_without_a_slope_are_refused() -> None:
    windows = random_windows(Study(model=MODEL), 2)
    with pytest.raises(MisuseError, match="--widths: 64 128 makes no slope"):
        check_coordinates(Study(model=MODEL), windows, widths=(64, 128))
    with pytest.raises(MisuseError, match="--widths: 65 is odd"):
        check_coordinates(Study(model=MODEL), windows, widths=(64, 65, 128))
    with pytest.raises(MisuseError, match="--steps: 1 is too few"):
        check_coordinates(Study(model=MODEL), windows[:1])


def test_rules_verb_writes_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "rules.json"
    assert dispatch(["mup", "rules", "--width", "128", "--model.kv-groups", "4", "--out", str(out)]) == 0
    assert "blocks.wk" in capsys.readouterr().out
    plain = json.loads(out.read_text())
    assert plain["schema"] == "jaxscale.mup_rules/1"
    row = next(row for row in plain["rows"] if row["parameter"] == "blocks.wk")
    assert (row["role"], row["lr"], row["effective_decay"]) == ("hidden", 0.25, 1.0)
    assert plain["forward"]["logits"] == 0.25


def test_an_unknown_word_after_mup_is_answered_with_the_four_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch(["mup", "sweeps", "x.py"]) == 2
    assert "'sweeps' is none of rules, check, sweep, audit" in capsys.readouterr().err
