"""The command line: which verbs exist, and what an error looks like.

A verb is a function argv -> exit code in a module that is imported only when the verb is called, so
`jaxscale --help` and the analysis verbs never load Flax.
Exit codes: 0 done; 1 a negative verdict or a failure; 2 misuse; 75 preempted and saved; 130 interrupted.
"""

from __future__ import annotations

import importlib
import os
import sys
from dataclasses import dataclass

from jaxscale.hardware import has_device_file

__all__ = ["VERBS", "main"]


@dataclass(frozen=True)
class Verb:
    """Where a verb lives and what it says of itself."""

    module: str
    usage: str
    summary: str
    function: str = ""
    """Its name in the module, where it is not the verb's."""


VERBS: dict[str, Verb] = {
    "run": Verb("study", "STUDY.py", "plan, train, collect, fit, forecast, report; resumable"),
    "plan": Verb("study", "STUDY.py", "every cell of the grid with every derived number, before any cost"),
    "train": Verb("study", "DIR", "train cells of a planned study: --all, --run RUN_ID or --index I"),
    "work": Verb("work", "DIR", "a pull worker: any number on any hosts share the cells of a study folder"),
    "status": Verb("status", "DIR", "table of cells: state, speed, who trains them, time left; --watch keeps it live"),
    "logs": Verb("status", "DIR RUN", "who trained a run, how each attempt ended, their last words, its curve"),
    "eval": Verb(
        "eval", "DIR", "multiple-choice tasks and texts on the final models; --tasks, --texts, --harness", "evaluate"
    ),
    "collect": Verb("folder", "DIR", "finished runs as observations.csv, refused ones with their reason"),
    "report": Verb("answer", "DIR|FIT.json", "everything as one page, with figures as SVG and PNG"),
    "preflight": Verb("preflight", "STUDY.py", "compile for a pod without the pod: memory, step time, cost; --target"),
    "launch": Verb("launch", "DIR", "--on slurm: submit the pending cells to a cluster as one job array; --dry-run"),
    "data": Verb("data", "STUDY.py", "build the token files: counts, hashes, size"),
    "reset": Verb("folder", "DIR RUN ...", "put ended cells back to planned; --censored: those stopped early"),
    "fit": Verb("analysis", "SOURCE", "fit a scaling law: --method isoflop|parametric|envelope|all"),
    "forecast": Verb("analysis", "FIT.json", "optimal size, tokens, loss at --flops; C for --loss, --accuracy TASK=X"),
    "budget": Verb("budget", "", "FLOPs, chips, days, tokens, cost, carbon; optima under constraints; flatness"),
    "backtest": Verb("analysis", "SOURCE", "fit on the small budgets, predict the larger, report the error"),
    "downstream": Verb("downstream", "SOURCE", "task accuracy in two stages, compute to NLL to accuracy; intervals"),
    "compare": Verb("compare", "SOURCE", "a law per variant: which one wins at the target scale, and how sure that is"),
    "curves": Verb("curves", "SOURCE", "loss over data alone: which family of learning curves extrapolates it"),
    "batch": Verb("batch", "SOURCE", "batch against steps to a loss: B_crit of the loss and of D, noise scale, C_min"),
    "mixture": Verb("mixture", "SOURCE", "the best shares of several sources, from runs of a few mixtures"),
    "sources": Verb("mixture", "SOURCE", "several sources: one exponent or one each, and loss to loss"),
    "mup": Verb("mup", "rules|check", "the parameterization of a model; a coordinate check with a verdict"),
    "register": Verb("register", "add|score", "forecasts written down before the run, measurements beside them"),
    "bench": Verb("bench", "step|grid", "a training step beside peers; a whole grid beside a plain loop"),
    "simulate": Verb("simulate", "[SOURCE]", "studies from a known law, fitted again: coverage, bias, width of a grid"),
}


def main(argv: list[str] | None = None) -> None:
    """Entry point of `jaxscale`: run one verb and exit with its code.

    On a machine without accelerators JAX is told so: with a plugin installed (the preflight extra) each start of it
    would look for devices, complain, and lose seconds.
    """
    if not has_device_file():
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    sys.exit(dispatch(sys.argv[1:] if argv is None else argv))


def dispatch(argv: list[str]) -> int:
    """Run one verb; every expected error becomes one sentence on stderr and an exit code."""
    from jaxscale.errors import JaxscaleError

    if not argv or argv[0] in ("-h", "--help"):
        print(_help())
        return 0 if argv else 2
    if argv[0] in ("-V", "--version"):
        print(f"jaxscale {_version()}")
        return 0
    if argv[0] not in VERBS:
        print(_unknown(argv[0]), file=sys.stderr)
        return 2
    try:
        module = importlib.import_module(f"jaxscale.cli.{VERBS[argv[0]].module}")
        return int(getattr(module, VERBS[argv[0]].function or argv[0])(argv[1:]))
    except JaxscaleError as error:
        print(f"jaxscale {argv[0]}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"jaxscale {argv[0]}: interrupted; the same command goes on where it was", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except OSError as error:
        print(f"jaxscale {argv[0]}: {_describe(error)}", file=sys.stderr)
        return 1


def _describe(error: OSError) -> str:
    """A full disk, a folder one may not write to: which file, and what is wrong with it."""
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}; mend that and run the same command again, nothing saved is lost"


def _help() -> str:
    rows = (f"  {name:<10} {verb.usage:<13} {verb.summary}" for name, verb in VERBS.items())
    return "\n".join([
        "jaxscale: know what a large training run will give before paying for it", "",
        "usage: jaxscale VERB ...     jaxscale VERB --help for its options and an example", "", *rows, "",
        "example: jaxscale run configs/quickstart.py",
    ])  # fmt: skip


def _unknown(name: str) -> str:
    import difflib

    near = difflib.get_close_matches(name, VERBS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"the verbs are {', '.join(VERBS)}"
    return f"jaxscale: unknown verb {name!r}; {hint}"


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("jaxscale")
    except PackageNotFoundError:
        return "0+uninstalled"
