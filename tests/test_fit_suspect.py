"""Bad input: each kind gets its sentence, through every method, and good tables get none."""

import json

import numpy as np
import pandas as pd
import pytest
from planted import draw_grid

from jaxscale.cli import dispatch
from jaxscale.errors import MisuseError
from jaxscale.fit import fit_isoflop
from jaxscale.fit.cells import gather_cells
from jaxscale.fit.suspect import annotate_fit, find_suspicions
from jaxscale.flops import PF_DAY_FLOPS
from jaxscale.source import read_observations, recount

GRID = draw_grid(noise=0.003)


def suspicions(frame, **options):
    return find_suspicions(read_observations(frame, **options))


def test_a_sound_table_raises_no_suspicion(shared_data):
    assert suspicions(GRID) == suspicions(draw_grid(seeds=3, noise=0.01)) == []
    names = {"N": "n_params", "D": "d_tokens", "C": "c_flop", "loss": "loss_nats_per_token"}
    assert suspicions_of(shared_data / "porian_owt2" / "porian_isoflop_points.csv", names) == []
    names["D"] = "d_tokens_6nd"
    assert suspicions_of(shared_data / "cs336_isoflops" / "cs336_isoflops.csv", names) == []


def suspicions_of(path, columns):
    return find_suspicions(read_observations(path, columns=columns))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"N": 1e-6}, "N is in millions (multiply by 1e+06)"),
        ({"D": 1e-9}, "D is in billions (multiply by 1e+09)"),
        ({"N": 1e-6, "D": 1e-9}, "N is in millions (multiply by 1e+06) and D is in billions"),
        ({"C": 1 / PF_DAY_FLOPS}, "C is in PF-days (multiply by 8.64e+19)"),
        ({"C": 40.0}, "no usual unit explains it"),
        ({"C": 1e-6}, "C, or N or D, is off by a factor of 1e6"),
        ({"C": 1e6}, "C, or N or D, is off by a factor of 1e6"),
    ],
)
def test_units_are_named_with_their_factor(change, words):
    frame = GRID.drop(columns="budget").assign(**{name: GRID[name] * by for name, by in change.items()})
    (found,) = suspicions(frame)
    assert found.startswith("units look wrong") and words in found


def test_units_are_seen_without_a_column_of_flops():
    frame = GRID.drop(columns=["C", "budget"]).assign(N=GRID["N"] / 1e6, D=GRID["D"] / 1e9)
    (found,) = suspicions(frame)
    assert "N is in millions" in found and "D is in billions" in found and "FLOPs" not in found


def test_exchanged_columns_are_asked_about():
    (found,) = suspicions(GRID.rename(columns={"N": "D", "D": "N"}))
    assert "check that N and D are not exchanged" in found


def test_a_perplexity_and_bits_are_suspected_and_never_converted():
    (found,) = suspicions(GRID.assign(loss=np.exp(2 * GRID["loss"])))
    assert "probably a perplexity" in found
    bits = GRID.assign(bits_per_token=GRID["loss"] / np.log(2)).drop(columns="loss")
    names = {"loss": "bits_per_token"}
    obs = read_observations(bits, columns=names)
    np.testing.assert_array_equal(obs.frame["loss"], bits["bits_per_token"])
    assert "give --loss-unit bits" in find_suspicions(obs)[0]
    nats = read_observations(bits, columns=names, loss_unit="bits")
    np.testing.assert_allclose(nats.frame["loss"], GRID["loss"], rtol=1e-14)
    assert find_suspicions(nats) == []


def test_budget_labels_that_are_other_flops_are_said():
    (found,) = suspicions(GRID.assign(budget=GRID["C"] * 7))
    assert "the budget column contradicts C" in found
    assert suspicions(GRID.assign(budget=GRID.groupby("C").ngroup())) == []


def test_a_budget_column_that_mixes_budgets_is_a_verdict():
    fit = fit_isoflop(GRID.assign(budget=np.arange(len(GRID)) % 4))
    assert fit.exponents is None and "the budget column contradicts N and D" in fit.verdict


def test_rows_counted_twice_change_nothing_and_are_said():
    twice = pd.concat([GRID, GRID], ignore_index=True)
    once, doubled = (fit_isoflop(frame, bootstrap=100) for frame in (GRID, twice))
    assert doubled.intervals == once.intervals and doubled.params == once.params
    assert any("28 rows repeat runs" in note for note in doubled.notes)
    named = GRID.assign(run_id=[f"run {i}" for i in range(len(GRID))])
    again = pd.concat([named, named.iloc[:2].assign(loss=9.0)], ignore_index=True)
    assert len(gather_cells(again)) == len(GRID) and "2 rows repeat" in suspicions(again)[0]
    seeds = draw_grid(seeds=2).assign(loss=3.0)  # equal losses of different seeds are two runs
    assert gather_cells(seeds).weight.min() == 2


