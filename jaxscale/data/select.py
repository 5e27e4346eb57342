"""What a run reads of the token files: sources in shares, the better documents, so many unique tokens.

    sources of a pattern -> documents like the reference -> the first U tokens by hash -> a `Part` for each pattern
    data.mixture            data.quality_keep               data.unique_tokens

The choice is made when the files are opened, so that all mixtures, shares and subsets of one text read one set of
token files, validate on the same text and are one text to `collect`. With a mixture each source is filtered by itself
and gives its share of the U tokens: then all of them are repeated equally often.
U tokens are the first ones of the documents in the order of their hashes, the last document cut to fit: a smaller U
is a beginning of a larger one, whatever the seed, and D / U is the number of epochs.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxscale.config import DataConfig
from jaxscale.data.files import TokenFiles
from jaxscale.data.groups import group_sources, name_sources
from jaxscale.data.index import read_documents
from jaxscale.data.mixture import resolve_shares
from jaxscale.data.pieces import Part, Pieces, cut_pieces_to, join_pieces
from jaxscale.data.quality import choose_best, score_documents
from jaxscale.errors import MisuseError

__all__ = ["count_read", "describe_reading", "name_parts", "needs_index", "select_text"]


def needs_index(config: DataConfig) -> bool:
    """Whether this config asks for what only token files with an index of their documents can tell."""
    return bool(config.mixture or config.quality_from or config.val_files or config.unique_tokens is not None)


def select_text(files: TokenFiles, config: DataConfig) -> TokenFiles:
    """The token files with the `parts` that the config chooses; without a choice as they are.

    MisuseError: a pattern that matches nothing or too much, more unique tokens than there are.
    """
    if not (config.mixture or config.quality_from or config.unique_tokens is not None):
        return files
    text = _Documents.of(files)
    kept, data_sha256 = np.ones(len(text.lengths), bool), files.info.data_sha256
    groups = _group(files, config)
    if config.quality_from:
        scores, identity = score_documents(files, config)
        data_sha256 = hashlib.sha256(f"{data_sha256} {identity}".encode()).hexdigest()
        for _, _, sources in groups:
            mine = np.isin(text.source, sources)
            kept[mine] = choose_best(scores[mine], text.lengths[mine], config.quality_keep)
    shares = resolve_shares([weight for _, weight, _ in groups])
    parts = tuple(
        _make_part(text, config, name, count / sum(shares), sources, kept, key)
        for (name, _, sources), count, key in zip(groups, shares, _keys(config), strict=True)
    )
    supply = int(min(len(part.text) / part.share for part in parts) * (1 + 1e-12))
    info = replace(files.info, train_tokens=supply, data_sha256=data_sha256, source=_describe(files, config, parts))
    return replace(files, info=info, parts=parts)


@dataclass(frozen=True, eq=False)
class _Documents:
    """The training documents in the order of the file: tokens, hashes, and each one's source [documents]."""

    tokens: NDArray[np.unsignedinteger]
    lengths: NDArray[np.int64]
    hashes: NDArray[np.uint64]
    source: NDArray[np.int64]

    @classmethod
    def of(cls, files: TokenFiles) -> _Documents:
        lengths, hashes = read_documents(files.folder)
        order = _order_in_file(files)
        source = np.repeat(order, [files.sources[number].documents for number in order])
        return cls(files.train, lengths, hashes, source)

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        return np.cumsum(self.lengths) - self.lengths


def _order_in_file(files: TokenFiles) -> list[int]:
    """Numbers of the sources as their text lies in train.bin: in the order of their paths (corpus.py)."""
    return sorted(range(len(files.sources)), key=lambda number: PurePath(files.sources[number].source))


def _group(files: TokenFiles, config: DataConfig) -> list[tuple[str, float, tuple[int, ...]]]:
    """(name, weight, numbers of its sources) of each part."""
    trained = [number for number, row in enumerate(files.sources) if row.documents]
    if not config.mixture:
        return [("the training text", 1.0, tuple(trained))]
    groups = group_sources(config.mixture, [files.sources[number].source for number in trained])
    names = name_parts(files, config)
    return [(names[pattern], weight, tuple(trained[i] for i in group))
            for (pattern, weight), group in zip(config.mixture, groups, strict=True)]  # fmt: skip


