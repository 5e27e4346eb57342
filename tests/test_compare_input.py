"""What a comparison refuses, and what it says: texts, tokenizers, seeds, tuning, diverged and unknown variants."""

import json

import numpy as np
import pandas as pd
import pytest
from planted_variants import FIRST, SAME, draw_variants

from jaxscale.compare import compare_variants
from jaxscale.compare.read import Table
from jaxscale.compare.tuned import judge_tuning
from jaxscale.errors import MisuseError, VerdictError


@pytest.fixture(scope="module")
def frame():
    return draw_variants(SAME, noise=0.002)


def by(frame, adam, sgd):
    return np.where(frame.variant == "adam", adam, sgd)


def quick(frame, **options):
    return compare_variants(frame, draws=200, targets=[270 * FIRST], **options)


def test_other_validation_texts_are_never_compared(frame):
    result = quick(frame.assign(val_sha256=by(frame, "aa", "bb")), tuned=True)
    assert result.verdict == "incomparable" and not result.rows
    assert "adam and sgd differ in validation text" in result.words
    assert json.loads(result.to_json())["winner"] is None


@pytest.mark.parametrize(("column", "says"), [("data_sha256", "training text"), ("seq_len", "context length")])
def test_what_differs_by_accident_is_refused_unless_it_is_allowed(frame, column, says):
    odd = frame.assign(**{column: by(frame, 64, 128)})
    assert says in quick(odd, tuned=True).words
    assert quick(odd, tuned=True, allow=[column]).verdict == "settled"


def test_other_seeds_are_another_data_order(frame):
    odd = frame.assign(seed=by(frame, 0, 1))
    assert "data order" in quick(odd, tuned=True).words
    assert quick(odd, tuned=True, allow=["seed"]).verdict == "settled"
    more = pd.concat([frame, frame[frame.variant == "adam"].assign(seed=1)])
    assert quick(more, tuned=True).verdict == "settled"


def test_other_tokenizers_are_compared_in_bits_per_byte_or_not_at_all(frame):
    odd = frame.assign(tokenizer=by(frame, "bytes", "bpe:1024"))
    assert "tokenizer" in quick(odd, tuned=True).words
    # four bytes a token: more nats a token, fewer bits a byte
    odd["loss"] = odd.loss * by(odd, 1.0, 4.0)
    odd["bits_per_byte"] = odd.loss / np.log(2) / by(odd, 1.0, 4.0)
    result = quick(odd, tuned=True)
    assert result.loss == "bits_per_byte" and result.leader == "adam"
    assert any("bits per byte" in note for note in result.notes)
    other = quick(odd.assign(val_sha256=by(odd, "aa", "bb")), tuned=True)
    assert other.verdict == "incomparable" and "data.val_bytes" in other.words
    assert quick(odd.assign(val_sha256="one text"), tuned=True).leader == "adam"


def test_a_bound_is_told_beside_a_likelihood(frame):
    result = quick(frame.assign(objective=by(frame, "autoregressive", "masked_diffusion")), tuned=True)
    assert result.leader == "adam" and any("upper bound" in note for note in result.notes)


def test_no_winner_without_equal_tuning(frame):
    assert (plain := quick(frame)).verdict == "untuned" and plain.winner is None and plain.rows
    assert "adam, sgd were tuned" in plain.words
    assert quick(frame.assign(tuning_trials=5)).winner == "adam"
    few = quick(frame.assign(tuning_trials=by(frame, 9, 5)))
    assert few.verdict == "untuned" and "sgd had 5 tuning trials and adam had 9" in few.words
    assert quick(frame.assign(tuning_trials=2)).verdict == "untuned"


def sweep(**changes):
    return {"trials": 5, "step": 1.0, "seeds": 1, "status": "ok", "flops": 1e9} | changes


