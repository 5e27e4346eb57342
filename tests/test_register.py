"""The register: every value of a record is under a hash, and scores are those of the closed forms."""

import json
import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from planted import LAW, draw_grid
from test_register_chain import broken, write_chain

from jaxscale.cli import dispatch
from jaxscale.errors import MisuseError, VerdictError
from jaxscale.fit import Fits, fit_isoflop, fit_parametric
from jaxscale.forecast import average_answer, forecast_optimum
from jaxscale.laws import Chinchilla, FlopRule, LossLaw
from jaxscale.register.chain import append_records, canonical, hash_record, read_register
from jaxscale.register.entry import enter_forecast, frontier_of
from jaxscale.register.measure import Measured, Run, gather_measured, parse_measured
from jaxscale.register.score import score_forecast
from jaxscale.report.register import draw_register, write_register_figure
from jaxscale.source import read_observations

TARGET = 2.7e20
"""Ten times the largest budget of the planted grid."""


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A noisy study of the planted law on disk, its two fits, and their forecast at ten times its budgets."""
    folder = tmp_path_factory.mktemp("planted")
    draw_grid(noise=0.002, seed=3).to_csv(folder / "grid.csv", index=False)
    obs = read_observations(folder / "grid.csv")
    fits = Fits((fit_isoflop(obs, bootstrap=200), fit_parametric(obs, bootstrap=200, profile=False)), (0.5, 0.5))
    forecast = forecast_optimum(fits, flops=[TARGET, 10 * TARGET])
    (folder / "forecast.json").write_text(forecast.to_json())
    return folder, fits, forecast


def test_every_value_of_every_record_is_under_a_hash(planted, tmp_path):
    """Changed in place it breaks its own record; hashed anew as well it breaks the next."""
    path = tmp_path / "f.jsonl"
    append_records(path, lambda _: enter_forecast(planted[0] / "forecast.json", path))
    write_chain(path, 1)
    lines = path.read_text().splitlines()
    leaves = 0
    for keys in list(walk(json.loads(lines[0]))):
        record = json.loads(lines[0])
        change(record, keys)
        path.write_text("\n".join([canonical(record), *lines[1:]]) + "\n")
        assert broken(path)[:1] == [0], keys
        if keys not in (["hash"], ["schema"]):
            record["hash"] = hash_record(record)
            path.write_text("\n".join([canonical(record), *lines[1:]]) + "\n")
            assert set(broken(path)) & {0, 1}, keys
        leaves += 1
    assert leaves > 60


def walk(value, keys=()):
    if isinstance(value, dict | list) and value:
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from walk(value[key], [*keys, key])
    else:
        yield list(keys)


def change(record, keys):
    *path, last = keys
    for key in path:
        record = record[key]
    value = record[last]
    record[last] = value * (1 + 1e-15) + 1e-15 if isinstance(value, float) else "changed" if value != "changed" else ""


def test_a_record_holds_the_forecast_its_evidence_and_the_baseline(planted, tmp_path):
    folder, fits, forecast = planted
    entry = enter_forecast(folder / "forecast.json", tmp_path / "f.jsonl", "a note")[0]
    main, others = forecast.rows[0], forecast.rows[1:3]
    assert (entry["C"], entry["note"], entry["answer"]["declared"]) == (TARGET, "a note", True)
    assert (entry["answer"]["N"], entry["answer"]["loss"]) == (main["N_opt"], main["loss"])
    assert entry["answer"]["intervals"] == main["intervals"]
    assert [one["method"] for one in entry["beside"]] == [row["method"] for row in others] == ["parametric", "average"]
    assert entry["evidence"]["sha256"] == fits.fits[0].source["sha256"] and entry["evidence"]["rows_used"] == 28
    assert entry["evidence"]["largest_C"] == pytest.approx(2.7e19) and entry["measured_before"] == 0
    grid = draw_grid(noise=0.002, seed=3)
    low = grid.loc[grid.groupby("budget")["loss"].idxmin()]
    slope, level = np.polyfit(np.log(low["C"]), np.log(low["loss"]), 1)
    assert entry["baseline"]["loss"] == pytest.approx(np.exp(level + slope * np.log(TARGET)), rel=1e-9)
    for one, answer in zip([entry["answer"], *entry["beside"]], [*fits.fits, average_answer(fits.fits)], strict=True):
        for C in (1e19, TARGET, 1e22):
            assert frontier_of(one["frontier"]).loss(C) == pytest.approx(answer.frontier().loss(C), rel=1e-12)


def test_a_forecast_that_lacks_anything_is_refused_or_entered_never_a_traceback(planted, tmp_path):
    plain, path = json.loads(planted[2].to_json()), tmp_path / "f.json"
    refused = 0
    for keys in [keys for keys in parts(plain) if keys[-1] != "draws"]:
        lame = json.loads(json.dumps(plain))
        *way, last = keys
        owner = lame
        for key in way:
            owner = owner[key]
        owner.pop(last)
        path.write_text(json.dumps(lame))
        try:
            canonical(enter_forecast(path, tmp_path / "r"))
        except (MisuseError, VerdictError):
            refused += 1
    assert refused > 15


def parts(plain):
    """Paths of all that stands in the first row, in the first fit and at the top."""
    yield from ([key] for key in plain)
    yield from (["rows", 0, key] for key in plain["rows"][0])
    yield from (["rows", 0, "intervals", key] for key in plain["rows"][0]["intervals"])
    fit = plain["fit"]["fits"][0]
    yield from (["fit", "fits", 0, key] for key in fit)
    yield from (["fit", "fits", 0, name, key] for name in ("source", "diagnostics") for key in fit[name])


def test_a_baseline_is_only_read_off_the_evidence_that_the_fit_saw(planted, tmp_path):
    folder, _, forecast = planted
    changed = json.loads(forecast.to_json())
    for fit in changed["fit"]["fits"]:
        fit["source"]["sha256"] = "0" * 64
    (tmp_path / "f.json").write_text(json.dumps(changed))
    assert "no longer what the fit saw" in enter_forecast(tmp_path / "f.json", tmp_path / "r")[0]["baseline"]["reason"]
    for fit in changed["fit"]["fits"]:
        fit["source"]["path"] = str(folder / "gone.csv")
    (tmp_path / "f.json").write_text(json.dumps(changed))
    assert "no such file" in enter_forecast(tmp_path / "f.json", tmp_path / "r")[0]["baseline"]["reason"]


LAWS = {
    "compute": ({"law": "compute", "params": {"E": 1.0, "A": 40.0, "alpha": 0.1}}, LossLaw(1.0, 40.0, 0.1)),
    "chinchilla": (
        {"law": "chinchilla", "params": vars(LAW), "k": 2.5, "p": 1.05}, LAW.frontier(FlopRule(2.5, 1.05)),
    ),
}  # fmt: skip


def make_forecast(part, law, C=1e13, **changes):
    """A registered forecast of a planted frontier, with intervals of 2% and 4% about it."""
    loss = float(law.loss(C))
    spans = {"loss": 0.02, "loss_future_run": 0.04}
    intervals = {name: [loss * math.exp(-s), loss * math.exp(s)] for name, s in spans.items()}
    answer = {"method": "isoflop", "law": "power", "declared": True, "N": 2e5, "D": 8e6, "loss": loss,
              "intervals": {**intervals, "N_opt": [1.6e5, 2.5e5], "D_opt": [6e6, 1e7]}, "frontier": [part]}  # fmt: skip
    return {"kind": "forecast", "number": 0, "hash": "f" * 64, "time": "2026-11-22T12:00:00+00:00", "C": C,
            "confidence": 0.9, "answer": answer, "beside": [], "size": None, "evidence": {"sha256": "e"},
            "baseline": {"loss": loss * 1.03, "N_opt": 3e5}, **changes}  # fmt: skip


def measure(*runs, source="target", **changes):
    rows = [{"run_id": str(i), "N": 2e5, "D": 8e6, "C": 1e13, "seed": 0, "began": "2026-11-22T13:00:00+00:00",
             "identity": f"{i} {run}", **run} for i, run in enumerate(runs)]  # fmt: skip
    return [Measured(source, "s", tuple(Run(**row) for row in rows), **changes)]


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("factor", [0.5, 0.97, 1.0, 1.15, 2.0])
def test_a_score_is_the_closed_form(name, factor):
    part, law = LAWS[name]
    forecast = make_forecast(part, law)
    predicted, measured = float(law.loss(1e13)), float(law.loss(factor * 1e13))
    (row,) = score_forecast(forecast, measure({"loss": measured})).content["rows"]
    assert row["error"] == pytest.approx(predicted / measured - 1, abs=1e-12)
    assert row["compute_error"] == pytest.approx(factor, rel=1e-9)
    miss = abs(math.log(measured / predicted))
    assert (row["inside"], row["inside_mean"]) == (miss <= 0.04, miss <= 0.02)
    assert row["interval_score"] == pytest.approx(0.08 + 2 / 0.1 * max(miss - 0.04, 0), rel=1e-9)
    assert row["skill"] == pytest.approx(1 - miss / abs(math.log(1.03 * predicted / measured)), rel=1e-9)


def test_five_sizes_at_the_target_give_its_minimum_and_the_size_that_was_followed():
    """A planted valley whose bottom lies 10% above the forecast's N."""
    part, law = LAWS["compute"]
    N = 2e5 * np.array([0.5, 0.7, 1.0, 1.4, 2.0])
    losses = 3.0 * (1 + 0.01 * np.log(N / 2.2e5) ** 2)
    runs = [{"N": n, "D": 1e13 / 6 / n, "loss": loss} for n, loss in zip(N, losses, strict=True)]
    content = score_forecast(make_forecast(part, law), measure(*runs)).content
    rows = {row["quantity"]: row for row in content["rows"]}
    assert content["measured_by"] == "the interpolated minimum of 5 sizes"
    assert rows["loss"]["measured"] == pytest.approx(3.0, rel=1e-4)
    assert rows["N_opt"]["measured"] == pytest.approx(2.2e5, rel=0.02) and rows["N_opt"]["inside"]
    assert rows["loss_at_size"]["measured"] == losses[2] and rows["N_opt"]["compute_error"] is None
    assert rows["N_opt"]["skill"] == pytest.approx(1 - math.log(1.1) / math.log(3 / 2.2), abs=0.05)


