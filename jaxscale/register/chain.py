"""The register as a file: one record a line, each with its own hash and that of the record before it.

    hash_k = SHA-256 of record k without its hash;   record k holds number k and previous = hash_(k-1), "" for k = 0

A line is the canonical JSON of its record (sorted keys, no spaces, ASCII), byte for byte, so there is one way only
to write a record and every byte of the file is under a hash. A chain shows that something was changed, removed or
put elsewhere before its last record. It does not show that the last records are missing, nor that somebody wrote
the whole file anew: for that the last hash must lie somewhere else, in a commit or in print.

A last line without its newline was cut by a kill. Is it whole and in its place, it counts; else it is no record and
the next append sets it aside in FILE.torn.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

from jaxscale.errors import MisuseError, VerdictError

__all__ = ["SCHEMA", "Break", "Register", "append_records", "canonical", "hash_record", "read_register", "read_time"]

SCHEMA = "jaxscale.register/1"
NEEDS = frozenset({"schema", "kind", "number", "time", "previous", "hash"})
Record = dict[str, Any]


@dataclass(frozen=True)
class Break:
    """A line that breaks the chain: its number in the file, from 0, and what is wrong with it."""

    line: int
    reason: str


@dataclass(frozen=True)
class Register:
    """The records that can be read, in the order of the file; `breaks` is empty for a sound chain.

    `torn`: the bytes after the last newline that are no record; `open_end`: the last record lacks its newline.
    """

    records: tuple[Record, ...]
    breaks: tuple[Break, ...] = ()
    notes: tuple[str, ...] = ()
    torn: bytes = b""
    open_end: bool = False

    @property
    def head(self) -> str:
        """Hash of the last record: what to publish. Empty for an empty register."""
        return str(self.records[-1]["hash"]) if self.records else ""

    @property
    def sound(self) -> Register:
        """The records before the first break: those that can still be relied on."""
        return replace(self, records=self.records[: self.breaks[0].line]) if self.breaks else self

    def of_kind(self, kind: str) -> list[Record]:
        """Its records of one kind: forecast or score."""
        return [record for record in self.records if record["kind"] == kind]

    def find_forecast(self, word: str) -> Record:
        """The forecast with this number, or whose hash begins so; MisuseError where there is not exactly one."""
        found = [r for r in self.of_kind("forecast") if word == str(r["number"]) or r["hash"].startswith(word)]
        exact = [record for record in found if word == str(record["number"])]
        if len(exact or found) != 1:
            raise MisuseError(f"forecast {word!r}: {len(found)} forecasts of the register have that number or "
                              f"beginning of a hash; `jaxscale register list` shows them")  # fmt: skip
        return (exact or found)[0]


def canonical(plain: Any) -> str:
    """The one way to write plain data down: sorted keys, no spaces, ASCII, no NaN.

    >>> canonical({"b": 1.0, "a": [2, None]})
    '{"a":[2,null],"b":1.0}'
    """
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)


def hash_record(record: Record) -> str:
    """SHA-256 of a record's canonical JSON without its own hash."""
    return hashlib.sha256(canonical({k: v for k, v in record.items() if k != "hash"}).encode()).hexdigest()


def read_time(text: str) -> datetime:
    """A time of a record, or a person's: ISO 8601; without a zone it is UTC."""
    found = datetime.fromisoformat(text)
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def read_register(path: Path) -> Register:
    """Read and verify a register; one that is not there is empty. MisuseError for a file of another kind."""
    try:
        return _parse(Path(path).read_bytes(), path)
    except FileNotFoundError:
        return Register(())


def _parse(content: bytes, path: Path) -> Register:
    *lines, tail = content.split(b"\n")
    records: list[Record] = []
    breaks: list[Break] = []
    previous: str | None = ""
    for number, line in enumerate(lines):
        record, reason = _read_line(line, number, previous)
        if reason:
            breaks.append(Break(number, reason))
        if record is not None:
            records.append(record)
        previous = None if record is None else str(record["hash"])  # None: it cannot be known
    last, reason = _read_line(tail, len(lines), previous) if tail else (None, "")
    if not records and (lines or (tail and not _is_torn(tail))):
        raise MisuseError(f"{path}: no line of it is a record of {SCHEMA}; it is no register, name another file")
    if last is not None and not reason:
        return Register((*records, last), tuple(breaks), _say_times([*records, last]), open_end=True)
    return Register(tuple(records), tuple(breaks), _say_times(records), torn=tail)


