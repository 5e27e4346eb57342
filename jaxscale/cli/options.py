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

__all__ = ["StudyOptions", "parse", "parse_study"]

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
