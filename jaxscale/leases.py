"""Who holds a run: leases in the study folder, by which any number of workers on any number of hosts share it.

    <study>/leases/<run_id>/000001.json  000002.json ..    one file a generation, the highest one counts

To claim a run is to create its next generation, which the storage gives out once. The number is a fencing token: a
holder is one while no higher number exists, and asks that before each line, checkpoint and result. It replaces its own
file every few seconds (`beat`). A generation is over when it says `released`; when it has not changed for `lease_s`
seconds of the *observer's* own monotonic clock, so that no two clocks are ever compared; or at once when the kernel
that the holder ran under, the same as the observer's, has let go of the holder's lock file.

Files of earlier generations stay. They are the ledger of chip-seconds spent, killed attempts included, and tell how
often a run's holders died in a row without a newer checkpoint.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Literal

from jaxscale.errors import JaxscaleError, MisuseError, VerdictError
from jaxscale.plain import from_plain, seal_json, unseal_json
from jaxscale.storage import PosixStorage

__all__ = ["LEASE_S", "SWEEPS", "Claims", "Found", "HeldElsewhere", "Holding", "Lease", "LeaseLost", "find_holding",
           "hold_all", "is_gone", "read_holdings", "spent_chip_hours"]  # fmt: skip

LEASE_S = 60.0
"""Seconds without a sign of life after which a run may be taken over."""
SWEEPS = "tuning/runs"
"""Where the learning-rate sweeps of a study's variants train, a study folder below the study's own: one purse pays."""
BEATS = 6
"""Signs of life within that time."""

Released = Literal["", "ended", "preempted", "error", "crashed", "vacant"]


@dataclass(frozen=True)
class Holding:
    """One generation of a run's lease, as its holder last wrote it."""

    run_id: str
    generation: int
    token: str
    host: str
    pid: int
    boot_id: str
    """Of the kernel that the holder runs under; empty where its file system has no locks."""
    job: str
    """What is trained: the run's own id, or its pack's."""
    log: str
    """File with the holder's stderr, below the study's logs; empty for a process at a terminal."""
    claimed_at: float
    """Seconds since 1970 by the holder's clock, for people."""
    deaths: int = 0
    """Holders in a row, before this one, that died without having saved a newer step."""
    begun_step: int = 0
    """The newest step saved before this generation."""
    saved_step: int = 0
    """The newest step saved."""
    beat: int = 0
    seconds: float = 0.0
    """Since the claim, by the holder's monotonic clock."""
    chips: float = 0.0
    """Devices of all its processes; a member of a pack has its share."""
    step: int = 0
    loss: float | None = None
    tokens_per_s: float | None = None
    mfu: float | None = None
    released: Released = ""

    @property
    def who(self) -> str:
        """The holder for people."""
        return f"{self.host}:{self.pid}"

    @property
    def died(self) -> bool:
        """Whether a generation that is over ended without notice."""
        return self.released in ("", "crashed")


class HeldElsewhere(MisuseError):
    """Another process holds the run."""

    def __init__(self, run_id: str, holding: Holding | None, where: Path) -> None:
        who = f"{holding.who}, at step {holding.step}" if holding else "its lease cannot be read yet"
        self.who = holding.who if holding else "?"
        super().__init__(f"run {run_id}: another process is training it in {where} ({who}); wait for it or stop it")


class LeaseLost(VerdictError):
    """This process was without a sign of life for too long, and another took its run."""


@dataclass(frozen=True)
class Found:
    """The highest generation of a run; `holding` is None where its file is damaged."""

    generation: int
    raw: bytes
    holding: Holding | None

    @property
    def digest(self) -> str:
        """Identity of what the file said."""
        return hashlib.sha256(self.raw).hexdigest()[:16]


def find_holding(study_dir: Path, run_id: str) -> Found | None:
    """The newest generation of a run's lease; None for a run that nobody ever held."""
    storage = PosixStorage(study_dir)
    for _ in range(3):  # a name listed and gone before it is read: look again
        numbers = _list_generations(storage, run_id)
        if not numbers:
            return None
        raw = storage.read(_name(run_id, numbers[-1]))
        if raw is not None:
            return Found(numbers[-1], raw, _parse(raw, run_id, numbers[-1]))
    return None


def read_holdings(study_dir: Path) -> Iterator[Holding]:
    """Every readable generation of every run."""
    storage = PosixStorage(study_dir)
    root = Path(study_dir) / "leases"
    for run_id in sorted(entry.name for entry in root.iterdir() if entry.is_dir()) if root.is_dir() else ():
        for generation in _list_generations(storage, run_id):
            raw = storage.read(_name(run_id, generation))
            holding = _parse(raw, run_id, generation) if raw is not None else None
            if holding is not None:
                yield holding


