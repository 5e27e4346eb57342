"""Stands in for `jaxscale work DIR --launch K --task I`: the task's cells one after another, each by `train --run`."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from jaxscale.launch import read_task
from jaxscale.runs import run_dir


def main() -> int:
    """0 all ended, 1 a cell did not end as done, 75 told to stop and saved."""
    _, folder, _, number, _, task = sys.argv[1:]
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    codes = []
    for run_id in read_task(Path(folder), int(number), int(task)):
        if (run_dir(Path(folder), run_id) / "result.json").exists():
            continue
        print(f"begin {run_id}", flush=True)
        codes.append(subprocess.run([sys.executable, "-m", "jaxscale", "train", folder, "--run", run_id]).returncode)
        if stopped:
            return 75
    return max(codes, default=0)


if __name__ == "__main__":
    sys.exit(main())
