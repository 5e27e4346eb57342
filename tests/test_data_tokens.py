"""Token files: the text they stand for against a plain reimplementation, and a cache never half there."""

import errno
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
import tokenizers

from jaxscale.config import DataConfig
from jaxscale.data import encode, store
from jaxscale.data.corpus import find_corpus
from jaxscale.data.files import DataInfo, TokenFiles, TokenWriter
from jaxscale.data.split import is_held_out
from jaxscale.data.tokenizer import load_tokenizer, train_bpe
from jaxscale.data.tokens import build_tokens
from jaxscale.errors import MisuseError, VerdictError
from jaxscale.plain import from_plain, to_plain

WORDS = (
    "the",
    "of",
    "and",
    "a",
    "to",
    "in",
    "is",
    "you",
    "that",
    "it",
    "he",
    "was",
    "for",
    "on",
    "are",
    "as",
)
LICENCE = "Permission is granted, free of charge, to any person obtaining a copy"


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    """About 300 kB of text in 60 files, a tenth of whose lines repeat across files."""
    rng = random.Random(0)
    shared = [f"shared {i}: " + " ".join(rng.choices(WORDS, k=12)) for i in range(40)]
    (tmp_path / "text").mkdir()
    for number in range(60):
        lines = [
            rng.choice(shared) if rng.random() < 0.1 else " ".join(rng.choices(WORDS, k=rng.randrange(16)))
            for _ in range(150)
        ]
        (tmp_path / f"text/{number:02}.txt").write_text("\n".join([LICENCE, *lines, f"end of file {number}"]))
    return DataConfig(
        files=(str(tmp_path / "text"),),
        val_fraction=0.2,
        val_tokens=10_000,
        document_bytes=2048,
        cache=str(tmp_path / "cache"),
    )


def long_lines(ids: np.ndarray) -> list[bytes]:
    lines = ids.astype(np.uint8).tobytes().split(b"\n")
    return [line for line in lines if len(line) >= 40]


def visible(config: DataConfig) -> list[str]:
    """What lies in the cache beside lock files."""
    return [path.name for path in Path(config.cache).glob("*") if path.suffix != ".lock"]


def test_training_tokens_are_the_documents_without_repeated_lines(config: DataConfig) -> None:
    files, seen, expected, dropped = build_tokens(config), set[bytes](), b"", 0
    for document in find_corpus(config).read(config):
        if is_held_out(document.text, config.val_fraction):
            continue
        kept = []
        for line in document.text.split(b"\n"):
            if len(line) >= 40 and line in seen:
                dropped += 1
                continue
            seen.add(line)
            kept.append(line)
        expected += b"\n".join(kept) + b"\n\n"
    assert files.train.astype(np.uint8).tobytes() == expected
    assert files.train.dtype == np.uint16
    assert files.info.train_tokens == files.info.train_bytes == len(expected)
    assert files.info.lines_dropped == dropped > 100


def test_no_long_line_of_the_training_text_is_in_the_validation_text(config: DataConfig) -> None:
    files = build_tokens(config)
    train, val = long_lines(files.train), long_lines(files.val)
    assert len(val) > 50
    assert not set(train) & set(val[:-1])  # the last line is cut at val_tokens
    assert len(set(train)) == len(train)
    assert len(set(val)) == len(val)
    raw = build_tokens(replace(config, drop_repeated_lines=False))
    assert set(long_lines(raw.train)) & set(long_lines(raw.val))
    assert raw.info.lines_dropped == raw.info.val_lines_dropped == 0


def test_validation_text_is_held_out_text_from_many_documents(config: DataConfig) -> None:
    files = build_tokens(config)
    held = [d.text for d in find_corpus(config).read(config) if is_held_out(d.text, config.val_fraction)]
    assert len(files.val) == files.info.val_tokens == files.info.val_bytes == config.val_tokens
    assert files.info.held_out_documents == len(held)
    lines = {line for text in held for line in text.split(b"\n")}
    assert set(long_lines(files.val)[:-1]) <= lines
    assert sum(source.val_tokens > 0 for source in files.sources) >= 5


def test_counts_by_source_add_up(config: DataConfig) -> None:
    files = build_tokens(config)
    assert {source.source for source in files.sources} <= {item.source for item in find_corpus(config).inputs}
    assert sum(source.train_tokens for source in files.sources) == files.info.train_tokens
    assert sum(source.val_tokens for source in files.sources) == files.info.val_tokens
    assert sum(source.documents for source in files.sources) == files.info.documents


