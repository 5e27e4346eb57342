"""A small grid under faults: its launchers as real processes, what is seen of it, and what becomes of it.

    Bench     the text, the plan, and the undisturbed grid that every disturbed one is compared with
    Grid      one study folder, on a tmpfs of its own where mounting is allowed, and the launchers at work in it
    Launcher  one `jaxscale work`, pinned to a core, started again whenever it has left

The faults are in `kinds`, the comparison with the undisturbed grid in `checks`.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tiny import make_study

from jaxscale.cli.data import build_data
from jaxscale.cli.tables import make_console
from jaxscale.config import LaunchConfig
from jaxscale.leases import Holding, find_holding
from jaxscale.plain import read_lines
from jaxscale.plan import plan_isoflop
from jaxscale.runs import METRIC_FIELDS, Plan
from jaxscale.sweep import inspect_result

__all__ = ["Bench", "Grid", "Launcher", "can_mount", "wait_for"]

HERE = Path(__file__).resolve().parent
PRODUCT = HERE.parents[1]
LEASE_S = 2.0
DISK_MIB = 160
"""Size of a grid's tmpfs: the trainer wants 64 MiB free before it begins a run."""


def wait_for(what: Callable[[], Any], seconds: float, every: float = 0.02) -> Any:
    """The first true answer, or the last one when the time is over."""
    deadline = time.monotonic() + seconds
    while not (answer := what()) and time.monotonic() < deadline:
        time.sleep(every)
    return answer


def can_mount(folder: Path) -> str:
    """Empty where this process may mount a tmpfs; else why not."""
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True, text=True)
    if done.returncode == 0:
        subprocess.run(["umount", folder], check=True)
    return done.stderr.strip() or ("" if done.returncode == 0 else f"mount ended with code {done.returncode}")


@dataclass
class Bench:
    """Everything the grids of one command have in common."""

    root: Path
    budget: float
    widths: tuple[int, ...]
    seeds: int = 1
    cores: tuple[int, ...] = field(default_factory=lambda: tuple(sorted(os.sched_getaffinity(0)))[:2])

    def __post_init__(self) -> None:
        self.root = Path(self.root).resolve()
        self.plan = self._plan()
        self.reference = self.root / "reference"
        self.no_mount = can_mount(self.root / "mount")

    def _plan(self) -> Plan:
        study = make_study(self.root, budgets=(self.budget,), widths=self.widths, seeds=(self.seeds,))
        mesh = replace(study.mesh, checkpoint_every_s=0.5)
        launch = LaunchConfig(lease_s=LEASE_S, max_attempts=10_000, canary=False)
        study = replace(study, mesh=mesh, launch=launch)
        info = build_data(study.data, make_console())
        return plan_isoflop(study, train_tokens=info["train_tokens"], data_sha256=info["data_sha256"])

    def train_reference(self) -> None:
        """The same plan without a fault; a reference that is whole already stays."""
        grid = Grid(self, self.reference, mounted=False)
        grid.write_plan()
        for launcher in grid.launchers:
            launcher.start()
        codes = [launcher.wait(600) for launcher in grid.launchers]
        if codes != [0] * len(codes) or grid.open_runs():
            raise RuntimeError(f"the undisturbed grid did not end: {codes}, {grid.launchers[0].tail()}")


class Launcher:
    """A `jaxscale work` on one core, and what its processes wrote to the terminal."""

    def __init__(self, grid: Grid, name: str, core: int, injected: bool = True) -> None:
        self.grid, self.name, self.core = grid, name, core
        self.control = grid.control / name
        self.control.mkdir(parents=True, exist_ok=True)
        self.injected = injected
        self.process: subprocess.Popen[bytes] | None = None
        self.said = grid.outside / f"{name}.log"
        self.codes: list[int] = []

    def start(self, *verb: str) -> None:
        """Begin, or begin again: `work` unless another verb is given."""
        words = verb or ("work", str(self.grid.folder), "--workers", "1")
        with open(self.said, "ab") as said:
            said.write(f"$ jaxscale {' '.join(words)}\n".encode())
            said.flush()
            self.process = subprocess.Popen(
                ["taskset", "-c", str(self.core), sys.executable, "-m", "jaxscale", *words],
                stdout=said, stderr=said, stdin=subprocess.DEVNULL, env=self._environment(), start_new_session=True,
            )  # fmt: skip

    def _environment(self) -> dict[str, str]:
        paths = [str(PRODUCT), *([str(HERE / "inject")] if self.injected else [])]
        dropped = {"XLA_FLAGS", "FAULTS_CONTROL"}
        kept = {name: value for name, value in os.environ.items() if name not in dropped}
        more = {"FAULTS_CONTROL": str(self.control)} if self.injected else {}
        return {**kept, **more, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(paths)}

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def children(self) -> list[int]:
        """Pids of its worker processes."""
        with suppress(OSError):
            return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]
        return []

    def send(self, number: int, *pids: int) -> None:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def wait(self, seconds: float) -> int | None:
        """Its exit code; None if it still runs after so many seconds."""
        assert self.process is not None
        with suppress(subprocess.TimeoutExpired):
            self.codes.append(self.process.wait(seconds))
            return self.codes[-1]
        return None

    def end(self) -> None:
        """Kill what is left of it."""
        if self.process is not None:
            self.send(signal.SIGKILL, *self.children(), self.pid)
            self.process.wait()

    def tail(self) -> str:
        """The last line that it said."""
        lines = self.said.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""

    def holding(self) -> Holding | None:
        """The run that one of its workers holds."""
        mine = set(self.children())
        return next((held for held in self.grid.held() if held.pid in mine), None)


