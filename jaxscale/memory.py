"""Bytes per chip of a training step, from shapes alone, and the layouts that fit a chip, best first.

    total = state + batch + sum of gradients + kept + max(head, block)

kept   what the forward pass leaves for the backward pass, by the remat kind (`jaxscale.model.remat`), all layers
head   logits of one piece and the gradients of table and head
block  the gradients of all blocks, and the work of one: what is computed again, and cotangents

What a block keeps is counted from the jaxpr of its backward pass, the work of one is fitted to what compilers report;
`docs/memory.md` has the errors.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import lru_cache
from math import prod

from jaxscale.axes import count_shards
from jaxscale.config import MeshConfig, ModelConfig
from jaxscale.flops import count_params, flops_per_token
from jaxscale.layout import SCORES_BYTES, Layout, Remat, can_attend, check_attention, choose_attention, choose_chunks
from jaxscale.limits import check_mesh
from jaxscale.params import param_shapes

__all__ = ["Layout", "MemoryEstimate", "estimate_memory", "rank_layouts"]

USABLE = 0.92
"""Share of a chip's memory that a layout may fill by the estimate; the rest is the compiler's and the estimate's
error."""
REMATS: tuple[Remat, ...] = ("none", "dots", "block")


KEPT = {"gelu": 6, "swiglu": 6, "relu2": 4, "relu": 3, "geglu": 8}
"""Values of the MLP's hidden width that "none" keeps for each token; of experts one more, hidden times gate."""
MOMENTS = {"adamw": 2, "sgd": 1, "muon": 2, "lion": 1, "adafactor": 1}
"""Arrays like the weights that an optimizer keeps; Adafactor's rows and columns are not counted."""
LSTM_KEPT, LSTM_WORK = 10, {"none": 16, "dots": 16, "block": 22}
"""Values of the width that an LSTM's block keeps for each token (its gates are 4), and holds in its backward pass."""
LOGITS_COPIES = 3.0
"""Float32 copies of the logits at a time: themselves, their softmax and their gradient."""
PIECE_COPIES = 2.5
"""The same of one piece, whose gradient is in the compute dtype."""
SCORES_COPIES = 3
"""Float32 copies of scores at a time in a backward pass that computes them again."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes per chip by kind, at the fullest moment of a step. The donated state is counted once."""

    weights: int
    optimizer: int
    averages: int
    gradients: int
    """What has been added up, and what the backward pass is making."""
    activations: int
    """Kept from the forward pass, and the work of one block where that is the fullest moment."""
    logits: int
    """0 where the fullest moment is in a block."""
    gathered: int
    """Parameters that fsdp splits, whole while they are in use."""
    batch: int

    @property
    def total(self) -> int:
        """All kinds together."""
        return sum(getattr(self, field.name) for field in fields(self))


