"""The verb `mup sweep`: train rates x widths x seeds, find each width's best rate, say whether it transfers."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console

from jaxscale.cli.data import build_data
from jaxscale.cli.options import parse
from jaxscale.cli.planning import hold_folder
from jaxscale.cli.study import say_preempted, train_pending
from jaxscale.cli.tables import make_console
from jaxscale.config import Study
from jaxscale.errors import MisuseError
from jaxscale.format import format_count, format_flops, format_seconds
from jaxscale.hopeless import Contest, check_stoppable, keep_order, list_contests, list_unfounded
from jaxscale.limits import check_limits
from jaxscale.plain import write_json
from jaxscale.runs import Plan
from jaxscale.study import load_study
from jaxscale.sweep import CellStatus, read_plan, read_status, reset_cell
from jaxscale.tables import render_table

__all__ = ["sweep"]


@dataclass(frozen=True)
class SweepOptions:
    """Options of `mup sweep`."""

    study: Annotated[Study, tyro.conf.arg(name="")]
    """Each field of the study can be overridden; its recipe is what every run follows, its grid is not used."""
    parameterizations: tuple[Literal["mup", "completep", "standard"], ...] = ()
    """Default: the study's own, and standard for comparison."""
    widths: tuple[int, ...] = (16, 32, 64, 128)
    """Widths of the ladder; below model.base_d_model too."""
    depths: tuple[int, ...] = ()
    """Depths; default the study's model.n_layers. Several of both: the product."""
    lrs: tuple[float, ...] = ()
    """Rates at base width; default --rates of them around recipe.lr."""
    rates: int = 9
    """How many rates, where --lrs is not given."""
    step: float = 1.0
    """Doublings between them."""
    weight_decays: tuple[float, ...] = ()
    """Values of recipe.weight_decay; default the study's."""
    init_scales: tuple[float, ...] = ()
    """Values of model.init_scale; default the study's."""
    seeds: int = 2
    """Seeds of every cell; equal seeds have the same data order at every width and rate."""
    tokens: tuple[float, ...] = ()
    """Training tokens of every run; several: a sweep of horizons. Default: the smallest budget's at its optimum."""
    stop_hopeless: bool = False
    """Stop runs that cannot come within 6% of their contest's best any more (docs/tuning.md); they end as censored.
    Off: every run is evidence. Cosine schedules only."""
    plan_only: bool = False
    """Print what it would train and cost, and stop."""
    out: Path | None = None
    """Folder of the sweep; default runs/<name>-sweep. sweep.json and the figure go there."""


def sweep(argv: list[str]) -> int:
    """1 where the study's own parameterization lacks a width's optimum, or its optimum moves for certain; else 0."""
    study, rest = (load_study(argv[0]), argv[1:]) if argv and not argv[0].startswith("-") else (Study(), argv)
    about = ("Learning rates x widths x seeds: the best rate of each width, whether it moves, what using the small "
             "width's costs at the large one.\n\n"
             "example: jaxscale mup sweep configs/mup_transfer.py --widths 16 32 64 128 --seeds 2")  # fmt: skip
    packed = replace(study, mesh=replace(study.mesh, packs="auto"))
    options = parse(SweepOptions, rest, "mup sweep [STUDY.py]", about, SweepOptions(study=packed))
    command = f"jaxscale mup sweep {shlex.join(argv)}"
    console = make_console()
    check_limits(options.study)
    folder = options.out or Path("runs") / f"{options.study.name}-sweep"
    planned = _plan(options, console)
    if options.stop_hopeless:
        check_stoppable(planned.cells)
    if options.plan_only:
        _print_plan(planned, console)
        return 0
    with hold_folder(folder):
        planned = _write_plan(planned, folder)
        _print_plan(planned, console)
        ways: list[dict[str, Any]] = []
        if not _train(options, folder, planned, console, ways):
            return say_preempted("mup sweep")
        return _conclude(options.study, folder, planned, ways, command)


def _plan(options: SweepOptions, console: Console) -> Plan:
    from jaxscale.mup.sweep import SweepGrid, default_rates, default_tokens, plan_sweep

    study = options.study
    if options.rates < 1 or options.step <= 0:
        raise MisuseError(f"--rates {options.rates} --step {options.step:g}: give a positive number of each")
    own = study.model.parameterization
    grid = SweepGrid(
        parameterizations=options.parameterizations or tuple(dict.fromkeys((own, "standard"))),
        widths=options.widths, depths=options.depths, seeds=options.seeds,
        lrs=options.lrs or default_rates(study, options.rates, options.step),
        tokens=options.tokens or (default_tokens(study),),
        weight_decays=options.weight_decays, init_scales=options.init_scales,
    )  # fmt: skip
    info = build_data(study.data, console)
    if info["vocab_size"] > study.model.vocab_size:
        raise MisuseError(f"model.vocab_size: {study.model.vocab_size} is smaller than the {info['vocab_size']} "
                          f"entries of tokenizer {study.data.tokenizer}; use at least that")  # fmt: skip
    return replace(plan_sweep(study, grid, train_tokens=info["train_tokens"]), data_sha256=info["data_sha256"])


