"""What the verb downstream says to bad input, and to tasks of which nothing can be forecast: one sentence each."""

from __future__ import annotations

import json
import re

import numpy as np
import pandas as pd
import pytest
from planted_ladder import Planted, make_ladder

from jaxscale.cli import dispatch

ROWS = ["--fit-where", "role == 'train'", "--target-where", "role == 'eval'", "--bootstrap", "50"]


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return make_ladder({"task": Planted()}, np.random.default_rng(0))


@pytest.fixture
def run(tmp_path, capsys):
    """Exit code, stdout and stderr of the verb on a table."""

    def call(frame: pd.DataFrame, *words: str, rows=ROWS) -> tuple[int, str, str]:
        path = tmp_path / "table.csv"
        frame.to_csv(path, index=False)
        code = dispatch(["downstream", str(path), *rows, *words])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def one_sentence(err: str, words: str) -> bool:
    return err.count("\n") == 1 and "Traceback" not in err and re.search(words, err) is not None


@pytest.mark.parametrize(("change", "words"), [
    (lambda t: t.assign(accuracy=100 * t["accuracy"]), r"accuracy: row 0 has [\d.]+, outside 0 to 1; is it"),
    (lambda t: t.assign(accuracy=-t["accuracy"]), r"accuracy: row 0 has -[\d.]+, outside 0 to 1; it must lie"),
    (lambda t: t.assign(chance=25.0), r"chance: row 0 has 25, outside 0 to 1; give a fraction"),
    (lambda t: t.drop(columns="nll"), r"columns: nll is missing; map it as nll=NAME, the table has run, step"),
    (lambda t: t.drop(columns="task"), r"columns: task is missing"),
    (lambda t: t.drop(columns=["C", "D"]), r"columns: neither C nor both N and D"),
    (lambda t: t.assign(nll=-1.0), r"fit rows: none of \d+ rows can be fitted: row 0: nll is -1, must be finite"),
    (lambda t: t[t["role"] == "train"], r"target-where .*no row is a target"),
    (lambda t: t[t["role"] == "eval"], r"fit rows: none of 3 rows can be fitted: fit-where .* selects none"),
])  # fmt: skip
def test_a_bad_table_is_one_sentence(run, table, change, words):
    code, _, err = run(change(table))
    assert code == 2 and one_sentence(err, words), err


@pytest.mark.parametrize(("option", "words"), [
    (("--columns", "acc=accuracy"), r"columns: 'acc' is no column of this verb; they are run, task, nll"),
    (("--columns", "nll=bpb"), r"columns: no column 'bpb'; did you mean|columns: no column 'bpb'"),
    (("--chance", "other=0.25"), r"chance: 'other' is no task of the fit rows; they are task"),
    (("--chance", "task=25"), r"chance: task = 25 must be a fraction"),
    (("--items", "task=0"), r"items: task = 0 must be 1 or more"),
    (("--confidence", "95"), r"confidence: 95 must lie between 0 and 1"),
    (("--families", "compare"), r"families: all fitted runs are of '', there is nothing to compare"),
])  # fmt: skip
def test_a_bad_option_is_one_sentence(run, table, option, words):
    code, _, err = run(table, *option)
    assert code == 2 and one_sentence(err, words), err


def test_rows_both_fitted_and_targets_are_misuse(run, table):
    code, _, err = run(table, rows=["--fit-where", "N > 0", "--target-where", "role == 'eval'"])
    assert code == 2 and one_sentence(err, "is a target and fitted too")


def test_too_few_runs_is_a_verdict(run, table):
    runs = table["run"].unique()[:3]
    code, out, err = run(table[table["run"].isin(runs) | (table["role"] == "eval")])
    assert (
        code == 1
        and "3 runs are fewer than the 4 that recipe default needs" in out
        and one_sentence(err, "no task can")
    )


