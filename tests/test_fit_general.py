"""Any law by automatic differentiation: its structured twin, scipy, planted laws, published optima, profiles."""

import numpy as np
import pandas as pd
import pytest
from planted import LAW, draw_grid

from jaxscale.errors import MisuseError
from jaxscale.fit import fit_parametric
from jaxscale.fit.cells import gather_cells
from jaxscale.fit.general import build_general
from jaxscale.fit.optimize import Objective, find_optimum
from jaxscale.laws import (
    MUENNIGHOFF_2023,
    BrokenPower,
    Chinchilla,
    ChinchillaTied,
    Kaplan,
    LossLaw,
    Rosenfeld,
    find_law,
)
from jaxscale.source import read_observations

PLANTED = [
    ChinchillaTied(E=1.7, A=400.0, B=1500.0, gamma=0.35),
    Kaplan(Nc=6.4e13, Dc=1.8e13, alphaN=0.076, alphaD=0.103),
    Rosenfeld(E=1.2, alpha=0.03, beta=0.05),
]
REPETITION = {"N": "n_params", "D": "d_tokens", "U": "u_unique_tokens", "loss": "val_loss_nats_per_token",
              "C": "c_flop_6nd"}  # fmt: skip


@pytest.mark.parametrize("objective", [Objective("huber", "auto"), Objective("squares", "auto")], ids=lambda o: o.name)
def test_chinchilla_is_fitted_as_by_its_structured_twin(objective):
    cells = gather_cells(draw_grid(noise=0.01, seed=3))
    dense = find_optimum(cells, build_general(Chinchilla, cells, {}), objective)
    fit = fit_parametric(draw_grid(noise=0.01, seed=3), objective=objective.name, bootstrap=0)
    assert dense.value == pytest.approx(fit.objective["value"], rel=1e-6)  # delta itself is settled to 1e-6
    assert dense.params == pytest.approx(fit.params, rel=1e-4)
    assert dense.norm < 1e-8


@pytest.mark.parametrize("law", PLANTED, ids=lambda law: law.name)
def test_planted_law_is_recovered_exactly(law):
    fit = fit_parametric(draw_grid(law=law), law=law.name, bootstrap=0)
    assert fit.params == pytest.approx(law.params, rel=1e-4)
    C = 1e21
    assert pytest.approx(law.optimum(C).N, rel=1e-4) == fit.predict_optimum(C).N
    assert fit.exponents["N"].value == pytest.approx(law.exponents()[0], rel=1e-4)
    assert fit.frontier().compute(fit.frontier().loss(C)) == pytest.approx(C, rel=1e-6)


@pytest.mark.parametrize(
    "law", [LossLaw(E=1.7, A=2e3, alpha=0.16), BrokenPower(E=0.5, A=300.0, alpha=0.11, dalpha=0.2, Cb=3e19, f=0.4)],
    ids=lambda law: law.name,
)  # fmt: skip
def test_laws_of_compute_are_recovered_and_have_no_optimum(law):
    C = np.geomspace(1e16, 1e23, 30)
    frame = pd.DataFrame({"N": np.sqrt(C / 120), "D": np.sqrt(C / 0.3), "C": C, "loss": law.loss(C)})
    fit = fit_parametric(frame, law=law.name, bootstrap=0)
    np.testing.assert_allclose(fit.predict_loss(C), law.loss(C), rtol=1e-7)
    assert fit.exponents is None
    with pytest.raises(MisuseError, match="no optimal N and D"):
        fit.predict_optimum(1e24)


def test_a_misfitting_law_ends_where_scipy_does():
    optimize = pytest.importorskip("scipy.optimize")
    frame = draw_grid(noise=0.01, seed=1)
    fit = fit_parametric(frame, law="kaplan", objective="squares", bootstrap=0)
    cells = gather_cells(frame)
    design, y = build_general(Kaplan, cells, {}), np.log(cells.loss)
    best = min(
        optimize.least_squares(lambda t: design.residuals(t, y), start, x_scale="jac", xtol=1e-14, ftol=1e-14).cost
        for start in design.starts(cells)[:6]
    )
    assert fit.objective["value"] == pytest.approx(best, rel=1e-8)


def test_fixed_parameters_stay_and_tied_equals_chinchilla_with_equal_exponents():
    frame = draw_grid(noise=0.005)
    tied = fit_parametric(frame, law="chinchilla-tied", objective="squares", bootstrap=0)
    gamma = tied.params["gamma"]
    held = fit_parametric(frame, objective="squares", bootstrap=0, fix={"alpha": gamma, "beta": gamma})
    assert held.objective["value"] == pytest.approx(tied.objective["value"], rel=1e-8)
    fixed = fit_parametric(frame, law="chinchilla-tied", bootstrap=20, fix={"E": 1.7})
    assert fixed.params["E"] == 1.7 and set(fixed.draws["E"]) == {1.7}


