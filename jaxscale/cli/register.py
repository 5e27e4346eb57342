"""The verb `register`: add a forecast, list and check the chain, score forecasts by what was measured."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from jaxscale.cli.analysis import TableOptions
from jaxscale.cli.options import parse
from jaxscale.errors import MisuseError, VerdictError
from jaxscale.register.chain import Register, append_records, read_register, read_time

if TYPE_CHECKING:
    from jaxscale.register.measure import Measured
    from jaxscale.register.score import Scored

__all__ = ["DEFAULT", "register"]

DEFAULT = Path("forecasts.jsonl")

USAGE = """usage: jaxscale register add FORECAST.json [--note TEXT]     write a forecast down, before the run
       jaxscale register list                                 its records, and the measurements beside them
       jaxscale register check [--head HASH]                  is the chain whole? which record is broken?
       jaxscale register score SOURCE ... | --measured ...    set measurements beside the forecasts

example: jaxscale register add runs/quickstart/forecast.json --note "before the run at 1e13"
`jaxscale register add --help` lists the options of add, and so for the others. All take --register FILE, default
forecasts.jsonl here."""


@dataclass(frozen=True)
class AddOptions:
    """Options of `register add`."""

    forecast: Annotated[Path, tyro.conf.Positional]
    """FORECAST.json, as `jaxscale forecast --flops C --out` writes it."""
    register: Path = DEFAULT
    """The register."""
    note: str = ""
    """A sentence to keep with it."""


@dataclass(frozen=True)
class ListOptions:
    """Options of `register list`."""

    register: Path = DEFAULT
    """The register."""
    figure: Path | None = None
    """Also draw forecasts, intervals and measurements: FIGURE.svg and FIGURE.png."""
    out: Path | None = None
    """Also write the records as JSON here."""


@dataclass(frozen=True)
class CheckOptions:
    """Options of `register check`."""

    register: Path = DEFAULT
    """The register."""
    head: str = ""
    """A hash published before: fails unless a record of the chain has it (12 digits or more)."""


@dataclass(frozen=True)
class ScoreOptions(TableOptions):
    """Options of `register score`."""

    sources: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Study folders of target runs, or tables (observations.csv)."""
    measured: tuple[str, ...] = ()
    """One run by hand: C=1e13 loss=1.83 N=2e5, and where known D=8e6 began=2026-11-22T14:00."""
    register: Path = DEFAULT
    """The register."""
    only: tuple[str, ...] = ()
    """Forecasts to score, by number or the beginning of their hash; default all."""
    tolerance: float = 0.02
    """Relative distance in C within which a run measures a target."""
    out: Path | None = None
    """Also write the new scores as JSON here (jaxscale.register_scores/1)."""


def register(argv: list[str]) -> int:
    """One of the sub-verbs."""
    verbs: dict[str, Callable[[list[str]], int]] = {"add": _add, "list": _list, "check": _check, "score": _score}
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if argv else 2
    if argv[0] == "--version":
        from jaxscale.cli import dispatch

        return dispatch(argv)
    if argv[0] not in verbs:
        raise MisuseError(f"{argv[0]!r} is unknown; use {', '.join(verbs)}")
    return verbs[argv[0]](argv[1:])


def _add(argv: list[str]) -> int:
    options = parse(AddOptions, argv, "register add", "Append a forecast to the register, one record a target.\n\n"
                    "example: jaxscale register add forecast.json --note 'before the run at 1e13'")  # fmt: skip
    from jaxscale.cli.register_tables import say_added
    from jaxscale.register.entry import enter_forecast

    entries = enter_forecast(options.forecast, options.register, options.note)
    stood: list[dict[str, Any]] = []

    def make(known: Register) -> Sequence[dict[str, Any]]:
        stood.extend(known.of_kind("forecast"))
        old = {record["forecast_sha256"]: record["number"] for record in stood}
        for entry in entries:
            if entry["forecast_sha256"] in old:
                print(f"at {entry['C']:g} FLOPs: this very forecast is record {old[entry['forecast_sha256']]} already")
        return [entry for entry in entries if entry["forecast_sha256"] not in old]

    records, told = append_records(options.register, make)
    if not records:
        raise MisuseError(
            f"{options.forecast}: every forecast in it is in {options.register} already; nothing was added"
        )
    for line in told + [line for record in records for line in say_added(record, stood)]:
        print(line)
    print(f"{options.register}: last hash {records[-1]['hash']}\ncommit the file, or publish this hash, before the run")
    return 0


def _list(argv: list[str]) -> int:
    options = parse(ListOptions, argv, "register list", "The forecasts of a register, and what was measured.\n\n"
                    "example: jaxscale register list")  # fmt: skip
    from jaxscale.cli.register_tables import tabulate_register
    from jaxscale.plain import write_json

    found = _read(options.register)
    print(tabulate_register(found.sound, str(options.register)))
    if options.out is not None:
        plain = {"schema": "jaxscale.register_list/1", "head": found.head, "records": list(found.records)}
        write_json(options.out, json.dumps(plain, indent=1))
    if options.figure is not None:
        from jaxscale.report.register import write_register_figure

        written = write_register_figure(found.sound.records, options.figure)
        print(f"written: {', '.join(map(str, written)) or 'no figure, there is no forecast'}")
    return _say_state(found, options.register)


