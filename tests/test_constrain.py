"""Constrained plans from fits: costs against the free optimum, what binds, intervals, notes, refusals."""

import json

import numpy as np
import pytest
from fit_values import fit_of
from planted import LAW, draw_grid

from jaxscale.allocate import Limits, lowest_loss, repeat_data
from jaxscale.constrain import constrain_optimum
from jaxscale.errors import MisuseError, VerdictError
from jaxscale.fit import Fits, fit_isoflop
from jaxscale.laws import MUENNIGHOFF_2023, SIX_ND, Chinchilla, Repetition

C = 1e22
FREE = LAW.optimum(C)


def _rows(result, method="parametric"):
    return {row["constraint"]: row for row in result.rows if row["method"] == method}


def test_every_constraint_alone_and_together():
    result = constrain_optimum(
        fit_of(LAW), flops=C, max_params=3e9, max_tokens=1e12, unique_tokens=5e11, max_train_flops=8e21,
        served_tokens=1e11,
    )  # fmt: skip
    rows = _rows(result)
    assert list(rows) == ["free", "max_params", "max_tokens", "max_train_flops", "unique_tokens", "free, on U",
                          "served_tokens", "together"]  # fmt: skip
    assert rows["free"]["N"] == pytest.approx(FREE.N) and rows["free"]["binds"] == ""
    assert rows["max_params"]["binds"] == "max_params" and rows["max_tokens"]["binds"] == ""
    assert rows["served_tokens"]["binds"] == "served_tokens"
    # 3e9 parameters until the deadline leave more than serving costs: the caps alone fix the plan
    assert rows["together"]["binds"] == "max_params, max_train_flops"
    assert rows["together"]["loss"] >= max(row["loss"] for row in result.rows) - 1e-12


def test_costs_are_against_the_free_optimum():
    row = _rows(constrain_optimum(fit_of(LAW), flops=C, max_params=2e9))["max_params"]
    assert row["loss"] == pytest.approx(LAW.loss(2e9, C / 6 / 2e9), rel=1e-12)
    assert row["loss_cost"] == pytest.approx(row["loss"] - FREE.loss, rel=1e-9)
    # the free optimum of C / factor has this loss
    assert LAW.optimum(C / row["compute_factor"]).loss == pytest.approx(row["loss"], rel=1e-12)


def test_a_target_loss_is_met_by_every_plan_and_serving_lowers_the_lifetime():
    rows = _rows(constrain_optimum(fit_of(LAW), loss=2.15, served_tokens=2e12, max_params=4e9))
    assert all(row["loss"] == pytest.approx(2.15, rel=1e-12) and row["loss_cost"] == 0 for row in rows.values())
    assert rows["served_tokens"]["lifetime_factor"] < rows["max_params"]["lifetime_factor"] < 1
    assert rows["served_tokens"]["compute_factor"] > 1  # paid for by more training
    for row in rows.values():
        assert row["C_lifetime"] == pytest.approx(6 * row["N"] * row["D"] + 2 * row["N"] * 2e12, rel=1e-9)


def test_the_price_of_serving_moves_the_plan_as_more_tokens_would():
    dear = _rows(constrain_optimum(fit_of(LAW), flops=C, served_tokens=1e11, serving_ratio=3.0))["served_tokens"]
    more = _rows(constrain_optimum(fit_of(LAW), flops=C, served_tokens=3e11))["served_tokens"]
    assert dear["N"] == pytest.approx(more["N"], rel=1e-9) and dear["loss"] == pytest.approx(more["loss"])


def test_no_served_tokens_are_no_constraint():
    rows = _rows(constrain_optimum(fit_of(LAW), flops=C, served_tokens=0.0))
    assert rows["served_tokens"]["N"] == pytest.approx(FREE.N) and rows["served_tokens"]["binds"] == ""


def test_limited_data_against_the_unlimited_optimum_and_its_own_plan():
    U = 2e10
    rows = _rows(constrain_optimum(fit_of(LAW), flops=C, unique_tokens=U, R_D=15.0, R_N=5.0))
    best, naive = rows["unique_tokens"], rows["free, on U"]
    law = repeat_data(LAW, U, 15.0, 5.0)
    assert naive["N"] == pytest.approx(FREE.N) and naive["loss"] == pytest.approx(law.loss(FREE.N, FREE.D))
    assert FREE.loss < best["loss"] < naive["loss"] and best["N"] < FREE.N
    assert best["epochs"] == pytest.approx(best["D"] / U) and best["epochs"] > 1
    assert _rows(constrain_optimum(fit_of(LAW), flops=C, unique_tokens=1e19))["unique_tokens"]["binds"] == ""


def test_published_decays_are_a_marked_assumption():
    assumed = constrain_optimum(fit_of(LAW), flops=C, unique_tokens=2e10)
    given = constrain_optimum(fit_of(LAW), flops=C, unique_tokens=2e10, R_D=MUENNIGHOFF_2023.R_D,
                              R_N=MUENNIGHOFF_2023.R_N)  # fmt: skip
    assert "assumed from Muennighoff et al. 2023" in assumed.notes[0] and not given.notes
    assert assumed.rows == given.rows


def test_used_up_data_are_told_with_the_compute_that_would_do():
    result = constrain_optimum(fit_of(LAW), flops=1e26, unique_tokens=1e9)
    note = next(note for note in result.notes if "used up" in note)
    enough = float(note.split("and ")[1].split(" FLOPs")[0])
    assert enough < 1e24
    law = repeat_data(LAW, 1e9, MUENNIGHOFF_2023.R_D, MUENNIGHOFF_2023.R_N)
    assert lowest_loss(law, enough * 1.01).loss <= _rows(result)["unique_tokens"]["loss"] * (1 + 1.01e-4)