def test_a_task_at_chance_throughout_is_said_and_the_others_are_forecast(run, tmp_path):
    rng = np.random.default_rng(2)
    level = Planted(middle=0.02, items=1000)
    table = make_ladder({"good": Planted(), "guess": level}, rng)
    code, out, err = run(table, "--out", str(tmp_path / "out.json"))
    assert code == 0 and "guess: nothing can be forecast: at chance throughout" in out and not err
    plain = json.loads((tmp_path / "out.json").read_text())["tasks"]
    assert plain["guess"]["stages"]["verdict"].startswith("at chance throughout")
    assert all(target["accuracy_pred"] is None for target in plain["guess"]["targets"])
    assert plain["good"]["stages"]["verdict"] is None
    code, out, err = run(table[table["task"] == "guess"], "--out", str(tmp_path / "out.json"))
    assert code == 1 and one_sentence(err, "no task can be forecast; at chance throughout")
    assert (tmp_path / "out.json").exists()


def test_an_nll_that_rises_with_compute_is_a_verdict(run, table):
    rising = table.assign(nll=2 - table["nll"])
    code, out, _ = run(rising)
    assert code == 1 and "stage 1 is not monotone: NLL rises with compute" in out


def test_an_accuracy_that_falls_as_the_nll_falls_is_a_verdict(run, table):
    code, out, _ = run(table.assign(accuracy=1 - table["accuracy"], chance=0.1))
    assert code == 1 and ("does not rise as the NLL falls" in out or "does not move" in out or "at chance" in out)


def test_the_recipe_of_the_paper_refuses_runs_that_cannot_determine_it(run, table):
    """One size only: alpha is free of the data, and the table says so instead of numbers."""
    one = table[(table["N"] == table["N"].min()) | (table["role"] == "eval")]
    five = pd.concat([one, one[one["role"] == "train"].assign(run=lambda t: t["run"] + "b", D=lambda t: 1.5 * t["D"],
                                                              C=lambda t: 1.5 * t["C"])])  # fmt: skip
    code, out, _ = run(five, "--recipe", "olmo-ladder")
    assert code == 1 and "nothing can be forecast" in out


def test_forecast_asks_the_inverse_of_a_file_and_of_a_table(run, table, tmp_path, capsys):
    out = tmp_path / "downstream.json"
    assert run(table, "--out", str(out), "--figure", str(tmp_path / "figure"))[0] == 0
    assert (tmp_path / "figure.png").stat().st_size > 10_000 and (tmp_path / "figure.svg").exists()
    answer = tmp_path / "answer.json"
    assert dispatch(["forecast", str(out), "--accuracy", "task=0.7", "--out", str(answer)]) == 0
    row = json.loads(answer.read_text())["rows"][0]
    assert row["task"] == "task" and row["interval"][0] < row["C"] < row["interval"][1]
    assert "compute at which a compute-optimal model reaches an accuracy" in capsys.readouterr().out
    path = str(tmp_path / "table.csv")
    assert dispatch(["forecast", path, "--fit-where", "role == 'train'", "--accuracy", "task=0.7"]) == 0
    for words, code in ((["task=0.2"], 2), (["task"], 2), (["task=0.9999"], 1), (["task=0.7", "--loss", "2"], 2)):
        capsys.readouterr()
        assert dispatch(["forecast", str(out), "--accuracy", *words]) == code
        assert one_sentence(capsys.readouterr().err, "accuracy")


def test_a_table_that_is_no_downstream_json_is_misuse(tmp_path, capsys):
    path = tmp_path / "fit.json"
    path.write_text('{"schema": "jaxscale.fit/1"}')
    assert dispatch(["forecast", str(path), "--accuracy", "task=0.7"]) == 2
    assert one_sentence(capsys.readouterr().err, "is no jaxscale.downstream/1")


@pytest.mark.parametrize("kind", [".csv.gz", ".csv.xz", ".parquet"])
def test_other_kinds_of_tables_are_read(table, tmp_path, kind):
    path = tmp_path / f"table{kind}"
    table.to_parquet(path) if kind == ".parquet" else table.to_csv(path, index=False)
    assert dispatch(["downstream", str(path), *ROWS]) == 0