@pytest.mark.parametrize("name", ["bpe:400", "file"])
def test_bpe_tokens_decode_to_the_same_text_as_bytes(config: DataConfig, tmp_path: Path, name: str) -> None:
    if name == "file":
        name = str(tmp_path / "own.json")
        train_bpe([b"some other text and its words " * 40], 270, Path(name))
    files, plain = build_tokens(replace(config, tokenizer=name)), build_tokens(config)
    inner = tokenizers.Tokenizer.from_file(str(files.folder / "tokenizer.json"))

    def decode(ids: np.ndarray) -> bytes:
        text = inner.decode(ids.tolist(), skip_special_tokens=False)
        return text.replace("<|endoftext|>", "\n\n").encode()

    assert decode(files.train) == plain.train.astype(np.uint8).tobytes()
    assert files.info.vocab_size == inner.get_vocab_size() > files.train.max()
    assert files.info.val_bytes == len(decode(files.val))
    assert files.info.val_bytes_per_token == files.info.val_bytes / config.val_tokens > 1


def test_ids_above_16_bits_are_stored_in_32(config: DataConfig, tmp_path: Path) -> None:
    vocabulary = {"<|endoftext|>": 0, "?": 1, **{word: 70_000 + i for i, word in enumerate(WORDS)}}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="?"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    inner.save(str(tmp_path / "words.json"))
    files = build_tokens(replace(config, tokenizer=str(tmp_path / "words.json"), val_tokens=1000))
    assert files.train.dtype == np.uint32
    assert files.info.vocab_size == 70_000 + len(WORDS) == files.train.max() + 1


def test_bytes_of_a_cut_document_are_counted_in_utf8(tmp_path: Path) -> None:
    train_bpe([b"plain words only " * 50], 270, tmp_path / "t.json")
    tokenizer, text = load_tokenizer(tmp_path / "t.json"), "größer als € und größer".encode()
    ids = tokenizer.encode([text])[0]
    counts = [tokenizer.count_bytes(text, n) for n in range(1, len(ids) + 1)]
    assert counts == sorted(counts)
    assert counts[-2:] == [len(text), len(text) + 2]


def test_a_second_call_opens_what_the_first_one_built(config: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build_tokens(config)
    monkeypatch.setattr("jaxscale.data.tokens.write_tokens", None)
    same = build_tokens(replace(config, max_epochs=4.0, declared_train_tokens=1000.0))
    assert same == first
    assert from_plain(to_plain(first.info), DataInfo) == first.info


@pytest.mark.parametrize("field", ["val_fraction", "val_tokens", "drop_repeated_lines", "document_bytes"])
def test_what_changes_tokens_changes_the_data_hash(config: DataConfig, field: str) -> None:
    others = {"val_fraction": 0.15, "val_tokens": 9000, "drop_repeated_lines": False, "document_bytes": 1024}
    changed = replace(config, **{field: others[field]})  # type: ignore[arg-type]
    assert build_tokens(changed).info.data_sha256 != build_tokens(config).info.data_sha256


def test_a_changed_file_is_read_again(config: DataConfig, tmp_path: Path) -> None:
    before = build_tokens(config)
    (tmp_path / "text/00.txt").write_text("another text\n" * 9)
    assert build_tokens(config).info.data_sha256 != before.info.data_sha256


def test_the_data_hash_does_not_depend_on_where_the_text_lies(config: DataConfig, tmp_path: Path) -> None:
    before = build_tokens(config).info.data_sha256
    (tmp_path / "text").rename(tmp_path / "moved")
    assert build_tokens(replace(config, files=(str(tmp_path / "moved"),))).info.data_sha256 == before


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: os.truncate(folder / "train.bin", 1001),
        lambda folder: (folder / "val.bin").unlink(),
        lambda folder: (folder / "meta.json").write_text('{"schema": "jaxscale.tok'),
        lambda folder: (folder / "meta.json").write_text('{"schema": "another"}'),
    ],
)
def test_a_damaged_cache_is_refused_and_built_again(config: DataConfig, damage: Callable[[Path], object]) -> None:
    whole = build_tokens(config)
    damage(whole.folder)
    with pytest.raises(MisuseError, match="have it built again"):
        TokenFiles.open(whole.folder)
    assert build_tokens(config) == whole
    assert visible(config) == [whole.folder.name]


def test_verify_notices_a_flipped_byte(config: DataConfig) -> None:
    whole = build_tokens(config)
    with open(whole.folder / "train.bin", "r+b") as file:
        file.seek(5000)
        file.write(b"\xff")
    assert build_tokens(config).train[2500] == 255
    assert build_tokens(config, verify=True).train[2500] != 255


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_a_sentence_and_leaves_nothing(
    config: DataConfig, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fail(self: TokenWriter, ids: object) -> None:
        self._file.write(b"half of it")
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(TokenWriter, "write", fail)
    with pytest.raises(VerdictError, match="no disk space left"):
        build_tokens(config)
    assert visible(config) == []


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe:300"])
def test_an_interrupt_leaves_nothing(config: DataConfig, tokenizer: str) -> None:
    def interrupt(done: int, total: int) -> None:
        if done > 0.7 * total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_tokens(replace(config, tokenizer=tokenizer), interrupt)
    assert visible(config) == []


def start_builder(config: DataConfig, progress: str = "None") -> subprocess.Popen[bytes]:
    code = (
        "import os, signal\nfrom jaxscale.config import DataConfig\n"
        "from jaxscale.data.tokens import build_tokens\n"
        f"build_tokens(DataConfig(**{asdict(config)!r}), {progress})"
    )
    return subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[1])


