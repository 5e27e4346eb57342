"""Would the rule of `--stop-hopeless` have stopped runs that the analysis reads? Replayed over finished sweeps.

python tests/bench/hopeless.py runs/width5 runs/depth > /tmp/hopeless.md        a minute on one core

SWEEP folders have sweep.json and every run's metrics.jsonl. Tables, as Markdown: what is left at the end of a gap
that is there at a rung (from it come `kept` and `noise` of jaxscale.hopeless.RUNGS); what the rule stops and saves, in
several orders of handing the runs out and with all rates side by side; how far optima, shift and regret move; margins
taken from one sweep and replayed over another; other margins.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

sys.path[:0] = [str(Path(__file__).parents[2])]

from jaxscale import hopeless  # noqa: E402
from jaxscale.hopeless import (  # noqa: E402
    NEAR,
    RUNGS,
    SMOOTH,
    Rung,
    Stop,
    Trace,
    is_beside,
    judge_run,
    mean_loss,
    stop_margin,
)
from jaxscale.mup import analyse_sweep  # noqa: E402
from jaxscale.mup.transfer import Transfer  # noqa: E402

ALIKE = ["parameterization", "width", "depth", "tokens", "batch_tokens", "weight_decay", "init_scale", "seed"]
Order = Callable[[int, int], Sequence[int]]
"""Places of the rates in the order handed out, of their number and the contest's."""


@dataclass(frozen=True)
class Sweep:
    """A finished sweep: its rows, and each run's curve."""

    name: str
    rows: pd.DataFrame
    traces: dict[str, Trace]

    @classmethod
    def read(cls, folder: Path) -> Sweep:
        rows = pd.DataFrame(json.loads((folder / "sweep.json").read_text())["rows"])
        traces = {}
        for run in rows.itertuples():
            lines = (folder / run.run_id / "metrics.jsonl").read_text().splitlines()
            traces[run.run_id] = Trace(run.run_id, run.lr, [json.loads(line) for line in lines])
        return cls(folder.name, rows, traces)

    def contests(self) -> Iterator[pd.DataFrame]:
        """Rows of one contest by rising rate."""
        for _, rows in self.rows.groupby(ALIKE):
            yield rows.sort_values("lr", ignore_index=True)


def center_out(n: int, k: int) -> list[int]:
    """The order of jaxscale.hopeless.keep_order."""
    return sorted(range(n), key=lambda i: abs(i - (n - 1) / 2))


ORDERS: dict[str, Order] = {
    "from the middle out": center_out,
    "rising rates": lambda n, k: list(range(n)),
    "falling rates": lambda n, k: list(range(n))[::-1],
    "drawn at random for each contest": lambda n, k: np.random.default_rng(k).permutation(n).tolist(),
}


def replay(sweep: Sweep, order: Order | None, rungs: Sequence[Rung] = RUNGS) -> dict[str, Stop]:
    """The runs stopped, by id: in an order, or (None) each beside all others."""
    stopped: dict[str, Stop] = {}
    for k, rows in enumerate(sweep.contests()):
        n, steps = len(rows), int(rows["steps"][0])
        rank = np.argsort(order(n, k)) if order else None
        for rung in rungs:
            new: dict[str, Stop] = {}
            for i, run in enumerate(rows["run_id"]):
                rivals = [replace(sweep.traces[other], stops=not is_beside(i, j, n))
                          for j, other in enumerate(rows["run_id"])
                          if i != j and other not in stopped and (rank is None or rank[j] < rank[i])]  # fmt: skip
                if run in stopped:
                    continue
                stop = judge_run(steps, _until(sweep.traces[run], steps, rung), rivals, rung)
                new |= {run: stop} if stop else {}
            stopped |= new
    return stopped


def _until(trace: Trace, steps: int, rung: Rung) -> Trace:
    """The run as it stands at the first line at or past the rung."""
    count = 1 + sum(line["step"] < rung.share * steps for line in trace.lines)
    return replace(trace, lines=trace.lines[:count])


def censor(sweep: Sweep, stopped: dict[str, Stop]) -> pd.DataFrame:
    rows = sweep.rows.copy()
    rows.loc[rows["run_id"].isin(stopped), ["state", "loss"]] = ["censored", None]
    return rows


