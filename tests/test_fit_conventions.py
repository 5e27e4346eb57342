"""The table of conventions: what the counting alone does to the exponents, against closed forms."""

import json

import numpy as np
import pytest
from planted import LAW, draw_grid

from jaxscale.cli import dispatch
from jaxscale.errors import MisuseError
from jaxscale.fit.conventions import compare_conventions
from jaxscale.source import read_observations

A_TRUE, B_TRUE = LAW.exponents()
GRID = draw_grid(budgets=5, sizes=9, span=4.0)


def table_of(frame, **options):
    return {(row["count"], row["flops_rule"]): row for row in compare_conventions(frame, **options).rows}


def test_a_power_of_N_as_count_gives_that_power_of_the_exponent():
    """N_non_embedding = N^1.2 / 30 in budgets of given C: N_opt ~ C^(1.2 a), D_opt as before."""
    rows = table_of(GRID.assign(N_non_embedding=GRID["N"] ** 1.2 / 30), bootstrap=20)
    assert set(rows) == {(n, c) for n in ("N", "N_non_embedding") for c in ("given", "6ND")}
    assert rows["N", "given"]["a"] == pytest.approx(A_TRUE, abs=2e-3)
    assert rows["N_non_embedding", "given"]["a"] == pytest.approx(1.2 * A_TRUE, abs=4e-3)
    assert rows["N_non_embedding", "given"]["b"] == pytest.approx(B_TRUE, abs=4e-3)
    low, high = rows["N", "given"]["a_interval"]
    assert low < rows["N", "given"]["a"] < high


def test_a_constant_factor_moves_no_exponent_and_an_absent_count_is_no_row():
    rows = table_of(GRID.assign(N_total=GRID["N"] * 2), bootstrap=0)
    assert set(rows) == {(n, c) for n in ("N", "N_total") for c in ("given", "6ND")}
    values = [row["a"] for row in rows.values()]
    assert np.ptp(values) < 1e-9
    assert rows["N_total", "6ND"]["spread"] == 0.0


def test_the_spread_of_recomputed_budgets_is_said():
    rows = table_of(GRID.assign(N_non_embedding=GRID["N"] - 4000 * np.sqrt(GRID["N"])), bootstrap=0)
    row = rows["N_non_embedding", "6ND"]
    N = GRID["N"].groupby(GRID["C"])
    share = (1 - 4000 / np.sqrt(N.max())) / (1 - 4000 / np.sqrt(N.min()))
    assert row["spread"] == pytest.approx(share.max() - 1, rel=1e-6)
    assert row["reason"] == "budgets are the groups trained"


def test_no_answer_is_a_row_with_its_reason():
    rows = table_of(GRID.assign(loss=3.0), bootstrap=0)
    assert rows["N", "given"]["a"] is None and "every loss is 3" in rows["N", "given"]["reason"]


def test_the_table_prints_and_writes_itself(tmp_path, capsys):
    table = compare_conventions(GRID.assign(N_non_embedding=GRID["N"] ** 1.2 / 30), bootstrap=0)
    assert json.loads(table.to_json())["schema"] == "jaxscale.conventions/1"
    assert {"count", "flops_rule", "spread", "a", "a_low", "a_high", "b"} <= set(table.to_frame())
    assert "the counting alone moves a from" in str(table)
    GRID.assign(N_total=GRID["N"] * 2).to_csv(tmp_path / "table.csv", index=False)
    command = [
        "fit",
        str(tmp_path / "table.csv"),
        "--bootstrap",
        "20",
        "--count-params",
        "N_total",
        "--flops-rule",
        "6ND",
    ]
    assert dispatch([*command, "--conventions"]) == 0
    assert "isoflop exponents by convention" in capsys.readouterr().out
    with pytest.raises(MisuseError, match="no column N_non_embedding"):
        read_observations(tmp_path / "table.csv", count="N_non_embedding")
