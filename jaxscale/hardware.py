"""Hardware by name: what one chip can do, with sources, and the rate a plan assumes of it.

A plan multiplies a chip's peak by an assumed utilization; on CPU it reads a saturating curve of width
measured on one core of a 2-core cloud machine (`python tests/bench/step_rate.py`): narrow models are held
back by the cost of each operation, not by arithmetic. `preflight` reads memory, bandwidths and links.

Sources, read on 2026-11-22. TPUs: the pages "TPU v4", "TPU v5e", "TPU v5p", "TPU v6e" and "TPU7x" of
docs.cloud.google.com/tpu/docs (peak, HBM, bandwidth, ports and bidirectional ICI bandwidth a chip; a link's one way
is that over twice the ports: v5e 400 GB/s over 4 ports is 50 GB/s). GPUs: NVIDIA data sheets of A100 80GB SXM, H100
SXM5 and H200 SXM (peak without sparsity, memory, NVLink both ways), and the network of the DGX of that generation
(one ConnectX-6 of 200 Gb/s or ConnectX-7 of 400 Gb/s a GPU).
"""

from __future__ import annotations

import glob
import os
from dataclasses import dataclass
from typing import Literal

from jaxscale.errors import MisuseError

__all__ = [
    "CHIPS",
    "CHIP_TABLE",
    "CHIP_WATTS",
    "Chip",
    "Hardware",
    "find_chip",
    "find_peak",
    "has_device_file",
    "parse_hardware",
]


@dataclass(frozen=True)
class Chip:
    """One accelerator: FLOP/s, bytes, bytes/s one way, US dollars."""

    name: str
    kind: Literal["tpu", "gpu"]
    flops_per_s: float
    """Peak dense bf16 FLOP/s."""
    hbm_bytes: float
    hbm_bytes_per_s: float
    link_bytes_per_s: float
    """One way: of one ICI link (TPU), of all NVLinks of a GPU together."""
    network_bytes_per_s: float
    """One way to another host: the GPU's share of the host's network cards; 0 for a TPU inside its slice."""
    torus: int = 0
    """Axes of the TPU's torus: a chip has a link each way along every axis."""
    ring: int = 0
    """An axis of the torus closes into a ring where its length is a multiple of this; a line otherwise."""
    devices: int = 1
    """Devices that JAX sees in a chip; they share its rates and its memory."""
    usd_per_hour: float | None = None
    """List price of a chip-hour on demand; None where none is published."""
    priced: str = ""
    """Whose price, and of when."""


GB = 1e9
GIB = 2.0**30
_GOOGLE = "Google Cloud TPU pricing, on demand, us regions, 2025"
_AWS = "AWS EC2 Capacity Blocks, US East, end of 2024"

CHIP_TABLE: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        Chip("v4", "tpu", 275e12, 32 * GIB, 1228 * GB, 50 * GB, 0, 3, 4, 1, 3.22, _GOOGLE),
        Chip("v5e", "tpu", 197e12, 16 * GIB, 819 * GB, 50 * GB, 0, 2, 16, 1, 1.20, _GOOGLE),
        Chip("v5p", "tpu", 459e12, 95 * GIB, 2765 * GB, 100 * GB, 0, 3, 4, 1, 4.20, _GOOGLE),
        Chip("v6e", "tpu", 918e12, 32 * GIB, 1638 * GB, 100 * GB, 0, 2, 16, 1, 2.70, _GOOGLE),
        Chip("tpu7x", "tpu", 2307e12, 192 * GIB, 7380 * GB, 100 * GB, 0, 3, 4, 2),
        Chip("a100", "gpu", 312e12, 80 * GIB, 2039 * GB, 300 * GB, 25 * GB, usd_per_hour=1.844, priced=_AWS),
        Chip("h100", "gpu", 989e12, 80 * GIB, 3352 * GB, 450 * GB, 50 * GB, usd_per_hour=4.916, priced=_AWS),
        Chip("h200", "gpu", 989e12, 141 * GB, 4800 * GB, 450 * GB, 50 * GB, usd_per_hour=5.408, priced=_AWS),
    )
}
"""Every chip by the name that targets and `--hardware` use; the TPUs' are those of the topology API. The price of
a100 is that of the 40 GB part."""

CHIPS: dict[str, float] = {name: chip.flops_per_s for name, chip in CHIP_TABLE.items()}
"""Peak dense bf16 FLOP/s of one chip."""

