"""simulate: truths against closed forms and scipy, draws with the noise they claim, and counts that catch a lie."""

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
from planted import LAW, draw_grid

from jaxscale.cli import dispatch
from jaxscale.cli.simulate import SimulateOptions
from jaxscale.errors import MisuseError, VerdictError
from jaxscale.fit import fit_isoflop, fit_parametric
from jaxscale.laws import SIX_ND, FlopRule
from jaxscale.simulate import WRONG_FORMS, Interrupted, Layout, Noise, Scenario, lay_grid, simulate_studies
from jaxscale.simulate.count import Task, binomial_band, count_rows, judge_study, true_values
from jaxscale.simulate.forms import build_form, minimise_along
from jaxscale.simulate.result import summarize
from jaxscale.simulate.scenario import draw_study

BUDGETS = 1e18 * 3.0 ** np.arange(5)


def scenario(*, wrong="", budgets=BUDGETS, sizes=7, seeds=1, far=10.0, **noise):
    form = build_form(wrong, LAW, np.ones(1), max(budgets), SIX_ND)
    layout = lay_grid(form, budgets, sizes=sizes, seeds=seeds)
    return Scenario(LAW, layout, far * max(budgets), Noise(**noise), wrong)


def judge(given, studies, *, method="isoflop", resample="auto", bootstrap=100, confidence=0.95):
    task = Task(given, (method,), (resample,), bootstrap, confidence, 0)
    return [record for number in range(studies) for record in judge_study(task, number)]


def rows_of(records, given, confidence=0.95):
    return {row["quantity"]: row for row in count_rows(records, true_values(given), confidence)}


@pytest.mark.parametrize(("n", "confidence", "family"), [(2000, 0.95, 4), (500, 0.95, 17), (60, 0.5, 6), (7, 0.9, 1)])
def test_the_band_is_scipys_binomial_quantile_after_bonferroni(n, confidence, family):
    binom = pytest.importorskip("scipy.stats").binom(n, confidence)
    tail = 0.01 / (2 * family)
    assert binomial_band(n, confidence, family) == (binom.ppf(tail) / n, binom.ppf(1 - tail) / n)


def test_all_rows_lie_in_their_bands_together_in_99_of_100():
    low, high = binomial_band(500, 0.95, 6)
    counted = np.random.default_rng(0).binomial(500, 0.95, (20_000, 6)) / 500
    assert ((counted >= low) & (counted <= high)).all(1).mean() > 0.99


@pytest.mark.parametrize("rule", [SIX_ND, FlopRule(12.0, 0.9)], ids=["6ND", "exact"])
def test_the_numerical_optimum_is_the_closed_form(rule):
    for C in (1e12, 1e18, 1e25):
        found, known = minimise_along(LAW.loss, C, rule), LAW.optimum(C, rule)
        np.testing.assert_allclose(found, known, rtol=1e-6)


@pytest.mark.parametrize("wrong", sorted(WRONG_FORMS))
def test_the_truth_of_a_wrong_form_is_the_minimum_along_the_budget_and_its_local_slope(wrong):
    minimize = pytest.importorskip("scipy.optimize").minimize_scalar
    given = scenario(wrong=wrong)
    truth, C = true_values(given), given.target_C

    def place(C):
        start = np.log(LAW.optimum(C).N)
        along = minimize(lambda x: float(given.form.true(np.exp(x), C / 6 / np.exp(x))),
                         bracket=(start - 1, start, start + 1), tol=1e-12)  # fmt: skip
        return along.x, along.fun

    assert truth["N_opt"] == pytest.approx(np.exp(place(C)[0]), rel=1e-5)
    assert truth["loss"] == pytest.approx(place(C)[1], rel=1e-12)
    assert truth["D_opt"] == pytest.approx(C / 6 / truth["N_opt"])
    slope = (place(C * 1.3)[0] - place(C / 1.3)[0]) / (2 * np.log(1.3))
    assert truth["a"] == pytest.approx(slope, abs=1e-4)
    assert truth["a"] + truth["b"] == pytest.approx(1.0, abs=1e-6)


