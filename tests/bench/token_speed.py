"""How fast tokens are made and read, each beside what it is compared with, in one run and interleaved.

    python tests/bench/token_speed.py encode [--size 4096]     tiktoken and tokenizers on one text and the same merges
    python tests/bench/token_speed.py build bytes bpe:4096     one pass and portions over shared/corpora
    python tests/bench/token_speed.py read                     batches through grain, and with grain's own permutation
    python tests/bench/token_speed.py clean                    evaluation items looked for in shared/corpora

CPU seconds are told beside wall time: they say what a quiet machine would take. Medians of the rounds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import repeat
from pathlib import Path
from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage

import numpy as np

from jaxscale.config import DataConfig
from jaxscale.data import batches, tokens
from jaxscale.data.batches import BatchSource, iterate_batches
from jaxscale.data.contamination import find_cleaner
from jaxscale.data.corpus import find_corpus
from jaxscale.data.permutation import shuffle_indices
from jaxscale.data.tokenizer import JsonTokenizer, load_tokenizer, train_bpe
from jaxscale.data.tokens import build_tokens

SHARED = Path(os.environ.get("JAXSCALE_SHARED", Path(__file__).parents[3] / "shared"))
CORPORA = str(SHARED / "corpora" / "*.xz")


def time_cpu(work: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU seconds, those of ended child processes included."""
    before, begun = _cpu_seconds(), time.perf_counter()
    work()
    return time.perf_counter() - begun, _cpu_seconds() - before


