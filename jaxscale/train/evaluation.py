"""Tasks on the models of runs in training: at chosen points, and at the end.

The weights asked are those that would be validated: the mean of the last ones once a run that averages has begun to,
its own before. The clock of the runs stands still meanwhile. A loss that is not finite gets no line: the trainer ends
the run for it. Of several processes that train one run all compute, and the first reads and writes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from jaxscale.config import MeshConfig
from jaxscale.data.files import TokenFiles
from jaxscale.errors import VerdictError
from jaxscale.evals.encode import encode_task, open_tokenizer
from jaxscale.evals.record import Evals, add_line, cut_evals, evaluate_task, find_missing
from jaxscale.evals.score import LoadedModel, make_scorer
from jaxscale.train import hosts
from jaxscale.train.engine import Engine
from jaxscale.train.member import Member
from jaxscale.train.record import RunFolder
from jaxscale.train.step import TrainState, strip_init

__all__ = ["Evaluation"]


class Evaluation:
    """The tasks of runs that train together through one engine; nothing to do without `evals`."""

    def __init__(
        self, evals: Evals | None, members: Sequence[Member], engine: Engine, tokens: TokenFiles, config: MeshConfig,
        dtype: Any, compiling: Callable[[str], AbstractContextManager[None]],
    ) -> None:  # fmt: skip
        self.evals, self.members, self.engine, self.compiling = evals, members, engine, compiling
        self.spec = members[0].spec
        self.covered, self.due_step = 0, -1
        if evals is not None:
            self.tokenizer = open_tokenizer(tokens.folder)
            int8 = self.spec.precision == "int8"
            self.scorer = make_scorer(strip_init(self.spec.model), engine.mesh, config, dtype, int8)

    def start(self, step: int) -> None:
        """Drop the lines past `step`, where training goes on."""
        if self.evals is not None:
            live = [member.folder for member in self.members if member.live]
            last = hosts.from_first(lambda: [cut_evals(folder.path, step) for folder in live], "evals so far")
            self.covered = max([self.spec.parent_step, *last])

    def is_due(self, step: int) -> bool:
        """Whether the state after `step`, the end of a logging interval, is to be evaluated."""
        if self.evals is None or not self.evals.is_due(self.covered, step, self.spec.steps):
            return False
        self.due_step = step
        return True

    def run_if_due(self, state: TrainState, step: int) -> None:
        """Evaluate at a point."""
        if step < self.spec.steps and (step == self.due_step or self.is_due(step)):
            self.run(state, step)

    def run(self, state: TrainState, step: int) -> None:
        """Evaluate every live member's weights and write the lines that are missing."""
        if self.evals is None:
            return
        begun = time.perf_counter()
        for i, member in enumerate(self.members):
            if member.live:
                self._run_member(self.engine.member(state, i), step, member)
        self.covered = step
        for member in self.members:
            if member.live:
                member.clock.started += time.perf_counter() - begun

    def _run_member(self, state: TrainState, step: int, member: Member) -> None:
        assert self.evals is not None
        evals, spec, folder = self.evals, member.spec, member.folder
        averaged = step > spec.steps - spec.average_steps
        model = LoadedModel(self.scorer, state.answer if averaged else state.params, self.tokenizer)
        missing = hosts.from_first(lambda: [task.name for task in find_missing(evals, folder.path, step)], "evals")
        with self.compiling("score"):
            for task in evals.tasks:
                encoded = encode_task(task, self.tokenizer, spec.model.seq_len, evals.shots, evals.pool)
                self.scorer.compile(model.params, encoded.windows)
        for task in evals.tasks:
            if task.name in missing:
                try:
                    line = evaluate_task(model, spec, step, evals, task)
                except VerdictError:  # in every process: all have the same likelihoods
                    return
                hosts.from_first(partial(self._write, folder, line), "eval line")

    def _write(self, folder: RunFolder, line: dict[str, Any]) -> None:
        folder.check()
        add_line(folder.path, line)
