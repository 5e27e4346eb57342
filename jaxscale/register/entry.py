"""FORECAST.json -> what the register keeps of it: one record a target, with all that scoring it later needs.

The answer is the declared method's; the other methods and the average stand beside it. With each goes its frontier
L_opt(C) as plain parameters, so that an error can be told in compute without the fit, and without this version of
jaxscale. The baseline to be beaten is the extrapolated envelope of the evidence itself (backtest/lowest.py), read
anew from the source and only if that still is what the fit saw: computed now, since later it could be chosen.
"""

from __future__ import annotations

import hashlib
import math
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import jaxscale
from jaxscale.checkout import code_commit, folder_commit
from jaxscale.config import Study
from jaxscale.errors import JaxscaleError, MisuseError, VerdictError
from jaxscale.fit.average import MeanFrontier
from jaxscale.laws import FlopRule, LossLaw, Repetition, find_law
from jaxscale.plain import from_plain, read_json
from jaxscale.plan import nearest_size
from jaxscale.register.chain import canonical
from jaxscale.runs import Observations
from jaxscale.sweep import read_plan
from jaxscale.tuning import identify_plan

if TYPE_CHECKING:
    from jaxscale.runs import Plan

__all__ = ["SIZE", "TOLERANCE", "enter_forecast", "frontier_of", "say_nearest"]

FORECAST_SCHEMA = "jaxscale.forecast/1"
TOLERANCE = 0.02
"""Relative distance in C within which a run is a measurement of a target: worth as much as the same factor of
compute, and a plan's cells lie within half of it."""
SIZE = 1.5
"""Assumption: a run within this factor of the forecast's N stands for the optimum. In a valley that rises by 5% of the
loss at a factor 6 in N (the example of docs/tuning.md) it lies .05 (log 1.5 / log 6)^2 = .26% too high."""
ROW_NEEDS = frozenset({"method", "law", "declared", "C", "extrapolation", "N_opt", "D_opt", "loss", "intervals"})
INTERVALS = ("N_opt", "D_opt", "loss", "loss_future_run")
SOURCE_KEEPS = ("path", "sha256", "rows_total", "rows_used", "rows_held_out", "columns", "where", "near", "conventions")


def enter_forecast(path: Path, register: Path, note: str = "") -> list[dict[str, Any]]:
    """The content of a record for every target of a FORECAST.json, not yet dated or chained.

    MisuseError for a file of another schema, or one that answers --loss (no target to be trained at).
    """
    plain = _read_forecast(path)
    try:
        return _enter(plain, path, register, note)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        if isinstance(error, JaxscaleError):
            raise
        raise MisuseError(f"{path}: a part of it is missing or of another kind ({type(error).__name__}: {error}); "
                          f"write it anew with this version's `jaxscale forecast`") from error  # fmt: skip


def _enter(plain: Mapping[str, Any], path: Path, register: Path, note: str) -> list[dict[str, Any]]:
    fits = plain["fit"]["fits"] if "fits" in plain["fit"] else [plain["fit"]]
    told = _read_evidence(fits[0]["source"])
    about = {
        "kind": "forecast", "rule": plain["rule"], "confidence": plain["confidence"], "noise": _find_noise(fits),
        "evidence": told["evidence"] | {"largest_C": max(_largest(fit) for fit in fits)},
        "versions": {"jaxscale": jaxscale.__version__, "git_commit": code_commit(), "numpy": np.__version__,
                     "python": platform.python_version()},
        "repository": folder_commit(Path(register).resolve().parent),
        "file": {"path": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()},
        "remarks": list(plain.get("notes") or ()), "note": note,
    }  # fmt: skip
    targets = dict.fromkeys(row["C"] for row in plain["rows"])
    return [about | _enter_target([r for r in plain["rows"] if r["C"] == C], fits, told) for C in targets]


