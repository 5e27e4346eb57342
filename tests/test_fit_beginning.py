"""Where the law begins: planted studies whose smallest budgets do or do not belong."""

import json

import numpy as np
import pytest
from planted import draw_grid

from jaxscale.errors import VerdictError
from jaxscale.fit.beginning import find_beginning


def spoil(frame, budgets, factor):
    smallest = sorted(frame["budget"].unique())[:budgets]
    return frame.assign(loss=frame["loss"].where(~frame["budget"].isin(smallest), frame["loss"] * factor))


def test_a_budget_off_by_three_percent_is_foreign_and_the_next_is_the_beginning():
    frame = draw_grid(budgets=6, noise=0.004)
    found = find_beginning(spoil(frame, 1, 1.03), bootstrap=100)
    assert [test["belongs"] for test in found.tests] == [False, True]
    assert found.tests[0]["bias"] == pytest.approx(0.03, abs=0.006)
    assert "the law begins at 3e+18" in found.verdict
    assert json.loads(found.to_json())["schema"] == "jaxscale.beginning/1"
    kept = next(row for row in found.rows if row["method"] == "parametric" and row["dropped"] == 1)
    clean = [row for row in find_beginning(frame, bootstrap=100).rows if row["dropped"] == 1][1]
    assert kept["a"] == clean["a"]  # what was spoiled had been left out


def test_a_law_that_holds_everywhere_is_seldom_called_foreign():
    # at the 1% level: 40 studies give 0.4 false alarms on average; 4 or more have a probability below 1e-3
    alarms = sum(
        not find_beginning(draw_grid(budgets=4, noise=0.005, seed=seed), bootstrap=60).tests[0]["belongs"]
        for seed in range(40)
    )
    assert alarms < 4


def test_a_break_in_the_minima_is_seen_and_none_where_there_is_none():
    frame = draw_grid(budgets=14, sizes=7, noise=0.0005, factor=2.0)
    assert find_beginning(frame, bootstrap=40).broken["preferred"] == "compute"
    C = frame["budget"] / frame["budget"].min()
    bent = frame.assign(loss=frame["loss"] * (1 + (C / 100.0) ** 2.0) ** -0.02)
    broken = find_beginning(bent, bootstrap=40).broken
    assert broken["preferred"] == "broken"
    assert np.log10(broken["broken"]["params"]["Cb"]) == pytest.approx(20.0, abs=0.7)


def test_too_few_budgets_are_a_verdict():
    with pytest.raises(VerdictError, match="3 budgets, at least 4"):
        find_beginning(draw_grid(budgets=3))


@pytest.mark.parametrize("law", ["repetition", "compute"])
def test_the_beginning_of_a_law_of_other_inputs_is_tested_at_its_own_inputs(law):
    found = find_beginning(draw_grid(noise=0.003, budgets=5), law=law, bootstrap=20)
    assert found.verdict and {row["method"] for row in found.rows} >= {"isoflop"}
