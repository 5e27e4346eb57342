"""Submitted once: two launchers, a killed one, a queue that does not answer, a spend cap."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from fake_slurm import fake_slurm, queue_line
from tiny import make_study

from jaxscale.cli import dispatch
from jaxscale.errors import MisuseError, VerdictError
from jaxscale.launch import SlurmSettings, plan_launch, read_launches, read_task, submit_launch
from jaxscale.launch.costs import sum_chip_hours
from jaxscale.leases import Claims, hold_all
from jaxscale.plain import write_json
from jaxscale.plan import plan_isoflop
from jaxscale.runs import Plan
from jaxscale.sweep import fail_cell

ROOT = Path(__file__).parents[1]
SMALL = SlurmSettings(task_minutes=0.001)
"""Tasks of a cell or two."""


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return plan_isoflop(make_study(tmp_path_factory.mktemp("ledger")), train_tokens=1e5)


@pytest.fixture
def folder(tmp_path: Path, plan: Plan) -> Path:
    write_json(tmp_path / "run" / "plan.json", plan.to_json())
    return tmp_path / "run"


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return fake_slurm(tmp_path / "fake", monkeypatch)


def start(folder: Path) -> "subprocess.Popen[str]":
    """A launcher as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "jaxscale", "launch", str(folder), "--on", "slurm", "--slurm.task-minutes", "0.001"],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=folder, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip


def wait_for(file: Path) -> None:
    end = time.monotonic() + 30
    while not file.exists():
        assert time.monotonic() < end, f"{file} did not appear"
        time.sleep(0.02)


def all_ids(folder: Path) -> list[str]:
    return [run_id for launch in read_launches(folder) for task in launch.tasks for run_id in task]


def test_a_launch_is_on_record_with_its_job_tasks_and_settings(folder: Path, fake: Path, plan: Plan) -> None:
    proposal, launch = submit_launch(folder, SMALL)
    assert launch is not None
    assert [launch] == read_launches(folder)
    record = json.loads((folder / "launches" / "1.json").read_text())
    assert (record["schema"], record["state"], record["job_id"]) == ("jaxscale.launch/1", "submitted", "1")
    assert record["settings"]["task_minutes"] == 0.001
    assert sorted(all_ids(folder)) == sorted(cell.run_id for cell in plan.cells)
    assert (fake / "submitted").read_text() == f"{folder}/launches/1.sh\n"
    assert launch.job_name in (folder / "launches" / "1.sh").read_text()
    for i, task in enumerate(proposal.ids):
        assert read_task(folder, 1, i) == task


def test_what_is_queued_or_has_ended_is_not_submitted_again(folder: Path, fake: Path, plan: Plan) -> None:
    _, launch = submit_launch(folder, SMALL)
    assert launch is not None
    assert submit_launch(folder, SMALL)[1] is None
    (fake / "queue").write_text(queue_line(launch.job_name, 0) + queue_line(launch.job_name, 1, "PENDING", "Priority"))
    gone = [run_id for task in launch.tasks[2:] for run_id in task]
    fail_cell(folder, plan.find_cell(gone[0]), "planted")
    proposal, second = submit_launch(folder, SMALL)
    assert second is not None
    assert sorted(run_id for task in second.tasks for run_id in task) == sorted(gone[1:])
    assert (proposal.ended, proposal.busy) == (1, len(launch.tasks[0]) + len(launch.tasks[1]))


def test_a_cell_in_training_elsewhere_is_left_out_until_its_holder_is_silent(
    folder: Path, fake: Path, plan: Plan
) -> None:
    run_id = plan.cells[3].run_id
    with hold_all(Claims(folder), [(run_id, 0)]):
        proposal, _ = plan_launch(folder, SMALL)
        assert proposal.busy == 1
        assert sorted(i for task in proposal.ids for i in task) == sorted(
            c.run_id for c in plan.cells if c.run_id != run_id
        )
        file = next((folder / "leases" / run_id).glob("*.json"))
        os.utime(file, (time.time() - 100, time.time() - 100))
        assert plan_launch(folder, SMALL)[0].busy == 0


