"""The verbs that watch a study: `status`, the state of every cell for people and programs, and `logs`, one run's story.

Both only read, from any machine that sees the folder. What a running cell shows comes from its lease, which its holder
writes anew every few seconds; times of another machine are shown, and nothing is decided by them.

    time left of a cell    tokens left / its tokens a second
    of the study           planned seconds left * (measured / planned seconds of the cells that have ended) / holders
"""

from __future__ import annotations

import json
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from jaxscale.cli.options import parse
from jaxscale.cli.tables import STYLES, make_console
from jaxscale.errors import MisuseError, VerdictError
from jaxscale.format import format_count, format_flops, format_loss, format_number, format_seconds
from jaxscale.leases import SWEEPS, Holding, read_holdings
from jaxscale.plain import read_lines, write_json
from jaxscale.runs import METRIC_FIELDS, TUNING_ROLES, Cell, Plan, run_dir
from jaxscale.spend import Spending, read_spending, remaining_seconds
from jaxscale.sweep import CellStatus, read_plan, read_status
from jaxscale.train.logs import hide_secrets

if TYPE_CHECKING:
    from jaxscale.register.watch import Watch

__all__ = ["logs", "seconds_left", "status"]

FEW = 30
"""Cells up to which the live table shows all; of more it shows those that move or went wrong."""


@dataclass(frozen=True)
class StatusOptions:
    """Where to look."""

    directory: Annotated[Path, tyro.conf.Positional]
    """Study folder."""
    watch: bool = False
    """Keep the table live until every cell has ended."""
    register: Path = Path("forecasts.jsonl")
    """Register of forecasts: a cell at a registered target is shown beside its band. Not there: nothing is said."""
    out: Path | None = None
    """Also write the table as JSON here."""


def status(argv: list[str]) -> int:
    """Table of cells: state, progress, loss, who trains them, time left."""
    options = parse(StatusOptions, argv, "status", "Table of cells: state, progress, loss, speed, who trains them, "
                    "time left.\n\nexample: jaxscale status runs/quickstart --watch")  # fmt: skip
    planned = read_plan(options.directory)
    console = make_console()
    if options.watch:
        return _watch_study(options, planned, console)
    statuses = read_status(options.directory, planned.cells)
    spending = read_spending(options.directory, planned, statuses)
    watches = _find_watches(options, planned, statuses)
    console.print(_draw(planned, statuses, spending, watches))
    if planned.untuned:
        console.print(_tell_sweeps(options.directory, planned), soft_wrap=True, markup=False)
    if options.out is not None:
        write_json(options.out, json.dumps(_to_plain(planned, statuses, spending, watches), indent=1))
    return 0


def _tell_sweeps(folder: Path, planned: Plan) -> str:
    """How far the sweeps are that come before the cells of this table."""
    cells = read_plan(folder / SWEEPS).cells if (folder / SWEEPS / "plan.json").exists() else ()
    ended = sum(one.result is not None for one in read_status(folder / SWEEPS, cells))
    return (f"nothing of it is trained yet, and its rates are provisional: the sweeps of {', '.join(planned.untuned)} "
            f"have not ended ({ended} of {len(cells)} runs; `jaxscale status {folder / SWEEPS}`)")  # fmt: skip


def _watch_study(options: StatusOptions, planned: Plan, console: Console) -> int:
    from rich.live import Live

    with Live(console=console, auto_refresh=False) as live:
        while True:
            statuses = read_status(options.directory, planned.cells)
            spending = read_spending(options.directory, planned, statuses)
            watches = _find_watches(options, planned, statuses)
            live.update(_draw(planned, statuses, spending, watches, live=True), refresh=True)
            if all(s.state not in ("planned", "running") for s in statuses):
                return 0
            time.sleep(1.0)


