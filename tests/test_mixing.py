"""The best mixture: planted laws recovered, intervals counted, mixtures foretold that no fit has seen."""

import json

import numpy as np
import pandas as pd
import pytest

from jaxscale.bysource import study_sources
from jaxscale.cli import dispatch
from jaxscale.errors import MisuseError, VerdictError
from jaxscale.laws.mixing import Mixing, minimise_mixture
from jaxscale.mixing import find_filter, find_mixture

LAWS = {"a": Mixing(1.2, 0.3, {"a": 0.0, "b": 2.0}), "b": Mixing(1.0, 0.8, {"a": 0.0, "b": -2.5})}
"""Each text gets better with its own source."""
SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)


def draw_runs(noise=0.0, seed=0, shares=SHARES, budgets=(1e11,), sizes=3, laws=LAWS):
    rng = np.random.default_rng(seed)
    rows = []
    for b, C in enumerate(budgets):
        for size in range(sizes):
            for share in shares:
                w = dict(zip(laws, share if isinstance(share, tuple) else (share, 1 - share), strict=True))
                common = noise * rng.standard_normal()
                losses = {f"loss:{text}": law.loss(w) - 0.1 * b + 0.02 * (size - 1) ** 2 + common
                          + 0.5 * noise * rng.standard_normal() for text, law in laws.items()}  # fmt: skip
                rows.append({"budget": C, "C": C, "N": 1e5 * 2**size, **losses,
                             **{f"share:{name}": value for name, value in w.items()}})  # fmt: skip
    return pd.DataFrame(rows)


def true_best(weights, laws=LAWS):
    share = np.linspace(0, 1, 200_001)
    total = sum(v * laws[text].loss({"a": share, "b": 1 - share}) for text, v in weights.items())
    return float(share[total.argmin()]), float(total.min())


@pytest.mark.parametrize("weights", [{"a": 0.5, "b": 0.5}, {"a": 0.35, "b": 0.65}])
def test_the_planted_optimum_is_found_by_the_law_exactly_and_by_the_parabola_nearly(weights):
    found = find_mixture(draw_runs(), weights=weights, bootstrap=0)
    share, loss = true_best(weights)
    one = found.budgets[0]
    assert (one.status, one.chosen) == ("ok", "law") and found.best()["a"] == pytest.approx(share, abs=1e-4)
    assert one.readings["law"].loss == pytest.approx(loss, rel=1e-8)
    assert one.readings["curve"].best["a"] == pytest.approx(share, abs=0.03)
    for text, law in LAWS.items():
        assert one.laws[text].t["b"] == pytest.approx(law.t["b"], rel=1e-5)
        assert one.laws[text].k == pytest.approx(law.k, rel=1e-5) and one.laws[text].c == pytest.approx(law.c, rel=1e-5)


def test_the_interval_covers_the_planted_optimum_as_often_as_it_says():
    share, _ = true_best({"a": 0.5, "b": 0.5})
    hits = {"law": 0, "curve": 0}
    for seed in range(25):
        one = find_mixture(draw_runs(0.004, seed), bootstrap=60, seed=seed).budgets[0]
        for name, reading in one.readings.items():
            low, high = reading.intervals["a"]
            hits[name] += low <= share <= high
    assert hits["law"] / 25 > 0.95 - 3 * np.sqrt(0.95 * 0.05 / 25)


def test_a_mixture_that_no_fit_has_seen_is_foretold_to_the_noise():
    frame = draw_runs(0.003, seed=1, shares=(*SHARES, 0.4))
    reading = find_mixture(frame, bootstrap=0).budgets[0].readings["law"]
    assert 0.3 * 0.003 < reading.held_out < 3 * 0.003
    seen = find_mixture(frame[frame["share:a"] != 0.4], bootstrap=0).budgets[0]
    foretold = np.mean([law.loss({"a": 0.4, "b": 0.6}) for law in seen.laws.values()])
    measured = frame[frame["share:a"] == 0.4][["loss:a", "loss:b"]].mean(axis=1).min()
    assert foretold == pytest.approx(measured, abs=4 * 0.003)


