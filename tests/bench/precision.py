"""Time of a training step in float32, bfloat16 and int8 products, at a few widths; docs/variants.md has what it told.

    python tests/bench/precision.py [--widths 32 128 512]

Each program is compiled, warmed up, and timed in turn with the others, ROUNDS times; the least time of each counts.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxscale.config import MeshConfig, ModelConfig, Recipe
from jaxscale.flops import flops_per_token
from jaxscale.model.lowering import choose_lowering
from jaxscale.train.execution import apply_precision, compute_dtype
from jaxscale.train.optimizer import Hyper
from jaxscale.train.sharding import make_mesh
from jaxscale.train.step import Program

ROUNDS, STEPS, SEQS = 7, 4, 16
PRECISIONS = ("float32", "bfloat16", "int8")


def main() -> None:
    """A table of GFLOP/s."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--widths", type=int, nargs="+", default=(32, 128, 512))
    for width in parser.parse_args().widths:
        model = ModelConfig(d_model=width, n_layers=2, head_dim=min(64, width // 4), seq_len=128, base_d_model=32)
        runners = {precision: Runner(model, precision) for precision in PRECISIONS}
        best = dict.fromkeys(PRECISIONS, float("inf"))
        for _ in range(ROUNDS):
            for precision, runner in runners.items():
                best[precision] = min(best[precision], runner.time_step())
        work = flops_per_token(model) * SEQS * model.seq_len / 1e9
        told = ", ".join(f"{precision} {work / seconds:.1f}" for precision, seconds in best.items())
        print(f"width {width}: GFLOP/s {told}; int8 takes {best['int8'] / best['float32']:.2f} of float32's time")


class Runner:
    """The train program of one precision on made-up tokens."""

    def __init__(self, model: ModelConfig, precision: str) -> None:
        dtype = compute_dtype(MeshConfig(), precision)
        lowering = choose_lowering(MeshConfig(), model, jax.default_backend(), jnp.dtype(dtype).name)
        mesh = make_mesh(MeshConfig(), jax.devices()[:1])
        self.program = Program(model, "cosine", STEPS, mesh, dtype, lowering=apply_precision(lowering, precision))
        recipe = Recipe(weight_decay=0.1)
        numbers = {name: getattr(recipe, name, 1.0) for name in Hyper._fields} | {"steps": 1000.0, "warmup_steps": 10.0}
        self.hyper = Hyper(**{name: jnp.float32(value) for name, value in numbers.items()})
        windows = np.random.default_rng(0).integers(0, model.vocab_size, (STEPS, SEQS, model.seq_len + 1))
        self.windows = self.program.put_batch(windows.astype(np.int32))
        self.train: Any = self.program.train(SEQS)
        self.state = self.program.init(jnp.uint32(0))
        self.time_step()

    def time_step(self) -> float:
        """Seconds of one step."""
        start = time.perf_counter()
        self.state, _ = jax.block_until_ready(
            self.train(self.state, self.windows, np.int32(STEPS), np.int32(1), self.hyper)
        )
        return (time.perf_counter() - start) / STEPS


if __name__ == "__main__":
    main()
