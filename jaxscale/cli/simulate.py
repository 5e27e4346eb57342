"""The verb simulate: which law, grid and noise are meant, and the table of what a study of them would say.

What is not given on the command line comes from the source: a FIT.json gives its law, cells and noise, a study
folder or a table is fitted for them, a study file gives the cells of its plan. `--law` and `--budgets` win.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import tyro

from jaxscale.cli.analysis import TableOptions
from jaxscale.cli.options import is_terminal, parse
from jaxscale.errors import MisuseError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jaxscale.fit.result import Fit
    from jaxscale.laws import Chinchilla
    from jaxscale.runs import Observations
    from jaxscale.simulate import Layout, Noise, Scenario, Simulation

__all__ = ["simulate"]

EXAMPLES = """Draw studies from a known law, fit them again: bias, coverage and width of the intervals.

example: jaxscale simulate --first 1e18 --factor 3 --count 5 --noise 0.005 --studies 200

How wide would my interval be, with my grid and my noise: jaxscale simulate fit.json --flops 1e22

The same for a grid that is planned: jaxscale simulate runs/next --law fit.json"""

DEFAULT_LAW = {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658}
"""Besiroglu et al. 2024, arXiv 2404.10102: Chinchilla's data fitted again."""
LADDER = {"first": 1e18, "factor": 3.0, "count": 5}
BOTH = ("isoflop", "parametric")
"""What all means here: the runs of a drawn grid have no curves for an envelope."""
SPREAD = {"sizes": 7, "span": 6.0}
NOISE = {"noise": "seed", "noise_power": "power", "outliers": "outliers", "outlier_size": "outlier_size",
         "shared": "shared", "trunk": "trunk"}  # fmt: skip


@dataclass(frozen=True)
class SimulateOptions(TableOptions):
    """Options of `simulate`."""

    source: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="SOURCE")] = None
    """FIT.json, study folder, STUDY.py or a table; none: a grid around the law's own optima."""
    law: tuple[str, ...] = ()
    """E=1.8 A=480 B=2085 alpha=.34 beta=.37, or a FIT.json; default the source's, else Besiroglu et al. 2024."""
    budgets: tuple[float, ...] = ()
    """Training FLOPs of each budget; sizes lie around the law's optimum at each, C = 6 N D."""
    first: float | None = None
    """Instead of --budgets: the smallest (default 1e18),"""
    factor: float | None = None
    """from one to the next (default 3),"""
    count: int | None = None
    """and how many (default 5)."""
    sizes: int | None = None
    """Sizes a budget (default 7)"""
    span: float | None = None
    """within this factor of the optimum (default 6)."""
    seeds: int | None = None
    """Runs of each cell; default the source's, else 1."""
    noise: float | None = None
    """Deviation of log loss between runs; default the source's, else .005."""
    noise_power: float = 0.0
    """The deviation falls as C to this power, from the smallest budget on."""
    outliers: float = 0.0
    """Share of runs that end too high."""
    outlier_size: float = 0.05
    """By how much, in log loss."""
    shared: float = 0.0
    """Deviation of an error shared by all cells (one validation set), in log loss."""
    trunk: float = 0.0
    """Deviation of an error shared by the cells of one trunk, in log loss; the fits know the trunks."""
    wrong: Literal["none", "broken-N", "broken-D", "kaplan", "interaction", "mistuned"] = "none"
    """The truth is this form and not the law that is fitted."""
    method: Literal["isoflop", "parametric", "envelope", "all"] = "all"
    """How each study is fitted; all: isoflop and parametric, since a drawn run has its end alone and most grids
    share no size between budgets, which an envelope needs."""
    resample: tuple[Literal["auto", "residual", "wild", "pairs", "noise"], ...] = ("auto",)
    """One or several, which are compared."""
    studies: int = 200
    """Studies to draw."""
    bootstrap: int = 1000
    """Rounds behind the intervals of each study."""
    confidence: float = 0.95
    """Of every interval."""
    target: float | None = None
    """Compute asked about, times the largest budget; default 10."""
    flops: float | None = None
    """Instead of --target: training FLOPs."""
    seed: int = 0
    """Study i is drawn by the generator (seed, i)."""
    workers: int | None = None
    """Processes; default one a core. The result does not depend on it."""
    out: Path | None = None
    """Where the JSON goes."""
    records: Path | None = None
    """Where a table of every single estimate and interval goes, as CSV."""


