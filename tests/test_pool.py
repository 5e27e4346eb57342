"""The pool of workers: a cell that kills its worker three times ends as failed, the others are not held up."""

from dataclasses import replace
from pathlib import Path

from tiny import make_study

from jaxscale.plan import describe_run, plan_isoflop
from jaxscale.runs import write_json
from jaxscale.sweep import read_plan, read_status
from jaxscale.train.pool import MAX_ATTEMPTS, train_cells


def test_cell_that_kills_its_worker_ends_as_failed_with_its_last_words(tmp_path: Path) -> None:
    planned = plan_isoflop(make_study(tmp_path), train_tokens=1e5)
    good = planned.cells[4]
    broken = describe_run(replace(good.spec, batch_seqs=9))  # not a whole number of microbatches: the loop raises
    planned = replace(planned, cells=(good, replace(broken, seconds=1.0)))
    write_json(tmp_path / "study" / "plan.json", planned.to_json())
    events: list[dict[str, object]] = []
    train_cells(tmp_path / "study", planned.cells, make_study(tmp_path).mesh, events.append)
    done, failed = read_status(tmp_path / "study", read_plan(tmp_path / "study").cells)
    assert done.state == "done"
    assert failed.state == "failed" and f"({MAX_ATTEMPTS} attempts)" in failed.reason and "Error" in failed.reason
    assert sum(event["event"] == "died" for event in events) == MAX_ATTEMPTS - 1
