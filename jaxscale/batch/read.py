"""Runs that differ in their batch, from a study folder or a table: what each trained on, its batch, rate and loss.

Of a study folder every finished run counts, held-out ones too. `ends` are the validation losses of runs that were
trained to their own horizon. `curves` are the training losses of constant-rate (wsd) runs, warmup and decay cut off
and smoothed: loss at every D from one run a batch. A cosine run's curve has none to give: before its end its rate is
still high, by how much differs with D, and its losses lie above those of runs that end there (Hoffmann et al. 2022,
app. B; the same for batches in Zhang et al. 2410.21676, who train at a constant rate for that).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from jaxscale.batch.noise import measure_noise
from jaxscale.collect import collect_runs
from jaxscale.errors import MisuseError, VerdictError
from jaxscale.plain import read_json, read_lines, to_plain
from jaxscale.runs import METRIC_FIELDS, RunSpec, read_spec, run_dir
from jaxscale.source import read_observations, read_raw
from jaxscale.sweep import read_result
from jaxscale.where import column_of, select_rows

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Points", "Runs", "read_runs", "trace_curves"]

Points = Literal["auto", "ends", "curves"]
OWN = ("batch", "lr")
"""Columns that only this verb reads."""
MEANING = {"tokenizer": "data", "vocab_size": "model", "parameterization": "model", "objective": "model",
           "architecture": "model", "seq_len": "model", "optimizer": ""}  # fmt: skip
"""What must be the same in all runs for a loss and a batch to mean the same; also what a plan compares."""
SWEPT = {"batch_seqs", "lr", "steps", "tokens", "budget_flops", "warmup_steps", "decay_steps", "weight_decay", "seed",
         "keeps", "parent", "parent_step", "average_steps", "microbatch_seqs", "model", "data"}  # fmt: skip
SMOOTH, SAMPLES = 0.15, 24
"""Half width of the window in log D over which a curve is smoothed, and points that are read off it."""


@dataclass(frozen=True)
class Runs:
    """`frame`: run_id, N, batch (tokens), D, C, loss, lr (NaN: unknown), seed, tuned (its variant had a sweep).

    `identity`: what the runs have in common (MEANING, data_sha256), empty for a table; `noise`: rows of
    `measure_noise` with run_id, N, batch and lr; `stable`: {run_id: (first, last step)} of a constant rate.
    """

    frame: pd.DataFrame
    source: dict[str, Any]
    refused: tuple[dict[str, Any], ...] = ()
    identity: dict[str, Any] = field(default_factory=dict)
    noise: tuple[dict[str, Any], ...] = ()
    stable: dict[str, tuple[int, int]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_runs(
    source: str | Path | pd.DataFrame, *, columns: Mapping[str, str] | None = None, where: str | None = None,
    seq_len: int | None = None, loss_unit: str = "nats",
) -> Runs:  # fmt: skip
    """The runs of a study folder or table; with `seq_len` a table's batch is in sequences of so many tokens.

    MisuseError: no such file or column, runs of several tokenizers, optimizers or the like; VerdictError: no run.
    """
    if isinstance(source, (str, Path)) and Path(source).is_dir():
        given = {"columns": columns, "seq_len": seq_len} | ({"loss_unit": loss_unit} if loss_unit != "nats" else {})
        for name, value in given.items():
            if value:
                raise MisuseError(f"{name}: a study folder says itself what its numbers are; leave it out")
        return _read_study(Path(source), where)
    return _read_table(source, dict(columns or {}), where, seq_len, loss_unit)


def _read_table(source: Any, columns: dict[str, str], where: str | None, seq_len: int | None, unit: str) -> Runs:
    import pandas as pd

    rest = {name: theirs for name, theirs in columns.items() if name not in OWN}
    obs = read_observations(source, columns=rest, where=where, loss_unit=unit)
    raw, _ = read_raw(source)
    frame, refused = obs.frame.copy(), list(obs.refused)
    if "batch" not in columns and "batch" not in raw:
        raise MisuseError(f"columns: batch (tokens a step) is missing; map it as batch=NAME, the table has "
                          f"{', '.join(map(str, raw.columns))}")  # fmt: skip
    for name in OWN:
        known = name in columns or name in raw
        frame[name] = np.nan
        if known:
            values = column_of(raw, columns.get(name, name), "columns").iloc[frame["row"].to_numpy()]
            frame[name] = pd.to_numeric(values, errors="coerce").to_numpy(float)
    frame["batch"] *= seq_len or 1
    good = np.isfinite(frame["batch"]) & (frame["batch"] > 0)
    refused += [{"row": int(row), "reason": "batch is no number above 0"} for row in frame["row"][~good]]
    if not good.any():
        raise VerdictError(f"{obs.source['path']}: no row has a batch above 0")
    if "run_id" not in frame:
        frame["run_id"] = frame["row"].astype(str)
    frame = frame[good].assign(tuned=False).reset_index(drop=True)
    return Runs(frame, {**obs.source, "rows_used": len(frame), "rows_refused": refused}, tuple(refused))


def _read_study(folder: Path, where: str | None) -> Runs:
    obs = collect_runs(folder)
    frame = obs.frame.drop_duplicates("run_id", ignore_index=True) if where is None else obs.frame
    if where is not None:
        frame = frame[select_rows(frame, where)].drop_duplicates("run_id").reset_index(drop=True)
    if frame.empty:
        why = f"; {obs.refused[0]['reason']}" if obs.refused else ""
        raise VerdictError(f"{folder}: no finished run{' is selected' if where else ''}{why}")
    specs = {str(run): read_spec(run_dir(folder, str(run)) / "spec.json") for run in frame["run_id"]}
    results = {run: read_result(run_dir(folder, run) / "result.json") for run in specs}
    swept = _swept_variants(folder)
    batch = [specs[run].batch_seqs * specs[run].model.seq_len for run in specs]
    tuned = [str(name) in swept for name in frame["variant"]] if "variant" in frame else False
    frame = frame.assign(batch=np.array(batch, float), lr=[specs[run].lr for run in specs], tuned=tuned)
    texts = {str(result.provenance.get("data_sha256", "")) for result in results.values()}
    notes = [*_other_fields(specs), *_unmeasured(results, specs)]
    return Runs(
        frame=frame,
        source={**obs.source, "rows_used": len(frame), "where": where},
        refused=obs.refused,
        identity={**_meaning(specs), "data_sha256": texts.pop() if len(texts) == 1 else ""},
        noise=tuple(_read_noise(folder, frame, specs)),
        stable={run: (s.warmup_steps, s.steps - s.decay_steps) for run, s in specs.items() if s.schedule == "wsd"},
        notes=tuple(notes),
    )


def _swept_variants(folder: Path) -> set[str]:
    """Variants whose learning rate comes from a sweep of their own with an optimum inside it (variants.json)."""
    file = folder / "variants.json"
    plain = read_json(file) if file.is_file() else {}
    rows = plain.get("variants", []) if isinstance(plain, dict) else []
    return {str(row.get("name")) for row in rows if (row.get("tuning") or {}).get("status") == "ok"}


def _meaning(specs: Mapping[str, RunSpec]) -> dict[str, Any]:
    """The values of MEANING; MisuseError where the runs have several."""
    found = {}
    for name, part in MEANING.items():
        values = {getattr(getattr(spec, part) if part else spec, name) for spec in specs.values()}
        if len(values) > 1:
            told = ", ".join(sorted(map(str, values)))
            raise MisuseError(f"{name}: the runs have {told}; their losses or batches cannot be compared, pick one "
                              f"by --where")  # fmt: skip
        (found[name],) = values
    return found


def _other_fields(specs: Mapping[str, RunSpec]) -> list[str]:
    """Fields besides batch, rate, shape and length in which the runs differ: they may move the loss too."""
    plain = [_flatten(to_plain(spec)) for spec in specs.values()]
    odd = [name for name in plain[0] if name not in SWEPT and any(one[name] != plain[0][name] for one in plain)]
    return [f"runs also differ in {', '.join(odd)}: what that does to the loss is ascribed to the batch"] if odd else []


def _flatten(plain: dict[str, Any]) -> dict[str, Any]:
    """A run's fields with those of its model beside them, shape left out."""
    model = {f"model.{name}": value for name, value in plain["model"].items() if name not in ("d_model", "n_layers")}
    return {**plain, **model}