def test_the_interval_of_a_measured_minimum_covers_the_planted_one_as_often_as_it_says():
    part, law = LAWS["compute"]
    forecast, rng, inside = make_forecast(part, law, noise=0.003), np.random.default_rng(1), []
    N = 2e5 * np.array([0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8])
    for _ in range(40):
        losses = 3.0 * (1 + 0.03 * np.log(N / 2e5) ** 2) * np.exp(0.003 * rng.standard_normal(len(N)))
        runs = [{"N": n, "D": 1e13 / 6 / n, "loss": loss} for n, loss in zip(N, losses, strict=True)]
        rows = {row["quantity"]: row for row in score_forecast(forecast, measure(*runs)).content["rows"]}
        low, high = rows["N_opt"]["measured_interval"]
        inside.append(low <= 2e5 <= high)
    assert abs(np.mean(inside) - 0.9) < 3 * np.sqrt(0.9 * 0.1 / 40)


def test_seeds_of_the_size_are_averaged_and_a_lone_size_far_off_measures_nothing():
    forecast = make_forecast(*LAWS["compute"])
    (row,) = score_forecast(forecast, measure({"loss": 3.0}, {"loss": 3.2, "seed": 1})).content["rows"]
    assert row["measured"] == pytest.approx(3.1)
    far = score_forecast(forecast, measure({"loss": 3.0, "N": 5e5}))
    assert far.content is None and "2.5x the forecast's N" in far.reason
    by_two = score_forecast(forecast, measure({"loss": 3.1}, {"loss": 3.0, "N": 5e5})).content
    assert [row["quantity"] for row in by_two["rows"]] == ["loss_at_size"] and by_two["rows"][0]["measured"] == 3.1


