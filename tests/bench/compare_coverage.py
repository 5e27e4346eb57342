"""How often the intervals of `compare` hold the truth, and how often a choice called settled is right.

Command: `PYTHONPATH=.:tests python tests/bench/compare_coverage.py 80`. Results: docs/compare.md.
Two variants, budgets a factor 3 apart, noise .3% a run; asked at 10 and 100 times the largest budget.
"""

import sys
import warnings

import numpy as np
from planted_variants import FIRST, IDENTICAL, SAME, SEPARATE, SLOPES, draw_variants, loss_of

from jaxscale.compare.cells import gather_variants
from jaxscale.compare.draws import FORM_NAMES, draw_laws
from jaxscale.compare.forms import fit_forms
from jaxscale.compare.points import find_points

LAWS = {
    "identical": IDENTICAL, "A differs": SAME, "A, alpha differ": SLOPES, "E, A, alpha differ": SEPARATE,
    "no floor": {"adam": (0.0, 3.0, 0.05), "sgd": (0.0, 3.05, 0.053)},
}  # fmt: skip
DESIGNS = {"3 x 5": (3, 5, 1), "4 x 5": (4, 5, 1), "6 x 5": (6, 5, 1), "6 x 1": (6, 1, 1)}
NAMES, TARGETS = ("adam", "sgd"), (10, 100)


def holds(values, weight, truth):
    """Whether the central 95% of weighted draws holds the truth, and half the interval's width."""
    order = np.argsort(values)
    place = np.cumsum(weight[order]) / weight.sum()
    low, high = (values[order][np.searchsorted(place, q).clip(0, len(values) - 1)] for q in (0.025, 0.975))
    return low <= truth <= high, (high - low) / 2


def weigh_aicc(points, draws):
    """Weight of every draw if forms counted by AICc."""
    known = {name: form.aicc for name, form in fit_forms(points).items() if form.aicc is not None}
    if not known:
        return np.ones(len(draws))
    least = min(known.values())
    wanted = {name: np.exp(-(value - least) / 2) for name, value in known.items()}
    wanted = {name: value / sum(wanted.values()) for name, value in wanted.items()}
    ratio = np.array([wanted.get(name, 0.0) / max(draws.weights.get(name, 0.0), 1e-12) for name in FORM_NAMES])
    return ratio[draws.form]


def count(laws, design, studies):
    """Rows of the table, one a target."""
    budgets, sizes, seeds = design
    found = {factor: [] for factor in TARGETS}
    for seed in range(studies):
        frame = draw_variants(laws, budgets=budgets, sizes=sizes, seeds=seeds, seed=seed)
        points = find_points(gather_variants(frame, NAMES, "C")[0], NAMES)
        draws = draw_laws(points, 1000, seed)
        weight = weigh_aicc(points, draws)
        for factor in TARGETS:
            found[factor].append(judge(laws, FIRST * 3.0 ** (budgets - 1) * factor, draws, weight))
    return {factor: np.array(rows, float) for factor, rows in found.items()}


def judge(laws, C, draws, weight):
    """Inside by difference, its half width and error, inside by AICc, by multiplier, by loss; settled, and wrongly."""
    one, two = (loss_of(laws[name], C) for name in NAMES)
    E, A, alpha = laws["sgd"]
    log_m = np.log(((one - E) / A) ** (-1 / alpha) * FIRST / C) if one > E else 1e3
    loss = draws.loss(np.log(C))
    gap, flat = loss[:, 1] - loss[:, 0], np.ones(len(draws))
    inside, half = holds(gap, flat, two - one)
    drawn_m = np.minimum(draws.reach(loss[:, 0], 1) - np.log(C), 1e3)
    p = (gap > 0).mean()
    settled = max(p, 1 - p) >= 0.95
    return (inside, half, np.median(gap) - (two - one), holds(gap, weight, two - one)[0],
            holds(drawn_m, flat, log_m)[0], holds(loss[:, 0], flat, one)[0], settled,
            settled and (two == one or (p > 0.5) != (two > one)))  # fmt: skip


def main(studies):
    """The table as Markdown."""
    print("| laws | budgets x sizes | target | difference | coverage | half width | rms error | by AICc | multiplier | "
          "loss | settled | wrongly |")  # fmt: skip
    print("|" + " --- |" * 12)
    for name, laws in LAWS.items():
        for label, design in DESIGNS.items():
            for factor, rows in count(laws, design, studies).items():
                C = FIRST * 3.0 ** (design[0] - 1) * factor
                gap = loss_of(laws["sgd"], C) - loss_of(laws["adam"], C)
                inside, _, _, aicc, multiplier, loss, settled, wrong = rows.mean(0)
                half, error = np.median(rows[:, 1]), np.sqrt((rows[:, 2] ** 2).mean())
                said = (
                    f"{gap:+.4f} | {inside:.0%} | {half:.4f} | {error:.4f} | {aicc:.0%} | {multiplier:.0%} | {loss:.0%}"
                )
                print(f"| {name} | {label} | {factor}x | {said} | {settled:.0%} | {wrong:.1%} |", flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(int(sys.argv[1]))
