"""One program to compile for hardware that is not here, and what comes of it: figures, or a reason in one line.

The compile runs in a child process with an environment of its own: JAX on CPU, no metadata server, no other devices.
A child that dies, is refused by the compiler or takes too long gives a `Refused`, never an exception.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from jaxscale.config import ModelConfig
from jaxscale.errors import MisuseError
from jaxscale.layout import Layout
from jaxscale.plain import write_json
from jaxscale.preflight.targets import Target

__all__ = ["INSTALL", "Compiled", "Job", "Refused", "Sent", "check_plugin", "compile_job"]

INSTALL = "pip install 'jaxscale[preflight]'"
PLUGINS = {"tpu": "libtpu", "gpu": "jax_plugins.xla_cuda12"}
"""Module that compiles for each kind of chip."""

ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no lock file: nobody else wants these chips
    "CUDA_VISIBLE_DEVICES": "",
    "TF_CPP_MIN_LOG_LEVEL": "2",
}

UNITS = {"": 1.0, "K": 2.0**10, "M": 2.0**20, "G": 2.0**30, "T": 2.0**40}


@dataclass(frozen=True)
class Job:
    """A training program: everything that its compiled form depends on."""

    target: str
    model: ModelConfig
    layout: Layout
    schedule: str = "cosine"
    optimizer: str = "adamw"
    averages: bool = False


@dataclass(frozen=True)
class Sent:
    """Collectives of one kind among groups of one form, in one step: bytes of a device."""

    kind: str
    size: int
    """Devices of a group."""
    span: tuple[int, ...]
    """TPU: how many places a group takes along each axis of the torus. GPU: hosts, GPUs in each."""
    times: int
    payload_bytes: float
    """Whole buffers of the group."""
    sent_bytes: float

    def scale(self, times: int) -> Sent:
        """All of it so many times."""
        return replace(self, times=self.times * times, payload_bytes=self.payload_bytes * times,
                       sent_bytes=self.sent_bytes * times)  # fmt: skip


@dataclass(frozen=True)
class Compiled:
    """What the compiler says of one device, and what the program's text holds; bytes, seconds."""

    argument_bytes: float
    output_bytes: float
    alias_bytes: float
    """Part of the output that takes the place of arguments."""
    temp_bytes: float
    code_bytes: float
    step_moved_bytes: float
    """Read from and written to main memory once a step, and for every microbatch."""
    microbatch_moved_bytes: float
    step_operations: float
    """Instructions run once a step, and for every microbatch."""
    microbatch_operations: float
    step_sent: tuple[Sent, ...]
    """Collectives made once a step, and for every microbatch."""
    microbatch_sent: tuple[Sent, ...]
    compile_s: float

    @property
    def total_bytes(self) -> float:
        return self.argument_bytes + self.output_bytes - self.alias_bytes + self.temp_bytes + self.code_bytes

    def moved_bytes(self, microbatches: int) -> float:
        """Memory traffic of a step of so many microbatches."""
        return self.step_moved_bytes + microbatches * self.microbatch_moved_bytes

    def operations(self, microbatches: int) -> float:
        """Instructions run in a step of so many microbatches."""
        return self.step_operations + microbatches * self.microbatch_operations

    def sent(self, microbatches: int) -> tuple[Sent, ...]:
        """Collectives of a step of so many microbatches."""
        return (*self.step_sent, *(one.scale(microbatches) for one in self.microbatch_sent))


@dataclass(frozen=True)
class Refused:
    """Why there is no program."""

    kind: str
    """memory, compiler, crash or timeout."""
    reason: str
    needed_bytes: float | None = None
    """What the compiler would have needed on a chip, where it says so."""
    compile_s: float = 0.0


def check_plugin(target: Target) -> None:
    """MisuseError, with the command to run, where what compiles for this target is not installed."""
    try:
        found = importlib.util.find_spec(PLUGINS[target.chip.kind])
    except ModuleNotFoundError:
        found = None
    if found is None:
        raise MisuseError(f"--target: compiling for {target.name} needs {PLUGINS[target.chip.kind].split('.')[-1]}, "
                          f"which is not installed; run {INSTALL}")  # fmt: skip


