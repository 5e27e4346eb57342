"""The verbs that need no accelerator: fit, forecast, backtest. They parse, read, call, print and write.

Nothing heavy is imported before a verb has its arguments: `--help` is quick, and isoflop never loads jax.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import tyro

from jaxscale.errors import MisuseError

if TYPE_CHECKING:
    from jaxscale.fit.result import Fit, Fits
    from jaxscale.runs import Observations

__all__ = ["backtest", "fit", "forecast", "read_fits", "read_table"]

T = TypeVar("T")
Method = Literal["isoflop", "parametric", "envelope", "all"]


@dataclass(frozen=True)
class TableOptions:
    """How a table from elsewhere is read."""

    columns: tuple[str, ...] = ()
    """Canonical names and the table's own: N=n_params D=tokens C=flops loss=nats."""
    where: str | None = None
    """Rows to keep, by the table's own columns: "excluded == 0 and d_tokens > 1e9"."""
    count_params: Literal["N", "N_non_embedding", "N_total"] = "N"
    """The column that is the law's N."""
    flops_rule: Literal["given", "6ND"] = "given"
    """C as the table gives it, or recomputed as 6 N D; budgets stay the groups they were."""
    loss_unit: Literal["nats", "bits"] = "nats"
    """Unit of the loss column; bits become nats."""


@dataclass(frozen=True)
class FitOptions(TableOptions):
    """Options of every fit; the defaults are those of the Python functions."""

    method: Method = "isoflop"
    """isoflop: minima of each budget; parametric: L(N, D); envelope: the lowest of all curves; all: the three,
    as FITS.json."""
    law: str = "chinchilla"
    """The parametric law by name (docs/laws.md lists them): chinchilla is L = E + A/N^alpha + B/D^beta."""
    near: float | None = None
    """Only sizes within this factor of their budget's lowest cell, as in 4: for a law that misses the far arms."""
    objective: Literal["huber", "lad", "squares"] = "huber"
    """Loss on log residuals, summed."""
    delta: str = "auto"
    """Huber's delta in log loss; auto is 1.345 robust deviations, 1e-3 reproduces the papers."""
    bootstrap: int = 1000
    """Rounds behind the intervals; 0 for none."""
    resample: Literal["auto", "residual", "wild", "pairs", "noise"] = "auto"
    """auto follows the design; pairs only to reproduce others."""
    confidence: float = 0.95
    """Of every interval."""
    seed: int = 0
    """Of the bootstrap."""
    interpolant: Literal["auto", "powers", "parabola", "akima"] = "auto"
    """How a minimum is read off a budget's curve."""
    window: str = "auto"
    """Sizes around the lowest that a parabola sees, auto or a count."""
    fix: tuple[str, ...] = ()
    """Parameters held still: E=1.7."""
    start: tuple[str, ...] = ()
    """Fit from this one point instead of many: R_D=15.4 R_N=5.3."""
    profile: bool = True
    """Profile likelihood beside the bootstrap; --no-profile saves its compile time. Left out where bootstrap is 0."""
    allow_shared_horizon: bool = False
    """Envelope: use rows before the end of a run too, although their learning-rate schedule is not their own."""
    smoothing: str = "auto"
    """Envelope: half width of the window in log D, as in 0.1; 0 for none."""
    out: Path | None = None
    """Where the JSON goes."""


@dataclass(frozen=True)
class FitArguments(FitOptions):
    """Arguments of `fit`."""

    conventions: bool = False
    """Also print what other counts of N and C would do to the isoflop exponents."""
    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE")] = tyro.MISSING
    """Study folder, observations.csv, CSV (also .gz, .xz) or Parquet."""
    stability: bool = False
    """Also: the fit without the smallest budgets, and whether they belong to the law."""


@dataclass(frozen=True)
class BacktestArguments(FitOptions):
    """Arguments of `backtest`."""

    method: Method = "all"
    """isoflop, parametric, envelope, or all: those that answer, and their equal-weight average."""
    profile: bool = False
    """Profile likelihood of every fit; no backtest needs it."""
    law: tuple[str, ...] = ("chinchilla",)  # type: ignore[assignment]
    """Parametric laws, one or several, declared before the errors are seen."""
    split: Literal["auto", "rolling", "corner", "holdout", "all"] = "auto"
    """rolling: the k smallest budgets predict the larger; corner: small N and D predict the rest; holdout: the
    grid predicts the rows of role holdout; auto: rolling, and holdout where there are such rows."""
    ratio: float | None = None
    """Score only targets at about this many times the largest C fitted, within a factor of 2."""
    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE")] = tyro.MISSING
    """Study folder, observations.csv, CSV (also .gz, .xz) or Parquet."""


