"""Pull workers as a person starts them: they share a folder, watch each other's backs, and keep within the cap."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import write_study

from jaxscale.leases import Claims, find_holding, read_holdings
from jaxscale.plain import seal_json, write_json
from jaxscale.plan import plan_isoflop
from jaxscale.runs import Plan
from jaxscale.spend import chip_hours, read_spending
from jaxscale.sweep import fail_cell, read_plan, read_status, reset_cell
from jaxscale.train.canary import STEPS, choose_canary, compare_canaries

ENVIRONMENT = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}


def start(*words: str, cwd: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "jaxscale", *words]
    return subprocess.Popen(command, cwd=cwd, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, start_new_session=True)  # fmt: skip


def jaxscale(*words: str, cwd: Path) -> tuple[int, str, str]:
    process = start(*words, cwd=cwd)
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    write_study(folder, "study = replace(study, launch=replace(study.launch, lease_s=3.0))")
    return folder


def plan_study(place: Path, name: str, *overrides: str) -> Path:
    code, _, err = jaxscale("plan", "tiny.py", "--out", name, *overrides, cwd=place)
    assert code == 0, err
    return place / name


def losses(folder: Path) -> dict[str, float | None]:
    return {s.cell.run_id: s.loss for s in read_status(folder, read_plan(folder).cells) if s.state == "done"}


@pytest.fixture(scope="module")
def shared(place: Path) -> Path:
    """A study trained by two workers at once, one of whom was paused beyond its lease, and woken at the end."""
    out = plan_study(place, "shared")
    first = start("work", str(out), "--workers", "1", cwd=place)
    deadline = time.monotonic() + 60
    while not any(out.glob("[0-9a-f]*/metrics.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.02)
    held = [one for one in read_holdings(out) if not one.released]
    paused = [first.pid, *(one.pid for one in held)]
    for pid in paused:
        os.kill(pid, signal.SIGSTOP)
    code, text, err = jaxscale("work", str(out), "--workers", "1", cwd=place)
    assert code == 0, err
    assert "held by" in text
    for pid in reversed(paused):
        os.kill(pid, signal.SIGCONT)
    text, err = first.communicate(timeout=120)
    assert first.returncode == 0 and "Traceback" not in err, err
    return out


def test_a_workers_cell_is_taken_over_when_it_is_silent_and_left_alone_when_it_wakes(shared: Path) -> None:
    assert len(losses(shared)) == 10
    ended = [one for one in read_holdings(shared) if one.saved_step and one.released == "ended"]
    assert len(ended) == len({one.run_id for one in ended}) == 10  # each run was brought to its end once
    taken = [one for one in read_holdings(shared) if one.generation > 1]
    assert taken and all(one.deaths == 1 for one in taken)
    first = next(one for one in read_holdings(shared) if one.run_id == taken[0].run_id)
    assert first.released in ("", "error")  # it found itself replaced


def test_what_two_workers_give_is_what_one_gives(place: Path, shared: Path) -> None:
    alone = plan_study(place, "alone")
    assert jaxscale("work", str(alone), cwd=place)[0] == 0
    assert losses(alone) == losses(shared)


def test_status_and_logs_tell_who_did_what(place: Path, shared: Path) -> None:
    code, text, _ = jaxscale("status", str(shared), "--out", "status.json", cwd=place)
    plain = json.loads((place / "status.json").read_text())
    assert code == 0 and "10 of 10 ended" in text and "core-hours spent" in text
    assert {row["state"] for row in plain["rows"]} == {"done"} and plain["totals"]["spent"] > 0
    taken = next(one for one in read_holdings(shared) if one.generation == 2)
    code, text, _ = jaxscale("logs", str(shared), taken.run_id[:8], "--lines", "3", cwd=place)
    assert code == 0 and taken.who in text and "ended" in text and "the last lines" in text and "curve:" in text


def test_status_shows_a_running_cell_of_another_machine(tmp_path: Path) -> None:
    from tiny import make_study

    planned = plan_isoflop(make_study(tmp_path), train_tokens=1e5)
    write_json(tmp_path / "s" / "plan.json", planned.to_json())
    cell = planned.cells[0]
    lease = Claims(tmp_path / "s", lease_s=1e6).claim(cell.run_id)
    lease.tell(boot_id="another", host="rack7", step=cell.spec.steps // 2, tokens_per_s=1e5, loss=2.5, mfu=0.41)
    lease._show()
    code, text, _ = jaxscale("status", "s", "--out", "s.json", cwd=tmp_path)
    row = json.loads((tmp_path / "s.json").read_text())["rows"][0]
    assert code == 0 and "rack7:" in text and "41%" in text and "about" in text
    assert row["state"] == "running" and row["tokens_per_s"] == 1e5
    left = (cell.spec.steps - row["step"]) * cell.spec.batch_seqs * cell.spec.model.seq_len / 1e5
    assert row["step"] == 0 and row["seconds_left"] == pytest.approx(left)
    lease.release("ended")


def test_a_cell_that_others_hold_cannot_be_reset_and_an_ended_one_keeps_its_ledger(tmp_path: Path) -> None:
    from tiny import make_study

    cell = plan_isoflop(make_study(tmp_path), train_tokens=1e5).cells[0]
    lease = Claims(tmp_path).claim(cell.run_id)
    with pytest.raises(ValueError, match="it is being trained; stop it before resetting it"):
        reset_cell(tmp_path, cell)
    lease.release("ended")
    fail_cell(tmp_path, cell, "no")
    reset_cell(tmp_path, cell)
    assert not (tmp_path / cell.run_id).exists()
    found = find_holding(tmp_path, cell.run_id)
    assert found and found.generation == 2


def test_no_cell_begins_that_the_cap_does_not_pay_for(place: Path, shared: Path) -> None:
    """Half of what the plan says is paid for: the rest does not begin, and with a higher cap it does."""
    planned = read_plan(shared)
    cap = 0.5 * sum(chip_hours(planned, cell) for cell in planned.cells)
    out = plan_study(place, "capped", "--launch.max-chip-hours", str(cap), "--launch.no-canary")
    code, _, err = jaxscale("work", str(out), cwd=place)
    assert code == 1 and "launch.max_chip_hours" in err and "have not ended" in err and "Traceback" not in err
    statuses = read_status(out, read_plan(out).cells)
    assert any(status.state == "planned" for status in statuses)
    assert not any(status.state == "running" for status in statuses)
    assert read_spending(out, read_plan(out)).cap == pytest.approx(cap)
    again = plan_study(place, "capped", "--launch.max-chip-hours", "100")
    assert jaxscale("work", str(again), cwd=place)[0] == 0
    assert losses(again) == losses(shared)


def test_only_the_cells_that_are_named_are_trained(place: Path) -> None:
    out = plan_study(place, "some")
    names = [cell.run_id for cell in read_plan(out).cells[:2]]
    assert jaxscale("work", str(out), "--cells", *names, cwd=place)[0] == 0
    assert set(losses(out)) == set(names)
    code, text, _ = jaxscale("work", str(out), "--cells", *names, cwd=place)
    assert code == 0 and "all 2 cells have ended" in text


def test_sigterm_saves_and_ends_with_75(place: Path, shared: Path) -> None:
    out = plan_study(place, "preempted")
    process = start("work", str(out), cwd=place)
    while not any(out.glob("[0-9a-f]*/metrics.jsonl")) and process.poll() is None:
        time.sleep(0.02)
    process.terminate()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 75 and "Traceback" not in err, err
    assert not [one for one in read_holdings(out) if not one.released]
    assert jaxscale("work", str(out), cwd=place)[0] == 0
    assert losses(out) == losses(shared)


def canary(**changes: object) -> dict[str, object]:
    return {"pool": "cpu float32", "precision": "float32", "host": "a", "losses": {"validation loss": 2.0}, **changes}


@pytest.mark.parametrize(
    ("precision", "loss", "agrees"),
    [("float32", 2.0015, True), ("float32", 2.003, False), ("bfloat16", 2.015, True), ("bfloat16", 2.03, False),
     ("float32", float("nan"), False)],
)  # fmt: skip
def test_pools_agree_within_what_their_precision_allows(precision: str, loss: float, agrees: bool) -> None:
    own = canary(pool=f"H100 {precision}", precision=precision, losses={"validation loss": loss}, host="b")
    said = compare_canaries(own, [canary()])
    assert (said == "") is agrees
    if not agrees:
        assert "H100" in said and "cpu float32 (a)" in said and "no cell is trained here" in said


def test_a_canary_is_the_cheapest_run_cut_short(shared: Path) -> None:
    spec = choose_canary(read_plan(shared))
    assert spec.steps == STEPS and spec.run_id not in {cell.run_id for cell in read_plan(shared).cells}


def test_a_machine_that_computes_something_else_trains_nothing(place: Path, shared: Path) -> None:
    out = plan_study(place, "odd")
    (mine,) = (shared / "canaries").glob("*.json")
    told = json.loads(mine.read_text())
    del told["sha256"]
    told |= {"pool": "TPU v9 bfloat16", "losses": {name: 1.5 * loss for name, loss in told["losses"].items()}}
    write_json(out / "canaries" / "TPU.json", seal_json(told))
    code, _, err = jaxscale("work", str(out), cwd=place)
    assert code == 1 and "canary: " in err and "TPU v9 bfloat16" in err and "Traceback" not in err
    assert not losses(out) and len(list((out / "canaries").glob("*"))) == 1  # nothing is left of its own


def test_a_plan_without_launch_fields_still_works(shared: Path) -> None:
    plan = read_plan(shared)
    config = {name: value for name, value in plan.config.items() if name != "launch"}
    old = Plan.from_json(replace(plan, config=config).to_json())
    assert read_spending(shared, old).cap is None
