"""A training run asks, at each rung that it passes, whether it is hopeless (jaxscale.hopeless has the rule).

What it is compared with is read from the run folders: the curves of the rivals that its job names, all of which have
ended or train beside it in the same dispatches. A rung that was passed at an earlier start is not asked again.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from jaxscale.errors import MisuseError
from jaxscale.hopeless import RUNGS, Stop, Trace, judge_run
from jaxscale.plain import read_lines
from jaxscale.runs import METRIC_FIELDS, RunSpec, read_spec, run_dir
from jaxscale.sweep import read_result

__all__ = ["Stopper"]


class Stopper:
    """Watches one run against its rivals in a study folder: run ids, and whether they may stop it.

    MisuseError for a run that is never stopped.
    """

    def __init__(self, study_dir: Path, spec: RunSpec, rivals: Mapping[str, bool]) -> None:
        if spec.keeps or spec.parent or spec.schedule != "cosine":
            kind = "trunk" if spec.keeps else "branch" if spec.parent else f"run of schedule {spec.schedule}"
            raise MisuseError(f"run {spec.run_id} is a {kind} and is never stopped early; train it without rivals")
        self.study_dir, self.spec, self.rivals = study_dir, spec, dict(rivals)
        self.passed = 0

    def start(self, step: int) -> None:
        """Begin at `step`: the rungs up to it are behind."""
        self.passed = step

    def judge(self, step: int) -> Stop | None:
        """The first rung between the last call and `step` that stops the run; its line of `step` is written."""
        due = [rung for rung in RUNGS if self.passed < rung.share * self.spec.steps <= step < self.spec.steps]
        self.passed = step
        if not due or not self.rivals:
            return None
        own = self._read(self.spec.run_id)
        rivals = [self._read(run_id, stops) for run_id, stops in self.rivals.items() if self._speaks(run_id)]
        stops = (judge_run(self.spec.steps, own, rivals, rung) for rung in due)
        return next((stop for stop in stops if stop is not None), None)

    def _read(self, run_id: str, stops: bool = True) -> Trace:
        folder = run_dir(self.study_dir, run_id)
        lr = read_spec(folder / "spec.json").lr
        return Trace(run_id, lr, read_lines(folder / "metrics.jsonl", METRIC_FIELDS), stops)

    def _speaks(self, run_id: str) -> bool:
        """Whether a rival has begun, and not ended without a loss."""
        folder = run_dir(self.study_dir, run_id)
        file = folder / "result.json"
        ended = not file.exists() or read_result(file).state in ("done", "censored")
        return (folder / "spec.json").exists() and ended