def test_kaplans_form_touches_the_law_at_the_largest_budget():
    form = build_form("kaplan", LAW, np.ones(1), 1e20, SIX_ND)
    np.testing.assert_allclose(form.optimum(1e20), LAW.optimum(1e20), rtol=1e-6)
    aN, aD, Nc, Dc = (form.constants[name] for name in ("aN", "aD", "Nc", "Dc"))
    assert form.true(1e9, 1e60) == pytest.approx((Nc / 1e9) ** aN)  # Kaplan et al. 2020, eq. 1.1
    assert form.true(1e60, 1e9) == pytest.approx((Dc / 1e9) ** aD)  # eq. 1.2


def test_a_broken_term_has_its_own_exponent_below_and_the_flatter_one_beyond():
    form = build_form("broken-D", LAW, np.ones(1), 1e20, SIX_ND)
    at = form.constants["break_D"]
    for D, exponent in ((at / 1e4, LAW.beta), (at * 1e4, form.constants["exponent_beyond"])):
        term = [form.true(1e300, D * step) - LAW.E for step in (1.0, 1.01)]
        assert np.log(term[0] / term[1]) / np.log(1.01) == pytest.approx(exponent, abs=1e-3)


def test_an_unmistuned_middle_and_one_percent_at_the_ends():
    sizes = np.geomspace(1e7, 1e9, 5)
    form = build_form("mistuned", LAW, sizes, 1e20, SIX_ND)
    excess = form.measured(sizes, 1e10) / form.true(sizes, 1e10) - 1
    np.testing.assert_allclose(excess, [0.01, 0.0025, 0.0, 0.0025, 0.01], atol=1e-12)


def errors_of(given, studies=200):
    layout = given.layout
    cell = np.repeat(np.arange(len(layout)), layout.seeds)
    expected = given.form.true(np.array(layout.N), np.array(layout.D))[cell]
    frames = (draw_study(given, 0, number).observations.frame for number in range(studies))
    return np.array([np.log(frame["loss"] / expected) for frame in frames])


def test_runs_have_the_noise_that_was_asked_for():
    plain = errors_of(scenario(seed=0.01, seeds=2))
    assert plain.std() == pytest.approx(0.01, rel=0.02)
    assert abs(np.corrcoef(plain[:, 0], plain[:, 1])[0, 1]) < 0.25  # seeds of one cell are independent
    fading = errors_of(scenario(seed=0.01, power=0.5)).reshape(200, 5, 7)
    np.testing.assert_allclose(fading.std((0, 2)), 0.01 * 3.0 ** (-0.5 * np.arange(5)), rtol=0.1)
    high = errors_of(scenario(seed=0.0, outliers=0.1, outlier_size=0.2))
    assert set(np.unique(np.round(high, 9))) == {0.0, 0.2} and high.mean() == pytest.approx(0.02, rel=0.1)
    shared = errors_of(scenario(seed=0.0, shared=0.01))
    assert np.ptp(shared, axis=1).max() < 1e-12 and shared.std() == pytest.approx(0.01, rel=0.15)
    trunk = errors_of(scenario(seed=0.0, trunk=0.01)).reshape(200, 5, 7)
    assert np.ptp(trunk, axis=1).max() < 1e-12 and trunk.std() == pytest.approx(0.01, rel=0.1)


def test_scenarios_of_one_seed_differ_only_in_what_was_changed():
    plain, outliers = errors_of(scenario(), 3), errors_of(scenario(outliers=0.2), 3)
    moved = np.abs(plain - outliers) > 1e-12
    assert 0 < moved.mean() < 0.5
    np.testing.assert_allclose((outliers - plain)[moved], 0.05, rtol=1e-9)


