"""Speed of the parametric fit beside its peers: one core, warm, medians of interleaved rounds, CPU seconds.

    python tests/bench/fit_speed.py [--rounds 5] [--subset 40] [--data CSV] [--notebook IPYNB] [--out JSON]
    python tests/bench/fit_speed.py --only bootstrap single study cold large

bootstrap  4000 pair bootstraps of approach 3 at delta 1e-3 on the 240 points of Besiroglu et al. 2024, the rows
           drawn by RandomState(42). Ours does all 4000; a peer does `--subset` of them, other ones each round,
           and its time is scaled to 4000.
             epoch    the scheme of github.com/epoch-research/analyzing-chinchilla: for each bootstrap gather the
                      rows drawn, then scipy BFGS from Chinchilla's published parameters in (log A, log B, log E,
                      alpha, beta), gradients by the package autograd (finite differences where it is absent:
                      `pip install autograd`). With --notebook the objective is the notebook's own function.
             scipy    BFGS with the analytic gradient of a weighted objective, from the same start as ours (the
                      fit of all points): once at default tolerances, once at gtol 1e-7
           Ours begins with its continuation at delta .01. `excess` is the largest relative excess of an
           objective over the lowest any contestant reached for that bootstrap, `norm` the worst gradient norm in
           (log A, log B, log E, alpha, beta).
single     one fit from the 16 starts of fit/starts.py: ours (search and polish), and scipy BFGS with the same
           gradient from the same starts; then fit_parametric from a DataFrame to a Fit with all its diagnostics.
study      a simulated study, 5 budgets x 7 sizes, .5% noise: fit_parametric with 1,000 bootstraps.
cold       `jaxscale fit` in a new process, wall seconds: with an empty folder of compiled programs, and again.
large      100,000 rows and 200 bootstraps in a new process: CPU seconds and peak memory.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ONE_CORE = {
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false", "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1", "JAX_COMPILATION_CACHE_DIR": "",
}  # fmt: skip
if __name__ == "__main__":  # before jax is imported
    os.environ.update(ONE_CORE)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
from planted import LAW, draw_grid  # noqa: E402
from scipy.optimize import minimize  # noqa: E402

from jaxscale.fit.cells import Cells, gather_cells  # noqa: E402
from jaxscale.fit.design import Design, build_design  # noqa: E402
from jaxscale.fit.parametric import fit_parametric  # noqa: E402
from jaxscale.fit.solver import Lanes, polish, search  # noqa: E402
from jaxscale.fit.starts import project_starts  # noqa: E402
from jaxscale.runs import Observations  # noqa: E402
from jaxscale.source import read_observations  # noqa: E402

SHARED = Path(os.environ.get("JAXSCALE_SHARED", ROOT.parent / "shared"))
DATA = SHARED / "data" / "epoch_chinchilla" / "epoch_chinchilla_245.csv"
COLUMNS = {"N": "n_params", "D": "d_tokens", "C": "c_train_flop", "loss": "loss_nats_per_token"}
WHERE = "excluded_in_published_fit == 0"
BOOTSTRAPS, DELTA = 4000, 1e-3
PUBLISHED = np.array([6.0073404, 6.0179186, 0.5267228, 0.33917084, 0.2849083])
"""log A, log B, log E, alpha, beta of Hoffmann et al. 2022, from which the notebook starts every bootstrap."""

Fitted = tuple[np.ndarray, np.ndarray]
"""Raw parameters (R, 5) and which bootstraps they belong to (R,)."""


def main() -> None:
    options = _parse()
    if options.child:
        _run_large()
        return
    rows: list[dict[str, Any]] = []
    for name in options.only:
        measured = MEASURES[name](options)
        rows += [{"task": name, **row} for row in measured]
        for row in measured:
            print(f"{name:10}", "  ".join(f"{key} {_show(value)}" for key, value in row.items()), flush=True)
    print("load average", os.getloadavg())
    if options.out:
        plain = {"schema": "jaxscale.bench/1", "rows": rows, "load_average": os.getloadavg()}
        Path(options.out).write_text(json.dumps(plain, indent=1))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--subset", type=int, default=40, help="bootstraps a peer does in a round")
    parser.add_argument("--data", default=str(DATA))
    parser.add_argument("--notebook", help="data_analysis.ipynb of epoch-research/analyzing-chinchilla")
    parser.add_argument("--only", nargs="+", choices=list(MEASURES), default=list(MEASURES))
    parser.add_argument("--out", help="where the JSON goes")
    parser.add_argument("--child", action="store_true", help="(internal) the large fit in this process")
    return parser.parse_args()


def _show(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _clock(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


# ---------------------------------------------------------------- bootstrap


def _measure_bootstrap(options: argparse.Namespace) -> list[dict[str, Any]]:
    obs, cells = _read(options.data)
    drawn = _draw(obs, cells)
    counts = np.stack([np.bincount(row, minlength=len(cells)) for row in drawn]).astype(float)
    design = build_design(cells.N, cells.D, {})
    start = fit_parametric(obs, delta=DELTA, bootstrap=0).params
    contestants = {
        "ours": lambda chosen: _polish_all(design, cells, counts, start),
        f"epoch ({_gradient_kind()}{', own function' if options.notebook else ''})":
            _epoch_scheme(cells, drawn, options.notebook),
        "scipy": _scipy_scheme(cells, counts, _raw(start), 1e-5),
        "scipy, gtol 1e-7": _scipy_scheme(cells, counts, _raw(start), 1e-7),
    }  # fmt: skip
    for contest in contestants.values():
        contest(np.arange(2))
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    answers: dict[str, list[Fitted]] = {name: [] for name in contestants}
    for turn in range(options.rounds):
        chosen = (np.arange(options.subset) + turn * options.subset) % len(counts)
        for name, contest in contestants.items():
            took, theta = _clock(lambda contest=contest, chosen=chosen: contest(chosen))
            share = 1.0 if name == "ours" else len(chosen) / len(counts)
            seconds[name].append(took / share)
            answers[name].append((theta, np.arange(len(counts)) if name == "ours" else chosen))
    return _compare(seconds, answers, cells, counts)


def _compare(
    seconds: dict[str, list[float]], answers: dict[str, list[Fitted]], cells: Cells, counts: np.ndarray
) -> list[dict[str, Any]]:
    objective = _objective(cells)
    known = np.full(len(counts), np.inf)
    reached = {}
    for name, fitted in answers.items():
        points = [(one, i) for theta, chosen in fitted for one, i in zip(theta, chosen, strict=True)]
        results = [(i, *objective(one, counts[i])) for one, i in points]
        reached[name] = results
        for i, value, _ in results:
            known[i] = min(known[i], value)
    rows = []
    for name, results in reached.items():
        median, ours = statistics.median(seconds[name]), statistics.median(seconds["ours"])
        rows.append({
            "contestant": name, "cpu_s_per_4000": median, "ours_faster_by": median / ours,
            "norm": max(float(np.linalg.norm(gradient)) for _, _, gradient in results),
            "excess": max(float(value / known[i] - 1) for i, value, _ in results),
            "fits_checked": len({i for i, _, _ in results}), "rounds": len(seconds[name]),
        })  # fmt: skip
    return rows


def _read(path: str) -> tuple[Observations, Cells]:
    obs = read_observations(path, columns=COLUMNS, where=WHERE)
    return obs, gather_cells(obs)


def _draw(obs: Observations, cells: Cells) -> np.ndarray:
    """Cells drawn (4000, rows): numpy's legacy generator at seed 42 draws rows of the table, as the notebook does."""
    place = {cell: i for i, cell in enumerate(zip(cells.N, cells.D, strict=True))}
    cell_of_row = np.array([place[row] for row in zip(obs.frame["N"], obs.frame["D"], strict=True)])
    return cell_of_row[np.random.RandomState(42).choice(len(cell_of_row), (BOOTSTRAPS, len(cell_of_row)))]


