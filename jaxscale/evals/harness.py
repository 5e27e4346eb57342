"""A trained model as EleutherAI's lm-eval asks it (extra `[eval]`): likelihoods, rolling likelihoods, greedy text.

    from jaxscale.evals.harness import JaxscaleLM
    from jaxscale.train.weights import load_model
    lm_eval.simple_evaluate(model=JaxscaleLM(load_model("runs/quickstart", "3f2a91")), tasks=["arc_easy"])

Encoding and scoring are those of our own tasks, so that both paths give one item one number. A rolling likelihood is
that of a whole text after a separator, in windows as lm-eval defines them: every token once, the last window full.
Generation takes the likeliest token each time, by a forward pass over the last seq_len tokens; it ends at a stop
string, at the separator between documents, or at `max_gen_toks`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from jaxscale.errors import MisuseError
from jaxscale.evals.encode import Window, encode_pairs
from jaxscale.evals.score import LoadedModel

if TYPE_CHECKING or find_spec("lm_eval"):
    from lm_eval.api.model import LM
else:
    LM = object  # the module can be read without the extra; only making a JaxscaleLM needs it

__all__ = ["MAX_NEW_TOKENS", "JaxscaleLM", "cut_rolling", "evaluate_harness"]

MAX_NEW_TOKENS = 256
"""Tokens generated where a task names no limit, as in lm-eval."""
BOOTSTRAPS = 100
"""Draws behind the error of metrics that are no mean; errors of means need none, but lm-eval leaves them out at 0."""


class JaxscaleLM(LM):
    """lm-eval's view of a `LoadedModel`."""

    def __init__(self, model: LoadedModel) -> None:
        """MisuseError where lm-eval is not installed."""
        if LM is object:
            raise MisuseError("lm-eval is not installed; pip install 'jaxscale[eval]'")
        super().__init__()
        self.model, self.scorer, self.tokenizer = model, model.scorer, model.tokenizer

    @property
    def tokenizer_name(self) -> str:
        """What lm-eval's caches are told apart by."""
        return f"jaxscale-{type(self.tokenizer).__name__}-{self.tokenizer.vocab_size}"

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """(log p(continuation | context), whether greedy decoding would give it) of each request."""
        encoded = encode_pairs([request.args for request in requests], self.tokenizer, self.scorer.seq_len)
        nll, greedy = self.scorer.score_greedy(self.model.params, encoded.windows)
        missed = encoded.add_up((~greedy).astype(np.float64))
        return [(float(-sum_), bool(miss == 0)) for sum_, miss in zip(encoded.add_up(nll), missed, strict=True)]

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """log p(text | separator) of each request."""
        texts = [request.args[0] for request in requests]
        split = self.tokenizer.encode_split(texts, [0] * len(texts))
        windows = [list(cut_rolling(self._after_separator(ids), len(self.tokenizer.separator), self.scorer.seq_len))
                   for ids, _ in split]  # fmt: skip
        nll = self.scorer.score(self.model.params, [window for own in windows for window in own])
        owner = np.repeat(np.arange(len(windows)), [len(own) for own in windows])
        return [float(-total) for total in np.bincount(owner, nll, len(windows))]

    def _after_separator(self, ids: NDArray[np.uint32]) -> NDArray[np.int32]:
        return np.array([*self.tokenizer.separator, *ids], np.int32)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """The greedy continuation of each request, up to and without the first stop string."""
        wanted = [_read_limits(request.args[1], self.tokenizer.decode(self.tokenizer.separator))
                  for request in requests]  # fmt: skip
        split = self.tokenizer.encode_split([request.args[0] for request in requests], [0] * len(requests))
        ids = [own.astype(np.int32) if len(own) else self._after_separator(own) for own, _ in split]
        begun, texts = [len(own) for own in ids], [""] * len(requests)
        going = [i for i, (_, most) in enumerate(wanted) if most > 0]
        while going:
            for i, new in zip(going, self.scorer.predict_next(self.model.params, [ids[i] for i in going]), strict=True):
                ids[i] = np.append(ids[i], np.int32(new))
                texts[i] = self.tokenizer.decode(ids[i][begun[i] :].tolist())
            going = [i for i in going if not _is_over(texts[i], len(ids[i]) - begun[i], *wanted[i])]
        return [_cut_text(text, stops) for text, (stops, _) in zip(texts, wanted, strict=True)]


def cut_rolling(ids: NDArray[np.int32], first: int, seq_len: int) -> Iterator[Window]:
    """Windows that score ids[first:] in turn, each with all the context that fits.

    >>> [(w.ids.tolist(), w.first) for w in cut_rolling(np.arange(8, dtype=np.int32), 1, 4)]
    [([0, 1, 2, 3, 4], 1), ([3, 4, 5, 6, 7], 2)]
    """
    while first < len(ids):
        end = min(first + seq_len, len(ids))
        start = max(0, end - seq_len - 1)
        yield Window(ids[start:end], first - start)
        first = end


def _read_limits(wanted: dict[str, Any], separator: str) -> tuple[list[str], int]:
    """(stop strings, most tokens) of a request; MisuseError where it asks for samples."""
    if wanted.get("do_sample") and wanted.get("temperature", 1.0) > 0:
        raise MisuseError(f"lm-eval: a task asks for samples at temperature {wanted.get('temperature', 1.0)}; only "
                          f"greedy text is generated here (do_sample: false)")  # fmt: skip
    until = wanted.get("until") or []
    stops = [until] if isinstance(until, str) else list(until)
    return [*filter(None, stops), separator], int(wanted.get("max_gen_toks", MAX_NEW_TOKENS))


def _is_over(text: str, tokens: int, stops: Sequence[str], most: int) -> bool:
    return tokens >= most or any(stop in text for stop in stops)


def _cut_text(text: str, stops: Sequence[str]) -> str:
    """The text before the first stop string in it."""
    return text[: min([text.find(stop) for stop in stops if stop in text], default=len(text))]


def evaluate_harness(
    model: LoadedModel, tasks: Sequence[str], shots: int | None, limit: int | None = None, include: str | None = None
) -> list[dict[str, Any]]:
    """lm-eval's results on its tasks, by name, as rows: task, metric, filter, value, std_error, items.

    `include` is a folder with tasks of one's own (YAML). MisuseError: no lm-eval here, a task that it does not know or
    whose data cannot be reached.
    """
    lm = JaxscaleLM(model)
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    try:
        told = simple_evaluate(
            model=lm, tasks=list(tasks), num_fewshot=shots, limit=limit, bootstrap_iters=BOOTSTRAPS, log_samples=False,
            task_manager=TaskManager(include_path=include),
        )  # fmt: skip
    except (KeyError, ValueError, OSError, ConnectionError) as error:
        raise MisuseError(f"lm-eval: {', '.join(tasks)}: {type(error).__name__}: {error}") from error
    return [row for task in sorted(told["results"]) for row in _read_results(task, told)]


def _read_results(task: str, told: dict[str, Any]) -> Iterator[dict[str, Any]]:
    result = told["results"][task]
    for key, value in result.items():
        metric, _, name = key.partition(",")
        if name and not metric.endswith("_stderr") and isinstance(value, int | float):
            error = result.get(f"{metric}_stderr,{name}")
            yield {"task": task, "metric": metric, "filter": name, "value": float(value),
                   "std_error": float(error) if isinstance(error, int | float) else None,
                   "items": told.get("n-samples", {}).get(task, {}).get("effective")}  # fmt: skip
