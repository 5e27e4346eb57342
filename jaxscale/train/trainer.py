"""Runs of one shape through one engine, from their restored state to their results.

The device is given its next dispatch before the last one's metrics are read, and its batch before that, so that it
waits for the host only where the runs pause: to save, to keep a state, to evaluate, to stop, at their end. They pause
after whole logging intervals, so a resumed run walks through the same dispatches as an undisturbed one and its curve
agrees to the bit on the same devices and thread count.

A trunk stops at the steps whose states it keeps for its branches; a branch begins from such a state and goes on in
the trunk's order of the data, so that it is to the bit the run that the trunk would have become.
"""

from __future__ import annotations

import math
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import numpy as np

from jaxscale.config import LaunchConfig, MeshConfig
from jaxscale.data.attribution import make_validation
from jaxscale.data.batches import iterate_batches
from jaxscale.data.mixture import open_batches
from jaxscale.data.tokens import TokenFiles, build_tokens
from jaxscale.errors import MisuseError
from jaxscale.evals.record import Evals
from jaxscale.plain import from_plain
from jaxscale.runs import RunResult
from jaxscale.sweep import Way
from jaxscale.train import hosts
from jaxscale.train.checkpoint import Checkpoints, Damaged, keep_state, read_state, unseal_state
from jaxscale.train.compiling import compile_alone
from jaxscale.train.dispatch import lay_out
from jaxscale.train.engine import Engine, make_engine
from jaxscale.train.evaluation import Evaluation
from jaxscale.train.execution import compute_dtype, count_microbatch
from jaxscale.train.member import Member, Progress
from jaxscale.train.opening import check_tokens
from jaxscale.train.packs import PackFolder
from jaxscale.train.record import RunFolder
from jaxscale.train.step import TrainState, strip_init
from jaxscale.train.stopping import Stopper
from jaxscale.train.track import check_trackers

__all__ = ["Preempted", "Trainer"]

AHEAD = 1
"""Dispatches that the device is given before the metrics of an earlier one are read."""
EVAL_SEQS = 32
"""Sequences in one forward pass of validation, at least; rounded up to the devices."""


class Preempted(Exception):
    """The run was asked to stop and has saved; the next start goes on from there."""

    released = "preempted"
    agreed = True
    """Every process of the run raises it (JaxscaleError.agreed)."""


class _Sent(NamedTuple):
    """A dispatch that the device was given: its metrics, its steps, and the step it ends at."""

    metrics: Any
    steps: int
    step: int
    ends_interval: bool


class _Interval(NamedTuple):
    """A logging interval up to `step`: losses, gradient norms and what else `Engine.fetch` gives, [members, steps].

    `state` is the one after it, where the run pauses there; elsewhere the device is further already.
    """

    step: int
    metrics: tuple[np.ndarray, ...]
    state: TrainState | None


