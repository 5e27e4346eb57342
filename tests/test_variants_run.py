"""`jaxscale run` of a study with variants and tuning: whole, killed in its sweeps and in its grid, gone on with."""

import json
import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pytest
from test_main_job import curves, jaxscale, losses, start, wait_for
from tiny import write_study

from jaxscale.leases import SWEEPS
from jaxscale.sweep import read_plan

VARIANTS = """
    from jaxscale.config import Tuning, Variant
    study = replace(study, grid=replace(study.grid, budgets=(6e8,)), tuning=Tuning(rates=3, more=0, width=8),
                    mesh=replace(study.mesh, workers=1),
                    variants=(Variant("base"), Variant("free", ("recipe.weight_decay=.1",))))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("variants_run")
    write_study(folder, VARIANTS.strip())
    return folder


@pytest.fixture(scope="module")
def finished(place: Path) -> Path:
    """The study, run whole and undisturbed."""
    code, out, err = jaxscale("run", "tiny.py", cwd=place)
    assert code == 0, err
    assert "10 runs as 10 rows of run and variant, 0 refused" in out and "best losses" in out
    return place / "runs" / "tiny"


def kill(process: subprocess.Popen[str]) -> None:
    """Parent and workers at once, as a machine that goes away; the workers are in sessions of their own."""
    threads = Path(f"/proc/{process.pid}/task").glob("*/children")
    workers = [int(pid) for file in threads for pid in file.read_text().split()]
    os.killpg(process.pid, signal.SIGKILL)
    for pid in workers:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.communicate()
    assert workers


def test_run_tunes_trains_and_leaves_every_file_of_the_contract(finished: Path) -> None:
    plain = json.loads((finished / "variants.json").read_text())
    assert plain["schema"] == "jaxscale.variants/1"
    compared = json.loads((finished / "compare.json").read_text())
    assert compared["verdict"] == "incomparable" and "base: 1 budget" in compared["words"]
    assert (finished / "report.html").read_text().count("Variants") >= 1
    for row in plain["variants"]:
        sweep = json.loads((finished / row["tuning"]["sweep"]).read_text())
        trials = {run["lr"]: run["loss"] for run in sweep["rows"]}
        assert row["tuning"]["trials"] == len(trials) == 3
        best = min(trials, key=lambda lr: trials[lr])
        assert row["tuning"]["status"] == ("ok" if best == sorted(trials)[1] else "edge")
        assert abs(row["tuning"]["best_lr"] / best - 1) < 0.42  # at most half a step away
    frame = pd.read_csv(finished / "observations.csv")
    assert frame.groupby("variant").size().to_dict() == {"base": 5, "free": 5}
    assert not read_plan(finished).untuned and len(losses(finished / SWEEPS)) == 6


def test_killed_in_the_sweeps_and_in_the_grid_it_goes_on_to_the_same_bits(place: Path, finished: Path) -> None:
    out = place / "runs" / "killed"
    words = ("run", "tiny.py", "--out", str(out), "--mesh.checkpoint-every-s", "0.2")
    for folder, ended in ((out / SWEEPS, 1), (out, 2)):
        process = start(*words, cwd=place)
        wait_for(lambda f=folder, n=ended: len(list(f.glob("*/result.json"))) >= n, process)
        assert process.poll() is None, "it ended before it could be killed"
        kill(process)
    code, _, err = jaxscale(*words, cwd=place)
    assert code == 0, err
    for part in (SWEEPS, "."):
        assert losses(out / part) == losses(finished / part) and curves(out / part) == curves(finished / part)
    assert {c.run_id for c in read_plan(out).cells} == {c.run_id for c in read_plan(finished).cells}
    assert (out / "variants.json").read_text() == (finished / "variants.json").read_text()


def test_every_verb_of_a_folder_takes_a_study_of_variants(place: Path, finished: Path) -> None:
    folder = str(finished)
    code, out, _ = jaxscale("status", folder, "--out", "status.json", cwd=place)
    assert code == 0 and "free" in out
    rows = json.loads((place / "status.json").read_text())["rows"]
    assert {tuple(row["variants"]) for row in rows} == {("base",), ("free",)}
    code, _, err = jaxscale("fit", folder, cwd=place)
    assert code == 2 and "--where \"variant == 'base'\"" in err
    code, _, err = jaxscale("mup", "audit", folder, cwd=place)
    assert code == 2 and "has the variants base, free" in err
    code, out, _ = jaxscale("train", folder, "--all", cwd=place)
    assert code == 0 and "all 10 cells have ended" in out
    code, _, err = jaxscale("plan", "tiny.py", "--tuning.rates", "5", cwd=place)
    assert code == 2 and "tuning.rates was 3, now 5" in err
