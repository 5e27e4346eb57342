"""What lies in a folder of token files, and how it is known to be whole.

    train.bin val.bin    ids, little-endian uint16 (uint32 above 65,536 ids), documents one after another
    tokenizer.json       unless tokens are bytes
    documents.npy        length and hash of every training document (index.py)
    meta.json            counts, sizes and SHA-256 of the above

`data_sha256` is the hash of both token files' hashes and their type: equal text and equal tokens.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxscale.data.index import DOCUMENTS_FILE
from jaxscale.data.pieces import Part
from jaxscale.data.tokenizer import TOKENIZER_FILE, Tokenizer, load_tokenizer
from jaxscale.errors import MisuseError
from jaxscale.plain import from_plain, read_json, to_plain

__all__ = [
    "DataInfo",
    "FileInfo",
    "Meta",
    "SourceCount",
    "TokenFiles",
    "find_damage",
    "hash_data",
    "hash_file",
]

SCHEMA = "jaxscale.tokens/1"


@dataclass(frozen=True)
class DataInfo:
    """The text of a study in numbers, as plain data for plans, results and reports."""

    source: str
    """Which text, in words."""
    tokenizer: str
    vocab_size: int
    documents: int
    """Training documents."""
    held_out_documents: int
    train_tokens: int
    """Training tokens that a run can read before it reads any again: of the part that data.unique_tokens and
    data.quality_keep leave; with data.mixture, until the first source is used up."""
    train_bytes: int
    """Bytes of training text after repeated lines were dropped, separators included."""
    val_tokens: int
    val_bytes: int
    """Bytes of text that the validation tokens stand for, separators included."""
    val_bytes_per_token: float
    lines_dropped: int
    """Repeated lines removed from the training text."""
    val_lines_dropped: int
    """Lines removed from the validation text, being in the training text or repeated."""
    data_sha256: str


@dataclass(frozen=True)
class FileInfo:
    """Size and content hash of one file."""

    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class SourceCount:
    """What one source (a file, or the standard library) gave."""

    source: str
    documents: int
    train_bytes: int
    train_tokens: int
    val_tokens: int


@dataclass(frozen=True)
class Meta:
    """The content of meta.json."""

    info: DataInfo
    dtype: str
    files: dict[str, FileInfo]
    sources: tuple[SourceCount, ...]
    config: dict[str, Any]
    schema: str = SCHEMA
    val_spans: tuple[tuple[int, int], ...] = ()
    """(number of the source in `sources`, tokens) of the validation text from its beginning; () in files of before."""

    def to_json(self) -> str:
        """As JSON, schema jaxscale.tokens/1."""
        return json.dumps(to_plain(self), indent=1)


@dataclass(frozen=True)
class TokenFiles:
    """Training and validation tokens on disk."""

    folder: Path
    info: DataInfo
    dtype: str
    sources: tuple[SourceCount, ...]
    val_spans: tuple[tuple[int, int], ...] = ()
    val_sha256: str = ""
    """Of val.bin: equal for texts that are validated alike."""
    parts: tuple[Part, ...] = ()
    """What a run reads, where that is not all of `train` as it lies (select.py)."""

    @classmethod
    def open(cls, folder: Path) -> TokenFiles:
        """Open a folder whose sizes agree with its meta.json; MisuseError says what is wrong otherwise."""
        folder = Path(folder)
        if problem := find_damage(folder):
            raise MisuseError(f"{problem}; delete {folder} to have it built again")
        meta = _read_meta(folder)
        return cls(folder, meta.info, meta.dtype, meta.sources, meta.val_spans, meta.files["val.bin"].sha256)

    @property
    def train(self) -> NDArray[np.unsignedinteger]:
        """Training ids [train_tokens], mapped read-only."""
        return np.memmap(self.folder / "train.bin", self.dtype, "r")

    @property
    def val(self) -> NDArray[np.unsignedinteger]:
        """Validation ids [val_tokens], mapped read-only."""
        return np.memmap(self.folder / "val.bin", self.dtype, "r")

    def load_tokenizer(self) -> Tokenizer:
        """The tokenizer that made the ids."""
        path = self.folder / TOKENIZER_FILE
        return load_tokenizer(path if path.exists() else None)


class TokenWriter:
    """Appends ids to a file and hashes them on the way."""

    def __init__(self, path: Path, dtype: str) -> None:
        self._path, self._dtype, self._hash, self._size = path, dtype, hashlib.sha256(), 0

    def __enter__(self) -> TokenWriter:
        self._file = open(self._path, "wb")
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    def write(self, ids: NDArray[np.uint32]) -> None:
        """Append ids [n]."""
        data = ids.astype(self._dtype).tobytes()
        self._file.write(data)
        self._hash.update(data)
        self._size += len(data)

    def finish(self) -> FileInfo:
        """Flush to the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return FileInfo(self._size, self._hash.hexdigest())


def find_damage(folder: Path, contents: bool = False, indexed: bool = False) -> str | None:
    """What is wrong with a folder of token files: None when sizes (and, with `contents`, hashes) agree.

    `indexed`: also, that its documents are listed.
    """
    try:
        meta = _read_meta(folder)
    except MisuseError as error:
        return str(error)
    if indexed and DOCUMENTS_FILE not in meta.files:
        return f"{folder}: token files of before documents were listed"
    for name, expected in meta.files.items():
        path = folder / name
        size_bytes = path.stat().st_size if path.is_file() else 0
        if size_bytes != expected.size_bytes:
            return f"{path}: {size_bytes} bytes, {expected.size_bytes} were written"
        if contents and hash_file(path) != expected.sha256:
            return f"{path}: content does not match its SHA-256"
    return None


def hash_file(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_data(train: FileInfo, val: FileInfo, dtype: str) -> str:
    """Identity of the data: SHA-256 over the two token files' hashes and the type of their ids."""
    return hashlib.sha256(f"{dtype} {train.sha256} {val.sha256}".encode()).hexdigest()


def _read_meta(folder: Path) -> Meta:
    plain = read_json(folder / "meta.json")
    if not isinstance(plain, dict) or plain.get("schema") != SCHEMA:
        raise MisuseError(f"{folder / 'meta.json'}: not of schema {SCHEMA}")
    return from_plain(plain, Meta)
