"""grain's `index_shuffle` for many places at once: the same images, from numpy.

grain permutes [0, size) point by point: two Feistel rounds at a time of the Simon cipher (Beaulieu et al. 2013,
eprint 2013/404) over blocks of an even number of bits, 16 at least, applied again until the value lies below `size`
(cycle walking, Black and Rogaway 2002); the round keys are C++'s `std::seed_seq`. One call costs microseconds, which
is more than reading a short window. Here whole blocks of places go through the same arithmetic together.

Of sizes 2^k + 1 with k even, 16 or more, grain reads the last place as the first (its block is one bit short), so
one window is read twice an epoch and another not at all. It is kept: the order of existing runs depends on it.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import repeat

import numpy as np
from numpy.typing import NDArray

__all__ = ["shuffle_indices"]

LEAST_BITS = 16
FEW = 1 << 12
"""Below this size a value walks long until it falls inside, which grain's compiled loop does faster."""
BLOCK = 1 << 13
"""Places that are permuted together and kept: a run reads them in order, few at a time."""
KEPT_BLOCKS = 512


def shuffle_indices(indices: NDArray[np.int64], size: int, key: int, rounds: int) -> NDArray[np.int64]:
    """Images [n] of `indices` [n], each in [0, size), under the permutation of [0, size) that a 32-bit `key` names.

    >>> shuffle_indices(np.array([0, 1, 4999]), 5000, key=7, rounds=4).tolist()
    [1941, 3435, 3315]
    """
    if size < FEW:
        from grain.experimental import index_shuffle

        each = map(index_shuffle, indices.tolist(), repeat(size - 1), repeat(key), repeat(rounds))
        return np.fromiter(each, np.int64, len(indices))
    numbers, places = np.divmod(indices, BLOCK)
    images = np.empty(len(indices), np.int64)
    for number in np.unique(numbers).tolist():
        here = numbers == number
        images[here] = _shuffle_block(number, size, key, rounds)[places[here]]
    return images


@lru_cache(maxsize=KEPT_BLOCKS)
def _shuffle_block(number: int, size: int, key: int, rounds: int) -> NDArray[np.int64]:
    """Images of the places of one block, in order."""
    places = np.arange(number * BLOCK, min((number + 1) * BLOCK, size), dtype=np.uint64)
    images = _walk(places, size, _draw_keys(key, rounds)).astype(np.int64)
    images.flags.writeable = False
    return images


def _walk(values: NDArray[np.uint64], size: int, keys: list[int]) -> NDArray[np.uint64]:
    """Each value enciphered until it is below `size`."""
    half = _block_bits(size) // 2
    found, open_ = np.empty_like(values), np.arange(len(values))
    while len(open_):
        values = _encipher(values, half, keys)
        inside = values < size
        found[open_[inside]] = values[inside]
        open_, values = open_[~inside], values[~inside]
    return found


def _block_bits(size: int) -> int:
    """ceil(log2(size - 1)), made even, at least 16."""
    bits = int(np.ceil(np.log2(float(size - 1))))
    return max(bits + bits % 2, LEAST_BITS)


def _encipher(values: NDArray[np.uint64], half: int, keys: list[int]) -> NDArray[np.uint64]:
    """One pass of the cipher over blocks of two halves of `half` bits."""
    mask = np.uint64((1 << half) - 1)
    left, right = values >> np.uint64(half) & mask, values & mask
    for first, second in zip(keys[::2], keys[1::2], strict=True):
        left = left ^ _mix(right, half, mask) ^ np.uint64(first) & mask
        right = right ^ _mix(left, half, mask) ^ np.uint64(second) & mask
    return left << np.uint64(half) | right


def _mix(x: NDArray[np.uint64], half: int, mask: np.uint64) -> NDArray[np.uint64]:
    """Simon's round function (x <<< 1 & x <<< 8) ^ x <<< 2, rotations within `half` bits."""
    one, eight, two = ((x << np.uint64(r) | x >> np.uint64(half - r)) & mask for r in (1, 8, 2))
    return one & eight ^ two


def _draw_keys(seed: int, count: int) -> list[int]:
    """`count` words, 4 to 6, of C++'s std::seed_seq{seed} (ISO C++, [rand.util.seedseq])."""
    words, low = [0x8B8B8B8B] * count, 0xFFFFFFFF
    middle = (count - 1) // 2  # the standard's t, for fewer than seven words
    p, q = (count - middle) // 2, (count - middle) // 2 + middle
    for k in range(count):
        r1 = 1664525 * _fold(words[k] ^ words[(k + p) % count] ^ words[k - 1]) & low
        r2 = r1 + (1, 1 + seed)[k] & low if k < 2 else r1 + k & low
        words[(k + p) % count] = words[(k + p) % count] + r1 & low
        words[(k + q) % count] = words[(k + q) % count] + r2 & low
        words[k] = r2
    for k in range(count):
        r3 = 1566083941 * _fold(words[k] + words[(k + p) % count] + words[k - 1] & low) & low
        r4 = r3 - k & low
        words[(k + p) % count] ^= r3
        words[(k + q) % count] ^= r4
        words[k] = r4
    return words


def _fold(x: int) -> int:
    return x ^ x >> 27
