"""A worker process of a simulation: judges the studies its parent names, one line each way at a time.

stdin: the task as one line of JSON, then a study's number a line; the end of the stream ends the worker.
stdout: ready, then the study's records as one line of JSON. A failure is a traceback on stderr.
"""

from __future__ import annotations

import json
import os
import sys

__all__ = ["main"]


def main(core: int) -> int:
    """Entry point: the core to stay on where every core has a worker, else -1."""
    if core >= 0:
        os.sched_setaffinity(0, {core})  # before JAX sizes its thread pools
    from jaxscale.plain import from_plain
    from jaxscale.simulate.count import Task, judge_study

    task = from_plain(json.loads(sys.stdin.readline()), Task)
    if "parametric" in task.methods:
        from jaxscale.fit.solver import keep_programs

        keep_programs()
    for line in sys.stdin:
        print(json.dumps(judge_study(task, int(line))), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
