"""Checkpoints of one run: Orbax, saved asynchronously, restored onto whatever mesh the run now has.

A step's folder appears whole or not at all, so a kill during a save leaves the previous one. Restoring walks
back from the newest step until one can be read; a corrupt one is named in `skipped`, moved aside, never used. With the
arrays goes their fingerprint, and what does not match it is corrupt.

Several processes save together, each its shards, and commit once; each reads what it needs by itself, with no barrier
in which one that fails would leave the others, and then all hear how it went.
"""

from __future__ import annotations

import logging
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxscale.train import hosts
from jaxscale.train.fingerprint import fingerprint
from jaxscale.train.step import TrainState

__all__ = ["Checkpoints", "Damaged", "keep_state", "read_state", "unseal_state"]

ITEM = "default"
"""Orbax's name of what a step holds where it holds one thing."""
FINGERPRINT = "fingerprint"
"""Name of the fingerprint among the arrays."""

for _chatty in ("absl", "asyncio"):
    logging.getLogger(_chatty).setLevel(logging.CRITICAL)  # what fails is raised, and said in a sentence


class Damaged(Exception):
    """A state was read and is not the one that was saved."""


class Checkpoints:
    """The checkpoint folder of a run; the newest two steps are kept, one when it has ended."""

    def __init__(self, folder: Path) -> None:
        options = ocp.CheckpointManagerOptions(
            max_to_keep=2, enable_async_checkpointing=True, cleanup_tmp_directories=True
        )
        self.folder = folder.absolute()
        self.manager = ocp.CheckpointManager(self.folder, options=options)
        self.skipped: list[str] = []

    def save(self, state: TrainState, step: int, *, wait: bool = False) -> None:
        """Start saving; `wait` returns only when the step is on disk."""
        if not hosts.broadcast(step in self.manager.all_steps(), f"save {step}"):
            self.manager.save(step, args=ocp.args.StandardSave(_seal(state)))
        if wait:
            self.manager.wait_until_finished()

    def finish(self, state: TrainState, step: int) -> None:
        """Save the last step and drop the earlier ones: an ended run keeps one checkpoint, its final weights."""
        self.save(state, step, wait=True)
        for earlier in self.manager.all_steps():
            if earlier != step:
                self.manager.delete(earlier)
        for torn in self.folder.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(torn, ignore_errors=True)  # of a holder before this one, paused in a save and woken

    def restore(self, like: TrainState, at_most: int | None = None) -> TrainState | None:
        """The newest state that all processes can read, laid out as `like` (shapes, dtypes, shardings); None: none.

        States beyond step `at_most` are set aside: what leads to them is lost.
        """
        for step in hosts.broadcast(sorted(self.manager.all_steps(), reverse=True), "steps"):
            if at_most is not None and step > at_most:
                words = f"the curve that leads to it is damaged after step {at_most}"
            else:
                saved, trouble = _try_to_read(self.folder / str(step) / ITEM, like)
                words = next(filter(None, hosts.gather(trouble, f"restore {step}")), "") or _find_damage(saved, like)
                if not words:
                    return _unflatten(saved, like)
            self.skipped.append(f"checkpoint {step}: {words}")
            hosts.from_first(lambda step=step: self._set_aside(step), "set aside")  # type: ignore[misc]
            self.manager.reload()
        return None

    def _set_aside(self, step: int) -> None:
        """Move an unreadable step to damaged_checkpoints/, out of the way of the one that will take its place."""
        aside = self.folder.with_name("damaged_checkpoints")
        aside.mkdir(exist_ok=True)
        with suppress(FileNotFoundError):  # another holder, paused meanwhile, may have dropped it
            (self.folder / str(step)).rename(aside / f"{step}-{uuid.uuid4().hex[:8]}")

    @contextmanager
    def closing(self) -> Iterator[None]:
        """Close in the end. Not where this process fails alone: closing waits for others, who wait elsewhere."""
        try:
            yield
        except BaseException as error:
            if not hosts.is_alone_with(error):
                self.close()
            raise
        self.close()

    def close(self) -> None:
        """Wait for saves under way and release the folder."""
        self.manager.close()


def _try_to_read(folder: Path, like: TrainState) -> tuple[dict[str, Any], str]:
    """The arrays, or what is wrong with them in words; the machine's trouble is raised, it is not the checkpoint's."""
    try:
        return read_state(folder, like), ""
    except (MemoryError, PermissionError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:
        return {}, f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


def keep_state(folder: Path, state: TrainState) -> None:
    """Write one state to `folder`, which appears whole or not at all; one that is there already stays."""
    if hosts.from_first(lambda: _make_way(folder), f"keep {folder.parent.name}"):
        return
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder.absolute(), _seal(state))


def _make_way(folder: Path) -> bool:
    """Whether the state is there already; what a start that was killed left of it goes."""
    for torn in folder.parent.glob(f"{folder.name}.orbax-checkpoint-tmp*"):
        shutil.rmtree(torn)
    return folder.exists()


def read_state(folder: Path, like: TrainState) -> dict[str, Any]:
    """The arrays that were written there, for `unseal_state`; raises what Orbax does where they cannot be read.

    Each process reads its own shards, laid out as `like`, and waits for no other. States of before 0.6.0 have no
    fingerprint, and are taken as they are.
    """
    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(me, {me}, f"process{me}") if hosts.is_many() else None
    wanted = _by_name(like)
    if f"'{FINGERPRINT}'" in (folder / "_METADATA").read_text():
        wanted[FINGERPRINT] = np.zeros((len(wanted), 2), np.uint32)
    with ocp.StandardCheckpointer(**({"multiprocessing_options": alone} if alone else {})) as checkpointer:
        saved: dict[str, Any] = checkpointer.restore(folder.absolute(), wanted)
    return saved


def unseal_state(saved: dict[str, Any], like: TrainState) -> TrainState:
    """The state that `read_state` read; Damaged where it is not what was saved. All processes call it together."""
    words = _find_damage(saved, like)
    if words:
        raise Damaged(words)
    return _unflatten(saved, like)


def _find_damage(saved: dict[str, Any], like: TrainState) -> str:
    """Which arrays are not those that were saved; empty where all are."""
    if FINGERPRINT not in saved:
        return ""
    leaves = {name: saved[name] for name in _by_name(like)}
    told, found = np.asarray(saved[FINGERPRINT]), fingerprint(leaves)
    wrong = [name for name, ok in zip(leaves, (told == found).all(axis=1), strict=True) if not ok]
    if not wrong:
        return ""
    return f"{len(wrong)} of {len(leaves)} arrays are not as they were saved, {wrong[0]} among them"


def _unflatten(saved: dict[str, Any], like: TrainState) -> TrainState:
    return jax.tree.unflatten(jax.tree.structure(like), [saved[name] for name in _by_name(like)])


def _seal(state: TrainState) -> dict[str, Any]:
    """What is saved: the state's arrays by name, and their fingerprint."""
    leaves = _by_name(state)
    return {**leaves, FINGERPRINT: fingerprint(leaves)}


def _by_name(state: TrainState) -> dict[str, Any]:
    """Leaves keyed by their path, in the tree's order."""
    leaves = jax.tree.leaves_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
