"""Text to token ids: raw bytes, a byte-level BPE trained on the study's own text, or a tokenizer.json.

Every document is followed by a separator that counts as two bytes of text: two newlines for bytes, the
end-of-text token for the others. Bits per byte are therefore comparable between tokenizers.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Hashable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from jaxscale.data.fastbpe import FastEncoder, find_fast_encoder
from jaxscale.errors import MisuseError

if TYPE_CHECKING:
    import tokenizers

__all__ = [
    "BPE_SAMPLE_BYTES",
    "SEPARATOR",
    "ByteTokenizer",
    "JsonTokenizer",
    "Tokenizer",
    "identify_tokenizer",
    "load_tokenizer",
    "parse_bpe_size",
    "train_bpe",
]

SEPARATOR = b"\n\n"
END_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[EOS]", "[SEP]")
"""Names under which a tokenizer.json may hold its separator; the first one found is used."""
BPE_SAMPLE_BYTES = 16 << 20
"""A BPE is trained on this much training text, chosen by hash across all documents."""
LEAST_BPE_SIZE = 257
TOKENIZER_FILE = "tokenizer.json"
THREADED_BYTES = 1 << 18
"""From so much text on, documents are encoded by several threads."""


class Tokenizer(Hashable, Protocol):
    """What the token files need of a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""

    @property
    def separator(self) -> tuple[int, ...]:
        """Ids that follow every document."""

    def encode(self, texts: Sequence[bytes]) -> list[NDArray[np.uint32]]:
        """Ids of each document, its separator included."""

    def encode_split(self, texts: Sequence[str], starts: Sequence[int]) -> list[tuple[NDArray[np.uint32], int]]:
        """Ids of each text without a separator, and how many of them, the first ones, hold nothing of text[start:]."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; bytes that are no text become U+FFFD."""

    def count_bytes(self, text: bytes, tokens: int) -> int:
        """Bytes of text (separator included) that the first `tokens` ids of a document stand for."""


class ByteTokenizer:
    """Ids are byte values.

    >>> ByteTokenizer().encode([b"hi"])[0].tolist()
    [104, 105, 10, 10]
    """

    vocab_size = 256
    separator = tuple(SEPARATOR)

    def encode(self, texts: Sequence[bytes]) -> list[NDArray[np.uint32]]:
        """Ids [len(text) + 2] of each document."""
        return [np.frombuffer(text + SEPARATOR, np.uint8).astype(np.uint32) for text in texts]

    def encode_split(self, texts: Sequence[str], starts: Sequence[int]) -> list[tuple[NDArray[np.uint32], int]]:
        """Every byte belongs to one side.

        >>> [(ids.tolist(), first) for ids, first in ByteTokenizer().encode_split(["\u00e9 a"], [1])]
        [([195, 169, 32, 97], 2)]
        """
        parts = [(text.encode(), len(text[:start].encode())) for text, start in zip(texts, starts, strict=True)]
        return [(np.frombuffer(data, np.uint8).astype(np.uint32), first) for data, first in parts]

    def decode(self, ids: Sequence[int]) -> str:
        """Bytes as UTF-8."""
        return bytes(ids).decode(errors="replace")

    def count_bytes(self, text: bytes, tokens: int) -> int:
        """A byte is a token."""
        return min(tokens, len(text) + len(SEPARATOR))