def _read_forecast(path: Path) -> dict[str, Any]:
    plain = read_json(path)
    schema = plain.get("schema") if isinstance(plain, dict) else None
    if schema != FORECAST_SCHEMA:
        raise MisuseError(f"{path}: schema {schema!r} is no forecast; `jaxscale forecast FIT.json --flops C --out` "
                          f"writes one")  # fmt: skip
    if plain.get("target_loss") is not None:
        raise MisuseError(f"{path}: it answers which compute reaches a loss, and a run is trained at a compute; "
                          f"forecast with --flops and register that")  # fmt: skip
    rows = plain.get("rows")
    if not isinstance(rows, list) or not rows or not isinstance(plain.get("fit"), dict):
        raise MisuseError(f"{path}: it has no rows, or no fit; write it anew with `jaxscale forecast`")
    lacking = sorted(set().union(*(ROW_NEEDS - set(row) for row in rows)))
    if lacking:
        raise MisuseError(f"{path}: its rows lack {', '.join(lacking)}; write it anew with this version's "
                          f"`jaxscale forecast`")  # fmt: skip
    return dict(plain)


def _largest(fit: Mapping[str, Any]) -> float:
    return float(fit["diagnostics"].get("largest_C") or 0.0)


def _find_noise(fits: Sequence[Mapping[str, Any]]) -> float | None:
    """Deviation of log loss between runs, as the fits know it: between seeds, else about the fit."""
    from jaxscale.forecast import find_run_noise

    known = [{**fit["noise"], "residual_std": None} for fit in fits] + [fit["noise"] for fit in fits]
    return next((value for noise in known if (value := find_run_noise(noise)) is not None), None)


def _enter_target(rows: Sequence[dict[str, Any]], fits: Sequence[Mapping[str, Any]], told: Mapping[str, Any]
                  ) -> dict[str, Any]:  # fmt: skip
    main = next((row for row in rows if row["declared"]), None)
    main = main or next((row for row in rows if row["method"] == "average"), rows[0])
    C = float(main["C"])
    content = {
        "C": C, "extrapolation": main["extrapolation"], "answer": _enter_answer(main, fits),
        "beside": [_enter_answer(row, fits) for row in rows if row is not main],
        "size": _find_size(told["plan"], C, main["N_opt"]),
        "baseline": _extrapolate(told["observations"], C) or {"reason": told["reason"] or "fewer than two lowest runs"},
        "measured_before": _count_near(told["everything"], C),
    }  # fmt: skip
    identity = {
        "answer": content["answer"],
        "beside": content["beside"],
        "C": C,
        "evidence": told["evidence"]["sha256"],
    }
    return content | {"forecast_sha256": hashlib.sha256(canonical(identity).encode()).hexdigest()}