def test_trunks_are_known_to_the_fits():
    assert "parent" not in draw_study(scenario(), 0, 0).observations.frame
    frame = draw_study(scenario(trunk=0.002), 0, 0).observations.frame
    assert frame["parent"].nunique() == 7
    records = judge(scenario(trunk=0.002), 1)
    assert {record["resample_used"] for record in records} == {"residual"}  # with a share common to a trunk


def test_without_noise_the_parametric_truth_is_found():
    rows = rows_of(judge(scenario(seed=1e-7), 2, method="parametric", bootstrap=20), scenario())
    for name in ("E", "A", "B", "alpha", "beta", "a", "b", "N_opt", "D_opt", "loss"):
        assert rows[name]["truth"] + rows[name]["bias"] == pytest.approx(rows[name]["truth"], rel=1e-3), name


def test_default_intervals_cover_and_a_narrow_one_is_caught():
    given = scenario()
    honest = rows_of(judge(given, 60), given)
    assert {row["within_band"] for row in honest.values()} == {"within"}
    narrow = judge(given, 60, confidence=0.5)
    assert {row["within_band"] for row in rows_of(narrow, given, 0.5).values()} == {"within"}
    told_as_95 = rows_of(narrow, given, 0.95)
    assert {told_as_95[name]["within_band"] for name in ("a", "N_opt", "loss")} == {"below"}
    assert narrow[0]["estimate"] == judge(given, 1)[0]["estimate"]


def test_the_numbers_of_a_row_are_those_of_its_records():
    given, truth = scenario(), true_values(scenario())
    records = [
        {"study": i, "method": "isoflop", "resample": "auto", "quantity": "N_opt", "truth": truth["N_opt"],
         "estimate": truth["N_opt"] * factor, "low": low, "high": high}
        for i, (factor, low, high) in enumerate([(2.0, 1e9, 1e10), (0.5, 5e9, 1e10), (1.0, None, None)])
    ]  # fmt: skip
    records.append({"study": 3, "method": "isoflop", "resample": "auto", "quantity": None, "verdict": "edge"})
    row = rows_of(records, given)["N_opt"]
    assert row["coverage"] == 0.5 and row["coverage_all"] == 0.25
    assert (row["answered"], row["no_interval"], row["refused"]) == (2, 1, 1)
    assert (row["missed_low"], row["missed_high"]) == (1, 0)
    assert row["bias"] == pytest.approx(truth["N_opt"] * 0.5 / 3)
    assert row["log_bias"] == pytest.approx(0.0, abs=1e-12)
    assert row["log_rms_error"] == pytest.approx(np.log(2) * np.sqrt(2 / 3))
    assert row["mean_width"] == pytest.approx(7e9)
    assert row["coverage_std_error"] == pytest.approx(np.sqrt(0.25 / 2))


def test_a_wrong_form_loses_coverage_and_says_so():
    given = scenario(wrong="mistuned")
    task = Task(given, ("isoflop",), ("auto",), 100, 0.95, 0)
    found = summarize(task, 60, [judge_study(task, number) for number in range(60)])
    row = {row["quantity"]: row for row in found.rows}["a"]
    assert row["within_band"] == "below" and row["coverage"] < 0.8
    assert "outside: a (isoflop, auto)" in str(found) and "the truth is the tuned law" in str(found)


def test_the_verb_knows_every_wrong_form():
    offered = get_args(get_type_hints(SimulateOptions)["wrong"])
    assert offered == ("none", *WRONG_FORMS)


def test_exact_counting_keeps_the_truth_of_its_own_rule():
    plain = lay_grid(build_form("", LAW, np.ones(1), 1e19, SIX_ND), BUDGETS)
    rule = FlopRule(20.0, 0.93)
    D = rule.tokens(np.array(plain.C), np.array(plain.N))
    layout = Layout(plain.N, tuple(D), plain.C, plain.budget, plain.trunk, plain.seeds, "exact")
    assert layout.flop_rule.k == pytest.approx(20.0) and layout.flop_rule.p == pytest.approx(0.93)
    given = Scenario(LAW, layout, 1e21, Noise(seed=1e-6))
    assert true_values(given)["N_opt"] == pytest.approx(LAW.optimum(1e21, rule).N)
    rows = rows_of(judge(given, 2, method="parametric", bootstrap=20), given)
    assert rows["N_opt"]["log_bias"] == pytest.approx(0.0, abs=1e-2)


