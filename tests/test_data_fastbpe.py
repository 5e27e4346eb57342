"""tiktoken gives the ids of tokenizers, or is not used."""

import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from jaxscale.data import fastbpe
from jaxscale.data.fastbpe import byte_alphabet, find_fast_encoder
from jaxscale.data.tokenizer import JsonTokenizer, load_tokenizer, train_bpe

HARD = [
    "It's we'll they'RE I'd've 'tis don''t 's", "a  b   c\t\td \n\n e\r\n\r\n\u2028f\u00a0g\u3000h ", " \n \n", "\n\nx",
    "über Ωmega naïve ﬁne ǅ ß İstanbul ſ", "漢字かな交じり文 한국어", "العربية हिन्दी ไทย", "x² ½ Ⅻ ١٢٣ 𝟘𝟙 ৪",
    "\U0001f469\u200d\U0001f467 \U0001f3f3\ufe0f\u200d\U0001f308 \U0001f1e9\U0001f1ea \u261d\U0001f3fd ©®™",
    "e\u0301 a\u0308\u0327 \u200b\u200d\ufeff", "\x00\x01\x7f\x85\x1c\x1d", "\U0010ffff\ue000\ufffd\uffff",
    "_a_1 --- ... !!!??", "",
]  # fmt: skip
LETTERS = "ab te'sdllmrv  \n\t.!1²9éß漢🙂\u00a0\u2009\u0301İ\r"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> JsonTokenizer:
    """A BPE of this file's folder and of random strings, so that it has tokens of every kind."""
    rng = random.Random(1)
    texts = [path.read_bytes() for path in sorted(Path(__file__).parent.glob("test_data*.py"))]
    texts += ["".join(rng.choices(LETTERS, k=3000)).encode(), " ".join(HARD * 3).encode()]
    path = tmp_path_factory.mktemp("bpe") / "t.json"
    train_bpe(texts, 1500, path)
    loaded = load_tokenizer(path)
    assert isinstance(loaded, JsonTokenizer)
    return loaded


def check(tokenizer: JsonTokenizer, texts: list[str]) -> None:
    """Every text by tiktoken, to the ids of tokenizers."""
    assert tokenizer.fast is not None
    slow = tokenizer._inner.encode_batch_fast(texts, add_special_tokens=False)
    for text, item in zip(texts, slow, strict=True):
        ids = tokenizer.fast.encode(text)
        assert ids is not None, repr(text)
        assert ids.tolist() == item.ids, repr(text)


def test_hard_text_has_the_same_ids(tokenizer: JsonTokenizer) -> None:
    check(tokenizer, [*HARD, *(f"{a}{b}" for a in HARD for b in HARD)])
    check(tokenizer, [Path(fastbpe.__file__).read_text(), " " * 5000 + "x", "\n" * 5001, "ab" * 5000, "é" * 3001])


def test_random_strings_have_the_same_ids(tokenizer: JsonTokenizer) -> None:
    rng = random.Random(0)
    check(tokenizer, ["".join(rng.choices(LETTERS, k=rng.randrange(1, 40))) for _ in range(2000)])
    points = [p for p in range(sys.maxunicode + 1) if not 0xD800 <= p < 0xE000]
    check(tokenizer, ["".join(map(chr, rng.sample(points, 30))) for _ in range(200)])


def test_every_script_is_classed_alike_by_both_regex_engines() -> None:
    """Every 16th character, and all where scripts begin; a library with newer tables shows here first."""
    points = {*range(0x80, 0x600), *range(0x2000, 0x2200), *range(0x3000, 0x3020), *range(0x600, 0x110000, 16)}
    chars = [chr(p) for p in sorted(points) if not 0xD800 <= p < 0xE000 and p < 0x32000]
    alike = fastbpe._compare_classes(chars)
    assert [char for char, same in zip(chars, alike, strict=True) if not same] == []


def test_what_is_classed_otherwise_is_left_to_tokenizers(
    tokenizer: JsonTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fastbpe, "_compare_classes", lambda chars: [char != "ß" for char in chars])
    fresh = JsonTokenizer(tokenizer._inner, "t")
    assert fresh.fast is not None
    assert fresh.fast.encode("straße") is None
    assert fresh.fast.encode("straẞe") is not None
    slow = tokenizer._inner.encode("straße", add_special_tokens=False).ids
    assert fresh.encode([b"a", "straße".encode()])[1].tolist() == [*slow, fresh.separator_id]


