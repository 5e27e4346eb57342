"""The verbs of a study with several sources: mixture, the best shares; sources, laws by source and loss to loss."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from jaxscale.cli.analysis import _finish, _number, _pairs, _parse

__all__ = ["mixture", "sources"]


@dataclass(frozen=True)
class ReadOptions:
    """What both verbs take."""

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE")] = tyro.MISSING
    """Study folder, observations.csv, CSV (also .gz, .xz) or Parquet."""
    where: str | None = None
    """Rows to keep, by the table's own columns: "role == 'grid'"."""
    bootstrap: int = 500
    """Rounds behind the intervals; 0 for none."""
    confidence: float = 0.95
    """Of every interval."""
    seed: int = 0
    """Of every draw."""
    out: Path | None = None
    """Where the JSON goes."""


@dataclass(frozen=True)
class MixtureArguments(ReadOptions):
    """Arguments of `mixture`."""

    weights: tuple[str, ...] = ()
    """What to be good at: NAME=WEIGHT of texts with a column loss:NAME; default: as the validation set has them."""


@dataclass(frozen=True)
class SourcesArguments(ReadOptions):
    """Arguments of `sources`."""

    columns: tuple[str, ...] = ()
    """For a long table: canonical names and the table's own, as in group=language D=tokens loss=nats."""
    transfer_from: str | None = None
    """Also the loss on every other source as a function of the loss on this one."""
    floor: bool = True
    """Give each source a floor E; --no-floor: straight lines in logs, for few points."""


def mixture(argv: list[str]) -> int:
    """The best shares of the sources for every budget; 1 where no budget has an answer."""
    args = _parse(MixtureArguments, "mixture", argv, "The shares of the training tokens that minimise a weighted loss, "
                  "from runs of a few mixtures.",
                  "jaxscale mixture runs/mixture --weights gcide=.5 tdavid=.5 --out mixture.json")  # fmt: skip
    from jaxscale.mixing import find_mixture

    weights = {name: _number(f"weights: {name}", text) for name, text in _pairs("weights", args.weights).items()}
    result = find_mixture(args.source, weights=weights or None, where=args.where, bootstrap=args.bootstrap,
                          confidence=args.confidence, seed=args.seed)  # fmt: skip
    _finish(result, args.out)
    if result.verdict:
        print(f"jaxscale mixture: {result.verdict}", file=sys.stderr)
    return 1 if result.verdict else 0


def sources(argv: list[str]) -> int:
    """Whether sources share an exponent, and loss to loss; 1 where no law can be compared."""
    args = _parse(SourcesArguments, "sources", argv, "Compare the laws of several sources: one exponent, or one each; "
                  "loss to loss.",
                  "jaxscale sources runs/english --transfer-from gcide --out sources.json")  # fmt: skip
    from jaxscale.bysource import study_sources

    result = study_sources(
        args.source, columns=_pairs("columns", args.columns) or None, where=args.where,
        transfer_from=args.transfer_from, floor=args.floor, bootstrap=args.bootstrap, confidence=args.confidence,
        seed=args.seed,
    )  # fmt: skip
    _finish(result, args.out)
    return 0 if result.comparison is not None else 1
