"""A small grid under seventeen kinds of faults ends as the undisturbed one, to the bit; `long` has all kinds."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from drive import Tally, run_rounds
from harness import Bench

SHORT = [
    "kill -9 parent", "kill -9 worker at its start", "kill -9 before a checkpoint is named",
    "kill -9 before result.json is named", "SIGTERM parent", "full disk",
    "flipped checkpoint", "flipped spec", "flipped curve of a running cell",
    "truncated curve of an ended cell", "flipped result", "two launchers at once",
    "two `train --all` at once", "worker paused past the lease", "planted NaN", "clock moved by a day",
    "file times of 1970 or 2100",
]  # fmt: skip


def test_a_grid_under_faults_ends_as_the_undisturbed_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench = Bench(tmp_path, budget=1e10, widths=(12, 16, 24, 32, 48), seeds=2)
    bench.train_reference()
    kinds = [kind for kind in SHORT if kind != "full disk" or not bench.no_mount]
    if bench.no_mount:
        with capsys.disabled():
            print(f"\nno full disk: a tmpfs cannot be mounted here ({bench.no_mount})")
    tally = Tally()
    run_rounds(bench, random.Random(7), tally, len(kinds), time.monotonic() + 300, kinds, calm=0)
    assert tally.problems == []
    assert dict(tally.tracebacks) == {}
    assert sorted(tally.faults) == sorted(kinds)
