"""Hardware that is not here: `v5e:16x16` or `h100:16x8` -> chips, and what JAX's topology API is asked for.

A TPU target is the chip and the shape of its slice, as the topology API names it (v5p:16x16x24 is 6144 chips).
A GPU target is the GPU and hosts x GPUs a host; its properties are the text of gpus/NAME.txtpb.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from math import prod
from typing import Any

from jaxscale.errors import MisuseError
from jaxscale.hardware import CHIP_TABLE, Chip

__all__ = ["GPU_RESERVE", "Target", "parse_target", "read_target_config"]

AXES = {"v4": 3, "v5e": 2, "v5p": 3, "v6e": 2, "tpu7x": 3}
"""Numbers in a TPU slice's shape."""
HOST = 2
"""A TPU host holds 2 x 2 chips: the first two numbers are even, or all are 1 (one chip)."""
GPU_RESERVE = 0.08
"""Share of a GPU's memory left to the CUDA context, NCCL's buffers and fragments; assumed. A TPU's compiler keeps
its own reserve and refuses what does not fit."""


@dataclass(frozen=True)
class Target:
    """A slice or a cluster of one kind of chip."""

    name: str
    chip: Chip
    shape: tuple[int, ...]
    """TPU: chips along each axis of the torus. GPU: hosts, GPUs a host."""

    @property
    def chips(self) -> int:
        return prod(self.shape)

    @property
    def devices(self) -> int:
        """Devices that JAX sees; a program is cut over these."""
        return self.chips * self.chip.devices

    @property
    def usable_bytes(self) -> float:
        """Memory of one device that a program may take."""
        return self.chip.hbm_bytes / self.chip.devices * (1 - GPU_RESERVE if self.chip.kind == "gpu" else 1)

    @property
    def backend(self) -> str:
        """What `platform` says of its devices: tpu or gpu."""
        return self.chip.kind

    def topology(self) -> dict[str, Any]:
        """Arguments of `jax.experimental.topologies.get_topology_desc`."""
        if self.chip.kind == "gpu":
            shape = "x".join(map(str, (1, *self.shape)))
            return {"platform": "cuda", "topology_name": self.chip.name, "topology": shape,
                    "target_config": read_target_config(self.chip.name)}  # fmt: skip
        wanted: dict[str, Any] = {
            "platform": "tpu",
            "topology_name": f"{self.chip.name}:{'x'.join(map(str, self.shape))}",
        }
        if self.chips == 1:
            wanted["chips_per_host_bounds"] = (1, 1, 1)
        if self.chip.name == "v4":
            wanted["chip_config_name"] = "megacore"  # both cores of a chip as one device, as v4 trains
        return wanted


def parse_target(text: str) -> Target:
    """NAME:SHAPE; MisuseError for a chip or a shape that does not exist.

    >>> parse_target("v5e:16x16").chips, parse_target("h100:16x8").shape
    (256, (16, 8))
    """
    name, _, shape = text.partition(":")
    chip = CHIP_TABLE.get(name)
    if chip is None:
        raise MisuseError(f"--target: {name!r} is no chip known here; use {', '.join(CHIP_TABLE)}, as in v5e:16x16 "
                          f"or h100:16x8")  # fmt: skip
    sizes = shape.split("x")
    if not all(size.isdecimal() and int(size) > 0 for size in sizes):
        raise MisuseError(f"--target: {shape!r} is no shape of {name}; write {_example(chip)}")
    numbers = tuple(int(size) for size in sizes)
    wanted = AXES.get(name, 2)
    if len(numbers) != wanted:
        raise MisuseError(
            f"--target: {text!r} has {len(numbers)} numbers and {name} takes {wanted}; write {_example(chip)}"
        )
    if chip.kind == "tpu" and prod(numbers) > 1 and any(size % HOST for size in numbers[:2]):
        raise MisuseError(f"--target: {text!r} does not divide into hosts of 2 x 2 chips; write {_example(chip)}")
    return Target(text, chip, numbers)


def _example(chip: Chip) -> str:
    if chip.kind == "gpu":
        return f"{chip.name}:16x8 for 16 hosts of 8 GPUs"
    return f"{chip.name}:{'4x4x4 for 64' if AXES[chip.name] == 3 else '4x4 for 16'} chips"


def read_target_config(name: str) -> str:
    """The text of a GPU's target config, without its comments (XLA's parser takes them too; plugins may not)."""
    text = files("jaxscale.preflight").joinpath("gpus", f"{name}.txtpb").read_text()
    return "\n".join(line.split("#")[0].rstrip() for line in text.splitlines() if line.split("#")[0].strip())
