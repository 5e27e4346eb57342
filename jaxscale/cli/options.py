"""Typed, strict options: a frozen dataclass per verb, parsed by tyro, with an example in every --help."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from jaxscale.config import Study
from jaxscale.errors import MisuseError
from jaxscale.study import load_study

__all__ = ["PlanOptions", "StudyOptions", "check_alone", "parse", "parse_study"]

T = TypeVar("T")


@dataclass(frozen=True)
class StudyOptions:
    """Options of every verb that reads a study file."""

    study: Annotated[Study, tyro.conf.arg(name="")]
    """Each field of the study can be overridden."""
    out: Path | None = None
    """Study folder; default runs/<name>. For `plan` also a FILE.json to write the plan to, for `data` the
    FILE.json to write the counts to."""

    @property
    def folder(self) -> Path:
        """Where the study lives."""
        return self.out or Path("runs") / self.study.name


@dataclass(frozen=True)
class PlanOptions(StudyOptions):
    """Options of `plan`."""

    next: int | None = None
    """Instead of the grid: up to this many next cells, by what narrows the forecast most per FLOP. STUDY.py's folder
    is runs/<name>; give the study folder itself for another. --out FILE.json: where the choice goes."""
    next_target: float | None = None
    """FLOPs whose forecast is to narrow; default the first of forecast_flops, else 10x the largest budget measured."""
    next_max_flops: float | None = None
    """Largest budget that a next cell may have; default a third of the target."""
    next_flops: float | None = None
    """Training FLOPs that the next cells may cost together; default no limit."""
    next_repeats: int | None = None
    """Most runs of one cell (size and tokens), those made included; default 4."""
    add: bool = False
    """With --next: put the cells into the study's plan, for `jaxscale train DIR --all`."""
    directory: Annotated[Path | None, tyro.conf.Suppress] = None
    """The study folder, where one was given in place of STUDY.py."""

    @property
    def folder(self) -> Path:
        """Where the study lives."""
        json_out = self.next is not None and self.out is not None and self.out.suffix == ".json"
        return self.directory or (None if json_out else self.out) or Path("runs") / self.study.name


def check_alone(options: PlanOptions) -> None:
    """MisuseError for an option that only --next reads."""
    for name in ("next_target", "next_max_flops", "next_flops", "next_repeats"):
        if getattr(options, name) is not None:
            raise MisuseError(f"--{name.replace('_', '-')}: is read only with --next K; give both")
    if options.add:
        raise MisuseError("--add: is read only with --next K; give both")


def parse(kind: type[T], argv: list[str], verb: str, about: str, default: Any = tyro.MISSING_NONPROP) -> T:
    """Parse argv into `kind`; tyro exits with 2 on misuse and proposes the nearest option."""
    return tyro.cli(
        kind,
        args=argv,
        prog=f"jaxscale {verb}",
        description=about,
        default=default,
        config=(tyro.conf.FlagCreatePairsOff, tyro.conf.HelptextFromCommentsOff),
    )


def parse_study(kind: type[T], argv: list[str], verb: str, about: str) -> T:
    """Parse `STUDY.py [overrides]`: the file gives the defaults, the options override them."""
    if not argv or argv[0].startswith("-"):
        if "-h" not in argv and "--help" not in argv:
            raise MisuseError(f"no study file given; usage: jaxscale {verb} configs/quickstart.py [--option value ...]")
        return parse(kind, argv, f"{verb} STUDY.py", about, kind(study=Study()))  # type: ignore[call-arg]
    study = load_study(argv[0])
    return parse(kind, argv[1:], f"{verb} {argv[0]}", about, kind(study=study))  # type: ignore[call-arg]


def is_terminal() -> bool:
    """Whether a person watches stdout."""
    return sys.stdout.isatty()
