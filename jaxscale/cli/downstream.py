"""The verb `downstream`, and the inverse question of `forecast --accuracy`: parse, read, call, print, write."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from jaxscale.cli.analysis import _finish, _number, _pairs, _parse
from jaxscale.errors import MisuseError

if TYPE_CHECKING:
    from jaxscale.downstream import Downstream

__all__ = ["answer_accuracy", "downstream"]

EXAMPLE = """jaxscale downstream checkpoints.csv.gz --columns N=n_params D=d_tokens C=c_flop nll=bpb accuracy=acc
    --nll-unit bits_per_byte --fit-where "role == 'train'" --target-where "role == 'eval'" --out downstream.json"""


@dataclass(frozen=True)
class DownstreamOptions:
    """How a table of task scores is read and fitted."""

    columns: tuple[str, ...] = ()
    """Canonical names and the table's own: N= D= C= nll= accuracy= run= task= [step= family= items= chance= loss=]."""
    fit_where: str | None = None
    """Rows to fit, by the table's own columns: "role == 'train'". A study's grid unless said."""
    target_where: str | None = None
    """Rows to forecast; they may lack nll and accuracy. A study's held-out runs unless said."""
    nll_unit: Literal["nats", "bits_per_byte"] | None = None
    """Unit of nll. It cancels in every forecast, and must be said only where a column nll_unit holds several."""
    recipe: Literal["default", "olmo-ladder"] = "default"
    """default: chosen by backtests (docs/downstream.md); olmo-ladder: as Bhagia et al. 2024 published it."""
    law: Literal["auto", "nd", "power", "log-linear"] = "auto"
    """Stage 1: L(N, D); a power law of C with a floor; or a line in logs, as Llama 3. auto: nd where there are N, D."""
    families: Literal["auto", "shared", "grid", "compare"] = "auto"
    """Stage 2 over model families: auto shares a curve unless an F test tells them apart; compare insists on two."""
    chance: tuple[str, ...] = ()
    """Chance level by task, TASK=0.25, where there is no column chance."""
    items: tuple[str, ...] = ()
    """Questions by task, TASK=1172, where there is no column items."""
    confidence: float = 0.95
    """Of every interval."""
    bootstrap: int = 500
    """Rounds behind the intervals."""
    seed: int = 0
    """Of every draw."""


@dataclass(frozen=True)
class DownstreamArguments(DownstreamOptions):
    """Arguments of `downstream`."""

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE")] = tyro.MISSING
    """CSV (also .gz, .xz), Parquet, or a study folder whose runs have evals.jsonl."""
    figure: Path | None = None
    """Also draw it: STEM.svg and STEM.png, NLL against FLOPs and accuracy against NLL."""
    out: Path | None = None
    """Where the JSON goes."""


def downstream(argv: list[str]) -> int:
    """Forecast task accuracy in two stages; 1 where no task can be forecast."""
    args = _parse(DownstreamArguments, "downstream", argv, "From compute to NLL to accuracy, with intervals.", EXAMPLE)
    result = _fit(args.source, args)
    _finish(result, args.out)
    if args.figure is not None:
        from jaxscale.report.downstream import write_downstream_figure

        written = write_downstream_figure(result, args.figure)
        print(f"written: {', '.join(map(str, written)) or 'no figure, no task can be forecast'}")
    verdicts = result.verdicts
    if len(verdicts) < len(result.tasks):
        return 0
    print(f"jaxscale downstream: no task can be forecast; {next(iter(verdicts.values()))}", file=sys.stderr)
    return 1


def answer_accuracy(source: str, asked: Iterable[str], options: DownstreamOptions, out: Path | None) -> int:
    """The compute at which each TASK=X is reached, from a DOWNSTREAM.json or from what one is made of."""
    from jaxscale.downstream import Downstream
    from jaxscale.downstream.inverse import reach_accuracy

    wanted = {task: _number(f"accuracy: {task}", text) for task, text in _pairs("accuracy", asked).items()}
    found = Downstream.from_json(Path(source)) if source.endswith(".json") else _fit(source, options)
    _finish(reach_accuracy(found, wanted), out)
    return 0


def _fit(source: str, options: DownstreamOptions) -> Downstream:
    from jaxscale.downstream import fit_downstream
    from jaxscale.fit.solver import keep_programs

    keep_programs()
    return fit_downstream(
        source, columns=_pairs("columns", options.columns), fit_where=options.fit_where,
        target_where=options.target_where, nll_unit=options.nll_unit, recipe=options.recipe, law=options.law,
        families=options.families, chance=_values("chance", options.chance), items=_values("items", options.items),
        confidence=options.confidence, bootstrap=options.bootstrap, seed=options.seed,
    )  # fmt: skip


def _values(option: str, items: Iterable[str]) -> dict[str, float]:
    return {task: _number(f"{option}: {task}", text) for task, text in _pairs(option, items).items()}


def read_options(args: Any) -> DownstreamOptions:
    """The options of `forecast` that bear on task scores; MisuseError for those that only a loss law reads."""
    if args.flops or args.loss is not None:
        raise MisuseError("accuracy: asks for a compute; leave out --flops and --loss, or ask them by themselves")
    return DownstreamOptions(columns=args.columns, fit_where=args.fit_where or args.where, nll_unit=args.nll_unit)
