"""The calculators against published arithmetic and against themselves turned round; the verb as a person types it."""

import json
from itertools import combinations

import pytest
from fit_values import fit_of
from planted import LAW, draw_grid

from jaxscale.budget import KNOWN_MODELS, calculate_budget, compare_models, price_per_flop
from jaxscale.cli import dispatch
from jaxscale.errors import MisuseError
from jaxscale.fit import Fits, fit_isoflop
from jaxscale.laws import KAPLAN_2020, FlopRule, Repetition


def test_a_hundred_a800_for_thirty_days():
    # shared/data/README.md and the lecture it corrects: 5.4e22 FLOPs
    budget = calculate_budget(chips=100, days=30, flops_per_s=210e12)
    assert budget["training FLOPs"] == pytest.approx(5.4e22, rel=0.01)
    assert budget["PF-days"] == pytest.approx(630)
    assert budget["chip-hours"] == pytest.approx(72_000)


@pytest.mark.parametrize(("params", "tokens"), [(7e9, 1.29e12), (70e9, 1.29e11)])
def test_tokens_that_5_4e22_flops_pay_for(params, tokens):
    # a text says 10T tokens for 7e9 parameters; 6 N D says 1.29e12
    assert calculate_budget(flops=5.4e22, params=params)["tokens"] == pytest.approx(tokens, rel=5e-3)


def test_llama3s_numbers_as_printed_do_not_multiply_to_its_flops():
    assert calculate_budget(params=402e9, tokens=16.55e12)["training FLOPs"] == pytest.approx(3.99e25, rel=1e-3)
    assert calculate_budget(params=405e9, tokens=15.6e12)["training FLOPs"] == pytest.approx(3.8e25, rel=3e-3)


def test_llama3s_token_law_and_what_rounding_does_to_it():
    budget = calculate_budget(flops=3.8e25, token_law=(0.299, 0.537), rounded_law=(0.29, 0.53))
    assert budget["tokens"] == pytest.approx(16.3e12, rel=2e-3)
    assert budget["params"] == pytest.approx(389e9, rel=2e-3)
    assert budget["tokens, rounded law"] == pytest.approx(10.5e12, rel=5e-3)
    assert budget["rounded over exact tokens"] == pytest.approx(10.5 / 16.3, rel=5e-3)
    a_step = calculate_budget(flops=3.8e25, token_law=(0.299, 0.538))["tokens"] / budget["tokens"] - 1
    assert budget["tokens a step of .001 in alpha"] == pytest.approx(a_step)


def test_energy_and_carbon_of_llama_65b_as_published():
    # Touvron et al. 2023 (arXiv 2302.13971), table 15: 1,022,362 hours of an A100-80GB at 400 W and PUE 1.1 are
    # 449 MWh (449.8, cut off), at 385 g a kWh 173 t
    budget = calculate_budget(flops=1_022_362 * 3600 * 1e14, flops_per_s=1e14, chip="a100")
    assert budget["chip-hours"] == pytest.approx(1_022_362)
    assert 449e3 < budget["energy"] < 450e3
    assert round(budget["carbon"] / 1000) == 173
    assert {row.quantity for row in budget.rows if row.basis == "assumed"} == {"power", "PUE", "carbon intensity"}


def test_gpt3_in_petaflop_days():
    # Brown et al. 2020, table D.1: 3.14e23 FLOPs are 3.64e3 PF-days, and 6 N D
    assert calculate_budget(params=174.6e9, tokens=300e9)["PF-days"] == pytest.approx(3.64e3, rel=2e-3)


KNOWN = {"chips": 512.0, "days": 12.5, "flops_per_s": 3e14}


@pytest.mark.parametrize("given", list(combinations(KNOWN, 2)))
def test_any_two_of_chips_days_and_rate_give_the_third(given):
    C = calculate_budget(**KNOWN)["training FLOPs"]
    budget = calculate_budget(flops=C, **{name: KNOWN[name] for name in given})
    names = {"chips": "chips", "days": "days", "flops_per_s": "achieved rate"}
    for name, quantity in names.items():
        assert budget[quantity] == pytest.approx(KNOWN[name])


@pytest.mark.parametrize("rule", [FlopRule(), FlopRule(k=2.7, p=1.08)])
def test_size_and_tokens_follow_from_each_other(rule):
    C = float(rule.flops(7e9, 1.4e11))
    assert calculate_budget(flops=C, params=7e9, rule=rule)["tokens"] == pytest.approx(1.4e11)
    assert calculate_budget(flops=C, tokens=1.4e11, rule=rule)["params"] == pytest.approx(7e9)
    assert calculate_budget(params=7e9, tokens=1.4e11, rule=rule)["training FLOPs"] == pytest.approx(C)


