"""A sweep's result file -> the learning rate of each cell of a study, or one sentence on why it cannot be.

What gives the number its meaning must agree, and is refused where it does not: parameterization and base width
(muP multiplies the rate by their ratios), tokenizer and vocabulary (another loss), optimizer and schedule (a peak
rate of another update), the multipliers of table and head, the decay's unit and value. All else that differs
(shape, text, context, momenta, epsilon) is listed as an assumption: it may move the optimum, by how much is not known.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxscale.config import EVAL_FIELDS, ModelConfig, Recipe, Study
from jaxscale.errors import MisuseError
from jaxscale.plain import from_plain, read_json
from jaxscale.rates.law import Optimum, RateLaw, Z, fit_rates

__all__ = ["SCHEMA", "find_sweep", "read_rates"]

SCHEMA = "jaxscale.mup_sweep/1"
OPTIMUM: dict[str, type | tuple[type, ...]] = {
    "parameterization": str, "width": int, "depth": int, "tokens": (int, float), "batch_tokens": (int, float),
    "status": str, "weight_decay": (int, float), "init_scale": (int, float),
}  # fmt: skip
"""What every record of `optima` has, beside log2_lr and interval, which only those with status ok need."""
FINEST = 0.01
"""Smallest standard error of log2 lr that is believed: no sweep resolves a hundredth of a doubling."""

MODEL_KEYS = ("base_d_model", "vocab_size")
COMPLETEP_KEYS = ("base_n_layers", "depth_alpha")
RECIPE_KEYS = ("optimizer", "schedule", "embed_lr", "head_lr", "decay_rule")
UNREAD = {
    "model": ("d_model", "n_layers", "parameterization", "init_scale", *COMPLETEP_KEYS),
    "recipe": ("lr", "lr_from", "lr_horizon_exponent", "lr_batch_exponent", "weight_decay", "batch_coefficient",
               "batch_exponent", "batch_min_tokens", "batch_max_tokens", "batch_from", "batch_critical",
               "microbatch_seqs", *EVAL_FIELDS),
}  # fmt: skip
"""Fields that the sweep varies, the law corrects for, or that are compared elsewhere."""
ONLY_FOR = {
    "adam_lr": ("muon",), "momentum": ("sgd", "muon"), "b1": ("adamw", "muon", "lion", "adafactor"),
    "b2": ("adamw", "muon", "lion"),
}  # fmt: skip


def find_sweep(path: str | Path) -> Path:
    """The result file that recipe.lr_from means: relative to the working directory, `~` expanded, a folder's
    sweep.json."""
    file = Path(path).expanduser()
    return file / "sweep.json" if file.is_dir() else file


def read_rates(path: str | Path, study: Study, *, data_sha256: str = "") -> RateLaw:
    """The law l(D, B) for a study from the result of `jaxscale mup sweep` (FILE, or the DIR that holds sweep.json).

    `data_sha256`: identity of the study's training
    text, where known. Raises MisuseError for a file that is no sweep, a sweep of another parameterization, base
    width, tokenizer, optimizer, schedule, multiplier or decay, and one without an optimum inside its rates.
    """
    file = find_sweep(path)
    where = f"recipe.lr_from: {file}"
    try:
        plain = read_json(file)
    except MisuseError as error:
        raise MisuseError(f"recipe.lr_from: {error}; make it with `jaxscale mup sweep STUDY.py`") from error
    text, model, recipe, records = _parse(plain, where)
    _check_agreement(where, study, text, model, recipe)
    tuned = _read_tuned(plain, where)
    chosen, left = ([], []) if tuned else _choose(where, study, records)
    law = fit_rates(
        [tuned] if tuned else [_optimum(record) for record in chosen],
        horizon=study.recipe.lr_horizon_exponent,
        batch=study.recipe.lr_batch_exponent,
    )
    notes = [f"recipe.lr = {study.recipe.lr:g} is not read: recipe.lr_from is given", *law.notes]
    notes += [f"left out of the rate: {'; '.join(left)}"] if left else []
    notes += _tell_tuned(plain["tuning"]) if tuned else []
    optimizer, assumed = study.recipe.optimizer, "published" in (law.horizon.source, law.batch.source)
    if optimizer != "adamw" and assumed:
        notes.append(f"WARNING: the assumed exponents are AdamW's and this study trains with {optimizer}; sweep two "
                     f"horizons and two batches, or give recipe.lr_horizon_exponent and lr_batch_exponent")  # fmt: skip
    notes += _differences(study, text, model, recipe, data_sha256)
    return replace(law, source=str(file), notes=tuple(notes))


def _parse(plain: Any, where: str) -> tuple[dict[str, Any], ModelConfig, Recipe, list[dict[str, Any]]]:
    found = plain.get("schema") if isinstance(plain, dict) else None
    if found != SCHEMA:
        raise MisuseError(f"{where}: schema {found!r} is not {SCHEMA!r}; give the sweep.json of `jaxscale mup sweep`")
    for name, kind in (("text", dict), ("model", dict), ("recipe", dict), ("optima", list)):
        if not isinstance(plain.get(name), kind):
            raise MisuseError(f"{where}: no {name!r} there; run the sweep again")
    for name, kinds in (("tokenizer", str), ("vocab_size", int), ("seq_len", int)):
        if not isinstance(plain["text"].get(name), kinds):
            raise MisuseError(f"{where}: text has no {name!r}; run the sweep again")
    records = [_flatten(record, f"{where}: optima[{i}]") for i, record in enumerate(plain["optima"])]
    for i, record in enumerate(records):
        _check_record(record, f"{where}: optima[{i}]")
    try:
        model, recipe = from_plain(plain["model"], ModelConfig), from_plain(plain["recipe"], Recipe)
    except MisuseError as error:
        raise MisuseError(f"{where}: {error}; it is of another version, run the sweep again") from error
    return plain["text"], model, recipe, records


def _read_tuned(plain: dict[str, Any], where: str) -> Optimum | None:
    """The best rate tried in the sweep of a study's variant (jaxscale.mup.tune), where no optimum was fitted."""
    told = plain.get("tuning")
    if told is None:
        return None
    names = ("width", "depth", "tokens", "batch_tokens", "log2_lr", "log2_error")
    whole = isinstance(told, dict) and all(_is_number(told.get(name)) for name in (*names, "trials"))
    if not whole or told["log2_error"] <= 0 or told.get("rule") not in ("fitted", "vertex", "tried"):
        raise MisuseError(f"{where}: its block tuning is not what a sweep writes; run the sweep again")
    if told["rule"] == "fitted":  # then it is among the optima, with its interval
        return None
    *sizes, log2_lr, error = (told[name] for name in names)
    return Optimum(int(sizes[0]), int(sizes[1]), float(sizes[2]), float(sizes[3]), float(log2_lr), float(error))