class JsonTokenizer:
    """A tokenizer of the `tokenizers` library; `separator_id` is its end-of-text token.

    Text is encoded by tiktoken on the same merges where that gives the same ids (`fastbpe`).
    """

    def __init__(self, inner: tokenizers.Tokenizer, name: str) -> None:
        """MisuseError when it has no token that could separate documents."""
        inner.no_padding()
        inner.no_truncation()
        ids = [inner.token_to_id(token) for token in END_OF_TEXT]
        found = [i for i in ids if i is not None]
        if not found:
            raise MisuseError(f"{name}: no end-of-text token among {', '.join(END_OF_TEXT)}; add one of them "
                              f"to its added_tokens")  # fmt: skip
        self._inner, self.separator_id = inner, found[0]
        self.vocab_size = max(inner.get_vocab(with_added_tokens=True).values()) + 1

    def encode(self, texts: Sequence[bytes]) -> list[NDArray[np.uint32]]:
        """Ids of each document, the separator last; documents are encoded in parallel."""
        strings = [text.decode() for text in texts]
        found = self._encode_fast(strings)
        slow = [i for i, ids in enumerate(found) if ids is None]
        encoded = self._inner.encode_batch_fast([strings[i] for i in slow], add_special_tokens=False)
        for i, item in zip(slow, encoded, strict=True):
            found[i] = np.array(item.ids, np.uint32)
        return [np.append(ids, np.uint32(self.separator_id)) for ids in found if ids is not None]

    def _encode_fast(self, strings: list[str]) -> list[NDArray[np.uint32] | None]:
        """By tiktoken, None for what it must not encode."""
        if self.fast is None:
            return [None] * len(strings)
        threads = count_threads() if sum(map(len, strings)) >= THREADED_BYTES else 1
        if threads == 1:
            return [self.fast.encode(string) for string in strings]
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(self.fast.encode, strings))

    @cached_property
    def fast(self) -> FastEncoder | None:
        """tiktoken on the same merges; None where it could give other ids."""
        return find_fast_encoder(self._inner)

    @property
    def separator(self) -> tuple[int, ...]:
        """The end-of-text token."""
        return (self.separator_id,)

    def encode_split(self, texts: Sequence[str], starts: Sequence[int]) -> list[tuple[NDArray[np.uint32], int]]:
        """By the character offsets of the tokens; one that holds text of both sides is the second's."""
        encoded = self._inner.encode_batch(list(texts), add_special_tokens=False)
        return [
            (np.array(item.ids, np.uint32), sum(end <= start for _, end in item.offsets))
            for item, start in zip(encoded, starts, strict=True)
        ]

    def count_id_bytes(self, ids: NDArray[np.unsignedinteger]) -> int | None:
        """Bytes of text that `ids` stand for, two for a separator; None where tokens are not made of bytes."""
        if self.fast is None:
            return None
        sizes = np.zeros(self.vocab_size, np.int64)
        for token, number in self._inner.get_vocab(with_added_tokens=True).items():
            sizes[number] = len(token.encode())
        sizes[self.fast.ids] = [len(content) for content in self.fast.contents]
        sizes[self.separator_id] = len(SEPARATOR)
        return int(sizes[ids].sum())

    def decode(self, ids: Sequence[int]) -> str:
        """Special tokens stay visible."""
        text: str = self._inner.decode(list(ids), skip_special_tokens=False)
        return text

    def count_bytes(self, text: bytes, tokens: int) -> int:
        """By the character offsets of the tokens; a token that ends inside a character counts it whole."""
        string = text.decode()
        offsets = self._inner.encode(string, add_special_tokens=False).offsets
        if tokens > len(offsets):
            return len(text) + len(SEPARATOR)
        return len(string[: offsets[tokens - 1][1]].encode())


def count_threads() -> int:
    """Threads that encode: one a core, or one where the tokenizers library is told so (TOKENIZERS_PARALLELISM)."""
    alone = os.environ.get("TOKENIZERS_PARALLELISM", "").lower() in ("false", "0", "off", "no")
    return 1 if alone else len(os.sched_getaffinity(0))


def parse_bpe_size(name: str) -> int | None:
    """SIZE of "bpe:SIZE"; None for another kind of tokenizer.

    >>> parse_bpe_size("bpe:8192"), parse_bpe_size("bytes")
    (8192, None)
    """
    if not name.startswith("bpe:"):
        return None
    size = name.removeprefix("bpe:")
    if not size.isdecimal() or int(size) < LEAST_BPE_SIZE:
        raise MisuseError(f"data.tokenizer {name!r}: the vocabulary is a whole number of at least "
                          f"{LEAST_BPE_SIZE} (256 bytes and the separator), as in bpe:8192")  # fmt: skip
    return int(size)


def identify_tokenizer(name: str) -> str:
    """What decides the ids: the name itself, or a tokenizer.json's hash. MisuseError: no such file."""
    if name == "bytes" or name.startswith("ids:") or parse_bpe_size(name):
        return name
    try:
        return hashlib.sha256(Path(name).expanduser().read_bytes()).hexdigest()
    except OSError as error:
        raise MisuseError(f"data.tokenizer {name!r}: neither bytes nor bpe:SIZE nor a tokenizer.json that "
                          f"can be read ({error.strerror})") from error  # fmt: skip


def load_tokenizer(path: Path | None) -> Tokenizer:
    """The tokenizer of a tokenizer.json; bytes for None."""
    if path is None:
        return ByteTokenizer()
    import tokenizers

    try:
        inner = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise MisuseError(f"{path}: not a tokenizer.json of the tokenizers library ({error})") from error
    return JsonTokenizer(inner, str(path))


def train_bpe(texts: Iterable[bytes], size: int, path: Path) -> None:
    """Train a byte-level BPE of `size` ids and write its tokenizer.json to `path`.

    MisuseError when the text is too short to give that many tokens.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END_OF_TEXT[0]],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator((text.decode() for text in texts), trainer)
    if inner.get_vocab_size() < size:
        raise MisuseError(f"data.tokenizer bpe:{size}: the training text gives only {inner.get_vocab_size()} "
                          f"tokens; ask for at most that many or give more text")  # fmt: skip
    inner.save(str(path))