@pytest.mark.parametrize("target", [{"flops": C}, {"loss": 2.3}])
def test_intervals_are_those_of_the_rounds_one_by_one(target):
    fit = fit_of(LAW, rounds=30, spread=0.003)
    asked = {**target, "max_params": 2.5e9, "unique_tokens": 5e10, "served_tokens": 1e11, "R_D": 15.0, "R_N": 5.0}
    row = _rows(constrain_optimum(fit, **asked))["together"]
    alone = [
        _rows(constrain_optimum(fit_of(Chinchilla(**{k: v[i] for k, v in fit.draws.items()})), **asked))["together"]
        for i in range(30)
    ]
    for name, ends in row["intervals"].items():
        values = [one[name] for one in alone]
        assert ends == pytest.approx(np.quantile(values, [0.05, 0.95], method="weibull"), rel=1e-5), name


def test_rounds_of_a_repetition_fit_carry_their_own_decays():
    law = Repetition(**LAW.params, R_D=15.0, R_N=5.0)
    fit = fit_of(law, rounds=40, spread=0.001)
    fit.draws["R_D"] = list(np.geomspace(2.0, 100.0, 40))
    wide = _rows(constrain_optimum(fit, flops=C, unique_tokens=1e10))["unique_tokens"]["intervals"]["loss"]
    narrow = _rows(constrain_optimum(fit, flops=C, unique_tokens=1e10, R_D=15.0))["unique_tokens"]["intervals"]["loss"]
    assert np.ptp(wide) > 1.5 * np.ptp(narrow)


def test_rounds_that_never_reach_the_loss_are_counted():
    fit = fit_of(LAW, rounds=40, spread=0.03)
    result = constrain_optimum(fit, loss=1.85)
    share = np.mean(np.array(fit.draws["E"]) >= 1.85)
    assert 0 < share < 1 and f"no plan in {share:.1%} of the bootstrap rounds" in result.notes[0]


def test_an_isoflop_fit_answers_caps_on_its_line():
    fit = fit_isoflop(draw_grid(span=1.5, budgets=6, noise=1e-4), bootstrap=50)
    result = constrain_optimum(Fits((fit, fit_of(LAW)), (0.5, 0.5)), flops=1e21, max_params=2e9, max_train_flops=8e20)
    ours, truth = _rows(result, "isoflop"), _rows(result)
    for name, row in ours.items():
        assert row["N"] == pytest.approx(truth[name]["N"], rel=0.05)
        assert row["loss"] == pytest.approx(truth[name]["loss"], rel=2e-3)
        assert row["compute_factor"] == pytest.approx(truth[name]["compute_factor"], rel=0.1)
    assert ours["together"]["binds"] == "max_params, max_train_flops"
    assert ours["max_params"]["intervals"]["N"] == [2e9, 2e9]


def test_an_isoflop_fit_refuses_what_needs_a_surface():
    fit = fit_isoflop(draw_grid(), bootstrap=0)
    with pytest.raises(MisuseError, match="served_tokens needs the loss at any N and D"):
        constrain_optimum(fit, flops=C, served_tokens=1e12)
    with pytest.raises(VerdictError, match="leaves FLOPs unspent"):
        constrain_optimum(fit, flops=C, max_params=1e9, max_tokens=1e10)
    both = constrain_optimum(Fits((fit, fit_of(LAW)), (0.5, 0.5)), flops=C, served_tokens=1e12)
    assert {row["method"] for row in both.rows} == {"parametric"} and "isoflop fit" in both.notes[-1]


def test_exact_flop_rules_are_kept():
    fit = fit_of(LAW, k=2.7, p=1.08)
    rows = _rows(constrain_optimum(fit, flops=C, max_params=1e9))
    assert rows["free"]["N"] == pytest.approx(LAW.optimum(C, fit.rule).N)
    assert rows["max_params"]["D"] == pytest.approx(fit.rule.tokens(C, 1e9))
    assert fit.rule != SIX_ND


def test_schema_table_and_frame():
    result = constrain_optimum(fit_of(LAW, rounds=20), flops=C, max_params=3e9)
    plain = json.loads(result.to_json())
    assert plain["schema"] == "jaxscale.constrained/1" and plain["request"] == {"flops": C, "max_params": 3e9}
    frame = result.to_frame()
    assert {"N_low", "N_high", "loss_low", "compute_factor_high"} <= set(frame.columns)
    assert "epochs" not in str(result) and "max_params" in str(result)


@pytest.mark.parametrize(
    ("asked", "kind", "said"),
    [
        ({}, MisuseError, "give a budget"),
        ({"flops": 1e22, "loss": 2.0}, MisuseError, "one of the two"),
        ({"flops": np.inf}, MisuseError, "flops: inf must be finite"),
        ({"flops": 1e22, "max_params": -1.0}, MisuseError, "max_params: -1"),
        ({"flops": 1e22, "R_D": 3.0}, MisuseError, "R_D says something about unique_tokens"),
        ({"loss": 1.0}, VerdictError, "no plan reaches it at any compute, the lowest is 1.8;"),
        ({"loss": 1.9, "max_params": 1e9}, VerdictError, "under max_params as asked, the lowest is 2.218;"),
        ({"loss": 2.2, "max_train_flops": 1e18}, VerdictError, "under max_train_flops as asked"),
        ({"flops": 1e10, "served_tokens": 1e15}, VerdictError, "no plan fits under served_tokens"),
    ],
)
def test_what_cannot_be_planned_is_one_sentence(asked, kind, said):
    with pytest.raises(kind, match=said):
        constrain_optimum(fit_of(LAW), **asked)


def test_limits_without_limits_are_the_closed_form():
    assert lowest_loss(LAW, C, Limits()) == FREE