def _find_watches(options: StatusOptions, planned: Plan, statuses: Sequence[CellStatus]) -> list[Watch]:
    """The cells that a registered forecast speaks of, beside each such forecast."""
    if not options.register.is_file():
        return []
    from jaxscale.register.chain import read_register
    from jaxscale.register.watch import watch_cells

    register = read_register(options.register)
    if register.breaks:
        raise VerdictError(f"{options.register}: its chain is broken at record {register.breaks[0].line}; `jaxscale "
                           f"register check` says how; give --register another, or none")  # fmt: skip
    return watch_cells(options.directory, planned, list(statuses), register)


def seconds_left(status: CellStatus) -> float | None:
    """Seconds until a running cell has made its steps, at its own speed; None where that is not known."""
    rate = _rate(status) if status.state == "running" else None
    spec = status.cell.spec
    return (spec.steps - status.step) * spec.batch_seqs * spec.model.seq_len / rate if rate else None


def _study_seconds_left(statuses: Sequence[CellStatus]) -> float | None:
    """Seconds until the study has ended with as many holders as now; None while nobody trains."""
    holders = sum(status.state == "running" for status in statuses)
    if not holders:
        return None
    ratios = [s.result.seconds / s.cell.seconds for s in statuses if s.result and s.state == "done" and s.cell.seconds]
    pace = statistics.median(ratios) if ratios else 1.0
    rest = sum(remaining_seconds(status) for status in statuses if status.state in ("planned", "running"))
    return max(pace * rest / holders, max((seconds_left(s) or 0.0 for s in statuses), default=0.0))


def _draw(
    planned: Plan, statuses: Sequence[CellStatus], spending: Spending, watches: Sequence[Watch], live: bool = False
) -> Group:
    """The table, the totals, what failed, and a line for every cell and forecast that speaks of it."""
    shown = [s for s in statuses if not (live and len(statuses) > FEW and s.state in ("done", "planned"))]
    parts: list[RenderableType] = [_table(planned.study, statuses, shown)]
    if len(shown) < len(statuses):
        parts.append(Text(f"{len(statuses) - len(shown)} cells that are done or wait are not shown", style="dim"))
    parts += [Text(_totals(statuses, spending), style="bold"), *_problems(statuses)]
    return Group(*parts, *(Text(str(watch)) for watch in watches))


def _table(title: str, statuses: Sequence[CellStatus], shown: Sequence[CellStatus]) -> Table:
    counts = ", ".join(f"{n} {state}" for state, n in Counter(status.state for status in statuses).items())
    table = Table(title=f"{title}: {counts}", title_justify="left")
    columns = [column for column in COLUMNS if column[0] not in SOMETIMES or any(column[1](s) for s in shown)]
    for name, _ in columns:
        table.add_column(name, justify="left" if name in ("variant", "by", "") else "right")
    for each in shown:
        table.add_row(*(show(each) for _, show in columns))
    if any(status.cell.role == "trunk" for status in statuses):
        paid = sum(status.result.paid_flops for status in statuses if status.result)
        whole = sum(status.cell.paid_flops for status in statuses)
        table.caption = f"{format_flops(paid)} of {format_flops(whole)} FLOPs are paid; trunks are counted once"
    return table


def _state(status: CellStatus) -> str:
    colour = STYLES.get(status.state, "")
    return f"[{colour}]{status.state}[/]" if colour else status.state


def _rate(status: CellStatus) -> float | None:
    """Tokens a second: of the result, else by the holder's word, else by its curve until that comes."""
    if status.result is not None:
        return status.result.tokens_per_s
    if status.state != "running" or status.holding is None:
        return None
    spec = status.cell.spec
    own = status.trained_s and not spec.parent and status.step * spec.batch_seqs * spec.model.seq_len / status.trained_s
    return status.holding.tokens_per_s or own or None


def _mfu(status: CellStatus) -> float | None:
    if status.result is not None:
        return status.result.mfu
    return status.holding.mfu if status.state == "running" and status.holding else None


def _restarts(status: CellStatus) -> int:
    """Times it was begun again: by the starts that are part of its result, or while it runs by its leases."""
    if status.result is not None:
        return status.result.restarts
    return status.holding.generation - 1 if status.holding else 0


