"""The verb `compare`: parse, read, call, print, write."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from jaxscale.cli.analysis import TableOptions, _finish, _number, _pairs, _parse
from jaxscale.errors import MisuseError

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["compare", "compare_folder"]

EXAMPLE = """jaxscale compare runs/adam_sgd --flops 1e14 1e15 --figure adam_sgd --out compare.json
  jaxscale compare table.csv --columns variant=optimizer loss=val_loss --tuned"""
AXES = {"C": "flops", "D": "tokens", "N": "params"}


@dataclass(frozen=True)
class CompareArguments(TableOptions):
    """Arguments of `compare`."""

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE")] = tyro.MISSING
    """Study folder with variants, or CSV (also .gz, .xz) or Parquet with a column variant."""
    x: Literal["C", "D", "N"] = "C"
    """Axis of the laws: training FLOPs; tokens at one size; parameters at one number of tokens."""
    flops: tuple[float, ...] = ()
    """With --x C: training FLOPs to decide for; default 10 and 100 times the largest run."""
    tokens: tuple[float, ...] = ()
    """With --x D: tokens to decide for."""
    params: tuple[float, ...] = ()
    """With --x N: parameters to decide for."""
    variants: tuple[str, ...] = ()
    """Only these; default all."""
    price: tuple[str, ...] = ()
    """NAME=DOLLARS_PER_HOUR of every variant's machine, for equal cost; default: cost is time."""
    tuned: bool = False
    """Your word that every variant had the same tuning budget by the same rule; it is written down. Without it, or a
    sweep of each, or equal tuning_trials, no winner is named."""
    allow: tuple[str, ...] = ()
    """What may differ between variants on purpose: seed, data_sha256, seq_len."""
    confidence: float = 0.95
    """Of every interval, and the probability at which a choice is settled."""
    draws: int = 2000
    """Draws of the laws behind intervals and probabilities."""
    seed: int = 0
    """Of the draws."""
    figure: Path | None = None
    """Also draw it: STEM.svg and STEM.png, loss and distance to the leader, with bands and targets."""
    out: Path | None = None
    """Where the JSON goes."""


def compare(argv: list[str]) -> int:
    """Which variant wins at the target; 1 where none may be named for want of tuning, or nothing can be compared."""
    about = "A law for every variant: which one wins at the target scale, by how much, and how sure that is."
    args = _parse(CompareArguments, "compare", argv, about, EXAMPLE)
    from jaxscale.compare import compare_variants

    result = compare_variants(
        args.source, x=args.x, targets=_targets(args), variants=args.variants, confidence=args.confidence,
        draws=args.draws, seed=args.seed, tuned=args.tuned, allow=args.allow, where=args.where,
        prices={name: _number(f"price: {name}", text) for name, text in _pairs("price", args.price).items()},
        columns=_pairs("columns", args.columns), count=args.count_params, flops_rule=args.flops_rule,
        loss_unit=args.loss_unit,
    )  # fmt: skip
    _finish(result, args.out)
    if args.figure is not None:
        from jaxscale.report.compare import write_compare_figure

        written = write_compare_figure(result, args.figure)
        print(f"written: {', '.join(map(str, written)) or 'no figure, there are no laws to draw'}")
    if result.verdict in ("settled", "open"):
        return 0
    print(f"jaxscale compare: {result.verdict}: {result.words}", file=sys.stderr)
    return 1


def compare_folder(folder: Path, console: Console, flops: Sequence[float]) -> int:
    """The comparison of a study's variants, in compare.json and on its page; 0 once it stands, whatever its verdict.

    For `run`, which is done when its runs are and says what they say; the verb itself has the verdict as its code.
    """
    from jaxscale.collect import collect_runs
    from jaxscale.compare import compare_variants
    from jaxscale.plain import write_json
    from jaxscale.report import write_report
    from jaxscale.sweep import read_plan, read_status

    planned = read_plan(folder)
    result = compare_variants(folder, targets=flops)
    write_json(folder / "compare.json", result.to_json())
    console.print(f"\n{result}", soft_wrap=True, markup=False)
    results = [status.result for status in read_status(folder, planned.cells) if status.result]
    page = write_report(
        folder, title=planned.study, plan=planned, observations=collect_runs(folder), fits=(), comparison=result,
        results=results, provenance=dict(results[0].provenance) if results else {},
        commands=[f"jaxscale compare {folder}"],
    )  # fmt: skip
    console.print(f"report: {page}", soft_wrap=True)
    return 0


def _targets(args: CompareArguments) -> tuple[float, ...]:
    """The targets on the axis asked for; MisuseError for those of another."""
    for axis, name in AXES.items():
        if axis != args.x and getattr(args, name):
            raise MisuseError(f"--{name}: belongs to --x {axis}, not to --x {args.x}; use --{AXES[args.x]}")
    asked: tuple[float, ...] = getattr(args, AXES[args.x])
    return asked
