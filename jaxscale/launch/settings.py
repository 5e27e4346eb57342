"""What a person says about a Slurm cluster, checked before a line of it lands in a script.

    launch/slurm.py        get_settings() -> SlurmSettings, edited once a cluster
    --slurm.partition x    one launch only

Every value goes either into an `#SBATCH` line, where it may hold no character that could end the value or the line,
or into the shell part, where it is quoted. `setup` is shell of the user's own and goes in as it stands, a line each.
"""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass, fields
from pathlib import Path

from jaxscale.errors import MisuseError

__all__ = ["SlurmSettings", "count_processes", "load_settings", "parse_minutes"]

MOST_NOTICE_S = 65_535
"""Slurm's own limit of `--signal=TERM@N`."""

OURS = ("array", "output", "error", "open-mode", "requeue", "no-requeue", "job-name", "signal", "export", "parsable",
        "wrap", "wait", "test-only", "kill-on-bad-exit")  # fmt: skip
"""Options that the script sets itself, or that would change what `launch` reads back."""

NAME = re.compile(r"[\w.,:@+=/&|()\[\]*!-]+")
SECRET = re.compile(r"\w*(KEY|TOKEN|SECRET|PASSWORD|PASSWD)\w*=[\"']?[^\s\"'$/~]", re.IGNORECASE)
"""A variable of a telling name that is given a value in place; `NAME=$(cat FILE)` is not one."""


@dataclass(frozen=True)
class SlurmSettings:
    """How tasks are asked for and started. Empty and 0 leave a field to the cluster's own default."""

    partition: str = ""
    """Partition, or several with commas between: whichever starts first."""
    account: str = ""
    """Account that is charged."""
    qos: str = ""
    """Quality of service."""
    constraint: str = ""
    """Features that a node must have, as sbatch writes them: a100|h100."""
    reservation: str = ""
    """Reservation to run in."""
    nodes_per_cell: int = 1
    """Nodes that train one cell together."""
    tasks_per_node: int = 1
    """Processes a node of such a cell; with more than one process in all they meet by jax.distributed."""
    workers_per_node: int = 1
    """Pull workers side by side on a node, each with its share of CPUs and GPUs; cells of one process only."""
    cpus_per_task: int = 0
    """CPUs of each process."""
    gpus_per_node: int = 0
    """GPUs of each node."""
    mem: str = ""
    """Memory of each node, such as 64G."""
    time_limit: str = ""
    """Longest time of one task before it is saved and requeued: HH:MM:SS, D-HH:MM:SS or minutes."""
    notice_s: int = 120
    """Seconds before the time limit at which runs are told to save; longer than a save takes."""
    throttle: int = 0
    """Tasks that run at once."""
    task_minutes: float = 60.0
    """Cells are grouped until a task has about this many planned minutes, never more than the time limit allows."""
    max_tasks: int = 1000
    """Tasks of one array; the cluster's MaxArraySize bounds it (1001 unless the site raised it)."""
    max_requeues: int = 100
    """Restarts of one task for any reason (preemption, time limit, node failure, death); then it ends."""
    max_deaths: int = 5
    """Times that one task may end without having saved (out of memory, a dead peer); then it ends with that code."""
    setup: tuple[str, ...] = ()
    """Shell lines before the work: module load, source venv/bin/activate, export."""
    prefix: tuple[str, ...] = ()
    """Words before the command on each node, such as: apptainer exec --nv image.sif."""
    command: tuple[str, ...] = ()
    """Words that call jaxscale on a node; empty: this Python, with -m jaxscale."""
    srun_args: tuple[str, ...] = ()
    """More options of srun, such as --container-image=..., --gpu-bind=none."""
    sbatch_args: tuple[str, ...] = ()
    """More options of sbatch, one each, such as --mail-type=FAIL."""
    ports: tuple[int, int] = (20_000, 24_999)
    """First and last port of which a job of several processes takes one, by its job id."""

    def __post_init__(self) -> None:
        _check_names(self)
        _check_numbers(self)
        _check_times(self)
        _check_words(self)

    @property
    def most_seconds(self) -> float | None:
        """Seconds that a task may train before it is told to save; None without a time limit."""
        return parse_minutes(self.time_limit) * 60 - self.notice_s if self.time_limit else None


def count_processes(settings: SlurmSettings) -> int:
    """Processes that train one cell."""
    return settings.nodes_per_cell * settings.tasks_per_node


def parse_minutes(text: str) -> float:
    """Minutes of a time limit.

    >>> [parse_minutes(limit) for limit in ("90", "01:30:00", "2-00:00:00", "00:00:30")]
    [90.0, 90.0, 2880.0, 0.5]
    """
    if text.isdecimal() and text.isascii():
        return float(text)
    found = re.fullmatch(r"(?:(\d{1,3})-)?(\d{1,3}):([0-5]\d):([0-5]\d)", text, re.ASCII)
    if not found:
        raise MisuseError(f"slurm.time_limit: {text!r} is no time; write minutes, HH:MM:SS or D-HH:MM:SS")
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return days * 1440 + hours * 60 + minutes + seconds / 60