def _read(path: Path) -> Register:
    if not path.is_file():
        raise MisuseError(f"{path}: no such register; `jaxscale register add FORECAST.json` begins one")
    return read_register(path)


def _say_state(found: Register, path: Path) -> int:
    """Notes, breaks and what a killed append left; 1 where the chain is broken."""
    for note in found.notes:
        print(f"note: {note}")
    if found.torn:
        print(f"note: the last line ({len(found.torn)} bytes) was cut by a kill and is no record; the next add sets it "
              f"aside")  # fmt: skip
    for one in found.breaks:
        print(f"broken: record {one.line}: {one.reason}")
    if not found.breaks:
        return 0
    print(f"{path}: the chain is broken; what is shown stands before the break. Restore the file from its repository "
          f"or a copy")  # fmt: skip
    return 1


def _check(argv: list[str]) -> int:
    options = parse(CheckOptions, argv, "register check", "Is the chain whole, and does it still hold what was "
                    "published?\n\nexample: jaxscale register check --head 3f2a91c0d5e7")  # fmt: skip
    found = _read(options.register)
    code = _say_state(found, options.register)
    if code == 0:
        print(f"{options.register}: {len(found.records)} records, the chain is whole, last hash {found.head or 'none'}")
    return max(code, _check_head(found, options.head), _check_commit(options.register))


def _check_head(found: Register, head: str) -> int:
    if not head:
        return 0
    if len(head) < 12:
        raise MisuseError(f"--head {head}: give 12 digits of the hash or more")
    at = [record for record in found.sound.records if record["hash"].startswith(head)]
    print(f"head {head[:12]}: " + (f"record {at[0]['number']} has it" if at else "no record has it: what was published "
                                   "is not in this chain, which was cut or written anew"))  # fmt: skip
    return 0 if at else 1


def _check_commit(path: Path) -> int:
    """Whether the file goes on from the one that the last commit of its repository holds."""
    from jaxscale.checkout import committed_bytes, folder_commit

    committed, here = committed_bytes(path), folder_commit(path.resolve().parent)
    if committed is None:
        print(f"git: the register is not committed{'' if here else ', and lies in no repository'}; a commit or a "
              f"published hash is what dates it")  # fmt: skip
        return 0
    goes_on = path.read_bytes().startswith(committed)
    print(f"git: it {'goes on from' if goes_on else 'does NOT go on from'} the register of commit {here.rstrip('+')}")
    return 0 if goes_on else 1


def _score(argv: list[str]) -> int:
    options = parse(ScoreOptions, argv, "register score", "Set measurements beside the forecasts of a register.\n\n"
                    "example: jaxscale register score runs/target\n"
                    "         jaxscale register score --measured C=1e13 loss=1.83 N=2e5")  # fmt: skip
    from jaxscale.cli.register_tables import say_scored, tabulate_scores

    if not options.sources and not options.measured:
        raise MisuseError("nothing to score by: name a study folder or a table, or give --measured C=.. loss=.. N=..")
    if not 0 < options.tolerance < 1:
        raise MisuseError(f"tolerance {options.tolerance:g} must lie between 0 and 1; 0.02 is the default")
    _read(options.register)
    measured = _gather(options)
    scored: list[Scored] = []
    records, told = append_records(options.register, lambda known: _score_all(known, measured, options, scored))
    for line in [*told, *(line for one in scored for line in say_scored(one))]:
        print(line)
    if not records:
        raise VerdictError(f"{options.register}: no forecast of it could be scored by these measurements; the lines "
                           f"above say why")  # fmt: skip
    print(tabulate_scores(records))
    print(f"{options.register}: last hash {records[-1]['hash']}")
    if options.out is not None:
        from jaxscale.plain import write_json

        write_json(options.out, json.dumps({"schema": "jaxscale.register_scores/1", "rows": records}, indent=1))
    return 0


def _score_all(
    known: Register, measured: Sequence[Measured], options: ScoreOptions, scored: list[Scored]
) -> list[dict[str, Any]]:
    from jaxscale.register.score import score_forecast

    forecasts = [known.find_forecast(word) for word in options.only] or known.of_kind("forecast")
    if not forecasts:
        raise MisuseError(f"{options.register}: it holds no forecast; `jaxscale register add FORECAST.json` adds one")
    scored += [score_forecast(one, measured, known.of_kind("score"), tolerance=options.tolerance) for one in
               sorted(forecasts, key=lambda one: read_time(one["time"]))]  # fmt: skip
    return [one.content for one in scored if one.content is not None]


def _gather(options: ScoreOptions) -> list[Measured]:
    from jaxscale.cli.analysis import read_table
    from jaxscale.register.measure import gather_measured, parse_measured

    counted: dict[str, Any] = {"count": options.count_params, "flops_rule": options.flops_rule}
    found = [gather_measured(source, **counted) if Path(source).is_dir()
             else gather_measured(source, read_table(source, options)) for source in options.sources]  # fmt: skip
    for one in found:
        for row in one.refused:
            print(f"{one.source}: {row.get('run_id', row.get('row'))} refused: {row['reason']}")
    return [*found, *([parse_measured(options.measured)] if options.measured else [])]
