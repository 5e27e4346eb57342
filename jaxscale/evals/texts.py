"""The loss on texts of the user's own, a source (file) each: exactly as validation computes it.

Documents are encoded with the model's tokenizer, a separator after each, and laid end to end; windows of seq_len + 1
tokens start every seq_len, so that every token but the first is predicted once.

    nll_per_token = sum of losses / targets            bits_per_byte = nll_per_token / ln 2 * tokens / bytes

Bytes count the text and two for each separator, as in training.
"""

from __future__ import annotations

import glob
import hashlib
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxscale.config import DataConfig
from jaxscale.data.corpus import find_corpus
from jaxscale.data.tokenizer import SEPARATOR, Tokenizer
from jaxscale.errors import MisuseError, VerdictError
from jaxscale.evals.encode import Window
from jaxscale.evals.score import LoadedModel

__all__ = ["Text", "measure_ids", "measure_text", "read_texts"]

PIECE_WINDOWS = 65_536
"""Windows of a long text that are scored at once."""


@dataclass(frozen=True, eq=False)
class Text:
    """The documents of one source; `sha256` is that of all of them, a separator after each."""

    source: str
    documents: tuple[bytes, ...]
    sha256: str

    @property
    def size_bytes(self) -> int:
        """Bytes, separators included."""
        return sum(len(text) + len(SEPARATOR) for text in self.documents)

    def encode(self, tokenizer: Tokenizer) -> NDArray[np.int32]:
        """All ids, end to end."""
        return np.concatenate(tokenizer.encode(self.documents)).astype(np.int32)


def read_texts(patterns: Sequence[str], data: DataConfig) -> tuple[Text, ...]:
    """The text files that these glob patterns match, read as a study reads its own (`data` says how).

    MisuseError: a pattern without a match, a file that is no text, or empty.
    """
    for pattern in patterns:
        if not glob.glob(os.path.expanduser(pattern), recursive=True):
            raise MisuseError(f"--texts: {pattern!r} matches no file (looked from {os.getcwd()}); name text files")
    config = DataConfig(files=tuple(patterns), text_field=data.text_field, document_bytes=data.document_bytes)
    by_source: dict[str, list[bytes]] = {}
    corpus = find_corpus(config)
    for document in corpus.read(config):
        by_source.setdefault(document.source, []).append(document.text)
    empty = [item.source for item in corpus.inputs if item.source not in by_source]
    if empty:
        raise MisuseError(f"--texts: {empty[0]} holds no text")
    return tuple(_make_text(source, texts) for source, texts in by_source.items())


def _make_text(source: str, texts: Sequence[bytes]) -> Text:
    return Text(source, tuple(texts), hashlib.sha256(b"".join(text + SEPARATOR for text in texts)).hexdigest())


def measure_text(model: LoadedModel, text: Text) -> dict[str, Any]:
    """One source's numbers."""
    begun = time.perf_counter()
    ids = text.encode(model.tokenizer)
    nll = measure_ids(model, ids)
    if not math.isfinite(nll):
        raise VerdictError(f"text {text.source}: the model's loss is {nll}; its weights are broken")
    return {
        "text": text.source,
        "documents": len(text.documents),
        "tokens": len(ids),
        "bytes": text.size_bytes,
        "nll_per_token": nll,
        "perplexity": math.exp(min(nll, 700.0)),
        "bits_per_byte": nll / math.log(2) * len(ids) / text.size_bytes,
        "sha256": text.sha256,
        "seconds": round(time.perf_counter() - begun, 3),
    }


def measure_ids(model: LoadedModel, ids: NDArray[np.int32]) -> float:
    """Mean loss in nats over all ids but the first; MisuseError for fewer than two."""
    if len(ids) < 2:
        raise MisuseError(f"a text of {len(ids)} tokens has none to predict; give at least 2")
    seq_len = model.scorer.seq_len
    starts, total = range(0, len(ids) - 1, seq_len), 0.0
    for i in range(0, len(starts), PIECE_WINDOWS):
        windows = [Window(ids[start : start + seq_len + 1], 1) for start in starts[i : i + PIECE_WINDOWS]]
        total += float(model.scorer.score(model.params, windows).sum())
    return total / (len(ids) - 1)
