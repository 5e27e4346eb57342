"""How long a sweep takes: 16 runs of one width as 16 calls of `jaxscale train`, and as one `mup sweep` by each way.

    PYTHONPATH=. python tests/bench/sweep_speed.py --widths 32 64          # 8 rates x 2 seeds, runs of 7.5e10 FLOPs
    PYTHONPATH=. python tests/bench/sweep_speed.py --widths 32 --rounds 3

Runs as long as the quick start's at its second budget. For each width, in one run, each in a fresh folder, wall-clock
seconds with start-up: first `auto` and the 16 calls, each with an empty compile cache; then, in turn,
`--rounds` times, the three fixed ways and `auto` with one cache that all have filled, in which the probe of the shape
(measured by a worker pinned to a core, as workers measure it) lies too: `auto` takes what it found fastest.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RATES = [0.02 * 2 ** (i / 2 - 2) for i in range(8)]
WAYS = ("process", "pack", "turn", "auto")


def call(*words: str) -> float:
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "jaxscale", *words], capture_output=True, text=True)
    if done.returncode not in (0, 1):
        raise SystemExit(done.stderr)
    return time.perf_counter() - start


def sweep(options: argparse.Namespace, width: int, way: str, folder: Path, cache: Path, *more: str) -> float:
    return call(
        "mup", "sweep", options.study, "--widths", str(width), "--lrs", *(f"{rate:.6g}" for rate in RATES),
        "--seeds", "2", "--parameterizations", "mup",
        "--tokens", f"{tokens_of(options, width):.0f}", "--mesh.packs", way,
        "--mesh.compile-cache", str(cache), "--out", str(folder), *more,
    )  # fmt: skip


def tokens_of(options: argparse.Namespace, width: int) -> float:
    from dataclasses import replace

    from jaxscale.flops import flops_per_token
    from jaxscale.study import load_study

    return options.flops / flops_per_token(replace(load_study(options.study).model, d_model=width))


def one_by_one(options: argparse.Namespace, width: int, folder: Path, cache: Path) -> float:
    """The same 16 runs, a `jaxscale train --index I` each; the plan is made beforehand."""
    plan_only(options, width, folder, cache)
    cells = len(json.loads((folder / "plan.json").read_text())["cells"])
    return sum(call("train", str(folder), "--index", str(i)) for i in range(cells))


def plan_only(options: argparse.Namespace, width: int, folder: Path, cache: Path) -> None:
    """The sweep's plan.json without training, its way the measured one."""
    from dataclasses import replace

    from jaxscale.data.tokens import build_tokens
    from jaxscale.mup.sweep import SweepGrid, plan_sweep
    from jaxscale.plain import write_json
    from jaxscale.study import load_study

    study = load_study(options.study)
    study = replace(study, mesh=replace(study.mesh, compile_cache=str(cache), packs="auto"))
    info = build_tokens(study.data).info
    grid = SweepGrid(
        ("mup",),
        (width,),
        tuple(float(f"{rate:.6g}") for rate in RATES),
        2,
        (float(f"{tokens_of(options, width):.0f}"),),
    )
    planned = plan_sweep(study, grid, train_tokens=info.train_tokens)
    write_json(folder / "plan.json", replace(planned, data_sha256=info.data_sha256).to_json())


def probe(options: argparse.Namespace, width: int, folder: Path, cache: Path) -> None:
    """Measure the three ways for half of these runs in a process like a worker's, and keep the figures in `cache`."""
    from jaxscale.train.seats import Seat

    plan_only(options, width, folder, cache)
    subprocess.run([sys.executable, __file__, "--probe", str(folder)], env=Seat((0,)).environment(), check=True)


def measure_ways(folder: Path) -> None:
    """(In the child.) What a worker of the pool would find for its half of the plan."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    from dataclasses import replace

    from jaxscale.config import Study
    from jaxscale.plain import from_plain
    from jaxscale.sweep import group_cells, read_plan
    from jaxscale.train.probe import choose_way
    from jaxscale.train.worker import use_compile_cache

    plan = read_plan(folder)
    mesh = replace(from_plain(plan.config, Study).mesh, packs="auto")
    use_compile_cache(mesh)
    way, ms = choose_way([cell.spec for cell in group_cells(plan.cells, 2, "auto")[0].cells], mesh)
    print(f"probe: {way}, ms a step of one run {ms}", flush=True)


def compare(options: argparse.Namespace, width: int) -> None:
    with tempfile.TemporaryDirectory() as root:
        times: dict[tuple[str, str], list[float]] = {}

        def take(kind: str, ways: tuple[str, ...], i: int, cache: Path | None) -> None:
            for way in ways:
                folder, own = Path(root) / f"{kind}{i}{way}", cache or Path(root) / f"cache{i}{way}"
                if way == "calls":
                    seconds = one_by_one(options, width, folder, own)
                else:
                    seconds = sweep(options, width, way, folder, own)
                times.setdefault((way, kind), []).append(seconds)

        take("empty", ("auto", "calls"), 0, None)
        warm = Path(root) / "warm"
        probe(options, width, Path(root) / "probe", warm)
        for way in WAYS[:3]:
            sweep(options, width, way, Path(root) / f"fill{way}", warm)
        for i in range(options.rounds):
            take("filled", WAYS, i, warm)
    report(width, times)


def report(width: int, times: dict[tuple[str, str], list[float]]) -> None:
    took = {key: statistics.median(found) for key, found in times.items()}
    best = min(took[way, "filled"] for way in WAYS[:3])
    print(f"width {width}, 16 runs, wall-clock seconds (median)")
    print(f"  empty cache: auto {took['auto', 'empty']:.1f}, 16 calls of train {took['calls', 'empty']:.1f}: "
          f"{took['calls', 'empty'] / took['auto', 'empty']:.2f} times as long")  # fmt: skip
    ways = ", ".join(f"{way} {took[way, 'filled']:.1f}" for way in WAYS)
    print(f"  filled cache: {ways}; auto over the fastest fixed way {took['auto', 'filled'] / best:.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", default="configs/quickstart.py")
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--flops", type=float, default=7.5e10, help="of one run")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--probe", type=Path, help="(internal) measure the ways for the plan in this folder")
    options = parser.parse_args()
    if options.probe is not None:
        measure_ways(options.probe)
        return
    print(f"load {os.getloadavg()[0]:.1f}, {len(os.sched_getaffinity(0))} cores")
    for width in options.widths:
        compare(options, width)


if __name__ == "__main__":
    main()
