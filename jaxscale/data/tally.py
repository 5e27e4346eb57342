"""What is counted while a corpus becomes token files, in all and for each source."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxscale.data.contamination import Cleaner
from jaxscale.data.documents import Document
from jaxscale.data.files import SourceCount
from jaxscale.data.index import DocumentLog
from jaxscale.data.tokenizer import SEPARATOR

__all__ = ["Tally"]


@dataclass
class Tally:
    """Counts that grow: the only mutable value of a build beside the line hashes and the held-out sample."""

    held_out_documents: int = 0
    lines_dropped: int = 0
    val_lines_dropped: int = 0
    val_bytes: int = 0
    documents: Counter[str] = field(default_factory=Counter)
    train_bytes: Counter[str] = field(default_factory=Counter)
    train_tokens: Counter[str] = field(default_factory=Counter)
    val_tokens: Counter[str] = field(default_factory=Counter)
    log: DocumentLog = field(default_factory=DocumentLog)
    val_spans: list[tuple[str, int]] = field(default_factory=list)
    paragraphs_cut: Counter[str] = field(default_factory=Counter)
    bytes_cut: Counter[str] = field(default_factory=Counter)
    items_found: set[int] = field(default_factory=set)
    val_text: hashlib._Hash = field(default_factory=hashlib.sha256)
    """Of the held-out pieces that were written whole, a separator after each."""

    def count_train(self, document: Document, tokens: int) -> None:
        """A training document that was written as `tokens` ids, its separator included."""
        self.documents[document.source] += 1
        self.train_bytes[document.source] += len(document.text) + len(SEPARATOR)
        self.train_tokens[document.source] += tokens
        self.log.add(document.text, tokens)

    def count_val(self, source: str, tokens: int, size_bytes: int) -> None:
        """A held-out piece of which `tokens` ids, standing for `size_bytes`, were written."""
        self.val_tokens[source] += tokens
        self.val_bytes += size_bytes
        self.val_spans.append((source, tokens))

    def clean(self, document: Document, cleaner: Cleaner) -> Document:
        """A training document without the evaluation items in it; what was cut is counted."""
        cleaned = cleaner.clean(document.text)
        if cleaned.paragraphs:
            self.paragraphs_cut[document.source] += cleaned.paragraphs
            self.bytes_cut[document.source] += cleaned.size_bytes
            self.items_found |= cleaned.items
        return Document(document.source, cleaned.text)

    def count_read(self, facts: Mapping[str, Any]) -> None:
        """What a portion of the corpus counted while it was read (`portion`)."""
        self.held_out_documents += facts["held_out_documents"]
        self.paragraphs_cut.update(facts["paragraphs_cut"])
        self.bytes_cut.update(facts["bytes_cut"])
        self.items_found.update(facts["items_found"])

    def count_rows(self, sources: Sequence[str], rows: NDArray[Any]) -> None:
        """Training documents [n] that a portion wrote, in order; `rows` name their sources by number."""
        self.log.extend(rows["tokens"], rows["hash"])
        for number in np.unique(rows["source"]).tolist():
            mine = rows[rows["source"] == number]
            self.documents[sources[number]] += len(mine)
            self.train_bytes[sources[number]] += int(mine["bytes"].sum())
            self.train_tokens[sources[number]] += int(mine["tokens"].sum())

    def list_sources(self) -> tuple[SourceCount, ...]:
        """One row a source that gave anything, by name."""
        names = sorted(self.documents.keys() | self.val_tokens.keys() | self.paragraphs_cut.keys())
        return tuple(
            SourceCount(
                source=name,
                documents=self.documents[name],
                train_bytes=self.train_bytes[name],
                train_tokens=self.train_tokens[name],
                val_tokens=self.val_tokens[name],
                paragraphs_cut=self.paragraphs_cut[name],
                bytes_cut=self.bytes_cut[name],
            )
            for name in names
        )

    def list_val_spans(self) -> tuple[tuple[int, int], ...]:
        """(number of the source in `list_sources`, tokens) of the validation text from its beginning, neighbours of one
        source as one."""
        numbers = {row.source: number for number, row in enumerate(self.list_sources())}
        spans = groupby(self.val_spans, key=lambda span: span[0])
        return tuple((numbers[source], sum(tokens for _, tokens in run)) for source, run in spans)
