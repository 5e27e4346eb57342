"""Run folders -> Observations: what counts as evidence, and every run that does not, with its reason.

Only a `done` run is evidence. The rest is refused by its state; a declared rule (`grid.exclude_spike`) may
refuse more. Runs that differ in what a spec does not hold (text, precision, device, versions) are not mixed.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxscale.errors import MisuseError, VerdictError
from jaxscale.plain import read_lines
from jaxscale.resolve import describe_run
from jaxscale.runs import METRIC_FIELDS, TUNING_ROLES, Cell, Observations, Plan, read_spec, run_dir
from jaxscale.sweep import CellStatus, read_plan, read_status
from jaxscale.tuning import read_tuning
from jaxscale.variants import list_differing

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["KINDS", "collect_curves", "collect_runs", "read_curves"]

KINDS = ("data_sha256", "tokenizer", "precision", "device_kind", "jax", "jaxscale")
"""Provenance that must agree over all runs of one fit; precision over those with one recipe.precision."""
SPIKE_TAIL = 0.05
"""The last share of the training curve whose mean is compared with the best such stretch."""


def collect_runs(study_dir: str | Path, *, allow_mixed: bool = False) -> Observations:
    """Evidence of a study folder: N (total parameters), D, C (exact FLOPs), loss (nats per token), and more.

    U are the unique tokens that a run read. Where the text has several sources there are columns loss:NAME (and its
    standard error and tokens), where they were mixed share:NAME of the training tokens and epochs:NAME.
    Rows keep the plan's order; `role` tells grid from holdout. Of a study with variants there is a row for each run
    and `variant` that it serves, with the speed, rate and batch of the run. N counts the parameters that a token
    passes through, `N_total` all; they differ with experts only. A folder without plan.json, as `train_run` alone
    leaves it, is read by its run folders, all of role grid. Raises MisuseError when finished runs differ
    in one of `KINDS` and `allow_mixed` is false, naming what differs.
    """
    import pandas as pd

    folder = Path(study_dir)
    cells, spike = _find_cells(folder)
    statuses = read_status(folder, cells)
    reasons = [(status, _refuse(status, folder, spike)) for status in statuses]
    kept = [status for status, reason in reasons if not reason]
    refused = tuple(_refusal(status.cell, reason) for status, reason in reasons if reason)
    if not allow_mixed:
        _check_kinds(kept)
    varied = any(cell.variants for cell in cells)
    rows = [row | _by_source(status)
            for status in kept for row in (_variant_rows(status) if varied else [_row(status)])]  # fmt: skip
    known = [*_COLUMNS, *(_VARIANT_COLUMNS if varied else ())]
    sources = sorted({name for row in rows for name in row} - set(known), key=_order_column)
    frame = pd.DataFrame(rows, columns=[*known, *sources])
    if shares := [name for name in sources if name.startswith("share:")]:
        frame[shares] = frame[shares].fillna(0.0)
    if not varied and (frame["N_total"] == frame["N"]).all():
        frame = frame.drop(columns="N_total")  # without experts it would be one convention told twice
    text = frame.to_csv(index=False)
    source = {
        "path": str(folder),
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
        "rows_total": len(statuses),
        "rows_used": len(frame),
        "rows_refused": list(refused),
    }
    if varied:  # a run may serve several: rows are of (run, variant)
        source["rows_total"] = sum(len(status.cell.variants) for status in statuses)
        source["variants_differ_in"] = list_differing(read_plan(folder).config)
    tuning = read_tuning(folder)
    return Observations(frame, refused, source | ({"tuning": tuning} if tuning else {}), rule="exact")


def _refusal(cell: Cell, reason: str) -> dict[str, Any]:
    whose = {"variants": list(cell.variants)} if cell.variants else {}
    return {"run_id": cell.run_id, "reason": reason, **whose}


_COLUMNS = (
    "run_id", "role", "budget", "N", "N_non_embedding", "D", "C", "loss", "loss_std_error", "bits_per_byte",
    "train_loss", "seed", "U", "d_model", "n_layers", "flops_6nd", "steps", "seconds", "parent", "family",
    "N_total",
)  # fmt: skip


_VARIANT_COLUMNS = ("variant", "tokens_per_s", "flops_per_s", "lr", "batch_tokens")
"""What comparing needs beside."""


def _variant_rows(status: CellStatus) -> list[dict[str, Any]]:
    """A finished run once for every variant that it serves."""
    cell, result, row = status.cell, status.result, _row(status)
    assert result is not None
    values = (result.tokens_per_s, result.flops_per_s, cell.spec.lr, cell.spec.batch_seqs * cell.spec.model.seq_len)
    return [row | dict(zip(_VARIANT_COLUMNS, (name, *values), strict=True)) for name in cell.variants]


def _row(status: CellStatus) -> dict[str, Any]:
    cell, result = status.cell, status.result
    assert result is not None
    unique = result.provenance.get("unique_tokens")
    if unique is None:  # a run of before it was noted
        unique = cell.spec.tokens if cell.epochs is None or cell.epochs <= 1 else round(cell.spec.tokens / cell.epochs)
    values = (
        cell.run_id, cell.role, cell.spec.budget_flops, float(result.n_params),
        float(result.n_params_non_embedding), float(result.tokens), result.flops, result.loss,
        result.loss_std_error, result.bits_per_byte, result.train_loss, cell.spec.seed, float(unique),
        cell.spec.model.d_model, cell.spec.model.n_layers, cell.flops_6nd, cell.spec.steps, result.seconds,
        cell.spec.parent or cell.run_id, cell.spec.family, float(result.n_params_total or result.n_params),
    )  # fmt: skip
    return dict(zip(_COLUMNS, values, strict=True))


def _by_source(status: CellStatus) -> dict[str, float]:
    """Columns of a run whose text has several sources: loss:NAME, loss_std_error:NAME, val_tokens:NAME; of a mixture
    share:NAME and epochs:NAME; of a filtered text quality_keep."""
    result, data = status.result, status.cell.spec.data
    assert result is not None
    row: dict[str, float] = {"quality_keep": data.quality_keep} if data.quality_from else {}
    for name, told in result.losses.items() if len(result.losses) > 1 else ():
        row |= {f"loss:{name}": told["loss"], f"loss_std_error:{name}": told["std_error"]}
        row |= {f"val_tokens:{name}": told["tokens"]}
    for name, told in result.provenance.get("mixture", {}).items():
        row |= {f"share:{name}": told["share"], f"epochs:{name}": told["epochs"]}
    return row


def _order_column(name: str) -> tuple[int, str]:
    kinds = ("quality_keep", "share", "epochs", "loss", "loss_std_error", "val_tokens")
    kind, _, source = name.partition(":")
    return kinds.index(kind), source


def _find_cells(folder: Path) -> tuple[Sequence[Cell], float | None]:
    """Cells and the declared spike limit, from the plan or else from the run folders themselves."""
    specs = sorted(folder.glob("*/spec.json"))
    if (folder / "plan.json").exists() or not specs:
        plan = read_plan(folder)
        return plan.cells, plan.config["grid"]["exclude_spike"]
    return [describe_run(read_spec(file)) for file in specs], None


def _refuse(status: CellStatus, folder: Path, limit: float | None) -> str:
    """Why this run is no evidence; empty if it is."""
    result = status.result
    said = f" ({status.state}: {status.reason})" if status.reason else ""
    if status.cell.role in TUNING_ROLES:
        return f"{status.cell.role}: trained at a learning rate that was tried, not at the study's own{said}"
    if status.cell.role == "trunk":
        return f"trunk: its learning rate never decays, its branches are the evidence{said}"
    if status.state != "done" or result is None:
        return f"{status.state}: {status.reason}" if status.reason else status.state
    if result.run_id != status.cell.run_id:
        return f"foreign: result.json belongs to run {result.run_id}"
    if result.tokens != status.cell.spec.tokens:
        return f"incomplete: {result.tokens} of {status.cell.spec.tokens} tokens"
    if result.loss is None or not math.isfinite(result.loss):
        return f"no loss: result.json says done with loss {result.loss}"
    if limit is not None:
        rise = measure_spike(run_dir(folder, result.run_id) / "metrics.jsonl")
        if rise is None:
            return "excluded: no training curve in metrics.jsonl to apply grid.exclude_spike to"
        if rise > limit:
            return f"excluded: training loss ends {rise:.3f} nats above its best (grid.exclude_spike {limit:g})"
    return ""


def measure_spike(metrics: Path) -> float | None:
    """Mean training loss of the last 5% of the curve minus the lowest mean of any such stretch, nats.

    None without a curve.
    """
    losses = [line["loss"] for line in read_lines(metrics, METRIC_FIELDS)]
    width = max(1, round(len(losses) * SPIKE_TAIL))
    means = [sum(losses[i : i + width]) / width for i in range(len(losses) - width + 1)]
    return means[-1] - min(means) if means else None


def _check_kinds(statuses: Sequence[CellStatus]) -> None:
    """MisuseError where runs differ in a kind that no variant's declared change lets differ."""
    for kind in KINDS:
        groups: dict[Any, Counter[str]] = {}
        for status in statuses:
            if status.result is not None:
                told = str(status.result.provenance.get(kind))
                groups.setdefault(_declared(status.cell, kind), Counter())[told] += 1
        for counts in groups.values():
            if len(counts) < 2:
                continue
            seen = ", ".join(f"{value[:24]!r} in {n} runs" for value, n in counts.most_common())
            raise MisuseError(
                f"collect: the runs differ in {kind} ({seen}); reset the odd ones with `jaxscale reset DIR RUN`, "
                f"or pass --allow-mixed to use them together"
            )


