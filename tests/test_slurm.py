"""A grid on a real Slurm of two nodes on the loopback: launched, preempted, killed, cancelled, finished, no cell twice.

Skips where Slurm or the script that starts one (shared/tools/slurm_up.sh) is absent, or without root, which it needs.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import SHARED
from tiny import write_study

from jaxscale.launch import Launch, SlurmSettings, read_launches, submit_launch
from jaxscale.launch.queue import ask_queue
from jaxscale.sweep import read_plan, read_status

ROOT = Path(__file__).parents[1]
PORTS = {"CTLD_PORT": "26417", "SLURMD_PORT0": "26420"}
"""Ports of this module's own cluster, so that another one on the machine stays as it is."""


def why_not() -> str:
    """Why there can be no Slurm here; empty where there can be one."""
    missing = [name for name in ("slurmctld", "slurmd", "munged", "sbatch") if shutil.which(name) is None]
    if missing:
        return f"{missing[0]} is absent (launch/test.sh installs slurm-wlm and munge where it may)"
    if not (SHARED / "tools" / "slurm_up.sh").is_file():
        return f"{SHARED / 'tools'} is absent (set JAXSCALE_SHARED)"
    return "" if os.geteuid() == 0 else "only root can start a Slurm of its own"


pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two nodes of two CPUs, partitions main and urgent (which preempts main with 5 s of notice)."""
    folder = tmp_path_factory.mktemp("slurm")
    tools = SHARED / "tools"
    before = dict(os.environ)
    os.environ.update(PORTS)
    up = subprocess.run(["bash", str(tools / "slurm_up.sh"), "2", "2", str(folder)], capture_output=True, text=True)
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    os.environ["PYTHONPATH"] = str(ROOT)
    try:
        assert up.returncode == 0, up.stdout + up.stderr
        yield folder
    finally:
        subprocess.run(["bash", str(tools / "slurm_down.sh"), str(folder)], check=False)
        os.environ.clear()
        os.environ.update(before)


def slurm(*words: str) -> str:
    """What one of Slurm's commands says."""
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


