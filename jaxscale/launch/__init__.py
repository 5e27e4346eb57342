"""Grids on a cluster: pending cells as one Slurm job array, submitted once, followed through the queue."""

from jaxscale.launch.ledger import Launch, read_launches, read_task
from jaxscale.launch.propose import Proposal
from jaxscale.launch.settings import SlurmSettings, load_settings
from jaxscale.launch.submit import plan_launch, submit_launch

__all__ = [
    "Launch",
    "Proposal",
    "SlurmSettings",
    "load_settings",
    "plan_launch",
    "read_launches",
    "read_task",
    "submit_launch",
]
