"""Stand-ins for Slurm's commands on PATH, with their state as files: what a launch asks, and what it is told."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

__all__ = ["fake_slurm", "queue_line"]

SBATCH = """#!/bin/bash
[ -e "$FAKE/sbatch_refuses" ] && { echo "sbatch: error: Batch job submission failed: Invalid partition" >&2; exit 1; }
sleep "$(cat "$FAKE/sbatch_sleeps" 2>/dev/null || echo 0)"
script="${@: -1}"
name=$(sed -n 's/^#SBATCH --job-name=//p' "$script")
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$script")
number=$(( $(cat "$FAKE/number" 2>/dev/null || echo 0) + 1 )); echo $number >"$FAKE/number"
for task in $(seq 0 "$last"); do echo "$name|$number|$task|PENDING|Priority" >>"$FAKE/queue"; done
echo "$script" >>"$FAKE/submitted"
[ -e "$FAKE/sbatch_loses_answer" ] && { echo "sbatch: error: Socket timed out on send/recv operation" >&2; exit 1; }
echo "$number;cluster"
"""

SQUEUE = """#!/bin/bash
[ -e "$FAKE/squeue_fails" ] && { echo "slurm_load_jobs error: Unable to contact slurm controller" >&2; exit 1; }
for word; do
    case $word in
        --jobs=*) cat "$FAKE/state"; exit ;;
        --name=*) names=,${word#--name=}, ;;
    esac
done
while IFS= read -r line; do
    case $names in *",${line%%|*},"*) echo "$line" ;; esac
done < <(cat "$FAKE/queue" 2>/dev/null)
"""

SCONTROL = """#!/bin/bash
if [ "$1 $2" = "show hostnames" ]; then echo rack-a01-n1; echo rack-a02-n1; exit; fi
echo "$*" >>"$FAKE/scontrol"
"""

SRUN = """#!/bin/bash
printf '%s\\n' "$*" >>"$FAKE/srun"
env | grep '^JAX_[CNP][ORU]' >>"$FAKE/srun"
exit "$(cat "$FAKE/code")"
"""


def fake_slurm(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the stand-ins first on PATH; gives the folder of their state."""
    programs = {"sbatch": SBATCH, "squeue": SQUEUE, "scontrol": SCONTROL, "srun": SRUN}
    (folder / "bin").mkdir(parents=True)
    for name, text in programs.items():
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE", str(folder))
    return folder


def queue_line(name: str, task: int, state: str = "RUNNING", reason: str = "None") -> str:
    """One line of the stand-in's queue."""
    return f"{name}|1|{task}|{state}|{reason}\n"
