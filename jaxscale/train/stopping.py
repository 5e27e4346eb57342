"""A training run asks, at each rung that it passes, whether it is hopeless (jaxscale.hopeless has the rule).

What it is compared with is read from the run folders: the curves of the rivals that its job names, all of which have
ended or train beside it in the same dispatches. A rung that was passed at an earlier start is not asked again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jaxscale.errors import MisuseError
from jaxscale.hopeless import RUNGS, Stop, Trace, judge_run
from jaxscale.runs import METRIC_FIELDS, RunSpec, from_plain, read_json, read_lines, run_dir
from jaxscale.sweep import read_result

__all__ = ["Stopper"]


class Stopper:
    """Watches one run against its rivals (run ids) in a study folder; MisuseError for a run that is never stopped."""

    def __init__(self, study_dir: Path, spec: RunSpec, rivals: Sequence[str]) -> None:
        if spec.keeps or spec.parent or spec.schedule != "cosine":
            kind = "trunk" if spec.keeps else "branch" if spec.parent else f"run of schedule {spec.schedule}"
            raise MisuseError(f"run {spec.run_id} is a {kind} and is never stopped early; train it without rivals")
        self.study_dir, self.spec, self.rivals = study_dir, spec, tuple(rivals)
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
        own = self._read(self.spec.run_id, self.spec.lr)
        rivals = [self._read(run_id) for run_id in self.rivals if self._speaks(run_id)]
        stops = (judge_run(self.spec.steps, own, rivals, rung) for rung in due)
        return next((stop for stop in stops if stop is not None), None)

    def _read(self, run_id: str, lr: float | None = None) -> Trace:
        folder = run_dir(self.study_dir, run_id)
        if lr is None:
            lr = from_plain(read_json(folder / "spec.json"), RunSpec).lr
        return Trace(run_id, lr, read_lines(folder / "metrics.jsonl", METRIC_FIELDS))

    def _speaks(self, run_id: str) -> bool:
        """Whether a rival has begun, and not ended without a loss."""
        folder = run_dir(self.study_dir, run_id)
        file = folder / "result.json"
        ended = not file.exists() or read_result(file).state in ("done", "censored")
        return (folder / "spec.json").exists() and ended
