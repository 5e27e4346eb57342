"""docs/laws.md: its code runs, its new law is fitted, and no law is missing from its table."""

import re
from pathlib import Path

import pytest

from jaxscale.laws import LAWS

PAGE = (Path(__file__).parents[1] / "docs" / "laws.md").read_text()


@pytest.fixture(scope="module")
def space():
    """What the page's code leaves behind; the laws are put back as they were."""
    before = dict(LAWS)
    found: dict = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.S):
        exec(compile(block, "docs/laws.md", "exec"), found)
    yield found
    LAWS.clear()
    LAWS.update(before)


def test_the_law_added_on_the_page_is_recovered_by_its_fit(space):
    for name, value in space["truth"].params.items():
        assert space["fit"].params[name] == pytest.approx(value, rel=1e-5)


def test_the_law_of_the_page_is_twenty_lines():
    added = next(block for block in re.findall(r"```python\n(.*?)```", PAGE, re.S) if "@register_law" in block)
    body = added[added.index("@register_law") :]
    assert len([line for line in body.splitlines() if line.strip()]) <= 20


def test_the_curve_of_the_page_is_told(space):
    assert space["fits"].chosen == "pow3"


def test_every_law_that_can_be_fitted_stands_in_the_table():
    listed = set(re.findall(r"^\| `([a-z0-9-]+)` \|", PAGE, re.M))
    assert {name for name in LAWS if name != "bottleneck"} <= listed
