"""The batches of a check: the study's own text in the order of training, or one random batch again and again."""

from __future__ import annotations

import numpy as np

from jaxscale.config import Study
from jaxscale.errors import MisuseError

__all__ = ["SEQS", "SEQ_LEN", "random_windows", "text_windows"]

SEQS, SEQ_LEN = 8, 64
"""Sequences a step, and their length at most: slopes need no more, and the check is to take seconds a width."""


def text_windows(study: Study, steps: int) -> np.ndarray:
    """The first `steps` batches of the study's text, int32 [steps, SEQS, t + 1]; builds the token files."""
    from jaxscale.data.batches import BatchSource
    from jaxscale.data.tokens import build_tokens

    tokens = build_tokens(study.data)
    if tokens.info.vocab_size > study.model.vocab_size:
        raise MisuseError(f"model.vocab_size: {study.model.vocab_size} is smaller than the {tokens.info.vocab_size} "
                          f"entries of tokenizer {study.data.tokenizer}; use at least that")  # fmt: skip
    return BatchSource(tokens.train, _length(study), SEQS, study.seed).read_steps(0, steps)


def random_windows(study: Study, steps: int) -> np.ndarray:
    """One batch of uniform ids of the study's vocabulary, the same every step, int32 [steps, SEQS, t + 1].

    The same, since fresh noise has nothing to learn and its gradients would cancel.
    """
    shape = (1, SEQS, _length(study) + 1)
    batch = np.random.default_rng(study.seed).integers(0, study.model.vocab_size, shape).astype(np.int32)
    return np.repeat(batch, steps, axis=0)


def _length(study: Study) -> int:
    return min(study.model.seq_len, SEQ_LEN)
