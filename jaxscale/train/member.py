"""One run while it trains: its lines, its progress, how it ends.

bits_per_byte = loss / ln 2 / bytes a token; seconds of a run in a pack are its share, the pack's over its members
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import jax
import numpy as np

from jaxscale.config import LaunchConfig
from jaxscale.data.attribution import Validation
from jaxscale.data.files import TokenFiles
from jaxscale.data.select import describe_reading
from jaxscale.flops import VALIDATION_DRAWS, count_params, flops_per_token
from jaxscale.hardware import DEVICES_PER_CHIP, find_chip, find_peak
from jaxscale.runs import RunResult, State
from jaxscale.sweep import hash_file
from jaxscale.train import hosts
from jaxscale.train.optimizer import Hyper, learning_rate
from jaxscale.train.provenance import describe_machine
from jaxscale.train.record import RunFolder
from jaxscale.train.stopping import Stopper
from jaxscale.train.track import open_trackers

__all__ = ["Member", "Progress", "find_mfu"]

COUNTS = ("devices", "threads")
"""Kinds that are numbers; a run that several starts trained on other numbers has them in words, "1 then 2"."""


@dataclass(frozen=True)
class Progress:
    """What a running cell tells: rates are since this start, loss in nats per token."""

    run_id: str
    step: int
    steps: int
    loss: float
    tokens_per_s: float
    flops_per_s: float
    mfu: float | None = None
    """flops_per_s over the peak of all chips (model FLOPs utilization, PaLM, 2204.02311); None without a peak."""


@dataclass
class _Clock:
    """Seconds trained, earlier starts included, and tokens since this one; a pack's time is shared by its members."""

    before_s: float
    started: float
    first_step: int
    members: int

    def since_start(self) -> float:
        return (time.perf_counter() - self.started) / self.members

    def seconds(self) -> float:
        return self.before_s + self.since_start()


