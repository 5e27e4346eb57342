"""The verb `preflight`: would it compile, fit and be quick enough on a pod one does not have."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from jaxscale.cli.options import StudyOptions, is_terminal, parse_study
from jaxscale.errors import MisuseError

if TYPE_CHECKING:
    from jaxscale.preflight import Subject

__all__ = ["preflight"]

ABOUT = """Compile the training step of every cell, or of the flagship, for hardware that is not here: memory,
collectives, step time, MFU, cost. A target is a TPU slice (v4, v5e, v5p, v6e, tpu7x) or hosts x GPUs (a100, h100,
h200).

example: jaxscale preflight configs/isoflop_c4.py --target v5e:16x16 --out preflight.json

example: jaxscale preflight configs/isoflop_c4.py --target h100:16x8 --params 7e9 --tokens 2e11

example: jaxscale preflight configs/flagship_405b.py --target v5p:16x16x24 --tokens 16e12"""


@dataclass(frozen=True)
class PreflightOptions(StudyOptions):
    """Options of `preflight`."""

    out: Path | None = None
    """FILE.json to write the rows to."""
    target: Annotated[tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction] = ()
    """Hardware: v5e:16x16, v5p:8x8x8, h100:16x8 (16 hosts of 8), ...; several, behind one --target or each behind its
    own, are checked one after the other."""
    flagship: bool = False
    """Instead of the grid: what the forecast of the study's folder asks for at its largest compute."""
    forecast: Path | None = None
    """With --flagship: FORECAST.json or a study folder that holds one; default runs/<name>."""
    params: float | None = None
    """Instead of the grid: a run of so many parameters on the study's ladder continued; with --tokens."""
    tokens: float | None = None
    """Tokens of that run. Without --params or --flagship: of a run of model.d_model and model.n_layers as they are."""
    price: float | None = None
    """US dollars a chip-hour; default the list price that jaxscale knows."""
    tries: int = 4
    """Layouts that are compiled at most for a cell, where mesh leaves them open."""
    timeout: float = 1800.0
    """Seconds that one compile may take."""
    one_layout: bool = False
    """All batches of a shape by the first layout that fits, so that each shape is compiled once."""
    shallow: bool = False
    """Compile 2 and 4 layers and extrapolate to the model's depth: close on GPUs, not on TPUs. The table says so."""
    cache: str = "~/.cache/jaxscale/preflight"
    """Folder of answers of the compiler, so that a second call is quick; empty turns it off."""


def preflight(argv: list[str]) -> int:
    """0 where everything compiles and fits, 1 where something does not."""
    options = parse_study(PreflightOptions, argv, "preflight", ABOUT)
    _check(options)
    from jaxscale.plain import write_json
    from jaxscale.preflight import Preflight, Settings, assumptions, check_plugin, check_subjects, parse_target

    targets = [parse_target(text) for text in dict.fromkeys(chain(*options.target))]
    for target in targets:
        check_plugin(target)
    subjects = _subjects(options)
    cache = Path(options.cache).expanduser() if options.cache else None
    settings = Settings(options.study.mesh, options.price, options.tries, options.timeout, options.one_layout,
                        options.shallow, cache)  # fmt: skip
    rows = [row for target in targets for row in check_subjects(subjects, target, settings, _tell)]
    _tell("")
    found = Preflight(options.study.name, tuple(rows), {target.name: assumptions(target) for target in targets})
    print(found)
    if options.out is not None:
        write_json(options.out, found.to_json())
        print(f"written: {options.out}")
    return 0 if found.passed else 1


def _check(options: PreflightOptions) -> None:
    if not any(options.target):
        raise MisuseError("--target: no hardware is named; give for example --target v5e:16x16 or --target h100:16x8")
    if options.flagship and (options.params is not None or options.tokens is not None):
        raise MisuseError("--flagship: takes N and D from the forecast; leave --params and --tokens out, or --flagship")
    if options.forecast is not None and not options.flagship:
        raise MisuseError("--forecast: is read only with --flagship; give both")
    if options.study.mesh.dtype == "float32":
        raise MisuseError("mesh.dtype: preflight compiles what accelerators train in, bfloat16; leave it auto")
    if options.study.recipe.precision in ("float32", "int8"):
        raise MisuseError(f"recipe.precision: preflight compiles what accelerators train in, bfloat16, and this is "
                          f"{options.study.recipe.precision}; leave it at mesh")  # fmt: skip
    if options.params is not None and options.tokens is None:
        raise MisuseError("--params: a run needs its tokens too; give --tokens")
    for name in ("params", "tokens", "price", "timeout", "tries"):
        value = getattr(options, name)
        if value is not None and not 0 < value < float("inf"):
            raise MisuseError(f"--{name}: {value:g} must be finite and above 0")


def _subjects(options: PreflightOptions) -> list[Subject]:
    """The grid's distinct runs, or the one run that is asked about."""
    from jaxscale.preflight import find_flagship, list_cells, own_run, read_flagship

    study = options.study
    if options.flagship:
        return [find_flagship(study, *read_flagship(options.forecast or Path("runs") / study.name))]
    if options.tokens is not None:
        if options.params is not None:
            return [find_flagship(study, options.params, options.tokens)]
        return [own_run(study, study.model, options.tokens)]
    return list_cells(study)


def _tell(text: str) -> None:
    """What is being compiled: in place on a terminal, a line each in a log."""
    if is_terminal():
        print(f"\r\x1b[2K{text}", end="", file=sys.stderr, flush=True)
    elif text:
        print(text, file=sys.stderr, flush=True)