@pytest.fixture(scope="module")
def repeated(shared_data):
    path = shared_data / "datablations" / "datablations_fit182.csv"
    return read_observations(path, columns=REPETITION)


def test_the_repetition_law_has_a_better_optimum_than_the_published_one(repeated):
    base = {name: MUENNIGHOFF_2023.params[name] for name in ("E", "A", "B", "alpha", "beta")}
    options = {"law": "repetition", "fix": base, "delta": 1e-3, "bootstrap": 0, "profile": True}
    found = fit_parametric(repeated, **options)
    assert found.objective["value"] == pytest.approx(0.0158046625, rel=1e-8)
    assert (found.params["R_D"], found.params["R_N"]) == (pytest.approx(95.4, abs=0.1), pytest.approx(1.71, abs=0.01))
    assert any("R_D is bounded from below only" in note for note in found.notes)
    local = fit_parametric(repeated, **options, start={"R_D": 15.387756, "R_N": 5.309743})
    assert local.objective["value"] == pytest.approx(0.015825935, rel=1e-6)
    assert local.params["R_D"] == pytest.approx(15.39, rel=2e-3)
    assert any("better optimum" in note for note in local.notes)


def test_profile_of_a_linear_parameter_is_students_interval():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    N = np.geomspace(1e6, 1e9, 12)
    frame = pd.DataFrame({"N": N, "D": 1e9, "loss": 3 * N**-0.05 * np.exp(0.01 * rng.standard_normal(12))})
    fit = fit_parametric(frame, law="kaplan-n", objective="squares", bootstrap=0, profile=True)
    line = stats.linregress(np.log(N), np.log(frame["loss"]))
    half = stats.t.ppf(0.975, 10) * line.stderr
    ends = fit.diagnostics["identifiability"]["profile"]["alpha"]["interval"]
    np.testing.assert_allclose(ends, [-line.slope - half, -line.slope + half], rtol=2e-3)


def test_profile_agrees_with_the_bootstrap_where_both_hold():
    fit = fit_parametric(draw_grid(noise=0.003), bootstrap=400, profile=True)
    for name in ("alpha", "beta"):
        ends = fit.diagnostics["identifiability"]["profile"][name]["interval"]
        width = np.subtract(*fit.intervals[name][::-1])
        np.testing.assert_allclose(ends, fit.intervals[name], atol=0.3 * width)


def test_outliers_are_named_and_the_answer_without_them_is_the_truth():
    frame = draw_grid(budgets=6, sizes=9, noise=0.002)
    frame.loc[[5, 23], "loss"] *= 1.2
    fit = fit_parametric(frame, objective="squares", bootstrap=0)
    found = fit.diagnostics["outliers"]
    assert found["count"] == 2
    assert {row["N"] for row in found["worst"]} == set(frame.loc[[5, 23], "N"])
    assert found["params"]["alpha"] == pytest.approx(LAW.alpha, rel=0.1)
    assert any("without the 2 worst cells" in note for note in fit.notes)
    assert fit_parametric(draw_grid(noise=0.002), bootstrap=0).diagnostics["outliers"]["count"] == 0


def test_a_start_is_kept_where_the_data_push_E_to_zero():
    frame = draw_grid(law=Chinchilla(0.0, 480.0, 2085.0, 0.34, 0.37), noise=0.002)
    frame.loc[5, "loss"] *= 1.2  # an outlier: the fit without it starts from the first one
    law = ChinchillaTied(E=1e-4, A=480.0, B=1500.0, gamma=0.35)
    fit = fit_parametric(frame, law="chinchilla-tied", bootstrap=0, start=law.params)
    assert fit.params["E"] < 1e-3 and fit.diagnostics["outliers"]["params"]["E"] < 1e-3


def test_misuse_is_one_sentence():
    frame = draw_grid(noise=0.01)
    for wrong, words in (
        ({"law": "kaplan", "fix": {"E": 1.0}}, "no parameter of kaplan"),
        ({"law": "chinchilla-tied", "fix": dict.fromkeys(("E", "A", "B", "gamma"), 0.3)}, "nothing is left"),
        ({"law": "chinchilla-tied", "start": {"E": 1.0}}, "give every free parameter"),
        ({"law": "kaplan", "fix": {"Nc": -1.0}}, "must be finite and above 0"),
    ):
        with pytest.raises(MisuseError, match=words):
            fit_parametric(frame, bootstrap=0, **wrong)
    assert "needs runs that differ in N" in fit_parametric(frame.assign(N=1e8), law="kaplan-n", bootstrap=0).verdict
    assert find_law("kaplan-n").inputs == ("N",)
