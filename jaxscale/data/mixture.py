"""Batches of several sources in fixed shares: row i of the stream is a pure function of (seed, i).

Which source row i belongs to is the same for every seed: the most even order there is. With shares m_s / M the order
has period M, and after any n rows source s has been read n m_s / M times, to less than one (Tijdeman 1980, the
chairman assignment problem: always the source that is due first, among those that are due). The j-th row of a source
is its window number j mod W of epoch j // W, under a permutation given by (seed, source, epoch), as without a mixture.
So nothing is stored, every process computes its own rows, and a source that is short is repeated whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from jaxscale.data.batches import BatchSource, permute_indices
from jaxscale.data.files import TokenFiles
from jaxscale.data.pieces import Part
from jaxscale.errors import MisuseError

__all__ = ["LARGEST_PERIOD", "MixtureSource", "open_batches", "order_sources", "resolve_shares"]

LARGEST_PERIOD = 1 << 16
"""Shares are whole multiples of 1 / M, M at most this: decimal weights exactly, others to the nearest."""
EXACT = 1e-9
"""A share met to this is met: one window off after a thousand million of them."""


def resolve_shares(weights: Sequence[float]) -> tuple[int, ...]:
    """Windows (m_s) of each source in a period of M = sum(m_s): the smallest M that gives the weights, or the best.

    >>> resolve_shares([0.7, 0.2, 0.1]), resolve_shares([1, 2])
    ((7, 2, 1), (1, 2))
    """
    wanted = np.asarray(weights, float) / np.sum(weights)
    periods = np.arange(1, LARGEST_PERIOD + 1)
    counts = np.rint(periods[:, None] * wanted).astype(np.int64)
    errors = np.abs(counts / periods[:, None] - wanted).max(1)
    errors[(counts.sum(1) != periods) | (counts < 1).any(1)] = np.inf
    exact = np.flatnonzero(errors < EXACT)
    best = int(exact[0]) if len(exact) else int(np.argmin(errors))
    if not np.isfinite(errors[best]):
        raise MisuseError(f"data.mixture: the smallest share, {wanted.min():.3g}, is below 1 / {LARGEST_PERIOD}; "
                          f"raise its weight or leave the source out")  # fmt: skip
    return tuple(counts[best].tolist())


@lru_cache(maxsize=64)
def order_sources(counts: tuple[int, ...]) -> NDArray[np.int64]:
    """The source of each row [M] of a period that holds counts[s] rows of source s.

    >>> order_sources((3, 2, 1)).tolist()
    [0, 1, 0, 2, 1, 0]
    """
    k, period = len(counts), sum(counts)
    if k == 1:
        return np.zeros(period, np.int64)
    have, order = [0] * k, []
    slack = (2 * k - 3) * period
    for n in range(1, period + 1):
        lack = [(2 * k - 2) * (count * n - period * had) for count, had in zip(counts, have, strict=True)]
        due = [s for s in range(k) if lack[s] >= period]
        first = min(due, key=lambda s: (slack - lack[s]) / counts[s])
        have[first] += 1
        order.append(first)
    return np.array(order, np.int64)


@dataclass(frozen=True, eq=False)
class MixtureSource:
    """The batches of one run that reads `parts`, as seen by one of `process_count` processes (as `BatchSource`)."""

    parts: tuple[Part, ...]
    seq_len: int
    batch_seqs: int
    seed: int
    process_index: int = 0
    process_count: int = 1

    def __post_init__(self) -> None:
        for part in self.parts:
            self._source(part)  # refuses a part without a window, a seed or batch that will not do

    @property
    def rows(self) -> range:
        """The rows of the global batch that this process reads."""
        return self._source(self.parts[0]).rows

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Rows of each part in a period."""
        return resolve_shares([part.share for part in self.parts])

    def find_rows(self, start: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Part and window number of every row, [count * rows] each, of the steps from `start`."""
        steps = np.arange(start, start + count, dtype=np.int64)
        stream = (steps[:, None] * self.batch_seqs + np.array(self.rows)).ravel()
        order = order_sources(self.counts)
        cycle, slot = np.divmod(stream, len(order))
        part = order[slot]
        window = np.empty_like(stream)
        for p, rows in enumerate(self.counts):
            mine = part == p
            number = cycle[mine] * rows + _rank(self.counts, p)[slot[mine]]
            window[mine] = self._permute(self.parts[p], number)
        return part, window

    def read_steps(self, start: int, count: int) -> NDArray[np.int32]:
        """Ids [count, rows, seq_len + 1] of the steps start .. start + count - 1."""
        part, window = self.find_rows(start, count)
        ids = np.empty((len(part), self.seq_len + 1), np.int32)
        for p, one in enumerate(self.parts):
            mine = part == p
            ids[mine] = one.text.read(window[mine] * self.seq_len, self.seq_len + 1)
        return ids.reshape(count, len(self.rows), self.seq_len + 1)

    def batch(self, step: int) -> NDArray[np.int32]:
        """Ids [rows, seq_len + 1] of one step: inputs are [:, :-1], targets [:, 1:]."""
        return self.read_steps(step, 1)[0]

    def _permute(self, part: Part, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Windows of a part's rows by their numbers, counted from the beginning of the run."""
        size = (len(part.text) - 1) // self.seq_len
        seed = self.seed if part.key == 0 else int(np.random.SeedSequence([self.seed, part.key]).generate_state(1)[0])
        epochs, places = np.divmod(numbers, size)
        windows = np.empty_like(numbers)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            windows[here] = permute_indices(places[here], size, seed, epoch)
        return windows

    def _source(self, part: Part) -> BatchSource:
        """The part as if it were read alone, for its checks."""
        if len(part.text) <= self.seq_len:
            raise MisuseError(f"data: {part.name} has {len(part.text)} tokens to train on, fewer than one window of "
                              f"model.seq_len + 1 = {self.seq_len + 1}; give more of it")  # fmt: skip
        return BatchSource(part.text.tokens, self.seq_len, self.batch_seqs, self.seed, self.process_index,
                           self.process_count)  # fmt: skip


@lru_cache(maxsize=256)
def _rank(counts: tuple[int, ...], part: int) -> NDArray[np.int64]:
    """How many rows of `part` come before each row [M] of a period."""
    mine = order_sources(counts) == part
    return np.cumsum(mine) - mine


def open_batches(
    files: TokenFiles, seq_len: int, batch_seqs: int, seed: int, process_index: int = 0, process_count: int = 1
) -> BatchSource | MixtureSource:
    """The batches that a run reads from these token files, or from the parts of them that its data config chose."""
    if files.parts:
        return MixtureSource(files.parts, seq_len, batch_seqs, seed, process_index, process_count)
    return BatchSource(files.train, seq_len, batch_seqs, seed, process_index, process_count)
