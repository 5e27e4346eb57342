"""Which long lines have been seen before: repeated lines are dropped after their first appearance.

Licence headers and boilerplate repeat across documents; a model that has seen them in training would be
measured on memory. A line counts when it has 40 characters or more. Lines are remembered by 8-byte hashes in
an open-addressing table, so memory is 11 to 22 bytes a line whatever its length. Two different lines share
a hash with probability 2^-64 a pair; the second one would then be dropped as well.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["LONG_LINE_CHARS", "LineSet", "drop_marked_lines", "drop_seen_lines", "hash_long_lines"]

LONG_LINE_CHARS = 40


class LineSet:
    """A growing set of 64-bit hashes.

    >>> seen = LineSet()
    >>> seen.add(np.array([7, 8, 7], np.uint64)).tolist(), seen.add(np.array([8, 9], np.uint64)).tolist()
    ([True, True, False], [False, True])
    """

    def __init__(self, slots: int = 1 << 12) -> None:
        """`slots` is the first size of the table, a power of two."""
        self._table = np.zeros(slots, np.uint64)  # 0 marks a free slot
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Insert `hashes` [n]; the mask [n] is True where a hash had not been in the set before."""
        unique, first = np.unique(np.maximum(hashes, np.uint64(1)), return_index=True)
        while (self._count + len(unique)) * 3 > len(self._table) * 2:
            self._grow()
        is_new = np.zeros(len(hashes), np.bool_)
        is_new[first] = self._insert(unique)
        self._count += int(is_new.sum())
        return is_new

    def _insert(self, unique: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Linear probing for all at once; two that want one free slot: the loser moves on."""
        is_new = np.zeros(len(unique), np.bool_)
        open_ = np.arange(len(unique))
        mask = np.uint64(len(self._table) - 1)
        slots = unique & mask
        while len(open_):
            wanted = unique[open_]
            free = self._table[slots] == 0
            self._table[slots[free]] = wanted[free]
            settled = self._table[slots] == wanted
            is_new[open_[settled & free]] = True
            open_, slots = open_[~settled], (slots[~settled] + np.uint64(1)) & mask
        return is_new

    def _grow(self) -> None:
        old = self._table[self._table != 0]
        self._table = np.zeros(2 * len(self._table), np.uint64)
        self._insert(old)


def drop_seen_lines(texts: Sequence[bytes], seen: LineSet) -> tuple[list[bytes], int]:
    """Remove the long lines that are in `seen`, add the others to it; the texts and how many lines went.

    >>> drop_seen_lines([b"x" * 40 + b"\\nshort", b"short\\n" + b"x" * 40], LineSet())[1]
    1
    """
    split = [text.split(b"\n") for text in texts]
    places = [(t, i) for t, lines in enumerate(split) for i, line in enumerate(lines) if _is_long(line)]
    if not places:
        return list(texts), 0
    digests = b"".join(_digest(split[t][i]) for t, i in places)
    repeated = [places[k] for k in np.flatnonzero(~seen.add(np.frombuffer(digests, "<u8")))]
    gone: defaultdict[int, set[int]] = defaultdict(set)
    for t, i in repeated:
        gone[t].add(i)
    cleaned = list(texts)
    for t, dropped in gone.items():
        cleaned[t] = b"\n".join(line for i, line in enumerate(split[t]) if i not in dropped)
    return cleaned, len(repeated)


def hash_long_lines(text: bytes) -> bytes:
    """The hashes, 8 bytes each, of the long lines of a text in order."""
    return b"".join(_digest(line) for line in text.split(b"\n") if _is_long(line))


def drop_marked_lines(text: bytes, marks: NDArray[np.bool_]) -> bytes:
    """The text without those of its long lines [n] that `marks` [n] names."""
    if not marks.any():
        return text
    lines = text.split(b"\n")
    places = [i for i, line in enumerate(lines) if _is_long(line)]
    gone = {places[k] for k in np.flatnonzero(marks)}
    return b"\n".join(line for i, line in enumerate(lines) if i not in gone)


def _digest(line: bytes) -> bytes:
    return hashlib.blake2b(line, digest_size=8).digest()


def _is_long(line: bytes) -> bool:
    """At least 40 characters; bytes are counted first, being an upper bound that costs nothing."""
    return len(line) >= LONG_LINE_CHARS and (line.isascii() or len(line.decode()) >= LONG_LINE_CHARS)
