"""Checkpoints of one run: Orbax, saved asynchronously, restored onto whatever mesh the run now has.

A step's folder appears whole or not at all, so a kill during a save leaves the previous one. Restoring walks
back from the newest step until one can be read; a corrupt one is named in `skipped`, moved aside, never used.

With the leaves goes a fingerprint of them, so that a bit flipped on the disk or on the way is seen. Of a leaf's words
x_i, its bits as unsigned integers in the order of the whole array,

    sum_i x_i (2 i + 1)   and   sum_i (x_i xor i) (2654435761 i | 1)   modulo 2^32

Multipliers are odd, so no single changed word goes unnoticed; integer sums are the same in any order, on any mesh.
"""

from __future__ import annotations

import logging
import shutil
import uuid
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from jaxscale.train.step import TrainState

__all__ = ["Checkpoints", "Damaged", "fingerprint", "keep_state", "read_state"]

for _chatty in ("absl", "asyncio"):
    logging.getLogger(_chatty).setLevel(logging.CRITICAL)  # what fails is raised, and said in a sentence


FINGERPRINT = "fingerprint"
WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


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
        if step not in self.manager.all_steps():
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
        """The newest readable state, laid out as `like` (shapes, dtypes, shardings); None if there is none.

        States beyond step `at_most` are set aside: what leads to them is lost.
        """
        for step in sorted(self.manager.all_steps(), reverse=True):
            if at_most is not None and step > at_most:
                self.skipped.append(f"checkpoint {step}: the curve that leads to it is damaged after step {at_most}")
                self._set_aside(step)
                continue
            try:
                saved = self.manager.restore(step, args=ocp.args.StandardRestore(_like(like)))
                return _unseal(saved, like)
            except (MemoryError, PermissionError, jax.errors.JaxRuntimeError):
                raise  # the machine's trouble, not the checkpoint's
            except Exception as error:
                words = (str(error).splitlines() or [""])[0][:200]
                self.skipped.append(f"checkpoint {step}: {type(error).__name__}: {words}")
                self._set_aside(step)
        return None

    def _set_aside(self, step: int) -> None:
        """Move an unreadable step to damaged_checkpoints/, out of the way of the one that will take its place."""
        aside = self.folder.with_name("damaged_checkpoints")
        aside.mkdir(exist_ok=True)
        with suppress(FileNotFoundError):  # another holder, paused meanwhile, may have dropped it
            (self.folder / str(step)).rename(aside / f"{step}-{uuid.uuid4().hex[:8]}")
        self.manager.reload()

    def close(self) -> None:
        """Wait for saves under way and release the folder."""
        self.manager.close()


def keep_state(folder: Path, state: TrainState) -> None:
    """Write one state to `folder`, which appears whole or not at all; one that is there already stays."""
    if folder.exists():
        return
    for torn in folder.parent.glob(f"{folder.name}.orbax-checkpoint-tmp*"):
        shutil.rmtree(torn)  # of a start that was killed
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder.absolute(), _seal(state))


def read_state(folder: Path, like: TrainState) -> TrainState:
    """The state that `keep_state` wrote, laid out as `like`; raises what Orbax does if unreadable, or Damaged."""
    with ocp.StandardCheckpointer() as checkpointer:
        saved = checkpointer.restore(folder.absolute(), _like(like))
    return _unseal(saved, like)


def fingerprint(leaves: dict[str, Any]) -> np.ndarray:
    """uint32 [leaves, 2] of arrays by name, in the order of the names given.

    On one CPU process by numpy, without a compilation; elsewhere on the devices, each adding up what it holds.
    """
    if all(_is_here(leaf) for leaf in leaves.values()):
        return np.array([_sum_words(np.asarray(leaf), np) for leaf in leaves.values()], np.uint32)
    return np.asarray(_sum_leaves(list(leaves.values())))


def _is_here(leaf: Any) -> bool:
    return isinstance(leaf, np.ndarray) or (
        leaf.is_fully_addressable and all(device.platform == "cpu" for device in leaf.sharding.device_set)
    )


@jax.jit
def _sum_leaves(leaves: list[jax.Array]) -> jax.Array:
    return jnp.stack([jnp.stack(_sum_words(leaf, jnp)) for leaf in leaves])


def _sum_words(leaf: Any, xp: Any) -> list[Any]:
    """The two sums of one array; `xp` is numpy or jax.numpy."""
    kind = WORDS[leaf.dtype.itemsize]
    words = leaf.view(kind) if xp is np else jax.lax.bitcast_convert_type(leaf, kind)
    words, index = words.astype(xp.uint32), _count(leaf.shape, xp)
    odd = xp.uint32(2654435761) * index | xp.uint32(1)
    total = partial(xp.sum, dtype=xp.uint32)
    return [total(words * (index * xp.uint32(2) + xp.uint32(1))), total((words ^ index) * odd)]


def _count(shape: tuple[int, ...], xp: Any) -> Any:
    """Places 0, 1, .. of an array's elements, modulo 2^32; made in place, so that a sharded array needs no other's."""
    index, stride = xp.zeros(shape, xp.uint32), 1
    for axis in reversed(range(len(shape))):
        along = xp.arange(shape[axis], dtype=xp.uint32).reshape(-1, *[1] * (len(shape) - axis - 1))
        index = index + along * xp.uint32(stride % (1 << 32))
        stride *= shape[axis]
    return index


def _seal(state: TrainState) -> dict[str, Any]:
    leaves = _by_name(state)
    return {**leaves, FINGERPRINT: fingerprint(leaves)}


def _like(like: TrainState) -> dict[str, Any]:
    """What a saved state restores as."""
    leaves = _by_name(like)
    return {**leaves, FINGERPRINT: np.zeros((len(leaves), 2), np.uint32)}


def _unseal(saved: dict[str, Any], like: TrainState) -> TrainState:
    leaves = {name: saved[name] for name in _by_name(like)}
    told, found = np.asarray(saved[FINGERPRINT]), fingerprint(leaves)
    wrong = [name for name, ok in zip(leaves, (told == found).all(axis=1), strict=True) if not ok]
    if wrong:
        raise Damaged(f"{len(wrong)} of {len(leaves)} arrays are not as they were saved, {wrong[0]} among them")
    return jax.tree.unflatten(jax.tree.structure(like), list(leaves.values()))


def _by_name(state: TrainState) -> dict[str, Any]:
    """Leaves keyed by their path, in the tree's order."""
    leaves = jax.tree.leaves_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
