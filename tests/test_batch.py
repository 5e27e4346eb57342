"""The batch study against planted laws, the noise scale against exact covariances, the plan that uses both."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from planted_batch import PlantedBatch
from tiny import make_study

from jaxscale.batch import measure_noise, study_batches
from jaxscale.batch.reach import tokens_to_loss
from jaxscale.batchlaw import read_batch
from jaxscale.cli import dispatch
from jaxscale.config import MeshConfig, ModelConfig, Study
from jaxscale.errors import MisuseError, VerdictError
from jaxscale.laws.batch import estimate_noise_scale
from jaxscale.plain import read_lines, to_plain, write_json
from jaxscale.plan import plan_isoflop
from jaxscale.runs import METRIC_FIELDS, Plan
from jaxscale.train.loop import train_pack, train_run
from jaxscale.train.optimizer import Hyper
from jaxscale.train.sharding import make_mesh
from jaxscale.train.step import make_program

PLANTED = PlantedBatch()


# The estimator


def draw_lines(G: np.ndarray, sigma: float, b: int, B: int, lines: int, steps: int, rng: np.random.Generator) -> list:
    """Lines of a run whose gradient is G + noise of covariance sigma^2 I / tokens, batches of B / b microbatches."""
    micro = G + sigma / np.sqrt(b) * rng.standard_normal((lines, steps, B // b, len(G)))
    small, big = (micro**2).sum(-1).mean((1, 2)), (micro.mean(2) ** 2).sum(-1).mean(1)
    known = {"loss": 2.0, "seconds": 0.0, "microbatch_tokens": b}
    return [known | {"step": (i + 1) * steps, "tokens": (i + 1) * steps * B, "grad_sq_small": s, "grad_sq_big": g}
            for i, (s, g) in enumerate(zip(small, big, strict=True))]  # fmt: skip


def test_the_noise_scale_of_a_curve_is_unbiased_and_its_error_is_what_it_errs_by() -> None:
    G, sigma, truth = np.full(20, 0.3), 2.0, 4.0 * 20 / (0.09 * 20)
    rng, found = np.random.default_rng(0), []
    for _ in range(120):
        row = measure_noise(draw_lines(G, sigma, 8, 64, 60, 4, rng), 64)[0]
        found.append((row["grad_squared"], row["trace"], row["B_simple"], row["std_error"]))
    squared, trace, simple, error = np.array(found).T
    for estimate, wanted in ((squared, (G**2).sum()), (trace, 4.0 * 20)):
        assert abs(estimate.mean() - wanted) < 4 * estimate.std() / np.sqrt(len(found))
    assert simple.mean() == pytest.approx(truth, rel=0.02)
    assert error.mean() == pytest.approx(simple.std(), rel=0.25)
    assert 0.95 - 3 * np.sqrt(0.95 * 0.05 / 120) < np.mean(np.abs(simple - truth) < 1.96 * error)


def test_windows_halve_and_leave_the_warmup_out() -> None:
    rng = np.random.default_rng(1)
    rows = measure_noise(draw_lines(np.full(8, 1.0), 1.0, 8, 32, 64, 2, rng), 32, warmup_steps=16)
    assert [row["D"] / 32 for row in rows] == [128, 64, 32]
    assert measure_noise(draw_lines(np.full(8, 1.0), 1.0, 8, 32, 64, 2, rng)[:7], 32) == []


def test_spikes_of_single_texts_are_left_out_and_told() -> None:
    lines = draw_lines(np.full(20, 0.3), 2.0, 8, 64, 60, 4, np.random.default_rng(3))
    calm = measure_noise(lines, 64)[0]
    spiked = [
        line | {"grad_sq_small": 1e6, "grad_sq_big": 1.3e5} if i % 15 == 10 else line for i, line in enumerate(lines)
    ]
    row = measure_noise(spiked, 64)[0]
    assert row["left_out"] == pytest.approx(2 / 30) and row["B_simple_all"] > 10 * calm["B_simple"]
    assert row["B_simple"] == pytest.approx(calm["B_simple"], rel=0.15) and calm["left_out"] == 0


def test_a_signal_lost_in_noise_has_no_noise_scale() -> None:
    rng = np.random.default_rng(2)
    row = measure_noise(draw_lines(np.full(8, 1e-4), 1.0, 8, 16, 20, 1, rng), 16)[0]
    assert row["B_simple"] is None and row["trace"] == pytest.approx(8.0, rel=0.5)


# The training step


MODEL = ModelConfig(d_model=16, n_layers=1, seq_len=16, vocab_size=64, head_dim=8)
HYPER = Hyper(*(jnp.float32(x) for x in (0.02, 2, 3, 0.9, 0.95, 1e-12, 0.1, 1.0, 1e-4, 20, 2, 4, 0.1)))


SLOTS = 64


def program(**kind: bool):
    return make_program(MODEL, "cosine", SLOTS, make_mesh(MeshConfig(), jax.devices()[:1]), jnp.float32, **kind)


def test_measuring_changes_no_bit_and_sums_the_squares_of_the_microbatches() -> None:
    windows = np.random.default_rng(0).integers(0, 64, (SLOTS, 2, 17)).astype(np.int32)
    plain, measuring = program(), program(measures=True)
    ends = [p.train(2)(p.init(jnp.uint32(0)), p.put_batch(windows), jnp.int32(4), jnp.int32(4), HYPER)
            for p in (plain, measuring)]  # fmt: skip
    (state, metrics), (other, measured) = ends
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(other), strict=True))
    assert np.array_equal(metrics.loss, measured.loss) and np.array_equal(metrics.grad_norm, measured.grad_norm)
    assert metrics.small_squared is None
    gradient = jax.jit(jax.grad(lambda p, w: plain.loss(p, w, HYPER)[0]))
    params = plain.init(jnp.uint32(0)).params
    squares = [sum(float((g**2).sum()) for g in jax.tree.leaves(gradient(params, w))) for w in windows[:4]]
    assert float(measured.small_squared[0]) == pytest.approx(np.mean(squares), rel=1e-5)


def test_estimates_from_any_two_batches_are_the_exact_noise_scale_of_the_text() -> None:
    """At a rate of 0 the weights stay, and G and Sigma over 64 windows are sums that can be made exactly."""
    rng = np.random.default_rng(0)
    text = np.sort(rng.integers(0, 64, (64, 17)), axis=1).astype(np.int32)
    measuring, still = program(measures=True), HYPER._replace(lr=jnp.float32(0), z_loss=jnp.float32(0))
    state = measuring.init(jnp.uint32(3))
    own = jax.jit(jax.vmap(jax.grad(lambda p, w: measuring.loss(p, w[None], still)[0]), in_axes=(None, 0)))
    flat = np.concatenate([np.asarray(g).reshape(64, -1) for g in jax.tree.leaves(own(state.params, text))], axis=1)
    G = flat.mean(0)
    exact = 16 * ((flat - G) ** 2).sum(1).mean() / (G**2).sum()  # tokens: a window has 16
    for accumulate in (4, 32):
        sums = np.zeros(2)
        for _ in range(24):
            windows = text[rng.integers(0, 64, (SLOTS, 2))]
            steps = SLOTS // accumulate
            state, told = measuring.train(2)(state, measuring.put_batch(windows), jnp.int32(steps),
                                             jnp.int32(accumulate), still)  # fmt: skip
            sums += [float(told.small_squared[:steps].mean()), float((told.grad_norm[:steps] ** 2).mean())]
        found = estimate_noise_scale(*(sums / 24), 2 * 16, 2 * 16 * accumulate).B_simple
        assert found == pytest.approx(exact, rel=0.15), accumulate


# Tokens to a loss


def test_tokens_to_a_loss_are_those_of_the_law_between_points() -> None:
    for step, error in ((2.0, 0.002), (4.0, 0.012)):
        D = 1e5 * step ** np.arange(6)
        targets = PLANTED.loss(1e4, np.geomspace(1.1e5, 0.9 * D[-1], 9))
        found = tokens_to_loss(D, PLANTED.loss(1e4, D), targets)
        np.testing.assert_allclose(found, np.geomspace(1.1e5, 0.9 * D[-1], 9), rtol=error)


def test_noise_that_rises_is_levelled_and_nothing_is_extrapolated() -> None:
    D, loss = np.array([1e5, 2e5, 4e5, 8e5]), np.array([3.0, 2.4, 2.5, 2.0])
    above, inside, below = tokens_to_loss(D, loss, np.array([3.1, 2.46, 1.9]))
    assert np.isnan(above) and 1e5 < inside < 2e5 and np.isinf(below)


# The verb


@pytest.fixture(scope="module")
def planted_csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("planted") / "runs.csv"
    PLANTED.runs(noise=0.002, rates=3).to_csv(file, index=False)
    return file


@pytest.fixture(scope="module")
def planted(planted_csv: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    out = tmp_path_factory.mktemp("out") / "batch.json"
    argv = ["batch", str(planted_csv), "--out", str(out), "--figure", str(out.with_name("fig")), "--bootstrap", "150"]
    assert dispatch(argv) == 0
    assert out.with_name("fig.png").stat().st_size > 10_000
    return json.loads(out.read_text())


def test_a_planted_law_of_data_is_recovered_within_its_interval_and_preferred(planted: dict) -> None:
    assert planted["schema"] == "jaxscale.batch_study/1" and "B_crit follows D" in planted["verdict"]
    law = {row["of"]: row for row in planted["laws"]}["D"]
    assert law["a_low"] < PLANTED.a < law["a_high"] and law["a_high"] - law["a_low"] < 0.1
    assert law["A_low"] < PLANTED.K < law["A_high"]
    for row in planted["tradeoffs"]:
        truth = PLANTED.critical(row["N"], row["E_min"])
        assert row["B_crit"] == pytest.approx(truth, rel=0.15) and row["B_crit_high"] / row["B_crit_low"] < 1.6
        assert row["S_min"] * row["B_crit"] == pytest.approx(row["E_min"])


def test_least_compute_is_that_of_the_fewest_tokens(planted: dict) -> None:
    """C / (1 + B/B_crit) of every run is 6 N E_min of the planted law, whatever its batch."""
    for row in planted["runs"][::7]:
        assert row["by"] == "D" and row["C"] == pytest.approx(6 * row["N"] * row["D"])
        assert row["C_min"] == pytest.approx(6 * row["N"] * PLANTED.fewest(row["N"], row["D"], row["batch"]), rel=0.12)
        assert row["S_min"] * row["B_crit"] * 6 * row["N"] == pytest.approx(row["C_min"])
    assert planted["totals"]["C_min"] == pytest.approx(sum(row["C_min"] for row in planted["runs"]))


def test_a_planted_law_of_the_loss_is_preferred_where_it_is_true() -> None:
    by_loss = replace(PLANTED, of="loss")
    result = study_batches(by_loss.runs(noise=0.001), bootstrap=60)
    assert "B_crit follows loss" in result.verdict
    assert -1 / result.laws["loss"].a == pytest.approx(by_loss.alpha_B, rel=0.08)
    assert result.runs[0]["by"] == "loss"


def test_intervals_of_the_exponent_hold_the_truth_as_often_as_said() -> None:
    """20 noisy studies of two seeds: three binomial errors below .95 is .80."""
    exact, inside = PLANTED.runs(batches=(256, 1024, 4096, 16384), horizons=6), 0
    for seed in range(20):
        noise = np.random.default_rng(seed).standard_normal((2, len(exact)))
        runs = pd.concat([exact.assign(loss=exact["loss"] * np.exp(0.004 * errors)) for errors in noise])
        low, high = study_batches(runs, bootstrap=60, targets=3, seed=seed).laws["D"].a_interval
        inside += low <= PLANTED.a <= high
    assert inside / 20 >= 0.80


def test_the_unit_of_the_batch_does_not_matter(planted_csv: Path) -> None:
    """Batches in sequences of 64 tokens are the same study; a corpus of tokens twice as fine doubles B_crit."""
    runs = pd.read_csv(planted_csv)
    tokens = study_batches(runs, bootstrap=0)
    seqs = study_batches(runs.assign(batch=runs["batch"] / 64), bootstrap=0, seq_len=64)
    fine = study_batches(runs.assign(batch=2 * runs["batch"], D=2 * runs["D"], N=runs["N"]), bootstrap=0)
    for one, same, double in zip(tokens.tradeoffs, seqs.tradeoffs, fine.tradeoffs, strict=True):
        assert one["B_crit"] == pytest.approx(same["B_crit"]) and one["S_min"] == pytest.approx(same["S_min"])
        assert 2 * one["B_crit"] == pytest.approx(double["B_crit"]) and one["S_min"] == pytest.approx(double["S_min"])


def test_untuned_rates_and_targets_out_of_reach_are_told(tmp_path: Path) -> None:
    runs = PLANTED.runs(horizons=5)
    result = study_batches(runs, losses=[2.2], bootstrap=0)
    told = str(result)
    assert "cells (batches 256, 512, 1024, 2048, 4096, 8192, 16384) were trained at one learning rate" in told
    far = study_batches(runs, losses=[2.05, 2.2], bootstrap=0)
    row = next(row for row in far.tradeoffs if row["N"] == 1e4 and row["loss"] == 2.05)
    assert row["unreached"] and "never reach it and are left out" in str(far)
    edge = study_batches(PLANTED.runs(rates=3)[lambda f: f["lr"] > 1.1e-3 * np.sqrt(f["batch"])], bootstrap=0)
    assert {cell["tuned"] for cell in edge.cells} == {"one"}


@pytest.mark.parametrize(("change", "options", "error", "words"), [
    (lambda f: f[f["batch"] == 256], [], MisuseError, "the runs have 256 tokens a step; a hyperbola needs three"),
    (lambda f: f.drop(columns="batch"), [], MisuseError, "batch .tokens a step. is missing"),
    (lambda f: f.assign(batch=-1.0), [], VerdictError, "no row has a batch above 0"),
    (lambda f: f[f["D"] == 1e5], [], VerdictError, "batches of two horizons"),
    (lambda f: f, ["--loss", "0.5"], VerdictError, "reached by three batches"),
    (lambda f: f, ["--loss", "-1"], MisuseError, "above 0"),
    (lambda f: f, ["--points", "curves"], MisuseError, "read from a study folder"),
    (lambda f: f, ["--bootstrap", "-1"], MisuseError, "bootstrap -1 must be 0 or more"),
])  # fmt: skip
def test_what_is_no_sweep_is_one_sentence(change, options, error, words, tmp_path, capsys) -> None:
    file = tmp_path / "runs.csv"
    change(PLANTED.runs(horizons=4)).to_csv(file, index=False)
    assert dispatch(["batch", str(file), *options]) == error.exit_code
    said = capsys.readouterr().err
    assert re.search(words, said) and said.count("\n") == 1


# The plan


def write_law(folder: Path, **changes: object) -> Path:
    """A BATCH.json of the default study: B_crit = 2 E_min^.5, measured from 1e5 to 1e7 tokens."""
    study = Study()
    identity = {name: getattr(study.model, name)
                for name in ("vocab_size", "parameterization", "objective", "architecture", "seq_len")}  # fmt: skip
    identity |= {"tokenizer": "bytes", "optimizer": "adamw", "data_sha256": "ab" * 32}
    law = {"of": "D", "A": 2.0, "a": 0.5, "a_low": 0.4, "a_high": 0.6, "x_low": 1e5, "x_high": 1e7}
    plain = {"schema": "jaxscale.batch_study/1", "identity": identity, "laws": [law]}
    for name, value in changes.items():
        part, _, key = name.partition("__")
        if key:
            (plain["laws"][0] if part == "law" else plain[part])[key] = value
        else:
            plain[part] = value
    write_json(folder / "batch.json", json.dumps(plain))
    return folder / "batch.json"


def study_with(file: Path, **recipe: object) -> Study:
    return replace(Study(), recipe=replace(Study().recipe, batch_from=str(file), **recipe))


@pytest.mark.parametrize("critical", [0.25, 1.0, 2.0])
def test_every_cell_stands_at_its_share_of_its_own_critical_batch(critical: float, tmp_path: Path) -> None:
    study = study_with(write_law(tmp_path), batch_critical=critical)
    planned = plan_isoflop(study, train_tokens=1e8, data_sha256="ab" * 32)
    assert len({spec.batch_seqs for spec in planned}) > 2
    for spec in planned:
        B = spec.batch_seqs * spec.model.seq_len
        B_crit = 2.0 * (spec.tokens / (1 + critical)) ** 0.5  # at its own E_min
        microbatch = spec.microbatch_seqs * spec.model.seq_len
        assert abs(B - max(critical * B_crit, 256)) <= 0.51 * microbatch
    told = "\n".join(planned.assumptions)
    assert f"{critical:g} x B_crit" in told and "E_min^0.50 [0.40, 0.60]" in told and "WARNING" not in told
    assert planned.config == to_plain(study) and Plan.from_json(planned.to_json()) == planned


def test_the_path_is_no_part_of_a_run_and_the_rule_gives_the_same_runs(tmp_path: Path) -> None:
    study = study_with(write_law(tmp_path))
    rule = replace(Study(), recipe=replace(Study().recipe, batch_coefficient=2.0 * 2**-0.5, batch_exponent=0.5))
    one, other = (plan_isoflop(s, train_tokens=1e8) for s in (study, rule))
    assert [cell.run_id for cell in one.cells] == [cell.run_id for cell in other.cells]


def test_rates_of_a_sweep_are_moved_to_the_batch_of_the_law(tmp_path: Path) -> None:
    from test_rates import B0, D0, L0, G, H, crossed, record, write_sweep

    sweep = write_sweep(tmp_path / "sweep", [record(one) for one in crossed()])
    planned = plan_isoflop(study_with(write_law(tmp_path), lr_from=str(sweep)), train_tokens=1e8)
    for spec in planned:
        wanted = 2**L0 * (spec.tokens / D0) ** H * (spec.batch_seqs * 64 / B0) ** G
        assert spec.lr == pytest.approx(wanted, rel=5e-4)


@pytest.mark.parametrize(("changes", "words"), [
    ({"schema": "x"}, "schema 'x' is not"),
    ({"laws": []}, "has no law of B_crit over D"),
    ({"law__A": None}, "has A None"),
    ({"identity__tokenizer": "bpe:512"}, "measured with tokenizer bpe:512 and this study has bytes"),
    ({"identity__parameterization": "standard"}, "measured with parameterization standard"),
    ({"identity__optimizer": "sgd"}, "measured with optimizer sgd"),
    ({"identity__data_sha256": "cd" * 32}, "measured on text cdcdcdcdcdcd"),
])  # fmt: skip
def test_a_file_that_does_not_speak_for_the_study_is_refused(changes: dict, words: str, tmp_path: Path) -> None:
    with pytest.raises(MisuseError, match=words):
        read_batch(write_law(tmp_path, **changes), Study(), data_sha256="ab" * 32)


def test_far_cells_other_contexts_tables_and_bounds_are_told(tmp_path: Path) -> None:
    def told(**changes: object) -> str:
        return "\n".join(plan_isoflop(study_with(write_law(tmp_path, **changes)), train_tokens=1e8).assumptions)

    assert "more than 100x" in told(law__x_low=1e2, law__x_high=1e3)
    assert "contexts of 128 tokens and this study has 64" in told(identity__seq_len=128)
    assert "does not say on which text" in told(identity={})
    assert "end at recipe.batch_min_tokens 256" in told(law__A=0.01)
    with pytest.raises(MisuseError, match=r"make it with `jaxscale batch"):
        read_batch(tmp_path / "gone.json", Study())
    with pytest.raises(MisuseError, match=r"batch_critical: is read only with a measured"):
        plan_isoflop(replace(Study(), recipe=replace(Study().recipe, batch_critical=0.5)), train_tokens=1e8)


# A study that was trained


def plan_sweep(root: Path) -> Plan:
    """One size at batches of 128 (one microbatch), 256, 512 and 1024 tokens, two horizons each, as one study."""
    study = make_study(root, budgets=(2e8, 8e8), widths=(8,), bracket=False, sizes_per_budget=1)
    plans = []
    for batch in (128, 256, 512, 1024):
        recipe = replace(study.recipe, batch_coefficient=float(batch), batch_exponent=0.0, measure_noise=True,
                         warmup_fraction=0.1, lr=0.02 * (batch / 256) ** 0.5)  # fmt: skip
        longer = max(1, batch // 256)
        grid = replace(study.grid, budgets=tuple(longer * budget for budget in study.grid.budgets))
        plans.append(plan_isoflop(replace(study, recipe=recipe, grid=grid), train_tokens=1e7))
    return replace(plans[1].with_cells(cell for plan in plans for cell in plan.cells), dropped=())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trained")
    planned, out = plan_sweep(root), root / "runs"
    write_json(out / "plan.json", planned.to_json())
    for spec in planned:
        train_run(spec, out, keep_weights=False, measure_noise=True)
    return out


def test_a_trained_sweep_goes_through_the_verb_into_a_plan(trained: Path, capsys, tmp_path: Path) -> None:
    out = tmp_path / "batch.json"
    assert dispatch(["batch", str(trained), "--out", str(out), "--bootstrap", "40"]) == 0
    told = capsys.readouterr().out
    assert "noise scale: 2 runs (batches of 128 tokens) were not measured: a step has one microbatch" in told
    plain = json.loads(out.read_text())
    measured = [row for row in plain["noise_scale"] if row["B_simple"]]
    assert {row["batch"] for row in measured} <= {256, 512, 1024} and len({row["batch"] for row in measured}) >= 2
    assert all(row["B_simple"] > 0 and row["std_error"] > 0 for row in measured)
    assert plain["identity"]["tokenizer"] == "bytes" and len(plain["identity"]["data_sha256"]) == 64
    assert all(row["steps"] is None or row["steps"] * row["batch"] == row["tokens"] for row in plain["steps"])
    study = make_study(trained.parent, bracket=False)
    study = replace(study, recipe=replace(study.recipe, batch_from=str(out)))
    planned = plan_isoflop(study, train_tokens=1e7, data_sha256=plain["identity"]["data_sha256"])
    assert any("x B_crit" in line for line in planned.assumptions)


def test_measuring_changes_no_run_and_a_pack_measures_the_same(trained: Path, tmp_path: Path) -> None:
    spec = Plan.from_json((trained / "plan.json").read_text()).cells[2].spec
    noisy = train_run(spec, trained)
    quiet = train_run(spec, tmp_path / "quiet", keep_weights=False)
    assert quiet.loss == noisy.loss
    train_pack((spec, replace(spec, seed=1)), tmp_path / "pack", "turn", measure_noise=True, keep_weights=False)
    curves = [read_lines(folder / spec.run_id / "metrics.jsonl", METRIC_FIELDS) for folder in
              (trained, tmp_path / "quiet", tmp_path / "pack")]  # fmt: skip
    assert "grad_sq_small" not in curves[1][0] and [x["loss"] for x in curves[0]] == [x["loss"] for x in curves[1]]
    for one, packed in zip(curves[0], curves[2], strict=True):
        assert one["microbatch_tokens"] == 128 and one["grad_sq_small"] > one["grad_sq_big"] > 0
        assert packed["grad_sq_small"] == pytest.approx(one["grad_sq_small"], rel=1e-3)
