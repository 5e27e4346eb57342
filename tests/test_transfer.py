"""Loss to loss: the form that made the data is found, and its predictions hold."""

import json

import numpy as np
import pytest

from jaxscale.errors import MisuseError
from jaxscale.laws.sources import Transfer
from jaxscale.transfer import fit_transfer

X = np.linspace(2.4, 4.2, 14)
POWER = Transfer(K=1.1, E_s=1.5, kappa=1.4, E_t=0.9)


def noisy(y, noise, seed):
    return y * np.exp(noise * np.random.default_rng(seed).standard_normal(len(y)))


@pytest.mark.parametrize(("form", "y"), [("offset", X + 0.4), ("linear", 0.2 + 0.8 * X), ("power", POWER.loss(X))])
def test_the_planted_form_is_chosen_and_predicts(form, y):
    fit = fit_transfer(X, noisy(y, 5e-4, 0), at=[2.2], bootstrap=200)
    truth = {"offset": 2.6, "linear": 1.96, "power": float(POWER.loss(2.2))}[form]
    assert fit.chosen == form
    low, high = fit.predictions[0]["interval"]
    assert low - 0.003 < truth < high + 0.003
    assert fit.law.loss(2.2) == pytest.approx(fit.predictions[0]["y"])


def test_a_planted_power_is_recovered_exactly():
    fit = fit_transfer(X, POWER.loss(X), bootstrap=0)
    assert {name: round(value, 5) for name, value in fit.law.__dict__.items()} == POWER.__dict__


def test_two_power_laws_of_the_same_runs_make_kappa_the_ratio_of_exponents():
    D = np.geomspace(1e8, 1e11, 12)
    source, target = 1.6 + 300 * D**-0.3, 1.1 + 9000 * D**-0.45
    assert fit_transfer(source, target, bootstrap=0).law.kappa == pytest.approx(1.5, rel=1e-4)


def test_an_offset_is_rejected_at_its_level_and_its_prediction_intervals_hold():
    studies = range(120)
    fits = [fit_transfer(X, noisy(X + 0.4, 0.003, seed), at=[2.0], bootstrap=199) for seed in studies]
    kept = [fit for fit in fits if fit.chosen == "offset"]
    assert len(kept) / 120 > 0.9 - 3 * np.sqrt(0.1 * 0.9 / 120)  # two chances to be rejected at 5%
    hits = sum(low <= 2.4 <= high for low, high in (fit.predictions[0]["interval"] for fit in kept))
    assert hits / len(kept) > 0.95 - 3 * np.sqrt(0.95 * 0.05 / len(kept))


def test_below_the_fitted_floor_nothing_is_predicted():
    fit = fit_transfer(X, POWER.loss(X), at=[1.2], bootstrap=0)
    assert np.isnan(fit.predictions[0]["y"]) and any("nothing is predicted" in note for note in fit.notes)
    assert json.loads(fit.to_json())["predictions"][0]["y"] is None
    assert fit_transfer(X, noisy(POWER.loss(X), 1e-3, 0), at=[1.0], bootstrap=50).predictions[0]["interval"] == (
        None,
        None,
    )


def test_too_few_runs_are_misuse():
    with pytest.raises(MisuseError, match="6 or more"):
        fit_transfer(X[:5], X[:5])


def test_the_offset_of_two_test_sets_of_the_olmo_ladder_is_judged(shared_data):
    import pandas as pd

    table = pd.read_csv(shared_data / "olmo_ladder" / "olmo_ladder_final.csv")
    wide = table.pivot_table(index="run", columns="task", values="bpb_last5mean").dropna()
    ce = table.drop_duplicates("run").set_index("run").loc[wide.index, "c4_ce_last5mean"]
    task = next(name for name in wide.columns if name.startswith("hellaswag"))
    fit = fit_transfer(ce, wide[task], bootstrap=50)
    assert fit.chosen in ("linear", "power") and next(f["rms"] for f in fit.forms if f["form"] == fit.chosen) < 0.02
