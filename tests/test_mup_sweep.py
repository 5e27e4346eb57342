"""A learning-rate sweep as a study folder: planned, trained, killed, grown, refused, read."""

import json
import os
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from planted_sweep import plant_sweep
from test_main_job import jaxscale, start
from tiny import write_study

from jaxscale.collect import collect_runs
from jaxscale.config import Study
from jaxscale.errors import MisuseError
from jaxscale.mup import analyse_sweep
from jaxscale.mup.sweep import SweepGrid, default_rates, default_tokens, grow_plan, plan_sweep, sweep_record
from jaxscale.plain import write_json
from jaxscale.plan import plan_isoflop
from jaxscale.rates import read_rates
from jaxscale.runs import Plan
from jaxscale.sweep import read_plan, read_status

STUDY = Study()
GRID = SweepGrid(("mup", "standard"), (16, 32), (0.01, 0.02, 0.04), 2, (60_000.0,))
OPTIONS = ("--parameterizations", "mup", "--widths", "8", "16", "--lrs", ".005", ".02", ".08", "--seeds", "2",
           "--tokens", "20000", "--mesh.checkpoint-every-s", "0")  # fmt: skip


def test_a_sweep_is_the_product_of_its_axes_each_run_once() -> None:
    plan = plan_sweep(STUDY, GRID)
    assert len(plan) == 2 * 2 * 3 * 2 == len({cell.run_id for cell in plan.cells})
    assert {cell.role for cell in plan.cells} == {"sweep"}
    assert len({(cell.spec.tokens, cell.spec.batch_seqs, cell.spec.steps) for cell in plan.cells}) == 1
    assert Plan.from_json(plan.to_json()) == plan


def test_rates_keep_the_decay_of_the_whole_run() -> None:
    """Under the horizon rule lr * lambda * steps is the study's number at every rate."""
    for cell in plan_sweep(STUDY, GRID).cells:
        spec = cell.spec
        assert spec.lr * spec.weight_decay * spec.steps == pytest.approx(STUDY.recipe.weight_decay, rel=1e-12)


def test_init_scales_multiply_every_init_and_rename_the_run() -> None:
    from jaxscale.model.mup import param_rules

    plan = plan_sweep(STUDY, replace(GRID, init_scales=(1.0, 0.5), parameterizations=("mup",)))
    one, half = (next(c.spec.model for c in plan.cells if c.spec.model.init_scale == s) for s in (1.0, 0.5))
    for name, rule in param_rules(one).items():
        assert param_rules(replace(half, d_model=one.d_model))[name].init_std == 0.5 * rule.init_std
    assert len({cell.run_id for cell in plan.cells}) == len(plan)


def test_default_tokens_are_the_smallest_budget_at_its_expected_optimum() -> None:
    cells = [c for c in plan_isoflop(STUDY).cells if c.spec.budget_flops == min(STUDY.grid.budgets)]
    nearest = min(cells, key=lambda c: abs(c.spec.tokens / c.n_params - STUDY.grid.tokens_per_param))
    assert default_tokens(STUDY) == pytest.approx(nearest.spec.tokens, rel=0.01)
    assert default_rates(STUDY, 3) == (0.01, 0.02, 0.04)


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        (replace(GRID, widths=(15,)), "--widths: 15 is odd"),
        (replace(GRID, lrs=(0.01, 0.01)), "--lrs: .* names one twice"),
        (replace(GRID, lrs=(0.01, -1.0)), "--lrs: -1 is no positive number"),
        (replace(GRID, tokens=(9e9,)), "--tokens: 9B are 900.00 epochs"),
        (replace(GRID, seeds=0), "needs a seed"),
        (replace(GRID, tokens=()), "a number of tokens"),
        (replace(GRID, seeds=2**32 + 1), "beyond 32 bits"),
        (replace(GRID, lrs=(0.01, float("nan"))), "--lrs: nan is no positive number"),
        (replace(GRID, parameterizations=("mup", "mup")), "--parameterizations: mup, mup names one twice"),
        (replace(GRID, tokens=(10.0,)), "tokens: 10 are less than half a batch"),
        (replace(GRID, tokens=(60_000.0, 60_010.0)), "--tokens: 60000, 60010 come to the same number of batches"),
    ],
)
def test_axes_that_make_no_sense_are_refused(grid: SweepGrid, words: str) -> None:
    with pytest.raises(MisuseError, match=words):
        plan_sweep(STUDY, grid, train_tokens=1e7)


def test_a_sweep_grows_and_refuses_what_is_another_one() -> None:
    old, new = plan_sweep(STUDY, GRID), plan_sweep(STUDY, replace(GRID, lrs=(0.02, 0.08)))
    grown = grow_plan(old, new)
    assert {c.run_id for c in grown.cells} == {c.run_id for c in (*old.cells, *new.cells)}
    other = plan_sweep(replace(STUDY, recipe=replace(STUDY.recipe, b2=0.99)), GRID)
    with pytest.raises(MisuseError, match=r"recipe.b2: the sweep there has 0.95, this one 0.99"):
        grow_plan(old, other)
    with pytest.raises(MisuseError, match="made on text"):
        grow_plan(replace(old, data_sha256="a" * 64), new)
    with pytest.raises(MisuseError, match="Study"):
        grow_plan(replace(old, config={"model": 3}), new)