def test_an_added_token_in_the_text_goes_to_tokenizers(tokenizer: JsonTokenizer) -> None:
    text = "before <|endoftext|> after"
    assert tokenizer.fast is not None
    assert tokenizer.fast.encode(text) is None
    ids = tokenizer.encode([text.encode()])[0].tolist()
    assert ids[:-1] == tokenizer._inner.encode(text, add_special_tokens=False).ids
    assert ids.count(tokenizer.separator_id) == 2


def test_long_runs_of_spaces_have_the_same_ids(tokenizer: JsonTokenizer) -> None:
    """More of them than tiktoken's regex has a stack for."""
    text = " " * 1_100_000 + "x"
    assert tokenizer.fast is not None
    assert tokenizer.fast.encode(text) is None
    ids = tokenizer.encode([text.encode()])[0]
    assert ids[:-1].tolist() == tokenizer._inner.encode(text, add_special_tokens=False).ids


def test_ids_in_another_order_than_the_merges_are_kept(tokenizer: JsonTokenizer) -> None:
    plain = json.loads(tokenizer._inner.to_str())
    size = len(plain["model"]["vocab"])
    plain["model"]["vocab"] = {token: (i * 7 + 3) % size for token, i in plain["model"]["vocab"].items()}
    plain["added_tokens"][0]["id"] = plain["model"]["vocab"]["<|endoftext|>"]
    check(JsonTokenizer(Tokenizer.from_str(json.dumps(plain)), "t"), HARD)


def make_bpe(merges: list[tuple[str, str]], **options: object) -> Tokenizer:
    tokens = [*byte_alphabet(), *("".join(pair) for pair in merges)]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    inner = Tokenizer(models.BPE(vocab=vocab, merges=merges, **options))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.add_special_tokens(["<|endoftext|>"])
    return inner


def test_merges_that_no_training_gives_are_refused_because_ids_would_differ() -> None:
    inner = make_bpe([("b", "c"), ("a", "b"), ("ab", "c")])  # abc by itself is a + bc: the last merge is never met
    assert find_fast_encoder(inner) is None
    tokens = [*byte_alphabet(), "bc", "ab", "abc"]
    forced = fastbpe.FastEncoder(tokens, np.arange(len(tokens), dtype=np.uint32), ())
    ids = forced.encode("abc")
    assert ids is not None
    assert ids.tolist() != inner.encode("abc").ids
    assert find_fast_encoder(make_bpe([("b", "c"), ("a", "bc")])) is not None


def test_other_kinds_of_tokenizers_are_left_alone() -> None:
    def change(**parts: object) -> Tokenizer:
        inner = make_bpe([("a", "b")])
        for name, value in parts.items():
            setattr(inner, name, value)
        return inner

    assert find_fast_encoder(change()) is not None
    assert find_fast_encoder(change(normalizer=normalizers.NFC())) is None
    assert find_fast_encoder(change(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True))) is None
    assert find_fast_encoder(change(pre_tokenizer=pre_tokenizers.ByteLevel(False, use_regex=False))) is None
    assert find_fast_encoder(change(pre_tokenizer=pre_tokenizers.Whitespace())) is None
    assert find_fast_encoder(make_bpe([("a", "b")], dropout=0.1)) is None
    assert find_fast_encoder(make_bpe([("a", "b"), ("b", "c"), ("ab", "c"), ("a", "bc")])) is None
    assert find_fast_encoder(Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))) is None
    no_byte = make_bpe([("a", "b")]).to_str().replace('"z":', '"zz":')
    assert find_fast_encoder(Tokenizer.from_str(no_byte)) is None


def test_a_plain_added_token_is_found_in_the_text_too() -> None:
    inner = make_bpe([("a", "b")])
    inner.add_tokens([AddedToken("ab!")])
    fast = find_fast_encoder(inner)
    assert fast is not None
    assert fast.encode("xab!") is None
    assert fast.encode("xab") is not None