class Trainer:
    """Runs of one shape, batch and length, each with its own numbers, through one engine."""

    def __init__(
        self,
        folders: Sequence[RunFolder],
        ended: Sequence[RunResult | None],
        pack: PackFolder | None,
        mesh_config: MeshConfig,
        on_progress: Callable[[Progress], None] | None,
        should_stop: Callable[[], bool],
        data_sha256: str,
        rivals: Mapping[str, Mapping[str, bool]],
        launch: LaunchConfig,
        evals: Evals | None,
        measure_noise: bool,
    ) -> None:
        specs = [folder.spec for folder in folders]
        self.spec, self.config, self.should_stop = specs[0], mesh_config, should_stop
        check_trackers(launch)
        self.tokens: TokenFiles = build_tokens(self.spec.data)
        for spec in specs:
            check_tokens(spec, self.tokens, data_sha256)
        self.validation = make_validation(self.tokens, self.spec.data, self.spec.model.seq_len)
        dtype = compute_dtype(mesh_config, self.spec.precision)
        self.pack, told = pack, pack.describe() if pack else None
        watched = {run_id: Stopper(folder.path.parent, folder.spec, rivals[run_id]) for folder in folders
                   if (run_id := folder.spec.run_id) in rivals}  # fmt: skip
        self.members = [
            Member(folder, result, self.tokens, dtype, told, on_progress, watched.get(folder.spec.run_id), launch)
            for folder, result in zip(folders, ended, strict=True)
        ]
        way: Way = cast(Way, pack.pack.way) if pack else "process"
        microbatch_seqs = count_microbatch(self.spec, way, mesh_config, dtype)
        self.layout = lay_out(self.spec, microbatch_seqs, jax.default_backend(), len(jax.devices()), len(specs))
        self.measures = measure_noise and self.layout.accumulate > 1
        self.engine: Engine = make_engine(specs, self.layout.slots, way, mesh_config, dtype, self.measures)
        for member in self.members if measure_noise else ():
            member.measure_noise(microbatch_seqs * self.spec.model.seq_len)
        self.saved_at, self.stop, self.save = 0.0, False, False
        self.evaluation = Evaluation(evals, self.members, self.engine, self.tokens, mesh_config, dtype, self._compiling)

    def train(self, keep_weights: bool) -> tuple[RunResult, ...]:
        if self.pack is not None:
            self.pack.prepare()
        folder = self.members[0].folder.checkpoints if self.pack is None else self.pack.checkpoints
        for member in self.members:
            member.folder.check()  # opening removes saves that are under way
        checkpoints = Checkpoints(folder)
        with self._compiling("train"):
            self.engine.compile()  # before the clock starts
        with checkpoints.closing():
            whole = hosts.from_first(self._last_line, "curve")
            saved = checkpoints.restore(self.engine.abstract_state(), at_most=whole)
            state = self._begin() if saved is None else self.engine.place(saved)
            step = int(np.max(np.asarray(state.step)))
            for member in self.members:
                member.start(step, checkpoints.skipped)
            self.evaluation.start(step)
            self.evaluation.run_if_due(state, step)  # where it was stopped before it could be
            state = self._run(state, step, checkpoints)
            self._conclude(state, checkpoints, keep_weights)
        if self.pack is not None:
            self.pack.remove()
        elif not keep_weights and hosts.is_first():
            shutil.rmtree(folder, ignore_errors=True)
        results = [member.result for member in self.members if member.result is not None]
        if hosts.is_many():  # the first one's clock and restarts hold
            results = [from_plain(plain, RunResult) for plain in hosts.broadcast([asdict(own) for own in results])]
        return tuple(results)

    def _last_line(self) -> int:
        """The step up to which the curves of all live members are whole."""
        return min((member.folder.last_line() for member in self.members if member.live), default=0)

    def _compiling(self, program: str) -> AbstractContextManager[None]:
        """Alone with one of this run's programs; the key says what they depend on, more rather than less."""
        spec, config = self.spec, replace(self.config, compile_cache="")
        way = self.pack and (self.pack.pack.way, len(self.members))
        key = repr((program, strip_init(spec.model), spec.schedule, spec.optimizer, spec.average_steps > 0,
                    spec.microbatch_seqs, spec.precision, self.layout.slots, way, config, self.measures))  # fmt: skip
        return compile_alone(self.config.compile_cache, key, self.should_stop)

    def _begin(self) -> TrainState:
        """The state before the first step; a branch's is its trunk's."""
        if not self.spec.parent:
            with self._compiling("begin"):
                return jax.block_until_ready(self.engine.begin())
        kept = Path(hosts.from_first(lambda: str(self.members[0].folder.inherit()), "inherit"))
        like = self.engine.abstract_state()
        saved = hosts.together(lambda: self._read_kept(kept / "state", like), "read the trunk's state")
        try:
            return self.engine.place(unseal_state(saved, like))
        except Damaged as error:
            refusal = self._refuse_trunk(error)
            refusal.agreed = True  # all have read the same
            raise refusal from error

    def _read_kept(self, folder: Path, like: TrainState) -> dict[str, Any]:
        try:
            return read_state(folder, like)
        except (MemoryError, PermissionError, jax.errors.JaxRuntimeError):
            raise  # the machine's trouble, not the state's
        except Exception as error:
            raise self._refuse_trunk(error) from error

    def _refuse_trunk(self, error: Exception) -> MisuseError:
        words = (str(error).splitlines() or [""])[0][:200]
        return MisuseError(f"run {self.spec.run_id}: the state of its trunk at step {self.spec.parent_step} cannot be "
                           f"read ({type(error).__name__}: {words}); train the trunk anew after "
                           f"`jaxscale reset DIR {self.spec.parent}`")  # fmt: skip

    def _keep(self, state: TrainState, step: int) -> None:
        """Keep a trunk's state for a branch, before any later checkpoint: a kill cannot come between."""
        if self.members[0].live:
            folder = hosts.from_first(lambda: str(self.members[0].folder.keep_lines(step)), "keep")
            keep_state(Path(folder) / "state", state)

    def _run(self, state: TrainState, step: int, checkpoints: Checkpoints) -> TrainState:
        """Train to the last step, or until every member has ended; the final state."""
        self.saved_at = time.perf_counter()
        with ExitStack() as files:
            for member in self.members:
                files.enter_context(member.writing())
            for interval in self._intervals(state, step):
                for member, *own in zip(self.members, *interval.metrics, strict=True):
                    member.take(interval.step, *own)
                for member in self.members:
                    member.stop_if_hopeless()
                if interval.state is not None:
                    state = interval.state
                    self._pause(state, interval.step, checkpoints)
                if not any(member.live for member in self.members):
                    break
        return state

    def _pause(self, state: TrainState, step: int, checkpoints: Checkpoints) -> None:
        """Keep or save what is due at `step`; raises Preempted when the run was asked to stop."""
        if step in self.spec.keeps:
            self._keep(state, step)
        if step == self.spec.steps or not any(member.live for member in self.members):
            return
        if self.stop or self.save:
            for member in self.members:
                member.sync()
            checkpoints.save(self.engine.to_save(state), step, wait=self.stop)
            self.saved_at = time.perf_counter()
            for member in self.members:
                member.folder.tell(saved_step=step)
        if self.stop:
            raise Preempted(f"{self._name()} saved at step {step} of {self.spec.steps}")
        self.evaluation.run_if_due(state, step)

    def _name(self) -> str:
        return f"run {self.spec.run_id}" if self.pack is None else f"pack of {len(self.members)} runs"

    def _conclude(self, state: TrainState, checkpoints: Checkpoints, keep_weights: bool) -> None:
        """Validate what reached its end, keep its weights, and write how each member ended."""
        if not any(member.live for member in self.members):
            return
        for member in self.members:
            member.sync()
        if keep_weights and self.pack is None:
            checkpoints.finish(state, self.spec.steps)
            self.members[0].folder.tell(saved_step=self.spec.steps)
        elif keep_weights:
            self._keep_weights(state)
        self.evaluation.run(state, self.spec.steps)
        sums, drawn = self._validate(state)
        for i, member in enumerate(self.members):
            if member.live:
                member.end(sums[i], self.validation, None if drawn is None else drawn[i])

    def _keep_weights(self, state: TrainState) -> None:
        for i, member in enumerate(self.members):
            if member.live:
                own = Checkpoints(member.folder.checkpoints)
                own.finish(self.engine.member(state, i), self.spec.steps)
                own.close()

    def _intervals(self, state: TrainState, step: int) -> Iterator[_Interval]:
        """The logging intervals from `step` on, in order. The device runs ahead of them, but where the run pauses."""
        spec, ahead, parts = self.spec, deque[_Sent](), list[tuple[np.ndarray, ...]]()
        for first, staged, count in self._staged(step):
            live = np.array([member.live for member in self.members])
            state, metrics = self.engine.step(state, staged, live, count)
            step = first + count
            crossed = step // self.layout.line > first // self.layout.line  # other devices, other dispatches
            ends = crossed or step == spec.steps or step in spec.keeps
            pause = ends and self._pauses_at(step)
            ahead.append(_Sent(metrics, count, step, ends))
            while len(ahead) > (0 if pause else AHEAD):
                sent = ahead.popleft()
                parts.append(self.engine.fetch(sent.metrics, sent.steps))
                if sent.ends_interval:
                    metrics_of_line = tuple(np.concatenate(part, axis=1) for part in zip(*parts, strict=True))
                    parts = []
                    yield _Interval(sent.step, metrics_of_line, None if ahead or not pause else state)

    def _pauses_at(self, step: int) -> bool:
        """Whether the state after the interval that ends at `step` is wanted; asks once whether to stop.

        Any process that is asked to stop stops all, and the first whose clock says so has all save.
        """
        due = time.perf_counter() - self.saved_at > self.config.checkpoint_every_s
        self.stop, self.save = hosts.agree((self.should_stop(), due), "interval")
        chosen = step == self.spec.steps or step in self.spec.keeps or self.evaluation.is_due(step)
        return chosen or self.stop or self.save

    def _staged(self, step: int) -> Iterator[tuple[int, Any, int]]:
        """(first step, batch on the devices, steps) of every dispatch from `step` on."""
        for first, windows in self._dispatches(step):
            slots = np.zeros((len(self.members), self.layout.slots, *windows.shape[2:]), np.int32)
            slots[:, : windows.shape[1]] = windows
            yield first, self.engine.stage(slots), windows.shape[1] // self.layout.accumulate

    def _dispatches(self, step: int) -> Iterator[tuple[int, np.ndarray]]:
        """(first step, microbatches [members, n, b, t + 1]) of every dispatch from `step` on."""
        for stop in sorted({*self.spec.keeps, self.spec.steps}):
            yield from self._dispatches_to(stop, step)
            step = max(step, stop)

    def _dispatches_to(self, stop: int, step: int) -> Iterator[tuple[int, np.ndarray]]:
        """The dispatches from `step` that end at step `stop`; none where it is past."""
        spec, seq_len = self.spec, self.spec.model.seq_len
        seeds = [member.spec.seed for member in self.members]
        streams = {
            seed: iterate_batches(
                open_batches(self.tokens, seq_len, spec.batch_seqs, seed, *self.engine.row_group),
                step, stop, self.layout.steps,
            )
            for seed in dict.fromkeys(seeds)
        }  # fmt: skip
        for parts in zip(*streams.values(), strict=True):
            by_seed = dict(zip(streams, parts, strict=True))
            windows = np.stack([by_seed[seed] for seed in seeds])
            rows = self.engine.microbatch_seqs // self.engine.row_group[1]
            yield step, windows.reshape(len(seeds), -1, rows, seq_len + 1)
            step += windows.shape[1]

    def _validate(self, state: TrainState) -> tuple[np.ndarray, np.ndarray | None]:
        """Summed validation loss of every window [members, n], or of its masks [members, n, 1 + segments].

        And the standard error [members] that the mean has from the masks that were drawn; None where none are.
        """
        replicas = self.engine.replicas
        rows = math.ceil(EVAL_SEQS / replicas) * replicas
        count = len(self.validation.windows)
        windows, mask = (_fold(part, rows) for part in (self.validation.windows, self.validation.mask))
        with self._compiling(f"validate {self.validation.segments}"):
            sums = self.engine.evaluate(state, windows, mask.astype(np.float32))
        sums = sums.astype(np.float64).reshape(len(sums), -1, *sums.shape[3:])[:, :count]
        if self.spec.model.objective == "autoregressive":
            return sums, None
        apart = sums[..., 1] - sums[..., 0]  # of two independent halves, of which the mean is taken
        apart = apart if apart.ndim == 2 else apart[:, :, 0]
        return sums.mean(axis=-1), np.sqrt(np.sum(apart**2, axis=1)) / 2 / self.validation.counts.sum()


def _fold(part: np.ndarray, rows: int) -> np.ndarray:
    """[n, ...] as [chunks, rows, ...], the last chunk filled up with zeros."""
    padding = ((0, -len(part) % rows), *((0, 0),) * (part.ndim - 1))
    return np.pad(part, padding).reshape(-1, rows, *part.shape[1:])