def estimate_memory(
    model: ModelConfig, layout: Layout, dtype: str, optimizer: str = "adamw", averages: bool = False, slots: int = 1
) -> MemoryEstimate:
    """Bytes per chip of one training program, from shapes; `slots` microbatches lie in a dispatch.

    >>> small = ModelConfig(d_model=256, n_layers=8, vocab_size=8192, seq_len=512)
    >>> estimate_memory(small, Layout(fsdp=4, microbatch_seqs=4), "bfloat16").weights
    10491136
    """
    width = 2 if dtype == "bfloat16" else 4
    weights, tables = 4 * _count_state(model, layout.fsdp, layout.tensor), 4 * _count_tables(model, layout)
    rows = max(1, layout.microbatch_seqs // layout.replicas)
    tokens = rows * (model.seq_len // layout.context)
    kept = model.n_layers * _kept_bytes(model, layout, tokens, width)
    copies = PIECE_COPIES if layout.head_chunks > 1 else LOGITS_COPIES
    logits = int(copies * 4 * tokens * model.vocab_size / (layout.tensor * layout.head_chunks))
    whole = _gathered_bytes(model, layout, width)
    work = _work_bytes(model, layout, tokens, width)
    in_block = weights + work + whole[1] > tables + logits + whole[0]
    return MemoryEstimate(
        weights=weights,
        optimizer=MOMENTS[optimizer] * weights,
        averages=weights if averages else 0,
        gradients=weights + (weights if in_block else tables),
        activations=kept + (work if in_block else 0),
        logits=0 if in_block else logits,
        gathered=whole[1] if in_block else whole[0],
        batch=4 * slots * rows * (model.seq_len + 1),
    )


@lru_cache(maxsize=4096)
def _count_state(model: ModelConfig, fsdp: int, tensor: int, tables: bool = True) -> int:
    """Parameters on a chip, with or without table and head."""
    mesh, total = {"data": 1, "fsdp": fsdp, "tensor": tensor, "context": 1}, 0
    for full_name, axes in param_shapes(model).items():
        if tables or full_name not in ("embed", "head"):
            names, shape = tuple(name for name, _ in axes), tuple(size for _, size in axes)
            total += prod(shape) // count_shards(names, shape, mesh)
    return total


def _count_tables(model: ModelConfig, layout: Layout) -> int:
    everything = _count_state(model, layout.fsdp, layout.tensor)
    return everything - _count_state(model, layout.fsdp, layout.tensor, tables=False)


def _gathered_bytes(model: ModelConfig, layout: Layout, width: int) -> tuple[int, int]:
    """What fsdp gathers while the head is in use, and while a block is: its weights, its gradient, the next one's."""
    copies = 2 if layout.head_chunks > 1 else 1  # the pieces are laid out anew
    head = copies * model.vocab_size * model.d_model // layout.tensor * width
    if layout.fsdp == 1:
        return (0 if width == 4 and copies == 1 else head), 0
    return head, 3 * width * _count_state(model, 1, layout.tensor, tables=False) // model.n_layers


def _widths(model: ModelConfig, layout: Layout) -> tuple[float, float, float, float]:
    """Of a chip's part of a token: residual stream d, query heads h, key heads k, MLP f, all its experts' together."""
    split = layout.tensor
    d = model.d_model / (split if model.seq_len % (split * layout.context) == 0 else 1)
    h = model.n_heads * model.d_head / (split if model.n_heads % split == 0 else 1)
    k = model.n_kv_heads * model.d_head / (split if model.n_kv_heads % split == 0 else 1)
    hidden = model.d_ff * (model.experts_per_token if model.n_experts else 1)
    return d, h, k, hidden / (split if model.d_ff % split == 0 else 1)


def _kept_bytes(model: ModelConfig, layout: Layout, tokens: int, width: int, remat: Remat | None = None) -> int:
    """What the backward pass of one block reads, as jax.ad_checkpoint.saved_residuals lists it."""
    d, h, k, f = _widths(model, layout)
    kind = remat or layout.remat
    if kind == "block":
        return int(tokens * d * width)
    if model.architecture == "lstm":
        return int(tokens * LSTM_KEPT * d * width)
    if kind == "dots":
        return int(tokens * width * (2 * d + h + 2 * k + f * (2 if model.gated else 1)))
    whole = d * (layout.tensor if layout.tensor > 1 else 1)  # as a block's matrix products read it
    streams = 7 * d + 2 * whole + 4 * h + 5 * k if width == 4 else 3 * d + 2 * whole + 2 * h + 3 * k
    scores = (13 if width == 4 else 11) * _count_scores(model, layout, tokens) if layout.attention == "xla" else 0
    if model.n_experts:  # a row for every choice
        streams += f + model.experts_per_token * d
    return int(tokens * width * (streams + KEPT[model.mlp] * f) + scores)


def _count_scores(model: ModelConfig, layout: Layout, tokens: int) -> float:
    heads = model.n_heads / (layout.tensor if model.n_heads % layout.tensor == 0 else 1)
    return heads * tokens * model.seq_len


def _work_bytes(model: ModelConfig, layout: Layout, tokens: int, width: int) -> int:
    """What one block holds in its backward pass beside what was kept."""
    d, h, k, f = _widths(model, layout)
    if model.architecture == "lstm":
        return int(tokens * LSTM_WORK[layout.remat] * d * width)
    inside = d * (layout.tensor if layout.tensor > 1 else 1)
    scores = SCORES_COPIES * 4 * _count_scores(model, layout, tokens)
    scores = min(scores, SCORES_COPIES * SCORES_BYTES) if layout.attention == "chunked" else scores
    scores = 0 if layout.attention in ("cudnn", "splash") else scores
    again = {"none": 0.0, "dots": 0.5, "block": 1.0}[layout.remat] * (KEPT[model.mlp] * f + 4 * (d + h + k))
    cotangents = 2 * inside + h + 2 * k + f * (2 if model.gated else 1)
    kept_scores = layout.remat == "none" and layout.attention == "xla"
    return int(tokens * width * (again + cotangents) + (scores / SCORES_COPIES if kept_scores else scores))


def rank_layouts(
    model: ModelConfig, batch_seqs: int, chips: int, chip_bytes: float, dtype: str, mesh: MeshConfig,
    chips_per_host: int = 8, *, platform: str = "tpu", optimizer: str = "adamw", averages: bool = False,
) -> list[Layout]:  # fmt: skip
    """Layouts of one run on `chips` chips of `chip_bytes` each that the estimate says fit, quickest first.

    Values that `mesh` gives are fixed, its autos are free. tensor stays within `chips_per_host`. Empty where
    nothing fits. MisuseError for an attention that cannot work.
    """
    check_mesh(model, mesh)
    if mesh.attention != "auto":
        check_attention(mesh.attention, model, platform, dtype, max(1, mesh.context))
    found = []
    for shape in _shapes(model, chips, chips_per_host, mesh):
        for remat in REMATS if mesh.remat == "auto" else (mesh.remat,):
            layout = _largest(model, batch_seqs, shape, remat, chip_bytes, dtype, mesh, platform, optimizer, averages)
            if layout is not None:
                found.append(layout)
    island = chips if platform == "tpu" else chips_per_host
    return sorted(found, key=lambda layout: _cost(model, batch_seqs, layout, island))


def _shapes(model: ModelConfig, chips: int, chips_per_host: int, mesh: MeshConfig) -> Iterator[Layout]:
    for tensor in _choices(mesh.tensor, chips):
        if not mesh.tensor and (tensor > chips_per_host or model.n_heads % tensor or model.d_ff % tensor):
            continue
        if model.architecture == "lstm" and tensor > 1:
            continue
        for context in _choices(mesh.context, chips // tensor):
            if model.architecture == "lstm" and context > 1:
                continue
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
    if not can_attend(attention, model, platform, dtype, shape.context):
        return None
    if batch_seqs % shape.replicas or (mesh.microbatch_seqs and batch_seqs % mesh.microbatch_seqs):
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


NEAR, FAR = 2000.0, 20_000.0
"""Arithmetic that a chip does while it sends or gets one byte: 197e12 FLOP/s over about 100 GB/s (v5e), 989e12 over
450 GB/s inside and 50 GB/s between hosts (H100). An assumption that only orders layouts."""
RECOMPUTE = {"none": 1.0, "dots": 1.03, "block": 4 / 3}
"""Work over the work without remat: a block's forward pass again is a third of forward and backward."""
HIDDEN = 0.9
"""Share of fsdp's and data's traffic that runs behind arithmetic, or the other way round."""


def _cost(model: ModelConfig, batch_seqs: int, layout: Layout, island: int) -> tuple[float, int, int]:
    """A chip's arithmetic and waiting for one step, in FLOPs; then the simpler mesh first.

    `island` chips are near each other; context and tensor are the inner axes of the mesh, so they are near first.
    Per microbatch fsdp gathers the weights twice and scatters their gradients once, in 2 bytes; data adds the
    gradients up, twice the bytes of its share. Per token and block tensor gathers and scatters the stream 8 times,
    context gathers keys and values and scatters their gradients.
    """
    tokens = batch_seqs * model.seq_len / layout.replicas
    flash = layout.attention in ("cudnn", "splash")  # the others compute what causality masks
    work = flops_per_token(model, causal=flash) * batch_seqs * model.seq_len / layout.chips * RECOMPUTE[layout.remat]
    weights = 2 * count_params(model)["total"] / layout.tensor
    sent = 3 * weights * (layout.fsdp - 1) / layout.fsdp
    if layout.data * layout.context > 1:
        sent += 2 * weights / layout.fsdp
    shared = (NEAR if layout.chips <= island else FAR) * sent * batch_seqs / layout.microbatch_seqs
    stream = 8 * 2 * model.d_model * tokens / layout.context * (layout.tensor - 1) / layout.tensor
    keys = 3 * 2 * 2 * model.n_kv_heads * model.d_head / layout.tensor * tokens * (layout.context - 1) / layout.context
    inner = layout.tensor * layout.context
    waits = (NEAR if inner <= island else FAR) * model.n_layers * (stream + keys)
    cost = max(work, shared) + (1 - HIDDEN) * min(work, shared) + waits
    return cost, layout.tensor * layout.context, layout.fsdp
