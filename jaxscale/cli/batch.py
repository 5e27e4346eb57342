"""The verb `batch`: parse, read, fit, print, write."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from jaxscale.cli.analysis import _finish, _pairs, _parse

__all__ = ["batch"]

EXAMPLE = "jaxscale batch runs/batch --out batch.json --figure batch"


@dataclass(frozen=True)
class BatchArguments:
    """Arguments of `batch`."""

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE")] = tyro.MISSING
    """Study folder, or CSV (also .gz, .xz) or Parquet with N, D, loss, batch, and where known C, lr, seed."""
    loss: tuple[float, ...] = ()
    """Target losses, nats per token, for every size; none: some of each size's own that all its batches reach."""
    targets: int = 4
    """How many targets a size gets where --loss names none."""
    points: Literal["auto", "ends", "curves"] = "auto"
    """ends: final losses of runs with their own horizons; curves: training losses of wsd runs before they decay."""
    columns: tuple[str, ...] = ()
    """A table's own names: N=n_params D=tokens loss=nats batch=batch_tokens lr=peak_lr."""
    where: str | None = None
    """Runs to use, by their columns: "N > 1e4 and seed == 0"."""
    seq_len: int | None = None
    """A table whose batch is in sequences: tokens of one."""
    loss_unit: Literal["nats", "bits"] = "nats"
    """Unit of a table's loss; bits become nats."""
    bootstrap: int = 400
    """Rounds behind the intervals; 0 for none."""
    confidence: float = 0.95
    """Of every interval."""
    seed: int = 0
    """Of every draw."""
    figure: Path | None = None
    """Also draw it: STEM.svg and STEM.png, the hyperbolas and B_crit against the loss."""
    out: Path | None = None
    """Where the JSON goes; recipe.batch_from reads it."""


def batch(argv: list[str]) -> int:
    """Critical batch sizes of a sweep of the batch; 1 where no hyperbola can be fitted."""
    args = _parse(BatchArguments, "batch", argv, "Batch against steps to a loss: B_crit of loss and of data.", EXAMPLE)
    from jaxscale.batch import study_batches

    result = study_batches(
        args.source, losses=args.loss, targets=args.targets, points=args.points,
        columns=_pairs("columns", args.columns), where=args.where, seq_len=args.seq_len, loss_unit=args.loss_unit,
        bootstrap=args.bootstrap, confidence=args.confidence, seed=args.seed,
    )  # fmt: skip
    _finish(result, args.out)
    if args.figure is not None:
        from jaxscale.report.batch import write_batch_figure

        print(f"written: {', '.join(map(str, write_batch_figure(result, args.figure)))}")
    return 0