def test_tokens_that_round_to_the_same_batches_are_the_runs_that_are_there() -> None:
    """Two runs of one question would make the rows unreadable once all are trained."""
    old, new = plan_sweep(STUDY, GRID), plan_sweep(STUDY, replace(GRID, tokens=(60_010.0,)))
    assert old.cells[0].run_id != new.cells[0].run_id and old.cells[0].spec.tokens == new.cells[0].spec.tokens
    assert {c.run_id for c in grow_plan(old, new).cells} == {c.run_id for c in old.cells}


def test_a_sweep_of_before_a_field_was_there_grows() -> None:
    old = plan_sweep(STUDY, GRID)
    recipe = {name: value for name, value in old.config["recipe"].items() if name != "lr_from"}
    assert grow_plan(replace(old, config={**old.config, "recipe": recipe}), old).cells == old.cells


def test_the_init_scale_is_the_studys_own_unless_asked() -> None:
    study = replace(STUDY, model=replace(STUDY.model, init_scale=0.5))
    assert {cell.spec.model.init_scale for cell in plan_sweep(study, GRID).cells} == {0.5}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    write_study(folder)
    return folder


@pytest.fixture(scope="module")
def finished(place: Path) -> Path:
    code, out, err = jaxscale("mup", "sweep", "tiny.py", *OPTIONS, "--mesh.packs", "turn", "--out", "done", cwd=place)
    assert code in (0, 1), err
    assert "mup over widths" in out and "12 runs" in out
    return place / "done"


def test_the_result_file_has_a_row_a_run_and_every_width_an_optimum(finished: Path) -> None:
    plain = json.loads((finished / "sweep.json").read_text())
    assert plain["schema"] == "jaxscale.mup_sweep/1"
    assert len(plain["rows"]) == 12 and {row["state"] for row in plain["rows"]} == {"done"}
    assert {row["weight_decay"] for row in plain["rows"]} == {2.0}
    assert [one["width"] for one in plain["optima"]] == [8, 16]
    assert plain["text"]["data_sha256"] == read_plan(finished).data_sha256
    assert (finished / "sweep.svg").stat().st_size and (finished / "sweep.png").stat().st_size


def test_its_runs_are_no_evidence_for_a_law(finished: Path) -> None:
    observations = collect_runs(finished)
    assert len(observations) == 0 and len(observations.refused) == 12
    assert "a learning rate that was tried" in observations.refused[0]["reason"]


def test_killed_sweep_goes_on_with_the_same_packs_to_the_same_losses(place: Path, finished: Path) -> None:
    """kill -9 of parent and workers once a pack has saved; the second start trains the rest."""
    process = start("mup", "sweep", "tiny.py", *OPTIONS, "--mesh.packs", "turn", "--out",
                    str(place / "killed"), cwd=place)  # fmt: skip
    deadline = time.monotonic() + 120
    while not list((place / "killed").glob("packs/*/checkpoints/[0-9]*")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    subprocess.run(["pkill", "-9", "-f", f"jaxscale.train.worker {place / 'killed'} "], check=False)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    code, _, err = jaxscale("mup", "sweep", "tiny.py", *OPTIONS, "--mesh.packs", "turn", "--out", "killed", cwd=place)
    assert code in (0, 1), err

    def losses(folder: Path) -> dict[str, float | None]:
        return {s.cell.run_id: s.loss for s in read_status(folder, read_plan(folder).cells)}

    assert losses(place / "killed") == losses(finished)
    assert any(s.result and s.result.restarts for s in read_status(place / "killed", read_plan(place / "killed").cells))


def test_a_grid_takes_the_rate_that_its_sweep_found(tmp_path: Path) -> None:
    """Planted rows through the analysis, the result file and `recipe.lr_from`: the planted rate at the sweep's D."""
    rows, truth = plant_sweep(np.random.default_rng(2), rungs=(16, 32, 64), center=-5.2, noise=0.002, seeds=3)
    study = replace(STUDY, recipe=replace(STUDY.recipe, lr_from=str(tmp_path / "sweep.json")))
    record = sweep_record(STUDY, plan_sweep(STUDY, GRID), rows, analyse_sweep(rows).to_records())
    write_json(tmp_path / "sweep.json", json.dumps(record))
    law = read_rates(study.recipe.lr_from, study)
    found = law.rate(int(rows["tokens"][0]), int(rows["batch_tokens"][0]))
    assert np.log2(found) == pytest.approx(truth[32][0], abs=0.15)
    for cell in plan_isoflop(study).cells:
        spec = cell.spec
        assert spec.lr == law.rate(spec.tokens, spec.batch_seqs * spec.model.seq_len)


def test_one_run_of_a_sweep_trained_by_hand_keeps_no_weights_either(place: Path, finished: Path) -> None:
    run_id = read_plan(finished).cells[0].run_id
    assert jaxscale("reset", "done", run_id, cwd=place)[0] == 0
    code, _, err = jaxscale("train", "done", "--run", run_id, cwd=place)
    assert code == 0, err
    assert not list((finished / run_id).glob("checkpoints/[0-9]*"))