class Grid:
    """One study folder and whoever works in it. `broken` counts by run what the faults made void after its end."""

    def __init__(self, bench: Bench, folder: Path, mounted: bool = True) -> None:
        self.bench, self.plan, self.folder = bench, bench.plan, folder
        self.outside = folder.with_name(f"{folder.name}.outside")  # no fault reaches it
        self.control = self.outside / "control"
        self.mounted = mounted and not bench.no_mount
        self.control.mkdir(parents=True, exist_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        if self.mounted:
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", folder], check=True)
        self.run_ids = [cell.run_id for cell in self.plan.cells]
        self.launchers = [Launcher(self, f"core{core}", core) for core in bench.cores]
        self.extras = 0
        self.broken: Counter[str] = Counter()
        self.problems: list[str] = []
        self.litter: list[str] = []

    def write_plan(self) -> None:
        (self.folder / "plan.json").write_text(self.plan.to_json())

    def launch_extra(self, core: int, *verb: str) -> Launcher:
        """One more launcher, for a while."""
        self.extras += 1
        extra = Launcher(self, f"extra{self.extras}", core)
        extra.start(*verb)
        return extra

    def revive(self) -> None:
        """Start again what has left, as a scheduler would, while a run is open."""
        for launcher in self.launchers:
            if not launcher.running and self.open_runs():
                if launcher.process is not None:
                    launcher.wait(0)
                launcher.start()

    def result(self, run_id: str) -> Any:
        return inspect_result(self.folder / run_id)[0]

    def open_runs(self) -> list[str]:
        return [run_id for run_id in self.run_ids if self.result(run_id) is None]

    def ended_runs(self) -> list[str]:
        return [run_id for run_id in self.run_ids if self.result(run_id) is not None]

    def held(self) -> Iterator[Holding]:
        """Newest lease of each run that nobody has let go of."""
        for run_id in self.run_ids:
            found = find_holding(self.folder, run_id)
            if found is not None and found.holding is not None and not found.holding.released:
                yield found.holding

    def training(self, rng: random.Random, launchers: list[Launcher] | None = None) -> tuple[Launcher, Holding] | None:
        """A launcher of this grid that holds a run with a line of its own, and the run."""
        for launcher in rng.sample(launchers or self.launchers, len(launchers or self.launchers)):
            held = launcher.holding() if launcher.running else None
            if held is not None and self.last_step(held.run_id) > 0 and self.result(held.run_id) is None:
                return launcher, held
        return None

    def last_step(self, run_id: str) -> int:
        lines = read_lines(self.folder / run_id / "metrics.jsonl", METRIC_FIELDS)
        return int(lines[-1]["step"]) if lines else 0

    def commits(self) -> Counter[str]:
        """How often each run's result.json got its name."""
        file = self.control / "commits.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        return Counter(json.loads(line)["run_id"] for line in lines)

    def commits_of(self, pids: list[int]) -> int:
        """How many of those these processes made."""
        file = self.control / "commits.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        return sum(json.loads(line)["pid"] in pids for line in lines)

    def close(self) -> None:
        """Kill what still runs, and copy what a person may want to see before the tmpfs goes."""
        for launcher in self.launchers:
            launcher.end()
        if self.mounted:
            with suppress(OSError):
                shutil.copytree(self.folder, self.outside / "study", dirs_exist_ok=True)
            subprocess.run(["umount", "-l", self.folder], check=False)
