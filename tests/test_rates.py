"""Learning rates from a sweep: planted laws recovered, doubts told, every refusal with its way out, plans resolved."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import make_study, write_study

from jaxscale.cli import dispatch
from jaxscale.config import Grid, ModelConfig, Recipe, Study
from jaxscale.errors import MisuseError
from jaxscale.plain import to_plain
from jaxscale.plan import plan_isoflop
from jaxscale.rates import Optimum, describe_rates, fit_rates, read_rates
from jaxscale.rates.law import PUBLISHED, Z
from jaxscale.runs import Plan

D0, B0, L0 = 1e6, 1024.0, -6.0
H, G = -0.4, 0.7
TEXT_TOKENS = 1e7


def optimum(width: int, tokens: float, batch: float, *, error: float = 0.05, shift: float = 0.0) -> Optimum:
    level = L0 + H * math.log2(tokens / D0) + G * math.log2(batch / B0)
    return Optimum(width, 2, tokens, batch, level + shift, error)


def crossed(widths: tuple[int, ...] = (32, 64, 128), **kwargs: float) -> list[Optimum]:
    """Every width at three horizons and three batches, on the planted law."""
    return [optimum(w, D0 * d, B0 * b, **kwargs) for w in widths for d in (1, 4, 16) for b in (1, 2, 4)]


def record(one: Optimum, **fields: object) -> dict[str, object]:
    plain = {
        "parameterization": "mup", "width": one.width, "depth": one.depth, "tokens": one.tokens,
        "batch_tokens": one.batch_tokens, "log2_lr": one.log2_lr, "loss": 2.0, "status": "ok", "weight_decay": 2.0,
        "interval": [one.log2_lr - Z * one.error, one.log2_lr + Z * one.error], "init_scale": 1.0,
    }  # fmt: skip
    return plain | fields


def write_sweep(folder: Path, optima: list[dict[str, object]], study: Study | None = None, **fields: object) -> Path:
    study = study or Study()
    folder.mkdir(exist_ok=True)
    file = folder / "sweep.json"
    text = {"data_sha256": "ab" * 32, "tokenizer": study.data.tokenizer, "vocab_size": 256,
            "seq_len": study.model.seq_len}  # fmt: skip
    plain = {"schema": "jaxscale.mup_sweep/1", "study": "planted", "text": text, "model": to_plain(study.model),
             "recipe": to_plain(study.recipe), "rows": [], "optima": optima, "transfers": []}  # fmt: skip
    file.write_text(json.dumps(plain | fields))
    return file


def one_horizon(**fields: object) -> list[dict[str, object]]:
    return [record(optimum(w, D0, B0), **fields) for w in (32, 64, 128)]


def study_from(file: Path, **recipe: object) -> Study:
    return replace(Study(), recipe=replace(Recipe(), lr_from=str(file), **recipe))


# The law


def test_planted_exponents_are_recovered_exactly_without_noise() -> None:
    law = fit_rates(crossed())
    assert law.horizon.value == pytest.approx(H, abs=1e-9) and law.batch.value == pytest.approx(G, abs=1e-9)
    assert law.horizon.source == law.batch.source == "measured"
    for tokens, batch in ((1e5, 256), (1e6, 1024), (3e7, 8192)):
        closed = 2**L0 * (tokens / D0) ** H * (batch / B0) ** G
        assert law.rate(tokens, batch) == pytest.approx(closed, rel=5e-4)


def test_exponents_and_rates_lie_in_their_intervals_as_often_as_said() -> None:
    """300 noisy sweeps: 95% intervals of h, g and of a rate extrapolated 16x cover .95 within three binomial errors.

    Spread beyond the errors may only widen an interval, so the count may lie above, not below."""
    rng, hits = np.random.default_rng(0), np.zeros(3)
    far = (D0 * 256, B0 * 8)
    truth = 2**L0 * 256**H * 8**G
    for _ in range(300):
        law = fit_rates([replace(one, log2_lr=one.log2_lr + rng.normal(0, one.error)) for one in crossed()])
        inside = [low <= value <= high for value, (low, high) in ((H, law.horizon.interval), (G, law.batch.interval))]
        hits += [*inside, abs(math.log(law.rate(*far) / truth)) <= math.log(law.factor(*far))]
    assert np.all(hits / 300 > 0.95 - 3 * math.sqrt(0.05 * 0.95 / 300))


def test_a_drift_with_width_is_not_taken_for_one_with_the_horizon() -> None:
    """Wider models swept longer, and a shift of one doubling a width: the exponent stays the planted one."""
    optima = [
        optimum(w, D0 * scale * d, B0, shift=math.log2(w / 32)) for w, scale in ((32, 1), (64, 4)) for d in (1, 4)
    ]
    assert fit_rates(optima).horizon.value == pytest.approx(H)


def test_what_was_not_varied_is_the_published_exponent_with_its_range() -> None:
    law = fit_rates([optimum(w, D0, B0) for w in (32, 64)])
    for name in ("horizon", "batch"):
        exponent = getattr(law, name)
        assert (exponent.value, exponent.interval, exponent.source) == (*PUBLISHED[name], "published")
    assert law.factor(D0, B0) == pytest.approx(2 ** (Z * 0.05 / math.sqrt(2)))
    assert law.factor(16 * D0, B0) == pytest.approx(2 ** math.hypot(Z * 0.05 / math.sqrt(2), 4 * 0.35))
    assert "assumed" in describe_rates(law)[1] and "assumed" in describe_rates(law)[2]


def test_horizons_less_than_a_doubling_apart_measure_no_exponent() -> None:
    assert fit_rates([optimum(32, D0, B0), optimum(32, 1.9 * D0, B0)]).horizon.source == "published"
    assert fit_rates([optimum(32, D0, B0), optimum(32, 2 * D0, B0)]).horizon.source == "measured"


def test_a_batch_tied_to_the_horizon_leaves_the_net_power_certain_and_the_split_not() -> None:
    """B ~ D^.5 in the sweep: along that path the law holds whatever the batch exponent, off it the doubt is told."""
    optima = [optimum(32, D0 * 4**k, B0 * 2**k) for k in range(4)]
    law = fit_rates(optima)
    assert law.batch.source == "published" and law.horizon.source == "measured"
    assert law.horizon.value + law.batch.value / 2 == pytest.approx(H + G / 2)
    assert law.horizon.interval[0] < H < law.horizon.interval[1]
    assert law.rate(D0 * 4**6, B0 * 2**6) == pytest.approx(2**L0 * 4 ** (6 * H) * 2 ** (6 * G), rel=5e-4)
    along, across = (law.factor(law.tokens * 16, law.batch_tokens * wider) for wider in (4, 1))
    assert along < 1.25 < 1.9 < across


def test_an_exponent_asked_for_is_used_and_carries_no_doubt() -> None:
    law = fit_rates(crossed(), horizon=-0.1)
    assert law.horizon.value == -0.1 and law.horizon.error == 0 and law.batch.value == pytest.approx(G)
    assert "as recipe.lr_horizon_exponent asks" in describe_rates(law)[1]


def test_widths_that_disagree_beyond_their_errors_widen_the_interval_and_are_told() -> None:
    optima = [optimum(w, D0, B0, error=0.02, shift=0.3 * math.log2(w / 32)) for w in (32, 64, 128)]
    law, same = fit_rates(optima), fit_rates([optimum(w, D0, B0, error=0.02) for w in (32, 64, 128)])
    assert "disagree" in law.notes[0] and "+0.30 in log2 rate per doubling" in law.notes[0] and "1.52x" in law.notes[0]
    assert law.error > 10 * same.error and "agree within" in same.notes[0]


def test_a_certain_optimum_weighs_more_than_a_doubtful_one() -> None:
    law = fit_rates([optimum(32, D0, B0, error=0.1), optimum(64, D0, B0, error=0.2, shift=0.25)])
    assert math.log2(law.lr) == pytest.approx(L0 + 0.25 / 5)


# The file


def test_a_sweep_file_gives_the_law_of_its_optima(tmp_path: Path) -> None:
    file = write_sweep(tmp_path, [record(one) for one in crossed()])
    law = read_rates(file, Study())
    assert law.rate(D0, B0) == pytest.approx(2**L0, rel=5e-4) and law.horizon.value == pytest.approx(H)
    assert read_rates(tmp_path, Study()) == law  # the folder means its sweep.json


def test_records_with_nested_settings_and_an_interval_of_rates_read_the_same(tmp_path: Path) -> None:
    """The analysis of a sweep keeps what a ladder shares in `settings` and its interval as rates."""
    nested = []
    for one in one_horizon():
        low, high = one.pop("interval")
        shared = {name: one.pop(name) for name in ("tokens", "batch_tokens", "weight_decay", "init_scale")}
        nested.append(one | {"settings": shared, "lr_interval": [2**low, 2**high]})
    law, flat = (read_rates(write_sweep(tmp_path, optima), Study()) for optima in (nested, one_horizon()))
    assert law.lr == pytest.approx(flat.lr) and law.error == pytest.approx(flat.error)


def test_optima_of_the_other_parameterization_do_not_count(tmp_path: Path) -> None:
    far = [record(optimum(w, D0, B0, shift=3.0), parameterization="standard") for w in (32, 64)]
    assert read_rates(write_sweep(tmp_path, one_horizon() + far), Study()).lr == pytest.approx(2**L0)


def test_a_width_without_an_optimum_is_left_out_aloud(tmp_path: Path) -> None:
    edge = record(optimum(256, D0, B0), status="edge", log2_lr=None, interval=None)
    law = read_rates(write_sweep(tmp_path, [*one_horizon(), edge]), Study())
    assert any("left out of the rate: width 256, depth 2 (edge)" in note for note in law.notes)


def test_a_model_judged_in_two_ladders_counts_once(tmp_path: Path) -> None:
    """A sweep over widths and depths meets the shared model twice; its error must not shrink by that."""
    once, twice = one_horizon()[:1], [*one_horizon()[:1], *one_horizon()[:1]]
    assert read_rates(write_sweep(tmp_path, twice), Study()) == read_rates(write_sweep(tmp_path, once), Study())


def test_under_mup_the_studys_own_depth_speaks_alone(tmp_path: Path) -> None:
    deep = [record(replace(optimum(w, D0, B0, shift=1.0), depth=8)) for w in (32, 64)]
    law = read_rates(write_sweep(tmp_path, one_horizon() + deep), Study())
    assert law.lr == pytest.approx(2**L0) and any("another depth" in note for note in law.notes)


def change(**fields: object) -> Study:
    """The default study with a field of its model, recipe or data changed."""
    parts = {name: replace(getattr(Study(), name), **value) for name, value in fields.items()}  # type: ignore[arg-type]
    return replace(Study(), **parts)


@pytest.mark.parametrize(
    ("study", "said"),
    [
        (change(model={"parameterization": "completep"}), r"optima of parameterization mup and this study is "
         r"completep; sweep with --model.parameterization completep"),
        (change(model={"parameterization": "standard"}), r"under model.parameterization standard .* use mup"),
        (change(model={"base_d_model": 64}), r"swept with model.base_d_model 32 and this study has 64.*"
         r"use --model.base-d-model 32"),
        (change(data={"tokenizer": "bpe:512"}), r"swept with data.tokenizer bytes and this study has bpe:512.*sweep"),
        (change(model={"vocab_size": 512}), r"model.vocab_size 256 and this study has 512"),
        (change(recipe={"optimizer": "muon"}), r"recipe.optimizer adamw and this study has muon"),
        (change(recipe={"schedule": "wsd"}), r"recipe.schedule cosine and this study has wsd"),
        (change(recipe={"embed_lr": 1.0}), r"recipe.embed_lr 2.0 and this study has 1.0"),
        (change(recipe={"decay_rule": "constant"}), r"recipe.decay_rule horizon and this study has constant"),
        (change(recipe={"weight_decay": 0.5}), r"weight_decay 2 \(init_scale 1\) and this study has 0.5"),
    ],
)  # fmt: skip
def test_a_sweep_of_something_else_is_refused_with_the_way_out(study: Study, said: str, tmp_path: Path) -> None:
    with pytest.raises(MisuseError, match=said):
        read_rates(write_sweep(tmp_path, one_horizon()), study)


def test_the_sweep_must_have_the_studys_own_init_scale(tmp_path: Path) -> None:
    file = write_sweep(tmp_path, one_horizon(init_scale=0.5))
    study = study_from(file)
    with pytest.raises(MisuseError, match=r"2 \(init_scale 0.5\) and this study has 2 \(init_scale 1\)"):
        read_rates(file, study)
    half = replace(study, model=replace(study.model, init_scale=0.5))
    assert len(read_rates(file, half).optima) == 3


def test_ends_of_an_interval_that_are_no_rates_are_refused(tmp_path: Path) -> None:
    records = [{k: v for k, v in one.items() if k != "interval"} | {"lr_interval": [-1.0, 0.1]}
               for one in one_horizon()]  # fmt: skip
    file = write_sweep(tmp_path, records)
    with pytest.raises(MisuseError, match="ok with interval None"):
        read_rates(file, study_from(file))


def test_completep_needs_the_base_depth_too(tmp_path: Path) -> None:
    study = change(model={"parameterization": "completep"})
    file = write_sweep(tmp_path, one_horizon(parameterization="completep"), study)
    assert read_rates(file, study).lr == pytest.approx(2**L0)
    with pytest.raises(MisuseError, match=r"model.base_n_layers 2 and this study has 4"):
        read_rates(file, change(model={"parameterization": "completep", "base_n_layers": 4}))


@pytest.mark.parametrize(
    ("optima", "said"),
    [
        (one_horizon(status="edge"), r"no width has an optimum inside the rates swept: width 32, depth 2 \(edge\);.*"
         r"sweep more rates, further out"),
        (one_horizon(interval=[-7.0, None]), r"width 64, depth 2 \(its interval is open\)"),
        (one_horizon(interval=None), r"optima\[0\] is ok with interval None where two ends"),
        (one_horizon(interval=[-7.0, "x"]), r"optima\[0\] is ok with interval"),
        (one_horizon(log2_lr=None), r"optima\[0\] is ok with log2_lr None"),
        (one_horizon(width="32"), r"optima\[0\] has width '32'"),
        (one_horizon(tokens=None), r"optima\[0\] has tokens None"),
        (one_horizon(tokens=0), r"optimum of width 32: tokens"),
        (["mup"], r"optima\[0\] is not a record"),
        ([], r"has optima of parameterization none and this study is mup"),
    ],
)  # fmt: skip
def test_a_sweep_without_an_answer_is_refused(optima: list[dict[str, object]], said: str, tmp_path: Path) -> None:
    with pytest.raises(MisuseError, match=said):
        read_rates(write_sweep(tmp_path, optima), Study())


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"schema": "jaxscale.plan/1"}, r"schema 'jaxscale.plan/1' is not 'jaxscale.mup_sweep/1'"),
        ({"recipe": None}, r"no 'recipe' there"),
        ({"recipe": {"speed": 3}}, r"Recipe: .*speed.*another version"),
        ({"text": {"tokenizer": "bytes"}}, r"text has no 'vocab_size'"),
    ],
)
def test_a_file_that_is_no_sweep_is_refused(fields: dict[str, object], said: str, tmp_path: Path) -> None:
    with pytest.raises(MisuseError, match=said):
        read_rates(write_sweep(tmp_path, one_horizon(), **fields), Study())


def test_a_missing_or_broken_file_is_named_with_the_verb_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(MisuseError, match=r"no such file; make it with `jaxscale mup sweep STUDY.py`"):
        read_rates(tmp_path / "gone.json", Study())
    (tmp_path / "cut.json").write_text('{"schema": "jax')
    with pytest.raises(MisuseError, match=r"recipe.lr_from: .*not valid JSON"):
        read_rates(tmp_path / "cut.json", Study())


def test_other_differences_are_told_not_refused(tmp_path: Path) -> None:
    study = change(model={"mlp": "swiglu", "seq_len": 128}, recipe={"b2": 0.99, "lr": 0.5, "decay_fraction": 0.3})
    law = read_rates(write_sweep(tmp_path, one_horizon()), study, data_sha256="cd" * 32)
    told = law.notes[-1]
    assert "model.mlp gelu there, swiglu here" in told and "model.seq_len 64 there, 128 here" in told
    assert "recipe.b2 0.95 there, 0.99 here" in told and "text abababababab there, cdcdcdcdcdcd here" in told
    assert "decay_fraction" not in told and "recipe.lr 0" not in told  # unread under cosine; swept


def test_published_exponents_are_not_passed_off_as_another_optimizers(tmp_path: Path) -> None:
    muon = change(recipe={"optimizer": "muon"})
    assert any("AdamW's" in note for note in read_rates(write_sweep(tmp_path, one_horizon(), muon), muon).notes)
    measured = write_sweep(tmp_path, [record(one) for one in crossed()], muon)
    assert not any("AdamW's" in note for note in read_rates(measured, muon).notes)


# The plan


def test_every_cell_takes_the_rate_of_its_own_horizon_and_batch(tmp_path: Path) -> None:
    file = write_sweep(tmp_path, [record(one) for one in crossed()])
    planned = plan_isoflop(study_from(file), train_tokens=TEXT_TOKENS)
    assert len({cell.spec.lr for cell in planned.cells}) > 3
    for spec in planned:
        closed = 2**L0 * (spec.tokens / D0) ** H * (spec.batch_seqs * 64 / B0) ** G
        assert spec.lr == pytest.approx(closed, rel=5e-4)
        assert spec.weight_decay * spec.lr * spec.steps == pytest.approx(2.0)


def test_only_rate_and_decay_differ_from_the_plan_without_a_sweep(tmp_path: Path) -> None:
    plain = plan_isoflop(Study(), train_tokens=TEXT_TOKENS)
    swept = plan_isoflop(study_from(write_sweep(tmp_path, one_horizon())), train_tokens=TEXT_TOKENS)
    for before, after in zip(plain, swept, strict=True):
        assert replace(after, lr=before.lr, weight_decay=before.weight_decay) == before
    assert swept.assumptions[: len(plain.assumptions)] == plain.assumptions


def test_a_resolved_plan_outlives_its_sweep(tmp_path: Path) -> None:
    file = write_sweep(tmp_path, one_horizon())
    planned = plan_isoflop(study_from(file), train_tokens=TEXT_TOKENS)
    file.unlink()
    assert Plan.from_json(planned.to_json()) == planned


def test_the_plan_says_where_the_rate_is_from_and_that_recipe_lr_is_not_read(tmp_path: Path) -> None:
    file = write_sweep(tmp_path, one_horizon())
    told = "\n".join(plan_isoflop(study_from(file, lr=0.5), train_tokens=TEXT_TOKENS).assumptions)
    assert "recipe.lr = 0.5 is not read" in told
    assert "learning rate: 0.0156" in told and f"widths 32, 64, 128 in {file}" in told
    assert "rate ~ D^-0.32 [-0.70, 0.00], assumed" in told and "rate ~ B^0.50 [0.00, 1.00], assumed" in told
    assert "the sweep's D" in told and "outside the sweep's 32 to 128" in told


def test_a_far_horizon_and_another_depth_are_warned_of(tmp_path: Path) -> None:
    short = [record(replace(optimum(w, 1e4, B0), depth=4)) for w in (32, 64)]
    told = "\n".join(plan_isoflop(study_from(write_sweep(tmp_path, short)), train_tokens=TEXT_TOKENS).assumptions)
    assert "beyond the horizons swept, more than 30x" in told
    assert "muP carries no rate over depth: cells have 2 layers and the sweep 4" in told
    near = plan_isoflop(study_from(write_sweep(tmp_path, one_horizon())), train_tokens=TEXT_TOKENS)
    assert not any("WARNING" in line for line in near.assumptions)


def test_asked_exponents_reach_the_cells(tmp_path: Path) -> None:
    study = study_from(write_sweep(tmp_path, one_horizon()), lr_horizon_exponent=0.0, lr_batch_exponent=0.0)
    assert {spec.lr for spec in plan_isoflop(study, train_tokens=TEXT_TOKENS)} == {0.01562}


@pytest.mark.parametrize("name", ["lr_horizon_exponent", "lr_batch_exponent"])
def test_an_exponent_without_a_sweep_is_refused(name: str) -> None:
    with pytest.raises(MisuseError, match=f"recipe.{name}: is read only with a sweep"):
        plan_isoflop(replace(Study(), recipe=Recipe(**{name: 0.1})), train_tokens=TEXT_TOKENS)
    with pytest.raises(MisuseError, match=f"recipe.{name}: nan is not a finite number"):
        plan_isoflop(replace(Study(), recipe=Recipe(**{name: math.nan, "lr_from": "x"})), train_tokens=TEXT_TOKENS)


def test_the_path_is_relative_to_the_working_directory_and_home_is_expanded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_sweep(tmp_path / "sweep", one_horizon())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in ("sweep", "sweep/sweep.json", "~/sweep/sweep.json"):
        assert read_rates(path, Study()).lr == pytest.approx(2**L0)


def test_plan_prints_the_rates_and_goes_on_when_the_sweep_is_gone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = make_study(tmp_path)
    file = write_sweep(tmp_path / "sweep", one_horizon(), study)
    argv = ["plan", str(write_study(tmp_path)), "--out", str(tmp_path / "out"), "--recipe.lr-from", str(file)]
    assert dispatch(argv) == 0
    assert "horizon: rate ~ D^-0.32" in capsys.readouterr().out
    before = (tmp_path / "out" / "plan.json").read_text()
    file.unlink()
    assert dispatch(argv) == 0
    assert "the rates in" in capsys.readouterr().out and (tmp_path / "out" / "plan.json").read_text() == before
    assert dispatch([*argv, "--recipe.weight-decay", "1"]) == 2
    assert "recipe.lr_from" in capsys.readouterr().err


def test_a_grid_of_one_study_in_many_depths_takes_optima_of_all(tmp_path: Path) -> None:
    model = replace(ModelConfig(), parameterization="completep")
    study = replace(Study(), model=model, grid=replace(Grid(), aspect=16.0))
    optima = [record(replace(optimum(w, D0, B0), depth=w // 16), parameterization="completep") for w in (32, 64)]
    assert len(read_rates(write_sweep(tmp_path, optima, study), study).optima) == 2