def _declared(cell: Cell, kind: str) -> Any:
    """What must agree for runs to agree in `kind`: variants may differ in text and precision by their specs alone."""
    if not cell.variants:
        return None
    return {"data_sha256": cell.spec.data, "tokenizer": cell.spec.data, "precision": cell.spec.precision}.get(kind)


def read_curves(study_dir: str | Path, plan: Plan) -> pd.DataFrame:
    """Training curves of all runs, long: run_id, step, tokens, flops, train_loss, lr, grad_norm, seconds."""
    import pandas as pd

    frames = []
    for cell in plan.cells:
        lines = read_lines(run_dir(Path(study_dir), cell.run_id) / "metrics.jsonl", METRIC_FIELDS)
        if lines:
            frames.append(pd.DataFrame(lines).rename(columns={"loss": "train_loss"}).assign(run_id=cell.run_id))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=["run_id", "tokens", "train_loss"])


def collect_curves(study_dir: str | Path, observations: Observations) -> Observations:
    """Training curves of the runs in `observations`, long: run_id, N, D, C, loss, and parent and role where known.

    `loss` is the mean training loss of a logging interval, nats per token, and stands at the interval's middle in D
    and C. For envelopes with shared horizons; the ends' validation losses are not mixed in.
    """
    import pandas as pd

    frames, refused = [], list(observations.refused)
    for run in observations.frame.to_dict("records"):
        lines = read_lines(run_dir(Path(study_dir), str(run["run_id"])) / "metrics.jsonl", METRIC_FIELDS)
        if lines:
            known = {name: run[name] for name in ("run_id", "N", "parent", "role") if name in run}
            frames.append(pd.DataFrame(_middles(lines)).assign(**known))
        else:
            refused.append({"run_id": run["run_id"], "reason": "no training curve in metrics.jsonl"})
    if not frames:
        raise VerdictError(f"{study_dir}: none of {len(observations)} runs has a training curve in metrics.jsonl")
    frame = pd.concat(frames, ignore_index=True)
    if "parent" in frame:  # the part that branches share is told once, by the last of them
        frame = frame.drop_duplicates(["parent", "N", "D", "loss"], keep="last", ignore_index=True)
    source = {**observations.source, "rows_total": len(frame), "rows_used": len(frame), "rows_refused": refused,
              "curves": "metrics.jsonl"}  # fmt: skip
    return Observations(frame, tuple(refused), source, observations.rule)


def _middles(lines: list[dict[str, Any]]) -> dict[str, list[float]]:
    """D, C and loss of logging intervals, each at the middle between its own end and the one before."""
    middles: dict[str, list[float]] = {"loss": [float(line["loss"]) for line in lines]}
    for letter, field in (("D", "tokens"), ("C", "flops")):
        ends = [0.0, *(float(line[field]) for line in lines)]
        middles[letter] = [(before + end) / 2 for before, end in pairwise(ends)]
    return middles