def simulate(argv: list[str]) -> int:
    """Draw, fit, count, print; 1 where no study was answered, 130 with what was counted after Ctrl-C."""
    if "--version" in argv:
        from jaxscale.cli import dispatch

        return dispatch(["--version"])
    args = parse(SimulateOptions, argv, "simulate", EXAMPLES)
    from jaxscale.simulate import Interrupted

    code = 0
    try:
        result = _run(args)
    except Interrupted as stopped:
        result, code = stopped.partial, 130
    _write(result, args)
    if code:
        print(
            f"jaxscale simulate: interrupted, {result.studies} of {result.asked} studies are counted", file=sys.stderr
        )
        return code
    silent = [found for found in result.fits if not found["answered"]]
    for found in silent:
        print(f"jaxscale simulate: {found['method']}: no study was answered: {found['refusal']}", file=sys.stderr)
    return 1 if len(silent) == len(result.fits) else 0


def _run(args: SimulateOptions) -> Simulation:
    from jaxscale.simulate import simulate_studies

    scenario = _scenario(args)
    methods = BOTH if args.method == "all" else (args.method,)
    with _show_progress(args.studies) as listen:
        return simulate_studies(
            scenario, studies=args.studies, methods=methods, resamplers=args.resample, bootstrap=args.bootstrap,
            confidence=args.confidence, seed=args.seed, workers=_count_workers(args), listen=listen,
        )  # fmt: skip


def _count_workers(args: SimulateOptions) -> int:
    cores = len(os.sched_getaffinity(0))
    return min(cores, args.studies) if args.workers is None else args.workers


def _write(result: Simulation, args: SimulateOptions) -> None:
    from jaxscale.plain import write_json

    print(result)
    if args.out is not None:
        write_json(args.out, result.to_json())
    if args.records is not None:
        write_json(args.records, result.records_frame().to_csv(index=False))


@contextmanager
def _show_progress(studies: int) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr where a person watches."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("studies"), BarColumn(30), MofNCompleteColumn(), TimeRemainingColumn())
    watched = is_terminal() and sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not watched) as bars:
        bar = bars.add_task("studies", total=studies)
        yield lambda done, _: bars.update(bar, completed=done)


@dataclass(frozen=True)
class Known:
    """What a source tells: any of its law, its cells, the deviation between its runs."""

    law: Chinchilla | None = None
    layout: Layout | None = None
    noise: float | None = None


def _scenario(args: SimulateOptions) -> Scenario:
    """Options first, then --law, then the source, then the defaults."""
    from jaxscale.laws import Chinchilla
    from jaxscale.simulate import Scenario

    given = _read_law(args.law)
    found = _read_source(args) if args.source else Known()
    if args.source and args.source.endswith(".py") and given.law is None:
        raise MisuseError(f"{args.source}: a study file has no law; add --law FIT.json or --law E=.. A=.. B=.. "
                          f"alpha=.. beta=..")  # fmt: skip
    law = given.law or found.law or Chinchilla(**DEFAULT_LAW)
    seed_noise = next(x for x in (args.noise, given.noise, found.noise, 0.005) if x is not None)
    layout = _layout(args, law, found.layout)
    target = _target(args, max(layout.C))
    return Scenario(law, layout, target, _noise(args, seed_noise), _wrong(args))


def _wrong(args: SimulateOptions) -> str:
    return "" if args.wrong == "none" else args.wrong


def _noise(args: SimulateOptions, seed: float) -> Noise:
    from jaxscale.simulate import Noise

    return Noise(**{own: getattr(args, option) for option, own in NOISE.items() if option != "noise"} | {"seed": seed})


def _target(args: SimulateOptions, largest: float) -> float:
    if args.target is not None and args.flops is not None:
        raise MisuseError("--target and --flops both say how far to look; give one")
    if args.target is not None and not (np.isfinite(args.target) and args.target > 0):
        raise MisuseError(f"target: {args.target:g} times the largest budget must be finite and above 0, as in 10")
    return args.flops if args.flops is not None else (args.target or 10.0) * largest


def _layout(args: SimulateOptions, law: Chinchilla, found: Layout | None) -> Layout:
    """Given budgets around the law's optima, else the source's cells, else the default ladder."""
    from jaxscale.laws import SIX_ND
    from jaxscale.simulate import lay_grid
    from jaxscale.simulate.forms import build_form

    ladder, spread = _given(args, LADDER), _given(args, SPREAD)
    if args.budgets and ladder:
        raise MisuseError("--budgets and --first, --factor, --count both say the budgets; give one of the two")
    if found is not None and not args.budgets and not ladder:
        if spread:
            raise MisuseError(f"--{next(iter(spread))}: the cells are those of {args.source}; add --budgets "
                              f"for a grid of its law")  # fmt: skip
        return found if args.seeds is None else replace(found, seeds=(args.seeds,) * len(found))
    budgets = args.budgets or _climb(LADDER | ladder)
    form = build_form(_wrong(args), law, np.ones(1), max(budgets), SIX_ND)
    return lay_grid(form, budgets, seeds=1 if args.seeds is None else args.seeds, **(SPREAD | spread))