def test_a_run_that_began_before_its_forecast_is_refused_and_an_undated_one_flagged():
    forecast = make_forecast(*LAWS["compute"])
    before, after = ({"loss": 3.0, "began": f"2026-11-22T{hour}"} for hour in ("11:59:59", "12:00:01"))
    refused = score_forecast(forecast, measure(before))
    assert refused.content is None and "before it was registered" in refused.reason
    both = score_forecast(forecast, measure(before, {**after, "loss": 3.3}))
    assert both.content["rows"][0]["measured"] == 3.3 and "1 of 2 runs" in both.told[0]
    assert (both.content["began"], len(both.content["runs_before"])) == ("after", 1)
    undated = score_forecast(forecast, measure({"loss": 3.0, "began": None}))
    assert undated.content["began"] == "unknown" and "do not say when they began" in undated.told[0]


def test_what_does_not_measure_the_target_is_told_and_not_scored():
    forecast = make_forecast(*LAWS["compute"], evidence={"sha256": "e", "data_sha256": "text"})
    off = score_forecast(forecast, measure({"loss": 3.0, "C": 1.03e13}))
    assert off.content is None and "the nearest is at 1.03e13 FLOPs, 1.03x" in off.reason
    assert score_forecast(forecast, measure({"loss": 3.0, "C": 1.03e13}), tolerance=0.05).content
    other = score_forecast(forecast, measure({"loss": 3.0}, data_sha256="another"))
    assert other.content is None and "another text" in other.told[0]
    wanted = {"count": "N_non_embedding", "flops_rule": "given"}
    forecast["evidence"]["conventions"] = wanted
    total = score_forecast(forecast, measure({"loss": 3.0}, conventions={**wanted, "count": "N"}))
    assert total.content is None and "count N_non_embedding" in total.told[0]
    assert score_forecast(forecast, measure({"loss": 3.0}, conventions=wanted)).content
    (own,) = measure({"loss": 3.0})
    itself = score_forecast(forecast, [replace(own, sha256="e")])
    assert itself.content is None and "own evidence" in itself.told[0]


