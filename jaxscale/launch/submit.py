"""Study folder -> one job array over its pending cells, each cell in at most one job at a time.

A launcher holds `launches/lock` from the question to the answer: it reads the states, asks the queue by the names of
all earlier jobs, writes the record of the new one, and only then calls sbatch. Killed anywhere in between, the next
launcher finds the job by the name in that record, or finds that there is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jaxscale.errors import MisuseError, VerdictError
from jaxscale.launch.ledger import (
    Launch,
    create_launch,
    hold_launches,
    launch_file,
    make_launch,
    read_launches,
    update_launch,
)
from jaxscale.launch.propose import Proposal, propose_launch
from jaxscale.launch.queue import ask_queue, has_slurm, need_slurm, send_script
from jaxscale.launch.script import render_script
from jaxscale.launch.settings import SlurmSettings
from jaxscale.plain import to_plain, write_json
from jaxscale.sweep import read_plan

__all__ = ["plan_launch", "submit_launch"]


def plan_launch(study_dir: Path, settings: SlurmSettings) -> tuple[Proposal, str]:
    """What a launch would submit now, and its script; submits and writes nothing, and works without Slurm."""
    launches = read_launches(study_dir)
    proposal = propose_launch(study_dir, settings, launches, has_slurm())
    number = _next_number(launches)
    name = make_launch(study_dir, proposal.plan.study, number, (), {}, 0.0).job_name
    return proposal, render_script(settings, study_dir, number, max(1, len(proposal.tasks)), name)


def submit_launch(study_dir: Path, settings: SlurmSettings) -> tuple[Proposal, Launch | None]:
    """Submit one array over the pending cells; None where there is nothing to submit.

    VerdictError where the queue does not answer or sbatch refuses; then nothing of this launch is queued.
    """
    study_dir = Path(study_dir)
    read_plan(study_dir)
    need_slurm()
    with hold_launches(study_dir) as lock:
        launches = _settle(study_dir, read_launches(study_dir))
        proposal = propose_launch(study_dir, settings, launches, asks=True)
        if not proposal.tasks:
            return proposal, None
        launch = make_launch(
            study_dir, proposal.plan.study, _next_number(launches), proposal.ids, to_plain(settings),
            proposal.costs.submitted,
        )  # fmt: skip
        script = render_script(settings, study_dir, launch.number, len(launch.tasks), launch.job_name)
        if not create_launch(study_dir, launch):
            raise MisuseError(f"{launch_file(study_dir, launch.number)}: another launcher wrote it, unseen by this "
                              f"file system's locks; launch again when it is done")  # fmt: skip
        write_json(launch_file(study_dir, launch.number, "sh"), script)
        (study_dir / "logs").mkdir(exist_ok=True)
        return proposal, _send(study_dir, launch, lock)


def _next_number(launches: Sequence[Launch]) -> int:
    return max((launch.number for launch in launches), default=0) + 1


def _send(study_dir: Path, launch: Launch, lock: int) -> Launch:
    """Call sbatch; where it failed the queue says whether the job is there all the same (an answer that got lost)."""
    try:
        job_id = send_script(Path(launch.script), lock)
    except VerdictError as error:
        there = ask_queue([launch.job_name])
        if not there:
            update_launch(study_dir, launch, state="refused", reason=str(error))
            raise VerdictError(f"{error}; nothing was submitted, mend the settings and launch again") from error
        job_id = there[0].job_id
    return update_launch(study_dir, launch, state="submitted", job_id=job_id)


def _settle(study_dir: Path, launches: Sequence[Launch]) -> list[Launch]:
    """The launches, those whose job's number was never written down as the queue shows them now."""
    unknown = [launch.job_name for launch in launches if launch.state != "submitted"]
    found = {task.job_name: task.job_id for task in ask_queue(unknown)}
    settled = []
    for launch in launches:
        if launch.job_name in found:
            launch = update_launch(study_dir, launch, state="submitted", job_id=found[launch.job_name],
                                   reason="its launcher ended before it wrote the job's number")  # fmt: skip
        elif launch.state == "submitting":
            launch = update_launch(study_dir, launch, state="lost", reason="its launcher ended before it wrote the "
                                   "job's number, and no job of that name is in the queue")  # fmt: skip
        settled.append(launch)
    return settled
