"""Stretches of a token array read as if they lay end to end: a subset of a text without a copy of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Part", "Pieces", "cut_pieces_to", "join_pieces"]


@dataclass(frozen=True, eq=False)
class Pieces:
    """Stretches [starts, starts + lengths) of `tokens`, one after another; their order is the reading order.

    >>> text = Pieces(np.arange(100), np.array([40, 10]), np.array([3, 5]))
    >>> len(text), text.read(np.array([0, 2]), 4).tolist()
    (8, [[40, 41, 42, 10], [42, 10, 11, 12]])
    """

    tokens: NDArray[Any]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    @cached_property
    def ends(self) -> NDArray[np.int64]:
        """Where each stretch ends in reading order."""
        return np.cumsum(self.lengths, dtype=np.int64)

    def read(self, at: NDArray[np.int64], count: int) -> NDArray[Any]:
        """`count` tokens from each place [n] in reading order: ids [n, count]."""
        places = self.locate(at)[:, None] + np.arange(count)
        piece = np.searchsorted(self.ends, at, "right")
        torn = at + count > self.ends[piece]
        if torn.any():
            places[torn] = self.locate(at[torn, None] + np.arange(count))
        return self.tokens[places]

    def locate(self, at: NDArray[np.int64]) -> NDArray[np.int64]:
        """Indices into `tokens` of places in reading order."""
        piece = np.searchsorted(self.ends, at, "right")
        return self.starts[piece] + at - (self.ends - self.lengths)[piece]


@dataclass(frozen=True, eq=False)
class Part:
    """What a run reads of one source: its name, its share of the training tokens, its text, and its order's key.

    `sources`: numbers of the token files' sources in it. `key` 0: the order is that of a text without parts.
    """

    name: str
    share: float
    text: Pieces
    sources: tuple[int, ...]
    key: int = 0


def join_pieces(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The same stretches with those joined that follow each other without a gap; empty ones are left out.

    >>> [part.tolist() for part in join_pieces(np.array([0, 4, 9, 9]), np.array([4, 2, 0, 3]))]
    [[0, 9], [6, 3]]
    """
    starts, lengths = starts[lengths > 0], lengths[lengths > 0]
    if not len(starts):
        return starts, lengths
    first = np.flatnonzero(np.r_[True, starts[1:] != (starts + lengths)[:-1]])
    return starts[first], np.add.reduceat(lengths, first)


def cut_pieces_to(
    starts: NDArray[np.int64], lengths: NDArray[np.int64], tokens: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The first `tokens` tokens of these stretches, the last one cut to fit.

    >>> [part.tolist() for part in cut_pieces_to(np.array([7, 50, 90]), np.array([3, 5, 5]), 6)]
    [[7, 50], [3, 3]]
    """
    ends = np.cumsum(lengths)
    kept = np.clip(lengths - (ends - tokens), 0, lengths)
    return starts[kept > 0], kept[kept > 0]