def test_the_same_runs_are_scored_once():
    forecast = make_forecast(*LAWS["compute"])
    runs = measure({"loss": 3.0})
    first = score_forecast(forecast, runs).content
    assert "very same runs" in score_forecast(forecast, runs, [first]).reason
    assert score_forecast(forecast, measure({"loss": 3.0}, {"loss": 3.1}), [first]).content


def test_a_planted_law_is_forecast_registered_measured_and_scored(planted, tmp_path, capsys):
    """The whole way by its verbs; the target's runs are drawn from the law that the grid was drawn from."""
    folder, path = planted[0], tmp_path / "forecasts.jsonl"
    where = ["--register", str(path)]
    assert dispatch(["register", "add", str(folder / "forecast.json"), "--note", "before", *where]) == 0
    assert "to be beaten" in capsys.readouterr().out
    best, rng = LAW.optimum(TARGET), np.random.default_rng(0)
    lines = ["run_id,N,D,C,loss"]
    target = tmp_path / "target"
    for i, N in enumerate(best.N * np.array([0.5, 0.7, 1.0, 1.4, 2.0])):
        loss = LAW.loss(N, TARGET / 6 / N) * np.exp(0.002 * rng.standard_normal())
        lines.append(f"run{i},{N},{TARGET / 6 / N},{TARGET},{loss}")
        own = target / f"run{i}"
        own.mkdir(parents=True)
        (own / "result.json").write_text(json.dumps({"loss": loss}))
        began = (datetime.now(UTC) + timedelta(seconds=60)).timestamp()
        (own / "attempts.jsonl").write_text(json.dumps({"time": began, "step": 0}) + "\n")
    (target / "observations.csv").write_text("\n".join(lines) + "\n")
    out = tmp_path / "scores.json"
    assert dispatch(["register", "score", str(target / "observations.csv"), "--out", str(out), *where]) == 0
    assert "forecast 1, 2.7e21 FLOPs: not scored: no run within 2" in capsys.readouterr().out
    (score,) = json.loads(out.read_text())["rows"]
    rows = {(row["method"], row["quantity"]): row for row in score["rows"]}
    assert score["began"] == "after" and len(score["runs"]) == 5
    for method in ("isoflop", "parametric", "average"):
        assert abs(rows[method, "loss"]["error"]) < 0.01 and rows[method, "loss"]["inside"]
        low, high = rows[method, "N_opt"][
            "measured_interval"
        ]  # read off five noisy runs, the bottom itself is in doubt
        assert low < LAW.optimum(TARGET).N < high and low < rows[method, "N_opt"]["interval"][1]
    assert rows["parametric", "loss"]["skill"] > 0.5  # E is 1.8: a pure power of compute must fall too low
    assert rows["isoflop", "loss"]["baseline_error"] < 0
    assert dispatch(["register", "score", str(target / "observations.csv"), *where]) == 1
    assert "very same runs" in capsys.readouterr().out
    assert dispatch(["register", "list", *where]) == 0 and dispatch(["register", "check", *where]) == 0
    assert "2 forecasts, 1 scored" in capsys.readouterr().out


