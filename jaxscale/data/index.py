"""documents.npy: the length and the hash of every training document, in the order of train.bin.

What a run reads may be a choice of documents (data.unique_tokens, data.quality_keep); with these the choice is made
when the run begins and one set of token files serves them all. Token files of before this one have none; they are
built again, to the same bytes, once it is needed.
"""

from __future__ import annotations

import os
from array import array
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jaxscale.data.split import hash_text

__all__ = ["DOCUMENTS_FILE", "DocumentLog", "read_documents"]

DOCUMENTS_FILE = "documents.npy"
ROW = np.dtype([("tokens", "<u4"), ("hash", "<u8")])


class DocumentLog:
    """Grows by a row a document: 12 bytes each."""

    def __init__(self) -> None:
        self.tokens, self.hashes = array("Q"), array("Q")

    def __len__(self) -> int:
        return len(self.tokens)

    def add(self, text: bytes, tokens: int) -> None:
        """A document whose text, as written, became `tokens` ids, its separator included."""
        self.tokens.append(tokens)
        self.hashes.append(hash_text(text, b"subset"))

    def save(self, folder: Path) -> Path:
        """Write the file and flush it."""
        rows = np.empty(len(self), ROW)
        rows["tokens"], rows["hash"] = self.tokens, self.hashes
        path = folder / DOCUMENTS_FILE
        with open(path, "wb") as file:
            np.save(file, rows)
            file.flush()
            os.fsync(file.fileno())
        return path


def read_documents(folder: Path) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """Lengths in tokens [documents] and hashes [documents]."""
    rows = np.load(folder / DOCUMENTS_FILE)
    return rows["tokens"].astype(np.int64), rows["hash"].copy()