def name_parts(files: TokenFiles, config: DataConfig) -> dict[str, str]:
    """Names of the patterns of the mixture and of the sources of training and validation that no pattern has."""
    sources = [row.source for row in files.sources]
    trained = [row.source for row in files.sources if row.documents]
    grouped = {trained[i] for group in group_sources(config.mixture, trained) for i in group} if config.mixture else ()
    return name_sources([*(pattern for pattern, _ in config.mixture), *(s for s in sources if s not in grouped)])


def _keys(config: DataConfig) -> list[int]:
    """What tells the orders of the parts apart: a hash of each pattern; 0 without a mixture."""
    if not config.mixture:
        return [0]
    digests = (hashlib.blake2b(pattern.encode(), digest_size=4).digest() for pattern, _ in config.mixture)
    return [int.from_bytes(digest, "big") | 1 for digest in digests]


def _make_part(
    text: _Documents, config: DataConfig, name: str, share: float, sources: tuple[int, ...], kept: NDArray[np.bool_],
    key: int,
) -> Part:  # fmt: skip
    chosen = np.flatnonzero(np.isin(text.source, sources) & kept)
    starts, lengths = text.starts[chosen], text.lengths[chosen]
    if config.unique_tokens is not None:
        wanted, available = round(config.unique_tokens * share), int(lengths.sum())
        if wanted > available:
            of = f"{wanted} of them are to come from {name}, which" if config.mixture else name
            raise MisuseError(f"data.unique_tokens {config.unique_tokens:g}: {of} has only {available}; ask for at "
                              f"most {int(available / share)}")  # fmt: skip
        order = np.argsort(text.hashes[chosen], kind="stable")
        starts, lengths = cut_pieces_to(starts[order], lengths[order], wanted)
    starts, lengths = join_pieces(starts, lengths)
    return Part(name, share, Pieces(text.tokens, starts, lengths), sources, key)


def _describe(files: TokenFiles, config: DataConfig, parts: tuple[Part, ...]) -> str:
    words = [files.info.source]
    if config.quality_from:
        words.append(f"the best {config.quality_keep:g} of it by likeness to {', '.join(config.quality_from)}")
    if config.unique_tokens is not None:
        words.append(f"{sum(len(part.text) for part in parts)} unique tokens by hash")
    if config.mixture:
        words.append("mixed: " + ", ".join(f"{p.name} {p.share:.4g} ({len(p.text)} tokens)" for p in parts))
    return "; ".join(words)


def count_read(files: TokenFiles) -> list[dict[str, Any]]:
    """A row a source: documents, training and validation tokens, and those that a run may read."""
    rows, end = {}, 0
    for number in _order_in_file(files):
        one, start, end = files.sources[number], end, end + files.sources[number].train_tokens
        read = 0 if files.parts else one.train_tokens
        share = read / files.info.train_tokens
        for part in (part for part in files.parts if number in part.sources):
            low, high = np.maximum(part.text.starts, start), np.minimum(part.text.starts + part.text.lengths, end)
            read = int(np.maximum(high - low, 0).sum())
            share = part.share * read / len(part.text)
        rows[number] = {"source": one.source, "documents": one.documents, "train_tokens": one.train_tokens,
                        "read_tokens": read, "share": share, "val_tokens": one.val_tokens}  # fmt: skip
    return [rows[number] for number in range(len(files.sources))]


def describe_reading(files: TokenFiles, tokens: float) -> dict[str, Any]:
    """What a run that reads `tokens` has read, as plain data: unique tokens, and by part of a mixture its share, tokens
    in all, epochs."""
    if not files.parts:
        return {"unique_tokens": min(tokens, files.info.train_tokens)}
    told = {
        part.name: {"share": part.share, "tokens": tokens * part.share, "unique_tokens": len(part.text),
                    "epochs": tokens * part.share / len(part.text)}
        for part in files.parts
    }  # fmt: skip
    unique = sum(min(row["tokens"], row["unique_tokens"]) for row in told.values())
    mixed = len(files.parts) > 1 or files.parts[0].key
    return {"unique_tokens": unique} | ({"mixture": told} if mixed else {})
