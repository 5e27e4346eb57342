"""Plain data on the disk: read strictly, written whole or not at all, and telling its own damage.

seal_json    a dict as JSON, with the SHA-256 of its canonical form as last field
seal_line    a record as a line of a .jsonl file, with the CRC-32 of the line as last field
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
import zlib
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from jaxscale.errors import MisuseError

__all__ = ["from_plain", "read_json", "read_lines", "read_sealed", "seal_json", "seal_line", "to_plain", "unseal_json",
           "write_json"]  # fmt: skip

T = TypeVar("T")


def to_plain(value: Any) -> Any:
    """A frozen dataclass as dicts, lists and scalars, ready for JSON."""
    return json.loads(json.dumps(asdict(value)))


def from_plain(plain: Any, kind: type[T]) -> T:
    """Plain data as a dataclass, strictly: an unknown or missing field is a MisuseError naming it."""
    import cattrs

    if not isinstance(plain, dict):
        raise MisuseError(f"{kind.__name__}: {type(plain).__name__} where fields by name are wanted")
    try:
        return _converter().structure(plain, kind)
    except (cattrs.BaseValidationError, KeyError, TypeError, ValueError) as error:
        detail = "; ".join(cattrs.transform_error(error)[:3]) if isinstance(error, Exception) else str(error)
        raise MisuseError(f"{kind.__name__}: {detail}") from error


@lru_cache(maxsize=1)
def _converter() -> Any:
    import cattrs

    return cattrs.Converter(forbid_extra_keys=True)


def read_json(path: Path) -> Any:
    """Parse a JSON file; MisuseError with the path when it is missing, truncated or not JSON."""
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise MisuseError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise MisuseError(f"{path}: not valid JSON ({error}); delete it to have it made again") from None


def write_json(path: Path, text: str) -> None:
    """Write a file whole or not at all: a temporary file, fsync, rename."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with open(temporary, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def seal_json(plain: dict[str, Any]) -> str:
    """JSON of plain data that tells its own damage: `sha256`, last, is that of the rest's canonical JSON."""
    return json.dumps({**plain, "sha256": _hash_plain(plain)}, indent=1)


def read_sealed(path: Path) -> Any:
    """What `seal_json` wrote, or JSON without a seal; MisuseError with the path where it is damaged."""
    try:
        return unseal_json(read_json(path))
    except MisuseError as error:
        raise MisuseError(str(error) if str(path) in str(error) else f"{path}: {error}") from None


def unseal_json(plain: Any) -> Any:
    """Plain data without its seal; MisuseError where that is not of this content."""
    if not isinstance(plain, dict) or "sha256" not in plain:
        return plain
    said = plain.pop("sha256")
    if said != _hash_plain(plain):
        raise MisuseError("damaged, or edited by hand (its sha256 is not that of its content)")
    return plain


def _hash_plain(plain: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def seal_line(record: dict[str, Any]) -> str:
    """A line of a .jsonl file that tells its own damage: `crc`, last, is the CRC-32 of the line without it."""
    text = json.dumps(record)
    return f'{text[:-1]}, "crc": {zlib.crc32(text.encode())}}}\n'


def read_lines(path: Path, needs: frozenset[str]) -> list[dict[str, Any]]:
    """Records of a .jsonl file, each with the fields `needs`, up to the first that is not whole.

    That is one torn by a kill, or damaged: a line whose `crc` is not its own, or without one beside lines that have it.
    """
    if not path.exists():
        return []
    records: list[dict[str, Any] | None] = [_read_line(line, needs) for line in path.read_bytes().split(b"\n")[:-1]]
    sealed = any("crc" in record for record in records if record is not None)
    kept = []
    for record in records:
        if record is None or (sealed and "crc" not in record):
            break
        record.pop("crc", None)
        kept.append(record)
    return kept


def _read_line(line: bytes, needs: frozenset[str]) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    if not isinstance(record, dict) or not needs <= record.keys():
        return None
    if "crc" in record:
        text, _, crc = line.rpartition(b', "crc": ')
        if crc != b"%d}" % zlib.crc32(text + b"}"):
            return None
    return record
