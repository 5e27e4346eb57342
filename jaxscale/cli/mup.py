"""The verb `mup`: rules prints the parameterization of a model, check says whether this code obeys it; sweep and
audit have modules of their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from jaxscale.cli.options import parse
from jaxscale.config import Study
from jaxscale.errors import MisuseError
from jaxscale.limits import check_limits
from jaxscale.study import load_study

__all__ = ["mup"]

USAGE = """usage: jaxscale mup rules [STUDY.py] [--width W] [--depth L]   the table for one model
       jaxscale mup check [STUDY.py] [--widths ...]             a coordinate check with a verdict
       jaxscale mup sweep [STUDY.py] [--widths ...] [--lrs ...] the best learning rate of each width, does it move
       jaxscale mup audit DIR                                   were the arms of a study's budgets tuned?

example: jaxscale mup check configs/quickstart.py --parameterization mup --widths 64 128 256 512
`jaxscale mup check --help` lists the options of check, and so for the others."""


@dataclass(frozen=True)
class RulesOptions:
    """Options of `mup rules`."""

    study: Annotated[Study, tyro.conf.arg(name="")]
    """Each field of the study can be overridden."""
    width: int | None = None
    """d_model of the model; default the study's widest."""
    depth: int | None = None
    """n_layers of the model; default as the study makes it."""
    out: Path | None = None
    """Where the JSON goes (jaxscale.mup_rules/1)."""


@dataclass(frozen=True)
class CheckOptions:
    """Options of `mup check`."""

    study: Annotated[Study, tyro.conf.arg(name="")]
    """Each field of the study can be overridden; widths and depths of the grid are not used."""
    parameterization: Literal["mup", "completep", "standard"] | None = None
    """Instead of model.parameterization."""
    optimizer: Literal["adamw", "sgd", "muon", "lion", "adafactor"] | None = None
    """Instead of recipe.optimizer."""
    widths: tuple[int, ...] = (64, 128, 256, 512)
    """Widths of the ladder, three or more; below model.base_d_model too."""
    depths: tuple[int, ...] = ()
    """Depths of a second ladder, at the smallest width; only completep is meant to pass it."""
    steps: int = 4
    """Optimizer steps before sizes are compared."""
    lr: float | None = None
    """Learning rate of the steps; default small enough that sizes answer in proportion."""
    batch: Literal["text", "random"] = "text"
    """text: successive batches of the study's text; random: ids drawn with Zipf's frequencies."""
    out: Path | None = None
    """Where the JSON goes (jaxscale.mup_check/1); the figure goes beside it as .svg and .png."""


def mup(argv: list[str]) -> int:
    """One of the sub-verbs."""
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if argv else 2
    if argv[0] == "--version":
        from jaxscale.cli import dispatch

        return dispatch(argv)
    if argv[0] == "sweep":
        from jaxscale.cli.sweep import sweep

        return sweep(argv[1:])
    if argv[0] == "audit":
        from jaxscale.cli.audit import audit

        return audit(argv[1:])
    verbs: dict[str, Callable[[list[str]], int]] = {"rules": _rules, "check": _check}
    if argv[0] not in verbs:
        raise MisuseError(f"{argv[0]!r} is none of rules, check, sweep, audit; `jaxscale mup --help` says more")
    return verbs[argv[0]](argv[1:])


def _split(argv: list[str]) -> tuple[Study, list[str]]:
    """The study file, where the first word is one, and the options after it."""
    if argv and not argv[0].startswith("-"):
        return load_study(argv[0]), argv[1:]
    return Study(), argv


def _rules(argv: list[str]) -> int:
    study, rest = _split(argv)
    about = ("Role, init, learning rate, eps and decay of every parameter of one model.\n\n"
             "example: jaxscale mup rules configs/quickstart.py --width 256 --recipe.optimizer muon")  # fmt: skip
    options = parse(RulesOptions, rest, "mup rules [STUDY.py]", about, RulesOptions(study=study))
    check_limits(options.study)
    from jaxscale.mup.table import choose_model, tabulate_rules
    from jaxscale.plain import write_json

    for name in ("width", "depth"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise MisuseError(f"--{name}: {value} is not a size; use 1 or more")
    model = choose_model(options.study, options.width, options.depth)
    if model.d_model % 2:
        raise MisuseError(f"--width: {model.d_model} is odd and rotary positions need pairs; use {model.d_model + 1}")
    table = tabulate_rules(model, options.study.recipe)
    print(table)
    if options.out is not None:
        write_json(options.out, table.to_json())
    return 0


def _check(argv: list[str]) -> int:
    """0 when every row passes, 1 when one does not."""
    study, rest = _split(argv)
    about = ("A few steps at every width (and depth), and whether every size moves as it should.\n\n"
             "example: jaxscale mup check --parameterization standard --out check.json")  # fmt: skip
    options = parse(CheckOptions, rest, "mup check [STUDY.py]", about, CheckOptions(study=study))
    study = _override(options)
    check_limits(study)
    if options.steps < 2:
        raise MisuseError(f"--steps: {options.steps} is too few, the first passes no gradient below a head of zeros; "
                          f"use 2 or more")  # fmt: skip
    if options.lr is not None and not 0 < options.lr < float("inf"):
        raise MisuseError(f"--lr: {options.lr:g} is not a positive number; give one or leave the default")
    from rich.console import Console

    from jaxscale.mup.batch import SEQS, random_windows, text_windows
    from jaxscale.mup.check import check_coordinates
    from jaxscale.plain import write_json
    from jaxscale.train.worker import use_compile_cache

    real = options.batch == "text"
    use_compile_cache(study.mesh)
    windows = (text_windows if real else random_windows)(study, options.steps)
    told = f"{SEQS} x {windows.shape[-1] - 1} tokens a step of {'the text' if real else 'random ids'}"
    console = Console(stderr=True)
    with console.status("models") as status:
        result = check_coordinates(
            study, windows, widths=options.widths, depths=options.depths, lr=options.lr, batch=told,
            on_model=lambda name: status.update(f"steps at {name}"),
        )  # fmt: skip
    print(result)
    if options.out is not None:
        from jaxscale.mup.figure import write_figure

        write_json(options.out, result.to_json())
        write_figure(result, options.out.with_suffix(""))
    return 0 if result.passed else 1


def _override(options: CheckOptions) -> Study:
    study = options.study
    model = replace(study.model, parameterization=options.parameterization or study.model.parameterization)
    return replace(
        study, model=model, recipe=replace(study.recipe, optimizer=options.optimizer or study.recipe.optimizer)
    )
