"""The batches of a check: the study's own text in the order of training, or random ids.

Random ids follow Zipf's frequencies (the k-th id 1/k): of uniform ids there is nothing to learn that outgrows the
noise, and at small widths the noise in the logits falls as width^-1/2.
"""

from __future__ import annotations

import numpy as np

from jaxscale.config import Study
from jaxscale.errors import MisuseError

__all__ = ["SEQS", "SEQ_LEN", "random_windows", "text_windows"]

SEQS, SEQ_LEN = 8, 64
"""Sequences a step, and their length at most: slopes need no more, and the check is to take seconds a width."""


def text_windows(study: Study, steps: int) -> np.ndarray:
    """The first `steps` batches of the study's text, int32 [steps, SEQS, t + 1]; builds the token files."""
    from jaxscale.data.mixture import open_batches
    from jaxscale.data.tokens import build_tokens

    tokens = build_tokens(study.data)
    if tokens.info.vocab_size > study.model.vocab_size:
        raise MisuseError(f"model.vocab_size: {study.model.vocab_size} is smaller than the {tokens.info.vocab_size} "
                          f"entries of tokenizer {study.data.tokenizer}; use at least that")  # fmt: skip
    return open_batches(tokens, _length(study), SEQS, study.seed).read_steps(0, steps)


def random_windows(study: Study, steps: int) -> np.ndarray:
    """Batches of random ids of the study's vocabulary, int32 [steps, SEQS, t + 1]."""
    frequency = 1 / np.arange(1, study.model.vocab_size + 1)
    shape = (steps, SEQS, _length(study) + 1)
    drawn = np.random.default_rng(study.seed).choice(len(frequency), shape, p=frequency / frequency.sum())
    return drawn.astype(np.int32)


def _length(study: Study) -> int:
    return min(study.model.seq_len, SEQ_LEN)