def test_a_killed_builder_leaves_no_half_cache(config: DataConfig) -> None:
    kill = "lambda done, total: done > total / 2 and os.kill(os.getpid(), signal.SIGKILL)"
    assert start_builder(config, kill).wait() == -signal.SIGKILL
    leftovers = visible(config)
    assert len(leftovers) == 1
    assert ".new-" in leftovers[0]
    whole = build_tokens(config)
    assert visible(config) == [whole.folder.name]


def test_builders_at_once_agree_and_leave_one_folder(config: DataConfig) -> None:
    builders = [start_builder(config) for _ in range(3)]
    assert [builder.wait() for builder in builders] == [0, 0, 0]
    assert visible(config) == [build_tokens(config).folder.name]


def test_without_locks_the_first_whole_folder_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    def write(folder: Path) -> None:
        (folder / "mine").touch()
        (tmp_path / "key").mkdir()  # another builder was faster
        (tmp_path / "key/theirs").touch()

    def find_damage(folder: Path) -> str | None:
        return None if folder.exists() else "absent"

    monkeypatch.setattr(store.fcntl, "flock", no_locks)
    final = store.keep_folder(tmp_path, "key", find_damage, write)
    assert [path.name for path in final.iterdir()] == ["theirs"]
    assert len(list(tmp_path.iterdir())) == 2  # the folder and the lock file


def test_progress_runs_to_the_end_over_all_passes(config: DataConfig) -> None:
    heard: list[tuple[int, int]] = []
    build_tokens(replace(config, tokenizer="bpe:300"), lambda done, total: heard.append((done, total)))
    assert heard == sorted(heard)
    assert heard[-1][0] == heard[-1][1] == 2 * find_corpus(config).size_bytes


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe:400"])
def test_building_again_gives_the_same_data_hash(config: DataConfig, tokenizer: str) -> None:
    first = build_tokens(replace(config, tokenizer=tokenizer))
    again = build_tokens(replace(config, tokenizer=tokenizer, cache=config.cache + "2"))
    assert again.info == first.info


def test_batches_of_documents_do_not_show_in_the_tokens(config: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = build_tokens(config)
    monkeypatch.setattr(encode, "BATCH_BYTES", 1)
    single = build_tokens(replace(config, cache=config.cache + "2"))
    assert single.info == whole.info


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"val_tokens": 10**6}, r"data.val_tokens 1000000: the held-out text has only \d+ tokens"),
        ({"val_fraction": 1e-9}, "none is held out for validation"),
        ({"val_fraction": 1 - 1e-9}, "none is left for training"),
        ({"val_fraction": 1.5}, "data.val_fraction 1.5: a share between 0 and 1"),
        ({"val_tokens": 0}, "data.val_tokens 0: at least 2"),
        ({"document_bytes": 8}, "data.document_bytes 8: at least 256"),
        ({"declared_train_tokens": 1e9}, r"data.declared_train_tokens 1e\+09: .* has only \d+ training"),
        ({"tokenizer": "bpe:12"}, "a whole number of at least 257"),
        ({"tokenizer": "bpe:50000"}, r"the training text gives only \d+ tokens"),
        ({"tokenizer": "gpt9"}, "neither bytes nor bpe:SIZE nor a tokenizer.json"),
        ({"cache": "/dev/null/cache"}, "token files cannot be written there"),
    ],
)
def test_misuse_is_one_sentence_and_leaves_nothing_half_built(
    config: DataConfig, change: dict[str, object], message: str
) -> None:
    bad = replace(config, **change)  # type: ignore[arg-type]
    with pytest.raises(MisuseError, match=message) as caught:
        build_tokens(bad)
    assert "\n" not in str(caught.value)
    assert not [name for name in visible(config) if ".new-" in name]


def test_a_foreign_tokenizer_file_is_refused(config: DataConfig, tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text("{}")
    with pytest.raises(MisuseError, match=r"not a tokenizer\.json of the tokenizers library"):
        build_tokens(replace(config, tokenizer=str(tmp_path / "t.json")))
    tokenizers.Tokenizer(tokenizers.models.BPE()).save(str(tmp_path / "t.json"))
    with pytest.raises(MisuseError, match="no end-of-text token"):
        build_tokens(replace(config, tokenizer=str(tmp_path / "t.json")))


def test_the_standard_library_builds_without_a_shared_long_line(tmp_path: Path) -> None:
    files = build_tokens(DataConfig(cache=str(tmp_path)))
    assert files.info.train_tokens > 4_000_000
    assert files.info.val_bytes_per_token == 1.0
    assert not set(long_lines(files.train)) & set(long_lines(files.val)[:-1])
