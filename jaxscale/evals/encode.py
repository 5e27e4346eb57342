"""From a prompt and a choice to the tokens that are scored: where the choice begins, and what fits the model's window.

The text prompt + continuation is encoded as one. The continuation's tokens are all that hold any of its text; those
before them are context and are not scored. Spaces at the prompt's end are the continuation's, since most tokenizers
join a space to the word after it. This is lm-eval's rule wherever no token straddles the boundary; where one does,
lm-eval drops as many tokens as the prompt alone has, and with them a part of the choice may stay unscored.

A model was trained on windows of seq_len inputs. Of a longer text the last seq_len + 1 tokens are kept: contexts are
cut on the left, choices stay whole. A continuation of more than seq_len tokens is scored in windows that follow one
another, each token once; the first of them is the one that need not be full, and has the context.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxscale.data.files import TokenFiles
from jaxscale.data.tokenizer import Tokenizer
from jaxscale.evals.task import DELIMITER, Item, Task, make_prompts

__all__ = ["Encoded", "Window", "cut_windows", "encode_ids", "encode_pairs", "encode_task", "open_tokenizer"]


class Window(NamedTuple):
    """Ids [n], n at most seq_len + 1; those from `first` (at least 1) on are scored, given all before them."""

    ids: NDArray[np.int32]
    first: int


@dataclass(frozen=True, eq=False)
class Encoded:
    """Continuations as windows: `owner` [windows] says whose each is, `tokens` [continuations] how long they are.

    `truncated` counts the continuations whose context was cut.
    """

    windows: tuple[Window, ...]
    owner: NDArray[np.int64]
    tokens: NDArray[np.int64]
    truncated: int

    def add_up(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sums [continuations] of the scores [windows]."""
        return np.bincount(self.owner, scores, len(self.tokens)).astype(np.float64)


def encode_pairs(pairs: Sequence[tuple[str, str]], tokenizer: Tokenizer, seq_len: int) -> Encoded:
    """(context, continuation) pairs as windows; an empty context is the separator that stands between documents."""
    moved = [(context.rstrip(), context[len(context.rstrip()) :] + continuation) for context, continuation in pairs]
    texts, starts = [context + rest for context, rest in moved], [len(context) for context, _ in moved]
    split = tokenizer.encode_split(texts, starts)
    return encode_ids([_begin(ids, first, tokenizer) for ids, first in split], seq_len)


def _begin(ids: NDArray[np.uint32], first: int, tokenizer: Tokenizer) -> tuple[NDArray[np.int32], int]:
    """Ids of which something stands before the first that is scored."""
    before = () if first else tokenizer.separator
    return np.array([*before, *ids], np.int32), first + len(before)


def encode_ids(split: Sequence[tuple[NDArray[np.int32], int]], seq_len: int) -> Encoded:
    """(ids, how many are context) as windows."""
    windows = [list(cut_windows(ids, first, seq_len)) for ids, first in split]
    return Encoded(
        windows=tuple(window for own in windows for window in own),
        owner=np.repeat(np.arange(len(windows)), [len(own) for own in windows]),
        tokens=np.array([len(ids) - first for ids, first in split], np.int64),
        truncated=sum(len(ids) > seq_len + 1 for ids, _ in split),
    )


def cut_windows(ids: NDArray[np.int32], first: int, seq_len: int) -> Iterator[Window]:
    """The windows that score ids[first:], each token once.

    >>> [(w.ids.tolist(), w.first) for w in cut_windows(np.arange(8, dtype=np.int32), 6, 4)]
    [([3, 4, 5, 6, 7], 3)]
    >>> [(w.ids.tolist(), w.first) for w in cut_windows(np.arange(8, dtype=np.int32), 2, 4)]
    [([0, 1, 2, 3], 2), ([3, 4, 5, 6, 7], 1)]
    """
    while first < len(ids):
        end = first + ((len(ids) - first - 1) % seq_len + 1)
        start = max(0, end - seq_len - 1)
        yield Window(ids[start:end], first - start)
        first = end


@lru_cache(maxsize=16)
def open_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a folder of token files, the same object at each call, so that a task is encoded once."""
    return TokenFiles.open(folder).load_tokenizer()


@lru_cache(maxsize=64)
def encode_task(task: Task, tokenizer: Tokenizer, seq_len: int, shots: int, pool: tuple[Item, ...]) -> Encoded:
    """Every choice of every item, in the order of the file."""
    pairs = [
        (prompt, DELIMITER + choice)
        for prompt, item in zip(make_prompts(task, shots, pool), task.items, strict=True)
        for choice in item.choices
    ]
    return encode_pairs(pairs, tokenizer, seq_len)
