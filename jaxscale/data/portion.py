"""One portion of a large corpus, read or encoded by a process of its own.

    python -m jaxscale.data.portion FOLDER      tasks on stdin, what was done on stdout, a JSON object a line

Reading takes files to the texts of their training documents, the hashes of the long lines in them, and samples of the
held-out and the training text. Encoding takes a stretch of such texts, with marks on the lines that came before, to
ids. Either result is a folder that exists whole or not at all, with the SHA-256 of every file in it: one that a killed
build left behind is used again.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from jaxscale.config import DataConfig
from jaxscale.data.contamination import Cleaner, find_cleaner
from jaxscale.data.corpus import Corpus, Input
from jaxscale.data.documents import Document
from jaxscale.data.files import hash_file
from jaxscale.data.lines import drop_marked_lines, hash_long_lines
from jaxscale.data.split import HashSample, cut_pieces, hash_text, is_held_out
from jaxscale.data.tally import Tally
from jaxscale.data.tokenizer import SEPARATOR, TOKENIZER_FILE, Tokenizer, load_tokenizer
from jaxscale.errors import JaxscaleError
from jaxscale.plain import from_plain, to_plain, write_json

__all__ = ["Job", "Read", "Stretch", "load_sample", "make_portion", "read_facts"]

READ_ROW = np.dtype([("source", "<u4"), ("bytes", "<u8"), ("lines", "<u4")])
"""A training document as it was read: number of its source in the portion, size, and how many long lines it has."""
WRITTEN_ROW = np.dtype([("source", "<u4"), ("bytes", "<u8"), ("tokens", "<u8"), ("hash", "<u8")])
"""One as it was written: size and tokens with its separator, and hash_text(text, b"subset")."""
BATCH_BYTES = 1 << 20
TELL_S = 0.1
FACTS = "portion.json"


@dataclass(frozen=True)
class Job:
    """What all portions of a build share, kept in its folder as job.json."""

    config: DataConfig
    inputs: tuple[tuple[str, str, int, int], ...]
    lenient: bool
    groups: tuple[tuple[int, int], ...]
    """First input and the one past the last of each portion to read."""
    held_bytes: int
    sample_bytes: int
    """Sizes of the samples of held-out text (0: what is held out is left out) and of training text (0: none)."""

    @classmethod
    def load(cls, folder: Path) -> Job:
        """Read job.json."""
        return from_plain(json.loads((folder / "job.json").read_text()), cls)

    def save(self, folder: Path) -> None:
        """Write job.json."""
        write_json(folder / "job.json", json.dumps(to_plain(self)))

    def corpus(self, number: int) -> Corpus:
        """The files of one portion."""
        inputs = self.inputs[slice(*self.groups[number])]
        return Corpus(tuple(Input(Path(path), name, size, age) for path, name, size, age in inputs), "", self.lenient)


@dataclass(frozen=True)
class Read:
    """The task to read one portion."""

    number: int

    @property
    def name(self) -> str:
        """Its folder."""
        return f"read-{self.number:05}"


@dataclass(frozen=True)
class Stretch:
    """The task to encode documents first:stop of a portion that was read."""

    number: int
    first: int
    stop: int
    dtype: str
    tokenizer: bool
    """Whether there is a tokenizer.json; else tokens are bytes."""

    @property
    def name(self) -> str:
        """Its folder."""
        return f"ids-{self.number:05}-{self.first:09}"


def make_portion(final: Path, write: Callable[[Path], dict[str, Any]]) -> None:
    """Make a portion's folder, if it is not there and whole: `write` fills it and gives its facts."""
    if is_whole(final):
        return
    temporary = final.with_name(f"{final.name}.new-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        facts = write(temporary)
        hashes = {path.name: hash_file(path) for path in sorted(temporary.iterdir())}
        (temporary / FACTS).write_text(json.dumps({"files": hashes, "facts": facts}))
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def is_whole(folder: Path) -> bool:
    """Whether a portion is there and every file has the hash it was written with."""
    try:
        files = json.loads((folder / FACTS).read_text())["files"]
        return all(hash_file(folder / name) == sha256 for name, sha256 in files.items())
    except (OSError, ValueError, KeyError):
        return False


def read_facts(folder: Path) -> dict[str, Any]:
    """What a portion says of itself."""
    facts: dict[str, Any] = json.loads((folder / FACTS).read_text())["facts"]
    return facts


class Worker:
    """Does tasks, one after another."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.job = folder, Job.load(folder)

    @cached_property
    def cleaner(self) -> Cleaner | None:
        """Cuts evaluation items out, where that is asked for."""
        return find_cleaner(self.job.config)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The build's own, once it is there."""
        return load_tokenizer(self.folder / "tokenizer" / TOKENIZER_FILE)

    def read(self, task: Read, report: Callable[[int], None]) -> None:
        """Files to texts, line hashes and samples."""
        make_portion(self.folder / task.name, lambda out: self._read(task, out, report))

    def _read(self, task: Read, out: Path, report: Callable[[int], None]) -> dict[str, Any]:
        config, sources, rows, tally = self.job.config, dict[str, int](), [], Tally()
        held, sample = HashSample(self.job.held_bytes), HashSample(self.job.sample_bytes)
        with open(out / "text", "wb") as texts, open(out / "lines", "wb") as lines:
            for document in self.job.corpus(task.number).read(config, report):
                if is_held_out(document.text, config.val_fraction):
                    if self.job.held_bytes:
                        tally.held_out_documents += 1
                        for piece in cut_pieces(document, config):
                            held.add(piece)
                    continue
                if self.cleaner:
                    document = tally.clean(document, self.cleaner)
                if self.job.sample_bytes:
                    sample.add(document)
                digests = hash_long_lines(document.text) if config.drop_repeated_lines else b""
                rows.append((sources.setdefault(document.source, len(sources)), len(document.text), len(digests) // 8))
                texts.write(document.text)
                lines.write(digests)
        np.save(out / "documents.npy", np.array(rows, READ_ROW))
        _save_sample(out / "held", held)
        _save_sample(out / "sample", sample)
        return {"sources": list(sources), "text_bytes": sum(row[1] for row in rows),
                "held_out_documents": tally.held_out_documents, "paragraphs_cut": tally.paragraphs_cut,
                "bytes_cut": tally.bytes_cut, "items_found": sorted(tally.items_found)}  # fmt: skip

    def encode(self, task: Stretch, report: Callable[[int], None]) -> None:
        """Texts to ids."""
        make_portion(self.folder / task.name, lambda out: self._encode(task, out, report))

    def _encode(self, task: Stretch, out: Path, report: Callable[[int], None]) -> dict[str, Any]:
        tokenizer, done, written = self.tokenizer if task.tokenizer else load_tokenizer(None), 0, []
        with open(out / "ids", "wb") as file:
            for batch in _batch(self._kept(task)):
                texts = [text for _, text in batch]
                for (source, text), ids in zip(batch, tokenizer.encode(texts), strict=True):
                    file.write(ids.astype(task.dtype).tobytes())
                    written.append((source, len(text) + len(SEPARATOR), len(ids), hash_text(text, b"subset")))
                done += sum(map(len, texts))
                report(done)
        np.save(out / "documents.npy", np.array(written, WRITTEN_ROW))
        return {}

    def _kept(self, task: Stretch) -> Iterator[tuple[int, bytes]]:
        """(source, text without the lines that came before) of each document; empty ones are left out."""
        folder = self.folder / Read(task.number).name
        rows = np.load(folder / "documents.npy")
        ends = np.cumsum(rows["lines"], dtype=np.int64)
        marks = np.load(self.folder / f"marks-{task.number:05}.npy")
        with open(folder / "text", "rb") as texts:
            texts.seek(int(rows["bytes"][: task.first].sum()))
            for row, end in zip(rows[task.first : task.stop], ends[task.first : task.stop], strict=True):
                text = drop_marked_lines(texts.read(int(row["bytes"])), marks[end - row["lines"] : end])
                if text.strip():
                    yield int(row["source"]), text


def _batch(documents: Iterator[tuple[int, bytes]]) -> Iterator[list[tuple[int, bytes]]]:
    batch, size_bytes = list[tuple[int, bytes]](), 0
    for document in documents:
        batch.append(document)
        size_bytes += len(document[1])
        if size_bytes >= BATCH_BYTES:
            yield batch
            batch, size_bytes = [], 0
    if batch:
        yield batch


def _save_sample(path: Path, sample: HashSample) -> None:
    with open(path, "w") as file:
        for document in sample:
            file.write(json.dumps([document.source, document.text.decode()]) + "\n")


def load_sample(path: Path) -> Iterator[Document]:
    """The documents of a sample, smallest hash first."""
    with open(path) as file:
        for line in file:
            source, text = json.loads(line)
            yield Document(source, text.encode())


def _tell(value: dict[str, Any]) -> None:
    sys.__stdout__.write(json.dumps(value) + "\n")  # type: ignore[union-attr]
    sys.__stdout__.flush()  # type: ignore[union-attr]


def _report_slowly() -> Callable[[int], None]:
    told = time.monotonic()

    def report(done: int) -> None:
        nonlocal told
        if time.monotonic() - told >= TELL_S:
            told = time.monotonic()
            _tell({"done": done})

    return report


def main(folder: Path) -> None:
    """Tasks from stdin until it ends."""
    worker = Worker(folder)
    for line in sys.stdin:
        task = json.loads(line)
        try:
            if task.pop("do") == "read":
                worker.read(Read(**task), _report_slowly())
            else:
                worker.encode(Stretch(**task), _report_slowly())
        except BrokenPipeError:
            return  # nobody is there to hear of it
        except JaxscaleError as error:
            _tell({"failed": str(error), "kind": type(error).__name__})
        except OSError as error:
            _tell({"failed": str(error), "errno": error.errno})
        else:
            _tell({"ended": True})


if __name__ == "__main__":
    sys.stdout = sys.stderr
    main(Path(sys.argv[1]))
