"""Bytes per chip of a training step, from shapes alone, and the layouts that fit a chip, best first.

    total = weights + optimizer + gradients + max(backward, head) + batch

The parts are counted, not measured; `docs/memory.md` has how far they are from what compilers report.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import lru_cache
from math import prod

from jaxscale.axes import count_shards
from jaxscale.config import MeshConfig, ModelConfig
from jaxscale.flops import count_params, flops_per_token
from jaxscale.layout import Layout, Remat, choose_attention, choose_chunks
from jaxscale.params import param_shapes

__all__ = ["Layout", "MemoryEstimate", "estimate_memory", "rank_layouts"]

USABLE = 0.92
"""Share of a chip's memory that a layout may fill by the estimate; the rest is the compiler's and the estimate's
error."""
REMATS: tuple[Remat, ...] = ("none", "dots", "block")


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes per chip by kind. The donated state (weights, optimizer, averages) is counted once."""

    weights: int
    optimizer: int
    averages: int
    gradients: int
    """What has been added up, and what the backward pass is making."""
    activations: int
    """Kept from the forward pass, and what the backward pass of one block holds."""
    logits: int
    gathered: int
    """Parameters that fsdp splits, whole for the block in work and the next."""
    batch: int

    @property
    def total(self) -> int:
        """All kinds together."""
        return sum(getattr(self, field.name) for field in fields(self))


