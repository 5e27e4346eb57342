"""Tables from anywhere: mapping, filters, refusals, and one sentence for every mistake."""

import hashlib

import numpy as np
import pandas as pd
import pytest

from jaxscale.errors import MisuseError, VerdictError
from jaxscale.fit.cells import gather_cells
from jaxscale.source import keep_near, read_observations


@pytest.fixture
def frame():
    N = np.array([1e6, 2e6, 4e6, 1e6, 2e6, 4e6])
    C = np.array([1e14] * 3 + [4e14] * 3)
    return pd.DataFrame({"N": N, "D": C / 6 / N, "C": C, "loss": [3.2, 3.0, 3.1, 2.9, 2.7, 2.6]})


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".csv.xz", ".parquet"])
def test_every_kind_of_table_reads_the_same(tmp_path, frame, suffix):
    path = tmp_path / f"table{suffix}"
    frame.to_parquet(path) if suffix == ".parquet" else frame.to_csv(path, index=False)
    obs = read_observations(path)
    pd.testing.assert_frame_equal(obs.frame[["N", "D", "C", "loss"]], frame, check_exact=True)
    assert obs.source["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (obs.source["rows_total"], obs.source["rows_used"], obs.rule) == (6, 6, "6ND")


def test_a_study_folder_is_its_observations_and_counts_exactly(tmp_path, frame):
    with pytest.raises(MisuseError, match="jaxscale collect"):
        read_observations(tmp_path)
    frame.to_csv(tmp_path / "observations.csv", index=False)
    (tmp_path / "plan.json").write_text("{}")
    assert read_observations(tmp_path).rule == "exact"


def test_columns_map_and_a_given_C_wins(frame):
    theirs = frame.rename(columns={"N": "n_params", "D": "tokens", "C": "flops", "loss": "ce"})
    theirs["flops"] *= 1.5
    names = {"N": "n_params", "D": "tokens", "C": "flops", "loss": "ce"}
    obs = read_observations(theirs, columns=names)
    np.testing.assert_array_equal(obs.frame["C"], theirs["flops"])
    del names["C"]
    np.testing.assert_allclose(read_observations(theirs, columns=names).frame["C"], frame["C"], rtol=1e-12)


def test_bad_rows_are_refused_by_number_and_reason(frame):
    bad = frame.astype(object)
    bad.loc[0, "loss"], bad.loc[1, "N"], bad.loc[2, "D"], bad.loc[3, "loss"] = np.nan, -1.0, "many", np.inf
    refused = read_observations(bad).source["rows_refused"]
    assert refused == [
        {"row": 0, "reason": "loss is missing"},
        {"row": 1, "reason": "N is -1, must be above 0"},
        {"row": 2, "reason": "D is 'many', not a number"},
        {"row": 3, "reason": "loss is not finite"},
    ]


def test_where_comes_before_refusals_and_rows_keep_their_number(frame):
    frame.loc[5, "loss"] = np.nan
    frame["kind"] = ["a", "b", "a", "b", "a", None]
    obs = read_observations(frame, where="kind == 'a' and not (C > 2e14)")
    assert obs.refused == () and list(obs.frame["row"]) == [0, 2]
    assert [r["row"] for r in read_observations(frame, where="C > 2e14").refused] == [5]
    assert len(read_observations(frame, where="1e14 < C <= 4e14 or kind != 'b'")) == 4


FOREIGN = ["__import__('os').system('true')", "N", "N > 1 if D else 0", "N.sum() > 1", "N + 1 > 2",
           "kind > 2", "N >", "missing == 1", "N in (1, 2)"]  # fmt: skip


@pytest.mark.parametrize("where", FOREIGN)
def test_where_is_comparisons_and_nothing_else(frame, where):
    frame["kind"] = "a"
    with pytest.raises(MisuseError, match="where"):
        read_observations(frame, where=where)


def test_misuse_names_the_field_and_the_nearest_column(frame, tmp_path):
    with pytest.raises(MisuseError, match="did you mean 'loss'"):
        read_observations(frame, columns={"loss": "losss"})
    with pytest.raises(MisuseError, match="loss is missing; map it as loss=NAME"):
        read_observations(frame.drop(columns="loss"))
    with pytest.raises(MisuseError, match="'X' is no canonical column"):
        read_observations(frame, columns={"X": "N"})
    with pytest.raises(MisuseError, match="no such file"):
        read_observations(tmp_path / "absent.csv")
    (tmp_path / "table.xlsx").write_text("no table")
    with pytest.raises(MisuseError, match="unknown kind of table"):
        read_observations(tmp_path / "table.xlsx")
    (tmp_path / "broken.csv.gz").write_text("not gzip")
    with pytest.raises(MisuseError, match="not a readable table"):
        read_observations(tmp_path / "broken.csv.gz")


def test_no_usable_row_is_a_verdict(frame):
    with pytest.raises(VerdictError, match="none of 6 rows is usable"):
        read_observations(frame.assign(loss=-1.0))
    with pytest.raises(VerdictError, match="selects none"):
        read_observations(frame, where="N > 1e99")


def test_budgets_are_clusters_of_C_at_most_5_percent_wide(frame):
    jitter = frame.assign(C=frame["C"] * np.array([1.0, 1.02, 1.04, 1.0, 0.99, 0.98]))
    assert gather_cells(jitter).budget.tolist() == [0, 0, 0, 1, 1, 1]
    chain = pd.DataFrame({"N": 1e6, "D": np.geomspace(1e8, 2e8, 30), "loss": 3.0})
    cells = gather_cells(chain)
    assert not len(cells.budget_C) and cells.spread == pytest.approx(1.0)
    named = chain.assign(budget=["x"] * 15 + ["y"] * 15)
    assert len(gather_cells(named).budget_C) == 2


def test_seeds_are_averaged_and_their_spread_is_pooled(frame):
    rng = np.random.default_rng(0)
    many = pd.concat([frame.assign(loss=frame["loss"] * np.exp(0.01 * rng.standard_normal(6))) for _ in range(40)])
    cells = gather_cells(many.sample(frac=1, random_state=1))
    assert len(cells) == 6 and (cells.weight == 40).all()
    assert cells.seed_std == pytest.approx(0.01, rel=0.15)
    assert gather_cells(frame).seed_std is None


def test_held_out_rows_and_weight_zero_stay_out(frame):
    assert len(gather_cells(frame.assign(role=["grid"] * 4 + ["holdout"] * 2))) == 4
    assert len(gather_cells(frame.assign(weight=[0, 1, 1, 1, 1, 1]))) == 5
    with pytest.raises(VerdictError, match="held out"):
        gather_cells(frame.assign(role="holdout"))
    refused = read_observations(frame.assign(weight=[-1.0, 1, 1, 1, 1, 1])).refused
    assert refused == ({"row": 0, "reason": "weight is -1, must be at least 0"},)


def test_two_columns_of_one_name_are_misuse_and_other_pairs_do_not_matter(tmp_path, frame):
    lines = frame.assign(x=1, y=2).to_csv(index=False).splitlines()
    (tmp_path / "loss.csv").write_text("\n".join(["N,D,C,loss,loss,y", *lines[1:]]))
    with pytest.raises(MisuseError, match="2 columns are named 'loss'"):
        read_observations(tmp_path / "loss.csv")
    (tmp_path / "other.csv").write_text("\n".join(["N,D,C,loss,y,y", *lines[1:]]))
    assert len(read_observations(tmp_path / "other.csv")) == 6


def test_how_a_csv_was_saved_is_read_or_said(tmp_path, frame):
    plain = frame.to_csv(index=False)
    (tmp_path / "bom.CSV").write_bytes(b"\xef\xbb\xbf" + plain.encode())
    (tmp_path / "trailing.csv").write_text(plain.replace("\n", ",\n").replace("loss,", "loss", 1))
    for name in ("bom.CSV", "trailing.csv"):
        pd.testing.assert_frame_equal(read_observations(tmp_path / name).frame[["N", "D", "C", "loss"]], frame)
    (tmp_path / "semicolons.csv").write_text(frame.to_csv(index=False, sep=";"))
    with pytest.raises(MisuseError, match="separated by ';'"):
        read_observations(tmp_path / "semicolons.csv")
    (tmp_path / "shifted.csv").write_text(plain.replace("\n", ",7\n").replace("loss,7", "loss", 1))
    with pytest.raises(MisuseError, match="not a readable table"):  # pandas would take N for an index
        read_observations(tmp_path / "shifted.csv")


def test_a_weight_that_is_no_number_is_refused_and_a_missing_one_is_1(frame):
    obs = read_observations(frame.assign(weight=["heavy", None, 2, 1, 1, 1]))
    assert obs.refused == ({"row": 0, "reason": "weight is 'heavy', not a number"},)
    assert obs.frame["weight"].tolist() == [1, 2, 1, 1, 1]


def test_only_the_role_holdout_is_held_out(frame):
    assert len(gather_cells(frame.assign(role="train"))) == 6


def test_numbers_whose_squares_leave_float64_are_refused(frame):
    obs = read_observations(frame.assign(loss=[1e-300, 1e300, 3, 3, 3, 3], weight=[1, 1, 1e300, 1, 1, 1]))
    assert [row["row"] for row in obs.refused] == [0, 1, 2]
    assert all("must lie between 1e-100 and 1e+100" in row["reason"] for row in obs.refused)


def test_text_in_optional_numbers_is_refused_and_an_infinite_U_is_unlimited(frame):
    assert [r["row"] for r in read_observations(frame.assign(U=["many", 0, -1, np.inf, None, 5e9])).refused] == [
        0,
        1,
        2,
    ]
    (one,) = read_observations(frame.assign(loss_std_error=["x", 0, None, 0.1, 0.1, 0.1])).refused
    assert one == {"row": 0, "reason": "loss_std_error is 'x', not a number"}


def test_bits_turn_every_loss_of_the_table_into_nats(frame):
    obs = read_observations(frame.assign(loss_std_error=0.01, train_loss=2.0), loss_unit="bits")
    assert obs.frame["loss_std_error"].tolist() == pytest.approx([0.01 * np.log(2)] * 6)
    assert obs.frame["train_loss"].tolist() == pytest.approx([2 * np.log(2)] * 6)


def test_near_keeps_sizes_around_each_budgets_lowest_cell_and_lists_the_others() -> None:
    """Two budgets with minima at N = 2 and 4, seeds averaged first: one lucky run moves no minimum."""
    rows = [(100, 1, 3.2), (100, 2, 3.0), (100, 4, 3.1), (100, 8, 3.4), (100, 4, 3.1), (100, 2, 3.0), (100, 8, 2.9),
            (100, 8, 3.4), (400, 1, 3.3), (400, 2, 2.8), (400, 4, 2.7), (400, 16, 2.9)]  # fmt: skip
    table = pd.DataFrame(rows, columns=["C", "N", "loss"]).assign(D=lambda t: t.C / (6 * t.N))
    near = keep_near(read_observations(table), 2)
    assert sorted(set(zip(near.frame.C, near.frame.N, strict=True))) == [
        (100, 1), (100, 2), (100, 4), (400, 2), (400, 4),
    ]  # fmt: skip
    assert [row["row"] for row in near.refused] == [3, 6, 7, 8, 11]
    assert near.refused[-1]["reason"] == "N is 4 times that of its budget's lowest cell, more than near = 2"
    assert near.source["near"] == 2 and near.source["rows_used"] == 7
    with pytest.raises(MisuseError, match="near: 1 keeps no sizes around a minimum; use a factor above 1"):
        keep_near(read_observations(table), 1)


def test_near_keeps_rows_of_no_budget_and_reads_no_minimum_off_rows_that_do_not_count() -> None:
    table = pd.DataFrame({"N": [1.0, 2.0, 4.0, 9.0, 9.0], "D": 1e6, "loss": [3.1, 3.0, 3.1, 2.0, 3.4],
                          "budget": [100, 100, 100, 100, np.nan], "weight": [1, 1, 1, 0, 1]})  # fmt: skip
    near = keep_near(read_observations(table), 2)
    assert near.frame["row"].tolist() == [0, 1, 2, 4] and [row["row"] for row in near.refused] == [3]
