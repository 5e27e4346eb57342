"""Leases: one holder at a time whatever dies, hangs or lies about its clock; a ledger of what was spent."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from jaxscale.errors import MisuseError
from jaxscale.leases import (
    Claims,
    HeldElsewhere,
    Lease,
    LeaseLost,
    find_holding,
    hold_all,
    read_holdings,
    spent_chip_hours,
)
from jaxscale.storage import PosixStorage

RUN = "0123456789ab"


class Clock:
    """Monotonic seconds that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def elsewhere(lease: Lease) -> None:
    """Make a lease look like another machine's: no lock of this kernel tells whether its holder lives."""
    file = lease.claims.study_dir / "leases" / RUN / f"{lease.holding.generation:06}.json"
    lease.tell(boot_id="another kernel")
    lease._show()
    assert "another kernel" in file.read_text()


def test_a_held_run_is_refused_and_a_released_one_is_not(tmp_path: Path) -> None:
    lease = Claims(tmp_path).claim(RUN)
    with pytest.raises(HeldElsewhere, match=rf"run {RUN}: another process is training it .*:{os.getpid()}, at step 0"):
        Claims(tmp_path).claim(RUN)
    lease.release("preempted")
    second = Claims(tmp_path).claim(RUN)
    assert (lease.holding.generation, second.holding.generation) == (1, 2)
    second.release("ended")


def test_a_silent_lease_is_taken_over_by_the_observers_clock_alone(tmp_path: Path) -> None:
    """Wall clocks say nonsense on both sides: file times of 1970 and 2100, a claim of next year."""
    lease = Claims(tmp_path, lease_s=1e6).claim(RUN)
    elsewhere(lease)
    file = tmp_path / "leases" / RUN / "000001.json"
    clock = Clock()
    claims = Claims(tmp_path, lease_s=60, clock=clock)
    for moment in (0, 4.1e9):
        os.utime(file, (moment, moment))
        assert claims.find_holder(RUN) is not None
    clock.now += 59
    assert claims.find_holder(RUN) is not None
    clock.now += 2
    assert claims.find_holder(RUN) is None
    second = claims.claim(RUN)
    assert second.holding.generation == 2 and second.holding.deaths == 1
    with pytest.raises(LeaseLost, match=r"taken over by .* after the last sign of life"):
        lease.check()
    lease.release("error")  # of the old one: the new one is not touched
    second.check()
    second.release("ended")


def test_a_sign_of_life_starts_the_patience_anew(tmp_path: Path) -> None:
    lease = Claims(tmp_path, lease_s=1e6).claim(RUN)
    elsewhere(lease)
    clock = Clock()
    claims = Claims(tmp_path, lease_s=60, clock=clock)
    for _ in range(5):
        assert claims.find_holder(RUN) is not None
        clock.now += 50
        lease._show()
    lease.release("ended")
    assert claims.find_holder(RUN) is None


def test_what_one_process_saw_go_silent_another_may_believe_but_not_after_a_sign_of_life(tmp_path: Path) -> None:
    lease = Claims(tmp_path, lease_s=1e6).claim(RUN)
    elsewhere(lease)
    clock = Clock()
    parent = Claims(tmp_path, lease_s=60, clock=clock)
    assert parent.find_holder(RUN) and parent.stale_digest(RUN) == ""
    clock.now += 61
    stale = {RUN: parent.stale_digest(RUN)}
    lease._show()
    late = Claims(tmp_path, lease_s=60)
    late.believe(stale)
    with pytest.raises(HeldElsewhere):
        late.claim(RUN)
    assert parent.find_holder(RUN)
    clock.now += 61
    child = Claims(tmp_path, lease_s=60)
    child.believe({RUN: parent.stale_digest(RUN)})
    child.claim(RUN).release("ended")
    lease.release("error")


def _claim_and(what: str, folder: Path, ready: "multiprocessing.synchronize.Event") -> None:
    lease = Claims(folder).claim(RUN)
    lease.tell(saved_step=7)
    ready.set()
    if what == "release":
        lease.release("ended")
    time.sleep(60)


@pytest.fixture
def start() -> "object":
    children = []

    def begin(what: str, folder: Path) -> multiprocessing.Process:
        context = multiprocessing.get_context("spawn")
        ready = context.Event()
        child = context.Process(target=_claim_and, args=(what, folder, ready))
        child.start()
        children.append(child)
        assert ready.wait(30)
        return child

    yield begin
    for child in children:
        child.kill()
        child.join()


def test_a_killed_holder_of_this_machine_is_known_to_be_dead_at_once_a_paused_one_is_not(
    tmp_path: Path, start: "object"
) -> None:
    child = start("hold", tmp_path)  # type: ignore[operator]
    os.kill(child.pid, signal.SIGSTOP)
    claims = Claims(tmp_path, lease_s=3600)
    assert claims.find_holder(RUN) is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert claims.find_holder(RUN) is None
    claims.claim(RUN).release("ended")


def test_deaths_count_in_a_row_without_a_newer_step_and_a_reset_forgets_them(tmp_path: Path) -> None:
    claims = Claims(tmp_path)

    def die(step: int, how: str = "crashed", job: str = "") -> int:
        lease = claims.claim(RUN, job, step)
        lease.release(how)  # type: ignore[arg-type]
        return lease.holding.deaths

    assert [die(0), die(0), die(0)] == [0, 1, 2]
    assert die(5) == 1  # the last one died, and had saved
    assert die(5) == 2
    assert die(5, "preempted") == 3
    assert die(5) == 3
    assert die(9, "ended") == 1
    assert die(9, job="reset", how="vacant") == 0
    assert die(0) == 0
    assert die(0, job="a pack") == 0  # what a pack dies of is not its members' fault
    assert die(0) == 0


