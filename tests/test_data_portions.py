"""A corpus by several processes: the bytes of one pass, also after a kill, and nothing half there."""

import gzip
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from jaxscale.config import DataConfig
from jaxscale.data import portions, tokens
from jaxscale.data.corpus import Corpus, find_corpus
from jaxscale.data.files import TokenFiles
from jaxscale.data.index import read_documents
from jaxscale.data.lines import LineSet, drop_marked_lines, drop_seen_lines, hash_long_lines
from jaxscale.data.portion import Stretch, is_whole, make_portion
from jaxscale.data.portions import open_portions
from jaxscale.data.select import count_read
from jaxscale.data.split import hash_text
from jaxscale.data.tokens import build_tokens
from jaxscale.errors import MisuseError, VerdictError

WORDS = [
    "the",
    "law",
    "of",
    "small",
    "models",
    "holds",
    "for",
    "large",
    "ones",
    "when",
    "data",
    "and",
    "size",
    "grow",
    "together",
]
SMALL = {"LEAST_PORTION_BYTES": 20_000, "MOST_PORTION_BYTES": 60_000, "STRETCH_BYTES": 15_000}


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    """About 400 kB in plain, packed and JSON files, a fifth of whose lines repeat across files, and an item in one."""
    rng = random.Random(0)
    shared = [f"shared {i}: " + " ".join(rng.choices(WORDS, k=12)) for i in range(60)]

    def make_text(lines: int) -> str:
        return "\n".join(
            rng.choice(shared) if rng.random() < 0.2 else " ".join(rng.choices(WORDS, k=rng.randrange(14)))
            for _ in range(lines)
        )

    folder = tmp_path / "text"
    folder.mkdir()
    for i in range(12):
        (folder / f"{i:02}.txt").write_text(make_text(300))
    (folder / "05.txt.gz").write_bytes(gzip.compress(make_text(3000).encode()))
    records = [json.dumps({"text": make_text(20) + "\n\nwho wrote the first of all long sonnets in english\n\nend"})
               for _ in range(60)]  # fmt: skip
    (folder / "07.jsonl").write_text("\n".join(records))
    (tmp_path / "task.jsonl").write_text(
        json.dumps({"question": "Who wrote the first of all long", "choices": ["limericks", "sonnets"], "label": 1})
    )
    return DataConfig(files=(str(folder),), val_fraction=0.2, val_tokens=5000, document_bytes=2048,
                      cache=str(tmp_path / "cache"))  # fmt: skip