def test_a_forecast_is_registered_once_unless_its_content_differs(planted, tmp_path, capsys):
    folder, path = planted[0], tmp_path / "f.jsonl"
    words = ["register", "add", str(folder / "forecast.json"), "--register", str(path)]
    assert dispatch(words) == 0 and dispatch([*words, "--note", "again"]) == 2
    assert "already" in capsys.readouterr().err and len(read_register(path).records) == 2
    plain = json.loads((folder / "forecast.json").read_text())
    plain["rows"][0]["loss"] *= 1.001
    other = tmp_path / "other.json"
    other.write_text(json.dumps(plain))
    assert dispatch(["register", "add", str(other), "--register", str(path)]) == 0
    told = capsys.readouterr().out
    assert "record 0 forecast the same C before" in told and "this very forecast is record 1 already" in told
    assert len(read_register(path).records) == 3


def test_misuse_is_one_sentence(planted, tmp_path, capsys):
    folder, path = planted[0], tmp_path / "f.jsonl"
    where = ["--register", str(path)]
    by_loss = tmp_path / "by_loss.json"
    by_loss.write_text(forecast_optimum(planted[1], loss=2.2).to_json())
    (tmp_path / "other.json").write_text('{"schema": "jaxscale.fit/1"}')
    asked = [
        (["add", str(tmp_path / "other.json")], "is no forecast"), (["add", str(by_loss)], "forecast with --flops"),
        (["add", str(tmp_path / "gone.json")], "no such file"), (["check"], "no such register"),
        (["score", "--measured", "C=1e13"], "no such register"), (["score"], "nothing to score by"),
        (["burn"], "is unknown"),
    ]  # fmt: skip
    for words, sentence in asked:
        assert dispatch(["register", *words, *(where if words != ["burn"] else [])]) == 2, words
        error = capsys.readouterr().err
        assert sentence in error and error.count("\n") == 1
    assert dispatch(["register", "add", str(folder / "forecast.json"), *where]) == 0
    for words, sentence in (["C=1e13", "loss=2"], "N is missing"), (["C=1", "loss=2", "N=0"], "above 0"):
        assert dispatch(["register", "score", *where, "--measured", *words]) == 2
        assert sentence in capsys.readouterr().err
    path.write_bytes(path.read_bytes().replace(b'"confidence":0.95', b'"confidence":0.99', 1))
    assert (
        dispatch(["register", "list", *where]) == 1 and "record 0: its content was changed" in capsys.readouterr().out
    )
    assert dispatch(["register", "add", str(folder / "forecast.json"), *where]) == 1
    for damage in (b'{"schema":"jaxscale.register/1","C":NaN', b'{"hash":1,"kind":[],"number":{},"previous":0,"schema":'
                   b'"jaxscale.register/1","time":3}'):  # fmt: skip
        path.write_bytes(damage + b"\n" + path.read_bytes())
        for verb in (["list"], ["check", "--head", "0" * 12]):
            assert dispatch(["register", *verb, *where]) == 1