def _given(args: SimulateOptions, defaults: dict[str, Any]) -> dict[str, Any]:
    """Those of the options that were given."""
    return {name: value for name in defaults if (value := getattr(args, name)) is not None}


def _climb(ladder: dict[str, Any]) -> tuple[float, ...]:
    first, factor, count = ladder["first"], ladder["factor"], ladder["count"]
    if not (first > 0 and factor > 1 and count >= 1):
        raise MisuseError(f"--first {first:g} --factor {factor:g} --count {count}: use a first budget above 0, a "
                          f"factor above 1 and a count of 1 or more")  # fmt: skip
    return tuple(float(first * factor**i) for i in range(count))


def _read_law(items: tuple[str, ...]) -> Known:
    """NAME=VALUE five times, or a FIT.json, which also tells its noise."""
    from jaxscale.laws import Chinchilla

    if not items:
        return Known()
    if len(items) == 1 and items[0].endswith(".json"):
        return replace(_read_fit(items[0]), layout=None)
    values: dict[str, float] = {}
    for item in items:
        name, _, text = item.partition("=")
        if name not in Chinchilla.param_names():
            raise MisuseError(f"law: {item!r} is none of E=.. A=.. B=.. alpha=.. beta=.. and no FIT.json")
        try:
            values[name] = float(text)
        except ValueError:
            raise MisuseError(f"law: {name} {text!r} is not a number") from None
        if not (np.isfinite(values[name]) and (values[name] > 0 or (name == "E" and values[name] == 0))):
            raise MisuseError(f"law: {name} = {values[name]:g} must be finite and above 0 (E may be 0)")
    missing = [name for name in Chinchilla.param_names() if name not in values]
    if missing:
        raise MisuseError(f"law: {', '.join(missing)} missing; give all of E, A, B, alpha, beta")
    return Known(Chinchilla(**values))


def _read_source(args: SimulateOptions) -> Known:
    assert args.source is not None
    if args.source.endswith(".json"):
        return _read_fit(args.source)
    if args.source.endswith(".py"):
        from jaxscale.plan import plan_isoflop
        from jaxscale.simulate import lay_plan
        from jaxscale.study import load_study

        return Known(layout=lay_plan(plan_isoflop(load_study(args.source))))
    return _read_table(args)


def _read_fit(path: str) -> Known:
    """Law, cells and noise of a parametric FIT.json, or of the parametric fit in a FITS.json."""
    from jaxscale.cli.analysis import read_fits
    from jaxscale.fit.result import Fits

    found = read_fits(Path(path))
    fits = found.fits if isinstance(found, Fits) else (found,)
    usable = [fit for fit in fits if fit.method == "parametric" and fit.law == "chinchilla"]
    if not usable:
        kinds = ", ".join(f"{fit.method} {fit.law}" for fit in fits)
        raise MisuseError(f"{path}: {kinds} has no L(N, D) to draw from; use `jaxscale fit SOURCE --method parametric`")
    return _known_of(usable[0])


def _known_of(fit: Fit) -> Known:
    from jaxscale.laws import Chinchilla
    from jaxscale.simulate import lay_fit

    fit.require_answer()
    noise = fit.noise["seed_std"] if fit.noise["seed_std"] is not None else fit.noise["residual_std"]
    return Known(Chinchilla(**fit.params), lay_fit(fit), noise)


def _read_table(args: SimulateOptions) -> Known:
    """A table or study folder is fitted; a folder without observations gives the cells of its plan."""
    from jaxscale.cli.analysis import read_table
    from jaxscale.simulate import lay_observations, lay_plan
    from jaxscale.sweep import read_plan

    folder = Path(args.source or "")
    planned = read_plan(folder) if (folder / "plan.json").is_file() else None
    if planned is not None and not (folder / "observations.csv").is_file():
        if not args.law:
            raise MisuseError(f"{folder}: no observations.csv, so it has no law yet; add --law FIT.json or --law E=.. "
                              f"A=.. B=.. alpha=.. beta=..")  # fmt: skip
        return Known(layout=lay_plan(planned))
    obs = read_table(args.source or "", args)
    layout = lay_plan(planned) if planned is not None else lay_observations(obs)
    return Known(layout=layout) if args.law else replace(_fit_table(obs), layout=layout)


def _fit_table(obs: Observations) -> Known:
    from jaxscale.fit import fit_parametric, solver

    solver.keep_programs()
    return _known_of(fit_parametric(obs, bootstrap=0))
