"""Compile for a pod without the pod: memory, collectives, step time and cost of a study's programs."""

from jaxscale.preflight.check import Settings, check_subject, check_subjects, list_layouts
from jaxscale.preflight.job import Compiled, Job, Refused, check_plugin, compile_job
from jaxscale.preflight.result import Preflight
from jaxscale.preflight.roofline import assumptions
from jaxscale.preflight.subjects import Subject, find_flagship, list_cells, own_run, read_flagship
from jaxscale.preflight.targets import Target, parse_target

__all__ = [
    "Compiled",
    "Job",
    "Preflight",
    "Refused",
    "Settings",
    "Subject",
    "Target",
    "assumptions",
    "check_plugin",
    "check_subject",
    "check_subjects",
    "compile_job",
    "find_flagship",
    "list_cells",
    "list_layouts",
    "own_run",
    "parse_target",
    "read_flagship",
]
