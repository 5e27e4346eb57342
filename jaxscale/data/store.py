"""A folder that exists whole or not at all, whoever is killed and however many build it at once.

It is written under a temporary name and renamed when it is complete. A lock that the kernel releases with its
process makes a second builder wait and then find the work done; without working locks (some network file
systems) both build, the first rename wins and the other copy is removed.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from jaxscale.errors import JaxscaleError, MisuseError, VerdictError

__all__ = ["keep_folder", "sync_file"]

NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL})


def keep_folder(
    parent: Path, name: str, find_damage: Callable[[Path], str | None], write: Callable[[Path], None]
) -> Path:
    """The folder `parent/name`, made by `write(temporary folder)` when it is absent or damaged.

    `find_damage` says what is wrong with a folder, None when it is whole. VerdictError: the disk is full.
    MisuseError: the place cannot be written. Either way nothing half-written stays.
    """
    final = parent / name
    try:
        if find_damage(final) is None:
            return final
        parent.mkdir(parents=True, exist_ok=True)
        with _lock_file(parent / f".{name}.lock") as locked:
            if find_damage(final) is not None:
                _replace_folder(final, find_damage, write, alone=locked)
    except OSError as error:
        raise _explain(error, parent) from error
    return final


def sync_file(path: Path) -> None:
    """Flush a file to the disk, so that the rename that follows never outruns its content."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _replace_folder(
    final: Path, find_damage: Callable[[Path], str | None], write: Callable[[Path], None], alone: bool
) -> None:
    if alone:  # what a killed builder left behind
        for leftover in final.parent.glob(f".{final.name}.new-*"):
            shutil.rmtree(leftover, ignore_errors=True)
    temporary = final.parent / f".{final.name}.new-{uuid.uuid4().hex[:8]}"
    temporary.mkdir()
    try:
        write(temporary)
        _move_folder(temporary, final, find_damage)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _move_folder(temporary: Path, final: Path, find_damage: Callable[[Path], str | None]) -> None:
    """Rename into place; a whole folder that appeared meanwhile is kept, a damaged one makes way."""
    if final.exists() and find_damage(final) is not None:
        aside = temporary.with_name(f"{temporary.name}-damaged")
        final.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)
    try:
        temporary.rename(final)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


@contextmanager
def _lock_file(path: Path) -> Iterator[bool]:
    """Hold an exclusive lock; False where the file system has none."""
    with open(path, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            locked = True
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            locked = False
        try:
            yield locked
        finally:
            if locked:
                with suppress(OSError):
                    fcntl.flock(file, fcntl.LOCK_UN)


def _explain(error: OSError, parent: Path) -> JaxscaleError:
    if error.errno in NO_SPACE:
        return VerdictError(f"data.cache {parent}: no disk space left ({error.strerror}); nothing "
                            f"half-written was kept; free some or change data.cache")  # fmt: skip
    return MisuseError(f"data.cache {parent}: token files cannot be written there "
                       f"({error.strerror or error}); name one you may write to")  # fmt: skip