@pytest.mark.parametrize(
    ("adam", "sgd", "says"),
    [
        (sweep(), None, "sgd has no sweep"),
        (sweep(), sweep(status="edge"), "sgd has its best rate at an end"),
        (sweep(status="diverged"), sweep(), "adam has a sweep that diverged"),
        (sweep(), sweep(step=0.5), "other rules: step"),
        (sweep(), sweep(trials=9), "adam had 5 trials and sgd had 9"),
        (sweep(), sweep(trials=7), ""),
    ],
)
def test_a_study_names_a_winner_where_every_sweep_followed_its_rule(frame, adam, sgd, says):
    described = {"adam": {"tuning": adam}, "sgd": {"tuning": sgd}}
    judged = judge_tuning(Table(frame, ("adam", "sgd"), {}, {}, described, {"more": 2}), ("adam", "sgd"), False)
    assert judged["equal"] is (not says) and says in judged["words"]


def test_a_diverged_variant_is_listed_and_has_no_law(frame):
    three = pd.concat([frame, frame[frame.variant == "sgd"].assign(variant="lion", loss=np.nan)], ignore_index=True)
    result = quick(three, tuned=True)
    (lion,) = [one for one in result.variants if one["variant"] == "lion"]
    assert lion["status"] == "none" and "loss is missing" in lion["reason"] and result.winner == "adam"
    assert "lion has no law" in str(result) and result.names == ("adam", "sgd")
    both = quick(frame.assign(loss=frame.loss.where(frame.variant == "adam")), tuned=True)
    assert both.verdict == "incomparable" and "only adam has a law, two are needed" in both.words
    some = frame.assign(loss=frame.loss.where((frame.variant == "adam") | (frame.C > FIRST * 1.5)))
    result = quick(some, tuned=True)
    assert len(result.variants[1]["refused"]) == 5 and "sgd lacks budgets" in " ".join(result.notes)


def test_one_budget_bears_no_law(frame):
    result = quick(frame[frame.C < 2 * FIRST].assign(tuning_trials=5))
    assert (
        result.verdict == "incomparable" and "adam: 1 budget" in result.words and "verdict: incomparable" in str(result)
    )
    assert result.tuning["equal"] and json.loads(result.to_json())["rows"] == []


def test_each_impossible_request_is_one_sentence(frame):
    with pytest.raises(MisuseError, match="did you mean 'sgd'"):
        quick(frame, variants=["sdg"])
    with pytest.raises(VerdictError, match="one variant only"):
        quick(frame, variants=["adam"])
    with pytest.raises(MisuseError, match="below the smallest run"):
        compare_variants(frame, targets=[1e15])
    with pytest.raises(MisuseError, match="variant is missing"):
        compare_variants(frame.drop(columns="variant"))
    with pytest.raises(MisuseError, match="price: no variant 'lion'"):
        quick(frame.assign(seconds=1.0), prices={"lion": 1.0})
    with pytest.raises(MisuseError, match="sgd has none"):
        quick(frame.assign(seconds=1.0), prices={"adam": 1.0})
    with pytest.raises(MisuseError, match="cannot be allowed"):
        quick(frame, allow=["val_sha256"])
    with pytest.raises(MisuseError, match="choose one with --where"):
        quick(frame.assign(D=1e9), x="D")
    rising = frame.assign(loss=np.where(frame.variant == "sgd", 9 - frame.loss, frame.loss))
    assert "does not fall with C" in quick(rising, tuned=True).words


def test_an_edge_a_missing_speed_and_a_target_within_reach_are_said(frame):
    small = frame[(frame.variant == "adam") | (frame.N < 1e7 * (frame.C / FIRST) ** 0.5 * 0.6)]
    result = compare_variants(small, draws=200, targets=[20 * FIRST])
    said = " ".join(result.notes)
    assert (
        "smallest or largest size tried" in said and "inside the range measured" in said and "no column seconds" in said
    )


def test_the_best_of_several_learning_rates_counts(frame):
    worse = frame.assign(loss=frame.loss * 1.05, lr=0.1)
    result = quick(pd.concat([frame.assign(lr=0.01), worse]), tuned=True)
    assert any("several learning rates" in note for note in result.notes)
    plain = quick(frame, tuned=True)
    assert [row["loss"] for row in result.points] == pytest.approx([row["loss"] for row in plain.points])