def _is_torn(tail: bytes) -> bool:
    """Whether a lone line can be the beginning of a record, or all of it: an object that has not ended, or a record."""
    try:
        plain = json.loads(tail)
    except ValueError:
        return tail.startswith(b'{"')
    return isinstance(plain, dict) and plain.get("schema") == SCHEMA


def _read_line(line: bytes, number: int, previous: str | None) -> tuple[Record | None, str]:
    """The record of a line, None where it cannot be read as one, and what breaks the chain there."""
    try:
        record = json.loads(line)
    except ValueError:
        return None, "it is not JSON"
    if not isinstance(record, dict) or not record.keys() >= NEEDS or record["schema"] != SCHEMA:
        return None, f"it is no record of {SCHEMA}"
    return record, _find_break(record, line, number, previous)


def _find_break(record: Record, line: bytes, number: int, previous: str | None) -> str:
    try:
        written = canonical(record).encode()
        read_time(record["time"])
    except (ValueError, TypeError) as error:
        return f"a value of it is none that a register writes ({error})"
    if hash_record(record) != record["hash"]:
        return "its content was changed: it does not hash to its own hash"
    if written != line:
        return "it is not written as a register writes it, although it says the same"
    if previous is not None and record["previous"] != previous:
        return "the record before it is another than the one it was written after: changed, removed or moved"
    if record["number"] != number:
        return f"it is numbered {record['number']} and stands in place {number}"
    return ""


def _say_times(records: Sequence[Record]) -> tuple[str, ...]:
    """Records dated before the one they follow: a clock was wrong, at one of them."""
    try:
        times = [read_time(record["time"]) for record in records]
    except (ValueError, TypeError):
        return ()
    return tuple(f"record {i + 1} is dated before record {i}: a clock was wrong at one of them"
                 for i, (a, b) in enumerate(pairwise(times)) if b < a)  # fmt: skip


def append_records(path: Path, make: Callable[[Register], Sequence[Record]]) -> tuple[list[Record], list[str]]:
    """Append what `make` gives for the register as it stands, as records of the chain; and what a person must know.

    The file is locked meanwhile, so that two processes that add at once make one chain. VerdictError where the
    chain is broken: nothing is written behind a break.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # let go when the file is closed, or its process ends
        file.seek(0)
        content = file.read()
        register = _parse(content, path)
        if register.breaks:
            first = register.breaks[0]
            raise VerdictError(f"{path}: record {first.line} breaks the chain ({first.reason}); nothing is written "
                               f"behind a break: restore the file from its repository or a copy, or begin another "
                               f"with --register")  # fmt: skip
        made = make(register)
        told = _mend_end(path, file, register, len(content)) if made else []
        records = _chain(made, register)
        file.write("".join(canonical(record) + "\n" for record in records).encode())
        file.flush()
        os.fsync(file.fileno())
    return records, told


def _mend_end(path: Path, file: IO[bytes], register: Register, size: int) -> list[str]:
    """End the last line, or set aside what a killed append left of one."""
    if register.open_end:
        file.write(b"\n")
    if not register.torn:
        return []
    aside = path.with_name(f"{path.name}.torn")
    with open(aside, "ab") as keep:
        keep.write(register.torn + b"\n")
        keep.flush()
        os.fsync(keep.fileno())
    file.truncate(size - len(register.torn))
    return [f"{path}: an append was killed and left {len(register.torn)} bytes of a record; they are set aside in "
            f"{aside}, the {len(register.records)} records before them are whole"]  # fmt: skip


def _chain(made: Sequence[Record], register: Register) -> list[Record]:
    records, previous = [], register.head
    for number, content in enumerate(made, len(register.records)):
        record = {**content, "schema": SCHEMA, "number": number, "previous": previous,
                  "time": datetime.now(UTC).isoformat(timespec="microseconds")}  # fmt: skip
        previous = record["hash"] = hash_record(record)
        records.append(record)
    return records