def test_three_sources_are_minimised_as_by_a_dense_grid():
    laws = {"a": Mixing(1.0, 0.9, {"a": 0.0, "b": 2.0, "c": 1.0}),
            "b": Mixing(1.1, 1.0, {"a": 0.0, "b": -2.0, "c": -0.5}),
            "c": Mixing(0.9, 0.8, {"a": 0.0, "b": 0.4, "c": -1.5})}  # fmt: skip
    steps = np.arange(0, 401) / 400
    grid = np.array([(x, y, 1 - x - y) for x in steps for y in steps if x + y <= 1 + 1e-9])
    total = sum(law.loss(dict(zip("abc", grid.T, strict=True))) for law in laws.values()) / 3
    shares = [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.4, 0.3, 0.3), (0.5, 0.5, 0.0), (0.1, 0.4, 0.5)]
    found = find_mixture(draw_runs(shares=shares, laws=laws), bootstrap=0)
    assert list(found.budgets[0].readings) == ["law"]
    assert np.abs(np.array(list(found.best().values())) - grid[total.argmin()]).max() < 0.005
    corner = minimise_mixture(np.array([[1.0]]), np.array([[[0.0, -1.0, 2.0]]]))
    assert corner.round(6).tolist() == [[0.0, 1.0, 0.0]]


def test_an_optimum_at_the_end_of_what_was_trained_is_called_an_edge():
    weights = {"a": 0.9, "b": 0.1}
    share, _ = true_best(weights)
    assert share > 0.9
    found = find_mixture(draw_runs(), weights=weights, bootstrap=0)
    assert found.budgets[0].status == "edge" and not found.best()
    assert "largest trained, 0.9; train more of it" in found.verdict
    whole = find_mixture(draw_runs(shares=(0.25, 0.5, 0.75, 1.0)), weights=weights, bootstrap=0)
    assert whole.budgets[0].status == "ok"  # a source alone is an answer, where it was trained alone
    few = find_mixture(draw_runs(shares=(0.3, 0.5, 0.7)), bootstrap=0)
    assert few.budgets[0].status == "too_few" and "3 different mixtures of 2 sources, 4 are needed" in few.verdict


def test_weights_are_those_asked_for_or_of_the_validation_text_and_rows_without_a_mixture_are_named():
    frame = draw_runs().assign(**{"val_tokens:a": 300, "val_tokens:b": 100})
    assert find_mixture(frame, bootstrap=0).weights == {"a": 0.75, "b": 0.25}
    frame.loc[3, "share:a"] = 0.0
    found = find_mixture(frame, weights={"b": 2.0}, bootstrap=0)
    assert found.weights == {"b": 1.0}
    assert found.source["rows_refused"] == [{"row": 3, "reason": "its shares add up to 0.3"}]
    with pytest.raises(MisuseError, match="no loss on 'c'; the texts are a, b"):
        find_mixture(frame, weights={"c": 1.0})
    with pytest.raises(MisuseError, match="needs two columns share:NAME"):
        find_mixture(frame.drop(columns="share:a"))
    with pytest.raises(VerdictError, match="none of 15 rows is a run of a mixture"):
        find_mixture(frame.assign(**{"share:a": 0.0, "share:b": 0.0}))


def test_the_verb_prints_and_writes_the_answer(tmp_path, capsys):
    draw_runs(0.002, budgets=(1e11, 1e12)).to_csv(tmp_path / "runs.csv", index=False)
    argv = ["mixture", str(tmp_path / "runs.csv"), "--bootstrap", "40", "--out", str(tmp_path / "out.json")]
    assert dispatch([*argv, "--weights", "a=.5", "b=.5"]) == 0
    assert "best mixture for the loss 0.5 a, 0.5 b" in capsys.readouterr().out
    plain = json.loads((tmp_path / "out.json").read_text())
    assert plain["schema"] == "jaxscale.mixture/1" and [b["C"] for b in plain["budgets"]] == [1e11, 1e12]
    assert set(plain["budgets"][0]["laws"]["a"]) == {"c", "k", "t"}
    assert dispatch([*argv, "--weights", "a=.9", "b=.1"]) == 1
    assert "train more of it" in capsys.readouterr().err


