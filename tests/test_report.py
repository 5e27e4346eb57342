"""The report answers first, hides nothing, needs no network, and stands on whatever evidence there is."""

from __future__ import annotations

import json
import re
import struct
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from simulated_study import LAW, forecast_of, isoflop_fit, loss_of, parametric_fit, simulate_study

from jaxscale.format import format_count, format_loss
from jaxscale.report import write_report
from jaxscale.report.charts import theme
from jaxscale.report.curves import band_at, draw_valley, optimum_at
from jaxscale.report.evidence import Evidence, collect_evidence
from jaxscale.report.tables import list_runs, summarize_fits
from jaxscale.report.verdict import find_cautions, list_answers
from jaxscale.runs import Observations

PROVENANCE = {"jaxscale": "0.1.0", "git commit": "5217e9d", "data": {"sha256": "ab" * 32}, "hardware": "cpu"}
HOSTILE = "</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def study():
    return simulate_study()


@pytest.fixture(scope="module")
def page(study, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    return write_report(folder, title="Simulated", provenance=PROVENANCE, commands=["jaxscale run x.py"], **vars(study))


def write_outside(folder, frame, fits, **more) -> str:
    """The page for data that came without a plan."""
    observations = more.pop("observations", Observations(frame, (), {"path": "outside.csv"}))
    path = write_report(folder, title="Outside", plan=None, observations=observations, fits=fits, provenance={}, **more)
    return path.read_text()


def evidence_of(observations, fits, forecast=None, backtest=None) -> Evidence:
    return collect_evidence(observations, fits, forecast, backtest, results=(), plan=None, curves=None)


def words_of(html: str) -> str:
    """What a reader sees: tags and scripts taken out."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", without_scripts(html)))


def without_scripts(html: str) -> str:
    return re.sub(r"<(script|style)\b.*?</\1>", " ", html, flags=re.DOTALL)


def specs_of(html: str) -> dict:
    return json.loads(re.search(r'id="specs">(.*?)</script>', html, re.DOTALL)[1])


def test_the_page_asks_nothing_of_the_network(page):
    html = page.read_text()
    assert not re.search(r"""(?:src|href)\s*=\s*["']?\s*(?:https?:)?//""", html)
    assert not re.search(r"@import|url\(\s*[\"']?https?:", html)
    assert "default-src 'none'" in html
    assert html.count("<script") == html.count("</script>") == 4


def test_the_page_stays_light(page):
    assert page.stat().st_size < 2e6


def test_the_answer_comes_first_and_holds_the_forecast(page, study):
    html, row = words_of(page.read_text()), study.forecast[0].rows[0]
    answer = html[: html.index("Before you rely on it")]
    for text in (
        format_count(row["N_opt"]),
        format_count(row["D_opt"]),
        format_loss(row["loss"]),
        "1e13 FLOPs",
    ):
        assert text in answer
    low, high = row["intervals"]["loss"]
    assert f"[{low:.3f}, {high:.3f}]" in answer
    assert "33.3x the largest budget fitted" in answer


def test_the_backtest_stands_beside_the_answer(page):
    html = words_of(page.read_text())
    answer = html[: html.index("Before you rely on it")]
    assert "+0.8%" in answer
    assert "worth 1.09x in compute" in answer
    assert "-3.1%" in answer
    assert "worth 1.39x in compute" in answer


def test_the_method_nearer_in_the_backtest_leads(study):
    evidence = evidence_of(study.observations, study.fits, study.forecast[::-1], study.backtest)
    assert [answer.method for answer in list_answers(evidence)][::2] == ["IsoFLOP minima", "parametric law"]


def test_sections_come_in_reading_order(page):
    headings = re.findall(r"<h2>(.*?)</h2>", without_scripts(page.read_text()))
    assert headings == [
        "Before you rely on it", "Every forecast", "IsoFLOP curves", "How size and tokens should grow",
        "What loss to expect", "Training", "Residuals", "Loss surface", "Runs", "Plan", "Provenance",
    ]  # fmt: skip


def test_three_budgets_and_a_missed_backtest_are_said(page):
    html = words_of(page.read_text())
    assert "stand on 3 minima" in html
    assert "1 of 1 backtest measurements fell outside" in html
    assert "Of 30 planned runs 1 gave no evidence" in html


def test_refused_runs_and_dropped_cells_are_listed_with_reasons(page):
    html = words_of(page.read_text())
    assert "loss is nan at step 120" in html
    assert "44 steps, fewer than min_steps = 100" in html


def test_every_measured_run_is_in_the_table_and_under_the_pointer(page, study):
    html = page.read_text()
    for run_id in study.observations.frame["run_id"]:
        assert f"<td>{run_id}</td>" in html
    isoflop = json.dumps(specs_of(html)["isoflop"])
    assert all(run_id in isoflop for run_id in study.observations.frame["run_id"])


def test_provenance_is_flat_and_whole(page):
    html = words_of(page.read_text())
    for text in ("data.sha256", "ab" * 32, "5217e9d", "jaxscale run x.py", "source.sha256"):
        assert text in html


def test_every_figure_is_saved_as_svg_and_png(page):
    names = set(specs_of(page.read_text()))
    assert names == {
        "isoflop", "optimum_N", "optimum_D", "loss_law", "training", "residuals_1_isoflop",
        "residuals_2_parametric", "contour",
    }  # fmt: skip
    for name in names:
        svg = ElementTree.parse(page.parent / "figures" / f"{name}.svg").getroot()
        assert svg.tag.endswith("svg")
        assert float(svg.get("width")) > 600
        png = (page.parent / "figures" / f"{name}.png").read_bytes()
        width, height = struct.unpack(">II", png[16:24])
        assert png[:8] == b"\x89PNG\r\n\x1a\n"
        assert 1200 < width < 2400
        assert 600 < height < 1800


def test_equal_input_gives_equal_bytes(tmp_path):
    fit = isoflop_fit(law_frame(), "C")
    one, other = (write_outside(tmp_path / name, law_frame(), [fit]) for name in ("one", "other"))
    assert one == other
    for figure in (tmp_path / "one" / "figures").iterdir():
        assert (tmp_path / "other" / "figures" / figure.name).read_bytes() == figure.read_bytes()


def test_hostile_names_stay_text(tmp_path):
    frame = law_frame().assign(run_id=HOSTILE)
    refused = ({"run_id": HOSTILE, "reason": HOSTILE},)
    html = write_outside(tmp_path, frame, [], observations=Observations(frame, refused, {"path": HOSTILE}))
    assert "<img src=x" not in without_scripts(html)
    assert "&lt;/script&gt;&lt;img src=x" in html
    assert HOSTILE in json.dumps(specs_of(html)["isoflop"])


def law_frame(scale: float = 1.0, budgets=(3e10, 1e11, 3e11), sizes=(0.2, 0.45, 1.0, 2.2, 5.0)) -> pd.DataFrame:
    """Noise-free IsoFLOP points of the planted law; `scale` moves the sizes off its optimum."""
    fit = parametric_fit(LAW)
    rows = [
        {"N": N, "D": C / (6 * N), "C": C, "loss": loss_of(N, C / (6 * N))}
        for C in budgets
        for N in float(optimum_at(fit, "N", np.array([C]))[0]) * scale * np.array(sizes)
    ]
    return pd.DataFrame(rows)


def test_data_from_outside_needs_no_plan_and_may_be_large(tmp_path):
    frame = law_frame(budgets=np.geomspace(6e18, 3e21, 9))
    fit = isoflop_fit(frame, "C")
    html = write_outside(tmp_path, frame, [fit], forecast=forecast_of(fit, [1e24], 3e21))
    assert "No backtest" in words_of(html)
    assert format_count(fit.coefficients["N"].value * 1e24 ** fit.exponents["N"].value) in words_of(html)
    assert "<h2>Plan</h2>" not in without_scripts(html)
    assert "training" not in specs_of(html)


def test_budgets_without_a_minimum_are_dashed_and_said(tmp_path):
    frame = law_frame(scale=30.0)
    fit = isoflop_fit(law_frame(), "C")
    edges = tuple(replace(budget, status="edge", N_opt=None, D_opt=None, loss_opt=None) for budget in fit.budgets)
    lost = replace(fit, budgets=edges, exponents=None, coefficients=None, loss_law=None, draws={})
    html = write_outside(tmp_path, frame, [lost])
    assert "0 of 3 budgets have a usable minimum" in words_of(html)
    assert "add sizes on that side" in words_of(html)
    assert "no budget has a usable minimum" in words_of(html)
    assert "optimum_N" not in specs_of(html)


def test_a_parametric_fit_alone_gives_laws_residuals_and_contour(tmp_path):
    frame = law_frame(budgets=np.geomspace(1e18, 1e22, 30))
    fit = parametric_fit(LAW)
    html = write_outside(tmp_path, frame, [fit], forecast=forecast_of(fit, [1e24], 1e22))
    assert {"optimum_N", "loss_law", "residuals_1_parametric", "contour"} <= set(specs_of(html))
    assert "do not share budgets" in words_of(html)


def test_a_study_with_nothing_finished_still_has_a_page(study, tmp_path):
    empty = Observations(study.observations.frame.head(0), ({"run_id": "abc", "reason": "killed"},), {})
    html = write_report(tmp_path, title="t", plan=study.plan, observations=empty, fits=[], provenance={}).read_text()
    assert "No law was fitted" in words_of(html)
    assert "Of 30 planned runs 30 gave no evidence" in words_of(html)
    assert "killed" in words_of(html)


def test_methods_that_disagree_and_wide_intervals_are_said():
    one, other = isoflop_fit(law_frame(), "C"), parametric_fit(LAW)
    row = {
        "C": 1e13,
        "extrapolation": 33.0,
        "N_opt": 1e5,
        "D_opt": 1e7,
        "loss": 1.5,
        "tokens_per_param": 100.0,
    }
    wide = {"intervals": {"N_opt": [5e4, 3e5], "D_opt": [1e6, 1e8], "loss": [1.4, 1.6]}}
    forecasts = [
        SimpleNamespace(rows=[{**row, **wide}], fit=one),
        SimpleNamespace(rows=[{**row, "N_opt": 4e5}], fit=other),
    ]
    words = " ".join(find_cautions(evidence_of(Observations(law_frame()), [one, other], forecasts)))
    assert "disagree on the size: 100k (IsoFLOP minima) against 400k (parametric law)" in words
    assert "disagree on the loss" not in words
    assert "IsoFLOP minima at 1e13 FLOPs: the interval for the size spans 6x and that for the loss is 13%" in words


def test_the_surface_optimum_is_the_minimum_over_sizes():
    fit = replace(parametric_fit(LAW), exponents=None, coefficients=None)
    C, N = 1e12, np.geomspace(1e3, 1e7, 20_001)
    best = N[np.argmin(loss_of(N, C / (6 * N)))]
    assert optimum_at(fit, "N", np.array([C]))[0] == pytest.approx(best, rel=1e-3)
    assert optimum_at(fit, "loss", np.array([C]))[0] == pytest.approx(loss_of(best, C / (6 * best)), rel=1e-6)


def test_the_optimum_follows_the_fits_own_count_of_flops():
    fit = replace(parametric_fit(LAW), exponents=None, coefficients=None, diagnostics={"flops": {"k": 9.0, "p": 0.9}})
    C, N = 1e12, np.geomspace(1e3, 1e7, 20_001)
    best = N[np.argmin(loss_of(N, C / (9 * N**0.9)))]
    assert optimum_at(fit, "N", np.array([C]))[0] == pytest.approx(best, rel=1e-3)


def test_a_fit_that_judges_itself_is_quoted():
    fit = isoflop_fit(law_frame(), "C")
    noted = replace(fit, diagnostics={"notes": ["three usable budgets: hardly testable"]})
    refused = replace(fit, exponents=None, coefficients=None, loss_law=None, diagnostics={"verdict": "no budgets"})
    words = " ".join(find_cautions(evidence_of(Observations(law_frame()), [noted])))
    assert "IsoFLOP minima: three usable budgets: hardly testable." in words
    assert "stand on 3 minima" not in words
    words = " ".join(find_cautions(evidence_of(Observations(law_frame()), [refused])))
    assert "no answer; no budgets." in words


def test_the_fits_own_curve_is_the_one_drawn():
    fit = isoflop_fit(law_frame(), "C")
    line = {"N": [1e4, 2e4, 4e4], "loss": [2.2, 2.0, 2.1]}
    own = replace(fit, diagnostics={"curves": [{"C": 3e10, "line": line}]})
    evidence = evidence_of(Observations(law_frame()), [own])
    assert draw_valley(evidence, own, own.budgets[0])["loss"].tolist() == line["loss"]
    assert len(draw_valley(evidence, own, own.budgets[1])) > 10


@pytest.mark.parametrize("quantity", ["N", "D", "loss"])
@pytest.mark.parametrize("make", [lambda: parametric_fit(LAW), lambda: isoflop_fit(law_frame(), "C")])
def test_bands_hold_the_line_and_widen_with_distance(quantity, make):
    fit, C = make(), np.array([1e11, 1e15])
    low, high = band_at(fit, quantity, C)
    line = optimum_at(fit, quantity, C)
    assert np.all((low < line) & (line < high))
    if quantity != "loss":
        assert high[1] / low[1] > high[0] / low[0]


def test_dark_and_light_differ_only_in_colour():
    light, dark = theme(dark=False), theme(dark=True)
    assert light["axis"].keys() == dark["axis"].keys()
    assert light["axis"]["gridColor"] != dark["axis"]["gridColor"]
    assert light["axis"]["labelFontSize"] == dark["axis"]["labelFontSize"] >= 12


def test_runs_stand_by_budget_and_then_size_though_their_counts_differ(study, tmp_path):
    frame = law_frame().assign(budget=lambda f: f["C"])
    frame["C"] *= np.linspace(1.01, 0.99, len(frame))  # exact counts: the largest size has the least
    runs = list_runs(evidence_of(Observations(frame), []))
    assert [row[3] for row in runs.rows] == [format_count(N) for N in frame["N"]]


def test_a_fixed_irreducible_loss_is_called_fixed():
    fit = isoflop_fit(law_frame(), "C")
    fixed = replace(fit, loss_law={**fit.loss_law, "E": 0.0})
    assert "0 (fixed)" in summarize_fits(evidence_of(Observations(law_frame()), [fixed])).rows[0]


def test_points_without_budgets_are_not_called_isoflop_curves(tmp_path):
    html = write_outside(tmp_path, law_frame(budgets=np.geomspace(1e18, 1e22, 30)), [parametric_fit(LAW)])
    assert "<h2>What was measured</h2>" in html and "<h2>IsoFLOP curves</h2>" not in html
    assert "rms by decade of compute" in words_of(html)
