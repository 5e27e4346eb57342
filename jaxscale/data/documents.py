"""One file to its documents, as a stream: plain text, JSON lines or Parquet, each possibly compressed.

A document is UTF-8 text with newlines as `\\n` and without newlines at its ends. Plain text longer than
`document_bytes` is cut at blank lines: at the last one in the second half of each stretch of that size, at
the last line end where there is none, and between characters where there is no line end either.
"""

from __future__ import annotations

import gzip
import io
import json
import lzma
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal, cast

from jaxscale.errors import MisuseError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["COMPRESSED", "READY", "Document", "cut_text", "decompress", "find_format", "read_documents"]

Format = Literal["text", "json", "parquet"]
COMPRESSED = (".xz", ".gz", ".zst")
JSON_LINES = (".jsonl", ".json", ".ndjson")
PROSE = {".txt", ".text", ".md", ".markdown", ".rst", ".tex", ".html", ".xml", ".csv"}
CODE = {".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".hpp", ".cu", ".rs", ".go", ".java", ".kt", ".js",
        ".ts", ".css", ".sh", ".rb", ".pl", ".php", ".r", ".jl", ".lua", ".hs", ".ml", ".sql", ".f90",
        ".toml", ".yaml", ".yml", ".ini", ".cfg"}  # fmt: skip
READY = (".npy", ".bin")
"""Files of tokens, not of text (`shards`)."""
BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Document:
    """UTF-8 text and the source it is counted under."""

    source: str
    text: bytes


def find_format(path: Path) -> tuple[Format, str]:
    """How a file is read: its format and its compression suffix ("" for none), from its name.

    >>> find_format(Path("c4/part-001.json.gz"))
    ('json', '.gz')
    >>> find_format(Path("photo.png"))
    Traceback (most recent call last):
    jaxscale.errors.MisuseError: photo.png: files of type '.png' are not read as text; ...
    """
    packed = path.suffix.lower() if path.suffix.lower() in COMPRESSED else ""
    suffix = Path(path.stem if packed else path.name).suffix.lower()
    if suffix in JSON_LINES:
        return "json", packed
    if suffix == ".parquet":
        return "parquet", packed
    if suffix in PROSE | CODE:
        return "text", packed
    if suffix in READY and not packed:
        raise MisuseError(f"{path}: holds ready tokens; say by data.tokenizer what they are: ids:SIZE, or the path of "
                          f"their tokenizer.json")  # fmt: skip
    raise MisuseError(f"{path}: files of type {suffix!r} are not read as text; name .txt, .md, .py, other "
                      f"source code, .jsonl or .parquet files (each also .xz, .gz, .zst) in data.files, or "
                      f"narrow the pattern")  # fmt: skip


def read_documents(path: Path, source: str, text_field: str, document_bytes: int) -> Iterator[tuple[Document, int]]:
    """Stream (document, bytes of the file on disk read so far); empty documents are left out.

    MisuseError names file and line: missing field, damaged JSON or archive, bytes that are not UTF-8.
    """
    kind, packed = find_format(path)
    try:
        with open(path, "rb") as raw, decompress(raw, packed) as stream:
            if kind == "text":
                texts = _read_text(stream, path, document_bytes)
            elif kind == "json":
                texts = _read_json(stream, path, text_field)
            else:
                texts = _read_parquet(stream, path, text_field, packed)
            for text in texts:
                if text := text.strip(b"\n"):
                    yield Document(source, text), raw.tell()
    except OSError as error:
        raise MisuseError(f"{path}: cannot be read ({error.strerror or error}); nothing was built") from error
    except (lzma.LZMAError, zlib.error, EOFError) as error:
        raise MisuseError(f"{path}: damaged {packed} data ({error}); nothing was built") from error


def cut_text(blocks: Iterable[bytes], size_bytes: int) -> Iterator[bytes]:
    """Cut a stream of text into pieces of at most `size_bytes`, at blank lines where there are any.

    >>> list(cut_text([b"one\\n\\ntwo\\nthree\\n", b"\\nfour"], 12))
    [b'one\\n\\ntwo\\n', b'three\\n\\nfour']
    """
    kept = b""
    for block in blocks:
        kept, start = kept + block, 0
        while len(kept) - start > size_bytes:
            end = _find_cut(kept, start, size_bytes)
            yield kept[start:end]
            start = end
        kept = kept[start:]
    if kept:
        yield kept


def _find_cut(text: bytes, start: int, size_bytes: int) -> int:
    low, high = start + size_bytes // 2, start + size_bytes
    for mark in (b"\n\n", b"\n"):
        found = text.rfind(mark, low, high)
        if found >= 0:
            return found + len(mark)
    while high > low + 1 and text[high] & 0xC0 == 0x80:  # never inside a UTF-8 character
        high -= 1
    return high