def estimate_memory(
    model: ModelConfig, layout: Layout, dtype: str, optimizer: str = "adamw", averages: bool = False, slots: int = 1
) -> MemoryEstimate:
    """Bytes per chip of one training program, from shapes; `slots` microbatches lie in a dispatch."""
    width = 2 if dtype == "bfloat16" else 4
    weights = _state_bytes(model, layout)
    rows = max(1, layout.microbatch_seqs // layout.replicas)
    tokens = rows * (model.seq_len // layout.context)
    return MemoryEstimate(
        weights=weights,
        optimizer={"adamw": 2, "sgd": 1, "muon": 2}[optimizer] * weights,
        averages=weights if averages else 0,
        gradients=2 * weights,
        activations=_activations(model, layout, tokens, rows, width),
        logits=3 * 4 * tokens * model.vocab_size // (layout.tensor * layout.head_chunks),
        gathered=_gathered(model, layout, width),
        batch=4 * slots * rows * (model.seq_len + 1),
    )


@lru_cache(maxsize=4096)
def _count_state(model: ModelConfig, fsdp: int, tensor: int) -> int:
    mesh = {"data": 1, "fsdp": fsdp, "tensor": tensor, "context": 1}
    total = 0
    for axes in param_shapes(model).values():
        names, shape = tuple(name for name, _ in axes), tuple(size for _, size in axes)
        total += prod(shape) // count_shards(names, shape, mesh)
    return total


def _state_bytes(model: ModelConfig, layout: Layout) -> int:
    return 4 * _count_state(model, layout.fsdp, layout.tensor)


def _gathered(model: ModelConfig, layout: Layout, width: int) -> int:
    if layout.fsdp == 1:
        return 0
    whole = _count_state(model, 1, layout.tensor)
    table = model.vocab_size * model.d_model // layout.tensor
    tables = table * (1 if model.tied else 2)
    return width * (2 * (whole - tables) // model.n_layers + tables)


def _activations(model: ModelConfig, layout: Layout, tokens: int, rows: int, width: int) -> int:
    """Kept for every layer, and the work of one."""
    d, shared = model.d_model, layout.tensor
    heads = model.n_heads * model.d_head // shared
    kv = model.n_kv_heads * model.d_head // (shared if model.n_kv_heads % shared == 0 else 1)
    ff = model.d_ff * (2 if model.mlp == "swiglu" else 1) // shared
    scores = 0
    if layout.attention in ("xla", "blocked"):
        scores = max(1, model.n_heads // shared) * tokens * model.seq_len
    kept = {"block": d, "dots": 2 * d + 2 * heads + 2 * kv + ff, "none": 4 * d + 4 * heads + 4 * kv + 3 * ff}
    each = kept[layout.remat] * tokens * width + (2 * scores * width if layout.remat == "none" else 0)
    work = tokens * (6 * d + 4 * heads + 4 * kv + 3 * ff) * width + 3 * scores * 4
    return model.n_layers * each + work


def rank_layouts(
    model: ModelConfig, batch_seqs: int, chips: int, chip_bytes: float, dtype: str, mesh: MeshConfig,
    chips_per_host: int = 8, *, platform: str = "tpu", optimizer: str = "adamw", averages: bool = False,
) -> list[Layout]:  # fmt: skip
    """Layouts of one run on `chips` chips of `chip_bytes` each that the estimate says fit, quickest first.

    Values that `mesh` gives are fixed, its autos are free. tensor stays within `chips_per_host`. Empty where
    nothing fits.
    """
    found = []
    for shape in _shapes(model, chips, chips_per_host, mesh):
        for remat in REMATS if mesh.remat == "auto" else (mesh.remat,):
            layout = _largest(model, batch_seqs, shape, remat, chip_bytes, dtype, mesh, platform, optimizer, averages)
            if layout is not None:
                found.append(layout)
    return sorted(found, key=lambda layout: _cost(model, batch_seqs, layout))


def _shapes(model: ModelConfig, chips: int, chips_per_host: int, mesh: MeshConfig) -> Iterator[Layout]:
    for tensor in _choices(mesh.tensor, chips):
        if not mesh.tensor and (tensor > chips_per_host or model.n_heads % tensor or model.d_ff % tensor):
            continue
        for context in _choices(mesh.context, chips // tensor):
            if model.seq_len % context or (not mesh.context and model.seq_len // context < 1024 and context > 1):
                continue
            replicas = chips // tensor // context
            for fsdp in _choices(mesh.fsdp, replicas):
                if mesh.data in (-1, replicas // fsdp) and (mesh.fsdp or model.d_model % fsdp == 0):
                    yield Layout(replicas // fsdp, fsdp, tensor, context)


def _choices(given: int, chips: int) -> list[int]:
    """Divisors of `chips`, or the given value if it is one."""
    if given:
        return [given] if chips % given == 0 else []
    return [n for n in range(1, chips + 1) if chips % n == 0]


def _largest(
    model: ModelConfig, batch_seqs: int, shape: Layout, remat: Remat, chip_bytes: float, dtype: str, mesh: MeshConfig,
    platform: str, optimizer: str, averages: bool,
) -> Layout | None:  # fmt: skip
    """The largest microbatch that fits this mesh and remat."""
    attention = mesh.attention if mesh.attention != "auto" else choose_attention(model, platform, dtype, shape.context)
    if batch_seqs % shape.replicas:
        return None
    per_chip = batch_seqs // shape.replicas
    for accumulate in _choices(batch_seqs // mesh.microbatch_seqs if mesh.microbatch_seqs else 0, per_chip):
        rows = per_chip // accumulate
        columns = -(-model.vocab_size // shape.tensor)
        chunks = mesh.head_chunks or choose_chunks(rows, model.seq_len // shape.context, columns)
        layout = Layout(shape.data, shape.fsdp, shape.tensor, shape.context, rows * shape.replicas, remat, attention,
                        chunks)  # fmt: skip
        if estimate_memory(model, layout, dtype, optimizer, averages).total <= USABLE * chip_bytes:
            return layout
    return None


FLOPS_PER_BYTE = 2000.0
"""Arithmetic that a chip does while it sends or gets one byte: 197e12 FLOP/s over about 100 GB/s (v5e), 989e12 over
450 GB/s inside and 50 GB/s between hosts (H100). An assumption that only orders layouts."""
RECOMPUTE = {"none": 1.0, "dots": 1.03, "block": 4 / 3}
"""Work over the work without remat: a block's forward pass again is a third of forward and backward."""


def _cost(model: ModelConfig, batch_seqs: int, layout: Layout) -> tuple[float, int, int]:
    """Arithmetic of a chip and step, and what it waits for, in FLOPs; then the simpler mesh first."""
    tokens = batch_seqs * model.seq_len
    work = flops_per_token(model) * tokens / layout.chips * RECOMPUTE[layout.remat]
    accumulate = batch_seqs // layout.microbatch_seqs
    local = 2 * count_params(model)["total"] / layout.tensor
    gathers = 3 if layout.fsdp > 1 else 0
    fsdp = gathers * local * (layout.fsdp - 1) / layout.fsdp
    data = 2 * local / layout.fsdp if layout.data > 1 or layout.context > 1 else 0.0
    own = tokens / layout.chips * layout.tensor * 2
    tensor = 8 * model.n_layers * model.d_model * own * (layout.tensor - 1) / layout.tensor
    keys = model.n_kv_heads * model.d_head / layout.tensor
    context = 6 * model.n_layers * keys * own * (layout.context - 1)
    waits = FLOPS_PER_BYTE * (tensor + context)
    overlapped = FLOPS_PER_BYTE * accumulate * (fsdp + data)
    return max(work, overlapped) + waits + 0.1 * min(work, overlapped), layout.tensor * layout.context, layout.fsdp