def _tell_tuned(told: dict[str, Any]) -> list[str]:
    how = "a parabola through the best rate tried and its neighbours" if told["rule"] == "vertex" else "the best tried"
    words = [f"the rate is from {how}, of {told['trials']} trials: they give no optimum with an interval"]
    edge = f"WARNING: {told.get('reason')}, where the optimum may lie beyond: this is no tuned rate"
    return [*words, edge] if told.get("status") == "edge" else words


def _flatten(record: Any, where: str) -> dict[str, Any]:
    """A record with its `settings` beside the rest, and `lr_interval` as the interval in log2 rate."""
    if not isinstance(record, dict) or not isinstance(record.get("settings", {}), dict):
        raise MisuseError(f"{where} is not a record; run the sweep again")
    flat = {**record.get("settings", {}), **record}
    ends = flat.get("lr_interval")
    if isinstance(ends, list) and all(end is None or (_is_number(end) and end > 0) for end in ends):
        flat["interval"] = [None if end is None else math.log2(end) for end in ends]
    return flat


def _check_record(record: dict[str, Any], where: str) -> None:
    for name, kind in OPTIMUM.items():
        if not isinstance(record.get(name), kind) or isinstance(record[name], bool):
            raise MisuseError(f"{where} has {name} {record.get(name)!r}; run the sweep again")
    if record["status"] != "ok":
        return
    ends = record.get("interval")
    if not _is_number(record.get("log2_lr")):
        raise MisuseError(f"{where} is ok with log2_lr {record.get('log2_lr')!r}; run the sweep again")
    if not (isinstance(ends, list) and len(ends) == 2 and all(end is None or _is_number(end) for end in ends)):
        raise MisuseError(f"{where} is ok with interval {ends!r} where two ends in log2 rate are wanted; run the sweep "
                          f"again")  # fmt: skip


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _check_agreement(where: str, study: Study, text: dict[str, Any], model: ModelConfig, recipe: Recipe) -> None:
    """Refuse the first field that gives the rate another meaning."""
    mine = study.model
    if mine.parameterization == "standard":
        raise MisuseError("recipe.lr_from: under model.parameterization standard the best rate moves with width, so no "
                          "sweep of a few widths gives it; use mup or completep, or recipe.lr alone")  # fmt: skip
    pairs = [("data.tokenizer", text["tokenizer"], study.data.tokenizer)]
    keys = MODEL_KEYS + (COMPLETEP_KEYS if mine.parameterization == "completep" else ())
    pairs += [(f"model.{name}", getattr(model, name), getattr(mine, name)) for name in keys]
    rates = [*RECIPE_KEYS, *(["adam_lr"] if study.recipe.optimizer == "muon" else [])]
    rates = [name for name in rates if name != "head_lr" or not mine.tied]
    pairs += [(f"recipe.{name}", getattr(recipe, name), getattr(study.recipe, name)) for name in rates]
    for name, theirs, own in pairs:
        if theirs != own:
            flag = name.replace("_", "-")
            raise MisuseError(f"{where}: swept with {name} {theirs} and this study has {own}, so its rate means "
                              f"something else; sweep this study, or use --{flag} {theirs}")  # fmt: skip


