"""A study with variants: one plan, shared runs once, texts and sweeps of their own, rows by run and variant."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from tiny import make_study

import jaxscale.cli.study as verbs
from jaxscale.cli.planning import write_plan
from jaxscale.cli.variants import tune_variants
from jaxscale.collect import collect_runs
from jaxscale.config import Study, Tuning, Variant
from jaxscale.errors import MisuseError, VerdictError
from jaxscale.fit import fit_isoflop, fit_parametric
from jaxscale.leases import SWEEPS
from jaxscale.plain import seal_json, to_plain, write_json
from jaxscale.plan import plan_isoflop
from jaxscale.runs import Cell, Plan, RunResult, run_dir
from jaxscale.source import read_observations
from jaxscale.sweep import read_plan, read_status
from jaxscale.variants import Text, plan_variants
from jaxscale.vary import vary_study

SILENT = Console(quiet=True)
SGD = Variant("sgd", ("recipe.optimizer=sgd", "recipe.lr=0.5"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return make_study(tmp_path_factory.mktemp("variants"))


def with_variants(base: Study, *variants: Variant, **tuning: float) -> Study:
    return replace(base, variants=variants, tuning=Tuning(**tuning))  # type: ignore[arg-type]


def end(folder: Path, cell: Cell, loss: float | None, **provenance: str) -> None:
    """A run's result, as if it had been trained: done at this loss, or diverged."""
    kinds = {"data_sha256": "t", "tokenizer": cell.spec.data.tokenizer, "precision": "float32", "device_kind": "cpu"}
    result = RunResult(
        cell.run_id, "done" if loss is not None else "diverged", "" if loss is not None else "loss is nan", loss, 0.01,
        None, loss, cell.n_params, cell.n_params_non_embedding, cell.spec.tokens, cell.flops, cell.spec.steps, 2.0,
        cell.spec.tokens / 2.0, cell.flops / 2.0, 0, {**kinds, **provenance},
    )  # fmt: skip
    write_json(run_dir(folder, cell.run_id) / "result.json", seal_json(to_plain(result)))


def ids(plan: Plan, name: str) -> list[str]:
    return sorted(cell.run_id for cell in plan.cells if name in cell.variants)


def test_every_variant_has_the_very_runs_of_its_own_plan(base: Study) -> None:
    """Counted twice: the merged plan against a plan of each; equal runs once, and totals of what is trained."""
    study = with_variants(base, Variant("base"), SGD, Variant("few", ("grid.budgets=1.5e9", "grid.widths=4,6,8,12,16")))
    merged = plan_variants(study)
    apart = {name: plan_isoflop(own) for name, own in vary_study(study).items()}
    for name, plan in apart.items():
        assert ids(merged, name) == sorted(cell.run_id for cell in plan.cells)
    assert [len(plan) for plan in apart.values()] == [10, 10, 5] and len(merged) == 20
    assert {cell.variants for cell in merged.cells} == {("base",), ("base", "few"), ("sgd",)}
    assert merged.total_flops == pytest.approx(
        sum(plan.total_flops for plan in apart.values()) - apart["few"].total_flops
    )
    budgets = [cell.spec.budget_flops for cell in merged.cells]
    assert budgets == sorted(budgets)


@pytest.mark.parametrize(
    "change", ["recipe.momentum=.5", "recipe.eval_points=.5", "data.cache=~/x", "model.d_model=64"]
)
def test_a_change_of_no_effect_shares_every_run_and_is_told(base: Study, change: str) -> None:
    if change.startswith("data.cache"):
        with pytest.raises(MisuseError, match="changes no result"):
            plan_variants(with_variants(base, Variant("base"), Variant("same", (change,))))
        return
    merged = plan_variants(with_variants(base, Variant("base"), Variant("same", (change,))))
    assert {cell.variants for cell in merged.cells} == {("base", "same")} and len(merged) == 10
    assert merged.total_flops == plan_isoflop(base).total_flops
    assert any("base and same have the same runs" in line for line in merged.assumptions)


def test_what_is_dropped_and_assumed_names_its_variants(base: Study) -> None:
    few = Variant("few", ("grid.widths=4,6,8,12,16,20", "grid.sizes_per_budget=5"))
    merged = plan_variants(with_variants(base, Variant("base"), few))
    assert [(drop.budget_flops, drop.variants) for drop in merged.dropped] == [(6e8, ("few",)), (1.5e9, ("few",))]
    grid = replace(base.grid, widths=(4, 6, 8, 12, 16, 20), sizes_per_budget=5)
    both = plan_variants(with_variants(replace(base, grid=grid), Variant("base"), SGD))
    assert len(both.dropped) == 2 and {drop.variants for drop in both.dropped} == {("base", "sgd")}
    wide = plan_variants(with_variants(base, Variant("base"), Variant("guess", ("grid.tokens_per_param=12",))))
    guesses = [line for line in wide.assumptions if "optimum expected" in line]
    assert [line.partition(":")[0] for line in guesses] == ["base", "guess"]
    assert sum("cosine schedule" in line for line in wide.assumptions) == 1


