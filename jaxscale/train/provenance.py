"""What a result records that its spec does not: code, libraries, device, precision, machine."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np
import optax

import jaxscale

__all__ = ["describe_machine"]


def describe_machine(dtype: Any) -> dict[str, Any]:
    """Plain data about this process; `collect` refuses to mix runs whose kinds differ."""
    return {
        "jaxscale": jaxscale.__version__,
        "git_commit": _git_commit(),
        "jax": jax.__version__,
        "flax": flax.__version__,
        "optax": optax.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "platform": jax.default_backend(),
        "device_kind": jax.devices()[0].device_kind,
        "devices": len(jax.devices()),
        "threads": len(os.sched_getaffinity(0)),
        "precision": str(np.dtype(dtype)),
        "host": platform.node(),
    }


@lru_cache(maxsize=1)
def _git_commit() -> str:
    """Commit of the checkout the package lies in, with "+" when it has changes; empty outside git."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return ""
    try:
        commit = _git(root, "rev-parse", "--short=12", "HEAD")
        return commit + ("+" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()