def print_kept(sweeps: Sequence[Sweep]) -> None:
    """What is left at the end of gaps of more than NEAR, the largest gap of a run that ended within NEAR; noise."""
    print("| rung | sweep | rate below: pairs | least kept | largest gap that ended near | margin | rate above: pairs "
          "| least kept | largest gap that ended near | noise |\n|" + " --- |" * 10)  # fmt: skip
    for rung in RUNGS:
        for sweep in sweeps:
            told = []
            for gaps, ends in _gaps(sweep, rung):
                large = gaps > math.log1p(NEAR)
                least = f"{(ends / gaps)[large].min():.2f}" if large.any() else "–"
                near = f"{gaps[ends <= math.log1p(NEAR)].max():.3f}"
                told.append(f"{large.sum()} | {least} | {near}")
            margin, noise = f"{stop_margin(rung):.3f}", f"{_noise(sweep, rung):.4f}"
            print(f"| {rung.share:g} | {sweep.name} | {told[0]} | {margin} | {told[1]} | {noise} |")
    print(flush=True)


def _mean(sweep: Sweep, run: Any, rung: Rung) -> float:
    until = rung.share * run.steps
    mean = mean_loss(sweep.traces[run.run_id].lines, until - SMOOTH * run.steps, until)
    assert mean is not None
    return math.log(mean)


def _gaps(sweep: Sweep, rung: Rung) -> list[tuple[np.ndarray, np.ndarray]]:
    """Log gaps at the rung and at the end of every two runs of a contest, from the one ahead at the rung: of those
    whose rate is below that one's, and above it."""
    found: list[list[tuple[float, float]]] = [[], []]
    for rows in sweep.contests():
        now = [_mean(sweep, run, rung) for run in rows.itertuples()]
        end = np.log(rows["loss"])
        for i in range(len(rows)):
            for j in range(len(rows)):
                if now[i] > now[j]:
                    found[i > j].append((now[i] - now[j], float(end[i] - end[j])))
    return [(np.array(side)[:, 0], np.array(side)[:, 1]) for side in found]


def _noise(sweep: Sweep, rung: Rung) -> float:
    """Deviation of log end - log now beyond the means of its rate and of its seed, one model at a time."""
    gain = [math.log(run.loss) - _mean(sweep, run, rung) for run in sweep.rows.itertuples()]
    squares, dof = 0.0, 0
    for _, rows in sweep.rows.assign(gain=gain).groupby(ALIKE[:-1]):
        table = rows.pivot(index="lr", columns="seed", values="gain")
        for _, part in table.groupby(table.notna().sum(axis=1)):  # rates with as many seeds
            d = part.dropna(axis=1).to_numpy()
            rest = d - d.mean(0) - d.mean(1, keepdims=True) + d.mean()
            squares, dof = squares + float((rest**2).sum()), dof + max(0, (d.shape[0] - 1) * (d.shape[1] - 1))
    return math.sqrt(squares / dof)


def print_stopped(sweeps: Sequence[Sweep]) -> None:
    """Stopped, saved, and wrongly so: within NEAR of the contest's lowest, or read by the fit of the whole sweep."""
    print("| sweep | order | stopped | of them within 6% of the best | in a window of the fit | least gap at the end "
          "| ends hopeless | FLOPs saved |\n|" + " --- |" * 8)  # fmt: skip
    for sweep in sweeps:
        read = _read_by_fit(sweep)
        for name, order in {**ORDERS, "side by side, all are rivals": None}.items():
            print(f"| {sweep.name} | {name} | {_judge(sweep, replay(sweep, order), read)} |", flush=True)
    print(flush=True)


def _judge(sweep: Sweep, stopped: dict[str, Stop], read: set[str]) -> str:
    rows = sweep.rows.assign(best=sweep.rows.groupby(ALIKE)["loss"].transform("min"))
    flops = rows.apply(lambda run: sweep.traces[run["run_id"]].lines[-1]["flops"], axis=1)
    left = rows["run_id"].map(lambda run: 1 - stopped[run].step / stopped[run].steps if run in stopped else 0.0)
    gap = np.log(rows["loss"] / rows["best"])
    mine = gap[rows["run_id"].isin(stopped)]
    least = f"{math.expm1(mine.min()):.1%}" if len(mine) else "–"
    return (f"{len(mine)} of {len(rows)} | {(mine <= math.log1p(NEAR)).sum()} | {len(read & set(stopped))} | {least} "
            f"| {(gap > math.log1p(NEAR)).sum()} | {(flops * left).sum() / flops.sum():.1%}")  # fmt: skip


