"""Which files are the text of a study, in which order, and what identifies them.

Without `data.files` the text is the Python standard library's sources: every machine has them. They differ
between Python versions, which is why the token files are pinned by a content hash.
"""

from __future__ import annotations

import glob
import os
import platform
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from jaxscale.config import DataConfig
from jaxscale.data.documents import Document, find_format, read_documents
from jaxscale.errors import MisuseError

__all__ = ["Corpus", "Input", "find_corpus"]

NOT_LIBRARY = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"})
"""Folders below the standard library that hold tests, installed packages or byte code."""


@dataclass(frozen=True)
class Input:
    """One file: where it lies, the source its documents are counted under, its size and age."""

    path: Path
    source: str
    size_bytes: int
    modified_ns: int


@dataclass(frozen=True)
class Corpus:
    """The files of a study in reading order. `lenient`: files that are not text are skipped."""

    inputs: tuple[Input, ...]
    description: str
    lenient: bool = False

    @property
    def size_bytes(self) -> int:
        """Bytes on disk, compressed files as they lie there."""
        return sum(item.size_bytes for item in self.inputs)

    @property
    def identity(self) -> list[list[str | int]]:
        """(path, size, modification time) of each input: a change of any means another corpus."""
        return [[str(item.path.resolve()), item.size_bytes, item.modified_ns] for item in self.inputs]

    def read(self, config: DataConfig, report: Callable[[int], None] | None = None) -> Iterator[Document]:
        """Stream the documents; `report` hears how many bytes on disk have been read."""
        done_bytes = 0
        for item in self.inputs:
            try:
                for document, position in read_documents(
                    item.path, item.source, config.text_field, config.document_bytes
                ):
                    yield document
                    if report:
                        report(done_bytes + position)
            except MisuseError:
                if not self.lenient:
                    raise
            done_bytes += item.size_bytes
            if report:
                report(done_bytes)


def find_corpus(config: DataConfig, field: str = "files") -> Corpus:
    """The files that a field of the config names; for an empty `files` the standard library's sources.

    MisuseError: a pattern without a match, an empty folder, a file type that cannot be read.
    """
    patterns = getattr(config, field)
    if field == "files" and not patterns:
        return _find_library()
    paths: dict[str, Path] = {}
    for path in sorted(path for pattern in patterns for path in _match_pattern(pattern, field)):
        find_format(path)
        paths.setdefault(os.path.realpath(path), path)
    inputs = tuple(_stat_input(path, path.as_posix()) for path in paths.values())
    described = f"{', '.join(patterns)}: {_count_files(inputs)}"
    return Corpus(inputs, described)


def _match_pattern(pattern: str, field: str) -> list[Path]:
    """Files a glob pattern matches; a folder stands for everything below it."""
    expanded = os.path.expanduser(pattern)
    if os.path.isdir(expanded):
        expanded, missing = os.path.join(expanded, "**", "*"), f"folder {pattern!r} holds no files"
    else:
        missing = f"pattern {pattern!r} matches no file"
    found = [Path(name) for name in glob.glob(expanded, recursive=True) if os.path.isfile(name)]
    if not found:
        other = "data.files empty for the Python standard library's sources" if field == "files" else "it out"
        raise MisuseError(f"data.{field}: {missing} (looked from {os.getcwd()}); correct the path, or leave {other}")
    return found


def _find_library() -> Corpus:
    """The sources of the running interpreter's standard library, tests left out."""
    root = Path(sysconfig.get_paths()["stdlib"])
    version = platform.python_version()
    inputs = tuple(_stat_input(path, f"python-{version}") for path in sorted(_walk_library(root)))
    if not inputs:
        raise MisuseError(f"data.files is empty and this Python has no standard library sources in {root}; "
                          f"name text files with --data.files")  # fmt: skip
    return Corpus(inputs, f"Python {version} standard library: {_count_files(inputs)}", lenient=True)


def _walk_library(root: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in NOT_LIBRARY]
        paths = (Path(folder, name) for name in names if name.endswith(".py"))
        yield from (path for path in paths if os.access(path, os.R_OK))


def _stat_input(path: Path, source: str) -> Input:
    try:
        status = path.stat()
    except OSError as error:
        raise MisuseError(f"{path}: cannot be read ({error.strerror})") from error
    return Input(path, source, status.st_size, status.st_mtime_ns)


def _count_files(inputs: tuple[Input, ...]) -> str:
    size_mb = sum(item.size_bytes for item in inputs) / 1e6
    return f"{len(inputs)} file{'s' if len(inputs) != 1 else ''}, {size_mb:.1f} MB on disk"