def test_a_variant_that_cannot_be_planned_is_named(base: Study) -> None:
    with pytest.raises(MisuseError, match=r"variant thin: .*cannot be bracketed"):
        plan_variants(with_variants(base, Variant("base"), Variant("thin", ("grid.widths=4,6,8",))))
    with pytest.raises(MisuseError, match=r"run .* is grid for base and holdout for odd"):
        plan_variants(with_variants(base, Variant("base"), Variant("odd", ("grid.budgets=6e8", "grid.holdout=1.5e9"))))
    with pytest.raises(MisuseError, match="no single grid"):
        plan_isoflop(with_variants(base, Variant("base"), SGD))


def test_plans_read_back_and_those_of_before_variants_read_as_they_were(base: Study) -> None:
    merged = plan_variants(with_variants(base, Variant("base"), SGD), {"base": Text(9**9, "a"), "sgd": Text(9**9, "a")})
    assert Plan.from_json(merged.to_json()) == merged and merged.variants == ("base", "sgd")
    text = plan_isoflop(base).to_json()
    assert not {"data_by_variant", "untuned", "variants"} & (
        json.loads(text).keys() | json.loads(text)["cells"][0].keys()
    )
    old = json.loads(text)
    for name in ("variants", "tuning"):
        del old["config"][name]
    for owner, name in (("recipe", "precision"), ("model", "architecture"), ("data", "mixture")):
        del old["config"][owner][name]
        for row in old["cells"]:
            (row["spec"] if owner == "recipe" else row["spec"][owner]).pop(name)
    read = Plan.from_json(json.dumps(old))
    assert read.cells == plan_isoflop(base).cells and read.variants == () and read.text_of(read.cells[0]) == ""


def test_each_cell_knows_the_text_it_was_planned_for(base: Study) -> None:
    study = with_variants(base, Variant("base"), Variant("less", ("data.max_epochs=60",)))
    own = plan_variants(study, {"base": Text(10**6, "aa"), "less": Text(10**5, "bb")})
    assert {cell.variants[0]: own.text_of(cell) for cell in own.cells} == {"base": "aa", "less": "bb"}
    assert {cell.variants[0]: round(cell.epochs * 1e5 / cell.spec.tokens, 6) for cell in own.cells} == {
        "base": 0.1,
        "less": 1.0,
    }
    assert own.data_sha256 not in ("", "aa", "bb") and Plan.from_json(own.to_json()) == own
    one = plan_variants(study, {"base": Text(10**6, "aa"), "less": Text(10**6, "aa")})
    assert one.data_sha256 == "aa" == one.text_of(one.cells[0]) and not one.data_by_variant


def test_variants_are_validated_on_one_text_unless_their_tokens_differ(base: Study) -> None:
    study = with_variants(base, Variant("base"), SGD)
    texts = {"base": Text(10**6, "a", "bytes", "v1", 100), "sgd": Text(10**6, "b", "bytes", "v2", 90)}
    with pytest.raises(MisuseError, match=r"base and sgd would be validated on different text .*data\.val_files"):
        plan_variants(study, texts)
    plan_variants(study, {**texts, "sgd": replace(texts["sgd"], tokenizer="bpe:300")})


def collected(base: Study, folder: Path, loss: Callable[[Cell], float | None], **kinds: str) -> Plan:
    """A two-variant study whose runs have all ended; `kinds` are the provenance of sgd's."""
    planned = plan_variants(with_variants(base, Variant("base"), SGD, Variant("same", ("recipe.momentum=.5",))))
    write_json(folder / "plan.json", planned.to_json())
    for cell in planned.cells:
        end(folder, cell, loss(cell), **(kinds if "sgd" in cell.variants else {}))
    return planned


def law(cell: Cell) -> float:
    return 1 + 40 / cell.n_params**0.5 + 90 / cell.spec.tokens**0.5


