"""The pool of workers: a cell that kills its worker three times ends as failed, the others are not held up."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tiny import make_study

from jaxscale.config import LaunchConfig
from jaxscale.errors import VerdictError
from jaxscale.plain import write_json
from jaxscale.plan import plan_isoflop
from jaxscale.resolve import describe_run
from jaxscale.sweep import Job, read_plan, read_status
from jaxscale.train.packs import Pack, PackFolder, open_packs
from jaxscale.train.pool import _allow_stops, _Pool, train_cells

MAX_ATTEMPTS = LaunchConfig().max_attempts


def test_cell_that_kills_its_worker_ends_as_failed_with_its_last_words(tmp_path: Path) -> None:
    planned = plan_isoflop(make_study(tmp_path), train_tokens=1e5)
    good = planned.cells[4]
    broken = describe_run(replace(good.spec, seed=-1))  # no seed is below 0: the worker raises
    planned = replace(planned, cells=(good, replace(broken, seconds=1.0)))
    write_json(tmp_path / "study" / "plan.json", planned.to_json())
    events: list[dict[str, object]] = []
    train_cells(tmp_path / "study", planned.cells, make_study(tmp_path).mesh, events.append)
    done, failed = read_status(tmp_path / "study", read_plan(tmp_path / "study").cells)
    assert done.state == "done"
    assert failed.state == "failed" and "Error" in failed.reason
    assert f"{MAX_ATTEMPTS} workers in a row died without a newer checkpoint than step 0" in failed.reason
    assert sum(event["event"] == "died" for event in events) == MAX_ATTEMPTS


def begin_pack(study_dir: Path, pack: Pack) -> PackFolder:
    """A pack's folder as a preempted worker leaves it."""
    folder = PackFolder(study_dir, pack)
    folder.prepare()
    (folder.checkpoints / "32").mkdir(parents=True)
    return folder


def test_pack_that_kills_its_worker_is_taken_apart_and_its_state_dropped(tmp_path: Path) -> None:
    cells = plan_isoflop(make_study(tmp_path, seeds=(3,)), train_tokens=1e5).cells[:3]
    job = Job(cells, "turn")
    folder = begin_pack(tmp_path, Pack(tuple(cell.run_id for cell in cells), "turn"))
    events: list[dict[str, Any]] = []
    pool = _Pool(tmp_path, [], {cell.run_id for cell in cells[1:]}, events.append, seats=())
    process = SimpleNamespace(pid=0)
    worker = cast(Any, SimpleNamespace(index=0, ended={cells[0].run_id}, process=process))
    for _ in range(MAX_ATTEMPTS):
        assert folder.path.exists()
        pool._put_back(worker, job, "killed")
    assert pool.waiting == [*[job] * (MAX_ATTEMPTS - 1), Job((cells[1],)), Job((cells[2],))]
    assert not folder.path.exists()
    assert {event["event"] for event in events} == {"died"}


def test_folder_of_a_pack_whose_runs_have_all_ended_is_cleared_away(tmp_path: Path) -> None:
    open_one, ended = begin_pack(tmp_path, Pack(("a", "b"), "turn")), begin_pack(tmp_path, Pack(("c", "d"), "pack"))
    for run_id in ("b", "c", "d"):
        write_json(tmp_path / run_id / "result.json", "{}")
    assert open_packs(tmp_path) == [open_one.pack]
    assert not ended.path.exists()


def test_a_job_stops_runs_only_where_no_rival_trains_in_another(tmp_path: Path) -> None:
    cells = plan_isoflop(make_study(tmp_path), train_tokens=1e5).cells[:3]
    one, two, three = (cell.run_id for cell in cells)
    rivals = {one: {}, two: {one: True}, three: {one: True, two: False}}
    assert _allow_stops(Job(cells, "turn"), rivals, cells).stops
    assert not _allow_stops(Job(cells[1:], "turn"), rivals, cells).stops
    assert _allow_stops(Job(cells[1:], "turn"), rivals, cells[1:]).stops  # the first has ended
    assert not _allow_stops(Job(cells, "turn"), {}, cells).stops
    assert not _allow_stops(Job(cells, "turn"), {one: {}}, cells).stops


def test_a_worker_killed_before_it_was_ready_is_started_again_one_that_gave_up_is_told(tmp_path: Path) -> None:
    cells = plan_isoflop(make_study(tmp_path), train_tokens=1e5).cells[:1]
    pool = _Pool(tmp_path, [Job(cells)], {cells[0].run_id}, lambda event: None, seats=())
    started: list[int] = []
    pool._start = started.append  # type: ignore[method-assign]

    def bury(code: int) -> None:
        process = SimpleNamespace(pid=0, returncode=code)
        worker = cast(Any, SimpleNamespace(index=0, ready=False, job=None, process=process, log=Path("a.log"),
                                           close=lambda: None, last_words=lambda: "no module"))  # fmt: skip
        pool.workers[0] = worker
        pool._bury(worker)

    for _ in range(MAX_ATTEMPTS - 1):
        bury(-9)
    assert started == [0] * (MAX_ATTEMPTS - 1)
    with pytest.raises(VerdictError, match="worker 0 did not start: no module"):
        bury(-9)
    pool.stillborn = 0
    with pytest.raises(VerdictError, match="worker 0 did not start"):
        bury(1)


def test_a_worker_whose_parent_was_killed_goes_on_to_save(tmp_path: Path) -> None:
    """It has nobody to tell: neither an error nor a word at its exit."""
    code = "from jaxscale.train.worker import _tell; input(); _tell('a'); _tell('b'); print('c')"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    child = subprocess.Popen([sys.executable, "-c", code], **pipes)  # type: ignore[call-overload]
    child.stdout.close()
    child.stdin.write(b"\n")
    child.stdin.close()
    assert (child.wait(60), child.stderr.read()) == (0, b"")
    child.stderr.close()
