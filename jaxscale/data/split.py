"""Which documents are held out, and which of them are used: both by a hash of their content.

A document is held out when hash(text) / 2^64 < val_fraction, wherever it lies and whatever else is read.
The validation text is made of pieces of held-out documents in the order of their hashes: a sample across
documents and sources that depends on no seed. Pieces are small enough that there are at least 32 of them.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterator

from jaxscale.config import DataConfig
from jaxscale.data.documents import Document, cut_text

__all__ = ["HashSample", "cut_pieces", "hash_text", "is_held_out"]

LEAST_PIECES = 32
LEAST_PIECE_BYTES = 4096


def hash_text(text: bytes, purpose: bytes = b"") -> int:
    """64-bit hash of a text; different purposes give independent hashes."""
    return int.from_bytes(hashlib.blake2b(text, digest_size=8, person=purpose).digest(), "big")


def is_held_out(text: bytes, val_fraction: float) -> bool:
    """Whether a document with this text belongs to validation.

    >>> sum(is_held_out(b"document %d" % i, 0.05) for i in range(10_000))
    468
    """
    return hash_text(text, b"split") < val_fraction * 2.0**64


def cut_pieces(document: Document, config: DataConfig) -> Iterator[Document]:
    """A held-out document in pieces of at least 4 KiB, at most a 32nd of the wanted validation tokens (or bytes).

    Large validation sets therefore keep whole documents: pieces never need to be shorter than that.
    """
    size_bytes = max(LEAST_PIECE_BYTES, (config.val_bytes or config.val_tokens) // LEAST_PIECES)
    for text in cut_text([document.text], size_bytes):
        if text := text.strip(b"\n"):
            yield Document(document.source, text)


class HashSample:
    """The documents with the smallest hashes, up to a number of bytes: a uniform sample of a stream.

    Which documents are kept depends on the set of documents only, not on their order.
    """

    def __init__(self, capacity_bytes: int) -> None:
        """At least one document is kept, however long."""
        self.capacity_bytes = capacity_bytes
        self._heap: list[tuple[int, bytes, str]] = []  # largest hash first
        self._bytes = 0

    def add(self, document: Document) -> None:
        """Offer a document; it or those with larger hashes may be let go."""
        heapq.heappush(self._heap, (-hash_text(document.text, b"order"), document.text, document.source))
        self._bytes += len(document.text)
        while len(self._heap) > 1 and self._bytes - len(self._heap[0][1]) >= self.capacity_bytes:
            self._bytes -= len(heapq.heappop(self._heap)[1])

    def __iter__(self) -> Iterator[Document]:
        """The kept documents, smallest hash first."""
        for _, text, source in sorted(self._heap, key=lambda item: (-item[0], item[1], item[2])):
            yield Document(source, text)
