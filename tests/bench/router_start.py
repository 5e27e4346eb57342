"""Slopes of a coordinate check over seeds, for the router's rule and for one taken from hidden matrices.

    JAX_PLATFORMS=cpu .venv/bin/python tests/bench/router_start.py [OPTIMIZER]

Six seeds at widths 64, 128, 256: 4 experts of which 2 are chosen, one layer. The rule starts a router at sigma/w; the
slip starts it at sigma/sqrt(w), as a hidden matrix. docs/architectures.md has the figures.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxscale.config import MeshConfig, ModelConfig, Recipe, Study
from jaxscale.model import decoder
from jaxscale.model.mup import param_rules
from jaxscale.mup import measure
from jaxscale.mup.batch import random_windows
from jaxscale.mup.check import default_rate
from jaxscale.train.sharding import make_mesh
from jaxscale.train.step import Program

WIDTHS, SEEDS = (64, 128, 256), range(6)
SHOWN = (
    ("change", "router logits"), ("change", "MLP out"), ("change", "residual stream"), ("change", "attention out"),
    ("change", "logits"), ("update", "router"), ("gradient", "router"),
)  # fmt: skip
MODEL = ModelConfig(n_layers=1, head_dim=8, vocab_size=64, n_experts=4)


def slip(model: ModelConfig, *args: Any) -> Any:
    """The rules, but for a router that starts as a hidden matrix does."""
    rules, w = param_rules(model, *args), model.d_model / model.base_d_model
    router = rules["blocks.w_router"]
    return rules | {"blocks.w_router": replace(router, init_std=router.init_std * w**0.5)}


def main() -> None:
    optimizer = sys.argv[1] if len(sys.argv) > 1 else "adamw"
    study = Study(model=MODEL, recipe=Recipe(optimizer=optimizer))  # type: ignore[arg-type]
    windows = jnp.asarray(random_windows(study, 4))
    for name, rules in (("sigma/w", param_rules), ("sigma/sqrt(w)", slip)):
        decoder.param_rules = rules
        sizes = []
        for width in WIDTHS:
            model = replace(MODEL, d_model=width)
            program = Program(model, "cosine", 1, make_mesh(MeshConfig(), jax.devices()[:1]), jnp.float32, optimizer)
            run = jax.jit(partial(measure._measure, program, study.recipe, default_rate(model, optimizer)),
                          compiler_options={"xla_backend_optimization_level": 0})  # fmt: skip
            sizes.append([jax.device_get(run(jnp.uint32(seed), windows)) for seed in SEEDS])
        for key in SHOWN:
            grid = np.log2([[float(one[key]) for one in row] for row in sizes])
            slopes = np.polyfit(np.log2(WIDTHS), grid, 1)[0]
            print(
                f"{name:14} {key[0]:9} {key[1]:16} mean {slopes.mean():+.2f}   deviation over seeds {slopes.std():.2f}"
            )


if __name__ == "__main__":
    main()
