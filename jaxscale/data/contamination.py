"""Evaluation items cut out of the training text: paragraphs that share n words in a row with one of them.

Words are runs of letters and digits, in lower case; punctuation and spacing do not count. An item is its question
and its right answer; one shorter than n words counts as a whole, and below SHORTEST words not at all, being said
everywhere. After Brown et al. 2020 (2005.14165, appendix C: n = 13, lower case, no punctuation), who cut 200
characters around an overlap; here the paragraph goes, so that no half of an item stays.

A paragraph is what stands between blank lines. Text that has none for LONG_CHARS is one paragraph a line: there the
lines go that hold a word of an overlap. Overlaps are looked for across line ends, not across blank lines.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
from bisect import bisect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jaxscale.config import DataConfig
from jaxscale.data.documents import COMPRESSED, decompress
from jaxscale.errors import MisuseError

__all__ = ["SHORTEST", "Cleaned", "Cleaner", "find_cleaner", "find_task_files", "hash_task_files"]

SHORTEST = 5
LONG_CHARS = 4096
WORD = re.compile(r"[^\W_]+")
BLANK_LINES = re.compile(r"\n(?:[ \t]*\n)+")
WORD_OR_BREAK = re.compile(f"{WORD.pattern}|{BLANK_LINES.pattern}")
"""Blank lines are taken for a word that no item holds, so that no overlap crosses them."""
ODD = 0x9E3779B97F4A7C15
"""Base of the polynomial hash: 2^64 over the golden ratio, odd."""


@dataclass(frozen=True)
class Cleaned:
    """A text without the paragraphs that were cut, and what those were."""

    text: bytes
    paragraphs: int = 0
    size_bytes: int = 0
    items: frozenset[int] = frozenset()
    """Numbers of the items that were found."""


@dataclass
class Cleaner:
    """Knows the items; `clean` cuts them out of a text."""

    n: int
    items: int = 0
    """Items that are looked for."""
    too_short: int = 0
    """Items of fewer than SHORTEST words, which are not."""
    _words: dict[str, int] = field(default_factory=dict)
    _runs: dict[int, dict[tuple[int, ...], list[int]]] = field(default_factory=dict)
    """For each length in words: runs of that length and the items that hold them."""
    _hashes: dict[int, NDArray[np.uint64]] = field(default_factory=dict)

    @classmethod
    def of(cls, items: Iterable[str], n: int) -> Cleaner:
        """A cleaner for these items' texts.

        >>> cleaner = Cleaner.of(["Who was first? It was Ada."], n=5)
        >>> cleaner.clean(b"it was.\\n\\nSo: who was first? It\\nwas...\\n\\nend").text
        b'it was.\\n\\nend'
        """
        cleaner = cls(n)
        for number, text in enumerate(items):
            cleaner._add(number, WORD.findall(_lower(text)))
        for length, runs in cleaner._runs.items():
            cleaner._hashes[length] = np.unique(_hash_runs(np.array(list(runs), np.uint64).ravel(), length)[::length])
        return cleaner

    def _add(self, number: int, words: list[str]) -> None:
        if len(words) < SHORTEST:
            self.too_short += 1
            return
        self.items += 1
        known = [self._words.setdefault(word, len(self._words) + 1) for word in words]
        length = min(self.n, len(words))
        runs = self._runs.setdefault(length, {})
        for i in range(len(words) - length + 1):
            holders = runs.setdefault(tuple(known[i : i + length]), [])
            if number not in holders[-1:]:
                holders.append(number)

    def clean(self, text: bytes) -> Cleaned:
        """Cut the paragraphs that share a run of words with an item."""
        string = text.decode()
        overlaps = list(self._find_overlaps(string))
        if not overlaps:
            return Cleaned(text)
        words = [match.span() for match in WORD_OR_BREAK.finditer(_lower(string))]
        blanks = [blank.span() for blank in BLANK_LINES.finditer(string)]
        cuts = {
            cut
            for i, length, _ in overlaps
            for cut in _find_units(string, blanks, words[i][0], words[i + length - 1][1])
        }
        kept = _leave_out(string, sorted(cuts)).strip("\n").encode()
        items = frozenset(item for _, _, holders in overlaps for item in holders)
        return Cleaned(kept, len(cuts), len(text) - len(kept), items)

    def _find_overlaps(self, text: str) -> Iterator[tuple[int, int, list[int]]]:
        """(first word, words, items) of each run of words that is an item's."""
        words = WORD_OR_BREAK.findall(_lower(text))
        ids = np.fromiter(map(self._words.get, words, repeat(0)), np.uint64, len(words))
        for length, hashes in self._hashes.items():
            for i in _find_known(ids, length, hashes):
                items = self._runs[length].get(tuple(ids[i : i + length].tolist()))
                if items is not None:  # else another run with this hash
                    yield i, length, items


