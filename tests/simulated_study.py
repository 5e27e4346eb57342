"""A whole study drawn from a known law, with fits made by hand: what the report's tests read.

The planted law is Chinchilla's with optima at 2e4 to 1e5 parameters for 3e10 to 1e12 FLOPs.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pandas as pd

from jaxscale.config import DataConfig, ModelConfig
from jaxscale.fit.agreement import judge_agreement
from jaxscale.fit.result import Budget, Estimate, Fit, Fits
from jaxscale.forecast import Forecast, forecast_optimum
from jaxscale.runs import Cell, Dropped, Observations, Plan, RunResult, RunSpec

LAW = {"E": 1.2, "A": 20.5, "B": 31.5, "alpha": 0.40, "beta": 0.34}
BUDGETS = (3e10, 1e11, 3e11)
HOLDOUT = 1e12
WIDTHS = (8, 12, 16, 24, 32, 48, 64)
DRAWS = 200
MISSES = ((1.008, 1.09, True), (0.969, 0.72, False))
"""Backtest of each fit: predicted over measured, its worth in compute, inside the interval."""

BASELINE = 1.02
"""What a line through the lowest runs would have said, over measured."""


@dataclass(frozen=True)
class Study:
    """Everything `write_report` takes, as keyword arguments by `vars`."""

    plan: Plan
    observations: Observations
    fits: Fits
    forecast: Forecast
    backtest: SimpleNamespace
    results: list[RunResult]
    curves: pd.DataFrame
    declared: str = "isoflop"


def loss_of(N, D):
    return LAW["E"] + LAW["A"] / N ** LAW["alpha"] + LAW["B"] / D ** LAW["beta"]


def simulate_study(noise: float = 0.005) -> Study:
    rng = np.random.default_rng(0)
    cells = [_cell(C, width, seed, "grid") for C in BUDGETS for width in WIDTHS for seed in _seeds(C)]
    cells += [_cell(HOLDOUT, width, 1, "holdout") for width in (48, 64)]
    results = [_result(cell, noise * rng.standard_normal()) for cell in cells]
    results[3] = _diverged(results[3])
    done = [(cell, result) for cell, result in zip(cells, results, strict=True) if result.state == "done"]
    frame = pd.DataFrame([_row(cell, result) for cell, result in done])
    refused = ({"run_id": results[3].run_id, "reason": results[3].reason},)
    source = {
        "path": "runs/simulated",
        "sha256": "5e0c" * 16,
        "rows_total": len(cells),
        "rows_used": len(frame),
    }
    observations = Observations(frame, refused, source, rule="exact")
    fits = (isoflop_fit(frame[frame["role"] == "grid"]), parametric_fit(LAW))
    together = Fits(fits, (0.5, 0.5), judge_agreement(fits))
    return Study(
        plan=_plan(cells),
        observations=observations,
        fits=together,
        forecast=forecast_optimum(together, flops=[1e13, 1e14], declared="isoflop"),
        backtest=_backtest(frame, fits),
        results=results,
        curves=pd.concat([_curve(cell, result, rng) for cell, result in zip(cells, results, strict=True)]),
    )


def isoflop_fit(frame: pd.DataFrame, column: str = "budget") -> Fit:
    """A parabola per budget by least squares, then power laws; draws jitter the exponents."""
    budgets = [_minimum(C, group) for C, group in frame.groupby(column)]
    usable = [budget for budget in budgets if budget.status == "ok"]
    rng = np.random.default_rng(1)
    C = np.log([budget.C for budget in usable])
    draws, estimates = {}, {}
    for key, values in (("N", [b.N_opt for b in usable]), ("D", [b.D_opt for b in usable])):
        slope, level = np.polyfit(C, np.log(values), 1)
        slopes = slope + 0.03 * rng.standard_normal(DRAWS)
        levels = level + slope * C.mean() - slopes * C.mean() + 0.05 * rng.standard_normal(DRAWS)
        draws |= {{"N": "G", "D": "H"}[key]: list(np.exp(levels)), {"N": "a", "D": "b"}[key]: list(slopes)}
        estimates[key] = (float(np.exp(level)), float(slope), np.quantile(slopes, [0.025, 0.975]).tolist())
    excess = np.array([b.loss_opt for b in usable]) - LAW["E"]
    alpha, log_A = np.polyfit(C, np.log(np.maximum(excess, 1e-3)), 1)
    draws |= {"E": list(LAW["E"] + 0.02 * rng.standard_normal(DRAWS)), "A": [float(np.exp(log_A))] * DRAWS,
              "alpha": [float(-alpha)] * DRAWS}  # fmt: skip
    return Fit(
        method="isoflop", law="power", source={"rows_used": len(frame)}, confidence=0.95,
        params={"a": estimates["N"][1], "b": estimates["D"][1], "G": estimates["N"][0], "H": estimates["D"][0]},
        bootstrap=DRAWS, resample="residual", seed=0, intervals={}, std_errors={},
        exponents={key: Estimate(slope, tuple(interval)) for key, (_, slope, interval) in estimates.items()},
        coefficients={key: Estimate(level, (None, None)) for key, (level, _, _) in estimates.items()},
        loss_law={"E": LAW["E"], "A": float(np.exp(log_A)), "alpha": float(-alpha)}, objective={},
        noise={"seed_std": 0.005}, budgets=tuple(budgets), draws=draws,
        diagnostics={"flops": {"rule": "6ND", "k": 6.0, "p": 1.0}, "largest_C": float(np.exp(C.max()))},
    )  # fmt: skip


def parametric_fit(params: dict[str, float], spread: float = 0.01) -> Fit:
    """A Chinchilla law with given parameters and jittered draws."""
    rng = np.random.default_rng(2)
    draws = {name: list(value * np.exp(spread * rng.standard_normal(DRAWS))) for name, value in params.items()}
    alpha, beta = params["alpha"], params["beta"]
    G = (alpha * params["A"] / (beta * params["B"])) ** (1 / (alpha + beta))
    a = beta / (alpha + beta)
    exponents = {"N": Estimate(a, (a - 0.02, a + 0.02)), "D": Estimate(1 - a, (1 - a - 0.02, 1 - a + 0.02))}
    coefficients = {
        "N": Estimate(G * 6**-a, (None, None)),
        "D": Estimate(6 ** -(1 - a) / G, (None, None)),
    }
    return Fit(
        method="parametric", law="chinchilla", source={"rows_used": 21}, params=params, confidence=0.95,
        bootstrap=DRAWS, resample="wild", seed=0, intervals={"E": (1.15, 1.26)}, std_errors={},
        exponents=exponents, coefficients=coefficients, loss_law=None,
        objective={"name": "huber", "delta": 1e-3, "value": 1e-3, "gradient_norm": 1e-10}, noise={},
        diagnostics={"flops": {"rule": "6ND", "k": 6.0, "p": 1.0}, "largest_C": max(BUDGETS)}, draws=draws,
    )  # fmt: skip


def forecast_of(fit: Fit, flops: list[float], largest: float) -> SimpleNamespace:
    rows = []
    for C in flops:
        N, D = (fit.coefficients[k].value * C ** fit.exponents[k].value for k in ("N", "D"))
        law = fit.loss_law
        loss = law["E"] + law["A"] / C ** law["alpha"] if law else loss_of(N, D)
        width = 1.05 + 0.1 * np.log10(C / largest)
        rows.append({
            "C": C, "extrapolation": C / largest, "N_opt": N, "D_opt": D, "loss": loss,
            "tokens_per_param": D / N,
            "intervals": {"N_opt": [N / width, N * width], "D_opt": [D / width, D * width],
                          "loss": [loss - 0.02 * width, loss + 0.02 * width]},
        })  # fmt: skip
    return SimpleNamespace(rows=rows, fit=fit, rule="6ND", confidence=0.95)


def _seeds(C: float) -> tuple[int, ...]:
    return (1, 2) if min(BUDGETS) == C else (1,)


def _cell(C: float, width: int, seed: int, role: str) -> Cell:
    N = int(6000 * (width / 8) ** 1.45)
    tokens = int(C / (6 * N))
    spec = RunSpec(
        model=ModelConfig(d_model=width), data=DataConfig(), budget_flops=C, tokens=tokens,
        steps=tokens // 512, batch_seqs=8, microbatch_seqs=4, optimizer="adamw", lr=0.02,
        embed_lr=2.0, head_lr=3.0, b1=0.9,
        b2=0.95, eps=1e-12, weight_decay=0.1, clip_norm=1.0, z_loss=0.0, schedule="cosine", warmup_steps=30,
        decay_steps=0, final_fraction=0.1, seed=seed,
    )  # fmt: skip
    return Cell(spec, role, N, N // 2, C, 6.0 * N * tokens, None, C / 2e10)  # type: ignore[arg-type]


def _result(cell: Cell, noise: float) -> RunResult:
    loss = float(loss_of(cell.n_params, cell.spec.tokens) * (1 + noise))
    return RunResult(
        run_id=cell.run_id, state="done", reason="", loss=loss, loss_std_error=0.009,
        bits_per_byte=loss / np.log(2),
        train_loss=loss, n_params=cell.n_params, n_params_non_embedding=cell.n_params_non_embedding,
        tokens=cell.spec.tokens, flops=cell.flops, steps_done=cell.spec.steps, seconds=cell.seconds,
        tokens_per_s=cell.spec.tokens / cell.seconds, flops_per_s=2e10, restarts=0,
    )  # fmt: skip


def _diverged(result: RunResult) -> RunResult:
    return RunResult(**{**vars(result), "state": "diverged", "reason": "loss is nan at step 120", "loss": None})


def _row(cell: Cell, result: RunResult) -> dict:
    return {"N": float(cell.n_params), "D": float(cell.spec.tokens), "C": cell.flops, "loss": result.loss,
            "budget": cell.spec.budget_flops, "run_id": cell.run_id, "seed": cell.spec.seed,
            "role": cell.role}  # fmt: skip


def _minimum(C: float, group: pd.DataFrame) -> Budget:
    mean = group.groupby("N", as_index=False)["loss"].mean()
    c2, c1, c0 = np.polyfit(np.log(mean["N"]), mean["loss"], 2)
    N = float(np.exp(-c1 / (2 * c2)))
    inside = mean["N"].min() < N < mean["N"].max() and c2 > 0
    loss = float(c0 - c1**2 / (4 * c2))
    status = "ok" if inside else "edge"
    return Budget(C, N, C / (6 * N), loss, status, len(mean), "" if inside else "minimum at the smallest size")


def _plan(cells: list[Cell]) -> Plan:
    dropped = (Dropped(3e10, 96, 2, 221_000, 22_600.0, "44 steps, fewer than min_steps = 100"),)
    assumptions = ("the optimum is expected near 20 tokens per parameter", "speeds are those of one CPU core")
    seconds = sum(cell.seconds for cell in cells)
    return Plan("simulated", tuple(cells), dropped, assumptions, {}, "cpu:2", sum(c.flops for c in cells), seconds)


def _backtest(frame: pd.DataFrame, fits: tuple[Fit, ...]) -> SimpleNamespace:
    held = frame[frame["role"] == "holdout"]
    measured = float(held["loss"].min())
    rows = [
        {"split": "holdout", "method": fit.method, "law": fit.law, "trained_to_C": max(BUDGETS), "trained_to_N": None,
         "trained_to_D": None, "target_C": HOLDOUT, "ratio": HOLDOUT / max(BUDGETS), "quantity": "loss",
         "interval_score": 0.1, "baseline": measured * BASELINE, "baseline_error": BASELINE - 1,
         "predicted": measured * factor, "interval": [measured * (factor - 0.02), measured * (factor + 0.02)],
         "measured": measured, "error": factor - 1, "compute_error": compute, "inside": inside}
        for fit, (factor, compute, inside) in zip(fits, MISSES, strict=True)
    ]  # fmt: skip
    return SimpleNamespace(rows=rows, summary=[])


def _curve(cell: Cell, result: RunResult, rng: np.random.Generator) -> pd.DataFrame:
    end = cell.spec.tokens if result.state == "done" else cell.spec.tokens // 3
    tokens = np.geomspace(512, end, 120)
    loss = LAW["E"] + LAW["A"] / cell.n_params ** LAW["alpha"] + LAW["B"] / tokens ** LAW["beta"] * 1.1
    loss = np.minimum(loss, 5.55) * (1 + 0.01 * rng.standard_normal(len(tokens)))
    if result.state == "diverged":
        loss[-15:] *= np.geomspace(1, 2.2, 15)
    flops = tokens * cell.flops / cell.spec.tokens
    return pd.DataFrame({"run_id": cell.run_id, "step": (tokens / 512).astype(int), "tokens": tokens,
                         "flops": flops,
                         "train_loss": loss, "lr": 0.01})  # fmt: skip