CHIP_WATTS: dict[str, float] = {"v4": 192.0, "a100": 400.0, "h100": 700.0, "h200": 700.0}
"""Most watts of one chip. Sources: NVIDIA A100 80GB SXM, H100 SXM and H200 SXM data sheets (thermal design
power); Jouppi et al. 2023, arXiv 2304.01433 (v4, the largest measured). The other TPUs' are not published."""

DEVICE_KINDS = {
    "tpu v4": "v4", "tpu v5 lite": "v5e", "tpu v5e": "v5e", "tpu v5": "v5p", "tpu v5p": "v5p", "tpu v6 lite": "v6e",
    "tpu v6e": "v6e", "tpu7x": "tpu7x", "nvidia a100": "a100", "nvidia h100": "h100", "nvidia h200": "h200",
}  # fmt: skip
"""How JAX's names of devices begin -> our names."""

DEVICES_PER_CHIP = {"tpu7x": 2}
"""JAX devices in one chip, where it is not one."""

ASSUMED_UTILIZATION = 0.4
"""Model FLOPs utilization that a plan assumes of an accelerator (PaLM and Llama 3 report .38 to .46)."""

CPU_PEAK_FLOPS, CPU_HALF_WIDTH = 68e9, 33.0
"""One core at large width, and the width at which half of that is reached; an assumption off this machine."""


@dataclass(frozen=True)
class Hardware:
    """A number of chips (CPU: cores) of one kind."""

    name: str
    chips: int

    def flops_per_s(self, d_model: int) -> float:
        """Assumed training FLOP/s of all chips together at this width."""
        if self.name == "cpu":
            return self.chips * CPU_PEAK_FLOPS * d_model / (d_model + CPU_HALF_WIDTH)
        return self.chips * CHIPS[self.name] * ASSUMED_UTILIZATION

    def describe(self) -> str:
        """The assumption in words."""
        if self.name == "cpu":
            return (f"{self.chips} CPU cores at {CPU_PEAK_FLOPS / 1e9:.0f} GFLOP/s * d/(d + {CPU_HALF_WIDTH:.0f}) "
                    "a core")  # fmt: skip
        return (f"{self.chips} x {self.name} at {CHIPS[self.name] / 1e12:.0f} TFLOP/s peak (bf16), "
                f"{ASSUMED_UTILIZATION:.0%} assumed utilization")  # fmt: skip


DEVICE_FILES = ("/dev/nvidia[0-9]*", "/dev/accel*", "/dev/vfio/[0-9]*", "/dev/kfd", "/dev/dxg")
"""Where Linux shows a GPU or TPU: NVIDIA, TPUs of two generations, AMD, a GPU under Windows."""


def has_device_file() -> bool:
    """Whether a device file hints at a GPU or TPU."""
    return any(glob.glob(pattern) for pattern in DEVICE_FILES)


def parse_hardware(text: str) -> Hardware:
    """NAME or NAME:CHIPS; `cpu` alone means the cores of this machine.

    >>> parse_hardware("v5e:256")
    Hardware(name='v5e', chips=256)
    """
    name, _, count = text.partition(":")
    if name not in CHIPS and name != "cpu":
        raise MisuseError(f"hardware: {name!r} is not known; use cpu, {', '.join(CHIPS)}, with :CHIPS behind it")
    default = len(os.sched_getaffinity(0)) if name == "cpu" else 1
    if count and (not count.isdigit() or int(count) < 1):
        raise MisuseError(f"hardware: {count!r} is not a number of chips; write for example {name}:8")
    return Hardware(name, int(count) if count else default)


def find_chip(device_kind: str) -> str | None:
    """The chip in CHIPS that JAX calls `device_kind`; None for one that is not in the table, a CPU among them.

    >>> find_chip("NVIDIA H100 80GB HBM3"), find_chip("TPU v5 lite"), find_chip("cpu")
    ('h100', 'v5e', None)
    """
    fits = [kind for kind in DEVICE_KINDS if device_kind.lower().startswith(kind)]
    name = DEVICE_KINDS[max(fits, key=len)] if fits else None
    return name if name in CHIPS else None


def find_peak(device_kind: str) -> float | None:
    """Peak dense bf16 FLOP/s of one JAX device; None for one that is not in the table.

    >>> find_peak("TPU v6e"), find_peak("cpu")
    (918000000000000.0, None)
    """
    name = find_chip(device_kind)
    return None if name is None else CHIPS[name] / DEVICES_PER_CHIP.get(name, 1)