def test_evidence_has_a_row_for_every_run_and_variant_and_fits_take_one(base: Study, tmp_path: Path) -> None:
    planned = collected(base, tmp_path, lambda cell: None if cell.spec.model.d_model == 4 else law(cell))
    obs = collect_runs(tmp_path)
    frame = obs.frame
    assert frame.groupby("variant").size().to_dict() == {"base": 8, "same": 8, "sgd": 8}
    assert frame["run_id"].nunique() == 16 and obs.source["rows_total"] == 30
    assert {tuple(row["variants"]) for row in obs.refused} == {("base", "same"), ("sgd",)} and len(obs.refused) == 4
    cell = next(cell for cell in planned.cells if cell.run_id == frame["run_id"][0])
    told = frame.iloc[0]
    assert (told.lr, told.batch_tokens, told.N_total) == (cell.spec.lr, cell.spec.batch_seqs * 16, cell.n_params)
    assert told.tokens_per_s == cell.spec.tokens / 2 and told.flops_per_s == cell.flops / 2
    frame.to_csv(tmp_path / "observations.csv", index=False)
    with pytest.raises(MisuseError, match=r"3 variants \(base, same, sgd\).*--where \"variant == 'base'\""):
        fit_isoflop(obs)
    with pytest.raises(MisuseError, match="no one law is theirs"):
        fit_isoflop(read_observations(tmp_path))
    with pytest.raises(MisuseError, match="no one law is theirs"):
        fit_parametric(obs, law="repetition", bootstrap=0)
    unique = replace(obs, source=obs.source | {"variants_differ_in": ["data.unique_tokens"]})
    with pytest.raises(MisuseError, match="no one law is theirs"):  # a law that knows nothing of U
        fit_parametric(unique, bootstrap=0)
    assert fit_parametric(unique, law="repetition", bootstrap=0).source["rows_used"] == 24
    one = read_observations(tmp_path, where="variant == 'sgd' and role == 'grid'")
    assert len(one) == 8 and set(one.frame["variant"]) == {"sgd"}
    fit_isoflop(one, bootstrap=0)


def test_what_a_variant_declares_may_differ_and_nothing_else(base: Study, tmp_path: Path) -> None:
    """SGD's runs declare an optimizer: another text, precision or device is an accident; a declared one is not."""
    for kind in ("data_sha256", "precision", "device_kind"):
        collected(base, tmp_path / kind, law, **{kind: "other"})
        with pytest.raises(MisuseError, match=f"the runs differ in {kind}"):
            collect_runs(tmp_path / kind)
    two = with_variants(base, Variant("base"), Variant("half", ("recipe.precision=bfloat16", "data.max_epochs=60")))
    planned = plan_variants(two)
    write_json(tmp_path / "plan.json", planned.to_json())
    for cell in planned.cells:
        other = {"precision": "bfloat16", "data_sha256": "u"} if cell.variants == ("half",) else {}
        end(tmp_path, cell, law(cell), **other)
    assert len(collect_runs(tmp_path)) == 20
    end(tmp_path, planned.cells[-1], 2.0, precision="bfloat16", data_sha256="u", device_kind="other")
    with pytest.raises(MisuseError, match="differ in device_kind"):
        collect_runs(tmp_path)


def plant(monkeypatch: pytest.MonkeyPatch, optimum: dict[str, float], cliff: float = math.inf) -> list[int]:
    """Train by a planted law instead: a parabola in log2 lr about each optimizer's best rate, diverged from `cliff`."""
    counts: list[int] = []

    def train(folder: Path, planned: Plan, cells: tuple[Cell, ...], console: Console) -> bool:
        pending = [one.cell for one in read_status(folder, cells) if one.result is None]
        counts.append(len(pending))
        for cell in pending:
            x = math.log2(cell.spec.lr / optimum[cell.spec.optimizer])
            end(folder, cell, None if cell.spec.lr >= cliff else 2 + 0.05 * x**2)
        return True

    monkeypatch.setattr(verbs, "train_pending", train)
    return counts


def tuned(study: Study, folder: Path) -> tuple[Plan, dict[str, dict]]:
    planned = write_plan(study, folder, SILENT)
    if planned.untuned:
        planned = tune_variants(study, folder, planned, SILENT)
    assert planned is not None
    rows = json.loads((folder / "variants.json").read_text())["variants"]
    return planned, {row["name"]: row["tuning"] for row in rows}


