"""A large corpus by several processes, to the bytes that one pass gives, and resumable.

    read     files -> texts of the training documents, hashes of their long lines           in parallel, by files
    mark     hashes in the order of the corpus -> which lines came before                   here, in order
    encode   texts without the marked lines -> ids                                          in parallel, by 4 MiB
    append   ids in the order of the corpus -> train.bin                                    here, in order

What is in order is cheap: a long line is 8 bytes there. The held-out sample and the sample for a BPE depend only on
the set of documents, so those of the portions are joined. Portions lie in a folder beside the cache's own until the
token files are whole; one build at a time works in it, and another one at the same files works in a folder of its own.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import numpy as np

from jaxscale.config import DataConfig
from jaxscale.data.corpus import Corpus
from jaxscale.data.crew import Crew, Task
from jaxscale.data.documents import Document
from jaxscale.data.files import TokenWriter
from jaxscale.data.lines import LineSet
from jaxscale.data.portion import Job, Read, Stretch, load_sample, make_portion, read_facts
from jaxscale.data.split import HashSample
from jaxscale.data.tally import Tally
from jaxscale.data.tokenizer import TOKENIZER_FILE
from jaxscale.errors import MisuseError

__all__ = ["PORTIONED_BYTES", "Portions", "open_portions", "remove_portions"]

PORTIONED_BYTES = (16 << 20, 64 << 20)
"""Corpora of so many bytes on disk are built in portions, with a BPE and as bytes, which take little time to encode:
below, processes cost more than they gain (docs/tokens.md)."""
LEAST_PORTION_BYTES, MOST_PORTION_BYTES = 1 << 20, 64 << 20
STRETCH_BYTES = 4 << 20
MARK_LINES = 1 << 20
STALE_S = 14 * 86400.0
"""Portions of a build that nobody went on with for so long are removed by the next build in that cache."""

Report = Callable[[int], None]


@contextmanager
def open_portions(
    config: DataConfig, corpus: Corpus, cache: Path, key: str, held_bytes: int, sample_bytes: int
) -> Iterator[Portions]:
    """The portions of the token files `key`: those of an earlier build that was killed, or none yet.

    They stay where a build is killed or interrupted, and go where it cannot succeed.
    """
    _remove_stale(cache)
    with _hold(cache / f".{key}.portions") as folder:
        inputs = tuple((str(one.path), one.source, one.size_bytes, one.modified_ns) for one in corpus.inputs)
        job = Job(config, inputs, corpus.lenient, _group_inputs(corpus), held_bytes, sample_bytes)
        job.save(folder)
        for torn in folder.glob("*.new-*"):
            shutil.rmtree(torn, ignore_errors=True)
        count = min(len(os.sched_getaffinity(0)), corpus.size_bytes // LEAST_PORTION_BYTES + 1)
        try:
            with Crew(folder, count) as crew:
                yield Portions(folder, job, corpus.size_bytes, crew)
        except (MisuseError, OSError):  # bad text, a full disk: nobody goes on with these
            shutil.rmtree(folder, ignore_errors=True)
            raise


@contextmanager
def _hold(folder: Path) -> Iterator[Path]:
    """The folder, or one of our own beside it where another build is at work in it or locks do not work."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            own = folder.with_name(f"{folder.name}-{os.getpid()}")
            own.mkdir(exist_ok=True)
            try:
                yield own
            finally:
                shutil.rmtree(own, ignore_errors=True)
            return
        yield folder


def remove_portions(cache: Path, key: str) -> None:
    """Remove what a build worked in, once its token files are whole; nothing where another one is still at work."""
    folder = cache / f".{key}.portions"
    if folder.exists():
        with _hold(folder) as held:
            if held == folder:
                shutil.rmtree(folder, ignore_errors=True)


def _remove_stale(cache: Path) -> None:
    for folder in cache.glob(".*.portions*"):
        if time.time() - folder.stat().st_mtime > STALE_S:
            shutil.rmtree(folder, ignore_errors=True)