def test_the_result_does_not_depend_on_the_number_of_workers():
    options = {"studies": 4, "methods": ("isoflop", "parametric"), "resamplers": ("auto", "wild"), "bootstrap": 20}
    one, two = (simulate_studies(scenario(), workers=count, **options) for count in (1, 2))
    assert one.to_json() == two.to_json()
    assert one.records_frame().equals(two.records_frame())
    assert set(json.loads(one.to_json())) >= {"schema", "law", "noise", "studies", "rows"}
    assert set(one.to_frame()["method"]) == {"isoflop", "parametric"}


def test_refused_studies_are_counted_over_all():
    noisy = scenario(budgets=BUDGETS[:2], sizes=5, seed=0.05)
    result = simulate_studies(noisy, studies=40, bootstrap=20)
    refused = result.fits[0]["refused"]
    assert 0 < refused < 40 and refused + result.fits[0]["answered"] == 40
    row = next(row for row in result.rows if row["quantity"] == "a")
    assert row["refused"] == refused
    assert row["coverage_all"] == pytest.approx(row["coverage"] * row["answered"] / 40)
    assert f"{refused} refused" in str(result) and "usable budgets" in result.fits[0]["refusal"]


def test_a_worker_that_does_not_start_is_a_verdict(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(VerdictError, match="ended before its studies"):
        simulate_studies(scenario(), studies=2, workers=2)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"studies": 0}, "studies 0"), ({"workers": 0}, "workers 0"), ({"seed": -1}, "seed"),
        ({"bootstrap": 0}, "bootstrap 0"), ({"methods": ("guess",)}, "guess"), ({"methods": ()}, "at least one"),
        ({"resamplers": ("jackknife",)}, "jackknife"), ({"confidence": 1.5}, "confidence"),
    ],
)  # fmt: skip
def test_misuse_is_named(options, said):
    with pytest.raises(MisuseError, match=said):
        simulate_studies(scenario(), **{"studies": 2, **options})


SMALL = ["--method", "isoflop", "--studies", "6", "--bootstrap", "20"]


def test_the_verb_prints_a_table_and_writes_the_schema(tmp_path, capsys):
    out, records = tmp_path / "sim.json", tmp_path / "records.csv"
    grid = ["--budgets", "1e18", "3e18", "9e18", "--target", "20", "--resample", "auto", "pairs"]
    law = ["--law", *(f"{name}={getattr(LAW, name)}" for name in LAW.param_names())]
    assert dispatch(["simulate", *SMALL, *grid, *law, "--out", str(out), "--records", str(records)]) == 0
    said = capsys.readouterr().out
    assert "with this grid and this noise (isoflop) the 95% interval of the loss at 1.8e20 FLOPs is" in said
    plain = json.loads(out.read_text())
    assert plain["schema"] == "jaxscale.simulate/1" and plain["studies"] == 6 and plain["target_C"] == 1.8e20
    assert plain["law"]["alpha"] == LAW.alpha and plain["noise"]["seed"] == 0.005
    for row in plain["rows"]:
        assert {"quantity", "truth", "bias", "coverage", "coverage_std_error", "mean_width"} <= row.keys()
    assert {row["resample"] for row in plain["rows"]} == {"auto", "pairs"}
    assert len(records.read_text().splitlines()) == 1 + 6 * 6 * 2


