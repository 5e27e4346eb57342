"""The main job as a person meets it: one command, whole, interrupted, killed, repeated, misused."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from tiny import write_study

from jaxscale.sweep import read_plan, read_status

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}


def start(*words: str, cwd: Path) -> subprocess.Popen[str]:
    """A `jaxscale` process in its own group, which SIGINT reaches also where the suite runs in the background."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # what is ignored here a child would ignore too
    return subprocess.Popen(
        [sys.executable, "-m", "jaxscale", *words], cwd=cwd, env=ENVIRONMENT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


def jaxscale(*words: str, cwd: Path) -> tuple[int, str, str]:
    process = start(*words, cwd=cwd)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def losses(folder: Path) -> dict[str, float]:
    return {s.cell.run_id: s.loss for s in read_status(folder, read_plan(folder).cells) if s.state == "done"}


def curves(folder: Path) -> dict[str, list[float]]:
    return {
        file.parent.name: [json.loads(line)["loss"] for line in file.read_text().splitlines()]
        for file in folder.glob("*/metrics.jsonl")
    }


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("main_job")
    write_study(folder)
    return folder


@pytest.fixture(scope="module")
def finished(place: Path) -> Path:
    """The study, run whole and undisturbed."""
    code, out, err = jaxscale("run", "tiny.py", cwd=place)
    assert code == 0, err
    assert "10 runs, 0 refused" in out and "report:" in out
    return place / "runs" / "tiny"


def test_main_job_leaves_every_file_of_the_contract(finished: Path) -> None:
    for name in ("plan.json", "observations.csv", "fits/isoflop.json", "fits/parametric.json", "fits/envelope.json",
                 "fits/all.json", "forecast.json", "report.html"):  # fmt: skip
        assert (finished / name).stat().st_size > 0, name
    for method in ("isoflop", "parametric", "envelope"):
        plain = json.loads((finished / f"fits/{method}.json").read_text())
        assert (plain["schema"], plain["method"]) == ("jaxscale.fit/1", method)
        assert plain["exponents"] is not None or plain["diagnostics"]["verdict"]
    assert list((finished / "figures").glob("*.svg")) and list((finished / "figures").glob("*.png"))
    assert {s.state for s in read_status(finished, read_plan(finished).cells)} == {"done"}


def test_the_forecast_holds_every_answer_the_declared_one_and_the_average(finished: Path) -> None:
    """One row a method with an answer and one of their average at 10x and 100x, from the same fits as fits/all.json."""
    fits = json.loads((finished / "fits/all.json").read_text())
    assert fits["schema"] == "jaxscale.fits/1" and "agreement" in fits
    answered = [fit["method"] for fit in fits["fits"] if "verdict" not in fit["diagnostics"]]
    counted = [fit["method"] for fit, weight in zip(fits["fits"], fits["weights"], strict=True) if weight]
    forecast = json.loads((finished / "forecast.json").read_text())
    assert forecast["schema"] == "jaxscale.forecast/1" and forecast["rule"] == "exact"
    methods = answered + ["average"] * (len(counted) > 1)
    assert [row["method"] for row in forecast["rows"]] == 2 * methods
    for row in forecast["rows"]:
        assert row["declared"] is (row["method"] == "isoflop")
        assert {"N_opt", "D_opt", "loss", "loss_future_run"} <= row["intervals"].keys()
    assert forecast["rows"][-1]["C"] == pytest.approx(10 * forecast["rows"][0]["C"])


def test_the_answer_on_stdout_is_the_answer_on_disk(place: Path, finished: Path) -> None:
    """The table of a and b, what the approaches say of each other, and the forecast, in that order."""
    code, out, _ = jaxscale("report", str(finished), "--out", str(place / "again"), cwd=place)
    fits = json.loads((finished / "fits/all.json").read_text())
    assert code == 0 and (place / "again" / "report.html").exists()
    assert out.index("N_opt ~ C^a, D_opt ~ C^b") < out.index("forecast, C counted as the study's exact count")
    for fit in fits["fits"]:
        shown = fit["diagnostics"].get("verdict") or f"{fit['exponents']['N']['value']:.4g}"
        assert shown in out
    for pair in (fits["agreement"] or {"pairs": []})["pairs"]:
        assert f"{' and '.join(pair['methods'])} {pair['verdict']}" in out


def test_the_declared_law_cannot_change_once_runs_have_begun(place: Path, finished: Path) -> None:
    code, _, err = jaxscale("run", "tiny.py", "--declared", "parametric", cwd=place)
    assert code == 2 and "declared was 'isoflop', now 'parametric'" in err
    code, _, err = jaxscale("report", str(finished), "--declared", "parametric", cwd=place)
    assert code == 2 and "declares its law before its runs" in err


def test_observations_hold_what_was_planned_and_counted(finished: Path) -> None:
    frame = pd.read_csv(finished / "observations.csv")
    assert len(frame) == 10
    assert ((frame.C / frame.budget - 1).abs() < 0.01).all()
    assert (frame.N_non_embedding < frame.N).all()
    assert frame.loss.between(0.3, 5.5).all()


def test_second_run_trains_nothing_and_rebuilds_the_report(place: Path, finished: Path) -> None:
    before = {f: f.stat().st_mtime_ns for f in finished.glob("*/result.json")}
    (finished / "report.html").unlink()
    code, out, _ = jaxscale("run", "tiny.py", cwd=place)
    assert code == 0 and "all 10 cells have ended" in out
    assert {f: f.stat().st_mtime_ns for f in before} == before
    assert (finished / "report.html").exists()


def wait_for(done: object, process: subprocess.Popen[str], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not done() and process.poll() is None and time.monotonic() < deadline:  # type: ignore[operator]
        time.sleep(0.05)


def planned(place: Path, name: str, *overrides: str) -> Path:
    """A fresh study folder with a plan."""
    out = place / "runs" / name
    code, _, err = jaxscale("plan", "tiny.py", "--out", str(out), *overrides, cwd=place)
    assert code == 0, err
    return out


def test_killed_at_any_point_it_goes_on_to_the_same_bits(place: Path, finished: Path) -> None:
    """kill -9 of parent and workers, twice: while the first cell trains, and after some have ended."""
    out = planned(place, "killed", "--mesh.checkpoint-every-s", "0.2")
    for ended in (0, 3):
        process = start("train", str(out), "--all", cwd=place)
        wait_for(
            lambda n=ended: any(out.glob("*/metrics.jsonl")) and len(list(out.glob("*/result.json"))) >= n, process
        )
        subprocess.run(["pkill", "-9", "-f", f"jaxscale.train.worker {out}"], check=False)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    code, _, err = jaxscale("train", str(out), "--all", cwd=place)
    assert code == 0, err
    assert losses(out) == losses(finished) and len(losses(out)) == 10
    assert curves(out) == curves(finished)


def test_dead_worker_is_replaced_and_its_cell_put_back(place: Path, finished: Path) -> None:
    out = planned(place, "bereft")
    process = start("train", str(out), "--all", cwd=place)
    wait_for(lambda: any(out.glob("*/metrics.jsonl")), process)
    subprocess.run(["pkill", "-9", "-n", "-f", f"jaxscale.train.worker {out}"], check=True)
    text, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "put back" in text
    assert losses(out) == losses(finished)


def test_one_cell_interrupted_saves_and_goes_on(place: Path, finished: Path) -> None:
    out = planned(place, "one")
    run_id = read_plan(out).cells[0].run_id
    process = start("train", str(out), "--run", run_id, cwd=place)
    wait_for(lambda: (out / run_id / "metrics.jsonl").exists(), process)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=120)
    if process.returncode != 0:  # it may have ended first
        assert process.returncode == 130 and "saved at step" in err
    assert jaxscale("train", str(out), "--run", run_id, cwd=place)[0] == 0
    assert run_id in losses(out)


def test_interrupted_run_saves_and_says_how_to_go_on(place: Path, finished: Path) -> None:
    out = planned(place, "interrupted")
    process = start("train", str(out), "--all", cwd=place)
    wait_for(lambda: any(out.glob("*/metrics.jsonl")), process)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130 and "the same command goes on where it was" in err
    assert "Traceback" not in err
    code, table, _ = jaxscale("status", str(out), cwd=place)
    assert code == 0 and "planned" in table
    assert jaxscale("train", str(out), "--all", cwd=place)[0] == 0
    assert losses(out) == losses(finished)


def test_what_a_worker_cannot_mend_ends_the_study_at_once_and_saved(place: Path) -> None:
    """A foreign run folder: its sentence, exit 2, no minute of waiting for a worker that has nothing to do."""
    out = planned(place, "foreign")
    ids = [cell.run_id for cell in read_plan(out).cells]
    (out / ids[0]).mkdir()
    (out / ids[0] / "spec.json").write_text("[]")
    started = time.monotonic()
    code, _, err = jaxscale("train", str(out), "--all", cwd=place)
    assert code == 2 and "Traceback" not in err and "spec.json: is no specification of a run" in err
    assert time.monotonic() - started < 50


def test_sigterm_saves_and_ends_with_75(place: Path, finished: Path) -> None:
    out = place / "runs" / "preempted"
    process = start("run", "tiny.py", "--out", str(out), cwd=place)
    wait_for(lambda: any(out.glob("*/metrics.jsonl")), process)
    process.terminate()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 75 and "the same command goes on there" in err and "Traceback" not in err
    assert jaxscale("run", "tiny.py", "--out", str(out), cwd=place)[0] == 0
    assert losses(out) == losses(finished)


def test_exclusion_rule_declared_after_the_runs_is_refused(place: Path, finished: Path) -> None:
    code, _, err = jaxscale("run", "tiny.py", "--grid.exclude-spike", "0.01", cwd=place)
    assert code == 2 and "grid.exclude_spike was None, now 0.01" in err


def test_changed_plan_under_started_runs_is_refused_by_name(place: Path, finished: Path) -> None:
    code, _, err = jaxscale("run", "tiny.py", "--recipe.lr", "0.01", cwd=place)
    assert code == 2 and "recipe.lr was 0.02, now 0.01" in err
    assert len(losses(finished)) == 10


def test_plan_may_change_in_what_does_not_change_the_runs(place: Path, finished: Path) -> None:
    code, _, err = jaxscale("run", "tiny.py", "--bootstrap", "20", "--forecast-flops", "1e11", cwd=place)
    assert code == 0, err
    assert json.loads((finished / "forecast.json").read_text())["rows"][0]["C"] == 1e11


def test_diverged_cell_never_becomes_evidence(place: Path, finished: Path) -> None:
    """Every other cell of a copy ends; the one marked diverged is refused with its reason."""
    import shutil

    out = place / "runs" / "diverged"
    shutil.copytree(finished, out)
    file = next(out.glob("*/result.json"))
    result = json.loads(file.read_text()) | {"state": "diverged", "loss": None, "reason": "training loss nan at step 7"}
    del result["sha256"]
    file.write_text(json.dumps(result))
    code, text, _ = jaxscale("collect", str(out), cwd=place)
    assert code == 0 and "9 runs, 1 refused" in text
    assert f"{file.parent.name}: diverged: training loss nan at step 7" in text
    assert file.parent.name not in (out / "observations.csv").read_text()


def test_runs_of_another_text_are_not_mixed_in(place: Path, finished: Path) -> None:
    import shutil

    out = place / "runs" / "mixed"
    shutil.copytree(finished, out)
    file = next(out.glob("*/result.json"))
    result = json.loads(file.read_text())
    result["provenance"]["data_sha256"] = "0" * 64
    del result["sha256"]
    file.write_text(json.dumps(result))
    code, _, err = jaxscale("collect", str(out), cwd=place)
    assert code == 2 and "the runs differ in data_sha256" in err and "--allow-mixed" in err
    assert jaxscale("collect", str(out), "--allow-mixed", cwd=place)[0] == 0


def test_reset_puts_a_cell_back(place: Path, finished: Path) -> None:
    import shutil

    out = place / "runs" / "reset"
    shutil.copytree(finished, out)
    run_id = next(out.glob("*/result.json")).parent.name
    code, text, _ = jaxscale("reset", str(out), run_id[:7], cwd=place)
    assert code == 0 and f"{run_id}: planned" in text
    code, _, err = jaxscale("train", str(out), "--run", run_id, cwd=place)
    assert code == 0, err
    assert len(losses(out)) == 10


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["run"], 2, "no study file given"),
        (["run", "absent.py"], 2, "study 'absent.py': no such file"),
        (["plan", "tiny.py", "--recipe.warmup-fracton", "1"], 2, "--recipe.warmup-fraction"),
        (["plan", "tiny.py", "--recipe.lr", "fast"], 2, "recipe.lr"),
        (["plan", "tiny.py", "--grid.budgets", "1e5", "--out", "x"], 2, "cannot be bracketed"),
        (["plan", "tiny.py", "--data.files", "nothing/*.txt", "--out", "x"], 2, "nothing/"),
        (["train", "runs/tiny"], 2, "say which cells"),
        (["train", "runs/tiny", "--index", "99"], 2, "0 to 9"),
        (["train", "runs/tiny", "--run", "zzz"], 2, "no cell of study"),
        (["status", "nowhere"], 2, "no plan.json there"),
        (["colect", "runs/tiny"], 2, "did you mean 'collect'"),
        (["run", "tiny.py", "--hardware", "abacus"], 2, "hardware: 'abacus' is not known"),
    ],
)
def test_misuse_gets_one_sentence_and_its_code(
    place: Path, finished: Path, words: list[str], code: int, said: str
) -> None:
    returned, _, err = jaxscale(*words, cwd=place)
    assert returned == code
    assert said in err and "Traceback" not in err


