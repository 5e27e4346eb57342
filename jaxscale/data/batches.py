"""Token files to batches: the global batch is a pure function of (seed, step).

Windows of seq_len + 1 tokens start every seq_len tokens, so each token but the first is a target once an
epoch. Row r of step s is number i = s * batch_seqs + r of the stream; with W windows its epoch is i // W and
its window the image of i % W under a permutation of [0, W) given by (seed, epoch). Nothing is stored: the
step is the only state, resuming is starting at a step, and each process of a job computes just its own rows.
The permutation is grain's `index_shuffle`, a keyed bijection evaluated point by point.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import repeat
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from jaxscale.errors import MisuseError

if TYPE_CHECKING:
    import grain

__all__ = ["BatchSource", "StepReader", "iterate_batches", "make_dataset", "permute_indices", "validation_windows"]

ROUNDS = 4
"""Rounds of the block cipher behind `index_shuffle`; grain's own shuffles use four."""


def permute_indices(indices: NDArray[np.int64], size: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Images [n] of `indices` [n] under the permutation of [0, size) that (seed, epoch) names.

    >>> permute_indices(np.arange(6), 6, seed=0, epoch=0).tolist()
    [5, 3, 1, 0, 4, 2]
    """
    from grain.experimental import index_shuffle

    images = map(index_shuffle, indices.tolist(), repeat(size - 1), repeat(_mix_key(seed, epoch)), repeat(ROUNDS))
    return np.fromiter(images, np.int64, len(indices))


@lru_cache(maxsize=64)
def _mix_key(seed: int, epoch: int) -> int:
    """A 32-bit key; neighbouring seeds and epochs give unrelated ones."""
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])


@dataclass(frozen=True, eq=False)
class BatchSource:
    """The batches of one run, as seen by one of `process_count` processes.

    `tokens` is a flat array of ids, usually `TokenFiles.train`. MisuseError: fewer tokens than one window,
    a batch that does not divide over the processes, a negative seed.
    """

    tokens: NDArray[np.unsignedinteger]
    seq_len: int
    batch_seqs: int
    seed: int
    process_index: int = 0
    process_count: int = 1

    def __post_init__(self) -> None:
        if self.n_windows < 1:
            raise MisuseError(f"the training text has {len(self.tokens)} tokens, fewer than one window of "
                              f"model.seq_len + 1 = {self.seq_len + 1}; give more text")  # fmt: skip
        if self.seed < 0:
            raise MisuseError(f"seed {self.seed}: the data order needs a seed of 0 or more")
        if self.batch_seqs % self.process_count:
            raise MisuseError(f"batch of {self.batch_seqs} sequences does not divide over "
                              f"{self.process_count} processes; use a multiple of that")  # fmt: skip

    @property
    def n_windows(self) -> int:
        """Windows in an epoch."""
        return (len(self.tokens) - 1) // self.seq_len

    @property
    def rows(self) -> range:
        """The rows of the global batch that this process reads."""
        count = self.batch_seqs // self.process_count
        return range(self.process_index * count, (self.process_index + 1) * count)

    def find_windows(self, start: int, count: int) -> NDArray[np.int64]:
        """Window numbers [count, rows] of the steps from `start`."""
        steps = np.arange(start, start + count, dtype=np.int64)
        stream = (steps[:, None] * self.batch_seqs + np.array(self.rows)).ravel()
        epochs, places = np.divmod(stream, self.n_windows)
        windows = np.empty_like(stream)
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
            here = epochs == epoch
            windows[here] = permute_indices(places[here], self.n_windows, self.seed, epoch)
        return windows.reshape(count, len(self.rows))

    def read_steps(self, start: int, count: int) -> NDArray[np.int32]:
        """Ids [count, rows, seq_len + 1] of the steps start .. start + count - 1."""
        return self._windows[self.find_windows(start, count)].astype(np.int32)

    def batch(self, step: int) -> NDArray[np.int32]:
        """Ids [rows, seq_len + 1] of one step: inputs are [:, :-1], targets [:, 1:]."""
        return self.read_steps(step, 1)[0]

    @cached_property
    def _windows(self) -> NDArray[np.unsignedinteger]:
        """All windows [n_windows, seq_len + 1] as a view into the tokens; neighbours share one token."""
        size = self.tokens.itemsize
        shape, strides = (self.n_windows, self.seq_len + 1), (self.seq_len * size, size)
        return as_strided(self.tokens, shape, strides, writeable=False)


class StepReader(Protocol):
    """Gives the ids [count, rows, seq_len + 1] of the steps start .. start + count - 1."""

    def read_steps(self, start: int, count: int) -> NDArray[np.int32]: ...


@dataclass(frozen=True)
class _Chunks:
    """What grain reads: item i is `steps_per_item` whole batches, the last item what is left."""

    source: StepReader
    start: int
    stop: int
    steps_per_item: int

    def __len__(self) -> int:
        return -(-(self.stop - self.start) // self.steps_per_item)

    def __getitem__(self, index: int) -> NDArray[np.int32]:
        first = self.start + index * self.steps_per_item
        return self.source.read_steps(first, min(self.steps_per_item, self.stop - first))


def make_dataset(source: StepReader, start: int, stop: int, steps_per_item: int = 1) -> grain.MapDataset:
    """Steps start .. stop - 1 as a grain MapDataset of items [steps_per_item, rows, seq_len + 1].

    The last item is shorter where the steps do not divide. Small batches want many steps an item: grain's
    cost is an item's.
    """
    import grain

    return grain.MapDataset.source(_Chunks(source, start, stop, steps_per_item))


def iterate_batches(
    source: StepReader, start: int, stop: int, steps_per_item: int = 1, prefetch_items: int = 2
) -> Iterator[NDArray[np.int32]]:
    """The items of `make_dataset` in order, read ahead by one thread."""
    import grain

    if stop <= start:
        return iter(())
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=prefetch_items)
    return iter(make_dataset(source, start, stop, steps_per_item).to_iter_dataset(options))


def validation_windows(val: NDArray[np.unsignedinteger], seq_len: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Windows [n, seq_len + 1] and target mask [n, seq_len]: each token but the first is a target once.

    The last window is padded with zeros where `seq_len` does not divide the targets, and masked there.

    >>> windows, mask = validation_windows(np.arange(6, dtype=np.uint16), 3)
    >>> windows.tolist(), mask.tolist()
    ([[0, 1, 2, 3], [3, 4, 5, 0]], [[True, True, True], [True, True, False]])
    """
    targets = len(val) - 1
    if targets < 1:
        raise MisuseError(f"the validation text has {len(val)} tokens; at least 2 are needed to predict one")
    places = np.arange(-(-targets // seq_len) * seq_len).reshape(-1, seq_len)
    padded = np.zeros(places.size + 1, np.int32)
    padded[: len(val)] = val
    windows = np.concatenate([padded[places], padded[places[:, -1:] + 1]], axis=1)
    return windows, places < targets