def _time(status: CellStatus) -> str:
    if status.result is not None:
        return format_seconds(status.result.seconds)
    left = seconds_left(status)
    return f"{format_seconds(left)} left" if left is not None else f"~{format_seconds(status.cell.seconds)}"


def _remark(status: CellStatus) -> str:
    cell = status.cell
    kind = f"branch of {cell.spec.parent}" if cell.spec.parent else {"holdout": "held out"}.get(cell.role, "")
    return escape(status.reason) or (kind if kind or cell.role != "trunk" else "trunk")


COLUMNS = (
    ("run", lambda s: s.cell.run_id),
    ("variant", lambda s: ", ".join(s.cell.variants)),
    ("budget C", lambda s: format_flops(s.cell.spec.budget_flops)),
    ("N", lambda s: format_count(s.cell.n_params)),
    ("D", lambda s: format_count(s.cell.spec.tokens)),
    ("seed", lambda s: str(s.cell.spec.seed)),
    ("lr", lambda s: f"{s.cell.spec.lr:.4g}" if s.cell.role in TUNING_ROLES else ""),
    ("state", _state),
    ("progress", lambda s: f"{s.step / s.cell.spec.steps:.0%}"),
    ("loss", lambda s: format_loss(s.loss)),
    ("tok/s", lambda s: format_count(rate) if (rate := _rate(s)) else ""),
    ("MFU", lambda s: f"{mfu:.0%}" if (mfu := _mfu(s)) is not None else ""),
    ("by", lambda s: s.holding.who if s.state == "running" and s.holding else ""),
    ("restarts", lambda s: str(_restarts(s) or "")),
    ("time", _time),
    ("", _remark),
)
"""Of the table: name, and what it shows of a cell. ~ marks a planned time."""
SOMETIMES = ("variant", "lr", "tok/s", "MFU", "by", "restarts")
"""Columns that are left out where no cell has something to show."""


def _totals(statuses: Sequence[CellStatus], spending: Spending) -> str:
    """One line: how far, how fast, how long still, what it has cost."""
    ended = sum(status.state not in ("planned", "running") for status in statuses)
    rates = [rate for status in statuses if status.state == "running" and (rate := _rate(status))]
    parts = [f"{ended} of {len(statuses)} ended"]
    if rates:
        parts.append(f"{format_count(sum(rates))} tok/s by {len(rates)} holders")
    left = _study_seconds_left(statuses)
    if left is not None and ended < len(statuses):
        parts.append(f"about {format_seconds(left)} left")
    cap = f", cap {format_number(spending.cap)}" if spending.cap is not None else ""
    parts.append(
        f"{format_number(spending.spent)} {spending.unit} spent, {format_number(spending.planned)} planned{cap}"
    )
    return "; ".join(parts)


def _problems(statuses: Sequence[CellStatus]) -> list[Text]:
    """What failed or diverged, each with its reason and what mends it."""
    bad = [status for status in statuses if status.state in ("failed", "diverged")]
    lines = [Text(f"{s.cell.run_id} {s.state}: {s.reason}", style="red") for s in bad]
    return [*lines, Text("`jaxscale logs DIR RUN` tells more, `jaxscale reset DIR RUN` puts one back")] if lines else []


def _to_plain(
    planned: Plan, statuses: Sequence[CellStatus], spending: Spending, watches: Sequence[Watch]
) -> dict[str, Any]:
    rows = [_row(status) for status in statuses]
    for row in rows:
        told = [watch.to_plain() for watch in watches if watch.status.cell.run_id == row["run_id"]]
        if told:
            row |= {"forecast": told[-1], "forecasts": told}
    totals = {**vars(spending), "seconds_left": _study_seconds_left(statuses)}
    return {"schema": "jaxscale.status/1", "study": planned.study, "rows": rows, "totals": totals}


