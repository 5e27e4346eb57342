"""Seconds of CPU to compile the train step against depth: under scan they do not grow (docs/memory.md).

JAX_PLATFORMS=cpu python tests/bench/compile_depth.py [scan|unroll] [DEPTH ...]
"""

from __future__ import annotations

import sys
import time

import jax
import jax.numpy as jnp

from jaxscale.config import MeshConfig, ModelConfig
from jaxscale.model.lowering import Lowering
from jaxscale.train.sharding import make_mesh
from jaxscale.train.step import Program


def measure(depth: int, unroll: bool) -> tuple[float, int]:
    """(CPU seconds from nothing to a compiled step, lines of its HLO)."""
    model = ModelConfig(d_model=64, n_layers=depth, head_dim=16, seq_len=64, vocab_size=256)
    begun = time.process_time()
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    program = Program(model, "cosine", 2, mesh, jnp.float32, lowering=Lowering(unroll=unroll))
    compiled = program.train(2)
    return time.process_time() - begun, compiled.as_text().count("\n")


if __name__ == "__main__":
    kind, depths = (sys.argv[1] if len(sys.argv) > 1 else "scan"), [int(n) for n in sys.argv[2:]] or [4, 8, 16, 32, 64]
    measure(2, False)  # what the first program of a process pays
    for depth in depths:
        seconds, lines = measure(depth, kind == "unroll")
        print(f"{kind}, {depth} layers: {seconds:.1f} s, {lines} lines of HLO", flush=True)
