"""Which training documents are most like a reference: hashed n-grams as in DSIR (Xie et al. 2023, 2302.03169).

    score(x) = mean over the words and pairs of neighbouring words of x of  log p(bucket) - log q(bucket)

p are the frequencies of BUCKETS hashes in the reference (data.quality_from), q those in the training text, both with
one count added to every bucket. DSIR draws documents with these weights; here the best are kept, up to a share of the
tokens, so that less is always a part of more. The mean instead of the sum: documents here differ in length, and a sum
would rank them by it.
"""

from __future__ import annotations

import hashlib
import os
import re
import uuid
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jaxscale.config import DataConfig
from jaxscale.data.corpus import find_corpus
from jaxscale.data.files import TokenFiles
from jaxscale.data.index import read_documents
from jaxscale.data.tokenizer import ByteTokenizer
from jaxscale.errors import MisuseError

__all__ = ["BUCKETS", "choose_best", "count_ngrams", "score_documents"]

BUCKETS = 10_000
"""As in the paper."""
SAMPLE_TOKENS = 1 << 25
"""Training tokens behind q, of the documents with the smallest hashes."""
WORD = re.compile(rb"[a-z0-9\x80-\xff]+|[^\sa-z0-9\x80-\xff]+")
"""A run of letters and digits, or of anything else but white space."""
MIX = np.uint32(0x9E3779B1)


def score_documents(files: TokenFiles, config: DataConfig) -> tuple[NDArray[np.float32], str]:
    """Score of every training document, in the order of the file, and the identity of reference and rule.

    Computed once for each reference and kept beside the token files.
    """
    corpus = find_corpus(config, "quality_from")
    texts = [document.text for document in corpus.read(config)]
    identity = hashlib.sha256(f"dsir {BUCKETS} {SAMPLE_TOKENS} ".encode())
    for text in texts:
        identity.update(hashlib.sha256(text).digest())
    path = files.folder / f"quality-{identity.hexdigest()[:16]}.npy"
    with suppress(OSError, ValueError, EOFError):
        scores = np.load(path)
        if scores.shape == (files.info.documents,):
            return scores, identity.hexdigest()
    scores = _score(files, texts)
    with suppress(OSError):  # a cache that cannot be written: computed each time
        _save(path, scores)
    return scores, identity.hexdigest()


def choose_best(scores: NDArray[np.float32], lengths: NDArray[np.int64], share: float) -> NDArray[np.bool_]:
    """The mask [n] of the fewest best documents that hold this share of the tokens; equal scores in the order given.

    >>> choose_best(np.float32([1, 3, 2]), np.array([10, 10, 10]), 0.4).tolist()
    [False, True, True]
    """
    order = np.argsort(-scores, kind="stable")
    before = np.cumsum(lengths[order]) - lengths[order]
    kept = np.zeros(len(scores), bool)
    kept[order[before < share * lengths.sum()]] = True
    return kept


def count_ngrams(text: bytes) -> NDArray[np.uint16]:
    """Bucket of every word and of every pair of neighbouring words, lower case; [0] for a text without words.

    >>> len(count_ngrams(b"the cat sat")), (count_ngrams(b"The CAT") == count_ngrams(b"the cat")).all().item()
    (5, True)
    """
    found = WORD.findall(text.lower())
    words = np.fromiter(map(zlib.crc32, found), np.uint32, len(found))
    pairs = (words[:-1] * MIX) ^ words[1:]
    return (np.concatenate([words, pairs * MIX]) % np.uint32(BUCKETS)).astype(np.uint16)


def _score(files: TokenFiles, reference: Sequence[bytes]) -> NDArray[np.float32]:
    lengths, hashes = read_documents(files.folder)
    order = np.argsort(hashes, kind="stable")
    before = np.cumsum(lengths[order]) - lengths[order]
    sample = np.sort(order[before < SAMPLE_TOKENS])
    p = _count(map(count_ngrams, reference))
    if not p.any():
        raise MisuseError("data.quality_from: no word in all of it; name files with text like the one that is wanted")
    seen = dict(zip(sample.tolist(), map(count_ngrams, _decode(files, lengths, sample)), strict=True))
    ratio = _log_frequencies(p) - _log_frequencies(_count(seen.values()))
    others = np.setdiff1d(np.arange(len(lengths)), sample)
    scores = np.empty(len(lengths), np.float32)
    for number, text in zip(others, _decode(files, lengths, others), strict=True):
        scores[number] = _mean(ratio, count_ngrams(text))
    for number, buckets in seen.items():
        scores[number] = _mean(ratio, buckets)
    return scores


def _count(texts: Iterable[NDArray[np.uint16]]) -> NDArray[np.int64]:
    """How often each bucket comes."""
    counts = np.zeros(BUCKETS, np.int64)
    for buckets in texts:
        counts += np.bincount(buckets, minlength=BUCKETS)
    return counts


def _log_frequencies(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Log share of each bucket, one count added to all."""
    return np.log(counts + 1) - np.log(counts.sum() + BUCKETS)


def _mean(ratio: NDArray[np.float64], buckets: NDArray[np.uint16]) -> float:
    """A text without words is like nothing."""
    return float(ratio[buckets].mean()) if len(buckets) else float(ratio.min())


def _decode(files: TokenFiles, lengths: NDArray[np.int64], chosen: NDArray[np.int64]) -> Iterator[bytes]:
    """The text of the chosen documents, from their tokens."""
    tokenizer, train = files.load_tokenizer(), files.train
    starts, separator = np.cumsum(lengths) - lengths, len(tokenizer.separator)
    for number in chosen:
        ids = train[starts[number] : starts[number] + lengths[number] - separator]
        if isinstance(tokenizer, ByteTokenizer):
            yield ids.astype(np.uint8).tobytes()
        else:
            yield tokenizer.decode(ids.tolist()).encode()


def _save(path: Path, scores: NDArray[np.float32]) -> None:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with open(temporary, "wb") as file:
            np.save(file, scores)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
