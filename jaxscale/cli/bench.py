"""The verb `bench`: a training step beside peers, a whole grid beside a plain loop."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from jaxscale.cli.options import parse
from jaxscale.errors import MisuseError

__all__ = ["bench"]

USAGE = """usage: jaxscale bench step [--shape D,L,H,B,T,V ...]   a training step of ours beside peers
       jaxscale bench grid [STUDY.py]                  a whole study beside the same cells by a plain loop

example: jaxscale bench step --shape 128,4,4,16,128,256 --nanodo ~/nanodo --nanogpt ~/nanoGPT --out bench.json
`jaxscale bench step --help` lists the options of step, and so for grid."""

STEP = """A training step of ours beside peers, timed in turn in one run; each in a process of its own.

ratio: our tokens per second over theirs, median of the rounds. Without checkouts only ours is timed.

example: jaxscale bench step --shape 128,4,4,16,128,256 --nanodo ~/nanodo --loop"""

GRID = """A study by `jaxscale run`, its compile cache empty, beside the same cells by NanoDO's model and a plain loop.

example: jaxscale bench grid configs/quickstart.py --nanodo ~/nanodo --cells 8"""


@dataclass(frozen=True)
class StepOptions:
    """Options of `bench step`."""

    shape: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Width, layers, heads, batch, length, vocabulary as D,L,H,B,T,V; may be repeated. Default: four shapes."""
    nanodo: Path | None = None
    """Checkout of github.com/google-deepmind/nanodo; on CPU it runs as shipped and with our allocator settings."""
    nanogpt: Path | None = None
    """Checkout of github.com/karpathy/nanoGPT."""
    torch_python: str = sys.executable
    """Interpreter that has torch."""
    rounds: int = 7
    """Turns of each contestant."""
    seconds: float = 1.0
    """Length of a turn, a step at least."""
    loop: bool = False
    """Also time our whole training loop against its bare step."""
    out: Path | None = None
    """Where the JSON goes (jaxscale.bench/1)."""


@dataclass(frozen=True)
class GridOptions:
    """Options of `bench grid`."""

    nanodo: Path | None = None
    """Checkout of github.com/google-deepmind/nanodo; without it only ours is timed."""
    cells: int = 0
    """Only so many cells, evenly spread over the plan, the same for both; 0: all."""
    out: Path | None = None
    """Where the JSON goes (jaxscale.bench/1)."""


def bench(argv: list[str]) -> int:
    """One of the sub-verbs."""
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if argv else 2
    if argv[0] == "--version":
        from jaxscale.cli import dispatch

        return dispatch(argv)
    verbs: dict[str, Callable[[list[str]], int]] = {"step": _step, "grid": _grid}
    if argv[0] not in verbs:
        raise MisuseError(f"{argv[0]!r} is none of {', '.join(verbs)}; `jaxscale bench --help` says more")
    return verbs[argv[0]](argv[1:])


def _step(argv: list[str]) -> int:
    options = parse(StepOptions, argv, "bench step", STEP)
    from jaxscale.bench import DEFAULT_SHAPES, bench_step, parse_shape

    if options.rounds < 1 or not 0 < options.seconds < float("inf"):
        raise MisuseError(f"--rounds {options.rounds} --seconds {options.seconds:g}: use 1 round or more, of more than "
                          f"0 seconds")  # fmt: skip
    shapes = [parse_shape(text) for text in options.shape] or list(DEFAULT_SHAPES)
    checkouts = {"nanodo": options.nanodo, "nanogpt": options.nanogpt}
    given = {name: folder for name, folder in checkouts.items() if folder is not None}
    with _progress("timing a step") as tick:
        found = bench_step(shapes, given, torch_python=options.torch_python, rounds=options.rounds,
                           seconds=options.seconds, loop=options.loop, on_turn=tick)  # fmt: skip
    return _finish(found, options.out)


def _grid(argv: list[str]) -> int:
    study = argv[0] if argv and not argv[0].startswith("-") else "configs/quickstart.py"
    options = parse(GridOptions, argv[1:] if argv and argv[0] == study else argv, "bench grid", GRID)
    from jaxscale.bench.grid import bench_grid

    if options.cells < 0:
        raise MisuseError(f"--cells: {options.cells} is below 0; use 0 for all")
    with _progress("training the grid") as tick:
        found = bench_grid(Path(study), options.nanodo, options.cells, tick)
    return _finish(found, options.out)


def _finish(found: object, out: Path | None) -> int:
    from jaxscale.plain import write_json

    print(found)
    if out is not None:
        write_json(out, found.to_json())  # type: ignore[attr-defined]
        print(f"written: {out}")
    return 0


@contextmanager
def _progress(what: str) -> Iterator[Callable[[str], None]]:
    """A spinner that names whose turn has ended; nothing where nobody watches."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda name: None
        return
    with console.status(what) as status:
        counted: dict[str, int] = {}

        def tick(name: str) -> None:
            counted[name] = counted.get(name, 0) + 1
            status.update(f"{what}: " + ", ".join(f"{each} {turns}" for each, turns in counted.items()))

        yield tick
