"""Byte-level BPE by tiktoken, where it provably gives the ids of the tokenizers library, several times faster.

tokenizers merges the pair of lowest rank that is in its list of merges; tiktoken the pair whose joined bytes are the
token of lowest rank. The two agree when every merged token, by itself, is brought to itself by the merges: take two
neighbours c d in some text whose bytes together are a token T. No merge has crossed the ends of that stretch, so its
history is the one that T has alone, which passes through c d and ends in T; so (c, d) is in the list of merges, and
both libraries see the same candidates in the same order, the leftmost first. `find_fast_encoder` checks the premises:

    byte-level pre-tokenizer with its own regex, no prefix space; no normalizer, post-processor or truncation
    BPE without dropout, prefixes, suffixes, byte fallback; all 256 bytes are tokens
    every merge makes another token; each token, by itself, is encoded as itself

What depends on the text is looked at in the text: a document that holds the words of an added token, or a character
that the two regex engines class differently (their Unicode tables may be of different years), goes to tokenizers.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import tokenizers

__all__ = ["FastEncoder", "byte_alphabet", "find_fast_encoder"]

PATTERN = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
"""The regex of the ByteLevel pre-tokenizer (GPT-2's, Radford et al. 2019)."""
CHANGE_TEXT = ("normalizer", "truncation", "padding")
CHANGE_MERGES = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")


def byte_alphabet() -> dict[str, int]:
    """The characters that stand for bytes in a byte-level vocabulary: visible Latin-1 for itself, then U+0100 up.

    >>> alphabet = byte_alphabet()
    >>> alphabet["a"], alphabet["\u0120"], len(alphabet)
    (97, 32, 256)
    """
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(b): b for b in visible} | {chr(256 + i): b for i, b in enumerate(hidden)}


def find_fast_encoder(inner: tokenizers.Tokenizer) -> FastEncoder | None:
    """A tiktoken encoder that gives this tokenizer's ids; None where that is not certain."""
    plain = json.loads(inner.to_str())
    model, pre = plain["model"], plain["pre_tokenizer"] or {}
    if any(plain[part] for part in CHANGE_TEXT) or any(model.get(name) for name in CHANGE_MERGES):
        return None
    if pre.get("type") != "ByteLevel" or pre["add_prefix_space"] or not pre.get("use_regex", True):
        return None
    if model["type"] != "BPE":
        return None
    tokens = _order_tokens(model)
    if tokens is None or not _are_whole(model):
        return None
    added = tuple(token["content"] for token in plain["added_tokens"])
    ids = np.array([model["vocab"][token] for token in tokens], np.uint32)
    return FastEncoder(tokens, ids, added)


def _order_tokens(model: dict[str, Any]) -> list[str] | None:
    """The tokens in the order of their merges, the 256 bytes before them; None where that is no BPE of bytes."""
    alphabet = byte_alphabet()
    merged = ["".join(pair) for pair in _pairs(model)]
    tokens = [*alphabet, *merged]
    if len(set(tokens)) < len(tokens) or not set(tokens) <= model["vocab"].keys():
        return None
    if not set("".join(merged)) <= alphabet.keys():
        return None
    if model.get("ignore_merges") and any(set(token) <= alphabet.keys() for token in model["vocab"].keys() - {*tokens}):
        return None  # a whole word may be a token that no merge makes
    return tokens


def _pairs(model: dict[str, Any]) -> list[list[str]]:
    """Merges, which older files hold as "left right"."""
    return [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]


def _are_whole(model: dict[str, Any]) -> bool:
    """Whether the merges alone bring every token that they make to itself."""
    from tokenizers import models

    pairs = [(left, right) for left, right in _pairs(model)]
    bare = models.BPE(vocab=model["vocab"], merges=pairs)
    return all(len(bare.tokenize(left + right)) == 1 for left, right in pairs)


class FastEncoder:
    """tiktoken over these merges; `ids` [tokens] are the tokenizer's ids in the order of the merges."""

    def __init__(self, tokens: list[str], ids: NDArray[np.uint32], added: tuple[str, ...]) -> None:
        from tiktoken import Encoding

        alphabet = byte_alphabet()
        self.contents = [bytes(alphabet[char] for char in token) for token in tokens]
        ranks = {content: rank for rank, content in enumerate(self.contents)}
        self._encoding = Encoding("jaxscale", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})
        self.ids, self._added = ids, added
        self._chars = _CharClasses()

    def encode(self, text: str) -> NDArray[np.uint32] | None:
        """Ids of a text; None where only tokenizers can tell."""
        if any(words in text for words in self._added) or not (text.isascii() or self._chars.agree(text)):
            return None
        try:
            return self.ids[self._encoding.encode_to_numpy(text, disallowed_special=())]
        except ValueError:  # millions of spaces in a row are more than tiktoken's regex has stack for
            return None


class _CharClasses:
    """Which characters both regex engines class alike: letter, number, space or other. Each is asked once."""

    def __init__(self) -> None:
        self._state = np.zeros(0x110000, np.int8)  # 1 alike, -1 not, 0 not asked yet
        self._state[:128] = 1

    def agree(self, text: str) -> bool:
        """Whether all characters of a text are classed alike."""
        points = np.frombuffer(text.encode("utf-32-le"), "<u4")
        state = self._state[points]
        if not state.all():
            new = np.unique(points[state == 0])
            self._state[new] = [1 if alike else -1 for alike in _compare_classes([chr(point) for point in new])]
            state = self._state[points]
        return bool((state > 0).all())


def _compare_classes(chars: list[str]) -> list[bool]:
    """For each character, whether both engines class it alike.

    After a letter, a digit and an exclamation mark, the piece goes on or ends: that tells the class. Tokens of these
    three and any first byte of a character make the difference visible in the ids.
    """
    from tiktoken import Encoding
    from tokenizers import Tokenizer, models, pre_tokenizers

    names = {byte: char for char, byte in byte_alphabet().items()}
    pairs = [(first, second) for first in b"a1!" for second in range(0xC2, 0xF5)]
    tokens = [*(bytes([b]) for b in range(256)), *(bytes(pair) for pair in pairs)]
    ranks = {token: rank for rank, token in enumerate(tokens)}
    vocab = {"".join(names[b] for b in token): rank for token, rank in ranks.items()}
    slow = Tokenizer(models.BPE(vocab=vocab, merges=[(names[a], names[b]) for a, b in pairs]))
    slow.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast = Encoding("classes", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})
    texts = [f"a{char} 1{char} !{char}" for char in chars]
    slow_ids = [item.ids for item in slow.encode_batch_fast(texts)]
    return [fast.encode_ordinary(text) == ids for text, ids in zip(texts, slow_ids, strict=True)]