def test_broken_study_file_says_what_is_wrong(place: Path) -> None:
    (place / "broken.py").write_text("def get_study():\n    return 1 / 0\n")
    code, _, err = jaxscale("plan", "broken.py", cwd=place)
    assert code == 2 and "ZeroDivisionError" in err and "Traceback" not in err


def flip_bit(file: Path, place: float) -> None:
    """Flip the lowest bit of the byte at this share of the file."""
    content = bytearray(file.read_bytes())
    content[int(place * len(content))] ^= 1
    file.write_bytes(content)


def test_damaged_files_are_no_evidence_and_are_made_again_to_the_same_bits(place: Path, finished: Path) -> None:
    """A result cut short, a bit of a loss in another, a bit in a finished curve, and one in a specification."""
    import shutil

    out = place / "runs" / "damaged"
    shutil.copytree(finished, out)
    one, two, three, four = sorted(file.parent for file in out.glob("*/result.json"))[:4]
    (one / "result.json").write_text((one / "result.json").read_text()[:40])
    text = (two / "result.json").read_text()
    flip_bit(two / "result.json", (text.index('"loss": ') + 11) / len(text))
    flip_bit(three / "metrics.jsonl", 0.5)
    flip_bit(four / "spec.json", 0.5)
    code, text, _ = jaxscale("collect", str(out), cwd=place)
    assert code == 0 and "7 runs, 3 refused" in text
    for said in ("not valid JSON", "damaged, or edited by hand", "not the curve that the result was written with"):
        assert said in text
    code, _, err = jaxscale("train", str(out), "--all", cwd=place)
    assert code == 0, err
    assert losses(out) == losses(finished) and curves(out) == curves(finished)
    assert [len(list((folder / "damaged").glob("*"))) for folder in (one, two, three)] == [1, 1, 1]
    told = json.loads((three / "result.json").read_text())["provenance"]
    assert told["damaged"] and "the curve that leads to it is damaged" in told["skipped_checkpoints"][0]