def _write_plan(planned: Plan, folder: Path) -> Plan:
    from jaxscale.mup.sweep import grow_plan

    if (folder / "plan.json").exists():
        planned = grow_plan(read_plan(folder), planned)
    write_json(folder / "plan.json", planned.to_json())
    return planned


def _train(options: SweepOptions, folder: Path, planned: Plan, console: Console, ways: list[dict[str, Any]]) -> bool:
    """Train what has not ended; runs that were stopped beside a rival that came to no loss are put back and go on."""
    while True:
        statuses = read_status(folder, planned.cells)
        results = {status.cell.run_id: status.result for status in statuses if status.result is not None}
        if all(status.result is not None for status in statuses):
            unfounded = list_unfounded(results)
            if not unfounded:
                _tell_censored(statuses, folder, console)
                return True
            for run_id, reason in unfounded.items():
                reset_cell(folder, planned.find_cell(run_id))
                console.print(
                    f"{run_id}: was stopped as hopeless, but {reason}; put back", soft_wrap=True, markup=False
                )
        contests: tuple[Contest, ...] = ()
        if options.stop_hopeless:
            order = keep_order(folder / "hopeless.json", planned.cells, results)
            contests = list_contests(planned.cells, options.study.recipe.decay_rule, order)
        if not train_pending(folder, planned, planned.cells, console, on_way=ways.append, contests=contests):
            return False


def _tell_censored(statuses: Sequence[CellStatus], folder: Path, console: Console) -> None:
    """How many runs were stopped, what that saved (nothing where a pack's lane goes on unread), and the way back."""
    stopped = [status for status in statuses if status.state == "censored" and status.result]
    if not stopped:
        return
    whole = sum(status.cell.flops for status in statuses)
    saved = sum(status.cell.flops - status.result.flops for status in stopped
                if status.result and (status.result.provenance.get("pack") or {}).get("way") != "pack")  # fmt: skip
    console.print(f"{len(stopped)} of {len(statuses)} runs were stopped as hopeless and are no evidence, which saved "
                  f"{saved / whole:.1%} of the FLOPs. To train them from the start to their ends: "
                  f"`jaxscale reset {folder} --censored`, then mup sweep without --stop-hopeless",
                  soft_wrap=True, markup=False)  # fmt: skip


def _print_plan(planned: Plan, console: Console) -> None:
    groups: dict[tuple[Any, ...], list[Any]] = {}
    for cell in planned.cells:
        spec = cell.spec
        groups.setdefault((spec.model.parameterization, spec.model.d_model, spec.model.n_layers, spec.tokens),
                          []).append(cell)  # fmt: skip
    rows = []
    for (parameterization, width, depth, tokens), cells in sorted(groups.items(), key=lambda item: item[0]):
        spec, rates = cells[0].spec, sorted({cell.spec.lr for cell in cells})
        rows.append((parameterization, width, depth, format_count(cells[0].n_params), format_count(tokens), spec.steps,
                     spec.batch_seqs * spec.model.seq_len, f"{len(rates)}: {rates[0]:.4g} to {rates[-1]:.4g}",
                     len({cell.spec.seed for cell in cells}), len(cells),
                     format_seconds(sum(cell.seconds for cell in cells))))  # fmt: skip
    columns = ("", "width", "depth", "N", "tokens", "steps", "batch", "rates", "seeds", "runs", "time")
    console.print(render_table(f"sweep of {planned.study}", columns, rows), soft_wrap=True, markup=False)
    console.print(f"  in all: {len(planned)} runs, {format_flops(planned.total_flops)} FLOPs, "
                  f"{format_seconds(planned.total_seconds)} on {planned.hardware} without compiling\n")  # fmt: skip


def _conclude(study: Study, folder: Path, planned: Plan, ways: list[dict[str, Any]], command: str) -> int:
    from jaxscale.mup import analyse_sweep
    from jaxscale.mup.sweep import sweep_record, tabulate_runs
    from jaxscale.mup.transfer_figure import write_transfer_figure

    rows = tabulate_runs(read_status(folder, planned.cells), study)
    found = analyse_sweep(rows)
    record = sweep_record(study, planned, rows, found.to_records(), _known_ways(folder, ways)) | {"command": command}
    write_json(folder / "sweep.json", json.dumps(record, indent=1))
    write_transfer_figure(found, folder / "sweep")
    print(found)
    print(f"written: {folder / 'sweep.json'}, {folder / 'sweep.png'}")
    own = study.model.parameterization
    lacking = any(one.status != "ok" for one in found.optima if one.parameterization == own)
    moving = any(one.verdict == "moves" for one in found.transfers if one.parameterization == own)
    return 1 if lacking or moving else 0


def _known_ways(folder: Path, ways: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """How every pack of the folder was trained: earlier calls' and this one's."""
    file = folder / "sweep.json"
    try:
        before = json.loads(file.read_text())["ways"] if file.exists() else []
    except (ValueError, KeyError, TypeError):
        before = []
    return [*before, *({k: v for k, v in way.items() if k not in ("worker", "event")} for way in ways)]
