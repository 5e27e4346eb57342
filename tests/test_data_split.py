"""Held-out documents and repeated lines, against plain sets of strings."""

import random

import numpy as np
import pytest

from jaxscale.data.documents import Document
from jaxscale.data.lines import LineSet, drop_seen_lines
from jaxscale.data.split import HashSample, hash_text, is_held_out


def test_the_line_set_agrees_with_a_python_set() -> None:
    rng = np.random.default_rng(0)
    ours, oracle = LineSet(slots=16), set[int]()
    for _ in range(200):
        batch = rng.integers(1, 20_000, rng.integers(1, 300), dtype=np.uint64) * np.uint64(
            0x9E3779B97F4A7C15
        )  # spread like hashes
        expected = []
        for value in batch.tolist():
            expected.append(value not in oracle)
            oracle.add(value)
        assert ours.add(batch).tolist() == expected
    assert len(ours) == len(oracle)


def test_the_line_set_needs_about_two_words_a_line() -> None:
    seen = LineSet()
    seen.add(np.random.default_rng(0).integers(1, 2**63, 100_000, dtype=np.uint64))
    assert seen._table.nbytes <= 3 * 8 * len(seen)


def test_repeated_long_lines_are_dropped_after_their_first_appearance() -> None:
    rng = random.Random(0)
    pool = [f"line {i} " + "x" * rng.randrange(20, 60) for i in range(50)] + ["ü" * 39, "ü" * 40]
    text = rng.choices(pool, k=500)
    oracle, kept = set[str](), []
    for line in text:
        if len(line) < 40 or line not in oracle:
            kept.append(line)
        oracle.add(line)
    halves = ["\n".join(half).encode() for half in (text[:200], text[200:])]
    cleaned, dropped = drop_seen_lines(halves, LineSet())
    assert b"\n".join(cleaned).decode().split("\n") == kept
    assert dropped == len(text) - len(kept)


@pytest.mark.parametrize("fraction", [0.05, 0.5])
def test_the_held_out_share_is_the_fraction_within_four_deviations(fraction: float) -> None:
    n = 20_000
    held = sum(is_held_out(f"text {i}".encode(), fraction) for i in range(n))
    assert abs(held - n * fraction) < 4 * (n * fraction * (1 - fraction)) ** 0.5


def test_more_held_out_text_keeps_what_was_held_out() -> None:
    texts = [f"text {i}".encode() for i in range(2000)]
    small, large = ({t for t in texts if is_held_out(t, f)} for f in (0.05, 0.2))
    assert small < large


def test_a_hash_sample_holds_the_smallest_hashes_whatever_the_order() -> None:
    documents = [Document("s", f"document {i} ".encode() * (1 + i % 5)) for i in range(500)]
    by_hash = sorted(documents, key=lambda document: hash_text(document.text, b"order"))
    shuffled = random.Random(1).sample(documents, len(documents))
    samples = []
    for order in (documents, shuffled):
        sample = HashSample(capacity_bytes=3000)
        for document in order:
            sample.add(document)
        samples.append(list(sample))
    assert samples[0] == samples[1] == by_hash[: len(samples[0])]
    sizes = [len(document.text) for document in samples[0]]
    assert sum(sizes[:-1]) < 3000 <= sum(sizes)