def _cpu_seconds() -> float:
    used = (getrusage(RUSAGE_SELF), getrusage(RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def read_texts(limit_bytes: int) -> list[bytes]:
    """Documents of all corpora in turn, up to a size."""
    by_source: dict[str, list[bytes]] = {}
    for document in find_corpus(config := DataConfig(files=(CORPORA,))).read(config):
        by_source.setdefault(document.source, []).append(document.text)
    share = limit_bytes // len(by_source)
    return [text for texts in by_source.values() for text in texts[: share // 65536]]


def bench_encode(size: int, rounds: int) -> None:
    texts = read_texts(24 << 20)
    with tempfile.TemporaryDirectory() as folder:
        train_bpe(texts, size, Path(folder) / "t.json")
        loaded = load_tokenizer(Path(folder) / "t.json")
    assert isinstance(loaded, JsonTokenizer)
    assert loaded.fast is not None
    fast, strings = loaded.fast, [text.decode() for text in texts]
    total = sum(map(len, texts)) / 1e6
    found: dict[str, list[np.ndarray]] = {}

    def by_tiktoken() -> None:
        found["tiktoken"] = [np.asarray(fast.encode(string)) for string in strings]

    def by_tokenizers() -> None:
        encoded = loaded._inner.encode_batch_fast(strings, add_special_tokens=False)
        found["tokenizers"] = [np.array(item.ids, np.uint32) for item in encoded]

    ways = {"tiktoken": by_tiktoken, "tokenizers": by_tokenizers}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            times[name].append(time_cpu(way))
    same = all(np.array_equal(a, b) for a, b in zip(found["tiktoken"], found["tokenizers"], strict=True))
    print(f"{total:.1f} MB, vocabulary {size}, {sum(map(len, found['tiktoken']))} ids, equal: {same}")
    for name, pairs in times.items():
        wall, cpu = (statistics.median(column) for column in zip(*pairs, strict=True))
        print(f"  {name:<12} {total / wall:6.1f} MB/s wall  {total / cpu:6.1f} MB/s a CPU second")


def bench_build(names: list[str], rounds: int) -> None:
    for name in names:
        times: dict[str, list[tuple[float, float]]] = {"one pass": [], "portions": []}
        hashes: set[str] = set()

        def build(config: DataConfig, hashes: set[str] = hashes) -> None:
            hashes.add(build_tokens(config).info.data_sha256)

        for _ in range(rounds):
            for way, pairs in times.items():
                tokens.PORTIONED_BYTES = (0, 0) if way == "portions" else (1 << 60, 1 << 60)
                with tempfile.TemporaryDirectory() as cache:
                    config = DataConfig(files=(CORPORA,), tokenizer=name, cache=cache)
                    pairs.append(time_cpu(partial(build, config)))
        print(f"{name}: {hashes}; {len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}")
        for way, pairs in times.items():
            wall, cpu = (statistics.median(column) for column in zip(*pairs, strict=True))
            print(f"  {way:<10} {wall:6.1f} s wall  {cpu:6.1f} CPU seconds")


def shuffle_by_grain(indices: np.ndarray, size: int, key: int, rounds: int) -> np.ndarray:
    """The images one by one, as they were read before."""
    from grain.experimental import index_shuffle

    images = map(index_shuffle, indices.tolist(), repeat(size - 1), repeat(key), repeat(rounds))
    return np.fromiter(images, np.int64, len(indices))


def bench_read(rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.bin"
        np.random.default_rng(0).integers(0, 4096, 100_000_000, dtype=np.uint16).tofile(path)
        text = np.memmap(path, np.uint16, "r")
        list(iterate_batches(BatchSource(text, 64, 64, 0), 0, 10, 5))  # grain is loaded, the file in memory
        int(text.sum())
        print("Mtok/s (per CPU second) through grain; steps an item so that it holds about 64 Ki tokens")
        for seq_len, batch_seqs in ((64, 4), (64, 64), (256, 16), (1024, 4), (1024, 64), (4096, 16)):
            print(f"  seq_len {seq_len:4}, {batch_seqs:2} sequences: {measure(text, seq_len, batch_seqs, rounds)}")


def measure(text: np.ndarray, seq_len: int, batch_seqs: int, rounds: int) -> str:
    step_tokens = seq_len * batch_seqs
    steps, per_item = min(20_000_000, len(text)) // step_tokens, max(1, (1 << 16) // step_tokens)
    told = []
    for name, shuffle in (("now", shuffle_indices), ("by grain's permutation", shuffle_by_grain)):
        batches.shuffle_indices = shuffle
        pairs = []
        for seed in range(rounds):
            source = BatchSource(text, seq_len, batch_seqs, seed)
            pairs.append(time_cpu(lambda s=source: sum(b.size for b in iterate_batches(s, 0, steps, per_item))))
        wall, cpu = (statistics.median(column) for column in zip(*pairs, strict=True))
        count = steps * step_tokens / 1e6
        told.append(f"{name} {count / wall:6.0f} ({count / cpu:6.0f})")
    batches.shuffle_indices = shuffle_indices
    return ", ".join(told)


def bench_clean() -> None:
    config = DataConfig(files=(CORPORA,), decontaminate=(str(SHARED / "evals" / "*.jsonl"),))
    cleaner = find_cleaner(config)
    assert cleaner is not None
    documents = list(find_corpus(config).read(config))
    counts: dict[str, list[int]] = {}

    def clean() -> None:
        for document in documents:
            cleaned = cleaner.clean(document.text)
            row = counts.setdefault(Path(document.source).name, [0, 0, 0])
            for i, n in enumerate((len(document.text), cleaned.size_bytes, cleaned.paragraphs)):
                row[i] += n

    wall, cpu = time_cpu(clean)
    total = sum(len(document.text) for document in documents) / 1e6
    print(f"{cleaner.items} items, n = {cleaner.n}: {total / wall:.1f} MB/s wall, {total / cpu:.1f} a CPU second")
    for name, (size, cut, paragraphs) in counts.items():
        print(f"  {name:<22} {cut:8,} of {size:10,} bytes ({cut / size:.2%}) in {paragraphs} paragraphs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["encode", "build", "read", "clean"])
    parser.add_argument("tokenizers", nargs="*", default=["bytes", "bpe:4096"])
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    if args.what == "encode":
        bench_encode(args.size, args.rounds)
    elif args.what == "build":
        bench_build(args.tokenizers, args.rounds)
    elif args.what == "read":
        bench_read(args.rounds)
    else:
        bench_clean()


if __name__ == "__main__":
    main()
