"""The coordinate check: slopes of sizes over widths and depths against what a right parameterization gives.

A row is one size of one class over one ladder. Its slope is that of log2 size on log2 width (or depth); it
passes when the slope lies within the tolerance of its expectation and no single step of the ladder strays by
more than three tolerances (a multiplier clamped below the base bends one step only). The verdict is that all
rows pass. Passing does not prove that the best learning rate transfers; failing proves that it cannot.

A head that does not begin at zero (tied, or head_std above 0) starts with random logits that fall as width^-1/2
and saturate the softmax where they are large: a transient of the start, no slip of the rules. For such a head the
check shrinks tau, by one factor for all widths, until the logits begin near zero, and says so.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxscale.config import ModelConfig, Study
from jaxscale.errors import MisuseError
from jaxscale.mup.expect import TOLERANCE, expect_ratio
from jaxscale.mup.measure import CLASSES, Sizes, list_activations, measure_model
from jaxscale.params import param_shapes
from jaxscale.tables import render_table

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["CoordinateCheck", "Row", "check_coordinates", "default_rate"]

STRAY = 3.0
"""Tolerances that one step of the ladder may stray."""
START_LOGITS = 0.1
"""Largest logits that a check begins with."""
PATH_TOLERANCE = 1e-4
"""Nats between training's loss and that of the logits at inference: rounding."""
QUANTITIES = {
    "change": "change of activations",
    "gradient": "gradient RMS",
    "update": "update / weight RMS",
    "decay": "l * lambda",
    "epsilon": "eps / gradient RMS",
    "paths": "training against inference",
}


@dataclass(frozen=True)
class Row:
    """One size over one ladder. `expected` [low, high] of the slope, None where a slope says nothing."""

    against: str
    quantity: str
    name: str
    sizes: tuple[float, ...]
    slope: float | None
    expected: tuple[float | None, float | None]
    tolerance: float
    passed: bool
    reason: str = ""

    def cells(self) -> tuple[Any, ...]:
        """The row as a table shows it."""
        slope = None if self.slope is None else f"{self.slope:.2f}"
        told = "pass" if self.passed else "FAIL"
        return (QUANTITIES[self.quantity], self.name, *self.sizes, slope, _words(self.expected), self.tolerance, told)


@dataclass(frozen=True)
class CoordinateCheck:
    """The rows, and how they were measured. `ladders`: {"width": [...], "depth": [...]}."""

    parameterization: str
    optimizer: str
    ladders: dict[str, tuple[int, ...]]
    rows: tuple[Row, ...]
    lr: float
    steps: int
    batch: str
    seed: int
    schema: str = "jaxscale.mup_check/1"

    @property
    def passed(self) -> bool:
        """Whether every row passes."""
        return all(row.passed for row in self.rows)

    @property
    def verdict(self) -> str:
        """The answer in a sentence."""
        bad = [row for row in self.rows if not row.passed]
        if not bad:
            return f"pass: all {len(self.rows)} rows are where {self.parameterization} should put them"
        worst = "; ".join(f"{row.name}, {QUANTITIES[row.quantity]}: {row.reason}" for row in bad[:3])
        return f"fail: {len(bad)} of {len(self.rows)} rows ({worst}{'; ...' if len(bad) > 3 else ''})"

    def to_json(self) -> str:
        """As JSON, schema jaxscale.mup_check/1; a size that is not finite is null."""
        plain = asdict(self)
        for row in plain["rows"]:
            row["sizes"] = [size if np.isfinite(size) else None for size in row["sizes"]]
        head = {"schema": plain.pop("schema"), "passed": self.passed, "verdict": self.verdict}
        return json.dumps({**head, **plain}, indent=1)

    def to_frame(self) -> pd.DataFrame:
        """One row a size."""
        import pandas as pd

        return pd.DataFrame([asdict(row) for row in self.rows])

    def __str__(self) -> str:
        parts = [f"coordinate check of {self.parameterization} with {self.optimizer}: {self.steps} steps at rate "
                 f"{self.lr:.3g}, seed {self.seed}, {self.batch}"]  # fmt: skip
        for against, ladder in self.ladders.items():
            rows = [row.cells() for row in self.rows if row.against == against]
            columns = ("size", "class", *map(str, ladder), "slope", "expected", "+-", "")
            parts.append(render_table(f"against {against}", columns, rows))
        return "\n\n".join([*parts, f"verdict: {self.verdict}"])