@contextmanager
def decompress(raw: IO[bytes], packed: str) -> Iterator[IO[bytes]]:
    """The stream behind a compression suffix, one of COMPRESSED or "" for none."""
    with ExitStack() as stack:
        if packed == ".gz":
            yield cast(IO[bytes], stack.enter_context(gzip.open(raw)))
        elif packed == ".xz":
            yield stack.enter_context(lzma.open(raw))
        elif packed == ".zst":
            yield stack.enter_context(_open_zst(raw))
        else:
            yield raw


@contextmanager
def _open_zst(raw: IO[bytes]) -> Iterator[IO[bytes]]:
    import zstandard

    try:
        with zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True) as stream:
            yield io.BufferedReader(cast(io.RawIOBase, stream), BLOCK_BYTES)
    except zstandard.ZstdError as error:
        raise EOFError(str(error)) from error


def _read_text(stream: IO[bytes], path: Path, document_bytes: int) -> Iterator[bytes]:
    offset = 0
    for text in cut_text(_read_blocks(stream), document_bytes):
        _check_utf8(text, f"{path}, near byte {offset}")
        offset += len(text)
        yield text


def _read_blocks(stream: IO[bytes]) -> Iterator[bytes]:
    while block := stream.read(BLOCK_BYTES):
        while block.endswith(b"\r") and (more := stream.read(1)):
            block += more
        yield _unify_newlines(block)


def _unify_newlines(text: bytes) -> bytes:
    return text.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if b"\r" in text else text


def _check_utf8(text: bytes, place: str) -> None:
    try:
        text.decode()
    except UnicodeDecodeError as error:
        raise MisuseError(f"{place}: byte 0x{text[error.start]:02x} is not UTF-8 text; nothing was built or "
                          f"replaced; convert the file (iconv -f latin1 -t utf-8) or leave it out"
                          ) from None  # fmt: skip


def _read_json(stream: IO[bytes], path: Path, text_field: str) -> Iterator[bytes]:
    for number, line in enumerate(stream, start=1):
        if line.strip():
            yield _pick_field(line, f"{path}, line {number}", text_field)


def _pick_field(line: bytes, place: str, text_field: str) -> bytes:
    """The text of one JSON record, with everything that can be wrong with it."""
    _check_utf8(line, place)
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise MisuseError(f"{place}: not a JSON object a line ({error.msg}); nothing was built") from None
    if not isinstance(record, dict) or text_field not in record:
        fields = ", ".join(sorted(record)[:8]) if isinstance(record, dict) else type(record).__name__
        raise MisuseError(f"{place}: no field {text_field!r} (there: {fields}); set data.text_field")
    if not isinstance(record[text_field], str):
        raise MisuseError(f"{place}: field {text_field!r} is {type(record[text_field]).__name__}, not text")
    try:
        return _unify_newlines(record[text_field].encode())
    except UnicodeEncodeError:
        raise MisuseError(f"{place}: field {text_field!r} holds half a surrogate pair, which is not text; "
                          f"correct or remove the record")  from None  # fmt: skip


def _read_parquet(stream: IO[bytes], path: Path, text_field: str, packed: str) -> Iterator[bytes]:
    """Rows in batches. Parquet is read from its end, so a compressed file is unpacked to a temporary one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with tempfile.TemporaryFile() as unpacked:
        if packed:
            shutil.copyfileobj(stream, unpacked, BLOCK_BYTES)
        try:
            table = pq.ParquetFile(unpacked if packed else stream)
            _check_column(table.schema_arrow, path, text_field)
            for batch in table.iter_batches(batch_size=1024, columns=[text_field]):
                for row in batch.column(0).cast(pa.large_binary()).drop_null().to_pylist():
                    _check_utf8(row, f"{path}, column {text_field!r}")
                    yield _unify_newlines(row)
        except pa.ArrowInvalid as error:
            raise MisuseError(f"{path}: not a readable Parquet file ({error}); nothing was built") from error


def _check_column(schema: pa.Schema, path: Path, text_field: str) -> None:
    import pyarrow as pa

    if text_field not in schema.names:
        columns = ", ".join(schema.names[:8])
        raise MisuseError(f"{path}: no column {text_field!r} (there: {columns}); set data.text_field")
    kind = schema.field(text_field).type
    if not any(check(kind) for check in (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary)):
        raise MisuseError(f"{path}: column {text_field!r} is {kind}, not text; set data.text_field")