def _unmeasured(results: Mapping[str, Any], specs: Mapping[str, RunSpec]) -> list[str]:
    lost = [run for run, result in results.items() if result.provenance.get("noise_scale")]
    if not lost:
        return []
    batches = sorted({specs[run].batch_seqs * specs[run].model.seq_len for run in lost})
    return [f"noise scale: {len(lost)} runs (batches of {', '.join(map(str, batches))} tokens) were "
            f"{results[lost[0]].provenance['noise_scale']}"]  # fmt: skip


def _read_noise(folder: Path, frame: pd.DataFrame, specs: Mapping[str, RunSpec]) -> list[dict[str, Any]]:
    rows = []
    for run in frame.to_dict("records"):
        spec, lines = specs[run["run_id"]], read_lines(run_dir(folder, run["run_id"]) / "metrics.jsonl", METRIC_FIELDS)
        own = {name: run[name] for name in ("run_id", "N", "batch", "lr")}
        rows += [own | row for row in measure_noise(lines, int(run["batch"]), warmup_steps=spec.warmup_steps)]
    return rows


def trace_curves(folder: str | Path, runs: Runs) -> Runs:
    """The same with points of the smoothed curves at a constant rate instead of ends; the longest run of each trunk.

    MisuseError where no run has a constant rate.
    """
    if not Path(folder).is_dir():
        raise MisuseError("points: curves are read from a study folder; a table's rows are taken as they are")
    if not runs.stable:
        raise MisuseError("points: no run has a constant rate, and a cosine curve cut short lies above the loss of a "
                          "run that ends there; train with recipe.schedule wsd, or give every batch several horizons "
                          "and use --points ends")  # fmt: skip
    import pandas as pd

    trunks = runs.frame["parent"] if "parent" in runs.frame else runs.frame["run_id"]
    longest = runs.frame.assign(trunk=trunks).sort_values("D").drop_duplicates("trunk", keep="last")
    rows = [point for _, run in longest.iterrows() for point in _trace(Path(folder), dict(run), runs)]
    if not rows:
        raise VerdictError(f"{folder}: no curve has {SAMPLES} lines at a constant rate")
    return replace(runs, frame=pd.DataFrame(rows))


