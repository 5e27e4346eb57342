"""How long a step must take: arithmetic, main memory and links, each at the rate its sheet says.

    compute = FLOPs done / (peak * share of the peak that large matrix products reach)
    memory  = bytes moved / HBM bandwidth             links = sum over collectives of bytes / bandwidth of the group
    starts  = instructions run * the least that one takes, which is what a toy model's step consists of

FLOPs done are the model's (jaxscale.flops: causal attention), those computed again (remat but for a block's last
product, pieces of the head), and for attention that computes all T keys the half that is masked. Two ends: the links'
work wholly beside the rest, max(compute, memory, starts, links), and wholly after it, max(compute, memory, starts) +
links. The estimate stands between: collectives that fsdp needs (all-gather, reduce-scatter, and the rings of permutes
that a TPU's compiler makes of them) are prefetched beside the arithmetic as far as it lasts; the rest is waited for.

A group's bandwidth, one way a chip. TPU: link rate x (2 where an axis that it fills is a ring, else 1), summed over
the axes of the torus that it takes (Austin et al. 2025, "How to Scale Your Model", chapter 3). GPU: NVLink inside a
host; over hosts the ring enters and leaves each host through the network cards of the group's own GPUs there.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

from jaxscale.config import ModelConfig
from jaxscale.flops import count_attention, count_last_params, count_matmul_params, flops_per_token
from jaxscale.layout import Layout
from jaxscale.preflight.job import Sent
from jaxscale.preflight.targets import GPU_RESERVE, Target

__all__ = ["ACHIEVABLE", "StepTime", "assumptions", "count_done_flops", "link_seconds", "time_step"]

ACHIEVABLE = {"v4": 0.9, "v5e": 0.9, "v5p": 0.9, "v6e": 0.85, "tpu7x": 0.85, "a100": 0.87, "h100": 0.72, "h200": 0.72}
"""Share of the peak that large bf16 matrix products reach; an assumption. GPUs: what public matmul benchmarks measure
under the power limit (A100 about 270 of 312, H100 about 700 of 989 TFLOP/s). TPUs: above the .71 that MaxText's
whole training step reaches on v5p (docs/preflight.md)."""

START_S = {"tpu": 1e-6, "gpu": 3e-6}
"""Least time of one instruction: about a kernel's launch on a GPU, less on a TPU; assumptions."""

OVERLAPPED = frozenset({"all-gather", "reduce-scatter", "collective-permute"})
"""Collectives that depend on no arithmetic just before them, or have no use just after."""

BACKWARD_AGAIN = {"cudnn": 1, "chunked": 1, "splash": 3}
"""Products that an attention's backward pass computes again: the scores; splash, whose gradients of queries and of keys
are two kernels, the scores twice and the gradient of their softmax once more."""


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step by part."""

    compute_s: float
    memory_s: float
    starts_s: float
    links_s: float
    waiting_s: float
    """Part of the links' time that cannot be hidden: collectives in the way of the arithmetic."""

    @property
    def overlapped_s(self) -> float:
        """Everything beside everything."""
        return max(self._busy_s, self.links_s)

    @property
    def serial_s(self) -> float:
        """No link works while a chip computes."""
        return self._busy_s + self.links_s

    @property
    def step_s(self) -> float:
        """The estimate."""
        return max(self._busy_s, self.links_s - self.waiting_s) + self.waiting_s

    @property
    def _busy_s(self) -> float:
        return max(self.compute_s, self.memory_s, self.starts_s)


def time_step(
    target: Target, flops_done: float, moved_bytes: float, operations: float, sent: Iterable[Sent]
) -> StepTime:
    """Times of one device that does so many FLOPs, bytes, instructions and collectives in a step."""
    chip = target.chip
    seconds = [(one, link_seconds(target, one)) for one in sent]
    return StepTime(
        flops_done / (chip.flops_per_s / chip.devices * ACHIEVABLE[chip.name]),
        moved_bytes / (chip.hbm_bytes_per_s / chip.devices),
        operations * START_S[chip.kind],
        sum(time for _, time in seconds),
        sum(time for one, time in seconds if one.kind not in OVERLAPPED),
    )


def link_seconds(target: Target, sent: Sent) -> float:
    """Seconds that these collectives keep the links of a device busy."""
    return _torus_seconds(target, sent) if target.chip.kind == "tpu" else _cluster_seconds(target, sent)