def default_rate(model: ModelConfig, optimizer: str) -> float:
    """A rate small enough that sizes answer in proportion: l * base width = .03; SGD's has another unit."""
    return 0.02 if optimizer == "sgd" else 0.03 / model.base_d_model


def check_coordinates(
    study: Study,
    windows_nbt: np.ndarray,
    *,
    widths: Sequence[int] = (64, 128, 256, 512),
    depths: Sequence[int] = (),
    lr: float | None = None,
    batch: str = "",
    on_model: Callable[[str], None] = lambda _: None,
) -> CoordinateCheck:
    """Steps at every width (depth as the study's) and every depth (at the smallest width), judged row by row.

    windows int32 [steps, b, t + 1], two steps at least: a head that begins at zero passes no gradient in the
    first. Raises MisuseError for a ladder with fewer than three rungs or an unusable width.
    """
    model, optimizer = study.model, study.recipe.optimizer
    rate = default_rate(model, optimizer) if lr is None else lr
    if len(windows_nbt) < 2:
        raise MisuseError(f"--steps: {len(windows_nbt)} is too few, the first passes no gradient below a head of "
                          f"zeros; use 2 or more")  # fmt: skip
    ladders = {"width": _check_ladder("widths", widths), "depth": _check_ladder("depths", depths)}
    rows: list[Row] = []
    shrink = _quiet_start(model)
    model = replace(model, logit_scale=model.logit_scale * shrink)
    if shrink < 1:
        batch = f"{batch}; tau x {shrink:.2g}, for a head that begins random"
    for against, ladder in ladders.items():
        models = _models(model, against, ladder, min(ladders["width"] or (model.d_model,)))
        measured = []
        for one in models:
            on_model(f"width {one.d_model}, depth {one.n_layers}")
            measured.append(measure_model(one, study.recipe, windows_nbt, lr=rate, seed=study.seed))
        rows += judge(against, models, measured, optimizer) if models else []
    return CoordinateCheck(
        model.parameterization, optimizer, {name: ladder for name, ladder in ladders.items() if ladder}, tuple(rows),
        rate, len(windows_nbt), batch, study.seed,
    )  # fmt: skip


def _quiet_start(model: ModelConfig) -> float:
    """Factor on tau that keeps the first logits at base width below START_LOGITS, were the head all aligned."""
    std = model.embed_std if model.tied else model.head_std
    most = abs(model.logit_scale) * std * model.base_d_model
    return min(1.0, START_LOGITS / most) if most > 0 else 1.0


def _check_ladder(name: str, ladder: Sequence[int]) -> tuple[int, ...]:
    rungs = tuple(sorted(set(ladder)))
    if rungs and (len(rungs) < 3 or rungs[0] < 1):
        raise MisuseError(f"--{name}: {' '.join(map(str, ladder))} makes no slope; use three or more, for example "
                          f"{'64 128 256 512' if name == 'widths' else '2 4 8'}")  # fmt: skip
    odd = [rung for rung in rungs if rung % 2]
    if odd and name == "widths":
        raise MisuseError(f"--widths: {odd[0]} is odd and rotary positions need pairs; use {odd[0] + 1}")
    return rungs


def _models(model: ModelConfig, against: str, ladder: Sequence[int], width: int) -> list[ModelConfig]:
    if against == "width":
        return [replace(model, d_model=rung) for rung in ladder]
    return [replace(model, d_model=width, n_layers=rung) for rung in ladder]