@dataclass(frozen=True)
class ForecastArguments(TableOptions):
    """Arguments of `forecast`."""

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FIT")] = tyro.MISSING
    """FIT.json, FITS.json, or a table or study folder, which is fitted by every method first."""
    flops: tuple[float, ...] = ()
    """Training FLOPs to forecast for, one or more."""
    loss: float | None = None
    """Instead of --flops: the loss to reach, nats per token; the answer is the compute it needs."""
    accuracy: tuple[str, ...] = ()
    """Instead of --flops: TASK=X, the accuracy to reach; FIT is then a DOWNSTREAM.json, or a table or study folder
    of task scores, read as `downstream` reads it (--columns, --fit-where)."""
    fit_where: str | None = None
    """With --accuracy: rows to fit."""
    nll_unit: Literal["nats", "bits_per_byte"] | None = None
    """With --accuracy: unit of the column nll."""
    declared: str | None = None
    """Method or law that was declared beforehand; default the first fit."""
    out: Path | None = None
    """Where the JSON goes."""


def fit(argv: list[str]) -> int:
    """Fit a scaling law to observations and print it as a table."""
    args = _parse(FitArguments, "fit", argv, "Fit a scaling law.",
                  "jaxscale fit runs/quickstart --method isoflop --out fit.json")  # fmt: skip
    obs = read_table(args.source, args)
    result = _fit(obs, args)
    _finish(result, args.out)
    if args.stability:
        _print_beginning(args, obs)
    if args.conventions:
        _print_conventions(args)
    fits = result.fits if args.method == "all" else (result,)
    verdicts = [f"{one.method}: {one.verdict}" for one in fits if one.verdict]
    for verdict in verdicts:
        print(f"jaxscale fit: {verdict}", file=sys.stderr)
    return 1 if len(verdicts) == len(fits) else 0


def _print_beginning(args: FitArguments, obs: Observations) -> None:
    from jaxscale.fit.beginning import find_beginning

    _keep_programs()
    law = args.law if args.method != "isoflop" else "chinchilla"
    rounds, confidence = min(args.bootstrap, 200) or 200, args.confidence
    print(find_beginning(obs, law=law, bootstrap=rounds, confidence=confidence, seed=args.seed))


def forecast(argv: list[str]) -> int:
    """Optimal size, tokens and loss at the compute asked for."""
    about = "Optimal size, tokens and loss at a compute, or the compute that a loss needs."
    args = _parse(ForecastArguments, "forecast", argv, about,
                  "jaxscale forecast fit.json --flops 1e21 1e22 --out forecast.json")  # fmt: skip
    if args.accuracy:
        from jaxscale.cli.downstream import answer_accuracy, read_options

        return answer_accuracy(args.source, args.accuracy, read_options(args), args.out)
    from jaxscale.forecast import forecast_optimum

    result = forecast_optimum(_load_fit(args), flops=args.flops, loss=args.loss, declared=args.declared)
    _finish(result, args.out)
    return 0


def backtest(argv: list[str]) -> int:
    """Fit on the smaller budgets, predict the larger, report the error."""
    args = _parse(BacktestArguments, "backtest", argv, "Fit on less, predict the rest, report the error.",
                  "jaxscale backtest runs/quickstart --split all --ratio 10 --out backtest.json")  # fmt: skip
    from rich.console import Console

    from jaxscale.backtest import backtest_fit
    from jaxscale.cli.progress import data_progress

    obs, options = read_table(args.source, args), {**_options(args), "near": args.near}
    if args.method != "all":
        options["methods"] = (args.method,)
    _keep_programs(args.method)
    with data_progress(Console(stderr=True)) as bars:
        task = bars.add_task("splits", total=1.0)
        options["on_split"] = lambda done, of: bars.update(task, completed=done / of)
        result = backtest_fit(obs, split=args.split, ratio=args.ratio, **options)
    _finish(result, args.out)
    if not result.rows:
        print(f"jaxscale backtest: no method has an answer on any part of {args.source}", file=sys.stderr)
    return 0 if result.rows else 1


def _parse(kind: type[T], verb: str, argv: list[str], summary: str, example: str) -> T:
    """Typed and strict: an unknown option fails and proposes the nearest."""
    if "--version" in argv:
        from jaxscale.cli import dispatch

        raise SystemExit(dispatch(["--version"]))
    return tyro.cli(
        kind, prog=f"jaxscale {verb}", args=argv, description=f"{summary}\n\nexample: {example}",
        config=(tyro.conf.FlagCreatePairsOff,),
    )  # fmt: skip