@pytest.mark.parametrize("verdict", ["squeue_fails", "strange answer"])
def test_a_queue_that_does_not_answer_is_no_empty_queue(folder: Path, fake: Path, verdict: str) -> None:
    _, launch = submit_launch(folder, SMALL)
    assert launch is not None
    if verdict == "squeue_fails":
        (fake / verdict).touch()
    else:
        (fake / "queue").write_text(f"{launch.job_name}|1|N/A|RUNNING|None\n")
    with pytest.raises(VerdictError, match="squeue"):
        submit_launch(folder, SMALL)
    assert len(read_launches(folder)) == 1
    assert len((fake / "submitted").read_text().splitlines()) == 1


def test_a_refusal_of_sbatch_is_told_and_the_next_launch_goes_on(folder: Path, fake: Path, plan: Plan) -> None:
    (fake / "sbatch_refuses").touch()
    with pytest.raises(VerdictError, match="Invalid partition; nothing was submitted"):
        submit_launch(folder, SMALL)
    assert read_launches(folder)[0].state == "refused"
    (fake / "sbatch_refuses").unlink()
    _, launch = submit_launch(folder, SMALL)
    assert launch is not None
    assert launch.number == 2
    assert sum(map(len, launch.tasks)) == len(plan)


def test_an_answer_of_sbatch_that_got_lost_is_found_in_the_queue(folder: Path, fake: Path) -> None:
    (fake / "sbatch_loses_answer").touch()
    _, launch = submit_launch(folder, SMALL)
    assert launch is not None
    assert (launch.state, launch.job_id) == ("submitted", "1")


def test_two_launchers_at_once_submit_each_cell_once(folder: Path, fake: Path, plan: Plan) -> None:
    (fake / "sbatch_sleeps").write_text("1")
    launchers = [start(folder), start(folder)]
    said = [launcher.communicate(timeout=60) for launcher in launchers]
    assert [launcher.returncode for launcher in launchers] == [0, 0], said
    assert sorted("nothing to launch" in out for out, _ in said) == [False, True]
    assert sorted(all_ids(folder)) == sorted(cell.run_id for cell in plan.cells)
    assert len((fake / "submitted").read_text().splitlines()) == 1


def test_a_launcher_killed_inside_sbatch_leaves_a_job_that_the_next_one_finds(
    folder: Path, fake: Path, plan: Plan
) -> None:
    (fake / "sbatch_sleeps").write_text("2")
    launcher = start(folder)
    wait_for(folder / "launches" / "1.sh")
    time.sleep(0.5)
    launcher.send_signal(signal.SIGKILL)
    launcher.communicate(timeout=30)
    assert read_launches(folder)[0].state == "submitting"
    _, second = submit_launch(folder, SMALL)  # waits for sbatch, which holds the lock, too
    assert second is None
    found = read_launches(folder)[0]
    assert (found.state, found.job_id) == ("submitted", "1")
    assert len((fake / "submitted").read_text().splitlines()) == 1


def test_a_launcher_killed_before_sbatch_leaves_its_cells_to_the_next_one(folder: Path, fake: Path, plan: Plan) -> None:
    _, launch = submit_launch(folder, SMALL)
    assert launch is not None
    (fake / "queue").unlink()
    write_json(folder / "launches" / "1.json", replace(launch, state="submitting", job_id="").to_json())
    _, second = submit_launch(folder, SMALL)
    assert second is not None
    assert [one.state for one in read_launches(folder)] == ["lost", "submitted"]
    assert sum(map(len, second.tasks)) == len(plan)


