"""One exponent or one for each source: planted studies, the size and the power of the test, counted."""

import json

import numpy as np
import pandas as pd
import pytest

from jaxscale.composition import compare_exponents, compare_sources
from jaxscale.errors import MisuseError, VerdictError

FLOORS, TERMS = (1.8, 2.2, 1.2), (1.0, 0.7, 1.4)


def draw_sources(alphas, noise=0.003, seed=0, points=8, floors=FLOORS):
    rng = np.random.default_rng(seed)
    D = np.geomspace(1e8, 1e11, points)
    parts = []
    for g, (alpha, E, T) in enumerate(zip(alphas, floors, TERMS, strict=False)):
        loss = (E + T * (D / 1e9) ** -alpha) * np.exp(noise * rng.standard_normal(points))
        parts.append(pd.DataFrame({"group": f"source{g}", "D": D, "loss": loss}))
    return pd.concat(parts, ignore_index=True)


def test_planted_sources_are_recovered_by_the_law_that_made_them():
    shared = compare_sources(draw_sources((0.3, 0.3, 0.3), noise=0.0), bootstrap=0)
    assert shared.alpha.value == pytest.approx(0.3, rel=1e-6)
    assert pytest.approx(2.2, rel=1e-6) == shared.shared.curves["source1"].E
    free = compare_sources(draw_sources((0.25, 0.3, 0.4), noise=0.0), bootstrap=0)
    assert [round(estimate.value, 6) for estimate in free.alphas.values()] == [0.25, 0.3, 0.4]
    assert free.free.loss("source2", 1e9) == pytest.approx(1.2 + 1.4, rel=1e-6)


def test_the_verdict_is_shared_free_or_undecided_as_the_data_can_say():
    shared = compare_sources(draw_sources((0.3, 0.3, 0.3)), bootstrap=200)
    assert shared.verdict == "shared" and shared.difference.interval[1] < 0.25
    free = compare_sources(draw_sources((0.25, 0.3, 0.4)), bootstrap=200)
    assert free.verdict == "free" and free.p_value < 1e-6 and free.difference.interval[0] > 0
    noisy = compare_sources(draw_sources((0.3, 0.3, 0.35), noise=0.03, seed=2), bootstrap=200)
    assert noisy.verdict == "undecided" and "cannot be told apart" in noisy.words


def test_the_test_of_one_exponent_rejects_a_true_one_in_five_percent():
    p = np.array([compare_exponents(draw_sources((0.3, 0.3, 0.3), seed=seed))[1] for seed in range(300)])
    assert abs((p < 0.05).mean() - 0.05) < 3 * np.sqrt(0.05 * 0.95 / 300)
    assert abs((p < 0.5).mean() - 0.5) < 3 * np.sqrt(0.25 / 300)


def test_the_test_finds_exponents_a_tenth_apart_at_this_noise():
    p = np.array([compare_exponents(draw_sources((0.285, 0.3, 0.315), seed=seed))[1] for seed in range(60)])
    assert (p < 0.05).mean() > 0.5


def test_pure_power_laws_need_no_floor_and_two_points_less():
    hits = 0
    for seed in range(40):
        frame = draw_sources((0.1, 0.1, 0.1), noise=0.002, points=4, floors=(0.0, 0.0, 0.0), seed=seed)
        found = compare_sources(frame, floor=False, bootstrap=99)
        low, high = found.alpha.interval
        hits += low < 0.1 < high
        assert {curve.E for curve in found.free.curves.values()} == {0.0}
    assert hits / 40 > 0.95 - 3 * np.sqrt(0.95 * 0.05 / 40)


def test_a_source_with_few_points_is_left_out_and_named():
    frame = draw_sources((0.3, 0.3, 0.3))
    few = pd.concat([frame, frame[frame["group"] == "source0"].head(3).assign(group="small")])
    found = compare_sources(few, bootstrap=20)
    assert found.refused == ({"source": "small", "reason": "3 different D, 4 are needed"},)
    with pytest.raises(VerdictError, match="two are needed"):
        compare_sources(frame[frame["group"] == "source0"])


def test_tokens_of_one_source_are_worth_tokens_of_another():
    law = compare_sources(draw_sources((0.3, 0.3, 0.3), noise=0.0), bootstrap=0).shared
    D = 1e9 * law.worth("source0", "source1")
    one = law.loss("source0", 1e9) - law.curves["source0"].E
    assert law.loss("source1", D) - law.curves["source1"].E == pytest.approx(one, rel=1e-6)


def test_a_table_without_sources_or_with_several_sizes_is_misuse():
    frame = draw_sources((0.3, 0.3, 0.3))
    with pytest.raises(MisuseError, match="group is missing"):
        compare_sources(frame.drop(columns="group"))
    with pytest.raises(MisuseError, match="one size"):
        compare_sources(frame.assign(N=np.linspace(1e6, 1e9, len(frame))))


def test_it_prints_and_serializes():
    found = compare_sources(draw_sources((0.3, 0.3, 0.3)), bootstrap=50)
    record = json.loads(found.to_json())
    assert record["schema"] == "jaxscale.sources/1" and record["verdict"] == found.verdict
    assert "verdict: " in str(found) and list(found.to_frame()["source"]) == ["source0", "source1", "source2"]
