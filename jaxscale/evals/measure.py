"""From the NLL of every choice to a task's numbers.

Of a choice with NLL l = -log p(choice | question) in nats, of n tokens, b bytes and c characters (its own text, without
the space before it), the score that is compared is

    sum -l      token -l / n      byte -l / b      char -l / c

The choice of the highest score is taken, the first of those that tie. token takes the choice of the lowest perplexity,
exp(l / n). char is lm-eval's acc_norm, sum its acc. The probability of the correct answer is the softmax of the byte
scores over the choices (Schaeffer et al. 2024, 2406.04391, on why it is smoother than accuracy). The standard error of
an accuracy p over k items is sqrt(p (1 - p) / (k - 1)).
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from jaxscale.errors import VerdictError
from jaxscale.evals.task import Task

__all__ = ["NORMALIZATIONS", "Normalization", "measure_task", "predict_choices"]

Normalization = Literal["sum", "token", "byte", "char"]
NORMALIZATIONS: tuple[Normalization, ...] = get_args(Normalization)


def predict_choices(task: Task, nll: NDArray[np.float64], tokens: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    """The choice taken for every item [items], by normalization; `nll` and `tokens` of every choice, item by item."""
    scores, starts = _scores(task, nll, tokens), _starts(task)
    return {
        name: np.array([int(np.argmax(part)) for part in np.split(score, starts[1:])]) for name, score in scores.items()
    }


def measure_task(
    task: Task, nll: NDArray[np.float64], tokens: NDArray[np.int64], normalization: Normalization
) -> dict[str, Any]:
    """A task's numbers; VerdictError where an NLL is not finite."""
    if not np.isfinite(nll).all():
        raise VerdictError(f"task {task.name}: the model gives {int(np.sum(~np.isfinite(nll)))} of {len(nll)} choices "
                           f"no finite likelihood; its weights are broken")  # fmt: skip
    labels, k = np.array([item.label for item in task.items]), len(task.items)
    right = _starts(task) + labels
    scores = _scores(task, nll, tokens)
    accuracy = {name: float(np.mean(taken == labels)) for name, taken in predict_choices(task, nll, tokens).items()}
    declared = accuracy[normalization]
    return {
        "task": task.name,
        "items": k,
        "nll_per_byte": float(np.mean(-scores["byte"][right])),
        "nll_per_token": float(np.mean(-scores["token"][right])),
        "accuracy": declared,
        "accuracy_std_error": float(np.sqrt(declared * (1 - declared) / max(1, k - 1))),
        **{f"accuracy_{name}": value for name, value in accuracy.items()},
        "p_correct": float(np.mean(_probability(task, scores["byte"])[right])),
        "chance": task.chance,
    }


def _starts(task: Task) -> NDArray[np.int64]:
    """The place of every item's first choice among all choices."""
    return np.cumsum([0, *(len(item.choices) for item in task.items[:-1])])


def _scores(task: Task, nll: NDArray[np.float64], tokens: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    choices = [choice for item in task.items for choice in item.choices]
    sizes: dict[str, Any] = {
        "sum": 1,
        "token": tokens,
        "byte": np.array([len(choice.encode()) for choice in choices]),
        "char": np.array([len(choice) for choice in choices]),
    }
    return {name: -nll / sizes[name] for name in NORMALIZATIONS}


def _probability(task: Task, scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Softmax over the choices of each item."""
    starts = _starts(task)
    sizes = np.diff([*starts, len(scores)])
    weights = np.exp(scores - np.repeat(np.maximum.reduceat(scores, starts), sizes))
    return weights / np.repeat(np.add.reduceat(weights, starts), sizes)
