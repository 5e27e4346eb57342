"""The long version: at least 200 faults, counted by kind.

    PYTHONPATH=. python tests/faults/long.py --faults 200 --seed 0 --out /tmp/faults.json

Goes on from --out where a start before this one left off, and stops after --minutes. Exit code 1 where a check failed.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path

from checks import summarise
from drive import Tally, run_rounds
from harness import Bench
from kinds import KINDS


def main() -> int:
    """Parse, run the rounds, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=25.0)
    parser.add_argument("--only", nargs="*", help="only the kinds that have one of these words")
    parser.add_argument("--out", type=Path, default=Path("/tmp/faults.json"))
    parser.add_argument("--root", type=Path, help="work folder, kept; default a temporary one")
    options = parser.parse_args()
    root = options.root or Path(tempfile.mkdtemp(prefix="faults-"))
    print(f"study folders and logs: {root}", flush=True)
    kinds = [kind for kind in KINDS if not options.only or any(word in kind for word in options.only)]
    tally = Tally.read(options.out)
    bench = Bench(root, budget=8e10, widths=(24, 32, 48, 64, 96), seeds=2)
    bench.train_reference()
    rng = random.Random(options.seed + 1000 * tally.rounds)
    run_rounds(bench, rng, tally, options.faults, time.monotonic() + 60 * options.minutes, kinds,
               lambda line: print(line, flush=True), lambda so_far: _write(options.out, so_far))  # fmt: skip
    _write(options.out, tally)
    print_table(tally)
    return 1 if tally.problems else 0


def _write(out: Path, tally: Tally) -> None:
    plain = {"schema": "jaxscale.faults/1", **tally.to_plain(), "summary": summarise(tally.losses)}
    out.write_text(json.dumps(plain, indent=1))


def print_table(tally: Tally) -> None:
    """Counts by kind, what kills cost, and what was found."""
    for kind in KINDS:
        print(f"{tally.faults[kind]:>5}  {kind}")
    print(f"{tally.faults.total():>5}  faults in {tally.rounds} grids, {tally.seconds / 60:.1f} minutes, "
          f"{tally.spot_checks} looks at the evidence in between")  # fmt: skip
    for name, value in summarise(tally.losses).items():
        print(f"{value:>8}  {name}")
    for problem in tally.problems:
        print(f"PROBLEM {problem}")
    for left in tally.litter:
        print(f"litter {left}")
    for traceback, count in tally.tracebacks.items():
        print(f"TRACEBACK {count} x {traceback}")
    if not tally.problems:
        print("no problem found")


if __name__ == "__main__":
    sys.exit(main())
