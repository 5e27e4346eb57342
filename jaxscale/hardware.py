"""Hardware by name: peak rates with their sources, and the rate a plan assumes of it.

A plan multiplies a chip's peak by an assumed utilization; on CPU it reads a saturating curve of width
measured on one core of a 2-core cloud machine (`python tests/bench/step_rate.py`): narrow models are held
back by the cost of each operation, not by arithmetic.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from jaxscale.errors import MisuseError

__all__ = ["CHIPS", "CHIP_WATTS", "Hardware", "parse_hardware"]

CHIPS: dict[str, float] = {
    "v4": 275e12,
    "v5e": 197e12,
    "v5p": 459e12,
    "v6e": 918e12,
    "a100": 312e12,
    "h100": 989e12,
    "h200": 989e12,
}
"""Peak dense bf16 FLOP/s of one chip. Sources: Google Cloud TPU system-architecture pages (v4, v5e, v5p,
v6e); NVIDIA A100, H100 SXM and H200 data sheets, without sparsity."""

CHIP_WATTS: dict[str, float] = {"v4": 192.0, "a100": 400.0, "h100": 700.0, "h200": 700.0}
"""Most watts of one chip. Sources: NVIDIA A100 80GB SXM, H100 SXM and H200 SXM data sheets (thermal design
power); Jouppi et al. 2023, arXiv 2304.01433 (v4, the largest measured). The other TPUs' are not published."""

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
