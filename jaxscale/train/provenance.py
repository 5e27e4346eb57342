"""What a result records that its spec does not: code, libraries, device, precision, machine."""

from __future__ import annotations

import os
import platform
from typing import Any

import flax
import jax
import numpy as np
import optax

import jaxscale
from jaxscale.checkout import code_commit

__all__ = ["describe_machine"]


def describe_machine(dtype: Any, precision: str = "mesh") -> dict[str, Any]:
    """Plain data about this process and a run of this recipe.precision that computes in `dtype`; `collect` refuses to
    mix runs whose kinds differ."""
    return {
        "jaxscale": jaxscale.__version__,
        "git_commit": code_commit(),
        "jax": jax.__version__,
        "flax": flax.__version__,
        "optax": optax.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "platform": jax.default_backend(),
        "device_kind": jax.devices()[0].device_kind,
        "devices": len(jax.devices()),
        "threads": len(os.sched_getaffinity(0)),
        "precision": f"int8 in {np.dtype(dtype)}" if precision == "int8" else str(np.dtype(dtype)),
        "host": platform.node(),
    }
