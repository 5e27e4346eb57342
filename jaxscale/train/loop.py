"""Train one run to its end: restore, dispatch, watch, save, validate, and write down how it ended.

The dispatches of a logging interval are queued without waiting; their metrics are read at its end. It stops at
whole logging intervals, so a resumed run walks through the same dispatches as an undisturbed one and its curve
agrees to the bit on the same devices and thread count.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxscale.config import MeshConfig
from jaxscale.data.batches import BatchSource, iterate_batches, validation_windows
from jaxscale.data.tokens import TokenFiles, build_tokens
from jaxscale.errors import JaxscaleError, MisuseError, VerdictError
from jaxscale.flops import count_params, flops_per_token
from jaxscale.runs import RunResult, RunSpec
from jaxscale.train.checkpoint import Checkpoints
from jaxscale.train.optimizer import Hyper, learning_rate
from jaxscale.train.provenance import describe_machine
from jaxscale.train.record import RunFolder, is_disk_full
from jaxscale.train.sharding import check_batch, make_mesh
from jaxscale.train.step import Program, TrainState, make_program

__all__ = ["Preempted", "Progress", "train_run"]

LOG_LINES = 200
"""Lines of metrics.jsonl a run writes, about; a long run more."""
LINE_DISPATCHES = 16
"""Dispatches in a logging interval at most: a run asked to stop ends its interval first, in seconds."""
DISPATCH_FLOPS = {"cpu": 1e10, "gpu": 2e14, "tpu": 2e14}
"""FLOPs of one dispatch on one device: about a second, so that a preempted run can stop in time."""
MAX_SLOTS = 32
EVAL_SEQS = 32
"""Sequences in one forward pass of validation, at least; rounded up to the devices."""


class Preempted(Exception):
    """The run was asked to stop and has saved; the next start goes on from there."""


@dataclass(frozen=True)
class Progress:
    """What a running cell tells: rates are since this start, loss in nats per token."""

    run_id: str
    step: int
    steps: int
    loss: float
    tokens_per_s: float
    flops_per_s: float


@dataclass
class _Clock:
    """Seconds trained, earlier starts included, and tokens since this one."""

    before_s: float
    started: float
    first_step: int

    def seconds(self) -> float:
        return self.before_s + time.perf_counter() - self.started


def train_run(
    spec: RunSpec,
    out: str | Path,
    *,
    mesh: MeshConfig | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    data_sha256: str = "",
) -> RunResult:
    """Train `spec` in the study folder `out` and return its result; a run that has ended is only read.

    Resumes from the newest checkpoint. A non-finite loss ends the run as "diverged", naming step and value.
    Raises Preempted after saving when `should_stop` turns true, MisuseError for what the user can mend (a text
    that is not `data_sha256`, the plan's, among it), VerdictError when the disk is full: nothing saved is lost.
    """
    folder = RunFolder(Path(out), spec)
    try:
        ended = folder.read_result()
        if ended is not None:
            return ended
        folder.prepare()
        with folder.lock():
            ended = folder.read_result()
            if ended is not None:
                return ended
            result = _Trainer(spec, folder, mesh or MeshConfig(), on_progress, should_stop, data_sha256).train()
            folder.write_result(result)
            return result
    except Exception as error:
        if isinstance(error, JaxscaleError) or not is_disk_full(error):
            raise
        raise VerdictError(f"{folder.path}: no disk space left; free some and run the same command again, it goes "
                           f"on from the last checkpoint") from error  # fmt: skip


class _Trainer:
    """One run on one mesh."""

    def __init__(
        self,
        spec: RunSpec,
        folder: RunFolder,
        mesh_config: MeshConfig,
        on_progress: Callable[[Progress], None] | None,
        should_stop: Callable[[], bool],
        data_sha256: str,
    ) -> None:
        self.spec, self.folder, self.config = spec, folder, mesh_config
        self.on_progress, self.should_stop = on_progress, should_stop
        self.tokens: TokenFiles = build_tokens(spec.data)
        check_tokens(spec, self.tokens, data_sha256)
        mesh = make_mesh(mesh_config)
        check_batch(spec.microbatch_seqs, mesh)
        self.accumulate = spec.batch_seqs // spec.microbatch_seqs
        self.dtype = compute_dtype(mesh_config)
        slots = count_slots(spec, self.accumulate, jax.default_backend(), len(jax.devices()))
        self.program: Program = make_program(spec.model, spec.schedule, slots, mesh, self.dtype, spec.optimizer)
        self.steps_per_dispatch = slots // self.accumulate
        dispatches = min(LINE_DISPATCHES, math.ceil(spec.steps / (self.steps_per_dispatch * LOG_LINES)))
        self.steps_per_line = self.steps_per_dispatch * dispatches
        self.hyper = Hyper.from_spec(spec)
        self.flops_per_token = flops_per_token(spec.model)

    def train(self) -> RunResult:
        checkpoints = Checkpoints(self.folder.checkpoints)
        self.step_program = self.program.train(self.spec.microbatch_seqs)  # compiled before the clock starts
        try:
            state = checkpoints.restore(self.program.abstract_state())
            if state is None:
                state = self.program.init(jnp.uint32(self.spec.seed))
            step = int(state.step)
            restarts, kinds = self.folder.count_attempt(step, self._kinds())
            before_s, last_loss = self.folder.cut_metrics(step)
            clock = _Clock(before_s, time.perf_counter(), step)
            state, loss, failure = self._run(state, step, last_loss, clock, checkpoints)
            past = {"restarts": restarts, "kinds": kinds, "skipped": checkpoints.skipped}
            return self._conclude(state, loss, failure, clock, past)
        finally:
            checkpoints.close()

    def _kinds(self) -> dict[str, str]:
        """What a resumed run must keep or tell, beside its spec."""
        machine = describe_machine(self.dtype)
        kinds = {kind: str(machine[kind]) for kind in ("precision", "device_kind", "jax", "jaxscale")}
        return kinds | {"data_sha256": self.tokens.info.data_sha256}

    def _run(
        self, state: TrainState, step: int, last_loss: float, clock: _Clock, checkpoints: Checkpoints
    ) -> tuple[TrainState, float, str]:
        """Train to the last step: final state, last interval's training loss, and why it diverged if so."""
        saved_at = time.perf_counter()
        with self.folder.metrics() as write:
            for interval in self._intervals(state, step):
                state, step, losses, norms = interval
                bad = np.flatnonzero(~np.isfinite(losses))
                if bad.size:
                    at = step - len(losses) + int(bad[0]) + 1
                    return state, last_loss, f"training loss {losses[bad[0]]} at step {at} of {self.spec.steps}"
                last_loss = float(np.mean(losses, dtype=np.float64))
                write(self._line(step, last_loss, float(norms[-1]), clock))
                self._report(step, last_loss, clock)
                if step == self.spec.steps:
                    break
                stop = self.should_stop()
                if stop or time.perf_counter() - saved_at > self.config.checkpoint_every_s:
                    checkpoints.save(state, step, wait=stop)
                    saved_at = time.perf_counter()
                if stop:
                    raise Preempted(f"run {self.spec.run_id} saved at step {step} of {self.spec.steps}")
        checkpoints.finish(state, self.spec.steps)
        return state, last_loss, ""

    def _intervals(self, state: TrainState, step: int) -> Iterator[tuple[TrainState, int, np.ndarray, np.ndarray]]:
        """State after each logging interval, with the interval's per-step losses and gradient norms."""
        spec, waiting = self.spec, []
        for first, windows in self._dispatches(step):
            count = len(windows) // self.accumulate
            slots = np.zeros((self.program.slots, *windows.shape[1:]), np.int32)
            slots[: len(windows)] = windows
            state, metrics = self.step_program(
                state, self.program.put_batch(slots), jnp.int32(count), jnp.int32(self.accumulate), self.hyper
            )
            waiting.append((metrics, count))
            step = first + count
            crossed = step // self.steps_per_line > first // self.steps_per_line  # other devices, other dispatches
            if crossed or step == spec.steps:
                fetched = [(np.asarray(m.loss)[:n], np.asarray(m.grad_norm)[:n]) for m, n in waiting]
                waiting = []
                losses, norms = (np.concatenate(parts) for parts in zip(*fetched, strict=True))
                yield state, step, losses, norms

    def _dispatches(self, step: int) -> Iterator[tuple[int, np.ndarray]]:
        """(first step, microbatches [n, b, t + 1]) of every dispatch from `step` on."""
        spec, seq_len = self.spec, self.spec.model.seq_len
        source = BatchSource(
            self.tokens.train, seq_len, spec.batch_seqs, spec.seed, jax.process_index(), jax.process_count()
        )
        stream = iterate_batches(source, step, spec.steps, self.steps_per_dispatch)
        for windows in stream:
            yield step, windows.reshape(-1, spec.microbatch_seqs // jax.process_count(), seq_len + 1)
            step += len(windows)

    def _line(self, step: int, loss: float, grad_norm: float, clock: _Clock) -> dict[str, float]:
        tokens = step * self.spec.batch_seqs * self.spec.model.seq_len
        rate = float(learning_rate(jnp.float32(step - 1), self.hyper, self.spec.schedule))
        return {
            "step": step,
            "tokens": tokens,
            "flops": float(tokens * self.flops_per_token),
            "loss": loss,
            "lr": rate,
            "grad_norm": grad_norm,
            "seconds": round(clock.seconds(), 3),
        }

    def _report(self, step: int, loss: float, clock: _Clock) -> None:
        if self.on_progress is None:
            return
        tokens = (step - clock.first_step) * self.spec.batch_seqs * self.spec.model.seq_len
        rate = tokens / max(time.perf_counter() - clock.started, 1e-9)
        self.on_progress(Progress(self.spec.run_id, step, self.spec.steps, loss, rate, rate * self.flops_per_token))

    def _conclude(self, state: TrainState, loss: float, failure: str, clock: _Clock, past: dict[str, Any]) -> RunResult:
        spec, info = self.spec, self.tokens.info
        seconds = clock.seconds()
        tokens = int(state.step) * spec.batch_seqs * spec.model.seq_len
        rate = tokens / max(seconds, 1e-9)
        val_loss, std_error = (None, None) if failure else self._validate(state)
        if val_loss is not None and not math.isfinite(val_loss):
            failure = f"validation loss {val_loss} after step {spec.steps}"
            val_loss = std_error = None
        counts = count_params(spec.model)
        provenance = (
            describe_machine(self.dtype)
            | past["kinds"]
            | {
                "tokenizer": spec.data.tokenizer,
                "val_tokens": info.val_tokens,
                "skipped_checkpoints": past["skipped"],
            }
        )
        return RunResult(
            run_id=spec.run_id,
            state="diverged" if failure else "done",
            reason=failure,
            loss=val_loss,
            loss_std_error=std_error,
            bits_per_byte=val_loss / math.log(2) / info.val_bytes_per_token if val_loss is not None else None,
            train_loss=loss if math.isfinite(loss) else None,
            n_params=counts["total"],
            n_params_non_embedding=counts["non_embedding"],
            tokens=tokens,
            flops=float(tokens * self.flops_per_token),
            steps_done=int(state.step),
            seconds=round(seconds, 3),
            tokens_per_s=rate,
            flops_per_s=rate * self.flops_per_token,
            restarts=past["restarts"],
            provenance=provenance,
        )

    def _validate(self, state: TrainState) -> tuple[float, float]:
        """Exact mean loss over the validation tokens, nats per token, and its standard error over windows."""
        windows, mask = validation_windows(self.tokens.val, self.spec.model.seq_len)
        replicas = self.program.mesh.shape["data"] * self.program.mesh.shape["fsdp"]
        rows = math.ceil(EVAL_SEQS / replicas) * replicas
        pad = -len(windows) % rows
        windows = np.pad(windows, ((0, pad), (0, 0))).reshape(-1, rows, windows.shape[1])
        mask = np.pad(mask, ((0, pad), (0, 0))).reshape(-1, rows, mask.shape[1])
        put = self.program.put_batch
        sums = np.asarray(self.program.evaluate(state.params, put(windows), put(mask.astype(np.float32))), np.float64)
        counts = mask.sum(axis=-1)
        mean = float(sums.sum() / counts.sum())
        deviations = (sums - mean * counts).ravel()
        return mean, float(np.sqrt(np.sum(deviations**2)) / counts.sum())


def check_tokens(spec: RunSpec, tokens: TokenFiles, data_sha256: str = "") -> None:
    """MisuseError where the text cannot feed the run: another text, too small a vocabulary, too many epochs."""
    info = tokens.info
    if data_sha256 and info.data_sha256 != data_sha256:
        raise MisuseError(
            f"data: the plan was made for text {data_sha256[:12]} and {info.source} is now {info.data_sha256[:12]}; "
            f"restore the text, or plan the study anew in another folder"
        )
    if info.vocab_size > spec.model.vocab_size:
        raise MisuseError(
            f"model.vocab_size: {spec.model.vocab_size} is smaller than the tokenizer's {info.vocab_size} entries; "
            f"use at least {info.vocab_size}"
        )
    epochs = spec.tokens / info.train_tokens
    if epochs > spec.data.max_epochs * 1.01:
        raise MisuseError(
            f"data: run {spec.run_id} asks for {spec.tokens:,} tokens of a text with {info.train_tokens:,}, that is "
            f"{epochs:.2f} epochs, and data.max_epochs allows {spec.data.max_epochs:g}; give more text or raise it"
        )


def compute_dtype(config: MeshConfig) -> Any:
    """The dtype that `mesh.dtype` means on this backend."""
    if config.dtype == "auto":
        return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    return jnp.dtype(config.dtype)


def count_slots(spec: RunSpec, accumulate: int, backend: str, devices: int) -> int:
    """Microbatches in a dispatch: a power of two, at least one optimizer step, at most about a second's work."""
    microbatch_flops = spec.microbatch_seqs * spec.model.seq_len * flops_per_token(spec.model)
    affordable = DISPATCH_FLOPS.get(backend, 1e10) * devices / microbatch_flops
    slots = min(MAX_SLOTS, 1 << max(0, math.floor(math.log2(max(affordable, 1)))))
    return max(slots, 1 << (accumulate - 1).bit_length())
