"""Does it compile, does it fit, how long will it take: one row a subject and target.

A layout that the study leaves open is chosen by trying: the memory model (jaxscale.memory) ranks what it thinks fits,
the compiler has the last word, and the first that compiles and fits is kept. Where a batch does not divide over all
chips a run takes fewer, and several runs share the target.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from jaxscale.config import MeshConfig
from jaxscale.flops import count_params, flops_per_token
from jaxscale.layout import Layout
from jaxscale.memory import estimate_memory, rank_layouts
from jaxscale.preflight.depth import compile_shallow
from jaxscale.preflight.hlo import COLLECTIVES
from jaxscale.preflight.job import Compiled, Job, Refused, compile_job
from jaxscale.preflight.roofline import StepTime, count_done_flops, time_step
from jaxscale.preflight.subjects import Subject
from jaxscale.preflight.targets import Target

__all__ = ["Settings", "check_subject", "check_subjects", "list_layouts"]

TPU_TENSOR = 16
"""Most chips of a TPU slice that share a matrix product: a side of the torus."""
HOUR_S = 3600.0


@dataclass(frozen=True)
class Settings:
    """How to look."""

    mesh: MeshConfig
    price: float | None = None
    """US dollars a chip-hour in place of the list's."""
    tries: int = 4
    """Layouts that are compiled at most before a subject counts as too big."""
    timeout_s: float = 1800.0
    one_layout: bool = False
    """Serve all batches of a shape by the first layout that fits, so that it is compiled once."""
    shallow: bool = False
    """Compile few layers and extrapolate."""
    cache: Path | None = None


def check_subjects(
    subjects: Sequence[Subject], target: Target, settings: Settings, tell: Callable[[str], None] = lambda text: None
) -> Iterator[dict[str, Any]]:
    """A record for each, in order."""
    kept: dict[Any, Layout] = {}
    for place, subject in enumerate(subjects):
        own = f"{place + 1}/{len(subjects)} "
        first = kept.get(subject.model) if settings.one_layout else None
        record = check_subject(subject, target, settings, lambda text, own=own: tell(own + text), first)  # type: ignore[misc]
        if record["state"] == "fits":
            kept.setdefault(subject.model, Layout(**{field.name: record[field.name] for field in fields(Layout)}))
        yield record


def check_subject(
    subject: Subject, target: Target, settings: Settings, tell: Callable[[str], None] = lambda text: None,
    first: Layout | None = None,
) -> dict[str, Any]:  # fmt: skip
    """A flat record: the layout, what the compiler says, times, cost. `state` is fits, too big or refused.

    `first`: a layout to try before the others, where the batch is a whole number of its microbatches.
    """
    record = _describe(subject, target)
    layouts = list_layouts(subject, target, settings)
    if first is not None and subject.batch_seqs % first.microbatch_seqs == 0:
        layouts = [first, *layouts]
    if not layouts:
        reason = (f"a batch of {subject.batch_seqs} sequences and this model divide over no mesh of {target.devices} "
                  f"devices that --mesh allows; free an axis (0) or change the batch")  # fmt: skip
        return {**record, "state": "refused", "reason": reason}
    refusals: list[tuple[Layout, Compiled | Refused]] = []
    for layout in layouts:
        if len(refusals) == settings.tries:
            break
        if any(_same_trouble(layout, *refusal) for refusal in refusals):
            continue
        tell(f"{target.name}: {record['params'] / 1e6:.4g}M parameters, {layout.describe()}")
        answer = _compile(subject, target, layout, settings)
        if isinstance(answer, Compiled) and answer.total_bytes <= target.usable_bytes:
            return {**record, **_lay(layout, subject), **_measure(subject, target, layout, answer, settings),
                    "state": "fits", "reason": "", "refused_layouts": len(refusals)}  # fmt: skip
        refusals.append((layout, answer))
    return {**record, **_tell_refusals(refusals, subject, target, settings)}


