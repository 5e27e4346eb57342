"""How well the bound of a masked-diffusion run is estimated, at equal cost: the draws used, the same under other keys,
and the papers' form, each token hidden with probability t and weighed by 1/t.

    python tests/bench/diffusion_estimator.py runs/diffusion RUN_ID

prints a line a kind, of the first WINDOWS validation windows: mean and standard deviation over KEYS keys, the mean of
the error of masks that each key's two halves report by themselves, and how far a single draw spreads. Results:
docs/diffusion.md.
"""

import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxscale.config import MeshConfig
from jaxscale.data.batches import validation_windows
from jaxscale.data.tokens import build_tokens
from jaxscale.flops import VALIDATION_DRAWS
from jaxscale.model import diffusion
from jaxscale.runs import read_spec, run_dir
from jaxscale.train.checkpoint import Checkpoints
from jaxscale.train.sharding import make_mesh
from jaxscale.train.step import Program, make_program, strip_init

KEYS, WINDOWS, ROWS = 16, 512, 32


def draw_by_time(key: jax.Array, number: jax.Array, rows: int, length: int) -> diffusion.Draw:
    """The papers' masks: t stratified over the draws of a window, loss weight 1/t."""
    level, place = jax.random.split(jax.random.fold_in(key, number))
    t = 1 - (jax.random.uniform(level, (rows, 1)) + number) / VALIDATION_DRAWS  # in (0, 1]
    hidden = jax.random.uniform(place, (rows, length)) < t
    return diffusion.Draw(hidden, hidden / t / length)


def draw_by_count(key: jax.Array, number: jax.Array, rows: int, length: int) -> diffusion.Draw:
    """As `draw_validation`, from a key of one's own."""
    each = VALIDATION_DRAWS // diffusion.HALVES
    keys = jax.random.split(jax.random.fold_in(key, number // each), rows)
    both = jax.vmap(jax.random.split)(keys)
    levels = (jax.vmap(jax.random.uniform)(both[:, 0]) + number % each) / each
    places = jax.vmap(jax.random.fold_in, (0, None))(both[:, 1], number % each)
    return diffusion._draw(places, levels, jnp.ones((rows, length), bool))


def estimate(program: Program, params: Any, windows: np.ndarray, draw: Any) -> np.ndarray:
    """Bound of every window from each of its draws, [keys, windows, draws] in nats a token."""

    def one(key: jax.Array, place: jax.Array, rows: jax.Array, number: jax.Array) -> jax.Array:
        drawn = draw(jax.random.fold_in(key, place), number, *rows[:, 1:].shape)
        return jnp.sum(program.apply(params, rows, drawn.hidden)[0] * drawn.share, axis=-1)

    over = jax.jit(jax.vmap(one, (None, None, None, 0), 1))
    parts = windows.reshape(-1, ROWS, windows.shape[1])
    numbers = jnp.arange(VALIDATION_DRAWS)
    return np.array([
        np.concatenate([over(jax.random.key(k), i, part, numbers) for i, part in enumerate(parts)])
        for k in range(KEYS)
    ])  # fmt: skip


def main(folder: Path, run_id: str) -> None:
    spec = read_spec(run_dir(folder, run_id) / "spec.json")
    program = make_program(strip_init(spec.model), spec.schedule, 1, make_mesh(MeshConfig(data=1), jax.devices()[:1]),
                           jnp.float32, spec.optimizer, spec.average_steps > 0)  # fmt: skip
    state = Checkpoints(run_dir(folder, run_id) / "checkpoints").restore(program.abstract_state())
    if state is None:
        sys.exit(f"{run_id}: its weights are not kept")
    windows = validation_windows(build_tokens(spec.data).val, spec.model.seq_len)[0][:WINDOWS]
    for name, draw in (("count n, mean over n", draw_by_count), ("time t, weight 1/t", draw_by_time)):
        each = estimate(program, state.answer, windows, draw)
        means, halves = each.mean((1, 2)), each.reshape(*each.shape[:2], diffusion.HALVES, -1).mean(-1)
        told = np.sqrt(np.sum((halves[..., 1] - halves[..., 0]) ** 2, axis=1)) / 2 / each.shape[1]
        print(f"{name}: bound {means.mean():.4f} +- {means.std(ddof=1) / np.sqrt(KEYS):.4f}, spread over keys "
              f"{means.std(ddof=1):.4f}, largest deviation {np.abs(means - means.mean()).max():.4f}, reported error of "
              f"masks {told.mean():.4f}, spread of windows {each.mean((0, 2)).std():.3f}, of one draw "
              f"{each.std(axis=(0, 2)).mean():.3f}, largest draw {each.max():.1f}")  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
