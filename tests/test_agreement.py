"""Whether approaches agree: planted laws, a wrong form, and the reasons that the fits' own numbers give."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from planted import draw_grid
from scipy.stats import f as f_law
from scipy.stats import norm

from jaxscale.fit import Fits, fit_all
from jaxscale.fit.agreement import judge_agreement


@pytest.fixture(scope="module")
def right():
    return fit_all(draw_grid(budgets=5, noise=0.003), bootstrap=192)


@pytest.fixture(scope="module")
def wrong():
    """A parametric form that cannot hold: E far below the truth, two seeds a cell to tell."""
    return fit_all(draw_grid(budgets=5, noise=0.003, seeds=2), bootstrap=192, fix={"E": 0.5})


def test_approaches_to_one_planted_law_agree(right):
    (pair,) = right.agreement["pairs"]
    assert right.agreement["verdict"] == pair["verdict"] == "agree" and pair["reasons"] == []
    assert {row["quantity"] for row in pair["quantities"]} == {"a", "b", "log N_opt", "log loss"}
    for row in pair["quantities"]:
        assert row["difference"] == pytest.approx(row["values"][0] - row["values"][1])
        assert row["interval"][0] <= 0 <= row["interval"][1]


def test_a_form_that_cannot_hold_is_named_with_its_reason(wrong):
    (pair,) = wrong.agreement["pairs"]
    assert wrong.agreement["verdict"] == "disagree"
    assert any("misses the cells" in reason and "between seeds" in reason for reason in pair["reasons"])
    text = str(wrong)
    assert "disagree at 95%" in text and "why they may not" in text and "they differ" in text


def test_the_lack_of_fit_is_scipys_f_test():
    """A mild misfit, so that p is a number to compare."""
    for E in np.arange(1.75, 1.3, -0.05):
        fits = fit_all(draw_grid(budgets=5, noise=0.006, seeds=2), bootstrap=0, fix={"E": float(E)}).fits
        law = fits[1]
        ratio = (law.noise["residual_std"] / law.noise["seed_std"]) ** 2
        p = f_law.sf(ratio, 35 - 5, 35)
        if 1e-4 < p < 0.05:
            break
    from jaxscale.fit.reasons import find_reasons

    said = next(reason for reason in find_reasons(*fits) if "F test" in reason)
    assert float(re.search(r"p = ([\d.e-]+)\)", said)[1]) == pytest.approx(p, rel=0.15)


def test_the_interval_of_a_difference_is_that_of_independent_normals_where_both_are_normal(right):
    """Zou and Donner's ends on symmetric intervals are the textbook ones."""
    from jaxscale.fit.agreement import _difference

    s, z = (0.3, 0.4), norm.ppf(0.975)
    found = _difference([2.0, 1.5], [(2 - z * s[0], 2 + z * s[0]), (1.5 - z * s[1], 1.5 + z * s[1])])
    assert found["interval"] == pytest.approx([0.5 - z * 0.5, 0.5 + z * 0.5])
    assert found["agree"]


def test_reasons_come_from_the_curves_too():
    edge = draw_grid(budgets=5, noise=0.003)
    edge = edge[(edge["budget"] > 2e18) | (edge["N"] < edge["N"].groupby(edge["budget"]).transform("median"))]
    lopsided = fit_all(draw_grid(budgets=5, noise=0.0005, span=30), bootstrap=32).fits
    from jaxscale.fit.reasons import find_reasons

    assert any("leaves out 1 of 5 budgets" in reason for reason in find_reasons(*fit_all(edge, bootstrap=32).fits))
    assert any("lopsided" in reason for reason in find_reasons(*lopsided))
    few = fit_all(draw_grid(budgets=3, noise=0.003), bootstrap=32).fits
    assert any("stands on 3 budgets" in reason for reason in find_reasons(*few))


def test_without_intervals_nothing_is_judged_and_with_one_answer_nothing_compared():
    bare = fit_all(draw_grid(noise=0.003), bootstrap=0)
    assert bare.agreement["verdict"] == "untested" and "cannot be compared" in str(bare)
    assert fit_all(draw_grid(budgets=1), bootstrap=16).agreement is None
    assert judge_agreement(bare.fits[:1]) is None


def test_the_table_shows_both_levels_and_labels_the_published_ones(right):
    text = str(right)
    assert "[95%]" in text and "[10-90%]" in text
    assert "for context, Hoffmann et al. 2022, table 2, their data, all [10-90%]" in text
    assert "approach 2, IsoFLOP: a 0.49 [0.462, 0.534]" in text
    row = next(line for line in text.splitlines() if line.split()[:2] == ["parametric", "chinchilla"])
    low95, high95, low80, high80 = (float(x) for x in re.findall(r"[-\d.]+", row)[1:5])
    assert low95 < low80 < high80 < high95


def test_files_of_before_are_read_and_the_record_survives(right, tmp_path):
    path = tmp_path / "fits.json"
    path.write_text(right.to_json())
    assert Fits.from_json(path).agreement["verdict"] == "agree"
    plain = json.loads(right.to_json())
    del plain["agreement"]
    path.write_text(json.dumps(plain))
    old = Fits.from_json(path)
    assert old.agreement is None and "for context" in str(old)


def test_rounds_without_an_optimum_are_left_out(right):
    """A tenth of the rounds with alpha below 0 has no N_opt; the judgement rests on the others, without a warning."""
    isoflop, law = right.fits
    alpha = [-x if i % 10 == 0 else x for i, x in enumerate(law.draws["alpha"])]
    spoiled = replace(law, draws=law.draws | {"alpha": alpha})
    kept = {name: [x for i, x in enumerate(values) if i % 10] for name, values in law.draws.items()}
    found, wanted = (
        judge_agreement([isoflop, one])["pairs"][0]["quantities"] for one in (spoiled, replace(law, draws=kept))
    )
    assert [row["interval"] for row in found] == [row["interval"] for row in wanted]