def wait(what: str, holds: Callable[[], object], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"not within {seconds:g} s: {what}; queue: {slurm('squeue', '--array')}"
        time.sleep(0.1)


def logs(folder: Path, launch: Launch) -> str:
    return "".join(file.read_text() for file in sorted((folder / "logs").glob(f"slurm-{launch.job_id}_*.out")))


def gone(launch: Launch) -> bool:
    return not ask_queue([launch.job_name])


# a study of five cells


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("grid")
    file = write_study(root, "study = replace(study, "
                             "grid=replace(study.grid, budgets=(8e9,), widths=(8, 12, 16, 24, 32)), "
                             "mesh=replace(study.mesh, checkpoint_every_s=1.0))")  # fmt: skip
    subprocess.run([sys.executable, "-m", "jaxscale", "plan", str(file), "--out", str(root / "run")],
                   env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, capture_output=True)  # fmt: skip
    return root / "run"


def test_a_grid_survives_a_preemption_and_no_cell_runs_twice(cluster: Path, study: Path) -> None:
    plan = read_plan(study)
    longest = max(cell.seconds for cell in plan.cells)
    settings = SlurmSettings(partition="main", cpus_per_task=2, task_minutes=longest / 60)
    _, launch = submit_launch(study, settings)
    assert launch is not None
    assert submit_launch(study, settings)[1] is None  # all of it is queued

    def trains() -> bool:
        return any(status.state == "running" and status.step for status in read_status(study, plan.cells))

    wait("a run has made a step", trains)
    urgent = slurm("sbatch", "--parsable", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null",
                   "--wrap=sleep 1")  # fmt: skip
    wait("the urgent job has ended", lambda: not slurm("squeue", "--noheader", f"--jobs={urgent}"))
    assert submit_launch(study, settings)[1] is None  # requeued is queued
    wait("the array has left the queue", lambda: gone(launch), 100)
    statuses = read_status(study, plan.cells)
    said = logs(study, launch)
    assert {status.state for status in statuses} == {"done"}, said
    assert said.count("code 75, back into the queue") >= 1, said
    assert any(status.result is not None and status.result.restarts for status in statuses), said
    for status in statuses:  # each step was made once: no second run of a cell, none beside another
        lines = (study / status.cell.run_id / "metrics.jsonl").read_text().splitlines()
        steps = [json.loads(line)["step"] for line in lines]
        assert steps == sorted(set(steps))
    assert not list((study / "launches").glob("*.deaths"))
    assert submit_launch(study, settings)[1] is None
    assert [one.number for one in read_launches(study)] == [1]


# what does not need a training run: a shell stands in for the work


def script_settings(folder: Path, body: str, **fields: object) -> SlurmSettings:
    file = folder / "body.sh"
    file.write_text(body)
    return SlurmSettings(command=("bash", str(file)), **{"cpus_per_task": 1, **fields})  # type: ignore[arg-type]


def make_folder(study: Path, folder: Path) -> Path:
    (folder / "run").mkdir(parents=True)
    shutil.copy(study / "plan.json", folder / "run")
    return folder / "run"


@pytest.fixture
def planned(study: Path, tmp_path: Path) -> Path:
    return make_folder(study, tmp_path)


@pytest.fixture(scope="module")
def dying(cluster: Path, study: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SlurmSettings]:
    """A launch whose work is killed each time."""
    folder = make_folder(study, tmp_path_factory.mktemp("dying"))
    settings = script_settings(folder, "kill -9 $$\n", max_deaths=2)
    submit_launch(folder, settings)
    return folder, settings


@pytest.fixture(scope="module")
def limited(cluster: Path, study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A launch whose work gets the notice of its time limit once, soon after it began."""
    folder = make_folder(study, tmp_path_factory.mktemp("limited"))
    body = ('[ "${SLURM_RESTART_COUNT:-0}" -gt 0 ] && { echo again; exit 0; }\n'
            "trap 'kill $pid; echo saved; exit 75' TERM\nsleep 100 & pid=$!; wait\n")  # fmt: skip
    submit_launch(folder, script_settings(folder, body, time_limit="00:01:00", notice_s=59))
    return folder


def test_deaths_are_requeued_up_to_their_cap(dying: tuple[Path, SlurmSettings], limited: Path) -> None:
    folder, settings = dying  # `limited` is asked for here so that both wait for their requeue together
    launch = read_launches(folder)[0]
    wait("the task has given up", lambda: gone(launch))
    assert [line.split()[0] for line in (folder / "launches" / "1-0.deaths").read_text().splitlines()] == ["137"] * 2
    said = logs(folder, launch)
    assert said.count("Killed") == 2
    assert "the end number 2 without a save (slurm.max_deaths); not tried again" in said
    _, again = submit_launch(folder, settings)  # a person may
    assert again is not None
    slurm("scancel", again.job_id)


def test_the_notice_of_the_time_limit_saves_and_requeues(limited: Path) -> None:
    launch = read_launches(limited)[0]
    wait("it was saved and has run again", lambda: gone(launch))
    said = logs(limited, launch)
    assert said.index("saved") < said.index("code 75, back into the queue") < said.index("again\n")


def test_a_cancelled_job_stays_cancelled_and_misuse_is_not_retried(cluster: Path, planned: Path) -> None:
    body = "trap 'kill $pid; exit 75' TERM\ntouch $2/began\nsleep 60 & pid=$!; wait\n"
    _, launch = submit_launch(planned, script_settings(planned, body))
    assert launch is not None
    wait("the task has begun", (planned / "began").exists)
    slurm("scancel", launch.job_id)
    wait("it is gone", lambda: gone(launch))
    _, second = submit_launch(planned, script_settings(planned, "echo misuse; exit 2\n"))
    assert second is not None
    wait("that is gone", lambda: gone(second))
    assert logs(planned, second).count("misuse") == 1


def test_processes_of_a_cell_share_an_address_and_number_themselves(cluster: Path, planned: Path) -> None:
    body = "echo said $SLURM_PROCID of $SLURM_NTASKS at $JAX_COORDINATOR_ADDRESS $JAX_COORDINATOR_BIND_ADDRESS\n"
    _, launch = submit_launch(planned, script_settings(planned, body, nodes_per_cell=2, ports=(15_000, 15_999)))
    assert launch is not None
    wait("it has ended", lambda: gone(launch))
    lines = sorted(line.split() for line in logs(planned, launch).splitlines() if line.startswith("said"))
    assert [line[:4] for line in lines] == [["said", "0", "of", "2"], ["said", "1", "of", "2"]]
    assert len({line[5] for line in lines} | {line[6] for line in lines}) == 1
    assert lines[0][5].rpartition(":")[0] in ("n1", "n2")
