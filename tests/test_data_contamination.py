"""Planted items are all found and nothing else is cut, against sets of word tuples."""

import json
import random
import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from tiny import write_study

from jaxscale.cli import dispatch
from jaxscale.config import DataConfig
from jaxscale.data.contamination import Cleaner, find_cleaner
from jaxscale.data.split import is_held_out
from jaxscale.data.tokens import build_tokens
from jaxscale.errors import MisuseError

VOCABULARY = [f"w{i}" for i in range(40)] + ["Über", "naïve", "don't", "漢字", "x_y", "İstanbul"]


def split_words(text: str) -> list[str]:
    """Words as the documentation says, a second time."""
    return [word for word in re.split(r"[\W_]+", "".join(c.lower() if c != "İ" else c for c in text)) if word]


def has_overlap(paragraph: str, items: list[str], n: int) -> bool:
    words = split_words(paragraph)
    for item in items:
        wanted = split_words(item)
        size = min(n, len(wanted))
        runs = {tuple(wanted[i : i + size]) for i in range(len(wanted) - size + 1)} if len(wanted) >= 5 else set()
        if any(tuple(words[i : i + size]) in runs for i in range(len(words) - size + 1)):
            return True
    return False


@pytest.mark.parametrize("n", [5, 8])
def test_what_is_cut_is_what_sets_of_word_tuples_say(n: int) -> None:
    rng = random.Random(n)

    def make(low: int, high: int) -> str:
        return "".join(
            rng.choice(VOCABULARY) + rng.choice([" ", ", ", "\n", "; "]) for _ in range(rng.randrange(low, high))
        )

    cut = kept = 0
    for _ in range(150):
        paragraphs = [make(1, 40).strip() for _ in range(8)]
        sources = [split_words(p) for p in paragraphs]
        items = [make(2, 14) for _ in range(4)]
        for words in rng.sample([s for s in sources if len(s) > n + 2], 2):  # planted, in other dress
            start = rng.randrange(len(words) - n)
            items.append(" -- ".join(words[start : start + n + rng.randrange(-1, 3)]).upper())
        items = [item for item in items if "\n\n" not in item]
        expected = [p for p in paragraphs if not has_overlap(p, items, n)]
        cleaned = Cleaner.of(items, n).clean("\n\n".join(paragraphs).encode())
        assert cleaned.text.decode() == "\n\n".join(expected)
        assert cleaned.paragraphs == len(paragraphs) - len(expected)
        cut, kept = cut + cleaned.paragraphs, kept + len(expected)
    assert cut > 100
    assert kept > 100


def test_of_a_long_paragraph_the_lines_go_that_hold_the_overlap() -> None:
    lines = [f"line {i} " + " ".join(f"a{i}b{j}" for j in range(12)) for i in range(80)]
    text = "head\n\n" + "\n".join(lines) + "\n\ntail"
    item = "a9b10 a9b11 line 10 a10b0 a10b1"  # across a line end
    cleaned = Cleaner.of([item], 5).clean(text.encode())
    expected = "head\n\n" + "\n".join(lines[:9] + lines[11:]) + "\n\ntail"
    assert cleaned.text.decode() == expected
    assert (cleaned.paragraphs, cleaned.size_bytes) == (2, len(text) - len(expected))


def test_an_overlap_does_not_cross_a_blank_line_and_short_items_are_left() -> None:
    cleaner = Cleaner.of(["one two three four five six", "just four words here"], 6)
    assert (cleaner.items, cleaner.too_short) == (1, 1)
    for text in (b"one two three\n \t\nfour five six", b"just four words here", b"one two three four five"):
        assert cleaner.clean(text).text == text
    assert cleaner.clean(b"One, two.\nThree four-five: six!").text == b""


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    """60 documents of three paragraphs; document i says sentence i. The task asks of every third."""
    (tmp_path / "text").mkdir()
    rng = random.Random(0)
    for i in range(60):
        paragraphs = [" ".join(rng.choices(VOCABULARY, k=60)) for _ in range(3)]
        paragraphs.insert(2, f"Number {i} is said to stand for {i} of the best answers in book {i}.")
        (tmp_path / f"text/{i:02}.txt").write_text("\n\n".join(paragraphs))
    items = [
        {"question": f"Number {i} is said to stand for {i} of the", "label": 1,
         "choices": ["worst", f"best answers in book {i}"]} for i in range(0, 60, 3)
    ]  # fmt: skip
    (tmp_path / "task.jsonl").write_text("\n".join(map(json.dumps, items)))
    return DataConfig(files=(str(tmp_path / "text"),), val_fraction=0.2, val_tokens=2000, decontaminate_ngram=8,
                      cache=str(tmp_path / "cache"))  # fmt: skip