def _enter_answer(row: Mapping[str, Any], fits: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    if not all(_is_size(row[name]) for name in ("C", "N_opt", "D_opt", "loss")):
        raise VerdictError(f"{row['method']} at {row['C']} FLOPs: N, D or loss is not a positive number; there is "
                           f"nothing to register, look at the fit")  # fmt: skip
    own = [fit for fit in fits if (fit["method"], fit["law"]) == (row["method"], row["law"])] or _averaged(fits)
    if not own:
        raise MisuseError(f"{row['method']} ({row['law']}): the forecast has a row of it and no fit; make it anew")
    return {
        "method": row["method"], "law": row["law"], "declared": row["declared"],
        "N": row["N_opt"], "D": row["D_opt"], "loss": row["loss"],
        "intervals": {name: row["intervals"][name] for name in INTERVALS},
        "frontier": [_enter_frontier(fit) for fit in own],
    }  # fmt: skip


def _is_size(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value > 0


def _averaged(fits: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The fits behind a row "average"."""
    from jaxscale.fit import Fit
    from jaxscale.forecast import average_answer

    mean = average_answer([from_plain({**fit, "draws": {}}, Fit) for fit in fits])
    return [fit.to_plain() for fit in mean.fits] if mean else []


def _enter_frontier(fit: Mapping[str, Any]) -> dict[str, Any]:
    """What L_opt(C) follows from: E, A, alpha of a law of compute, or the parameters of a law over N and D."""
    flops = fit["diagnostics"]["flops"]
    if fit["loss_law"]:
        return {"law": "compute", "params": fit["loss_law"]}
    return {"law": fit["law"], "params": fit["params"], "k": flops["k"], "p": flops["p"]}


def frontier_of(parts: Sequence[Mapping[str, Any]]) -> Any:
    """L_opt(C) of an answer of a record, as a value that can be inverted.

    >>> law = frontier_of([{"law": "compute", "params": {"E": 1.0, "A": 4.0, "alpha": 0.5}}])
    >>> round(float(law.loss(16.0)), 9)
    2.0
    """
    frontiers = []
    for part in parts:
        if part["law"] == "compute":
            frontiers.append(LossLaw(**part["params"]))
            continue
        law: Any = find_law(part["law"])(**part["params"])
        law = law.unlimited if isinstance(law, Repetition) else law
        frontiers.append(law.frontier(FlopRule(part["k"], part["p"])))
    return frontiers[0] if len(frontiers) == 1 else MeanFrontier(tuple(frontiers))


def _read_evidence(source: Mapping[str, Any]) -> dict[str, Any]:
    """What the fit saw, read again: observations (None and why, where they are not what it saw), its plan."""
    evidence = {name: source.get(name) for name in SOURCE_KEEPS}
    evidence["rows_refused"] = len(source.get("rows_refused") or ())
    told: dict[str, Any] = {"evidence": evidence, "observations": None, "everything": None, "plan": None, "reason": ""}
    try:
        told["everything"] = observations = _read_again(source)
        if observations.source["sha256"] == source.get("sha256"):
            told["observations"] = observations
        else:
            told["reason"] = f"{source['path']} is no longer what the fit saw: its SHA-256 differs"
    except (JaxscaleError, OSError) as error:
        told["reason"] = f"the evidence cannot be read again ({error})"
    plan = _read_plan(Path(str(source.get("path"))))
    if plan is not None:
        told["plan"] = plan
        evidence |= {"study": plan.study, "plan_sha256": identify_plan(plan), "data_sha256": plan.data_sha256}
    return told


def _read_again(source: Mapping[str, Any]) -> Observations:
    from jaxscale.source import read_observations

    reading = {key: source[key] for key in ("columns", "where", "near") if source.get(key)}
    return read_observations(source["path"], **reading, **(source.get("conventions") or {}))


def _read_plan(path: Path) -> Plan | None:
    folder = path if path.is_dir() else path.parent
    try:
        return read_plan(folder)
    except (JaxscaleError, OSError):
        return None


def _find_size(plan: Plan | None, C: float, N: float) -> dict[str, Any] | None:
    """The run of the study's ladder that follows the forecast; None where there is no study, or none of one ladder."""
    if plan is None or plan.variants:
        return None
    try:
        cell = nearest_size(from_plain(plan.config, Study), C, N)
    except (JaxscaleError, ZeroDivisionError):
        return None
    model = cell.spec.model
    return {"d_model": model.d_model, "n_layers": model.n_layers, "N": cell.n_params, "D": cell.spec.tokens,
            "flops": cell.flops, "steps": cell.spec.steps}  # fmt: skip


def _extrapolate(observations: Observations | None, C: float) -> dict[str, Any] | None:
    """The power laws through the evidence's lowest runs, at C."""
    from jaxscale.backtest.lowest import extend_cells
    from jaxscale.fit.cells import gather_cells

    lowest = None if observations is None else extend_cells(gather_cells(observations))
    if lowest is None:
        return None
    laws = {name: {"A": float(law.A), "a": float(law.a)} for name, law in (("loss", lowest.loss), ("N_opt", lowest.N))}
    return {"method": "power law of C through the lowest run of each budget", "loss": lowest.predict("loss", C),
            "N_opt": lowest.predict("N_opt", C), "laws": laws}  # fmt: skip


def _count_near(observations: Observations | None, C: float) -> int | None:
    """Runs at the target that are measured already, held out ones among them; None where nobody can know."""
    if observations is None:
        return None
    return int((np.abs(np.log(observations.frame["C"] / C)) <= np.log1p(TOLERANCE)).sum())


def say_nearest(C: float, others: Sequence[float]) -> str:
    """Which of the others lies nearest to C, as a factor of it.

    >>> say_nearest(1e13, [1e12, 3e12])
    'the nearest is at 3e12 FLOPs, 0.3x'
    """
    from jaxscale.format import format_factor, format_flops

    if not len(others):
        return "there is no run"
    near = min(others, key=lambda other: abs(math.log(other / C)))
    return f"the nearest is at {format_flops(near)} FLOPs, {format_factor(near / C)}"