def _row(status: CellStatus) -> dict[str, Any]:
    spec, holding = status.cell.spec, status.holding if status.state == "running" else None
    return {
        "run_id": status.cell.run_id,
        "role": status.cell.role,
        **({"variants": list(status.cell.variants)} if status.cell.variants else {}),
        "budget": spec.budget_flops,
        "N": status.cell.n_params,
        "D": spec.tokens,
        "seed": spec.seed,
        "parent": spec.parent or None,
        "paid_flops": status.result.paid_flops if status.result else None,
        "state": status.state,
        "reason": status.reason,
        "step": status.step,
        "steps": spec.steps,
        "loss": status.loss,
        "mfu": _mfu(status),
        "tokens_per_s": _rate(status),
        "seconds_left": seconds_left(status),
        "holder": holding.who if holding else None,
        "silent_s": round(status.silent_s, 1) if holding else None,
        "saved_step": holding.saved_step if holding else None,
        "restarts": _restarts(status),
    }


@dataclass(frozen=True)
class LogsOptions:
    """Whose story."""

    directory: Annotated[Path, tyro.conf.Positional]
    """Study folder."""
    run: Annotated[str, tyro.conf.Positional]
    """Run id, or its beginning."""
    lines: int = 20
    """Last lines of each worker's log, and of the curve."""


def logs(argv: list[str]) -> int:
    """Who trained a run, how each attempt ended, the last lines of their logs, and the end of the curve."""
    options = parse(LogsOptions, argv, "logs", "Who trained a run, how each attempt ended, the last lines of their "
                    "logs, and the end of its curve.\n\nexample: jaxscale logs runs/quickstart 3f2a91")  # fmt: skip
    if options.lines < 1:
        raise MisuseError(f"--lines: {options.lines} shows nothing; give 1 or more")
    cell = read_plan(options.directory).find_cell(options.run)
    console = make_console()
    (now,) = read_status(options.directory, [cell])
    console.print(f"run {cell.run_id}: {now.state}{f', {now.reason}' if now.reason else ''}, step {now.step} of "
                  f"{cell.spec.steps}, loss {format_loss(now.loss)}", markup=False, soft_wrap=True)  # fmt: skip
    held = [holding for holding in read_holdings(options.directory) if holding.run_id == cell.run_id]
    console.print(_attempts_table(held, now) if held else "nobody has held it")
    for log in dict.fromkeys(holding.log for holding in held if holding.log):
        _print_tail(options.directory / "logs" / Path(log).name, cell, options.lines, console)
    _print_curve(options.directory, cell, options.lines, console)
    return 0


def _attempts_table(held: Sequence[Holding], now: CellStatus) -> Table:
    table = Table(title="held by", title_justify="left")
    for name in ("", "holder", "since (its clock)", "from step", "to step", "saved", "time", "chips", "ended"):
        table.add_column(name, justify="left" if name in ("holder", "ended") else "right")
    for holding in held:
        newest = holding.generation == held[-1].generation
        how = holding.released or ("still holds it" if newest and now.state == "running" else "died, or lost it")
        since = datetime.fromtimestamp(holding.claimed_at).strftime("%Y-%m-%d %H:%M:%S")
        table.add_row(str(holding.generation), holding.who, since, str(holding.begun_step), str(holding.step),
                      str(holding.saved_step), format_seconds(holding.seconds), f"{holding.chips:g}", how)  # fmt: skip
    return table


def _print_tail(log: Path, cell: Cell, lines: int, console: Console) -> None:
    text = log.read_text(errors="replace").splitlines() if log.is_file() else []
    console.print(f"{log}: {'the last lines' if text else 'empty'}", style="bold", markup=False, soft_wrap=True)
    for line in text[-lines:]:
        console.print(f"  {hide_secrets(line)}", markup=False, soft_wrap=True)


def _print_curve(study_dir: Path, cell: Cell, lines: int, console: Console) -> None:
    curve = read_lines(run_dir(study_dir, cell.run_id) / "metrics.jsonl", METRIC_FIELDS)
    console.print(f"curve: {len(curve)} lines", style="bold")
    for line in curve[-lines:]:
        console.print(f"  step {line['step']:>9,}  loss {format_loss(line['loss'])}  gradient norm "
                      f"{line.get('grad_norm', float('nan')):.3g}  {format_seconds(line['seconds'])}")  # fmt: skip
