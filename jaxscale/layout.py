"""How one program is cut over chips and which kernels it uses: a value, and the kernels that can serve it.

A layout changes where and how a step is computed, never what, beyond rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxscale.config import ModelConfig
from jaxscale.errors import MisuseError

__all__ = ["Attention", "Layout", "Remat", "can_attend", "check_attention", "choose_attention", "choose_chunks"]

Attention = Literal["xla", "chunked", "cudnn", "splash", "blocked"]
Remat = Literal["none", "dots", "block"]

SPLASH_BLOCK = 128
"""Positions of the smallest block that TPU splash attention takes."""
CUDNN_HEAD = 128
"""Widest head that cuDNN's flash attention trains on every NVIDIA generation since Ampere (256 on Hopper)."""
SCORES_BYTES = 64 << 20
"""Scores of one sequence that auto lets attention hold at once; above, it takes them in pieces of about this."""
PIECE_BYTES = 256 << 20
"""Largest piece of logits on an accelerator that auto holds at once."""


@dataclass(frozen=True)
class Layout:
    """Concrete choices for one program on data x fsdp x tensor x context chips."""

    data: int = 1
    fsdp: int = 1
    tensor: int = 1
    context: int = 1
    microbatch_seqs: int = 1
    """Sequences in one forward pass of all chips together."""
    remat: Remat = "none"
    attention: Attention = "xla"
    head_chunks: int = 1

    @property
    def chips(self) -> int:
        """Chips of the whole mesh."""
        return self.data * self.fsdp * self.tensor * self.context

    @property
    def replicas(self) -> int:
        """Groups of chips that hold different rows of a batch."""
        return self.data * self.fsdp

    @property
    def mesh(self) -> dict[str, int]:
        """Size of every mesh axis."""
        return {"data": self.data, "fsdp": self.fsdp, "tensor": self.tensor, "context": self.context}

    def describe(self) -> str:
        """In words.

        >>> Layout(data=2, fsdp=4, microbatch_seqs=8, remat="block").describe()
        'data 2 x fsdp 4, microbatch 8, remat block, attention xla'
        """
        axes = " x ".join(f"{name} {size}" for name, size in self.mesh.items() if size > 1) or "one chip"
        pieces = f", head in {self.head_chunks} pieces" if self.head_chunks > 1 else ""
        return f"{axes}, microbatch {self.microbatch_seqs}, remat {self.remat}, attention {self.attention}{pieces}"


def choose_attention(model: ModelConfig, platform: str, dtype: str, context: int = 1) -> Attention:
    """The safe kernel for a platform (cpu, gpu or tpu), compute dtype and shape."""
    own: dict[str, Attention] = {"gpu": "cudnn", "cuda": "cudnn", "tpu": "splash"}
    kind = own.get(platform)
    if kind and can_attend(kind, model, platform, dtype, context):
        return kind
    held = 4 * model.n_heads * model.seq_len * model.seq_len // context
    return "xla" if platform == "cpu" or held <= SCORES_BYTES else "chunked"


def can_attend(kind: Attention, model: ModelConfig, platform: str, dtype: str, context: int = 1) -> bool:
    """Whether a kernel can serve."""
    return not _obstacle(kind, model, platform, dtype, context)


def check_attention(kind: Attention, model: ModelConfig, platform: str, dtype: str, context: int = 1) -> None:
    """MisuseError where an explicit choice cannot work."""
    obstacle = _obstacle(kind, model, platform, dtype, context)
    if obstacle:
        raise MisuseError(f"mesh.attention: {kind} {obstacle}; use --mesh.attention auto")


def _obstacle(kind: str, model: ModelConfig, platform: str, dtype: str, context: int) -> str:
    """Why a kernel cannot serve, "" if it can."""
    if model.position == "alibi" and kind in ("cudnn", "splash"):
        return "takes no biases on scores and model.position is alibi"
    if kind == "cudnn":
        if model.objective == "masked_diffusion":
            return "was never tried here without a causal mask, and model.objective masked_diffusion has none"
        if platform not in ("gpu", "cuda"):
            return f"runs on NVIDIA GPUs and this is a {platform}"
        if dtype not in ("bfloat16", "float16"):
            return f"computes in bfloat16 and mesh.dtype is {dtype}"
        if model.d_head % 8 or model.d_head > CUDNN_HEAD:
            return f"takes heads whose width is a multiple of 8 up to {CUDNN_HEAD} and these are {model.d_head} wide"
        if context > 1:
            return f"takes whole sequences and mesh.context is {context}"
    if kind == "splash":
        if platform != "tpu":
            return f"runs on TPUs and this is a {platform}"
        if model.seq_len // context % SPLASH_BLOCK or model.seq_len % context:
            return (f"takes a multiple of {SPLASH_BLOCK} positions a chip and model.seq_len {model.seq_len} over "
                    f"context {context} gives {model.seq_len / context:g}")  # fmt: skip
    if kind == "blocked" and platform != "cpu":
        return f"is a CPU kernel and this is a {platform}"
    return ""


def choose_chunks(rows: int, positions: int, columns: int, piece_bytes: int = PIECE_BYTES) -> int:
    """Pieces of the head, a power of two, so that float32 logits [rows, positions, columns] of one stay small.

    >>> choose_chunks(1, 8192, 128_256), choose_chunks(4, 64, 256)
    (16, 1)
    """
    pieces = 1
    while 4 * rows * positions * columns > pieces * piece_bytes and pieces < columns:
        pieces *= 2
    return pieces