@pytest.fixture
def in_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small corpora in many portions."""
    monkeypatch.setattr(tokens, "PORTIONED_BYTES", (0, 0))
    for name, value in SMALL.items():
        monkeypatch.setattr(portions, name, value)


def left_over(config: DataConfig) -> list[Path]:
    """What lies in the cache beside lock files and token files."""
    return [path for path in Path(config.cache).glob(".*") if path.suffix != ".lock"]


@pytest.mark.parametrize("change", [
    {}, {"tokenizer": "bpe:400", "val_bytes": 20_000}, {"drop_repeated_lines": False},
    {"decontaminate": ("task.jsonl",), "decontaminate_ngram": 8, "tokenizer": "bpe:300"},
    {"decontaminate": ("task.jsonl",), "decontaminate_ngram": 8, "val_files": ("other.txt", "text/07.jsonl")},
])  # fmt: skip
def test_portions_give_the_bytes_of_one_pass(
    config: DataConfig, change: dict[str, object], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.chdir(Path(config.cache).parent)
    config = replace(config, **change)  # type: ignore[arg-type]
    Path("other.txt").write_text("\n".join(f"another text, of {i} and {i * i}" for i in range(900)))
    whole = build_tokens(replace(config, cache=config.cache + "1"))
    request.getfixturevalue("in_portions")
    heard: list[tuple[int, int]] = []
    parts = build_tokens(config, lambda done, total: heard.append((done, total)))
    assert parts.info == whole.info
    assert parts.sources == whole.sources
    assert (parts.val_spans, parts.val_sha256) == (whole.val_spans, whole.val_sha256)
    for name in ("train.bin", "val.bin", "documents.npy"):
        assert (parts.folder / name).read_bytes() == (whole.folder / name).read_bytes()
    check_index(parts)
    assert heard == sorted(heard)
    assert heard[-1][0] == heard[-1][1] == 2 * find_corpus(config).size_bytes
    assert left_over(config) == []
    assert parts.info.lines_dropped > 1000 or not config.drop_repeated_lines
    assert (parts.info.decontaminated is not None) == bool(config.decontaminate)


def check_index(files: TokenFiles) -> None:
    """documents.npy lists the documents of train.bin one after another, and val_spans the sources of val.bin."""
    lengths, hashes = read_documents(files.folder)
    assert (int(lengths.sum()), len(lengths)) == (files.info.train_tokens, files.info.documents)
    assert sum(tokens for _, tokens in files.val_spans) == files.info.val_tokens
    if files.info.tokenizer == "bytes":
        starts = np.cumsum(lengths) - lengths
        texts = [files.train[a : a + n - 2].astype(np.uint8).tobytes() for a, n in zip(starts, lengths, strict=True)]
        assert [hash_text(text, b"subset") for text in texts] == hashes.tolist()


def test_a_choice_of_documents_is_made_of_the_text_as_it_is_after_decontamination(
    config: DataConfig, in_portions: None
) -> None:
    task = str(Path(config.cache).parent / "task.jsonl")
    config = replace(config, decontaminate=(task,), decontaminate_ngram=8, unique_tokens=32_000.0,
                     mixture=(("*.jsonl", 0.75), ("*05*", 0.25)))  # fmt: skip
    files = build_tokens(config)
    assert files.info.decontaminated is not None and files.info.decontaminated.items_found == 1
    texts = [part.text.read(np.array([0]), len(part.text)).astype(np.uint8).tobytes() for part in files.parts]
    assert [len(text) for text in texts] == [24_000, 8_000]
    assert all(b"sonnets in english" not in text for text in texts)
    rows = {Path(row["source"]).name: row for row in count_read(files)}
    assert rows["07.jsonl"]["paragraphs_cut"] > 30 and rows["07.jsonl"]["read_tokens"] == 24_000


def test_a_file_that_is_not_text_is_skipped_or_named_as_in_one_pass(config: DataConfig, in_portions: None) -> None:
    bad = Path(config.files[0]) / "03.txt"
    bad.write_bytes(b"good\n" * 2000 + b"\xff")
    with pytest.raises(MisuseError, match=r"03\.txt, near byte \d+: byte 0xff is not UTF-8"):
        build_tokens(config)
    assert left_over(config) == []


def start_builder(config: DataConfig, kill: str) -> int:
    code = (
        "import os, signal\nfrom jaxscale.config import DataConfig\nfrom jaxscale.data import portions, tokens\n"
        f"tokens.PORTIONED_BYTES = (0, 0)\nvars(portions).update({SMALL!r})\n"
        f"tokens.build_tokens(DataConfig(**{asdict(config)!r}), lambda done, total: {kill})"
    )
    return subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1]).returncode


def list_portions(config: DataConfig, kind: str) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in Path(config.cache).glob(f".*.portions/{kind}-*")
            if not path.is_file() and ".new-" not in path.name}  # fmt: skip


def test_a_killed_build_loses_only_what_was_at_work(
    config: DataConfig, in_portions: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config, tokenizer="bpe:400")
    whole = build_tokens(replace(config, cache=config.cache + "1"))
    assert start_builder(config, "done > 0.8 * total and os.kill(os.getpid(), signal.SIGKILL)") == -signal.SIGKILL
    read, encoded = list_portions(config, "read"), list_portions(config, "ids")
    assert len(read) > 5
    assert len(encoded) > 5
    torn = sorted(encoded)[2]
    folder = next(Path(config.cache).glob(f".*.portions/{torn}"))
    with open(folder / "ids", "r+b") as file:
        file.write(b"\xff\xff")  # what the disk lost is noticed by its hash
    monkeypatch.setattr(tokens, "remove_portions", lambda *_: None)
    again = build_tokens(config)
    assert again.info == whole.info
    assert list_portions(config, "read") == read
    after = list_portions(config, "ids")
    assert len(after) > len(encoded)
    assert {name for name, inode in encoded.items() if after[name] != inode} <= {torn}
    assert is_whole(folder)
    monkeypatch.undo()
    build_tokens(config)  # finds the token files and cleans up
    assert left_over(config) == []


def test_an_interrupted_build_keeps_its_portions_and_ends_its_processes(config: DataConfig, in_portions: None) -> None:
    def interrupt(done: int, total: int) -> None:
        if done > 0.6 * total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_tokens(config, interrupt)
    assert list_portions(config, "read")
    assert not [path for path in Path(config.cache).iterdir() if ".new-" in path.name]


def test_a_process_that_dies_is_a_sentence(config: DataConfig, in_portions: None, tmp_path: Path) -> None:
    with (
        open_portions(config, find_corpus(config), tmp_path, "key", 1000, 0) as opened,
        pytest.raises(VerdictError, match="a process that builds token files ended with -9"),
    ):
        for process in opened._crew._processes:
            os.kill(process.pid, signal.SIGKILL)
        opened.read(None)


def test_two_builds_do_not_share_a_folder(config: DataConfig, in_portions: None, tmp_path: Path) -> None:
    corpus = find_corpus(config)
    with open_portions(config, corpus, tmp_path, "key", 1, 0) as first:
        with open_portions(config, corpus, tmp_path, "key", 1, 0) as second:
            assert first.folder != second.folder
        assert not second.folder.exists()
        assert first.folder.exists()


def test_portions_do_not_depend_on_the_machine(config: DataConfig, in_portions: None) -> None:
    corpus = find_corpus(config)
    groups = portions._group_inputs(corpus)
    assert [first for first, _ in groups] == [0, *(stop for _, stop in groups[:-1])]
    assert groups[-1][1] == len(corpus.inputs)
    sizes = [Corpus(corpus.inputs[a:b], "").size_bytes for a, b in groups]
    largest = max(item.size_bytes for item in corpus.inputs)
    assert max(sizes) <= max(largest, corpus.size_bytes // 16, SMALL["LEAST_PORTION_BYTES"])


def test_marked_lines_are_the_lines_that_one_pass_drops() -> None:
    rng = random.Random(0)
    pool = [f"line {i} " + "x" * rng.randrange(20, 60) for i in range(50)] + ["ü" * 39, "ü" * 40, ""]
    texts = ["\n".join(rng.choices(pool, k=30)).encode() for _ in range(20)]
    expected, dropped = drop_seen_lines(texts, LineSet())
    seen, found, marked = LineSet(), [], 0
    for text in texts:
        marks = ~seen.add(np.frombuffer(hash_long_lines(text), "<u8"))
        found.append(drop_marked_lines(text, marks))
        marked += int(marks.sum())
    assert found == expected
    assert marked == dropped


def test_a_portion_exists_whole_or_not_at_all(tmp_path: Path) -> None:
    def write(text: str) -> Callable[[Path], dict[str, object]]:
        def fill(folder: Path) -> dict[str, object]:
            (folder / "a").write_text(text)
            if text == "bad":
                raise MisuseError("bad")
            return {"n": 1}

        return fill

    final = tmp_path / Stretch(1, 2, 3, "<u2", False).name
    with pytest.raises(MisuseError):
        make_portion(final, write("bad"))
    assert list(tmp_path.iterdir()) == []
    make_portion(final, write("one"))
    make_portion(final, write("two"))
    assert (final / "a").read_text() == "one"
    (final / "a").write_text("torn")
    make_portion(final, write("three"))
    assert (final / "a").read_text() == "three"
