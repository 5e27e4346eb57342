"""Numbers read the same everywhere: short, never wrong by more than the digits shown, honest when unknown."""

import math

import pytest

from jaxscale.format import (
    UNKNOWN,
    format_count,
    format_factor,
    format_flops,
    format_interval,
    format_loss,
    format_percent,
    format_seconds,
)

STYLES = (
    format_count,
    format_factor,
    format_flops,
    format_interval,
    format_loss,
    format_percent,
    format_seconds,
)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_an_unknown_number_is_a_dash(style, value):
    given = (value, value) if style is format_interval else value
    assert style(given) == UNKNOWN


@pytest.mark.parametrize(("value", "text"), [(999.6, "1k"), (999_499, "999k"), (999_501, "1M"), (0, "0")])
def test_counts_carry_over_to_the_next_suffix(value, text):
    assert format_count(value) == text


def test_counts_keep_three_digits():
    scale = {"k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
    for value in [1.2345 * 10**power for power in range(3, 15)]:
        text = format_count(value)
        assert float(text[:-1]) * scale[text[-1]] == pytest.approx(value, rel=0.005)


@pytest.mark.parametrize("value", [3.0, 1.26e11, 9.996e18, 7.123e25, 6e-3])
def test_flops_read_back_within_three_digits(value):
    assert float(format_flops(value)) == pytest.approx(value, rel=0.005)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.6, "1m"), (60, "1m"), (3_605, "1h"), (7_260, "2h1m"), (86_400 * 3.5, "3d12h")],
)
def test_durations_use_the_two_largest_units(seconds, text):
    assert format_seconds(seconds) == text
