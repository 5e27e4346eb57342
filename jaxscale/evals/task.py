"""Multiple-choice tasks: a file of questions with their choices, read strictly, and the prompt of each.

    {"question": "The sky is", "choices": ["blue.", "a kind of cheese."], "label": 0}      one line of NAME.jsonl

A choice follows its question after one space. With k shots, k solved examples stand before the question, each as
question, space and answer, with an empty line between them. Chance is the mean of 1 / (number of choices).
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from jaxscale.data.documents import COMPRESSED, decompress
from jaxscale.errors import MisuseError

__all__ = ["DELIMITER", "Item", "Task", "find_tasks", "make_prompts", "read_task"]

DELIMITER = " "
"""Between a question and its answer, as in lm-eval (`target_delimiter`)."""
BETWEEN_SHOTS = "\n\n"
"""Between solved examples, as in lm-eval (`fewshot_delimiter`)."""
SHOTS_SEED = 1234
SUFFIX = ".jsonl"


@dataclass(frozen=True)
class Item:
    """A question, two or more choices, and the number of the right one, from 0."""

    question: str
    choices: tuple[str, ...]
    label: int

    @property
    def solved(self) -> str:
        """The question with its right answer."""
        return f"{self.question}{DELIMITER}{self.choices[self.label]}"


@dataclass(frozen=True, eq=False)
class Task:
    """The items of one file; `sha256` is that of its text, unpacked."""

    name: str
    items: tuple[Item, ...]
    sha256: str

    @property
    def chance(self) -> float:
        """Expected accuracy of guessing."""
        return float(np.mean([1 / len(item.choices) for item in self.items]))


def find_tasks(patterns: Sequence[str], field: str) -> tuple[Path, ...]:
    """The task files that these glob patterns match, by name; a folder stands for the .jsonl files in it.

    MisuseError, naming `field`: a pattern without a match, two files of one name.
    """
    found: dict[str, Path] = {}
    for pattern in patterns:
        expanded = os.path.expanduser(pattern)
        names = glob.glob(os.path.join(expanded, "*" + SUFFIX + "*") if os.path.isdir(expanded) else expanded)
        files = sorted({Path(name).resolve() for name in names if os.path.isfile(name)})
        if not files:
            raise MisuseError(f"{field}: {pattern!r} matches no file (looked from {os.getcwd()}); name .jsonl files "
                              f"with question, choices and label")  # fmt: skip
        for file in files:
            name = task_name(file)
            if found.setdefault(name, file) != file:
                raise MisuseError(f"{field}: {found[name]} and {file} are both task {name!r}; rename one of them")
    return tuple(found[name] for name in sorted(found))


def task_name(file: Path) -> str:
    """The file's name without its suffixes.

    >>> task_name(Path("evals/arc_easy.jsonl.xz"))
    'arc_easy'
    """
    packed = file.suffix.lower() in COMPRESSED
    name = Path(file.stem if packed else file.name)
    if name.suffix.lower() != SUFFIX:
        raise MisuseError(f"{file}: is no task file; tasks are .jsonl (also .jsonl.xz, .jsonl.gz, .jsonl.zst)")
    return name.stem


def read_task(file: Path) -> Task:
    """The items of a task file.

    MisuseError names file and line: a field that is missing or of the wrong kind, one choice, an empty choice, a label
    outside of the choices; or the file: damaged, without items.
    """
    file = Path(file)
    try:
        status = file.stat()
    except OSError as error:
        raise MisuseError(f"{file}: cannot be read ({error.strerror})") from error
    return _read(file, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=64)
def _read(file: Path, modified_ns: int, size_bytes: int) -> Task:
    """Modification time and size tell one content from another."""
    name = task_name(file)
    packed = file.suffix.lower() if file.suffix.lower() in COMPRESSED else ""
    try:
        with open(file, "rb") as raw, decompress(raw, packed) as stream:
            text = stream.read()
    except Exception as error:  # each archive format raises its own
        raise MisuseError(f"{file}: cannot be read ({error})") from error
    lines = [(number, line) for number, line in enumerate(text.split(b"\n"), start=1) if line.strip()]
    items = tuple(_parse(line, f"{file}:{number}") for number, line in lines)
    if not items:
        raise MisuseError(f"{file}: holds no items; a line each, with question, choices and label")
    return Task(name, items, hashlib.sha256(text).hexdigest())


def _parse(line: bytes, place: str) -> Item:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise MisuseError(f"{place}: not a JSON object a line ({error})") from None
    if not isinstance(record, dict):
        raise MisuseError(f"{place}: {type(record).__name__} where an object with question, choices and label is meant")
    question, choices, label = (_field(record, name, place) for name in ("question", "choices", "label"))
    if not isinstance(question, str):
        raise MisuseError(f"{place}: question {question!r} is no text; give a string")
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        raise MisuseError(f"{place}: choices {choices!r} are no list of texts; give two or more strings")
    if len(choices) < 2:
        raise MisuseError(f"{place}: {len(choices)} choice(s) leave nothing to choose; give two or more")
    empty = [i for i, choice in enumerate(choices) if not choice.strip()]
    if empty:
        raise MisuseError(f"{place}: choice {empty[0]} is {choices[empty[0]]!r}, which has no text to be scored")
    if isinstance(label, bool) or not isinstance(label, int):
        raise MisuseError(f"{place}: label {label!r} is no whole number; give the right choice's, 0 to "
                          f"{len(choices) - 1}")  # fmt: skip
    if not 0 <= label < len(choices):
        raise MisuseError(f"{place}: label {label} is outside of the {len(choices)} choices; use 0 to "
                          f"{len(choices) - 1}")  # fmt: skip
    _check_text([question, *choices], place)
    return Item(question, tuple(choices), label)


def _field(record: dict[str, Any], name: str, place: str) -> Any:
    if name not in record:
        raise MisuseError(f"{place}: no field {name!r} (there: {', '.join(sorted(record)[:8])}); an item has question, "
                          f"choices and label")  # fmt: skip
    return record[name]


def _check_text(texts: Sequence[str], place: str) -> None:
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise MisuseError(f"{place}: {text[:40]!r} holds half a surrogate pair, which is not text") from None


def make_prompts(task: Task, shots: int, pool: Sequence[Item] = ()) -> Iterator[str]:
    """What stands before the choices of each item: its question, after `shots` solved examples.

    Of a pool they are drawn anew for each item, by a fixed seed; without one they are the task's first items. The item
    itself, or one equal to it, is never among them. MisuseError where there are too few.
    """
    for place, item in enumerate(task.items):
        yield BETWEEN_SHOTS.join([*(other.solved for other in _pick(task, place, shots, pool)), item.question])


def _pick(task: Task, place: int, shots: int, pool: Sequence[Item]) -> list[Item]:
    """The examples of one item."""
    others = (other for other in pool or task.items if other != task.items[place])
    picked = list(others if pool and shots else islice(others, shots))
    if len(picked) < shots:
        raise MisuseError(f"task {task.name}: {shots} examples are asked for and {len(picked)} others are there; "
                          f"ask for fewer, or give more")  # fmt: skip
    if pool and shots:
        drawn = np.random.default_rng([SHOTS_SEED, place]).choice(len(picked), shots, replace=False)
        return [picked[i] for i in drawn]
    return picked