def test_a_fit_answers_the_planner_with_its_own_law_grid_and_noise(tmp_path, capsys):
    frame = draw_grid(budgets=4, noise=0.004, seeds=2)
    fit = fit_parametric(frame, bootstrap=2)
    (tmp_path / "fit.json").write_text(fit.to_json())
    out = tmp_path / "sim.json"
    command = ["simulate", str(tmp_path / "fit.json"), *SMALL, "--flops", "1e21", "--out", str(out)]
    assert dispatch(command) == 0
    assert "the 95% interval of the loss at 1e21 FLOPs" in capsys.readouterr().out
    plain = json.loads(out.read_text())
    assert {name: plain["law"][name] for name in LAW.param_names()} == fit.params
    assert plain["noise"]["seed"] == fit.noise["seed_std"]
    assert plain["grid"]["runs"] == len(frame) and plain["grid"]["budgets"] == 4
    np.testing.assert_allclose(sorted(plain["grid"]["N"]), sorted(frame["N"].unique()))


def test_more_runs_make_the_planners_interval_narrower(tmp_path, capsys):
    (tmp_path / "fit.json").write_text(fit_parametric(draw_grid(noise=0.004), bootstrap=2).to_json())
    widths = []
    for grid in (["--count", "4"], ["--count", "6", "--sizes", "9", "--seeds", "2"]):
        out = tmp_path / "sim.json"
        command = ["simulate", str(tmp_path / "fit.json"), *SMALL, *grid, "--flops", "1e21", "--out", str(out)]
        assert dispatch(command) == 0
        rows = json.loads(out.read_text())["rows"]
        widths.append(next(row["mean_log_width"] for row in rows if row["quantity"] == "N_opt"))
    assert widths[1] < 0.6 * widths[0]


def test_a_table_and_a_planned_study_are_sources(tmp_path, capsys):
    draw_grid(noise=0.004).drop(columns="budget").to_csv(tmp_path / "table.csv", index=False)
    out = tmp_path / "sim.json"
    assert dispatch(["simulate", str(tmp_path / "table.csv"), *SMALL, "--out", str(out)]) == 0
    plain = json.loads(out.read_text())
    assert plain["grid"]["cells"] == 28 and 0.002 < plain["noise"]["seed"] < 0.006
    study = str(Path(__file__).parents[1] / "configs" / "quickstart.py")
    assert dispatch(["simulate", study, *SMALL]) == 2
    assert "has no law" in capsys.readouterr().err
    law = ["--law", "E=1.2", "A=20.5", "B=31.5", "alpha=.40", "beta=.34"]
    assert dispatch(["simulate", study, *SMALL, *law, "--noise", ".008", "--out", str(out)]) == 0
    plain = json.loads(out.read_text())
    assert plain["grid"]["rule"] == "exact" and plain["grid"]["runs"] > plain["grid"]["cells"]


def test_a_table_is_read_as_its_options_say_and_all_means_the_two_that_can_answer(tmp_path, capsys):
    grid = draw_grid(noise=0.004, seeds=2)
    grid.assign(N_non_embedding=0.5 * grid["N"]).to_csv(tmp_path / "table.csv", index=False)
    out = tmp_path / "sim.json"
    arguments = ["simulate", str(tmp_path / "table.csv"), "--studies", "2", "--bootstrap", "20", "--workers", "1"]
    options = ["--count-params", "N_non_embedding", "--loss-unit", "bits", "--out", str(out)]
    assert dispatch([*arguments, *options]) == 0
    plain = json.loads(out.read_text())
    assert {row["method"] for row in plain["rows"]} == {"isoflop", "parametric"}
    assert plain["grid"]["N"][0] == pytest.approx(0.5 * grid["N"].min())
    assert plain["law"]["E"] == pytest.approx(np.log(2) * LAW.E, rel=0.1)
    assert any("differs from the rule of the truth" in note for note in plain["notes"])