def _find_known(ids: NDArray[np.uint64], length: int, hashes: NDArray[np.uint64]) -> list[int]:
    """Where runs of `length` known words begin whose hash is among `hashes`."""
    if len(ids) < length:
        return []
    known = np.cumsum(np.r_[0, ids == 0])
    begins = np.flatnonzero(known[length:] == known[:-length])  # no unknown word within
    if not len(begins):
        return []
    found = _hash_runs(ids, length)[begins]
    places = np.minimum(np.searchsorted(hashes, found), len(hashes) - 1)
    matches: list[int] = begins[hashes[places] == found].tolist()
    return matches


def _hash_runs(ids: NDArray[np.uint64], length: int) -> NDArray[np.uint64]:
    """A polynomial hash, modulo 2^64, of every run of `length` ids."""
    count = len(ids) - length + 1
    total = np.zeros(count, np.uint64)
    for k in range(length):
        total = total * np.uint64(ODD) + ids[k : k + count]
    return total


def _lower(text: str) -> str:
    """Lower case, a character for a character: what would become two stays as it is."""
    lower = text.lower()
    return lower if len(lower) == len(text) else "".join(c.lower() if len(c.lower()) == 1 else c for c in text)


def _find_units(text: str, blanks: list[tuple[int, int]], first: int, last: int) -> Iterator[tuple[int, int]]:
    """What is cut for an overlap first:last: its paragraph, or those lines of a long one that hold some of it."""
    after = bisect(blanks, (last, 0))
    start = blanks[after - 1][1] if after else 0
    stop, following = blanks[after] if after < len(blanks) else (len(text), len(text))
    if stop - start <= LONG_CHARS:
        yield start, following
        return
    while first < last:
        line = max(text.rfind("\n", start, first) + 1, start)
        end = text.find("\n", first, stop)
        first = stop if end < 0 else end + 1
        yield line, first


def _leave_out(text: str, cuts: list[tuple[int, int]]) -> str:
    """The text without the cuts, which are in order and apart."""
    edges = [0, *(edge for cut in cuts for edge in cut), len(text)]
    return "".join(text[a:b] for a, b in zip(edges[::2], edges[1::2], strict=True))


def find_cleaner(config: DataConfig) -> Cleaner | None:
    """The cleaner that `config.decontaminate` asks for; None where it asks for none."""
    if not config.decontaminate:
        return None
    items = (item for path in find_task_files(config.decontaminate) for item in _read_items(path))
    return Cleaner.of(items, config.decontaminate_ngram)


def find_task_files(patterns: Sequence[str]) -> list[Path]:
    """The files that the patterns match, each once, by path; MisuseError for a pattern without a match."""
    found: set[Path] = set()
    for pattern in patterns:
        names = glob.glob(os.path.expanduser(pattern), recursive=True)
        if not names:
            raise MisuseError(f"data.decontaminate: pattern {pattern!r} matches no file (looked from {os.getcwd()}); "
                              f"correct the path")  # fmt: skip
        found |= {Path(name) for name in names}
    return sorted(found)


def hash_task_files(config: DataConfig) -> str:
    """SHA-256 over the contents of the task files, in the order of their own hashes."""
    files = [hashlib.sha256(path.read_bytes()).hexdigest() for path in find_task_files(config.decontaminate)]
    return hashlib.sha256(" ".join(sorted(files)).encode()).hexdigest()


def _read_items(path: Path) -> Iterator[str]:
    """Question and right answer of each line of a task file."""
    with open(path, "rb") as raw, decompress(raw, path.suffix if path.suffix in COMPRESSED else "") as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield _read_item(line, f"{path}, line {number}")


def _read_item(line: bytes, place: str) -> str:
    try:
        item = json.loads(line)
        question, answer = item["question"], item["choices"][item["label"]]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise MisuseError(f"{place}: not an item with question, choices and label ({type(error).__name__}: {error}); "
                          f"name task files in data.decontaminate") from error  # fmt: skip
    return f"{question} {answer}"