def spent_chip_hours(study_dir: Path) -> float:
    """Chip-hours that a study's runs, its sweeps' too, have held devices for, killed and repeated attempts included."""
    held = [*read_holdings(study_dir), *read_holdings(Path(study_dir) / SWEEPS)]
    return sum(holding.seconds * holding.chips for holding in held) / 3600


def is_gone(study_dir: Path, holding: Holding) -> bool:
    """Whether the holder is known to be dead: it ran under this very kernel, which has dropped its lock."""
    if not holding.boot_id or holding.boot_id != _boot_id():
        return False
    return _is_free(Path(study_dir) / "leases" / holding.run_id / f"{holding.token}.held")


class Claims:
    """A process's view of a study's leases, and how it takes them.

    `log` names its stderr file below the study's logs; `clock` is monotonic seconds.
    """

    def __init__(
        self, study_dir: str | Path, lease_s: float = LEASE_S, log: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.study_dir, self.lease_s, self.log, self.clock = Path(study_dir), lease_s, log, clock
        self.storage = PosixStorage(study_dir)
        self._seen: dict[str, tuple[str, float]] = {}

    def find_holder(self, run_id: str) -> Found | None:
        """Who holds a run now; None where it is free to be claimed. Call it again and again to tell a stale lease."""
        found = find_holding(self.study_dir, run_id)
        return None if found is None or self._is_over(run_id, found) else found

    def silent_s(self, run_id: str) -> float:
        """Seconds since this process saw the lease change."""
        return self.clock() - self._seen[run_id][1] if run_id in self._seen else 0.0

    def stale_digest(self, run_id: str) -> str:
        """What a lease says that this process has seen unchanged for too long; empty for others."""
        digest, _ = self._seen.get(run_id, ("", 0.0))
        return digest if digest and self.silent_s(run_id) >= self.lease_s else ""

    def believe(self, stale: dict[str, str]) -> None:
        """Take over from another process on this machine which leases (run id: digest) it saw unchanged too long."""
        for run_id, digest in stale.items():
            self._seen[run_id] = (digest, self.clock() - self.lease_s)

    def _is_over(self, run_id: str, found: Found) -> bool:
        holding = found.holding
        if holding is not None and (holding.released or is_gone(self.study_dir, holding)):
            return True
        digest, since = self._seen.get(run_id, ("", 0.0))
        if digest != found.digest:
            self._seen[run_id] = (found.digest, self.clock())
            return False
        return self.clock() - since >= self.lease_s

    def claim(self, run_id: str, job: str = "", saved_step: int = 0) -> Lease:
        """Hold a run from now on; HeldElsewhere where another does. `saved_step`: the newest step on disk."""
        found = find_holding(self.study_dir, run_id)
        if found is not None and not self._is_over(run_id, found):
            raise HeldElsewhere(run_id, found.holding, self.study_dir / run_id)
        holding = self._next(run_id, job or run_id, saved_step, found)
        guard = _hold_lock(self.study_dir / "leases" / run_id / f"{holding.token}.held")
        holding = holding if guard else replace(holding, boot_id="")
        try:
            created = self.storage.create(_name(run_id, holding.generation), _encode(holding))
        except BaseException:
            _let_go(guard)
            raise
        if not created:
            _let_go(guard)
            rival = find_holding(self.study_dir, run_id)
            raise HeldElsewhere(run_id, rival.holding if rival else None, self.study_dir / run_id)
        self.sweep(run_id)
        self._seen.pop(run_id, None)
        return Lease(self, holding, guard, found.holding if found else None)

    def sweep(self, run_id: str) -> None:
        """Remove the lock files of holders that died, also of those whose lease is damaged and names no token."""
        folder = self.study_dir / "leases" / run_id
        for name in self.storage.names(f"leases/{run_id}"):
            if name.endswith(".held") and _is_free(folder / name):
                self.storage.remove(f"leases/{run_id}/{name}")

    def _next(self, run_id: str, job: str, saved_step: int, found: Found | None) -> Holding:
        before = found.holding if found else None
        deaths = 0
        if before is not None and before.job == job and saved_step <= before.begun_step:
            deaths = before.deaths + before.died
        elif before is not None and before.job == job:
            deaths = int(before.died)
        return Holding(
            run_id, (found.generation if found else 0) + 1, uuid.uuid4().hex[:12], socket.gethostname(), os.getpid(),
            _boot_id(), job, self.log, time.time(), deaths=deaths, begun_step=saved_step, saved_step=saved_step,
            step=saved_step,
        )  # fmt: skip


@dataclass
class Lease:
    """A run that this process holds; a thread shows that it lives until `release`."""

    claims: Claims
    holding: Holding
    _guard: IO[bytes] | None
    before: Holding | None = None
    """The generation before, as it was left."""
    _over: threading.Event = field(default_factory=threading.Event)
    _write: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._began = self.claims.clock()
        threading.Thread(target=self._beat, daemon=True, name=f"lease {self.holding.run_id}").start()

    def check(self) -> None:
        """LeaseLost where a higher generation exists."""
        if not self._is_mine():
            now = find_holding(self.claims.study_dir, self.holding.run_id)
            who = f" by {now.holding.who}" if now and now.holding else ""
            raise LeaseLost(f"run {self.holding.run_id}: taken over{who}, {self.claims.lease_s:g} s after the last "
                            f"sign of life of {self.holding.who}, which leaves it as it is")  # fmt: skip

    def _is_mine(self) -> bool:
        return self.claims.storage.read(_name(self.holding.run_id, self.holding.generation + 1)) is None

    def tell(self, **news: Any) -> None:
        """Fields of `Holding` that the next sign of life shows."""
        with self._write:
            self.holding = replace(self.holding, **news)

    def release(self, how: Released) -> None:
        """Let go of the run and say how; others may claim it at once."""
        if self._over.is_set():
            return
        self._over.set()
        try:
            self._show(released=how)
        except OSError:  # a full disk: the lock tells those on this machine, time the others
            if self._guard is not None:
                self._guard.close()
        else:
            _let_go(self._guard)
            self.claims.sweep(self.holding.run_id)

    def _beat(self) -> None:
        while not self._over.wait(self.claims.lease_s / BEATS):
            with suppress(OSError):  # a file system that does not answer: the holder stays one while nobody took it
                if not self._is_mine():
                    return
                self._show()

    def _show(self, **news: Any) -> None:
        with self._write:
            seconds = round(self.claims.clock() - self._began, 3)
            self.holding = replace(self.holding, beat=self.holding.beat + 1, seconds=seconds, **news)
            name = _name(self.holding.run_id, self.holding.generation)
            self.claims.storage.replace(name, _encode(self.holding), durable=bool(news))


@contextmanager
def hold_all(claims: Claims, wanted: Iterable[tuple[str, int]], job: str = "") -> Iterator[list[Lease]]:
    """Hold several runs (id, newest saved step) or none, and let go of them as the block ends.

    An exception says by its attribute `released` how; without one, the block crashed.
    """
    leases: list[Lease] = []
    how: Released = "vacant"
    try:
        for run_id, saved_step in wanted:
            leases.append(claims.claim(run_id, job, saved_step))
        how = "crashed"
        yield leases
        how = "ended"
    except (JaxscaleError, OSError):
        how = how if how == "vacant" else "error"
        raise
    except Exception as error:
        how = getattr(error, "released", how)
        raise
    finally:
        for lease in leases:
            lease.release(how)


def _list_generations(storage: PosixStorage, run_id: str) -> list[int]:
    names = storage.names(f"leases/{run_id}")
    return sorted(int(name[:-5]) for name in names if name.endswith(".json") and name[:-5].isdigit())


def _name(run_id: str, generation: int) -> str:
    return f"leases/{run_id}/{generation:06}.json"


def _encode(holding: Holding) -> bytes:
    return seal_json(asdict(holding)).encode()


def _parse(raw: bytes, run_id: str, generation: int) -> Holding | None:
    """The record in a lease file; None where it is damaged or another's."""
    try:
        holding = from_plain(unseal_json(json.loads(raw)), Holding)
    except (ValueError, TypeError, AttributeError):  # MisuseError is a ValueError
        return None
    return holding if (holding.run_id, holding.generation) == (run_id, generation) else None


def _boot_id() -> str:
    """Identity of the running kernel; empty where the system does not tell."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def _hold_lock(path: Path) -> IO[bytes] | None:
    """An exclusively locked new file, or None where the file system has no locks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    guard = open(path, "xb")  # noqa: SIM115, it is held as long as the lease
    try:
        fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        guard.close()
        path.unlink(missing_ok=True)
        return None
    return guard


def _let_go(guard: IO[bytes] | None) -> None:
    if guard is not None:
        with suppress(OSError):
            os.unlink(guard.name)
        guard.close()


def _is_free(path: Path) -> bool:
    """Whether a lock file is there and nobody holds it."""
    try:
        with open(path, "rb") as guard:
            fcntl.flock(guard, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return False
    return True