def test_a_note_is_said_once_and_a_verdict_carries_it():
    obs = read_observations(GRID.drop(columns="budget").assign(C=GRID["C"] * 1e-6))
    fit = fit_isoflop(obs, bootstrap=0)
    assert annotate_fit(fit, obs) == fit and sum("units look wrong" in note for note in fit.notes) == 1
    flat = fit_isoflop(GRID.drop(columns="budget").assign(loss=3.0, C=GRID["C"] * 1e-6))
    assert "check the loss column" in flat.verdict and "units look wrong" in flat.verdict


BAD = {
    "two budgets": (draw_grid(budgets=2, noise=0.003), "two usable budgets", None),
    "one size": (GRID[GRID.groupby("C").cumcount() == 3], "sizes, at least 4", "at least one more is needed"),
    "equal losses": (GRID.assign(loss=3.0), "every loss is 3", "every loss is 3"),
    "nonconvex": (
        GRID.assign(loss=3.0 - 0.1 * np.abs(GRID.groupby("C").cumcount() - 3.0) - 0.35 * (GRID.index % 7 == 3)),
        "opens downward", None,
    ),
    "units": (GRID.drop(columns="budget").assign(N=GRID["N"] / 1e6), "N is in millions", "N is in millions"),
    "twice": (pd.concat([GRID, GRID.iloc[:3]]), "3 rows repeat runs", "3 rows repeat runs"),
    "mixed": (
        GRID.assign(budget=np.arange(len(GRID)) % 4), "the budget column contradicts N and D",
        "the budget column contradicts N and D",
    ),
    "accuracy": (GRID.assign(loss=1 - GRID["loss"] / 5), "is edge", "no size is optimal"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_the_command_says_it_for_isoflop(kind, tmp_path, capsys):
    frame, words, _ = BAD[kind]
    code, text, plain = run_fit(frame, tmp_path, capsys, "isoflop")
    assert words in text.replace("\n", " ")
    assert code == (1 if plain["exponents"] is None else 0)
    assert words in json.dumps(plain["diagnostics"])


@pytest.mark.parametrize("kind", ["one size", "equal losses", "units", "twice", "mixed", "accuracy"])
def test_the_command_says_it_for_parametric(kind, tmp_path, capsys):
    frame, _, words = BAD[kind]
    _, _, plain = run_fit(frame, tmp_path, capsys, "parametric")
    assert words in json.dumps(plain["diagnostics"])


def run_fit(frame, folder, capsys, method):
    frame.to_csv(folder / "table.csv", index=False)
    arguments = ["--method", method, "--bootstrap", "20", "--out", str(folder / "fit.json")]
    code = dispatch(["fit", str(folder / "table.csv"), *arguments])
    said = capsys.readouterr()
    return code, said.out + said.err, json.loads((folder / "fit.json").read_text())


def test_exponents_outside_their_range_are_said():
    falling = draw_grid(noise=0.001)
    shift = falling["C"] / 1e18
    fit = fit_isoflop(falling.assign(N=falling["N"] / shift, D=falling["D"] * shift), bootstrap=0)
    assert fit.params["a"] < 0 and any("a = " in note and "check N, D and C" in note for note in fit.notes)


def test_counts_switch_at_the_source():
    frame = GRID.assign(N_non_embedding=GRID["N"] - 2e7, N_total=GRID["N"] * 1.5)
    obs = read_observations(frame, count="N_total", flops_rule="6ND")
    np.testing.assert_allclose(obs.frame["N"], GRID["N"] * 1.5)
    np.testing.assert_allclose(obs.frame["C"], GRID["C"] * 1.5)
    assert obs.source["conventions"] == {"count": "N_total", "flops_rule": "6ND", "loss_unit": "nats"}
    holes = frame.assign(N_total=frame["N_total"].where(frame.index != 4))
    refused = read_observations(holes, count="N_total").refused
    assert refused == ({"row": 4, "reason": "N_total is missing"},)
    for options in ({"count": "N_total"}, {"flops_rule": "7ND"}, {"loss_unit": "bans"}):
        with pytest.raises(MisuseError):
            recount(read_observations(GRID), **options)


def test_recomputed_flops_keep_the_budgets_that_were_trained():
    frame = GRID.assign(N_non_embedding=GRID["N"] - 5000 * np.sqrt(GRID["N"])).drop(columns="budget")
    obs = read_observations(frame, count="N_non_embedding", flops_rule="6ND")
    cells = gather_cells(obs)
    assert len(cells.budget_C) == 4 and cells.spread > 0.2
    assert any("differ by" in note and "in C" in note for note in fit_isoflop(obs, bootstrap=0).notes)
