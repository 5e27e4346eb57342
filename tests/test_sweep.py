"""Which job next: longest first, a compiled shape where it costs little."""

from dataclasses import replace

from jaxscale.config import Study
from jaxscale.plan import plan_isoflop
from jaxscale.sweep import Job, next_job, shape

JOBS = [Job((cell,)) for cell in plan_isoflop(Study(), train_tokens=1e7).cells]


def test_longest_job_goes_first() -> None:
    order, waiting = [], list(JOBS)
    while waiting:
        order.append(next_job(waiting, set()))
        waiting.remove(order[-1])
    assert [job.seconds for job in order] == sorted((job.seconds for job in JOBS), reverse=True)


def test_compiled_shape_is_preferred_only_when_nearly_as_long() -> None:
    long, near, short = (
        Job((replace(job.cells[0], seconds=s),)) for job, s in zip(JOBS, (10.0, 8.0, 1.0), strict=False)
    )
    assert next_job([long, near, short], {shape(near.cells[0])}) is near
    assert next_job([long, near, short], {shape(short.cells[0])}) is long


def test_a_job_is_as_long_as_its_cells_together() -> None:
    first, second = JOBS[0].cells[0], JOBS[1].cells[0]
    assert Job((first, second), "pack").seconds == first.seconds + second.seconds
