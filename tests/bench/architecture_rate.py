"""Training rate of LSTMs and mixtures of experts beside the dense transformer of the same width: docs/architectures.md.

    .venv/bin/python tests/bench/architecture_rate.py 32 64 128

One process on one core, whole steps of two microbatches of 4 sequences (2 layers, 64 tokens, 256 symbols). Rounds are
interleaved; a ratio is the median over rounds of a contestant's rate over the dense transformer's of the same round.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from jaxscale.config import MeshConfig, ModelConfig
from jaxscale.flops import flops_per_token
from jaxscale.train.optimizer import Hyper
from jaxscale.train.sharding import make_mesh
from jaxscale.train.step import Program

ROUNDS, SLOTS, ROWS = 12, 16, 4
HYPER = Hyper(*(jnp.float32(x) for x in (0.02, 2, 3, 0.9, 0.95, 1e-12, 0.1, 1, 0, 1000, 30, 0, 0.1)))


def prepare(model: ModelConfig) -> Callable[[], float]:
    """A function that trains one dispatch and gives its tokens/s."""
    program = Program(model, "cosine", SLOTS, make_mesh(MeshConfig(), jax.devices()[:1]), jnp.float32)
    step, held = program.train(ROWS), [program.init(jnp.uint32(0))]
    ids = np.random.default_rng(0).zipf(1.3, (SLOTS, ROWS, model.seq_len + 1)) % model.vocab_size
    windows = program.put_batch(ids.astype(np.int32))

    def run() -> float:
        start = time.perf_counter()
        held[0], metrics = step(held[0], windows, jnp.int32(SLOTS // 2), jnp.int32(2), HYPER)
        jax.block_until_ready((held[0], metrics))
        return SLOTS * ROWS * model.seq_len / (time.perf_counter() - start)

    return run


def main() -> None:
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # before JAX counts its threads
    print("width  model             tokens/s   of dense   FLOPs/token of dense   GFLOP/s")
    for width in map(int, sys.argv[1:]):
        dense = ModelConfig(d_model=width)
        models = {"dense": dense, "lstm": replace(dense, architecture="lstm")}
        models |= {f"{n} experts, 2 of": replace(dense, n_experts=n) for n in (4, 8)}
        runs = {name: prepare(model) for name, model in models.items()}
        rounds = [{name: run() for name, run in runs.items()} for _ in range(ROUNDS)][2:]
        for name, model in models.items():
            rate = statistics.median(one[name] for one in rounds)
            ratio = statistics.median(one[name] / one["dense"] for one in rounds)
            cost = flops_per_token(model)
            print(f"{width:5}  {name:16} {rate:9.0f} {ratio:10.2f} {cost / flops_per_token(dense):22.2f} "
                  f"{rate * cost / 1e9:9.1f}")  # fmt: skip


if __name__ == "__main__":
    main()
