"""Which cell next: longest first, a compiled shape where it costs little."""

from dataclasses import replace

from jaxscale.config import Study
from jaxscale.plan import plan_isoflop
from jaxscale.sweep import next_cell, shape

CELLS = plan_isoflop(Study(), train_tokens=1e7).cells


def test_longest_cell_goes_first() -> None:
    order, waiting = [], list(CELLS)
    while waiting:
        order.append(next_cell(waiting, set()))
        waiting.remove(order[-1])
    assert [c.seconds for c in order] == sorted((c.seconds for c in CELLS), reverse=True)


def test_compiled_shape_is_preferred_only_when_nearly_as_long() -> None:
    long, near, short = (replace(cell, seconds=s) for cell, s in zip(CELLS, (10.0, 8.0, 1.0), strict=False))
    assert next_cell([long, near, short], {shape(near)}) is near
    assert next_cell([long, near, short], {shape(short)}) is long
