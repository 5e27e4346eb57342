"""jaxscale: measure your own scaling laws, and know what a large training run will give.

    import jaxscale as js
    study = js.load_study("configs/quickstart.py")
    plan = js.plan_isoflop(study)
    for spec in plan:
        js.train_run(spec, out="runs/quickstart")
    obs = js.collect_runs("runs/quickstart")
    fit = js.fit_parametric(obs, law="chinchilla", bootstrap=1000)
    print(js.forecast_optimum(fit, flops=[1e22]))

Names are imported on first use, so that the analysis side never loads Flax.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.6.0"

_HOMES = {
    "Study": "config",
    "load_study": "study",
    "plan_isoflop": "plan",
    "read_rates": "rates",
    "train_run": "train.loop",
    "train_pack": "train.loop",
    "plan_sweep": "mup.sweep",
    "analyse_sweep": "mup",
    "collect_runs": "collect",
    "collect_curves": "collect",
    "read_observations": "source",
    "fit_envelope": "fit",
    "fit_isoflop": "fit",
    "fit_parametric": "fit",
    "fit_all": "fit",
    "find_beginning": "fit.beginning",
    "forecast_optimum": "forecast",
    "backtest_fit": "backtest",
    "fit_curves": "curves",
    "fit_cortes": "curves",
    "fit_downstream": "downstream",
    "fit_tradeoff": "critical",
    "fit_critical_batch": "critical",
    "study_batches": "batch",
    "compare_sources": "composition",
    "compare_variants": "compare",
    "fit_transfer": "transfer",
    "study_sources": "bysource",
    "find_mixture": "mixing",
    "find_filter": "mixing",
    "calculate_budget": "budget",
    "compare_models": "budget",
    "constrain_optimum": "constrain",
    "measure_flatness": "flatness",
    "simulate_studies": "simulate",
    "write_report": "report",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'jaxscale' has no attribute {name!r}")
    return getattr(importlib.import_module(f"jaxscale.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