def _same_trouble(layout: Layout, refused: Layout, answer: Compiled | Refused) -> bool:
    """Whether this layout would be refused alike: the compiler's trouble was not memory, and the mesh is the same."""
    other = isinstance(answer, Refused) and answer.kind != "memory"
    return other and (layout.mesh, layout.attention) == (refused.mesh, refused.attention)


def list_layouts(subject: Subject, target: Target, settings: Settings) -> list[Layout]:
    """Layouts to try, best first: on all devices, else on half of them, and so on.

    Where the memory model thinks that nothing fits, those it thinks smallest: the compiler may know better.
    """
    devices = target.devices
    while devices:
        found = _rank(subject, target, settings.mesh, devices, target.usable_bytes)
        if not found:
            everything = _rank(subject, target, replace(settings.mesh, microbatch_seqs=0), devices, float("inf"))
            found = sorted(_shrink(everything, settings.mesh, subject),
                           key=lambda layout: _estimate(subject, layout))  # fmt: skip
        if found:
            return found
        devices //= 2
    return []


def _shrink(layouts: Sequence[Layout], mesh: MeshConfig, subject: Subject) -> Iterator[Layout]:
    """The same meshes at their smallest microbatch."""
    for layout in layouts:
        rows = mesh.microbatch_seqs or layout.replicas
        if subject.batch_seqs % rows == 0 and rows % layout.replicas == 0:
            yield replace(layout, microbatch_seqs=rows)


def _estimate(subject: Subject, layout: Layout) -> int:
    return estimate_memory(subject.model, layout, "bfloat16", subject.optimizer, subject.averages).total


def _rank(subject: Subject, target: Target, mesh: MeshConfig, devices: int, chip_bytes: float) -> list[Layout]:
    host = target.shape[1] if target.chip.kind == "gpu" else TPU_TENSOR
    return rank_layouts(
        subject.model, subject.batch_seqs, devices, chip_bytes, "bfloat16", mesh, host, platform=target.backend,
        optimizer=subject.optimizer, averages=subject.averages,
    )  # fmt: skip


def _compile(subject: Subject, target: Target, layout: Layout, settings: Settings) -> Compiled | Refused:
    job = Job(target.name, subject.model, layout, subject.schedule, subject.optimizer, subject.averages)
    one = compile_shallow if settings.shallow else compile_job
    return one(job, timeout_s=settings.timeout_s, cache=settings.cache)


def _describe(subject: Subject, target: Target) -> dict[str, Any]:
    model = subject.model
    return {
        "target": target.name, "kind": subject.kind, "runs": subject.runs, "params": count_params(model)["active"],
        "d_model": model.d_model, "n_layers": model.n_layers, "seq_len": model.seq_len, "vocab_size": model.vocab_size,
        "batch_seqs": subject.batch_seqs, "batch_tokens": subject.step_tokens, "steps": subject.steps,
        "tokens": subject.steps * subject.step_tokens,
        "flops": subject.steps * subject.step_tokens * flops_per_token(model),
        "chip_bytes": target.usable_bytes,
    }  # fmt: skip


def _lay(layout: Layout, subject: Subject) -> dict[str, Any]:
    return {**layout.mesh, "devices": layout.chips, "microbatch_seqs": layout.microbatch_seqs,
            "accumulate": subject.batch_seqs // layout.microbatch_seqs, "remat": layout.remat,
            "attention": layout.attention, "head_chunks": layout.head_chunks}  # fmt: skip


