"""The validation loss by source: every target belongs to the source of its own token, exactly.

A window is summed once over all its targets, as ever, and once over those of each source in it; so one forward pass
gives the loss and its parts, and the parts add up. Only few sources meet in a window: the masks are as many as those.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jaxscale.config import DataConfig
from jaxscale.data.batches import validation_windows
from jaxscale.data.files import TokenFiles
from jaxscale.data.select import name_parts

__all__ = ["MOST_SOURCES", "Validation", "make_validation"]

MOST_SOURCES = 32
"""Beyond it no loss by source is told: a table of files says nothing; data.mixture groups them."""


@dataclass(frozen=True, eq=False)
class Validation:
    """Windows [n, t + 1], masks [n, t] or [n, 1 + segments, t], and the source of each segment [n, segments].

    Mask 0 is of all targets; a segment without a source (-1) is empty. `names`: of the sources; () where not known.
    """

    windows: NDArray[np.int32]
    mask: NDArray[np.bool_]
    owner: NDArray[np.int64]
    names: tuple[str, ...]

    @property
    def counts(self) -> NDArray[np.int64]:
        """Targets of each window [n]."""
        counts: NDArray[np.int64] = (self.mask if self.mask.ndim == 2 else self.mask[:, 0]).sum(-1)
        return counts

    @property
    def segments(self) -> int:
        """Sources that meet in a window, at most; 0 where all is one."""
        return self.owner.shape[1]

    def split_sums(self, sums: NDArray[np.float64]) -> dict[str, dict[str, float]]:
        """Loss, targets and standard error over windows of every source, from the sums [n] or [n, 1 + segments]."""
        if not self.names:
            return {}
        if not self.segments:
            return {self.names[0]: _summarize(sums, self.counts)}
        told = {}
        targets = self.mask[:, 1:].sum(-1)
        for number, name in enumerate(self.names):
            mine = self.owner == number
            if mine.any():
                told[name] = _summarize(np.where(mine, sums[:, 1:], 0.0).sum(1), np.where(mine, targets, 0).sum(1))
        return told


def make_validation(files: TokenFiles, data: DataConfig, seq_len: int) -> Validation:
    """The validation set of these token files in windows, with the sources that they know."""
    windows, mask = validation_windows(files.val, seq_len)
    names, source = _find_sources(files, data)
    if len(names) < 2:
        return Validation(windows, mask, np.empty((len(windows), 0), np.int64), names)
    padded = np.full(mask.size, -1, np.int64)
    padded[: len(source) - 1] = source[1:]  # of the targets
    owner, segment = _segment(padded.reshape(mask.shape))
    of = np.arange(owner.shape[1])
    parts = (segment[:, None, :] == of[:, None]) & mask[:, None, :]
    return Validation(windows, np.concatenate([mask[:, None], parts], 1), owner, names)


def _find_sources(files: TokenFiles, data: DataConfig) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Names of the validation text's sources, and which of them each token [val_tokens] is of."""
    names = name_parts(files, data)
    called = {row.source: names.get(row.source, "") for row in files.sources}
    for part in files.parts:
        called |= {files.sources[number].source: part.name for number in part.sources if data.mixture}
    spans, held = files.val_spans, [number for number, row in enumerate(files.sources) if row.val_tokens]
    if not spans and len(held) == 1:  # token files of before, where there is nothing to tell apart
        spans = ((held[0], files.info.val_tokens),)
    of = [called[files.sources[number].source] for number, _ in spans]
    known = tuple(dict.fromkeys(of))
    if not known or len(known) > MOST_SOURCES:
        return (), np.empty(0, np.int64)
    numbers = {name: number for number, name in enumerate(known)}
    return known, np.repeat([numbers[name] for name in of], [tokens for _, tokens in spans])


def _segment(source: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sources that meet in each window [n, segments] and the segment of each target [n, t]; -1 for none.

    >>> [part.tolist() for part in _segment(np.array([[4, 4, 7], [7, 7, 7], [7, 4, -1]]))]
    [[[4, 7], [7, -1], [4, 7]], [[0, 0, 1], [0, 0, 0], [1, 0, -1]]]
    """
    found = [np.unique(row[row >= 0]) for row in source]
    most = max(map(len, found))
    owner = np.full((len(source), most), -1, np.int64)
    segment = np.full(source.shape, -1, np.int64)
    for i, (row, mine) in enumerate(zip(source, found, strict=True)):
        owner[i, : len(mine)] = mine
        segment[i, row >= 0] = np.searchsorted(mine, row[row >= 0])
    return owner, segment


def _summarize(sums: NDArray[np.float64], counts: NDArray[np.int64]) -> dict[str, float]:
    """The mean in nats per token and its standard error over windows, as of the whole."""
    mean = float(sums.sum() / counts.sum())
    error = float(np.sqrt(np.sum((sums - mean * counts) ** 2)) / counts.sum())
    return {"loss": mean, "tokens": int(counts.sum()), "std_error": error} if math.isfinite(mean) else {}
