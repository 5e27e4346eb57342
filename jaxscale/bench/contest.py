"""Contestants in processes of their own, timed in turn: A B C A B C ..., one works while the others wait.

Each keeps its own environment and stays alive over all rounds, so that a busy moment of the machine hits all alike and
a ratio of the same round is the fairest figure; `peers` has the protocol.
"""

from __future__ import annotations

import json
import math
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from jaxscale.errors import MisuseError, VerdictError

__all__ = ["Contestant", "Turn", "hold_contest", "start_contestant"]

PATIENCE_S = 60.0
"""Seconds that a contestant gets to leave when its stdin is closed."""


@dataclass(frozen=True)
class Contestant:
    """A name, the words that start its process, and that process's whole environment."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    turns: tuple[str, ...] = ("step",)
    """What it is asked in each round."""


@dataclass(frozen=True)
class Turn:
    """Steps made in so many seconds, and the last loss."""

    steps: int
    seconds: float
    loss: float | None
    compile_s: float = 0.0
    """What of the seconds went into compiling, where that is inside."""

    @property
    def step_s(self) -> float:
        """Seconds of a step."""
        return self.seconds / self.steps


class _Child:
    """A contestant's process, warmed up; `about` is what it says of itself."""

    def __init__(self, contestant: Contestant, process: subprocess.Popen[str], stderr: Any) -> None:
        self.name, self.process, self.stderr = contestant.name, process, stderr
        first = self._read()
        if "error" in first:
            raise MisuseError(first["error"])
        self.about: dict[str, Any] = first["ready"]

    def take_turn(self, turn: str, steps: int) -> Turn:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps({"turn": turn, "steps": steps}) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it has died; reading says how
        taken = Turn(**self._read())
        if taken.loss is None:
            raise VerdictError(f"{self.name}: its loss is not finite after {steps} steps; its time says nothing")
        return taken

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line.endswith("\n"):
            code = self.process.wait()
            raise VerdictError(f"{self.name}: its process ended with code {code}: {self._last_words()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _last_words(self) -> str:
        self.stderr.seek(0)
        lines = [line.strip() for line in self.stderr.read().splitlines() if line.strip()]
        return lines[-1][:300] if lines else "it said nothing"


@contextmanager
def start_contestant(contestant: Contestant) -> Iterator[_Child]:
    """A contestant's process, ready for its turns; it is ended at the end."""
    with tempfile.TemporaryFile("w+") as stderr:
        process = subprocess.Popen(
            contestant.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True,
            env=dict(contestant.environment),
        )  # fmt: skip
        try:
            yield _Child(contestant, process, stderr)
        finally:
            _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with suppress(BrokenPipeError):
                stream.close()
    try:
        process.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def hold_contest(
    contestants: Sequence[Contestant], rounds: int, seconds: float, on_turn: Callable[[str], None] = lambda name: None
) -> tuple[dict[str, dict[str, Any]], dict[tuple[str, str], list[Turn]]]:
    """What each contestant says of itself, and its turns by (name, turn), `rounds` of each.

    A turn takes about `seconds`, a step at least. `on_turn` hears a contestant's name when it is ready and after each
    of its turns. MisuseError with what a contestant says it lacks; VerdictError where one dies or its loss is not
    finite.
    """
    with ExitStack() as stack:
        children, lengths = {}, {}
        for contestant in contestants:  # one after another: none compiles while another does
            child = children[contestant.name] = stack.enter_context(start_contestant(contestant))
            for turn in contestant.turns:
                first = child.take_turn(turn, 1)
                lengths[contestant.name, turn] = max(1, math.ceil(seconds / first.step_s))
            on_turn(contestant.name)
        turns: dict[tuple[str, str], list[Turn]] = {key: [] for key in lengths}
        for _ in range(rounds):
            for name, turn in lengths:
                turns[name, turn].append(children[name].take_turn(turn, lengths[name, turn]))
                on_turn(name)
        return {name: child.about for name, child in children.items()}, turns
