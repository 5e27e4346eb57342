"""A study folder whose runs were evaluated: rows by role, the report's section, nothing where there is none."""

from __future__ import annotations

import json

import numpy as np
import pytest
from planted_ladder import Planted
from simulated_study import simulate_study

from jaxscale.cli import dispatch
from jaxscale.downstream import fit_downstream
from jaxscale.downstream.study import is_evaluated, read_evaluations
from jaxscale.errors import MisuseError
from jaxscale.plain import seal_json, seal_line, to_plain
from jaxscale.report import write_report
from jaxscale.runs import run_dir

TASK = Planted(level=1.0, middle=0.85, steep=8.0, items=2000)


@pytest.fixture(scope="module")
def study():
    return simulate_study()


@pytest.fixture(scope="module")
def folder(study, tmp_path_factory):
    """plan.json, result.json and evals.jsonl of every run; NLL by a law of the run's own N and D."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "plan.json").write_text(study.plan.to_json())
    rng = np.random.default_rng(0)
    for cell, result in zip(study.plan.cells, study.results, strict=True):
        run = run_dir(folder, cell.run_id)
        run.mkdir()
        (run / "result.json").write_text(seal_json(to_plain(result)))
        lines = []
        for share in (0.25, 0.5, 0.75, 1.0):
            nll = 0.5 + 0.3 * (cell.n_params / 6000) ** -0.3 + 0.3 * (share * cell.spec.tokens / 1e5) ** -0.3
            right = rng.binomial(TASK.items, TASK.accuracy(nll)) / TASK.items
            lines.append(seal_line({
                "step": int(share * cell.spec.steps), "tokens": int(share * cell.spec.tokens),
                "flops": share * cell.flops, "task": "word_order", "items": TASK.items, "nll_per_byte": nll,
                "accuracy": right, "chance": 0.25,
            }))  # fmt: skip
        (run / "evals.jsonl").write_text("".join(line if line.endswith("\n") else line + "\n" for line in lines))
    return folder


def test_rows_of_a_study_are_those_of_runs_that_are_done(folder, study):
    rows = read_evaluations(folder)
    diverged = study.results[3].run_id
    assert is_evaluated(folder) and diverged not in set(rows["run"])
    assert len(rows) == 4 * (len(study.plan.cells) - 1)
    assert set(rows["role"]) == {"grid", "holdout"} and set(rows["nll_unit"]) == {"nats"}


def test_the_held_out_runs_are_the_targets(folder, study):
    result = fit_downstream(folder, bootstrap=100)
    held = {cell.run_id for cell in study.plan.cells if cell.role == "holdout"}
    targets = result.tasks["word_order"]["targets"]
    assert {target["run"] for target in targets} == held
    assert all(abs(target["relative_error"]) < 0.1 for target in targets)
    assert result.tasks["word_order"]["stages"]["items"] == {"value": 2000.0, "from": "column"}
    assert result.nll_unit == "nats"


def test_the_verb_reads_a_study_folder(folder, tmp_path, capsys):
    out = tmp_path / "downstream.json"
    assert dispatch(["downstream", str(folder), "--out", str(out), "--bootstrap", "100"]) == 0
    assert "word_order" in capsys.readouterr().out
    assert json.loads(out.read_text())["tasks"]["word_order"]["targets"]


def test_a_folder_without_evaluations_is_misuse(tmp_path):
    with pytest.raises(MisuseError, match=r"no evals.jsonl in any of its runs"):
        fit_downstream(tmp_path)


def test_the_report_has_the_figure_and_the_table_only_where_there_are_evaluations(folder, study, tmp_path):
    result = fit_downstream(folder, bootstrap=100)
    page = write_report(tmp_path, title="t", provenance={}, downstream=result, **vars(study))
    html = page.read_text()
    assert "<h2>Task accuracy</h2>" in html and 'data-figure="downstream"' in html
    assert html.count("word_order") >= 2 and (tmp_path / "figures" / "downstream.png").stat().st_size > 10_000
    plain = write_report(tmp_path / "plain", title="t", provenance={}, **vars(study)).read_text()
    assert "Task accuracy" not in plain and 'data-figure="downstream"' not in plain


def test_a_held_out_run_that_is_not_trained_yet_is_foretold(folder, study, tmp_path):
    """The same numbers as with its outcome at hand, which is then missing."""
    import shutil

    shutil.copytree(folder, tmp_path / "study")
    held = [cell for cell in study.plan.cells if cell.role == "holdout"]
    for cell in held:
        shutil.rmtree(run_dir(tmp_path / "study", cell.run_id))
    rows = read_evaluations(tmp_path / "study")
    assert set(rows[rows["accuracy"].isna()]["run"]) == {cell.run_id for cell in held}
    before, after = (fit_downstream(place, bootstrap=100) for place in (tmp_path / "study", folder))
    for mine, theirs in zip(*(one.tasks["word_order"]["targets"] for one in (before, after)), strict=True):
        assert mine["run"] == theirs["run"] and mine["accuracy_true"] is None
        assert mine["accuracy_pred"] == pytest.approx(theirs["accuracy_pred"], rel=1e-9)
        assert mine["accuracy_interval"] == pytest.approx(theirs["accuracy_interval"], rel=1e-9)