def test_a_branch_began_when_its_trunk_did(tmp_path):
    rows = ["run_id,parent,N,D,C,loss"]
    for name, parent, time in ("trunk", "trunk", 1e9), ("branch", "trunk", 2e9), ("alone", "alone", 2e9):
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text("{}")
        (tmp_path / name / "attempts.jsonl").write_text(json.dumps({"time": time}) + "\n")
        rows.append(f"{name},{parent},1e5,1e7,6e12,2.0")
    (tmp_path / "observations.csv").write_text("\n".join(rows) + "\n")
    runs = gather_measured(tmp_path / "observations.csv", read_observations(tmp_path / "observations.csv")).runs
    assert [datetime.fromisoformat(run.began).timestamp() for run in runs] == [1e9, 1e9, 2e9]


def test_a_time_given_by_hand_is_utc_and_a_folder_without_runs_is_misuse(tmp_path):
    run = parse_measured(["C=1e13", "loss=2", "N=1e5", "D=1e7", "began=2026-11-22T14:00"]).runs[0]
    assert run.began == "2026-11-22T14:00:00+00:00" and run.D == 1e7
    with pytest.raises(MisuseError, match="no plan"):
        gather_measured(tmp_path)
    assert isinstance(LAW, Chinchilla)


def test_the_figure_has_a_panel_a_text_and_a_mark_a_record(tmp_path):
    """Two texts, one of them with rivals and a measurement: every forecast's loss is drawn, the measured one once."""

    def forecast(number, text, loss, method="isoflop"):
        answer = {"method": method, "law": "power", "declared": True, "N": 2e5, "D": 8e6, "loss": loss,
                  "intervals": {"loss_future_run": [loss - 0.03, loss + 0.03]},
                  "frontier": [{"law": "compute", "params": {"E": 0.5, "A": 40.0, "alpha": 0.12}}]}  # fmt: skip
        told = {"data_sha256": text, "largest_C": 1e12, "study": text}
        return {"kind": "forecast", "number": number, "hash": str(number), "C": 1e13, "confidence": 0.9,
                "answer": answer, "evidence": told}  # fmt: skip

    row = {"quantity": "loss", "measured": 1.55, "measured_interval": [1.54, 1.56]}
    score = {"kind": "score", "forecast": "0", "C": 1e13, "rows": [row, {**row, "quantity": "N_opt", "measured": 1e5}]}
    records = [forecast(0, "one", 1.6), forecast(1, "one", 1.5, "envelope"), forecast(2, "two", 1.7), score]
    spec = draw_register(records)
    assert [panel["title"] for panel in spec["hconcat"]] == ["one", "two"]
    drawn = [
        [r for layer in panel["layer"] for r in spec["datasets"][layer["data"]["name"]]] for panel in spec["hconcat"]
    ]
    assert [{r["number"] for r in rows if "number" in r} for rows in drawn] == [{0, 1}, {2}]
    assert [sum(r["loss"] == 1.55 for r in rows) for rows in drawn] == [2, 0]  # its span and its diamond
    written = write_register_figure(records, tmp_path / "figures" / "register")
    assert [path.suffix for path in written] == [".svg", ".png"] and all(path.stat().st_size > 5000 for path in written)
    assert draw_register([score]) is None and write_register_figure([], tmp_path / "none") == []