def test_money_buys_what_it_costs():
    C = calculate_budget(money=1e6, price_per_chip_hour=2.0, chip="h100", mfu=0.4)["training FLOPs"]
    assert pytest.approx(1e6 / price_per_flop(2.0, 0.4 * 989e12)) == C
    assert calculate_budget(flops=C, price_per_chip_hour=2.0, chip="h100", mfu=0.4)["cost"] == pytest.approx(1e6)


def test_the_utilization_that_a_plan_takes_is_told():
    budget = calculate_budget(params=405e9, tokens=15.6e12, chips=16384, days=70, chip="h100")
    assert budget["utilization"] * 989e12 * 16384 * 70 * 86400 == pytest.approx(6 * 405e9 * 15.6e12)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "do not follow from nothing"),
        ({"chips": 8.0, "days": 3.0}, "do not follow from chips, days"),
        ({"flops": 1e22, "params": 1e9, "tokens": 1e10}, "flops and params and tokens each fix"),
        ({"flops": 1e22, "chips": 8.0, "days": 3.0, "flops_per_s": 1e14}, "flops and chips x days x rate each fix"),
        ({"flops": 1e22, "chips": 8.0, "days": 3.0, "chip": "h100", "mfu": 0.4}, "follows from the other three"),
        ({"flops": 1e22, "flops_per_s": 1e14, "chip": "h100", "mfu": 0.4}, "both fix the achieved rate"),
        ({"flops": 1e22, "mfu": 0.4}, "name the chip"),
        ({"flops": 1e22, "chips": 8.0}, "chips: without a rate"),
        ({"flops": 1e25, "chips": 8.0, "days": 3.0, "chip": "h100"}, "above the peak of h100"),
        ({"flops": 1e22, "chip": "abacus"}, "chip: 'abacus' is not known"),
        ({"flops": 1e22, "token_law": (0.3, 0.5), "params": 1e9}, "both fix the size"),
        ({"flops": 1e22, "token_law": (-0.3, 0.5)}, "token_law: -0.3 must be"),
        ({"flops": 1e22, "rounded_law": (0.3, 0.5)}, "beside token_law"),
        ({"flops": 1e22, "pue": 1.2}, "pue: needs chip-hours"),
        ({"flops": 1e22, "chip": "v5e", "carbon_g_per_kwh": 30.0}, "power of v5e is not published"),
        ({"flops": -1e22}, "flops: -1e\\+22 must be finite and above 0"),
        ({"money": 1e6, "price_per_chip_hour": 2.0}, "money: needs"),
    ],
)
def test_too_little_or_too_much_is_one_sentence(given, said):
    with pytest.raises(MisuseError, match=said):
        calculate_budget(**given)


def test_a_quantity_that_does_not_follow_is_named():
    with pytest.raises(KeyError, match="there are training FLOPs, PF-days"):
        calculate_budget(flops=1e22)["days"]


def test_known_models_beside_a_fit():
    rows = compare_models(fit_of(LAW)).rows
    assert [row["model"] for row in rows] == [model.name for model in KNOWN_MODELS]
    for row in rows:
        best = LAW.optimum(6 * row["N"] * row["D"])
        assert row["N_opt"] == pytest.approx(best.N) and row["source"]
        if row["counted"].endswith("6 N D"):
            assert row["stated_C"] == pytest.approx(row["C_6nd"], rel=5e-3)
    chinchilla = next(row for row in rows if row["model"] == "Chinchilla")
    assert chinchilla["tokens_per_param"] == pytest.approx(20)
    isoflop = fit_isoflop(draw_grid(), bootstrap=0)
    both = compare_models(Fits((isoflop, fit_of(LAW)), (0.5, 0.5)))
    assert len(both.rows) == 2 * len(KNOWN_MODELS) and "D/N opt" in str(both)


@pytest.fixture(scope="module")
def fit_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("budget") / "fit.json"
    path.write_text(fit_of(LAW, rounds=50).to_json())
    return str(path)


def test_the_verb_prints_what_it_writes(tmp_path, capsys):
    out = tmp_path / "budget.json"
    argv = ["budget", "--chips", "100", "--days", "30", "--tflops", "210", "--params", "7e9", "--out", str(out)]
    assert dispatch(argv) == 0
    plain = json.loads(out.read_text())
    assert plain["schema"] == "jaxscale.budget/1"
    assert {"quantity", "value", "unit", "formula", "basis"} == set(plain["rows"][0])
    rows = {row["quantity"]: row["value"] for row in plain["rows"]}
    assert rows["training FLOPs"] == pytest.approx(5.4432e22)
    shown = capsys.readouterr().out
    assert "chips x days x 86400 x rate = 100 x 30 x 86400 x 2.1e+14" in shown and "1.296T" in shown