def test_planted_items_are_counted_in_the_token_files(config: DataConfig, tmp_path: Path) -> None:
    before = build_tokens(config)
    clean = build_tokens(replace(config, decontaminate=(str(tmp_path / "task.jsonl"),)))
    text = clean.train.astype("u1").tobytes().decode()
    trained = [i for i in range(60) if f"book {i}." in before.train.astype("u1").tobytes().decode()]
    assert [i for i in trained if f"book {i}." in text] == [i for i in trained if i % 3]
    asked = [i for i in trained if i % 3 == 0]
    said = clean.info.decontaminated
    assert said is not None
    assert (said.items, said.items_found, said.items_too_short, said.paragraphs_cut) == (20, len(asked), 0, len(asked))
    assert said.bytes_cut == before.info.train_bytes - clean.info.train_bytes
    assert {s.source: s.paragraphs_cut for s in clean.sources if s.paragraphs_cut}.keys() == {
        f"{tmp_path}/text/{i:02}.txt" for i in asked
    }
    assert clean.val.tolist() == before.val.tolist()  # the split is by the text as it was
    assert before.info.decontaminated is None


def test_the_task_files_contents_decide_and_only_where_they_are_asked_for(config: DataConfig, tmp_path: Path) -> None:
    asked = replace(config, decontaminate=(str(tmp_path / "task.jsonl"),))
    first = build_tokens(asked)
    (tmp_path / "task.jsonl").rename(tmp_path / "moved.jsonl")
    assert build_tokens(replace(config, decontaminate=(str(tmp_path / "*.jsonl"),))).folder == first.folder
    assert build_tokens(replace(config, decontaminate_ngram=9)).folder == build_tokens(config).folder != first.folder
    (tmp_path / "moved.jsonl").write_text('{"question": "of other things", "choices": ["that are", "not"], "label": 0}')
    assert build_tokens(replace(config, decontaminate=(str(tmp_path / "*.jsonl"),))).folder != first.folder


@pytest.mark.parametrize("line", ["[]", "{}", '{"question": "q", "choices": ["a"], "label": 1}', "{"])
def test_a_line_that_is_no_item_is_named(config: DataConfig, tmp_path: Path, line: str) -> None:
    (tmp_path / "bad.jsonl").write_text(f"\n{line}\n")
    with pytest.raises(MisuseError, match=r"bad\.jsonl, line 2: not an item"):
        find_cleaner(replace(config, decontaminate=(str(tmp_path / "bad.jsonl"),)))
    with pytest.raises(MisuseError, match="matches no file"):
        build_tokens(replace(config, decontaminate=(str(tmp_path / "none.jsonl"),)))
    with pytest.raises(MisuseError, match="decontaminate_ngram 4: at least 5"):
        build_tokens(replace(config, decontaminate=(str(tmp_path / "task.jsonl"),), decontaminate_ngram=4))


def test_held_out_text_is_left_as_it_is(config: DataConfig, tmp_path: Path) -> None:
    held = [path for path in sorted((tmp_path / "text").iterdir()) if is_held_out(path.read_bytes(), 0.2)]
    asked = build_tokens(replace(config, decontaminate=(str(tmp_path / "task.jsonl"),)))
    assert asked.info.held_out_documents == len(held)


def test_the_data_verb_tells_what_is_read_and_what_was_cut_of_every_text(config: DataConfig, tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    body = f"""from jaxscale.config import DataConfig, Variant
    study = replace(study, data=DataConfig(**{asdict(config)!r}), variants=(Variant("plain"),
        Variant("clean", ("data.decontaminate={tmp_path}/task.jsonl",)),
        Variant("mixed", ("data.mixture=(('0*', .5), ('1*', .5))",)), Variant("wide", ("grid.min_steps=5",))))"""
    study = write_study(tmp_path / "study", body)
    assert dispatch(["data", str(study), "--out", str(tmp_path / "data.json")]) == 0
    told = json.loads((tmp_path / "data.json").read_text())
    rows = {tuple(row["variants"]): row for row in told["rows"]}
    assert list(rows) == [("plain", "wide"), ("clean",), ("mixed",)]
    assert rows["plain", "wide"]["decontaminated"] is None
    cut = {one["source"]: one["paragraphs_cut"] for one in told["sources"] if one["variants"] == ["clean"]}
    assert sum(cut.values()) == rows["clean",]["decontaminated"]["items_found"] > 10
    read = {Path(one["source"]).name: one["share"] for one in told["sources"] if one["variants"] == ["mixed"]}
    assert sum(share for name, share in read.items() if name < "1") == pytest.approx(0.5)
    assert not any(share for name, share in read.items() if name >= "2")