def _raw(params: dict[str, Any]) -> np.ndarray:
    """(log A, log B, log E, alpha, beta), one row a fit where the parameters are arrays."""
    logs = [np.log(params[name]) for name in ("A", "B", "E")]
    return np.stack([*logs, np.asarray(params["alpha"]), np.asarray(params["beta"])], -1)


def _polish_all(design: Design, cells: Cells, counts: np.ndarray, start: dict[str, float]) -> np.ndarray:
    theta = design.theta_of({name: np.full(len(counts), value) for name, value in start.items()})
    lanes = Lanes(theta, np.broadcast_to(np.log(cells.loss), counts.shape), counts)
    found = polish(design.problem, lanes, DELTA, start_delta=0.01, tolerance=1e-9)
    return _raw(design.params_of(found.theta))


def _objective(cells: Cells) -> Callable[..., tuple[float, np.ndarray]]:
    """The summed Huber loss and its gradient in raw parameters, as few numpy operations as there can be."""
    log_N, log_D, y = np.log(cells.N), np.log(cells.D), np.log(cells.loss)

    def objective(theta: np.ndarray, w: np.ndarray) -> tuple[float, np.ndarray]:
        a, b, e, alpha, beta = theta
        with np.errstate(over="ignore", invalid="ignore"):
            first, second, floor = np.exp(a - alpha * log_N), np.exp(b - beta * log_D), np.exp(e)
            predicted = first + second + floor
            r = y - np.log(predicted)
            clipped = np.clip(r, -DELTA, DELTA)
            pull = w * clipped / predicted
            one, two = pull * first, pull * second
            gradient = -np.array([one.sum(), two.sum(), floor * pull.sum(), -(one @ log_N), -(two @ log_D)])
        return float(w @ (clipped * (r - clipped / 2))), gradient

    return objective