def test_sources_of_own_runs_are_compared_over_compute_and_loss_to_loss(tmp_path, capsys):
    rng = np.random.default_rng(0)
    rows = []
    for C in np.geomspace(1e10, 1e14, 8):
        for size in (0.5, 1.0, 2.0):
            base = 2.0 * (C / 1e10) ** -0.15 + 0.05 * np.log(size) ** 2
            noise = np.exp(0.002 * rng.standard_normal())
            losses = {"loss:x": (1.0 + base) * noise, "loss:y": (1.4 + base) * noise}
            N = 1e4 * size * (C / 1e10) ** 0.5
            rows.append({"budget": C, "C": C, "N": N, "D": 1e6, "loss": 1.2 + base, **losses})
    pd.DataFrame(rows).to_csv(tmp_path / "runs.csv", index=False)
    found = study_sources(tmp_path / "runs.csv", transfer_from="x", bootstrap=100)
    assert found.along == "C" and found.comparison.verdict == "shared"
    assert found.comparison.alpha.value == pytest.approx(0.15, abs=0.02)
    assert found.transfers["x", "y"].chosen == "offset"
    assert found.transfers["x", "y"].law.E_t == pytest.approx(0.4, abs=0.01)
    argv = ["sources", str(tmp_path / "runs.csv"), "--bootstrap", "20", "--out", str(tmp_path / "out.json")]
    assert dispatch(argv) == 0
    assert json.loads((tmp_path / "out.json").read_text())["schema"] == "jaxscale.composition/1"
    assert dispatch([*argv, "--transfer-from", "z"]) == 2
    assert "no loss on 'z'" in capsys.readouterr().err


def test_how_hard_to_filter_is_read_off_each_budget_and_its_trend_told():
    """Planted: what is left out costs repetition, the more the larger the budget, and what is kept is better."""
    rng = np.random.default_rng(0)
    rows = []
    for C, best in ((1e11, 0.05), (1e12, 0.2), (1e13, 0.6)):
        for keep in (0.02, 0.05, 0.1, 0.3, 1.0):
            for size in range(3):
                loss = 2.0 + 0.01 * (size - 1) ** 2 + 0.02 * np.log(keep / best) ** 2 + 0.001 * rng.standard_normal()
                rows.append({"C": C, "budget": C, "N": 1e4 * 2**size, "D": C / 1e5, "U": 1e6 * keep, "loss": loss,
                             "quality_keep": keep})  # fmt: skip
    frame = pd.DataFrame(rows)
    found = find_filter(frame, bootstrap=100)
    assert [one.status for one in found.budgets] == ["ok", "ok", "ok"] and found.trend == "rises"
    for one, best in zip(found.budgets, (0.05, 0.2, 0.6), strict=True):
        assert one.keep == pytest.approx(best, rel=0.1) and one.interval[0] < best < one.interval[1]
        assert one.loss == pytest.approx(2.0, abs=0.002)
    edge = find_filter(frame[(frame["quality_keep"] > 0.06) | (frame["C"] > 1e11)].query("C < 5e12"), bootstrap=50)
    assert [one.status for one in edge.budgets] == ["too_few", "ok"] and edge.trend == "unknown"
    assert json.loads(found.to_json())["schema"] == "jaxscale.filter/1" and "rises" in str(found)
    with pytest.raises(MisuseError, match="no column 'quality_keep'"):
        find_filter(frame.drop(columns="quality_keep"))