class Member:
    """A run in training, alone or in a `pack` (its id, way and number of members); `live` until it ends."""

    def __init__(
        self,
        folder: RunFolder,
        result: RunResult | None,
        text: TokenFiles,
        dtype: Any,
        pack: dict[str, Any] | None,
        on_progress: Callable[[Progress], None] | None,
        stopper: Stopper | None = None,
        launch: LaunchConfig | None = None,
    ) -> None:
        self.folder, self.spec, self.text, self.dtype, self.pack = folder, folder.spec, text, dtype, pack
        self.info = text.info
        self.on_progress, self.stopper, self.launch = on_progress, stopper, launch or LaunchConfig()
        self.hyper: Any = Hyper(*map(np.float32, Hyper.from_spec(self.spec)))  # type: ignore[arg-type]
        self.flops_per_token = flops_per_token(self.spec.model)
        self.result = result
        self.loss = math.nan
        self.microbatch_tokens, self.unmeasured = 0, ""

    @property
    def live(self) -> bool:
        """Whether it still trains."""
        return self.result is None

    def measure_noise(self, microbatch_tokens: int) -> None:
        """Note squared gradient norms at two batch sizes in every line; where a step has one, say so at the end."""
        self.microbatch_tokens = microbatch_tokens
        if microbatch_tokens == self.spec.batch_seqs * self.spec.model.seq_len:
            self.unmeasured = ("not measured: a step has one microbatch; set mesh.microbatch_seqs to half the batch or "
                               "less")  # fmt: skip

    def start(self, step: int, skipped: list[str]) -> None:
        """Note this start, drop the lines past `step`, and begin the clock."""
        if not self.live:
            return
        self.folder.check()  # it took long to get here
        self.step, self.skipped = step, skipped
        if self.stopper is not None:
            self.stopper.start(step)
        noted = hosts.from_first(lambda: self._note_start(step), "start")
        self.restarts, kinds, before_s, self.loss, self.inherited_s = noted
        self.kinds = {kind: int(told) if kind in COUNTS and told.isdigit() else told for kind, told in kinds.items()}
        members = self.pack["members"] if self.pack else 1
        self.clock = _Clock(before_s, time.perf_counter(), step, members)
        self.folder.tell(chips=count_chips() / members, step=step, saved_step=step)

    def _note_start(self, step: int) -> tuple[int, dict[str, str], float, float, float]:
        """Starts before this one, kinds of all that count, seconds and loss up to `step`, the trunk's seconds."""
        restarts, kinds = self.folder.count_attempt(step, self._kinds())
        before_s, loss = self.folder.cut_metrics(step)
        return restarts, kinds, before_s, loss, self.folder.inherited_seconds() if self.spec.parent else 0.0

    def _kinds(self) -> dict[str, str]:
        """What a resumed run must keep or tell, beside its spec."""
        machine = describe_machine(self.dtype, self.spec.precision)
        told = ("precision", "device_kind", "devices", "threads", "jax", "jaxscale")
        kinds = {kind: str(machine[kind]) for kind in told}
        return kinds | {"data_sha256": self.info.data_sha256}

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Open metrics.jsonl for the lines of `take`; a run that has ended writes none."""
        self._write: Callable[[dict[str, float]], None] = lambda line: None
        if not self.live or not hosts.is_first():
            yield
            return
        trackers = open_trackers(self.launch, self.folder.path, self.spec, self.step)
        with self.folder.metrics() as write:

            def log(line: dict[str, float]) -> None:
                write(line)
                trackers.log(line)

            self._write = log
            try:
                yield
            finally:
                trackers.close()

    def take(self, step: int, losses: np.ndarray, norms: np.ndarray, small_squares: np.ndarray | None = None) -> None:
        """The interval that ended at `step`: a line, or the end of a run whose loss is not finite."""
        if not self.live:
            return
        bad = np.flatnonzero(~np.isfinite(losses))
        self.step = step
        if bad.size:
            at = step - len(losses) + int(bad[0]) + 1
            self._end(f"training loss {losses[bad[0]]} at step {at} of {self.spec.steps}", None, None)
            return
        self.loss = float(np.mean(losses, dtype=np.float64))
        self._write(self._line(step, float(norms[-1])) | self._noise(norms, small_squares))
        tokens = (step - self.clock.first_step) * self.spec.batch_seqs * self.spec.model.seq_len
        rate = tokens / max(self.clock.since_start(), 1e-9)
        flops = rate * self.flops_per_token
        mfu = find_mfu(flops)
        self.folder.tell(step=step, loss=self.loss, tokens_per_s=round(rate, 1), mfu=mfu)
        if self.on_progress is not None:
            self.on_progress(Progress(self.spec.run_id, step, self.spec.steps, self.loss, rate, flops, mfu))

    def sync(self) -> None:
        """Bring a live run's curve to the disk; LeaseLost where the run is another's by now."""
        if self.live and hosts.is_first():
            self.folder.sync_metrics()

    def stop_if_hopeless(self) -> None:
        """End the run as censored where its rule says so; after `take` of every run beside it."""
        if not self.live or self.stopper is None:
            return
        told = hosts.from_first(self._judge, "hopeless")
        if told is not None:
            self._end(told["words"], None, None, "censored", {"stop": told["stop"]})

    def _judge(self) -> dict[str, Any] | None:
        stop = self.stopper.judge(self.step) if self.stopper is not None else None
        return None if stop is None else {"words": str(stop), "stop": asdict(stop)}

    def _line(self, step: int, grad_norm: float) -> dict[str, float]:
        tokens = step * self.spec.batch_seqs * self.spec.model.seq_len
        return {
            "step": step,
            "tokens": tokens,
            "flops": float(tokens * self.flops_per_token),
            "loss": self.loss,
            "lr": float(learning_rate(np.float32(step - 1), self.hyper, self.spec.schedule, np)),
            "grad_norm": grad_norm,
            "seconds": round(self.clock.seconds(), 3),
        }

    def _noise(self, norms: np.ndarray, small_squares: np.ndarray | None) -> dict[str, float]:
        """Mean squared gradient norms of the interval at the microbatch's and the batch's size (laws.batch)."""
        if small_squares is None:
            return {}
        return {
            "grad_sq_small": float(np.mean(small_squares, dtype=np.float64)),
            "grad_sq_big": float(np.mean(np.square(norms, dtype=np.float64))),
            "microbatch_tokens": self.microbatch_tokens,
        }

    def end(self, sums: np.ndarray, validation: Validation, drawn: float | None = None) -> None:
        """End a run that made all its steps, given the summed loss of every window [n], or of its masks [n, k].

        Its loss is the exact mean over the validation tokens, nats per token; beside it the standard error over
        windows, and both by source. Under masked diffusion it is an estimate of a bound, and `drawn` the part of its
        error that comes from the masks: the standard error over windows, each with masks of its own, includes it.
        """
        counts, losses = validation.counts, validation.split_sums(sums)
        sums = sums if sums.ndim == 1 else sums[:, 0]
        mean = float(sums.sum() / counts.sum())
        if not math.isfinite(mean):
            self._end(f"validation loss {mean} after step {self.spec.steps}", None, None)
            return
        deviations = sums - mean * counts
        bound = {} if drawn is None else {"bound": {"draws": VALIDATION_DRAWS, "std_error_of_masks": float(drawn)}}
        self._end("", mean, float(np.sqrt(np.sum(deviations**2)) / counts.sum()), more=bound, losses=losses)

    def _end(
        self, failure: str, loss: float | None, std_error: float | None, state: State | None = None,
        more: dict[str, Any] | None = None, losses: dict[str, dict[str, float]] | None = None,
    ) -> None:  # fmt: skip
        if hosts.is_first():
            self.folder.mend_curve()
        spec, counts = self.spec, count_params(self.spec.model)
        tokens = self.step * spec.batch_seqs * spec.model.seq_len
        seconds = self.clock.seconds() - self.inherited_s
        begun = spec.parent_step
        rate = (self.step - begun) * spec.batch_seqs * spec.model.seq_len / max(seconds, 1e-9)
        per_token = self.info.val_bytes_per_token
        told = {"objective": spec.model.objective, "tokenizer": spec.data.tokenizer,
                "val_tokens": self.info.val_tokens, "val_sha256": self.text.val_sha256,
                "skipped_checkpoints": self.skipped}  # fmt: skip
        told |= describe_reading(self.text, tokens)
        if self.info.val_text_sha256:
            told["val_text_sha256"] = self.info.val_text_sha256
        damaged = self.folder.list_damaged()
        told |= ({"pack": self.pack} if self.pack else {}) | ({"damaged": damaged} if damaged else {}) | (more or {})
        told |= {"noise_scale": self.unmeasured} if self.unmeasured else {}
        curve = self.folder.path / "metrics.jsonl"
        self.result = RunResult(
            run_id=spec.run_id,
            state=state or ("diverged" if failure else "done"),
            reason=failure,
            loss=loss,
            loss_std_error=std_error,
            bits_per_byte=loss / math.log(2) / per_token if loss is not None and per_token else None,
            train_loss=self.loss if math.isfinite(self.loss) else None,
            n_params=counts["active"],
            n_params_non_embedding=counts["non_embedding"],
            tokens=tokens,
            flops=float(tokens * self.flops_per_token),
            steps_done=self.step,
            seconds=round(seconds, 3),
            tokens_per_s=rate,
            flops_per_s=rate * self.flops_per_token,
            restarts=self.restarts,
            provenance=describe_machine(self.dtype, self.spec.precision) | self.kinds | told,
            begun_step=begun,
            mfu=find_mfu(rate * self.flops_per_token),
            n_params_total=counts["total"],
            metrics_sha256=hash_file(curve) if curve.exists() else "",
            losses=losses or {},
        )
        if hosts.is_first():
            self.folder.write_result(self.result)


def count_chips() -> float:
    """Chips that all processes of this run hold; on CPUs the cores that they may use."""
    devices = jax.devices()
    if devices[0].platform == "cpu":
        return float(len(os.sched_getaffinity(0)) * jax.process_count())
    return len(devices) / DEVICES_PER_CHIP.get(find_chip(devices[0].device_kind) or "", 1)


def find_mfu(flops_per_s: float) -> float | None:
    """A rate over the bf16 peak of all devices; None on a CPU and on chips that jaxscale.hardware does not list."""
    devices = jax.devices()
    peak = find_peak(devices[0].device_kind)
    return None if peak is None else flops_per_s / (peak * len(devices))
