"""`jaxscale report` on fits of tables from elsewhere: every method, laws of other forms, the conventions of the fit."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fit_values import fit_of
from planted import draw_grid

from jaxscale.cli import dispatch
from jaxscale.errors import MisuseError
from jaxscale.fit.result import Fit, Fits
from jaxscale.laws import Chinchilla


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("table") / "losses.csv"
    frame = draw_grid(noise=0.003).rename(columns={"N": "n", "D": "d", "C": "c", "loss": "ce"})
    frame.assign(bits=frame["ce"] / np.log(2)).drop(columns="budget").to_csv(path, index=False)
    return path


COLUMNS = ["--columns", "N=n", "D=d", "C=c", "--bootstrap", "20"]


def report_of(table: Path, out: Path, *words: str, report: tuple[str, ...] = ()) -> tuple[str, dict]:
    """What a reader sees, and the figures' specs."""
    assert dispatch(["fit", str(table), *COLUMNS[:-2], *words, *COLUMNS[-2:], "--out", str(out)]) == 0
    assert dispatch(["report", str(out), *report]) == 0
    html = (out.parent / "report.html").read_text()
    specs = json.loads(re.search(r'id="specs">(.*?)</script>', html, re.DOTALL)[1])
    plain = re.sub(r"<(script|style)\b.*?</\1>", " ", html, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", plain)), specs


def test_three_approaches_and_the_law_declared(table, tmp_path):
    """The declared one leads, a table of a and b has a row each, and their agreement is a sentence."""
    words, specs = report_of(table, tmp_path / "fits.json", "loss=ce", "--method", "all",
                             report=("--declared", "parametric"))  # fmt: skip
    fits = Fits.from_json(tmp_path / "fits.json")
    assert "By the parametric law, the approach declared beforehand" in words
    assert f"The approaches {fits.agreement['verdict']}" in words
    for fit in fits.fits:
        if fit.exponents:
            assert f"{fit.exponents['N'].value:.3f} [" in words
    assert {"isoflop", "optimum_N", "contour"} <= specs.keys()


def test_a_law_of_another_form_has_its_page(table, tmp_path):
    words, specs = report_of(table, tmp_path / "fit.json", "loss=ce", "--method", "parametric", "--law", "kaplan")
    assert "By the parametric law." in words and "parametric law: kaplan" in words
    assert {"contour", "residuals_1_parametric"} <= specs.keys()


def test_a_law_without_an_optimum_has_its_residuals_and_no_forecast(table, tmp_path):
    words, specs = report_of(table, tmp_path / "fit.json", "loss=ce", "--method", "parametric", "--law", "kaplan-d")
    assert "No forecast was made from these fits." in words
    assert "residuals_1_parametric" in specs and not {"contour", "optimum_N", "loss_law"} & specs.keys()


def test_the_page_reads_the_table_as_the_fit_did(table, tmp_path):
    """Losses in bits come back in nats: the planted law's residuals stay at the noise, .3%."""
    _, specs = report_of(table, tmp_path / "fit.json", "loss=bits", "--method", "isoflop", "--loss-unit", "bits")
    shown = specs["residuals_1_isoflop"]
    rows = [row for data in shown["datasets"].values() for row in data] if "datasets" in shown else [
        row for layer in shown["layer"] for row in layer["data"]["values"]
    ]  # fmt: skip
    residuals = [row["residual"] for row in rows if "N" in row]
    assert len(residuals) == len(pd.read_csv(table)) and max(map(abs, residuals)) < 2


def test_a_declared_law_that_is_none_of_the_fits_is_misuse(table, tmp_path, capsys):
    out = tmp_path / "fit.json"
    assert dispatch(["fit", str(table), *COLUMNS[:-2], "loss=ce", "--out", str(out)]) == 0
    assert dispatch(["report", str(out), "--declared", "rosenfeld"]) == 2
    assert "declared: 'rosenfeld' is none of the fits" in capsys.readouterr().err


def test_rounds_that_ran_away_are_read_back_as_unknown(tmp_path):
    """Infinities are null in JSON; a file that holds them is still a fit, and gives the same interval."""
    fit = fit_of(Chinchilla(E=1.8, A=480.0, B=2085.0, alpha=0.35, beta=0.37), rounds=50)
    lost = replace(fit, draws={name: [*values[:-2], np.inf, np.nan] for name, values in fit.draws.items()})
    file = tmp_path / "fit.json"
    file.write_text(lost.to_json())
    assert np.isnan(Fit.from_json(file).draws["E"][-2:]).all()
    file.write_text(Fits((lost, lost), (0.5, 0.5)).to_json())
    read = Fits.from_json(file).fits[1]
    assert read.draws["A"][:-2] == fit.draws["A"][:-2] and np.isnan(read.draws["A"][-1])


def test_a_file_that_is_no_fit_is_still_named(tmp_path):
    file = tmp_path / "fits.json"
    file.write_text(json.dumps({"schema": "jaxscale.fits/1", "fits": [3]}))
    with pytest.raises(MisuseError, match="Fits"):
        Fits.from_json(file)