def _measure(subject: Subject, target: Target, layout: Layout, found: Compiled, settings: Settings) -> dict[str, Any]:
    """Memory, collectives, times and cost of what compiled."""
    microbatches = subject.batch_seqs // layout.microbatch_seqs
    found = replace(found, argument_bytes=found.argument_bytes + _waiting_windows(subject, layout, microbatches))
    flops = flops_per_token(subject.model) * subject.step_tokens
    done = count_done_flops(subject.model, layout, subject.step_tokens)
    sent = found.sent(microbatches)
    moved, operations = found.moved_bytes(microbatches), found.operations(microbatches)
    time = time_step(target, done / layout.chips, moved, operations, sent)
    return {
        **_memory(found), **{f"{kind.replace('-', '_')}_bytes": sum(one.sent_bytes for one in sent if one.kind == kind)
                             for kind in COLLECTIVES},
        "sent_bytes": sum(one.sent_bytes for one in sent), "moved_bytes": moved, "operations": operations,
        "flops_per_step": flops, "flops_done_per_step": done, **_times(time),
        **_cost(subject, target, layout, flops, time, settings),
        "extrapolated": settings.shallow and subject.model.n_layers > 4, "compile_s": found.compile_s,
    }  # fmt: skip


def _waiting_windows(subject: Subject, layout: Layout, microbatches: int) -> int:
    """Bytes of the other microbatches' tokens: a dispatch holds a power of two of them, and two were compiled."""
    slots = max(2, 1 << (microbatches - 1).bit_length())
    return 4 * (slots - 2) * (layout.microbatch_seqs // layout.replicas) * (subject.model.seq_len + 1)


def _memory(found: Compiled) -> dict[str, float]:
    return {"argument_bytes": found.argument_bytes, "temp_bytes": found.temp_bytes,
            "output_bytes": found.output_bytes - found.alias_bytes, "code_bytes": found.code_bytes,
            "total_bytes": found.total_bytes}  # fmt: skip


def _times(time: StepTime) -> dict[str, float]:
    return {"compute_s": time.compute_s, "memory_s": time.memory_s, "starts_s": time.starts_s, "links_s": time.links_s,
            "waiting_s": time.waiting_s, "step_s": time.step_s, "step_overlapped_s": time.overlapped_s,
            "step_serial_s": time.serial_s}  # fmt: skip


def _cost(
    subject: Subject, target: Target, layout: Layout, flops: float, time: StepTime, settings: Settings
) -> dict[str, float | None]:
    """Utilization, and what all runs of the subject take and cost."""
    chips = layout.chips / target.chip.devices
    hours = subject.steps * time.step_s * chips / HOUR_S
    price = target.chip.usd_per_hour if settings.price is None else settings.price
    peak = chips * target.chip.flops_per_s
    return {
        "mfu": flops / time.step_s / peak, "mfu_overlapped": flops / time.overlapped_s / peak,
        "mfu_serial": flops / time.serial_s / peak, "days": subject.steps * time.step_s / (24 * HOUR_S),
        "chip_hours": hours, "usd_per_chip_hour": price, "usd": None if price is None else hours * price,
    }  # fmt: skip


def _tell_refusals(
    refusals: Sequence[tuple[Layout, Compiled | Refused]], subject: Subject, target: Target, settings: Settings
) -> dict[str, Any]:
    """The try that came closest to fitting, and why it did not."""

    def needed(answer: Compiled | Refused) -> float:
        return answer.total_bytes if isinstance(answer, Compiled) else answer.needed_bytes or float("inf")

    layout, answer = min(refusals, key=lambda pair: needed(pair[1]))
    common = {**_lay(layout, subject), "refused_layouts": len(refusals)}
    if isinstance(answer, Compiled):
        gib = answer.total_bytes / 2**30
        return {**common, **_measure(subject, target, layout, answer, settings), "state": "too big",
                "reason": f"needs {gib:.1f} GiB a chip of {target.usable_bytes / 2**30:.1f}"}  # fmt: skip
    state = "too big" if answer.kind == "memory" else "refused"
    total = {"total_bytes": answer.needed_bytes} if answer.needed_bytes else {}
    return {**common, **total, "state": state, "reason": answer.reason, "compile_s": answer.compile_s}
