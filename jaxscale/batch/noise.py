"""The gradient noise scale of a run along its curve (McCandlish et al. 2018, eq. 2.9 and appendix A.1).

A run that was trained with recipe.measure_noise has in each line of metrics.jsonl the mean squared norms of its
microbatches' gradients (b tokens each) and of its batches' (B tokens). Over a window of lines

    |G|^2 = (B |G_B|^2 - b |G_b|^2) / (B - b),    tr(Sigma) = (|G_b|^2 - |G_B|^2) / (1/b - 1/B)

both without bias, whatever the two have in common, and B_simple = tr(Sigma) / |G|^2 is the ratio of their means, not
the mean of their ratios. Its error is a moving-block bootstrap's over the lines (Kuensch 1989): neighbours are alike.
Single windows of text, as with a byte that is hardly ever seen, can have squared gradients a thousand times the usual
and more (docs/batch.md): clipping takes most of their updates away, but in a mean of squares they are all there is.
Lines whose |G_b|^2 is above 10 times the window's median are left out; `left_out` is their share, B_simple_all what
comes out with them.
Windows end at the run's end and halve: (D/2, D], (D/4, D/2], ... down to the end of the warmup.

It is the noise scale of plain gradients. Adam divides each coordinate by its own size, and the noise scale that its
updates feel is another number: McCandlish et al. see the two agree in order of magnitude, and so it is used here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxscale.laws.batch import estimate_noise_scale

__all__ = ["NOISE_FIELDS", "measure_noise"]

NOISE_FIELDS = frozenset({"step", "loss", "tokens", "grad_sq_small", "grad_sq_big", "microbatch_tokens"})
FEWEST = 8
"""Lines of a window, at least."""
ROUNDS = 400
SPIKE = 10.0
"""Times the median from which a line's squared gradient is a spike."""
LOST = 0.05
"""Share of bootstrap rounds without a signal, |G|^2 <= 0, from which a window has no noise scale."""


def measure_noise(
    lines: Sequence[dict[str, Any]], batch_tokens: int, *, warmup_steps: int = 0, seed: int = 0
) -> list[dict[str, float | None]]:
    """One row a window, the last one first: D (its end), loss (its mean), grad_squared, trace, B_simple, std_error,
    left_out, B_simple_all.

    `lines` of metrics.jsonl with `NOISE_FIELDS`, in order; tokens are the unit of both batches. B_simple is None
    where the signal is lost in the noise: measure larger batches or more steps.
    """
    used = [line for line in lines if line.keys() >= NOISE_FIELDS and line["step"] > warmup_steps]
    if len(used) < FEWEST:
        return []
    step, tokens, loss, small, big, b = (
        np.array([line[name] for line in used], float)
        for name in ("step", "tokens", "loss", "grad_sq_small", "grad_sq_big", "microbatch_tokens")
    )
    weight = np.diff(step, prepend=step[0] - (step[1] - step[0]))
    rows, end, rng = [], len(used), np.random.default_rng(seed)
    while end >= FEWEST:
        first = int(np.searchsorted(tokens, tokens[end - 1] / 2, side="right"))
        if end - first < FEWEST:
            break
        part = slice(first, end)
        rows.append(
            {"D": tokens[end - 1], "loss": float(np.average(loss[part], weights=weight[part]))}
            | _estimate(small[part], big[part], b[part], weight[part], batch_tokens, rng)
        )
        end = first
    return rows


def _estimate(
    small: np.ndarray, big: np.ndarray, b: np.ndarray, weight: np.ndarray, B: int, rng: np.random.Generator
) -> dict[str, float | None]:
    """Noise scale of one window and its standard error; the microbatch may change where a run went on elsewhere."""
    noise = estimate_noise_scale(small, big, b, B)
    usual = small <= SPIKE * np.median(small)
    G_all, S_all = np.average([noise.grad_squared, noise.trace], axis=1, weights=weight)
    told = {"left_out": float(1 - usual.mean()), "B_simple_all": float(S_all / G_all) if G_all > 0 else None}
    small, big, b, weight = small[usual], big[usual], b[usual], weight[usual]
    noise = estimate_noise_scale(small, big, b, B)
    G, S = np.average([noise.grad_squared, noise.trace], axis=1, weights=weight)
    length = int(np.ceil(np.sqrt(len(small))))
    rows = _draw_blocks(len(small), length, rng)
    drawn = weight[rows]
    G_r, S_r = ((value[rows] * drawn).sum(1) / drawn.sum(1) for value in (noise.grad_squared, noise.trace))
    lost = G <= 0 or (G_r <= 0).mean() > LOST
    ratios = S_r[G_r > 0] / G_r[G_r > 0]
    return told | {
        "grad_squared": float(G),
        "trace": float(S),
        "B_simple": None if lost else float(S / G),
        "std_error": None if lost else float(np.std(ratios, ddof=1) / np.sqrt(1 - length / len(small))),
    }


def _draw_blocks(n: int, length: int, rng: np.random.Generator) -> np.ndarray:
    """Rows (rounds, n) of a moving-block bootstrap, whose variance is short by length / n: the caller mends that."""
    starts = rng.integers(0, n - length + 1, (ROUNDS, -(-n // length)))
    return (starts[..., None] + np.arange(length)).reshape(ROUNDS, -1)[:, :n]