def test_two_who_claim_at_once_one_gets_it(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    with context.Pool(4) as pool:
        for round_ in range(3):
            taken = pool.starmap(_try_claim, [(tmp_path, f"{round_:012x}", pool_id) for pool_id in range(8)])
            assert sum(taken) == 1


def _try_claim(folder: Path, run_id: str, _: int) -> bool:
    try:
        Claims(folder).claim(run_id)
    except HeldElsewhere:
        return False
    time.sleep(0.5)  # held until all have tried: the process lives on in the pool
    return True


def test_several_are_held_together_or_not_at_all(tmp_path: Path) -> None:
    other = Claims(tmp_path).claim("b" * 12)
    claims = Claims(tmp_path)
    with pytest.raises(HeldElsewhere), hold_all(claims, [("a" * 12, 0), ("b" * 12, 0)]):
        raise AssertionError("held")
    assert claims.find_holder("a" * 12) is None
    other.release("ended")
    with hold_all(claims, [("a" * 12, 0), ("b" * 12, 0)]) as leases:
        assert len(leases) == 2
    released = [find_holding(tmp_path, run_id * 12) for run_id in "ab"]
    assert [found.holding.released for found in released if found and found.holding] == ["ended", "ended"]


def test_how_a_block_ends_is_how_the_run_is_let_go_of(tmp_path: Path) -> None:
    seen = []
    for number, error in enumerate((MisuseError("no"), OSError(28, "full"), ValueError("a bug"))):
        run_id = f"{number:012}"
        with pytest.raises(type(error)), hold_all(Claims(tmp_path), [(run_id, 0)]):
            raise error
        found = find_holding(tmp_path, run_id)
        assert found and found.holding
        seen.append(found.holding.released)
    assert seen == ["error", "error", "crashed"]


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"run_id": 3}'])
def test_a_damaged_lease_is_waited_for_and_then_taken(tmp_path: Path, damage: bytes) -> None:
    Claims(tmp_path).claim(RUN).release("ended")
    (tmp_path / "leases" / RUN / "000001.json").write_bytes(damage)
    clock = Clock()
    claims = Claims(tmp_path, lease_s=60, clock=clock)
    with pytest.raises(HeldElsewhere, match="its lease cannot be read yet"):
        claims.claim(RUN)
    clock.now += 61
    lease = claims.claim(RUN)
    assert lease.holding.generation == 2
    lease.release("ended")


def test_a_flipped_bit_in_a_lease_is_seen(tmp_path: Path) -> None:
    Claims(tmp_path).claim(RUN).release("ended")
    file = tmp_path / "leases" / RUN / "000001.json"
    whole = file.read_bytes()
    for place in range(0, len(whole), 7):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        found = find_holding(tmp_path, RUN)
        if found is not None and found.holding is not None:
            assert json.loads(file.read_bytes()) == json.loads(whole)  # a space became another


def test_the_ledger_adds_up_what_every_generation_held(tmp_path: Path) -> None:
    clock = Clock()
    claims = Claims(tmp_path, clock=clock)
    for seconds, chips in ((1800, 4), (900, 8)):
        lease = claims.claim(RUN)
        lease.tell(chips=chips)
        clock.now += seconds
        lease.release("crashed")
    assert [holding.seconds for holding in read_holdings(tmp_path)] == [1800, 900]
    assert spent_chip_hours(tmp_path) == pytest.approx(4.0)


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "", ".", "a/./b/.."])
def test_names_stay_below_the_root(tmp_path: Path, name: str) -> None:
    with pytest.raises(MisuseError, match="leads out of the folder"):
        PosixStorage(tmp_path).create(name, b"")


def test_a_name_is_given_out_once_also_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = PosixStorage(tmp_path)
    assert storage.create("a/1", b"one") and not storage.create("a/1", b"two")

    def fail(*_: object) -> None:
        raise OSError(95, "not supported")

    monkeypatch.setattr(os, "link", fail)
    assert storage.create("a/2", b"one") and not storage.create("a/2", b"two")
    storage.replace("a/2", b"three")
    assert (storage.read("a/2"), storage.read("a/3"), storage.names("a"), storage.names("b")) == (
        b"three", None, ["1", "2"], [],
    )  # fmt: skip


def test_lock_files_of_the_dead_go_with_the_next_claim_also_where_their_lease_names_none(
    tmp_path: Path, start: "object"
) -> None:
    child = start("hold", tmp_path)  # type: ignore[operator]
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    folder = tmp_path / "leases" / RUN
    assert len(list(folder.glob("*.held"))) == 1
    (folder / "000001.json").write_bytes(b"{")
    clock = Clock()
    claims = Claims(tmp_path, lease_s=60, clock=clock)
    assert claims.find_holder(RUN) is not None
    clock.now += 61
    lease = claims.claim(RUN)
    assert [path.name for path in folder.glob("*.held")] == [f"{lease.holding.token}.held"]
    lease.release("ended")
    assert not list(folder.glob("*.held"))


def test_a_claim_without_disk_space_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> bool:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PosixStorage, "create", fail)
    with pytest.raises(OSError, match="No space left"):
        Claims(tmp_path).claim(RUN)
    assert list((tmp_path / "leases" / RUN).iterdir()) == []
