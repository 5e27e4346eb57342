"""Training rate of one step against width, the figures behind `hardware.CPU_PEAK_FLOPS`.

    .venv/bin/python tests/bench/step_rate.py 8 16 32 64 96        # one process on one core
    .venv/bin/python tests/bench/step_rate.py 8 16 32 64 96 --all  # one process on each core at once, as `run` does

Prints, per width and process, the median over dispatches of tokens/s and GFLOP/s (exact causal count), with the
quick start's model (2 layers, heads of 8, 64 tokens, 256 symbols) and microbatches of 4 sequences.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time

from jaxscale.train.seats import CPU_ENVIRONMENT

DISPATCHES = 15


def measure(width: int, head_dim: int, microbatch: int) -> tuple[float, float]:
    """(tokens/s, FLOP/s), medians over dispatches."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jaxscale.config import MeshConfig, ModelConfig
    from jaxscale.flops import flops_per_token
    from jaxscale.train.optimizer import Hyper
    from jaxscale.train.sharding import make_mesh
    from jaxscale.train.step import Program

    model, slots = ModelConfig(d_model=width, head_dim=head_dim), 32
    program = Program(model, "cosine", slots, make_mesh(MeshConfig(), jax.devices()[:1]), jnp.float32)
    step, state = program.train(microbatch), program.init(jnp.uint32(0))
    hyper = Hyper(*(jnp.float32(x) for x in (0.02, 2, 3, 0.9, 0.95, 1e-12, 0.1, 1, 0, 1000, 30, 0, 0.1)))
    windows = np.random.default_rng(0).integers(0, 256, (slots, microbatch, model.seq_len + 1)).astype(np.int32)
    seconds = []
    for _ in range(DISPATCHES):
        start = time.perf_counter()
        state, metrics = step(state, program.put_batch(windows), jnp.int32(slots // 2), jnp.int32(2), hyper)
        jax.block_until_ready((state, metrics))
        seconds.append(time.perf_counter() - start)
    rate = slots * microbatch * model.seq_len / statistics.median(seconds[3:])
    return rate, rate * flops_per_token(model)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("widths", type=int, nargs="+")
    parser.add_argument("--head-dim", type=int, default=8)
    parser.add_argument("--microbatch", type=int, default=4)
    parser.add_argument("--all", action="store_true", help="one process on every core at once")
    parser.add_argument("--core", type=int, help="(internal) measure on this core")
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    if options.core is None:
        flags = {**os.environ, **CPU_ENVIRONMENT, "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"}
        words = [sys.executable, __file__, *sys.argv[1:], "--core"]
        chosen = cores if options.all else cores[:1]
        children = [subprocess.Popen([*words, str(core)], env=flags) for core in chosen]
        sys.exit(max(child.wait() for child in children))
    os.sched_setaffinity(0, {options.core})
    for width in options.widths:
        tokens, flops = measure(width, options.head_dim, options.microbatch)
        print(f"core {options.core}  d {width:4}  {tokens:9,.0f} tokens/s  {flops / 1e9:6.1f} GFLOP/s", flush=True)


if __name__ == "__main__":
    main()