def test_one_budget_is_refused_every_time_and_exits_1(tmp_path, capsys):
    out = tmp_path / "sim.json"
    assert dispatch(["simulate", *SMALL, "--count", "1", "--out", str(out)]) == 1
    assert "no study was answered" in capsys.readouterr().err
    row = json.loads(out.read_text())["rows"][0]
    assert row["coverage"] is None and row["coverage_all"] == 0.0 and row["refused"] == 6


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (["--law", "E=1.8"], "missing"), (["--law", "E=1.8", "G=2"], "is none of"), (["--law", "E=x"], "not a number"),
        (["--law", "A=-1"], "above 0"), (["--budgets", "1e18", "--count", "3"], "give one of the two"),
        (["--budgets", "-1"], "above 0"), (["--factor", "1"], "factor"),
        (["--target", "2", "--flops", "1e22"], "give one"),
        (["--target", "-3"], "above 0"), (["--flops", "0"], "above 0"), (["--noise", "-1"], "0 or more"),
        (["--outliers", "2"], "share"), (["--sizes", "0"], "at least one size"), (["--studies", "0"], "1 or more"),
        (["--seeds", "0"], "at least one size"), (["nowhere.json"], "no such file"), (["nowhere"], "no such file"),
    ],
)  # fmt: skip
def test_misuse_of_the_verb_is_one_sentence_and_exit_2(capsys, extra, said):
    assert dispatch(["simulate", *SMALL, *extra]) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.strip().splitlines()) == 1


def test_a_fit_without_L_of_N_and_D_is_no_source(tmp_path, capsys):
    (tmp_path / "fit.json").write_text(fit_isoflop(draw_grid(noise=0.004), bootstrap=2).to_json())
    assert dispatch(["simulate", str(tmp_path / "fit.json"), *SMALL]) == 2
    assert "no L(N, D)" in capsys.readouterr().err
    (tmp_path / "fit.json").write_text(fit_parametric(draw_grid(noise=0.004), bootstrap=2).to_json())
    assert dispatch(["simulate", str(tmp_path / "fit.json"), *SMALL, "--sizes", "9"]) == 2
    assert "--budgets" in capsys.readouterr().err


def stop_after(studies):
    def listen(done, _):
        if done == studies:
            raise KeyboardInterrupt

    return listen


def test_ctrl_c_prints_and_writes_what_was_counted(tmp_path, capsys, monkeypatch):
    out = tmp_path / "sim.json"
    monkeypatch.setattr("jaxscale.cli.simulate._show_progress", lambda _: nullcontext(stop_after(3)))
    assert dispatch(["simulate", "--method", "isoflop", "--bootstrap", "20", "--out", str(out)]) == 130
    said = capsys.readouterr()
    assert "3 of 200 studies" in said.out and "with this grid and this noise" in said.out
    assert "interrupted, 3 of 200 studies are counted" in said.err
    plain = json.loads(out.read_text())
    assert plain["studies"] == 3 and plain["asked"] == 200


def test_what_is_counted_before_the_end_equals_a_shorter_simulation():
    with pytest.raises(Interrupted) as stopped:
        simulate_studies(scenario(), studies=50, bootstrap=20, workers=1, listen=stop_after(5))
    whole = simulate_studies(scenario(), studies=5, bootstrap=20, workers=1)
    assert stopped.value.partial.rows == whole.rows


def test_ctrl_c_before_the_first_study_is_an_empty_table(capsys, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr("jaxscale.simulate.run._judge_all", stop)
    assert dispatch(["simulate", "--method", "isoflop"]) == 130
    assert "0 of 200 studies" in capsys.readouterr().out


def test_width_over_needed_is_one_for_the_narrowest_constant_interval():
    rng, given = np.random.default_rng(0), scenario()
    truth = true_values(given)["a"]
    estimates = truth + 0.01 * rng.standard_normal(4000)
    record = {"method": "isoflop", "resample": "auto", "quantity": "a", "truth": truth}
    records = [{"study": i, "estimate": e, "low": e - 0.0196, "high": e + 0.0196, **record}
               for i, e in enumerate(estimates.tolist())]  # fmt: skip
    assert rows_of(records, given)["a"]["width_ratio"] == pytest.approx(1.0, rel=0.03)
    assert rows_of(records[:10], given)["a"]["width_ratio"] is None