def _group_inputs(corpus: Corpus) -> tuple[tuple[int, int], ...]:
    """Files that follow each other, about a 16th of the corpus together; a larger file is a portion by itself.

    The same on every machine: portions are found again whatever the number of cores.
    """
    wanted = min(max(corpus.size_bytes // 16, LEAST_PORTION_BYTES), MOST_PORTION_BYTES)
    groups, first, size_bytes = list[tuple[int, int]](), 0, 0
    for number, item in enumerate(corpus.inputs):
        if number > first and size_bytes + item.size_bytes > wanted:
            groups.append((first, number))
            first, size_bytes = number, 0
        size_bytes += item.size_bytes
    return (*groups, (first, len(corpus.inputs)))


class Portions:
    """A build in portions, under way."""

    def __init__(self, folder: Path, job: Job, size_bytes: int, crew: Crew) -> None:
        self.folder, self._job, self._size_bytes, self._crew = folder, job, size_bytes, crew
        self._reads = [Read(number) for number in range(len(job.groups))]

    def read(self, report: Report | None) -> None:
        """Read all files; `report` hears the bytes on disk that are done."""
        tasks = [Task({"do": "read", **asdict(one)}, self._job.corpus(one.number).size_bytes) for one in self._reads]
        self._crew.run(tasks, report)

    def sample(self) -> Iterator[Document]:
        """The training documents with the smallest hashes, as one pass over the corpus would keep them."""
        sample = HashSample(self._job.sample_bytes)
        self._join("sample", sample)
        yield from sample

    def _join(self, name: str, sample: HashSample) -> None:
        for one in self._reads:
            for document in load_sample(self.folder / one.name / name):
                sample.add(document)

    def keep_tokenizer(self, path: Path, make: Callable[[Path], None]) -> None:
        """Have the tokenizer made at `path`, or take the one that an earlier build made."""

        def write(folder: Path) -> dict[str, str]:
            make(folder / TOKENIZER_FILE)
            return {}

        make_portion(self.folder / "tokenizer", write)
        shutil.copyfile(self.folder / "tokenizer" / TOKENIZER_FILE, path)

    def write_train(
        self, writer: TokenWriter, dtype: str, seen: LineSet | None, held: HashSample, tally: Tally,
        report: Report | None,
    ) -> None:  # fmt: skip
        """Append all training ids; `seen`, `held` and `tally` are left as one pass leaves them."""
        text_bytes = 0
        for one in self._reads:
            facts = read_facts(self.folder / one.name)
            tally.count_read(facts)
            text_bytes += facts["text_bytes"]
            tally.lines_dropped += self._mark(one, seen)
        self._join("held", held)
        stretches = [stretch for one in self._reads for stretch in self._cut(one, dtype)]
        tasks = [Task({"do": "encode", **asdict(stretch)}, size) for stretch, size in stretches]
        scale = self._size_bytes / max(text_bytes, 1)
        self._crew.run(tasks, report and (lambda done: report(round(done * scale))))
        for stretch, _ in stretches:
            folder = self.folder / stretch.name
            writer.write(np.fromfile(folder / "ids", dtype))
            sources = read_facts(self.folder / Read(stretch.number).name)["sources"]
            tally.count_rows(sources, np.load(folder / "documents.npy"))

    def _mark(self, one: Read, seen: LineSet | None) -> int:
        """Leave marks on the long lines of a portion that came before; how many those are."""
        marks = [np.zeros(0, np.bool_)]
        if seen is not None:
            digests = np.fromfile(self.folder / one.name / "lines", "<u8")
            marks += [~seen.add(digests[i : i + MARK_LINES]) for i in range(0, len(digests), MARK_LINES)]
        joined = np.concatenate(marks)
        np.save(self.folder / f"marks-{one.number:05}.npy", joined)
        return int(joined.sum())

    def _cut(self, one: Read, dtype: str) -> Iterator[tuple[Stretch, int]]:
        """Stretches of a portion's documents, and their bytes of text."""
        sizes = np.load(self.folder / one.name / "documents.npy")["bytes"].astype(np.int64)
        numbers = (np.cumsum(sizes) - sizes) // STRETCH_BYTES
        edges = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(sizes)]
        named = (self.folder / "tokenizer").exists()
        for first, stop in pairwise(edges):
            if stop > first:
                yield Stretch(one.number, first, stop, dtype, named), int(sizes[first:stop].sum())
