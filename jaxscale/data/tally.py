"""What is counted while a corpus becomes token files, in all and for each source."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import groupby

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

    def list_sources(self) -> tuple[SourceCount, ...]:
        """One row a source that gave anything, by name."""
        names = sorted(self.documents.keys() | self.val_tokens.keys())
        return tuple(
            SourceCount(
                source=name,
                documents=self.documents[name],
                train_bytes=self.train_bytes[name],
                train_tokens=self.train_tokens[name],
                val_tokens=self.val_tokens[name],
            )
            for name in names
        )

    def list_val_spans(self) -> tuple[tuple[int, int], ...]:
        """(number of the source in `list_sources`, tokens) of the validation text from its beginning, neighbours of one
        source as one."""
        numbers = {row.source: number for number, row in enumerate(self.list_sources())}
        spans = groupby(self.val_spans, key=lambda span: span[0])
        return tuple((numbers[source], sum(tokens for _, tokens in run)) for source, run in spans)