def _choose(where: str, study: Study, records: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[str]]:
    """The optima that speak for the study, and what was left out with the reason."""
    kind, decay, scale = study.model.parameterization, study.recipe.weight_decay, study.model.init_scale
    own = [record for record in records if record["parameterization"] == kind]
    if not own:
        there = ", ".join(sorted({record["parameterization"] for record in records})) or "none"
        raise MisuseError(f"{where}: has optima of parameterization {there} and this study is {kind}; sweep with "
                          f"--model.parameterization {kind}")  # fmt: skip
    same = [r for r in own if math.isclose(r["weight_decay"], decay, rel_tol=1e-6) and r["init_scale"] == scale]
    if not same:
        there = ", ".join(sorted({f"{r['weight_decay']:g} (init_scale {r['init_scale']:g})" for r in own}))
        raise MisuseError(f"{where}: has optima at weight_decay {there} and this study has {decay:g} (init_scale "
                          f"{scale:g}); sweep at that, or use --recipe.weight-decay")  # fmt: skip
    good = [record for record in same if not _fault(record)]
    left = [f"width {r['width']}, depth {r['depth']} ({_fault(r)})" for r in same if _fault(r)]
    if not good:
        raise MisuseError(f"{where}: no width has an optimum inside the rates swept: {'; '.join(left)}; sweep more "
                          f"rates, further out, or more seeds")  # fmt: skip
    depths = {study.model.n_layers} if study.grid.aspect is None else set()
    here = [record for record in good if record["depth"] in depths]
    if here and kind == "mup":  # muP says nothing about depth, so the study's own speaks alone
        left += [f"width {r['width']}, depth {r['depth']} (another depth)" for r in good if r not in here]
        good = here
    models = {(r["width"], r["depth"], r["tokens"], r["batch_tokens"]): r for r in reversed(good)}
    return list(reversed(models.values())), left  # a model judged in two ladders counts once, as judged first


def _fault(record: dict[str, Any]) -> str:
    """Why a record is no optimum with an error; empty where it is."""
    if record["status"] != "ok":
        return str(record["status"])
    low, high = record["interval"]
    return "" if low is not None and high is not None and low <= high else "its interval is open"


def _optimum(record: dict[str, Any]) -> Optimum:
    low, high = record["interval"]
    return Optimum(
        width=record["width"],
        depth=record["depth"],
        tokens=float(record["tokens"]),
        batch_tokens=float(record["batch_tokens"]),
        log2_lr=float(record["log2_lr"]),
        error=max((high - low) / (2 * Z), FINEST),
    )


def _differences(study: Study, text: dict[str, Any], model: ModelConfig, recipe: Recipe, sha256: str) -> list[str]:
    """What the study does otherwise than the sweep and the rate is assumed not to mind."""
    found = _fields("model", model, study.model, (*UNREAD["model"], *MODEL_KEYS))
    skipped = [name for name, optimizers in ONLY_FOR.items() if study.recipe.optimizer not in optimizers]
    skipped += ["decay_fraction"] if study.recipe.schedule == "cosine" else []
    found += _fields("recipe", recipe, study.recipe, (*UNREAD["recipe"], *RECIPE_KEYS, *skipped))
    theirs = text.get("data_sha256") or ""
    if theirs and sha256 and theirs != sha256:
        found.append(f"text {theirs[:12]} there, {sha256[:12]} here")
    return [f"differs from the sweep, assumed not to move the best rate: {'; '.join(found)}"] if found else []


def _fields(prefix: str, theirs: Any, own: Any, skipped: tuple[str, ...]) -> list[str]:
    pairs = [(name, getattr(theirs, name), value) for name, value in vars(own).items() if name not in skipped]
    return [f"{prefix}.{name} {there} there, {here} here" for name, there, here in pairs if there != here]