def compile_job(job: Job, *, timeout_s: float, cache: Path | None = None) -> Compiled | Refused:
    """Compile in a child process; an answer found in `cache` is taken from there."""
    kept = cache / f"{_key(job)}.json" if cache else None
    if kept is not None and kept.exists():
        return _read(json.loads(kept.read_text()))
    started = time.monotonic()
    answer = _run_child(job, timeout_s)
    answer.setdefault("compile_s", time.monotonic() - started)
    if kept is not None and answer.get("kind") not in ("crash", "timeout"):
        write_json(kept, json.dumps(answer))
    return _read(answer)


def _run_child(job: Job, timeout_s: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "answer.json"
        command = [sys.executable, "-m", "jaxscale.preflight.child", str(out)]
        environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        try:
            done = subprocess.run(command, input=json.dumps(asdict(job)), text=True, capture_output=True,
                                  env=environment, timeout=timeout_s)  # fmt: skip
        except subprocess.TimeoutExpired:
            return {"kind": "timeout", "reason": f"not compiled within {timeout_s:g} s; give --timeout more"}
        if out.exists():
            answer: dict[str, Any] = json.loads(out.read_text())
            return answer if "reason" not in answer else {**answer, **_classify(answer["reason"])}
        return {"kind": "crash", "reason": f"the compiler died (exit {done.returncode}): {_last_words(done.stderr)}"}


def _classify(reason: str) -> dict[str, Any]:
    """Kind, one line, and the bytes that were wanting.

    >>> _classify("RESOURCE_EXHAUSTED: Ran out of memory. Used 23.42G of 15.75G hbm. Exceeded by 7.67G.")["kind"]
    'memory'
    """
    words = " ".join(reason.split())
    memory = "RESOURCE_EXHAUSTED" in words or "out of memory" in words.lower()
    found = re.search(
        r"Used ([\d.]+)([KMGT]?) of|temporaries \(([\d.]+)([KMGT]?)\)|memory requirement of ([\d.]+)([KMGT]?)", words
    )
    needed = None
    if found:
        number, unit = [part for part in found.groups() if part is not None][:2]
        needed = float(number) * UNITS[unit]
    return {"kind": "memory" if memory else "compiler", "reason": words[:240], "needed_bytes": needed}


def _last_words(stderr: str) -> str:
    lines = [
        line for line in stderr.splitlines() if line.strip() and not line.startswith(("WARNING", "I0000", "W0000"))
    ]
    return " ".join(lines[-1].split())[:200] if lines else "without a word"


def _read(answer: dict[str, Any]) -> Compiled | Refused:
    if "reason" in answer:
        return Refused(answer["kind"], answer["reason"], answer.get("needed_bytes"), answer["compile_s"])
    sent = {name: tuple(Sent(**{**row, "span": tuple(row["span"])}) for row in answer[name])
            for name in ("step_sent", "microbatch_sent")}  # fmt: skip
    return Compiled(**{**answer, **sent})


def _key(job: Job) -> str:
    """Changes with the request, the code that builds the program, and the compilers."""
    plain = json.dumps([asdict(job), _fingerprint()], sort_keys=True)
    return hashlib.sha256(plain.encode()).hexdigest()[:24]


@lru_cache(maxsize=1)
def _fingerprint() -> str:
    from importlib.metadata import PackageNotFoundError, version

    package = Path(__file__).parents[1]
    rooms = [
        package / name for name in ("model", "train", "preflight", "axes.py", "config.py", "layout.py", "params.py")
    ]
    files = sorted(path for room in rooms for path in ([room] if room.is_file() else room.rglob("*"))
                   if path.suffix in (".py", ".txtpb"))  # fmt: skip
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in files))
    for name in ("jax", "jaxlib", "libtpu", "jax-cuda12-pjrt"):
        try:
            digest.update(version(name).encode())
        except PackageNotFoundError:
            continue
    return digest.hexdigest()
