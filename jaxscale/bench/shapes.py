"""What is timed: a model and a batch, as D,L,H,B,T,V.

D width, L layers, H heads, B sequences a batch, T tokens a sequence, V vocabulary
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxscale.config import DataConfig, ModelConfig, Recipe, Study
from jaxscale.errors import MisuseError
from jaxscale.flops import flops_per_token
from jaxscale.resolve import resolve_run
from jaxscale.runs import RunSpec

__all__ = ["DEFAULT_SHAPES", "Shape", "parse_shape"]


@dataclass(frozen=True)
class Shape:
    """One model and batch; letters as above."""

    D: int
    L: int
    H: int
    B: int
    T: int
    V: int

    @property
    def model(self) -> ModelConfig:
        """Our model of this shape; all that a shape does not say is the default."""
        return ModelConfig(d_model=self.D, n_layers=self.L, head_dim=self.D // self.H, vocab_size=self.V,
                           seq_len=self.T)  # fmt: skip

    @property
    def tokens(self) -> int:
        """Tokens of a step."""
        return self.B * self.T

    @property
    def flops(self) -> int:
        """Training FLOPs a token, 6 N_matmul + 6 L d T: the same count for every contestant."""
        return flops_per_token(self.model)

    def resolve(self, steps: int, data: DataConfig | None = None) -> RunSpec:
        """A run of so many steps by the default recipe, its batch one microbatch."""
        recipe = Recipe(microbatch_seqs=self.B, batch_coefficient=self.tokens, batch_exponent=0.0, batch_min_tokens=1)
        study = Study(model=self.model, recipe=recipe, data=data or DataConfig())
        tokens = float(steps * self.tokens)
        return resolve_run(study, self.model, tokens * self.flops, tokens, 0)

    def __str__(self) -> str:
        return f"{self.D},{self.L},{self.H},{self.B},{self.T},{self.V}"


DEFAULT_SHAPES = (
    Shape(64, 3, 2, 16, 128, 256),
    Shape(128, 4, 4, 16, 128, 256),
    Shape(256, 4, 8, 8, 256, 256),
    Shape(256, 6, 8, 8, 256, 8192),
)


def parse_shape(text: str) -> Shape:
    """D,L,H,B,T,V as a Shape; MisuseError for anything else.

    >>> parse_shape("64,3,2,16,128,256").flops
    1130496
    """
    words = text.replace(" ", "").split(",")
    if len(words) != 6 or not all(word.isdigit() and int(word) > 0 for word in words):
        raise MisuseError(f"--shape: {text!r} is not six whole numbers above 0; write D,L,H,B,T,V as in "
                          f"{DEFAULT_SHAPES[0]}")  # fmt: skip
    shape = Shape(*map(int, words))
    if shape.D % shape.H or shape.D // shape.H % 2:
        raise MisuseError(f"--shape {text}: {shape.H} heads do not split a width of {shape.D} into even parts; use a "
                          f"number of heads that divides {shape.D // 2}")  # fmt: skip
    if shape.V < 2:
        raise MisuseError(f"--shape {text}: a vocabulary of {shape.V} has nothing to predict; use 2 or more")
    return shape