def _scipy_scheme(cells: Cells, counts: np.ndarray, start: np.ndarray, gtol: float) -> Callable[..., np.ndarray]:
    objective = _objective(cells)

    def fit(i: int) -> np.ndarray:
        return minimize(objective, start, args=(counts[i],), jac=True, method="BFGS", options={"gtol": gtol}).x

    return lambda chosen: np.array([fit(i) for i in chosen])


def _gradient_kind() -> str:
    try:
        import autograd  # noqa: F401
    except ImportError:
        return "finite differences"
    return "autograd"


def _epoch_scheme(cells: Cells, drawn: np.ndarray, notebook: str | None) -> Callable[..., np.ndarray]:
    """Rows gathered, BFGS from the published point, gradients by autograd where it is installed."""
    objective = _notebook_objective(notebook) if notebook else _plain_objective()
    gradient = None
    if _gradient_kind() == "autograd":
        from autograd import grad

        gradient = grad(objective)

    def fit(rows: np.ndarray) -> np.ndarray:
        data = (cells.N[rows], cells.D[rows], cells.loss[rows])
        return minimize(objective, PUBLISHED, args=data, jac=gradient, method="BFGS").x

    return lambda chosen: np.array([fit(drawn[i]) for i in chosen])


def _plain_objective() -> Callable[..., Any]:
    """Summed Huber loss of log residuals, from N and D as they are: logs are taken at every call."""
    xp: Any = np
    if _gradient_kind() == "autograd":
        import autograd.numpy as xp

    def objective(theta: Any, N: Any, D: Any, loss: Any) -> Any:
        a, b, e, alpha, beta = theta
        terms = xp.exp(a - alpha * xp.log(N)), xp.exp(b - beta * xp.log(D)), xp.exp(e)
        r = xp.log(loss) - xp.log(terms[0] + terms[1] + terms[2])
        size = xp.abs(r)
        return xp.sum(xp.where(size <= DELTA, r**2 / 2, DELTA * (size - DELTA / 2)))

    return objective


