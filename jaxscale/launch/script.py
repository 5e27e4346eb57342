"""The batch script: one array, a task of it a list of cells, and what is done when `work` comes back.

    code of `jaxscale work`      what the script does
    0 ended                      ends
    1 a cell failed, spend cap   ends with it: another try would say the same
    2 misuse, 130 interrupted    ends with it
    75 saved, 143 stopped early  requeues itself: the notice of a preemption or of the time limit
    else: 134 137 139 125        requeues itself, at most max_deaths times: dead peer, out of memory, crash, srun's own

Slurm requeues by itself after a node failure, and where it takes a job away without notice (then the job is no longer
RUNNING and the script must not requeue it, least of all one that a person has cancelled).
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

from jaxscale.errors import MisuseError
from jaxscale.launch.settings import SlurmSettings, count_processes

__all__ = ["SRUN_FAILED", "render_script"]

SRUN_FAILED = 125
"""What srun exits with when it is srun that failed, so that its 1 is not taken for one of jaxscale's."""

PLACES = ("JAX_COORDINATOR_ADDRESS", "JAX_COORDINATOR_BIND_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID",
          "JAXSCALE_DISTRIBUTED")  # fmt: skip
"""What tells a process its place among several."""

ENDING = r"""
say() { echo "launch: task $task of job $SLURM_ARRAY_JOB_ID: $*" >&2; }

# Back into the queue; a job that is no longer RUNNING is being taken away: Slurm requeues it, or a user cancelled it.
again() {
    [ "$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)" = RUNNING ] || return
    if [ "${SLURM_RESTART_COUNT:-0}" -ge "$max_requeues" ]; then
        say "was restarted $SLURM_RESTART_COUNT times, as often as slurm.max_requeues allows; launch again to go on"
        return
    fi
    say "code $code, back into the queue"
    scontrol requeue "${SLURM_ARRAY_JOB_ID}_$task"
}

case $code in
    0 | 1 | 2 | 130) ;;
    75 | 143) again ;;
    *)  # ended without having saved: counted in a file, since Slurm's restart count has preemptions in it
        echo "$code $(hostname) $(date +%FT%T)" >>"$deaths"
        count=$(wc -l <"$deaths")
        if [ "$count" -lt "$max_deaths" ]; then
            again
        else
            say "code $code, the end number $count without a save (slurm.max_deaths); not tried again"
        fi
        ;;
esac
exit "$code"
"""


def render_script(settings: SlurmSettings, study_dir: Path, number: int, tasks: int, job_name: str) -> str:
    """The whole script of launch `number` with `tasks` tasks; `study_dir` is seen under this path on every node."""
    study_dir = Path(study_dir).absolute()
    _check_path(study_dir)
    lines = [
        "#!/usr/bin/env bash",
        f"# Launch {number} of {study_dir.name}: the cells of every task are in {number}.json beside this file.",
        *(f"#SBATCH {option}" for option in _list_options(settings, study_dir, tasks, job_name)),
        "",
        *settings.setup,
        *([""] if settings.setup else []),
        "set -u",
        "trap : TERM  # a TERM to the whole job must not end this script before its runs have saved",
        f"export SLURM_EXIT_ERROR={SRUN_FAILED}  # srun's own failures, apart from jaxscale's exit codes",
        "task=$SLURM_ARRAY_TASK_ID",
        f"deaths={shlex.quote(str(study_dir / 'launches'))}/{number}-$task.deaths",
        f"max_requeues={settings.max_requeues} max_deaths={settings.max_deaths}",
        *_list_coordinator(settings),
        "",
        _join(_list_step(settings), _list_command(settings, study_dir, number)),
        "code=$?",
    ]
    return "\n".join(lines) + "\n" + ENDING


def _check_path(study_dir: Path) -> None:
    bad = sorted({character for character in str(study_dir) if character in "%\"'\\#" or not character.isprintable()})
    if bad:
        raise MisuseError(f"{study_dir}: {bad[0]!r} in the path means something else to sbatch; move or rename the "
                          f"study folder")  # fmt: skip


def _list_options(settings: SlurmSettings, study_dir: Path, tasks: int, job_name: str) -> Iterator[str]:
    yield f"--job-name={job_name}"
    yield f"--array=0-{tasks - 1}" + (f"%{settings.throttle}" if settings.throttle else "")
    yield f'--output="{study_dir}/logs/slurm-%A_%a.out"'
    yield "--open-mode=append"
    yield "--requeue"
    yield f"--signal=TERM@{settings.notice_s}"
    for name in ("partition", "account", "qos", "constraint", "reservation", "mem"):
        if getattr(settings, name):
            yield f"--{name}={getattr(settings, name)}"
    if settings.time_limit:
        yield f"--time={settings.time_limit}"
    yield f"--nodes={settings.nodes_per_cell}"
    yield f"--ntasks-per-node={_per_node(settings)}"
    if settings.cpus_per_task:
        yield f"--cpus-per-task={settings.cpus_per_task}"
    if settings.gpus_per_node:
        yield f"--gpus-per-node={settings.gpus_per_node}"
    yield from settings.sbatch_args


def _per_node(settings: SlurmSettings) -> int:
    """Processes a node: of one cell, or workers side by side."""
    return max(settings.tasks_per_node, settings.workers_per_node)


def _list_coordinator(settings: SlurmSettings) -> Iterator[str]:
    """Where the processes of a cell meet: on an address of the first node and on no other."""
    yield f"unset {' '.join(PLACES)}  # of the shell that launched; srun numbers the processes"
    if count_processes(settings) == 1:
        return
    low, high = settings.ports
    if settings.nodes_per_cell == 1:
        yield "address=127.0.0.1"
    else:  # a node's own name may mean its loopback there, where no other node could reach it
        yield 'host=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)'
        yield "address=$(getent ahostsv4 \"$host\" | awk '$1 !~ /^127[.]/ { print $1; exit }')"
        yield "address=${address:-$host}"
    yield f"export JAX_COORDINATOR_ADDRESS=$address:$(({low} + SLURM_JOB_ID % {high - low + 1}))"
    yield "export JAX_COORDINATOR_BIND_ADDRESS=$JAX_COORDINATOR_ADDRESS"


def _list_step(settings: SlurmSettings) -> Iterator[str]:
    """srun; each option said again that a step does not take over from its job."""
    yield "srun"
    yield "--kill-on-bad-exit=0"
    yield f"--nodes={settings.nodes_per_cell}"
    yield f"--ntasks={settings.nodes_per_cell * _per_node(settings)}"
    if settings.cpus_per_task:
        yield f"--cpus-per-task={settings.cpus_per_task}"
    if settings.gpus_per_node and settings.workers_per_node > 1:
        yield f"--gpus-per-task={settings.gpus_per_node // settings.workers_per_node}"
    yield from settings.srun_args


def _list_command(settings: SlurmSettings, study_dir: Path, number: int) -> Iterator[str]:
    yield from settings.prefix
    yield from settings.command or (sys.executable, "-m", "jaxscale")
    yield from ("work", str(study_dir), "--launch", str(number), "--task")


def _join(step: Iterator[str], command: Iterator[str]) -> str:
    return f'{shlex.join(step)} \\\n    {shlex.join(command)} "$task"'