def test_a_fit_adds_plans_flatness_and_models(fit_file, tmp_path, capsys):
    out = tmp_path / "budget.json"
    argv = ["budget", "--fit", fit_file, "--flops", "1e22", "--max-params", "3e9", "--unique-tokens", "2e10",
            "--served-tokens", "1e11", "--chips", "64", "--chip", "h100", "--price", "2", "--deadline-days", "3",
            "--serve-tflops", "100", "--flatness", "--compare", "--out", str(out)]  # fmt: skip
    assert dispatch(argv) == 0
    plain = json.loads(out.read_text())
    request = plain["constrained"]["request"]
    assert request["max_train_flops"] == pytest.approx(64 * 3 * 86400 * 0.4 * 989e12)
    assert request["serving_ratio"] == pytest.approx(0.4 * 989e12 / 100e12)
    assert [row["constraint"] for row in plain["constrained"]["rows"]] == [
        "free", "max_params", "max_train_flops", "unique_tokens", "free, on U", "served_tokens", "together",
    ]  # fmt: skip
    together = plain["constrained"]["rows"][-1]
    assert together["cost_lifetime"] == pytest.approx(together["C_lifetime"] * 2 / 3600 / (0.4 * 989e12))
    assert plain["flatness"]["rows"] and plain["models"]["rows"][0]["N_opt"]
    shown = capsys.readouterr().out
    assert "R_D = 15.39" in shown and "known models" in shown and "sizes within a tolerance" in shown


def test_a_deadline_alone_is_the_budget(fit_file, capsys):
    assert dispatch(["budget", "--fit", fit_file, "--chips", "10", "--tflops", "100", "--deadline-days", "30"]) == 0
    assert "plans for flops 2.592e+21, max_train_flops 2.592e+21" in capsys.readouterr().out


def test_a_loss_is_reached_at_the_lowest_lifetime(fit_file, capsys):
    assert dispatch(["budget", "--fit", fit_file, "--loss", "2.2", "--served-tokens", "1e12"]) == 0
    assert "served_tokens" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        ([], 2, "nothing was asked"),
        (["--flatness"], 2, "--flatness needs a law"),
        (["--served-tokens", "1e12"], 2, "--served-tokens needs a law"),
        (["--fit", "FIT", "--loss", "1.2"], 1, "no plan reaches it at any compute"),
        (["--fit", "FIT", "--flops", "1e22", "--serving-ratio", "2"], 2, "give served_tokens or leave it out"),
        (["--fit", "FIT", "--flops", "1e22", "--deadline-days", "3"], 2, "needs the chips"),
        (["--fit", "FIT", "--flops", "1e22", "--served-tokens", "1", "--serve-tflops", "3"], 2, "beside training"),
        (["--fit", "absent.json", "--flops", "1e22"], 2, "no such file"),
    ],
)
def test_errors_are_one_sentence(fit_file, capsys, argv, code, said):
    assert dispatch(["budget", *(fit_file if word == "FIT" else word for word in argv)]) == code
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1


def test_laws_of_repetition_and_of_kaplan_are_read_from_a_fit():
    from jaxscale.constrain import constrain_optimum

    law = Repetition(**LAW.params, R_D=20.0, R_N=4.0)
    own = constrain_optimum(fit_of(law, rounds=20), flops=1e22, unique_tokens=1e10)
    assumed = constrain_optimum(fit_of(LAW, rounds=20), flops=1e22, unique_tokens=1e10, R_D=20.0, R_N=4.0)
    assert own.rows[1]["N"] == pytest.approx(assumed.rows[1]["N"], rel=1e-9) and not own.notes
    assert compare_models(fit_of(law)).rows[0]["N_opt"] == pytest.approx(compare_models(fit_of(LAW)).rows[0]["N_opt"])
    # Kaplan et al. 2020, section 4.2: D >= 5e3 N^.74 keeps overfitting below 2%
    kaplan = constrain_optimum(fit_of(KAPLAN_2020), flops=1e22, unique_tokens=1e9)
    assert "overfitting stays below 2%" in kaplan.notes[-1] and "not met by 1B" in kaplan.notes[-1]
    assert KAPLAN_2020.tokens_without_overfitting(1e9) == pytest.approx(5e3 * 1e9**0.74, rel=0.1)