def _notebook_objective(path: str) -> Callable[..., Any]:
    """huber_loss_objective out of the first cell of the notebook that defines it; needs autograd."""
    for cell in json.loads(Path(path).read_text())["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and "def huber_loss_objective" in source:
            space: dict[str, Any] = {}
            exec(source, space)
            return space["huber_loss_objective"]
    raise SystemExit(f"{path}: no cell defines huber_loss_objective; give data_analysis.ipynb")


# ---------------------------------------------------------------- single fit and study


def _measure_single(options: argparse.Namespace) -> list[dict[str, Any]]:
    obs, cells = _read(options.data)
    design = build_design(cells.N, cells.D, {})
    scale = fit_parametric(obs, delta=DELTA, bootstrap=0).diagnostics["robust_std"]
    y, w = np.log(cells.loss), cells.weight
    starts = project_starts(cells.N, cells.D, cells.loss, w)
    lanes = Lanes(design.theta_of(starts), *(np.tile(part, (len(starts["E"]), 1)) for part in (y, w)))
    objective, raw = _objective(cells), _raw(starts)

    def ours() -> float:
        smooth = 1.345 * scale
        near = lanes._replace(theta=search(design.problem, lanes, smooth))
        return float(polish(design.problem, near, DELTA, start_delta=smooth, tolerance=1e-9).value.min())

    def theirs(gtol: float) -> float:
        results = [minimize(objective, one, args=(w,), jac=True, method="BFGS", options={"gtol": gtol}) for one in raw]
        return min(float(result.fun) for result in results)

    contestants: dict[str, Callable[[], float]] = {
        "ours, 16 starts": ours, "scipy, 16 starts": lambda: theirs(1e-5),
        "scipy, gtol 1e-7": lambda: theirs(1e-7),
        "ours, fit_parametric": lambda: fit_parametric(obs, delta=DELTA, bootstrap=0).objective["value"],
    }  # fmt: skip
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    value = {name: contest() for name, contest in contestants.items()}
    for _ in range(max(options.rounds, 5)):
        for name, contest in contestants.items():
            seconds[name].append(_clock(contest)[0])
    median = {name: statistics.median(taken) for name, taken in seconds.items()}
    return [
        {"contestant": name, "cpu_ms": 1e3 * median[name], "scipy_over_this": median["scipy, 16 starts"] / median[name],
         "excess": value[name] / min(value.values()) - 1} for name in contestants
    ]  # fmt: skip


def _measure_study(options: argparse.Namespace) -> list[dict[str, Any]]:
    tables = [draw_grid(budgets=5, sizes=7, noise=0.005, seed=seed) for seed in range(max(options.rounds, 5) + 1)]
    fit_parametric(tables[0])
    rows = []
    for bootstrap in (0, 1000):
        seconds = [_clock(lambda t=table, b=bootstrap: fit_parametric(t, bootstrap=b))[0] for table in tables[1:]]
        median = statistics.median(seconds)
        rows.append({"bootstrap": bootstrap, "cpu_ms": 1e3 * median, "studies_2000_s": 2000 * median})
    return rows


# ---------------------------------------------------------------- cold start and large data


def _measure_cold(options: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for bootstrap in (0, BOOTSTRAPS):
        columns = [f"{name}={own}" for name, own in COLUMNS.items()]
        words = ["fit", options.data, "--method", "parametric", "--where", WHERE, "--delta", "1e-3",
                 "--resample", "pairs", "--bootstrap", str(bootstrap), "--columns", *columns]  # fmt: skip
        taken: dict[str, list[tuple[float, float]]] = {"empty": [], "kept": []}
        for _ in range(min(options.rounds, 3)):
            with tempfile.TemporaryDirectory() as home:
                for programs in taken:
                    taken[programs].append(_time_shell(words, home))
        for programs, pairs in taken.items():
            wall, cpu = (statistics.median(values) for values in zip(*pairs, strict=True))
            rows.append({"bootstrap": bootstrap, "programs": programs, "wall_s": wall, "cpu_s": cpu})
    return rows


def _time_shell(words: list[str], home: str) -> tuple[float, float]:
    """Wall and CPU seconds of `jaxscale` in a new process whose home is `home`."""
    environment = {name: text for name, text in os.environ.items() if name not in ONE_CORE}
    environment |= {"HOME": home, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "jaxscale", *words], env=environment, check=True, stdout=subprocess.DEVNULL)
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _measure_large(options: argparse.Namespace) -> list[dict[str, Any]]:
    done = subprocess.run([sys.executable, __file__, "--child"], check=True, stdout=subprocess.PIPE, text=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def _run_large() -> None:
    """Fit 100,000 rows of the planted law with .5% noise; one line of JSON a resampler."""
    rng, n, rounds = np.random.default_rng(0), 100_000, 200
    N, D = np.exp(rng.uniform(np.log(1e7), np.log(1e10), n)), np.exp(rng.uniform(np.log(1e9), np.log(1e12), n))
    loss = LAW.loss(N, D) * np.exp(0.005 * rng.standard_normal(n))
    frame = pd.DataFrame({"N": N, "D": D, "C": 6 * N * D, "loss": loss})
    for kind in ("wild", "pairs"):
        took, fit = _clock(lambda kind=kind: fit_parametric(frame, bootstrap=rounds, resample=kind))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        worst = max(abs(fit.params[name] - getattr(LAW, name)) / fit.std_errors[name] for name in fit.params)
        print(json.dumps({"rows": n, "bootstrap": rounds, "resample": kind, "cpu_s": took, "peak_gib": peak,
                          "largest_error_in_std_errors": worst}))  # fmt: skip


MEASURES: dict[str, Callable[[argparse.Namespace], list[dict[str, Any]]]] = {
    "bootstrap": _measure_bootstrap, "single": _measure_single, "study": _measure_study,
    "cold": _measure_cold, "large": _measure_large,
}  # fmt: skip

if __name__ == "__main__":
    main()
