"""Tasks on the models of runs in training: at chosen points, and at the end.

The weights asked are those that would be validated: the mean of the last ones once a run that averages has begun to,
its own before. The clock of the runs stands still meanwhile. A loss that is not finite gets no line: the trainer ends
the run for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from jaxscale.config import MeshConfig
from jaxscale.data.files import TokenFiles
from jaxscale.errors import VerdictError
from jaxscale.evals.encode import encode_task, open_tokenizer
from jaxscale.evals.record import Evals, cut_evals, evaluate_run
from jaxscale.evals.score import LoadedModel, make_scorer
from jaxscale.train.engine import Engine
from jaxscale.train.member import Member
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
            self.scorer = make_scorer(strip_init(self.spec.model), engine.mesh, config, dtype)

    def start(self, step: int) -> None:
        """Drop the lines past `step`, where training goes on."""
        if self.evals is not None:
            last = [cut_evals(member.folder.path, step) for member in self.members if member.live]
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
        averaged = step > self.spec.steps - self.spec.average_steps
        model = LoadedModel(self.scorer, state.answer if averaged else state.params, self.tokenizer)
        with self.compiling("score"):
            for task in self.evals.tasks:
                encoded = encode_task(task, self.tokenizer, self.spec.model.seq_len, self.evals.shots, self.evals.pool)
                self.scorer.compile(model.params, encoded.windows)
        try:
            evaluate_run(lambda: model, member.spec, step, self.evals, member.folder.path, member.folder.check)
        except VerdictError:
            return