def judge(against: str, models: Sequence[ModelConfig], measured: Sequence[Sizes], optimizer: str) -> list[Row]:
    """Every row of one ladder, from the sizes measured at each rung."""
    rungs = [m.d_model if against == "width" else m.n_layers for m in models]
    names = {CLASSES[name]: name for name in param_shapes(models[0])}
    rows = []
    for quantity in ("change", "gradient", "update", "decay", "epsilon"):
        for label in list_activations(models[0]) if quantity == "change" else names:
            sizes = [one[quantity, label] for one in measured]
            if quantity == "epsilon" and not any(sizes):
                continue  # nothing of this class is updated by Adam
            if quantity == "decay" and label.endswith(("gain", "bias")):
                rows.append(_judge_vector(against, label, sizes))
                continue
            parameter = names.get(label, label) if quantity != "change" else label
            ends = [expect_ratio(quantity, parameter, one, models[0], optimizer) for one in models]
            tolerance = TOLERANCE["gradient" if (quantity, optimizer) == ("update", "sgd") else quantity]
            tolerance = TOLERANCE.get(label, tolerance) if quantity == "change" else tolerance
            rows.append(_judge_slope(against, quantity, label, rungs, sizes, ends, tolerance))
    return [*rows, _judge_paths(against, [one["paths", "loss"] for one in measured])]


def _judge_slope(
    against: str,
    quantity: str,
    label: str,
    rungs: Sequence[int],
    sizes: Sequence[float],
    ends: Sequence[Any],
    tolerance: float,
) -> Row:
    one_sided = quantity == "epsilon"
    x = np.log2(rungs)
    low, high = (_slope(x, [getattr(end, side) or 1.0 for end in ends]) for side in ("low", "high"))
    expected = (None if one_sided else min(low, high), max(low, high))
    if not all(np.isfinite(sizes)) or min(sizes) <= 0:
        at = next(rung for rung, size in zip(rungs, sizes, strict=True) if not (np.isfinite(size) and size > 0))
        value = sizes[list(rungs).index(at)]
        return Row(against, quantity, label, tuple(sizes), None, expected, tolerance, False, f"{value:g} at {at}")
    slope = _slope(x, sizes)
    off = max(slope - expected[1], 0.0 if expected[0] is None else expected[0] - slope)
    reason = "" if off <= tolerance else f"slope {slope:.2f}, expected {_words(expected)}"
    if not reason:
        reason = _stray(rungs, x, sizes, expected, STRAY * tolerance)
    return Row(against, quantity, label, tuple(sizes), slope, expected, tolerance, not reason, reason)


def _stray(
    rungs: Sequence[int], x: Any, sizes: Sequence[float], expected: tuple[float | None, float], most: float
) -> str:
    """The first step of the ladder whose ratio is off by more than `most` powers of two a doubling."""
    for k, (span, step) in enumerate(zip(np.diff(x), np.diff(np.log2(sizes)), strict=True)):
        over = step - expected[1] * span
        under = 0.0 if expected[0] is None else expected[0] * span - step
        if max(over, under) > most * max(span, 1.0):
            return f"slope {step / span:.2f} from {rungs[k]} to {rungs[k + 1]}, expected {_words(expected)}"
    return ""


def _judge_vector(against: str, label: str, sizes: Sequence[float]) -> Row:
    """Gains and biases are not decayed at any width."""
    bad = next((size for size in sizes if size != 0), None)
    reason = "" if bad is None else f"decayed by {bad:.3g}, expected 0"
    return Row(against, "decay", label, tuple(sizes), None, (None, None), 0.0, not reason, reason)


def _judge_paths(against: str, sizes: Sequence[float]) -> Row:
    worst = max(sizes, key=lambda size: size if np.isfinite(size) else np.inf)
    passed = bool(np.isfinite(worst) and worst <= PATH_TOLERANCE)
    reason = "" if passed else f"losses differ by {worst:.3g} nats, expected 0"
    return Row(against, "paths", "loss", tuple(sizes), None, (None, None), PATH_TOLERANCE, passed, reason)


def _slope(x: Any, sizes: Sequence[float]) -> float:
    return float(np.polyfit(x, np.log2(sizes), 1)[0])


def _words(expected: tuple[float | None, float | None]) -> str:
    """0, -1, -0.5 to 0, or at most 0.

    >>> _words((-0.5, 0.0)), _words((None, 0.0)), _words((None, None))
    ('-0.5 to 0', 'at most 0', '0, each size')
    """
    low, high = (None if end is None else round(end, 2) + 0.0 for end in expected)
    if high is None:
        return "0, each size"
    if low is None:
        return f"at most {high:g}"
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"
