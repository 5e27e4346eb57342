"""Tokenizers on equal text: the same validation bytes, bits per byte exact, and old token files found again."""

import hashlib
import json
import random
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from jaxscale.config import DataConfig
from jaxscale.data import tokenizer, tokens
from jaxscale.data.corpus import find_corpus
from jaxscale.data.fastbpe import find_fast_encoder
from jaxscale.data.files import TokenFiles
from jaxscale.data.tokenizer import JsonTokenizer, load_tokenizer
from jaxscale.data.tokens import build_tokens
from jaxscale.errors import MisuseError

WORDS = [
    "das",
    "Größte",
    "ist",
    "—",
    "naïve",
    "漢字",
    "the",
    "law",
    "of",
    "small",
    "models",
    "🙂",
    "holds",
    "for",
    "large",
]


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    """About 300 kB of many alphabets, a tenth of whose lines repeat."""
    rng = random.Random(0)
    shared = [f"shared {i}: " + " ".join(rng.choices(WORDS, k=12)) for i in range(40)]
    (tmp_path / "text").mkdir()
    for number in range(60):
        lines = [rng.choice(shared) if rng.random() < 0.1 else " ".join(rng.choices(WORDS, k=rng.randrange(16)))
                 for _ in range(120)]  # fmt: skip
        (tmp_path / f"text/{number:02}.txt").write_text("\n".join(lines))
    return DataConfig(files=(str(tmp_path / "text"),), val_fraction=0.3, val_tokens=6000, document_bytes=3000,
                      cache=str(tmp_path / "cache"))  # fmt: skip


def val_text(files: TokenFiles) -> bytes:
    """The bytes that the validation ids stand for, token by token."""
    if files.info.tokenizer == "bytes":
        return files.val.astype(np.uint8).tobytes()
    loaded = files.load_tokenizer()
    assert isinstance(loaded, JsonTokenizer)
    assert loaded.fast is not None
    contents = dict(zip(loaded.fast.ids.tolist(), loaded.fast.contents, strict=True))
    return b"".join(contents.get(i, b"\n\n") for i in files.val.tolist())


def test_with_val_bytes_every_tokenizer_is_validated_on_the_same_bytes(config: DataConfig) -> None:
    equal = replace(config, val_bytes=15_000)
    files = [build_tokens(replace(equal, tokenizer=name)) for name in ("bytes", "bpe:300", "bpe:350")]
    texts = [val_text(one) for one in files]
    assert texts[0] == texts[1] == texts[2]
    assert 15_000 <= len(texts[0]) < 15_000 + 4096 + 2
    for one in files:
        assert one.info.val_bytes == len(texts[0])
        assert one.info.val_text_sha256 == hashlib.sha256(texts[0]).hexdigest()
        assert one.info.val_bytes_per_token == len(texts[0]) / len(one.val)
    with pytest.raises(MisuseError, match=r"data.val_bytes 900000: the held-out text has only \d+ bytes"):
        build_tokens(replace(config, val_bytes=900_000))


def test_with_val_tokens_the_shorter_text_is_the_beginning_of_the_longer(config: DataConfig) -> None:
    texts = [val_text(build_tokens(replace(config, tokenizer=name))) for name in ("bytes", "bpe:300", "bpe:350")]
    assert len(texts[0]) < len(texts[1]) < len(texts[2])
    for short, long in pairwise(texts):
        assert long.startswith(short)


@pytest.mark.parametrize("n", range(5990, 6000))
def test_bytes_of_the_validation_tokens_are_exact_but_for_a_cut_character(config: DataConfig, n: int) -> None:
    files = build_tokens(replace(config, tokenizer="bpe:300", val_tokens=n))
    assert files.info.val_bytes is not None
    assert 0 <= files.info.val_bytes - len(val_text(files)) <= 3


def test_token_files_of_before_are_found_by_their_key(config: DataConfig) -> None:
    """The key as it was before mixtures, task files and val_bytes were fields."""
    told = {"text_field": "text", "val_fraction": 0.3, "val_tokens": 6000, "drop_repeated_lines": True,
            "document_bytes": 3000}  # fmt: skip
    for name in ("bytes", "bpe:300"):
        content = [1, told, name, find_corpus(config).identity]
        key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
        assert tokens._hash_inputs(replace(config, tokenizer=name), find_corpus(config)) == key
    assert tokens._hash_inputs(replace(config, val_bytes=5), find_corpus(config)) != key


def test_both_encoders_give_the_same_token_files(config: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    fast = build_tokens(replace(config, tokenizer="bpe:360"))
    assert isinstance(loaded := load_tokenizer(fast.folder / "tokenizer.json"), JsonTokenizer)
    assert find_fast_encoder(loaded._inner) is not None
    monkeypatch.setattr(tokenizer, "find_fast_encoder", lambda inner: None)
    slow = build_tokens(replace(config, tokenizer="bpe:360", cache=config.cache + "2"))
    assert slow.info == fast.info
