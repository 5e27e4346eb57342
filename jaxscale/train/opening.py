"""What comes before the first step: runs that have ended are found, the others held, mended, and fit to their text."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jaxscale.config import LaunchConfig
from jaxscale.data.tokens import TokenFiles
from jaxscale.errors import MisuseError, VerdictError
from jaxscale.leases import Claims
from jaxscale.plain import from_plain
from jaxscale.resolve import describe_run
from jaxscale.runs import RunResult, RunSpec
from jaxscale.sweep import Way, fail_cell, pack_key
from jaxscale.train.logs import read_last_words
from jaxscale.train.packs import PackFolder
from jaxscale.train.record import RunFolder, hold_runs

__all__ = ["PackWorn", "check_alike", "check_tokens", "open_runs", "read_results"]


def open_runs(
    folders: Sequence[RunFolder], pack: PackFolder | None, held: ExitStack, claims: Claims, patience_s: float | None,
    launch: LaunchConfig | None,
) -> list[dict[str, Any] | None]:  # fmt: skip
    """How each run has ended, if it has; where one goes on, all are held from now on and made ready."""
    ended = [folder.read_result() for folder in folders]
    if not all(ended):
        for folder in folders:
            folder.prepare()
        saved_step, job = (pack.saved_step, pack.pack.pack_id) if pack else (None, "")
        held.enter_context(hold_runs(folders, claims, job, saved_step, patience_s))
        for folder in folders:
            folder.mend()
        ended = [folder.read_result() or _give_up(folder, pack, launch) for folder in folders]
        if pack is not None and any(not folder.has_begun() and folder.read_result() is None for folder in folders):
            pack.remove()  # a member was reset: what the pack saved holds the state that it was to lose
    return [asdict(result) if result is not None else None for result in ended]


def read_results(plain: Sequence[dict[str, Any] | None]) -> list[RunResult | None]:
    return [from_plain(result, RunResult) if result is not None else None for result in plain]


def _give_up(folder: RunFolder, pack: PackFolder | None, launch: LaunchConfig | None) -> RunResult | None:
    """End a run whose holders keep dying as failed, with the last one's last words; None for others."""
    deaths, before = (folder.lease.holding.deaths, folder.lease.before) if folder.lease else (0, None)
    if launch is None or deaths < launch.max_attempts:
        return None
    log = folder.path.parent / "logs" / Path(before.log).name if before and before.log else None
    words = read_last_words(log) if log else f"{before.who if before else 'it'} left no message"
    if pack is not None:
        pack.remove()
        raise PackWorn(f"pack of {len(pack.pack.run_ids)} runs: {deaths} workers in a row died with it ({words})")
    reason = f"{deaths} workers in a row died without a newer checkpoint than step {folder.saved_step}: {words}"
    return fail_cell(folder.path.parent, describe_run(folder.spec), reason)


def check_alike(specs: Sequence[RunSpec], way: Way) -> None:
    branching = [spec.run_id for spec in specs if spec.keeps or spec.parent]
    if branching and way != "process":
        raise MisuseError(f"run {branching[0]}: trunks and branches train by themselves; use the way process")
    if len({pack_key(spec) for spec in specs}) > 1:
        raise MisuseError(f"runs {', '.join(spec.run_id for spec in specs[:3])}: they differ in shape, text, batch or "
                          f"steps and cannot train in one program; group them by sweep.pack_key")  # fmt: skip


class PackWorn(VerdictError):
    """A pack's workers keep dying; each of its runs is to be trained by itself."""


def check_tokens(spec: RunSpec, tokens: TokenFiles, data_sha256: str = "") -> None:
    """MisuseError where the text cannot feed the run: another text, too small a vocabulary, too many epochs."""
    info = tokens.info
    if data_sha256 and info.data_sha256 != data_sha256:
        raise MisuseError(
            f"data: the plan was made for text {data_sha256[:12]} and {info.source} is now {info.data_sha256[:12]}; "
            f"restore the text, or plan the study anew in another folder"
        )
    if info.vocab_size > spec.model.vocab_size:
        raise MisuseError(
            f"model.vocab_size: {spec.model.vocab_size} is smaller than the tokenizer's {info.vocab_size} entries; "
            f"use at least {info.vocab_size}"
        )
    epochs = spec.tokens / info.train_tokens
    if epochs > spec.data.max_epochs * 1.01:
        asked, of = spec.tokens, f"a text with {info.train_tokens:,}"
        if spec.data.mixture:  # the source that is used up first
            part = max(tokens.parts, key=lambda part: part.share / len(part.text))
            asked, of = round(spec.tokens * part.share), f"source {part.name} (data.mixture) with {len(part.text):,}"
        raise MisuseError(
            f"data: run {spec.run_id} asks for {asked:,} tokens of {of}, that is {epochs:.2f} epochs, and "
            f"data.max_epochs allows {spec.data.max_epochs:g}; give more text or raise it"
        )
