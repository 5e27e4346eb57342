"""A training step of ours beside peers, in one run: who takes part, and in which environment.

    jaxscale        the program of `jaxscale train` on all devices, in the environment of our workers
    nanodo          NanoDO's model and loss, optax.adamw, one jitted step with donated state, as shipped
    nanodo_malloc   the same with our allocator settings (CPU only)
    nanogpt         nanoGPT on PyTorch, as many threads as cores

Peers are built from their public checkouts, at the same width, layers, heads, batch, length and vocabulary. What they
leave out, they are not charged for: NanoDO and nanoGPT have neither gradient clipping here nor QK-norm, and one matrix
for table and head.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jaxscale
from jaxscale.bench import peers
from jaxscale.bench.contest import Contestant, hold_contest
from jaxscale.bench.result import OURS, Bench, compare_turns
from jaxscale.bench.shapes import Shape
from jaxscale.checkout import code_commit, folder_commit
from jaxscale.config import MeshConfig
from jaxscale.errors import MisuseError
from jaxscale.resolve import describe_run
from jaxscale.runs import RunSpec
from jaxscale.train.pool import count_workers
from jaxscale.train.seats import CPU_ENVIRONMENT, seat_worker

__all__ = ["bench_step", "check_checkout", "list_contestants", "our_environment", "peer_environment"]

HOMES = {"nanodo": ("nanodo/model.py", "github.com/google-deepmind/nanodo"),
         "nanogpt": ("model.py", "github.com/karpathy/nanoGPT")}  # fmt: skip
"""A file that tells a peer's checkout, and where it comes from."""

ALLOCATOR = {name: value for name, value in CPU_ENVIRONMENT.items() if name.startswith("MALLOC_")}


def bench_step(
    shapes: Sequence[Shape], checkouts: Mapping[str, Path] | None = None, *, torch_python: str = sys.executable,
    rounds: int = 7, seconds: float = 1.0, loop: bool = False, mesh: MeshConfig | None = None,
    on_turn: Callable[[str], None] = lambda name: None,
) -> Bench:  # fmt: skip
    """Time `shapes`, one after another, beside the peers whose checkouts are given ("nanodo", "nanogpt").

    A contestant's turn lasts about `seconds`; `loop` also times our training loop. `on_turn` hears a name when a
    contestant is ready and after each turn. MisuseError for a checkout that is none, and where torch is missing.
    """
    checkouts = {name: check_checkout(name, folder) for name, folder in (checkouts or {}).items()}
    if "nanogpt" in checkouts and shutil.which(torch_python) is None:
        raise MisuseError(f"--torch-python: {torch_python} is no program that can be run; name an interpreter that has "
                          f"torch, or leave --nanogpt out")  # fmt: skip
    rows = []
    for shape in shapes:
        with tempfile.TemporaryDirectory() as folder:
            asked = list_contestants(shape, checkouts, torch_python, Path(folder), loop, mesh or MeshConfig())
            about, turns = hold_contest(asked, rounds, seconds, on_turn)
        rows.append(compare_turns(shape, about, turns))
    return Bench(tuple(rows), describe(checkouts) | {"device": rows[0].about["device"] if rows else ""})


def check_checkout(name: str, folder: Path) -> Path:
    """The folder, where it holds what tells the peer's checkout; MisuseError says what is missing."""
    file, origin = HOMES[name]
    if not (folder / file).is_file():
        raise MisuseError(f"--{name}: {folder} holds no {file}; give a checkout of {origin}, or leave it out")
    return folder.resolve()


def list_contestants(
    shape: Shape, checkouts: Mapping[str, Path], torch_python: str, folder: Path, loop: bool, mesh: MeshConfig
) -> list[Contestant]:
    """Who takes part, ours first."""
    on_cpu = count_workers(MeshConfig())[1]
    order = asdict(shape) | {"dtype": "float32" if on_cpu else "bfloat16", "threads": len(os.sched_getaffinity(0))}
    own = order | {"mesh": asdict(mesh), "loop": loop, "folder": str(folder)}
    words = (sys.executable, "-m", "jaxscale.bench.ours", json.dumps(own))
    environment = our_environment(on_cpu) | (_sit(shape.resolve(1), mesh) if on_cpu else {})
    found = [Contestant(OURS, words, environment, ("step", "loop") if loop else ("step",))]
    as_shipped = peer_environment(on_cpu)
    interpreters = {"nanodo": sys.executable, "nanogpt": torch_python}
    for name, checkout in checkouts.items():
        its = json.dumps(order | {"checkout": str(checkout)})
        command = (interpreters[name], peers.__file__, name, its)
        found.append(Contestant(name, command, as_shipped))
        if name == "nanodo" and on_cpu:
            found.append(Contestant("nanodo_malloc", command, as_shipped | ALLOCATOR))
    return found


def our_environment(on_cpu: bool) -> dict[str, str]:
    """The peers' environment, with jaxscale found where this one lies."""
    paths = [str(Path(jaxscale.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return peer_environment(on_cpu) | {"PYTHONPATH": os.pathsep.join(paths)}


def _sit(spec: RunSpec, mesh: MeshConfig) -> dict[str, str]:
    """What the pool gives a worker that trains this one run, all cores its own."""
    seat = seat_worker(0, 1, mesh, [describe_run(spec)]).environment()
    return {name: seat[name] for name in ("XLA_FLAGS", *CPU_ENVIRONMENT)}


def peer_environment(on_cpu: bool) -> dict[str, str]:
    """This process's environment without allocator settings; contestants on an accelerator share its memory."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    return plain | ({"JAX_PLATFORMS": "cpu"} if on_cpu else {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"})


def describe(checkouts: Mapping[str, Path]) -> dict[str, Any]:
    """The machine and the versions."""
    commits = {name: folder_commit(folder) for name, folder in checkouts.items()}
    return {"host": platform.node(), "cores": len(os.sched_getaffinity(0)), "load": os.getloadavg()[0],
            "jaxscale": jaxscale.__version__, "git_commit": code_commit(), "peers": commits}  # fmt: skip