def _check_names(settings: SlurmSettings) -> None:
    for name in ("partition", "account", "qos", "constraint", "reservation"):
        value = getattr(settings, name)
        if value and not NAME.fullmatch(value):
            raise MisuseError(f"slurm.{name}: {value!r} has a character that an #SBATCH line cannot hold; use letters, "
                              f"digits and .,:@+=/&|()[]*!-")  # fmt: skip
    if settings.mem and not re.fullmatch(r"[1-9]\d*[KMGT]?", settings.mem, re.ASCII):
        raise MisuseError(f"slurm.mem: {settings.mem!r} is no amount of memory; write for example 64G")


def _check_numbers(settings: SlurmSettings) -> None:
    least = {"nodes_per_cell": 1, "tasks_per_node": 1, "workers_per_node": 1, "cpus_per_task": 0, "gpus_per_node": 0,
             "throttle": 0, "max_tasks": 1, "max_requeues": 0, "max_deaths": 1, "notice_s": 1}  # fmt: skip
    for name, low in least.items():
        if getattr(settings, name) < low:
            raise MisuseError(f"slurm.{name}: {getattr(settings, name)} is too few; use {low} or more")
    if settings.workers_per_node > 1 and count_processes(settings) > 1:
        raise MisuseError(f"slurm.workers_per_node: {settings.workers_per_node} workers a node do not go with cells "
                          f"of {count_processes(settings)} processes; use 1 of either")  # fmt: skip
    if settings.gpus_per_node % settings.workers_per_node:
        raise MisuseError(f"slurm.gpus_per_node: {settings.gpus_per_node} GPUs do not divide over "
                          f"{settings.workers_per_node} workers; use a divisor of it as workers_per_node")  # fmt: skip
    low_port, high_port = settings.ports
    if not 1024 <= low_port <= high_port <= 65_535:
        raise MisuseError(f"slurm.ports: {low_port} to {high_port} is no range of ports; use two from 1024 to 65535")


def _check_times(settings: SlurmSettings) -> None:
    if settings.notice_s > MOST_NOTICE_S:
        raise MisuseError(f"slurm.notice_s: {settings.notice_s} is more than Slurm's limit; use at most "
                          f"{MOST_NOTICE_S}")  # fmt: skip
    if not settings.task_minutes > 0:
        raise MisuseError(f"slurm.task_minutes: {settings.task_minutes:g} leaves no time to train; use 1 or more")
    if settings.time_limit and parse_minutes(settings.time_limit) * 60 <= settings.notice_s:
        raise MisuseError(f"slurm.time_limit: {settings.time_limit} leaves nothing to train before the notice of "
                          f"{settings.notice_s} s; raise it or lower slurm.notice_s")  # fmt: skip


def _check_words(settings: SlurmSettings) -> None:
    for name in ("setup", "prefix", "command", "srun_args", "sbatch_args"):
        for word in getattr(settings, name):
            if not word.strip() or not word.isprintable():
                raise MisuseError(f"slurm.{name}: {word!r} is empty or has a line break in it; give one line each")
            if SECRET.search(word):
                shown = word.split("=")[0]
                raise MisuseError(f"slurm.{name}: {shown}=... would write a secret into the script and its record; "
                                  f"write $(cat FILE) behind the =, or export it before the launch")  # fmt: skip
    for name in ("srun_args", "sbatch_args"):
        for word in getattr(settings, name):
            option = word.lstrip("-").split("=")[0].split(" ")[0]
            if name == "sbatch_args" and (not word.startswith("--") or not NAME.fullmatch(word)):
                raise MisuseError(f"slurm.sbatch_args: {word!r} is no option of one word; write --option=value without "
                                  f"spaces or quotes")  # fmt: skip
            if option in OURS:
                raise MisuseError(f"slurm.{name}: --{option} is set by the launch itself; leave it out")


def load_settings(path: str | Path) -> SlurmSettings:
    """Import the file at `path` and call its get_settings(); MisuseError says what is wrong with it."""
    file = Path(path)
    if not file.is_file():
        raise MisuseError(f"--settings {str(path)!r}: no such file; copy launch/slurm.py and edit it")
    spec = importlib.util.spec_from_file_location(f"jaxscale_settings_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise MisuseError(f"--settings {str(path)!r}: not a Python file; it must be a .py file with get_settings()")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        settings = module.get_settings()
    except MisuseError as error:
        raise MisuseError(f"--settings {path}: {error}") from error
    except Exception as error:
        raise MisuseError(f"--settings {str(path)!r}: {type(error).__name__}: {error}") from error
    if not isinstance(settings, SlurmSettings):
        raise MisuseError(f"--settings {str(path)!r}: get_settings() returned {type(settings).__name__}, "
                          f"not SlurmSettings")  # fmt: skip
    _check_types(settings)
    return settings


def _check_types(settings: SlurmSettings) -> None:
    """A settings file is Python: 8.0 nodes, or a list of lines, must not reach the script."""
    for field in fields(settings):
        value, default = getattr(settings, field.name), field.default
        wanted = (int, float) if isinstance(default, float) else type(default)
        if not isinstance(value, wanted) or isinstance(value, bool):
            raise MisuseError(f"slurm.{field.name}: {value!r} is a {type(value).__name__}; write it like {default!r}")