def _read_by_fit(sweep: Sweep) -> set[str]:
    """Runs inside the windows that the analysis of the whole sweep settled on."""
    found, result = set(), analyse_sweep(sweep.rows)
    for one in result.optima:
        low, high = one.window_lr
        rows = sweep.rows[(sweep.rows["width"] == one.width) & (sweep.rows["depth"] == one.depth)
                          & (sweep.rows["parameterization"] == one.parameterization)]  # fmt: skip
        if low is not None and high is not None:
            found |= set(rows[(rows["lr"] >= low * 0.999) & (rows["lr"] <= high * 1.001)]["run_id"])
    return found


def print_moved(sweeps: Sequence[Sweep]) -> None:
    """Optima, shift and regret bound with all runs and without the stopped ones."""
    print("| sweep | ladder | optima lost | an optimum moves (doublings) at most | shift | with stops | regret's bound "
          "| with stops |\n|" + " --- |" * 8)  # fmt: skip
    for sweep in sweeps:
        whole = analyse_sweep(sweep.rows)
        for line in _moved(whole, analyse_sweep(censor(sweep, replay(sweep, None)))):
            print(f"| {sweep.name} | {line} |")
    print(flush=True)


def _moved(whole: Transfer, some: Transfer) -> Iterator[str]:
    for told, other in zip(whole.transfers, some.transfers, strict=True):
        if told.shift is None or other.shift is None:
            continue  # one width
        pairs = [(a, b) for a, b in zip(whole.optima, some.optima, strict=True)
                 if (a.parameterization, a.against) == (told.parameterization, told.against)]  # fmt: skip
        both = [abs(a.log2_lr - b.log2_lr) for a, b in pairs if a.log2_lr is not None and b.log2_lr is not None]
        lost = sum(a.status == "ok" and b.status != "ok" for a, b in pairs)
        name = f"{told.parameterization} over {told.against}s"
        bounds = [f"{one.regret_relative_high or math.nan:.4%}" for one in (told, other)]
        yield (f"{name} | {lost} | {max(both, default=math.nan):.3g} | {told.shift:+.4f} | {other.shift:+.4f} "
               f"| {bounds[0]} | {bounds[1]}")  # fmt: skip


def print_crossed(sweeps: Sequence[Sweep]) -> None:
    """Margins from one sweep alone, kept a tenth below its least and at most 1, replayed over the others."""
    print("| margins from | replayed over | stopped | of them within 6% | in a window | least gap | ends hopeless "
          "| saved |")  # fmt: skip
    print("|" + " --- |" * 8)
    for source in sweeps:
        rungs = [Rung(rung.share, _noise(source, rung), _least_kept(_gaps(source, rung)[0]))
                 for rung in RUNGS]  # fmt: skip
        for other in sweeps:
            if other is not source:
                told = _judge(other, replay(other, None, rungs), _read_by_fit(other))
                print(f"| {source.name} | {other.name} | {told} |", flush=True)
    print(flush=True)


def _least_kept(pairs: tuple[np.ndarray, np.ndarray]) -> float:
    gaps, ends = pairs
    return min(1.0, float((ends / gaps)[gaps > math.log1p(NEAR)].min()) - 0.1)


def print_margins(sweeps: Sequence[Sweep]) -> None:
    """The rule with its allowances scaled: what caution costs and what its lack does."""
    print("| near | kept | deviations | sweep | stopped | of them within 6% | in a window | least gap | ends hopeless "
          "| saved |\n|" + " --- |" * 10)  # fmt: skip
    near, certain = hopeless.NEAR, hopeless.CERTAIN
    tried = ((near, True, certain), (near, True, 0.0), (near, False, certain), (near, False, 0.0),
             (0.03, True, certain), (0.01, True, certain), (0.01, False, 0.0))  # fmt: skip
    for share, keep, deviations in tried:
        hopeless.NEAR, hopeless.CERTAIN = share, deviations
        rungs = RUNGS if keep else [replace(rung, kept=1.0) for rung in RUNGS]
        replays = [replay(sweep, None, rungs) for sweep in sweeps]
        hopeless.NEAR, hopeless.CERTAIN = near, certain
        for sweep, stopped in zip(sweeps, replays, strict=True):
            words = "as it is" if keep else "all of a gap"
            told = _judge(sweep, stopped, _read_by_fit(sweep))
            print(f"| {share:g} | {words} | {deviations:g} | {sweep.name} | {told} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweeps", nargs="+", type=Path)
    sweeps = [Sweep.read(folder) for folder in parser.parse_args().sweeps]
    print_kept(sweeps)
    print_stopped(sweeps)
    print_moved(sweeps)
    print_crossed(sweeps)
    print_margins(sweeps)


if __name__ == "__main__":
    main()