def _torus_seconds(target: Target, sent: Sent) -> float:
    """By rings along every axis that the group takes; an all-to-all also passes through the chips between.

    On a ring of n chips a message of an all-to-all goes n/4 links far on average, in both directions; on a line n/3.
    """
    chip = target.chip
    extents = [(size, _is_ring(target, axis, size)) for axis, size in enumerate(sent.span) if size > 1]
    if not extents:
        return sent.sent_bytes / (2 * chip.link_bytes_per_s)  # between the two cores of a chip
    groups = chip.devices if sent.size == prod(sent.span) else 1  # one device a chip: the others' groups send too
    rates = [chip.link_bytes_per_s * (2 if ring else 1) / groups for _, ring in extents]
    if sent.kind == "collective-permute":
        return sent.sent_bytes * groups / (2 * chip.link_bytes_per_s)  # neighbours, sent both ways
    if sent.kind == "all-to-all":
        hops = max(size / 4 if ring else size / 3 for size, ring in extents)
        return sent.sent_bytes * max(1.0, hops) / sum(rates)
    return sent.sent_bytes / sum(rates)


def _is_ring(target: Target, axis: int, size: int) -> bool:
    whole = target.shape[axis] if axis < len(target.shape) else 1
    return size == whole and size % target.chip.ring == 0


def _cluster_seconds(target: Target, sent: Sent) -> float:
    chip, (hosts, gpus) = target.chip, sent.span
    inside = sent.sent_bytes / chip.link_bytes_per_s
    if hosts == 1:
        return inside
    if sent.kind in ("all-to-all", "collective-permute"):
        return sent.sent_bytes / chip.network_bytes_per_s
    crossing = sent.sent_bytes * (hosts - 1) / hosts * sent.size / (sent.size - 1) / gpus
    return max(inside, crossing / chip.network_bytes_per_s)


def count_done_flops(model: ModelConfig, layout: Layout, tokens: float) -> float:
    """FLOPs that all chips do in a step of `tokens` tokens, what is computed twice or masked away included."""
    causal = count_attention(model)  # scores, or their product with values
    flash = layout.attention in ("cudnn", "splash") and model.objective == "autoregressive"
    product = causal if flash else 2 * causal  # with what the mask throws away; diffusion has no mask
    head = 2 * model.d_model * model.vocab_size
    done = flops_per_token(model, causal=flash)
    done += BACKWARD_AGAIN.get(layout.attention, 0) * product
    if layout.remat != "none":
        done += 2 * product  # no kind of remat keeps what attention gives
    if layout.remat == "block":
        done += 2 * (count_matmul_params(model) - count_last_params(model)) - head
    if layout.head_chunks > 1 or layout.chips > 1:
        done += head
    return done * tokens


def assumptions(target: Target) -> tuple[str, ...]:
    """Every number that the times rest on, in words."""
    chip = target.chip
    words = [
        f"{chip.name}: {chip.flops_per_s / 1e12:.0f} TFLOP/s peak (bf16), of which {ACHIEVABLE[chip.name]:.0%} reached "
        f"by matrix products (assumed); HBM {chip.hbm_bytes_per_s / 1e9:.0f} GB/s; an instruction takes "
        f"{START_S[chip.kind] * 1e6:.0f} us or more (assumed)",
    ]
    if chip.kind == "tpu":
        rings = [size % chip.ring == 0 for size in target.shape]
        words.append(f"ICI {chip.link_bytes_per_s / 1e9:.0f} GB/s a link and way, {chip.torus} axes; "
                     f"{'rings' if all(rings) else 'lines' if not any(rings) else 'some rings'} "
                     f"(an axis closes at multiples of {chip.ring} chips)")  # fmt: skip
    else:
        links, network = chip.link_bytes_per_s / 1e9, chip.network_bytes_per_s / 1e9
        words.append(f"NVLink {links:.0f} GB/s and network {network:.0f} GB/s a GPU and way; no congestion")
        words.append(f"a program may take {1 - GPU_RESERVE:.0%} of a GPU's memory: train with "
                     f"XLA_PYTHON_CLIENT_MEM_FRACTION={1 - GPU_RESERVE:g}, for JAX itself takes 75%")  # fmt: skip
    words.append("step: all-gather, reduce-scatter and rings of permutes beside the arithmetic, other "
                 "collectives after it; no input wait, checkpoints, restarts or stragglers")  # fmt: skip
    return tuple(words)
