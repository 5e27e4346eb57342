"""The memory model beside what compilers report: the tables of docs/memory.md.

    JAX_PLATFORMS=cpu python tests/bench/memory_errors.py [cpu|tpu] [NUMBER ...]

cpu compiles for 8 host devices, float32; tpu for v5e through the topology API, bfloat16 (needs libtpu, and the
environment variables JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 TPU_WORKER_HOSTNAMES=localhost). Bytes are per device:
arguments, results that are no donated argument, and temporaries.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import jax
import jax.numpy as jnp

from jaxscale.config import ModelConfig
from jaxscale.layout import Layout
from jaxscale.memory import estimate_memory
from jaxscale.model.lowering import lower_layout
from jaxscale.train.sharding import layout_mesh
from jaxscale.train.step import Program

SLOTS = 2
PLAIN = ModelConfig(d_model=128, n_layers=6, head_dim=32, seq_len=128, vocab_size=512)
GATED = replace(PLAIN, mlp="swiglu", kv_groups=2)
CPU = [
    # these ten gave the model's constants
    (PLAIN, Layout(microbatch_seqs=8)),
    (PLAIN, Layout(microbatch_seqs=8, remat="dots")),
    (PLAIN, Layout(microbatch_seqs=8, remat="block")),
    (PLAIN, Layout(fsdp=4, microbatch_seqs=16)),
    (GATED, Layout(fsdp=4, microbatch_seqs=16, remat="block", head_chunks=2)),
    (GATED, Layout(fsdp=2, tensor=2, microbatch_seqs=16, remat="dots")),
    (replace(PLAIN, n_layers=12, d_model=256, head_dim=64), Layout(fsdp=4, microbatch_seqs=8, remat="block")),
    (replace(PLAIN, vocab_size=8192), Layout(microbatch_seqs=8, remat="block", head_chunks=8)),
    (replace(PLAIN, vocab_size=8192), Layout(microbatch_seqs=8, remat="block")),
    (replace(GATED, seq_len=512),
     Layout(data=2, context=2, microbatch_seqs=4, remat="block", attention="chunked", head_chunks=2)),
    # these did not
    (replace(PLAIN, d_model=64, n_layers=16, seq_len=256), Layout(fsdp=2, microbatch_seqs=4)),
    (replace(GATED, d_model=192, n_layers=8, vocab_size=2048),
     Layout(tensor=2, microbatch_seqs=4, remat="block", head_chunks=4)),
    (replace(PLAIN, mlp="relu2", n_layers=10), Layout(data=2, microbatch_seqs=16, remat="dots")),
    (GATED, Layout(fsdp=2, tensor=2, context=2, microbatch_seqs=8, remat="block")),
    (replace(PLAIN, vocab_size=8192), Layout(fsdp=8, microbatch_seqs=16, head_chunks=8)),
    (replace(GATED, d_model=256, head_dim=64, n_layers=5), Layout(fsdp=4, tensor=2, microbatch_seqs=16)),
]  # fmt: skip
SMALL = ModelConfig(d_model=512, n_layers=4, head_dim=64, kv_groups=2, mlp="swiglu", vocab_size=32768, seq_len=2048)
LARGER = replace(SMALL, d_model=1024, head_dim=128, n_layers=8)
TPU = [
    (LARGER, Layout(fsdp=4, microbatch_seqs=4, remat="dots", head_chunks=4)),
    (LARGER, Layout(fsdp=2, tensor=2, microbatch_seqs=4, remat="block", head_chunks=4)),
    (SMALL, Layout(tensor=2, context=2, microbatch_seqs=4, remat="block", head_chunks=4, attention="splash")),
    (SMALL, Layout(fsdp=4, microbatch_seqs=8, remat="none", head_chunks=4, attention="splash")),
    (SMALL, Layout(fsdp=2, context=2, microbatch_seqs=4, remat="dots", head_chunks=4, attention="chunked")),
    (replace(LARGER, n_layers=16), Layout(fsdp=16, microbatch_seqs=64, remat="dots", head_chunks=4,
                                          attention="splash")),
    (replace(LARGER, d_model=2048, n_layers=16), Layout(fsdp=8, tensor=2, microbatch_seqs=16, remat="block",
                                                        head_chunks=4, attention="splash")),
]  # fmt: skip


def measure(model: ModelConfig, layout: Layout, dtype: Any, devices: list[Any], platform: str) -> int:
    """Bytes per device of the compiled train program."""
    lowering = lower_layout(layout, model, "tpu")  # the program that the model is for, also on host devices
    program = Program(model, "cosine", SLOTS, layout_mesh(layout, devices), dtype, lowering=lowering)
    told = program.train(layout.microbatch_seqs).memory_analysis()
    results = told.output_size_in_bytes - told.alias_size_in_bytes
    return int(told.argument_size_in_bytes + results + told.temp_size_in_bytes)


def rows(kind: str, numbers: list[int]) -> Iterator[str]:
    cases, dtype = (CPU, jnp.float32) if kind == "cpu" else (TPU, jnp.bfloat16)
    for i in numbers or range(len(cases)):
        model, layout = cases[i]
        if kind == "cpu":
            devices = jax.devices()[: layout.chips]
        else:
            from jax.experimental import topologies

            name = "v5e:2x2" if layout.chips == 4 else "v5e:4x4"
            devices = list(topologies.get_topology_desc(platform="tpu", topology_name=name).devices)
        real = measure(model, layout, dtype, devices, kind)
        guess = estimate_memory(model, layout, jnp.dtype(dtype).name, slots=SLOTS).total
        shape = f"{model.mlp} d {model.d_model} L {model.n_layers} T {model.seq_len} V {model.vocab_size}"
        sizes = f"{real / 1e6:.1f} | {guess / 1e6:.1f} | {guess / real - 1:+.1%}"
        yield f"| {i} | {shape} | {layout.describe()} | {sizes} |"


if __name__ == "__main__":
    print("| | model | layout | compiler, MB | estimate, MB | error |\n| --- | --- | --- | --- | --- | --- |")
    for row in rows(sys.argv[1] if len(sys.argv) > 1 else "cpu", [int(n) for n in sys.argv[2:]]):
        print(row, flush=True)
