"""The loss law through the minima: exact where a law holds, wider and less wrong where none does."""

from collections.abc import Callable

import numpy as np
import pytest

from jaxscale.fit import frontier

C, TARGET, STUDIES = np.geomspace(3e10, 1e12, 6), 1e13, 60


def law(C: np.ndarray) -> np.ndarray:
    return np.asarray(1.0 + 19.6 / C**0.12)


def bent(C: np.ndarray) -> np.ndarray:
    """Steeper at small compute: 3% higher at the smallest budget than the law that holds at the others and beyond."""
    return np.asarray(law(C) * (1 + 0.03 * (3e10 / C) ** 1.5))


def extrapolate(truth: Callable[[np.ndarray], np.ndarray], given: float, actual: float) -> tuple[float, float, float]:
    """Share of 95% intervals that hold the truth at ten times, their mean half width, rms log error."""
    inside, widths, errors = [], [], []
    for number in range(STUDIES):
        rng = np.random.default_rng(number)
        loss = truth(C) * np.exp(actual * rng.standard_normal(len(C)))
        point, draws, _ = frontier.average_loss_laws(C, loss, np.full(len(C), given**2), 20.0, 400, rng)
        low, high = np.quantile(draws.E + draws.A / TARGET**draws.alpha, [0.025, 0.975])
        inside.append(low <= truth(np.array(TARGET)) <= high)
        widths.append((high - low) / 2)
        errors.append(np.log((point.E[0] + point.A[0] / TARGET ** point.alpha[0]) / truth(np.array(TARGET))))
    return float(np.mean(inside)), float(np.mean(widths)), float(np.sqrt(np.mean(np.square(errors))))


@pytest.fixture
def believe_the_law(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def believe() -> None:
        for name in ("DRIFTS", "SCATTERS"):
            monkeypatch.setattr(frontier, name, np.zeros(1))

    return believe


def test_an_exact_law_costs_half_as_much_width_again_and_no_error(believe_the_law: Callable[[], None]) -> None:
    inside, width, error = extrapolate(law, 0.002, 0.002)
    believe_the_law()
    _, exact_width, exact_error = extrapolate(law, 0.002, 0.002)
    assert inside >= 0.95 and exact_width < width < 1.7 * exact_width
    assert error == pytest.approx(exact_error, rel=0.15)


def test_intervals_hold_where_the_minima_scatter_more_than_their_noise(believe_the_law: Callable[[], None]) -> None:
    """The largest minimum, too, is off: no drift below it may explain that away."""
    inside, _, error = extrapolate(law, 0.0005, 0.003)
    believe_the_law()
    exact_inside, _, exact_error = extrapolate(law, 0.0005, 0.003)
    assert inside > 0.9 and exact_inside < 0.5 and error < exact_error


def test_a_bend_at_small_compute_counts_for_less_at_the_target(believe_the_law: Callable[[], None]) -> None:
    inside, _, error = extrapolate(bent, 0.001, 0.001)
    believe_the_law()
    exact_inside, _, exact_error = extrapolate(bent, 0.001, 0.001)
    assert inside > 0.5 and exact_inside < 0.1 and error < 0.8 * exact_error


def test_two_budgets_say_nothing_of_a_misfit() -> None:
    """Whatever the two losses are, no misfit is more likely than another, and E is as likely as assumed."""
    for loss in ([2.2, 2.0], [2.2, 2.1]):
        line, odds = frontier._lines_above(C[[0, 5]], np.array(loss), np.full(2, 1e-6))
        weight = np.exp(odds - line.ss / 2).reshape(-1, len(frontier.SHARES)).sum(1)
        assert weight == pytest.approx(np.full(len(frontier.DRIFTS) * len(frontier.SCATTERS), weight[0]))