def read_table(source: str, table: TableOptions) -> Observations:
    """A source as the options of a verb say that it is to be read."""
    from jaxscale.source import read_observations

    return read_observations(
        source, columns=_pairs("columns", table.columns), where=table.where, count=table.count_params,
        flops_rule=table.flops_rule, loss_unit=table.loss_unit,
        near=table.near if isinstance(table, FitArguments) else None,
    )  # fmt: skip


def _print_conventions(args: FitArguments) -> None:
    """The table of counts, from the table as it was read, before any count was switched."""
    from jaxscale.fit.conventions import compare_conventions

    plain = replace(args, count_params="N", flops_rule="given")
    print(compare_conventions(read_table(args.source, plain), confidence=args.confidence, seed=args.seed))


def _fit(obs: Observations, args: FitArguments) -> Any:
    from jaxscale.fit import fit_all
    from jaxscale.fit.suspect import annotate_fit
    from jaxscale.fit.together import METHODS

    options = _options(args)
    _keep_programs(args.method)
    curves = _read_curves(obs, args)
    if args.method == "all":
        fits = fit_all(obs, curves=curves, **options)
        return replace(fits, fits=tuple(annotate_fit(fit, obs) for fit in fits.fits))
    return annotate_fit(METHODS[args.method](obs if curves is None else curves, **options), obs)


def _read_curves(obs: Observations, args: FitArguments) -> Observations | None:
    """Training curves of a study folder's runs, where shared horizons are allowed."""
    if not (args.allow_shared_horizon and Path(args.source).is_dir()):
        return None
    from jaxscale.collect import collect_curves

    return collect_curves(args.source, obs)


def _keep_programs(method: str = "all") -> None:
    """Compile the programs of a parametric fit once a machine; the other methods never load jax."""
    if method in ("parametric", "all"):
        from jaxscale.fit import solver

        solver.keep_programs()


ONLY = {
    "isoflop": ("interpolant", "window"),
    "parametric": ("law", "objective", "delta", "fix", "start", "profile"),
    "envelope": ("allow_shared_horizon", "smoothing"),
}


def _options(args: FitOptions) -> dict[str, Any]:
    """Keyword options of the method asked for; one that belongs to another method is misuse."""
    defaults = {field.name: field.default for field in fields(args)}
    options = {name: getattr(args, name) for name in ("bootstrap", "resample", "confidence", "seed")}
    for method, names in ONLY.items():
        for name in names:
            if args.method in (method, "all"):
                options[name] = getattr(args, name)
            elif getattr(args, name) != defaults[name]:
                option = name.replace("_", "-")
                raise MisuseError(f"--{option} belongs to --method {method}, not to {args.method}; leave it out")
    if "profile" in options:
        options["profile"] = args.profile and args.bootstrap > 0
    return {name: _typed(name, value) for name, value in options.items()}


def _typed(name: str, value: Any) -> Any:
    if name in ("fix", "start"):
        return {key: _number(f"{name}: {key}", text) for key, text in _pairs(name, value).items()} or None
    if name in ("delta", "smoothing") and value != "auto":
        return _number(name, value)
    if name == "window" and value != "auto":
        if not value.isdecimal():
            raise MisuseError(f"window: {value!r} is neither auto nor a count of sizes")
        return int(value)
    return value


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise MisuseError(f"{name}: {text!r} is not a number") from None


def _pairs(option: str, items: Iterable[str]) -> dict[str, str]:
    """NAME=VALUE items as a dictionary."""
    pairs = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not (name and equals and value):
            raise MisuseError(f"{option}: {item!r} is not NAME=VALUE, as in N=n_params")
        if name in pairs:
            raise MisuseError(f"{option}: {name} is given twice; give it once")
        pairs[name] = value
    return pairs


def _load_fit(args: ForecastArguments) -> Fit | Fits:
    from jaxscale.fit import fit_all

    if args.source.endswith(".json"):
        return read_fits(Path(args.source))
    _keep_programs()
    return fit_all(read_table(args.source, args))


def read_fits(path: Path) -> Fit | Fits:
    """A FIT.json or FITS.json; MisuseError for any other JSON."""
    from jaxscale.fit import Fit, Fits
    from jaxscale.plain import read_json

    plain = read_json(path)
    schema = plain.get("schema") if isinstance(plain, dict) else None
    kinds: dict[Any, type[Fit] | type[Fits]] = {"jaxscale.fit/1": Fit, "jaxscale.fits/1": Fits}
    if schema not in kinds:
        raise MisuseError(f"{path}: schema {schema!r} is no fit; `jaxscale fit SOURCE --out` writes one")
    return kinds[schema].from_json(path)


def _finish(result: Any, out: Path | None) -> None:
    """The table on stdout, the JSON where it was asked for."""
    from jaxscale.plain import write_json

    print(result)
    if out is not None:
        write_json(out, result.to_json())
