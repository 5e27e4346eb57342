"""Where a study's shared files lie, and the three promises that workers on many hosts build on.

    create    a name is given out once: of several who ask at once, one gets it, and it appears whole
    replace   a reader sees the old content or the new, never a part
    read      what was created or replaced last, None where there is nothing

Nothing here locks, waits or compares clocks. POSIX file systems keep the promises by link(2) and rename(2), also
over NFS; an object store would by a conditional put. Names are relative, and stay below the root.
"""

from __future__ import annotations

import errno
import os
import uuid
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Protocol

from jaxscale.errors import MisuseError

__all__ = ["PosixStorage", "Storage"]

NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK})
"""What a file system without hard links answers."""


class Storage(Protocol):
    """Small shared files by name, `folder/file`."""

    def create(self, name: str, data: bytes) -> bool:
        """Store under a name that is free, whole; False where it is taken."""

    def replace(self, name: str, data: bytes, *, durable: bool = True) -> None:
        """Store under a name, whole; `durable` returns when it would survive a power cut."""

    def read(self, name: str) -> bytes | None:
        """The content, or None."""

    def names(self, folder: str) -> list[str]:
        """Names of the files in a folder, sorted; none where there is no folder."""

    def remove(self, name: str) -> None:
        """Forget a name; nothing happens where it is free."""


class PosixStorage:
    """Files below `root`, on a local or shared POSIX file system."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def path(self, name: str) -> Path:
        """The file of a name; MisuseError where it would lie outside of the root."""
        pure = PurePosixPath(name)
        if pure.is_absolute() or not pure.parts or any(part in ("..", ".") for part in pure.parts) or "\0" in name:
            raise MisuseError(f"{self.root}: name {name!r} leads out of the folder; use a relative one without '..'")
        return self.root / pure

    def create(self, name: str, data: bytes) -> bool:
        path = self.path(name)
        if path.exists():
            return False
        temporary = _write_beside(path, data, durable=True)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            return _create_in_place(path, data)
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def replace(self, name: str, data: bytes, *, durable: bool = True) -> None:
        path = self.path(name)
        temporary = _write_beside(path, data, durable)
        try:
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def read(self, name: str) -> bytes | None:
        with suppress(FileNotFoundError, NotADirectoryError):
            return self.path(name).read_bytes()
        return None

    def names(self, folder: str) -> list[str]:
        with suppress(FileNotFoundError, NotADirectoryError):
            return sorted(entry for entry in os.listdir(self.path(folder)) if not entry.startswith("."))
        return []

    def remove(self, name: str) -> None:
        self.path(name).unlink(missing_ok=True)


def _write_beside(path: Path, data: bytes, durable: bool) -> Path:
    """A temporary file in the folder of `path`; hidden, and gone again where writing it fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _create_in_place(path: Path, data: bytes) -> bool:
    """Where there are no hard links: the name is given out once, its content a moment later."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return False
    with open(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return True