def _trace(folder: Path, run: dict[str, Any], runs: Runs) -> list[dict[str, Any]]:
    """Points of one run's curve, D on a grid that its neighbours in rate and seed share."""
    if run["run_id"] not in runs.stable:
        return []
    first, last = runs.stable[run["run_id"]]
    lines = read_lines(run_dir(folder, run["run_id"]) / "metrics.jsonl", METRIC_FIELDS)
    kept = [(line["tokens"], line["loss"]) for line in lines if first < line["step"] <= last]
    if len(kept) < SAMPLES:
        return []
    ends, loss = np.array(kept).T
    D = np.sqrt(ends * np.concatenate([[ends[0] ** 2 / ends[1]], ends[:-1]]))  # an interval's middle in log D
    grid = np.exp(np.arange(np.ceil(np.log(D[0]) / SMOOTH), np.floor(np.log(D[-1]) / SMOOTH)) * SMOOTH)
    smooth = _smooth(np.log(D), np.log(loss), np.log(grid))
    per_token = run["C"] / run["D"]
    return [{**run, "D": float(d), "C": float(d * per_token), "loss": float(np.exp(y))}
            for d, y in zip(grid, smooth, strict=True)]  # fmt: skip


def _smooth(x: np.ndarray, y: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Local lines with Epanechnikov weights of half width SMOOTH, wider where fewer than four points lie in it."""
    out = np.empty(len(at))
    for i, place in enumerate(at):
        gap = np.abs(x - place)
        width = max(SMOOTH, float(np.sort(gap)[min(4, len(gap) - 1)]) * 1.01)
        root = np.sqrt(np.clip(1 - (gap / width) ** 2, 0, None))
        design = root[:, None] * np.stack([np.ones_like(x), x - place], 1)
        out[i] = np.linalg.lstsq(design, root * y, rcond=None)[0][0]
    return out
