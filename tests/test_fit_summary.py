"""Percentiles of few rounds: one more draw falls inside as often as the interval says."""

import numpy as np
import pytest

from jaxscale.fit.summary import percentile_interval


@pytest.mark.parametrize("rounds", [64, 192, 1000])
def test_one_more_draw_falls_inside_as_often_as_promised(rounds):
    rng = np.random.default_rng(0)
    trials = 4000
    draws = rng.standard_normal((trials, rounds + 1))
    inside = [low <= row[-1] <= high for row in draws for low, high in [percentile_interval(row[:-1], 0.95)]]
    assert np.mean(inside) == pytest.approx(0.95, abs=3 * np.sqrt(0.95 * 0.05 / trials))


def test_few_or_no_rounds_give_no_interval():
    assert percentile_interval(np.array([1.0, np.nan]), 0.95) == (None, None)