def test_every_variant_is_tuned_by_one_rule_to_its_own_planted_rate(
    base: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adam's optimum is inside the rates, SGD's two beyond the last: one more at a time, trials counted."""
    counts = plant(monkeypatch, {"adamw": 0.026, "sgd": 2.6})
    study = with_variants(base, Variant("adam"), SGD, rates=3, more=3, width=8)
    before = write_plan(study, tmp_path, SILENT)
    assert before.untuned == ("adam", "sgd") and read_plan(tmp_path) == before
    assert {cell.spec.lr for cell in before.cells} == {0.02, 0.5}
    with pytest.raises(MisuseError, match="come from sweeps that have not ended"):
        before.check_tuned()
    planned, told = tuned(study, tmp_path)
    assert counts == [6, 1, 1] and not planned.untuned
    assert told["adam"]["rates"] == [0.01, 0.02, 0.04] and told["sgd"]["rates"] == [0.25, 0.5, 1.0, 2.0, 4.0]
    assert [told[name]["trials"] for name in ("adam", "sgd")] == [3, 5]
    assert {one["status"] for one in told.values()} == {"ok"}
    assert {(one["width"], one["seeds"], one["step"], one["tokens"]) for one in told.values()} == {(8, 1, 1.0, 33920)}
    assert told["adam"]["best_lr"] == pytest.approx(0.026) and told["sgd"]["best_lr"] == pytest.approx(2.6)
    sweeps = read_plan(tmp_path / SWEEPS)
    assert told["sgd"]["flops"] == pytest.approx(sum(cell.flops for cell in sweeps.cells if "sgd" in cell.variants))
    for cell in planned.cells:  # the grid's rates: the sweep's, moved to the cell's horizon and batch
        tokens, batch = cell.spec.tokens, cell.spec.batch_seqs * 16
        rate = told[cell.variants[0]]["best_lr"] * (tokens / 33920) ** -0.32 * (batch / 128) ** 0.5
        assert cell.spec.lr == pytest.approx(rate, rel=1e-3)
    assert write_plan(study, tmp_path, SILENT) == planned  # and nothing is tuned twice
    assert tuned(study, tmp_path)[0] == planned and counts == [6, 1, 1]


def test_an_optimum_that_stays_at_the_edge_is_told_and_still_used(
    base: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, {"adamw": 1e-4, "sgd": 0.5})
    planned, told = tuned(with_variants(base, Variant("adam"), SGD, rates=3, more=2), tmp_path)
    assert told["adam"]["rates"] == [0.0025, 0.005, 0.01, 0.02, 0.04] and told["adam"]["trials"] == 5
    assert (told["adam"]["status"], told["adam"]["rule"], told["adam"]["best_lr"]) == ("edge", "tried", 0.0025)
    assert (told["sgd"]["status"], told["sgd"]["best_lr"]) == ("ok", pytest.approx(0.5))
    assert any(line.startswith("adam: WARNING: the best of 5 rates, 0.0025, is the first tried")
               for line in planned.assumptions)  # fmt: skip


def test_a_diverged_neighbour_brackets_and_a_sweep_that_diverged_whole_is_refused(
    base: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, {"adamw": 0.02, "sgd": 8.0}, cliff=0.9)
    _, told = tuned(with_variants(base, Variant("adam"), SGD, rates=3, more=2), tmp_path / "cliff")
    assert (told["sgd"]["status"], told["sgd"]["rule"], told["sgd"]["best_lr"]) == ("ok", "tried", 0.5)
    plant(monkeypatch, {"adamw": 0.02, "sgd": 8.0}, cliff=0.2)
    study = with_variants(base, Variant("adam"), SGD, rates=3, more=2)
    with pytest.raises(VerdictError, match=r"variant sgd: .*0\.25 diverged, 0\.5 diverged.*lower its recipe\.lr"):
        tuned(study, tmp_path / "whole")
    rows = json.loads((tmp_path / "whole" / "variants.json").read_text())["variants"]
    assert [row["tuning"]["status"] for row in rows] == ["ok", "diverged"]


def test_equal_sweeps_are_trained_once(base: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other budgets make another grid and the same sweep; both have the whole of it in their record."""
    counts = plant(monkeypatch, {"adamw": 0.02})
    more = Variant("more", ("grid.budgets=6e8,1.2e9", "recipe.momentum=.5"))
    planned, told = tuned(with_variants(base, Variant("base"), more, rates=3), tmp_path)
    assert counts == [3] and told["base"]["trials"] == told["more"]["trials"] == 3
    assert {cell.variants for cell in planned.cells} == {("base", "more"), ("base",), ("more",)}


def test_what_no_sweep_tunes_is_refused(base: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, {"adamw": 0.02})
    standard = Variant("standard", ("model.parameterization=standard",))
    with pytest.raises(MisuseError, match=r"variant standard: under model\.parameterization standard"):
        tuned(with_variants(base, Variant("base"), standard, rates=3), tmp_path)


def test_a_begun_study_may_gain_a_variant_and_lose_or_change_none(base: Study, tmp_path: Path) -> None:
    two = with_variants(base, Variant("base"), SGD)
    first = write_plan(two, tmp_path, SILENT)
    end(tmp_path, first.cells[0], 2.0)
    lion = Variant("lion", ("recipe.optimizer=lion", "recipe.lr=.002"))
    grown = write_plan(with_variants(base, Variant("base"), SGD, lion), tmp_path, SILENT)
    assert ids(grown, "sgd") == ids(first, "sgd") and len(ids(grown, "lion")) == 10
    changed = Variant("sgd", ("recipe.optimizer=sgd", "recipe.lr=.25"))
    for variants in ((Variant("base"), changed, lion), (Variant("base"), SGD)):
        with pytest.raises(MisuseError, match="its runs follow another plan"):
            write_plan(with_variants(base, *variants), tmp_path, SILENT)
    assert read_plan(tmp_path) == grown
