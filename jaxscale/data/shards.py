"""Ready token files read where they lie: .npy and .bin shards as one text, without a copy.

    .npy    one dimension, uint16 or uint32
    .bin    with llm.c's header (256 int32: magic 20240520, version 1, count; or 20240801, 7 with uint32 ids), as
            modded-nanogpt and llm.c write; or bare ids as nanoGPT writes: uint16, uint32 above 65,536 ids

Shards follow each other by name. Validation is on the shards of `data.val_files`, whole; or, where there are none, on
the end of the text, `data.val_fraction` of its tokens, which no run trains on. Of either the first `data.val_tokens`
are used. Ids have no text to hash, so nothing is shuffled into the held-out part and no line is dropped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jaxscale.config import DataConfig
from jaxscale.data.corpus import find_corpus
from jaxscale.data.documents import READY
from jaxscale.data.segments import Segment
from jaxscale.errors import MisuseError
from jaxscale.plain import write_json

__all__ = ["Shard", "check_suffix", "names_shards", "open_shard", "parse_ids_size", "scan_shard"]

HEADER_INTS = 256
HEADERS = {(20240520, 1): "<u2", (20240801, 7): "<u4"}
"""(magic, version) of llm.c's token files and the type of their ids (karpathy/llm.c, llmc/dataloader.h)."""
NPY_TYPES = ("<u2", "<u4")
SCAN_TOKENS = 1 << 24


@dataclass(frozen=True)
class Shard:
    """One file of ids: where they begin in it, their type and number, and what was found on reading all of them."""

    segment: Segment
    sha256: str
    """Of the ids as little-endian bytes, whatever stands before them."""
    largest: int


def parse_ids_size(name: str) -> int | None:
    """SIZE of "ids:SIZE"; None for another kind of tokenizer.

    >>> parse_ids_size("ids:50257"), parse_ids_size("bytes")
    (50257, None)
    """
    if not name.startswith("ids:"):
        return None
    size = name.removeprefix("ids:")
    if not size.isdecimal() or int(size) < 2:
        raise MisuseError(f"data.tokenizer {name!r}: the vocabulary is a whole number of at least 2, as in ids:50257")
    return int(size)


def names_shards(config: DataConfig) -> bool:
    """Whether the text is ready token files; MisuseError where only some of it is."""
    if not config.files or config.tokenizer == "bytes" or config.tokenizer.startswith("bpe:"):
        if parse_ids_size(config.tokenizer):
            raise MisuseError(f"data.tokenizer {config.tokenizer}: is for ready token files; name them in data.files")
        return False
    seen: dict[bool, Path] = {}
    for item in find_corpus(config, check=lambda path: None).inputs:
        seen.setdefault(item.path.suffix.lower() in READY, item.path)
    if len(seen) == 2:
        raise MisuseError(f"data.files: {seen[True]} holds ready tokens and {seen[False]} text; a study reads either, "
                          f"so narrow the patterns")  # fmt: skip
    if False in seen and parse_ids_size(config.tokenizer):
        raise MisuseError(f"data.tokenizer {config.tokenizer}: is for ready token files (.npy, .bin), and "
                          f"{seen[False]} is none; use bytes or bpe:SIZE for text")  # fmt: skip
    return True in seen


def check_suffix(path: Path) -> None:
    """MisuseError for a file that by its name holds no ready tokens."""
    if path.suffix.lower() not in READY:
        raise MisuseError(f"{path}: data.files name ready tokens (.npy, .bin), and this is none; narrow the pattern")


def open_shard(path: Path, vocab_size: int) -> Segment:
    """Where the ids of a file lie; MisuseError for what is no token file."""
    try:
        return _open_npy(path) if path.suffix.lower() == ".npy" else _open_bin(path, vocab_size)
    except OSError as error:
        raise MisuseError(f"{path}: cannot be read ({error.strerror or error})") from error


def _open_npy(path: Path) -> Segment:
    try:
        ids = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise MisuseError(f"{path}: not a readable .npy file ({error})") from None
    if not isinstance(ids, np.memmap) or ids.ndim != 1 or ids.dtype.newbyteorder("<").str not in NPY_TYPES:
        raise MisuseError(f"{path}: holds {ids.dtype} of shape {ids.shape}; token files are of one dimension, uint16 "
                          f"or uint32: np.save(path, ids.astype(np.uint16))")  # fmt: skip
    return Segment(str(path.resolve()), ids.dtype.str, ids.offset, len(ids))


def _open_bin(path: Path, vocab_size: int) -> Segment:
    size_bytes = path.stat().st_size
    header = np.fromfile(path, "<i4", HEADER_INTS)
    dtype = HEADERS.get((int(header[0]), int(header[1]))) if len(header) == HEADER_INTS else None
    if dtype is not None:
        offset, count = header.nbytes, int(header[2])
        if not count or size_bytes != offset + count * np.dtype(dtype).itemsize:
            raise MisuseError(f"{path}: its header says {count} ids of type {dtype} and {size_bytes - offset} bytes "
                              f"follow; the file is not whole")  # fmt: skip
        return Segment(str(path.resolve()), dtype, offset, count)
    dtype = "<u2" if vocab_size <= 1 << 16 else "<u4"
    if size_bytes % np.dtype(dtype).itemsize or not size_bytes:
        raise MisuseError(f"{path}: {size_bytes} bytes are no whole number of {dtype} ids, which a vocabulary of "
                          f"{vocab_size} takes; correct data.tokenizer or the file")  # fmt: skip
    return Segment(str(path.resolve()), dtype, 0, size_bytes // np.dtype(dtype).itemsize)


def scan_shard(segment: Segment, cache: Path, report: Callable[[int], None] | None = None) -> Shard:
    """Hash and largest id of a shard; read once for each (path, size, modification time), then from the cache.

    `report` hears the bytes read.
    """
    status = Path(segment.path).stat()
    told = json.dumps([segment.path, segment.dtype, segment.offset, status.st_size, status.st_mtime_ns])
    known = cache / "shards" / f"{hashlib.sha256(told.encode()).hexdigest()[:24]}.json"
    try:
        return Shard(segment, **json.loads(known.read_text()))
    except (OSError, ValueError, TypeError):
        shard = Shard(segment, *_read_all(segment.open(), report))
        write_json(known, json.dumps({"sha256": shard.sha256, "largest": shard.largest}))
        return shard


def _read_all(ids: NDArray[np.unsignedinteger], report: Callable[[int], None] | None) -> tuple[str, int]:
    digest, largest = hashlib.sha256(), -1
    for start in range(0, len(ids), SCAN_TOKENS):
        part = np.ascontiguousarray(ids[start : start + SCAN_TOKENS], ids.dtype.newbyteorder("<"))
        digest.update(part.data)
        largest = max(largest, int(part.max()))
        if report:
            report((start + len(part)) * ids.itemsize)
    return digest.hexdigest(), largest
