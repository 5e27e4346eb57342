"""Benchmarks: a training step beside peers, the loop over the bare step, a whole grid beside a plain loop."""

from jaxscale.bench.contest import Contestant, Turn, hold_contest
from jaxscale.bench.result import Bench, Row, compare_turns
from jaxscale.bench.shapes import DEFAULT_SHAPES, Shape, parse_shape
from jaxscale.bench.step import bench_step

__all__ = [
    "DEFAULT_SHAPES",
    "Bench",
    "Contestant",
    "Row",
    "Shape",
    "Turn",
    "bench_step",
    "compare_turns",
    "hold_contest",
    "parse_shape",
]