def test_a_number_taken_behind_the_lock_is_a_refusal(folder: Path, fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from jaxscale.launch import submit

    monkeypatch.setattr(submit, "_next_number", lambda launches: 1)
    _, launch = submit_launch(folder, SMALL)
    assert launch is not None
    (fake / "queue").unlink()
    with pytest.raises(MisuseError, match="another launcher wrote it"):
        submit_launch(folder, SMALL)
    assert read_launches(folder) == [launch]


@pytest.mark.parametrize(
    ("number", "task", "words"),
    [(2, 0, "--launch: 2 is no launch"), (1, 99, "--task: 99 is outside"), (1, -1, "--task: -1 is outside")],
)
def test_a_task_that_is_none_is_named(folder: Path, fake: Path, number: int, task: int, words: str) -> None:
    submit_launch(folder, SMALL)
    with pytest.raises(MisuseError, match=words):
        read_task(folder, number, task)


@pytest.mark.parametrize(
    "words", [["--launch", "1"], ["--task", "0"], ["--launch", "1", "--task", "0", "--cells", "a"]]
)
def test_work_takes_a_whole_task_or_none(folder: Path, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    assert dispatch(["work", str(folder), *words]) == 2
    assert "give both or neither" in capsys.readouterr().err


def test_a_record_that_was_tampered_with_is_named(folder: Path, fake: Path) -> None:
    _, launch = submit_launch(folder, SMALL)
    assert launch is not None
    file = folder / "launches" / "1.json"
    write_json(file, replace(launch, tasks=(("../../elsewhere",),)).to_json())
    with pytest.raises(MisuseError, match="is no cell of the plan"):
        read_task(folder, 1, 0)
    whole = file.read_text()
    for damaged in (whole[:-40], whole.replace("elsewhere", "elsewhen")):
        file.write_text(damaged)
        with pytest.raises(MisuseError, match=r"1\.json"):
            submit_launch(folder, SMALL)
    file.write_text(whole[:1])
    with pytest.raises(MisuseError, match=r"1\.json"):
        submit_launch(folder, SMALL)
    file.write_text('{"schema": "jaxscale.launch/1"}')
    with pytest.raises(MisuseError, match="not the record of a launch"):
        submit_launch(folder, SMALL)


def capped(folder: Path, plan: Plan, cap: float) -> Path:
    config = {**plan.config, "launch": {**plan.config["launch"], "max_chip_hours": cap}}
    write_json(folder / "plan.json", replace(plan, config=config).to_json())
    return folder


def test_a_spend_cap_holds_the_longest_back_and_counts_what_is_queued(
    folder: Path, fake: Path, plan: Plan, capsys: pytest.CaptureFixture[str]
) -> None:
    total = sum_chip_hours(plan, plan.cells)
    capped(folder, plan, total / 2)
    proposal, launch = submit_launch(folder, SMALL)
    assert launch is not None
    assert launch.planned_chip_hours == pytest.approx(proposal.costs.submitted)
    assert proposal.costs.submitted <= total / 2
    taken = [cell.seconds for task in proposal.tasks for cell in task]
    held = [one.cell.seconds for one in proposal.held]
    assert held == sorted(held)
    assert max(taken) <= min(held)
    again, second = submit_launch(folder, SMALL)
    assert second is None
    assert again.costs.queued == pytest.approx(proposal.costs.submitted)
    assert dispatch(["launch", str(folder), "--on", "slurm"]) == 0
    said = capsys.readouterr().out
    assert "nothing to launch" in said
    assert all(one.cell.run_id in said for one in proposal.held)
    assert said.index(proposal.held[0].cell.run_id) < said.index(proposal.held[-1].cell.run_id)


def test_tasks_beyond_an_array_are_held_back(folder: Path, fake: Path, plan: Plan) -> None:
    proposal, launch = submit_launch(folder, replace(SMALL, max_tasks=2))
    assert launch is not None
    assert len(launch.tasks) == 2
    assert sum(map(len, launch.tasks)) + len(proposal.held) == len(plan)
    assert all("slurm.max_tasks = 2" in held.reason for held in proposal.held)


def test_branches_of_a_trunk_in_another_job_wait_for_it(tmp_path: Path, fake: Path) -> None:
    study = make_study(tmp_path, schedule="wsd-branches")
    branched = plan_isoflop(replace(study, recipe=replace(study.recipe, schedule="wsd")), train_tokens=1e5)
    write_json(tmp_path / "run" / "plan.json", branched.to_json())
    folder = tmp_path / "run"
    _, launch = submit_launch(folder, SMALL)
    assert launch is not None
    trunks = [cell.run_id for cell in branched.cells if cell.spec.keeps]
    alone = replace(launch, tasks=tuple((run_id,) for run_id in trunks))  # as if only the trunks had been sent
    write_json(folder / "launches" / "1.json", alone.to_json())
    (fake / "queue").write_text("".join(queue_line(launch.job_name, i) for i in range(len(trunks))))
    proposal, _ = plan_launch(folder, SMALL)
    assert not proposal.tasks
    assert all("trains in another job" in held.reason for held in proposal.held)
    assert len(proposal.held) == len(branched) - len(trunks)


def test_the_out_file_tells_programs_what_was_submitted(folder: Path, fake: Path) -> None:
    out = folder.parent / "launch.json"
    assert dispatch(["launch", str(folder), "--on", "slurm", "--out", str(out)]) == 0
    said = json.loads(out.read_text())
    assert said["schema"] == "jaxscale.launch/1"
    assert said["launch"]["job_id"] == "1"
    assert [row["runs"] for row in said["rows"]] == said["launch"]["tasks"]
