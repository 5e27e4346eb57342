"""Stretches of files read as one array of ids: what ready token files and `BatchSource` meet in."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from jaxscale.errors import MisuseError

__all__ = ["Segment", "Segments", "cut_segments"]


@dataclass(frozen=True)
class Segment:
    """`count` ids of a type in a file, from a byte offset on."""

    path: str
    dtype: str
    offset: int
    count: int

    def open(self) -> NDArray[np.unsignedinteger]:
        """The ids [count], mapped read-only."""
        return np.memmap(self.path, self.dtype, "r", self.offset, (self.count,))

    def find_damage(self) -> str | None:
        """What is wrong with the file: None where it is there and long enough."""
        path, wanted = Path(self.path), self.offset + self.count * np.dtype(self.dtype).itemsize
        size_bytes = path.stat().st_size if path.is_file() else 0
        return f"{path}: {size_bytes} bytes, {wanted} were there" if size_bytes < wanted else None


class Segments:
    """Segments end to end, as far as a reader of windows or of pieces needs: a length, `read_windows`, `[places]`."""

    def __init__(self, segments: tuple[Segment, ...]) -> None:
        self.segments = segments
        self.ends = np.cumsum([segment.count for segment in segments], dtype=np.int64)

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    @cached_property
    def _arrays(self) -> list[NDArray[np.unsignedinteger]]:
        return [segment.open() for segment in self.segments]

    def read_windows(self, starts: NDArray[np.int64], length: int) -> NDArray[np.int32]:
        """Ids [n, length] from each place [n] on, across the ends of files."""
        windows = np.empty((len(starts), length), np.int32)
        numbers = np.searchsorted(self.ends, starts, "right")
        whole = starts + length <= self.ends[numbers]
        for number in np.unique(numbers[whole]).tolist():
            here = whole & (numbers == number)
            array = self._arrays[number]
            places = starts[here] - (self.ends[number] - len(array))
            rows = as_strided(array, (len(array) - length + 1, length), array.strides * 2, writeable=False)
            windows[here] = rows[places]
        for i in np.flatnonzero(~whole).tolist():
            windows[i] = self.read(int(starts[i]), int(starts[i]) + length)
        return windows

    def __getitem__(self, places: NDArray[np.int64]) -> NDArray[np.int32]:
        """The ids at these places, in their shape."""
        ids = np.empty(places.shape, np.int32)
        numbers = np.searchsorted(self.ends, places, "right")
        for number in np.unique(numbers).tolist():
            here, array = numbers == number, self._arrays[number]
            ids[here] = array[places[here] - (self.ends[number] - len(array))]
        return ids

    def read(self, start: int, stop: int) -> NDArray[np.unsignedinteger]:
        """Ids start:stop, copied."""
        parts = [part.open() for part in cut_segments(self.segments, start, stop)]
        if not parts:
            raise MisuseError(f"ids {start} to {stop} of {len(self)}: there are none")
        return np.concatenate(parts)


def cut_segments(segments: tuple[Segment, ...], start: int, stop: int) -> tuple[Segment, ...]:
    """The segments of ids start:stop of all of them.

    >>> [(s.offset, s.count) for s in cut_segments((Segment("a", "<u2", 8, 5), Segment("b", "<u2", 0, 5)), 3, 7)]
    [(14, 2), (0, 2)]
    """
    kept, at = [], 0
    for segment in segments:
        first, last = max(start - at, 0), min(stop - at, segment.count)
        if first < last:
            offset = segment.offset + first * np.dtype(segment.dtype).itemsize
            kept.append(replace(segment, offset=offset, count=last - first))
        at += segment.count
    return tuple(kept)
