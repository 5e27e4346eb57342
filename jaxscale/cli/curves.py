"""The verb `curves`: families of learning curves on one curve, chosen by held-out extrapolation.

A verb of its own, not a method of `fit`: it reads a table without N, compares laws instead of fitting one, and
its answer (jaxscale.curves/1) has no optimum to forecast from.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from jaxscale.cli.analysis import TableOptions, _finish, _pairs, _parse

__all__ = ["curves"]


@dataclass(frozen=True)
class CurvesArguments(TableOptions):
    """Arguments of `curves`."""

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE")] = tyro.MISSING
    """CSV (also .gz, .xz), Parquet or study folder with D, loss, one size N or none, optional train_loss."""
    law: tuple[str, ...] = ()
    """Families to compare; none given means all: hestness log-linear ilog2 pow3 pow4 exp3 exp4 expp3 cortes."""
    at: tuple[float, ...] = ()
    """Amounts of data D to predict the loss at."""
    held_out: float = 0.5
    """Share of the largest D that is predicted from the smaller ones."""
    bootstrap: int = 200
    """Rounds behind the intervals and of the repeated selection; 0 for no intervals."""
    confidence: float = 0.95
    """Of every interval and of the comparison."""
    seed: int = 0
    """Of every draw."""
    out: Path | None = None
    """Where the JSON goes."""


def curves(argv: list[str]) -> int:
    """Which family extrapolates the curve, and what each foretells; 1 where nothing can be held out."""
    args = _parse(CurvesArguments, "curves", argv, "Compare learning-curve families by held-out extrapolation.",
                  "jaxscale curves runs.csv --columns D=tokens loss=nats --at 1e12 --out curves.json")  # fmt: skip
    from jaxscale.curves import fit_curves, read_curve
    from jaxscale.source import recount

    obs = read_curve(args.source, columns=_pairs("columns", args.columns), where=args.where)
    obs = recount(obs, count=args.count_params, flops_rule=args.flops_rule, loss_unit=args.loss_unit)
    result = fit_curves(
        obs, laws=args.law or None, at=args.at, held_out=args.held_out, bootstrap=args.bootstrap,
        confidence=args.confidence, seed=args.seed,
    )  # fmt: skip
    _finish(result, args.out)
    return 0 if result.chosen else 1
