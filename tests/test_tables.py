"""Tables on rows small enough to compute by hand."""

import math

import numpy as np
import pandas as pd
import pytest

from unlearn_utils.core import tables

ROWS = pd.DataFrame(
    {
        "model": ["a", "a", "a", "b"],
        "split": ["forget", "forget", "retain", "forget"],
        "id": list("wxyz"),
        "family": list("wxyz"),
        "nll": [2.0, 18.0, 5.0, 0.0],
        "tokens": [2, 6, 5, 4],
        "correct": [2, 2, 5, 1],
        "extraction": [0.5, 0.0, 1.0, 0.25],
        "rouge_l": [0.5, 0.75, 0.0, 1.0],
    }
)


def bounds(table):
    return table[["low", "high"]].values.tolist()


# ---------------------------------------------------------------------------- measures of a group


def test_summaries_by_hand():
    measures = ["perplexity", "accuracy", "extraction strength"]
    found = tables.summarise(ROWS, ["model", "split"], measures, resamples=20)
    assert list(found.columns) == ["model", "split", "measure", "value", "low", "high", "n"]
    value = found.set_index(["model", "split", "measure"]).value.to_dict()
    assert value == {
        ("a", "forget", "perplexity"): pytest.approx(math.exp(20 / 8)),
        ("a", "forget", "accuracy"): 0.5,
        ("a", "forget", "extraction strength"): 0.25,
        ("a", "retain", "perplexity"): pytest.approx(math.e),
        ("a", "retain", "accuracy"): 1,
        ("a", "retain", "extraction strength"): 1,
        ("b", "forget", "perplexity"): 1,
        ("b", "forget", "accuracy"): 0.25,
        ("b", "forget", "extraction strength"): 0.25,
    }
    assert found.n.tolist() == [2] * 3 + [1] * 6
    one = found.set_index(["model", "split", "measure"]).loc[("a", "forget", "accuracy")]
    assert (one.low, one.high) == (2 / 6, 1)  # of two documents one, the other or both are drawn


def test_groups_by_a_single_column():
    found = tables.summarise(ROWS, ["model"], ["ROUGE-L"], resamples=20)
    assert found.value.tolist() == pytest.approx([1.25 / 3, 1])
    found = tables.summarise(ROWS, ["model"], ["accuracy"], resamples=20)
    assert found.model.tolist() == ["a", "b"]
    assert found.value.tolist() == pytest.approx([9 / 13, 0.25])


def many(n, shift=0.0, seed=0, copies=1, split="forget"):
    """Return n families of `copies` documents of 50 tokens, about 2 nats each."""
    rng = np.random.default_rng(seed)
    nll = np.repeat(100 + 10 * rng.normal(size=n) + 50 * shift, copies)
    units = np.repeat(np.arange(n), copies)
    data = {
        "id": [f"{split}{i}" for i in range(n * copies)],
        "family": [f"{split} unit {unit}" for unit in units],
        "split": split,
        "nll": nll,
        "tokens": 50,
        "extraction": nll / 200,
        "correct": (nll / 4).astype(int),
        "model": "m",
        "min_k_100": -nll / 50,
        "zlib": -nll,
    }
    return pd.DataFrame(data)


def test_intervals_hold_the_value_and_repeat_with_the_seed():
    def summary(seed):
        measures = ["perplexity", "accuracy", "extraction strength"]
        return tables.summarise(many(60), ["model"], measures, seed=seed, resamples=200)

    found, other = summary(0), summary(1)
    assert ((found.low < found.value) & (found.value < found.high)).all()
    assert (found.n == 60).all()
    pd.testing.assert_frame_equal(found, summary(0))
    assert found.value.tolist() == other.value.tolist()
    assert found.low.tolist() != other.low.tolist()


def test_intervals_resample_families_not_documents():
    def perplexity(copies):
        rows = many(30, copies=copies)
        return tables.summarise(rows, ["model"], ["perplexity"], resamples=400).iloc[0]

    alone, copies = perplexity(1), perplexity(8)
    assert copies.n == 30 and copies.value == pytest.approx(alone.value)
    assert copies.high - copies.low == pytest.approx(alone.high - alone.low, rel=0.2)


# ------------------------------------------------------------------------------------- membership


def test_the_auc_by_hand_is_not_folded():
    rows = pd.DataFrame(
        {
            "domain": "d",
            "split": ["forget"] * 4 + ["approximate"] * 4 + ["retain"],
            "family": list("abcdefghi"),
            "min_k_20": [9, 8, 5, 1, 7, 5, 0, -1, 99],
        }
    )
    rows["zlib"] = -rows.min_k_20
    found = tables.auc_table(rows, ["domain"], ["Min-20%", "zlib"], resamples=50)
    assert found.measure.tolist() == ["AUC Min-20%", "AUC zlib"]
    # 9 and 8 beat all 4; 5 beats 0 and -1 and ties with 5; 1 beats 0 and -1
    assert found.value.tolist() == [12.5 / 16, 3.5 / 16]
    assert found.n.tolist() == [4, 4]
    assert (found.low <= found.value).all() and (found.value <= found.high).all()


@pytest.mark.parametrize(("shift", "low", "high"), [(0, 0.35, 0.65), (1.0, 0.95, 1.0)])
def test_the_auc_sees_a_difference_only_where_there_is_one(shift, low, high):
    rows = pd.concat([many(50, 0, 1), many(50, shift, 2, split="approximate")])
    (row,) = tables.auc_table(rows, ["model"], ["loss"], resamples=200).itertuples()
    assert low <= row.value <= high
    assert (row.low < 0.5 < row.high) == (shift == 0)


MEMBERS = [8, 8.5, 9, 9.5, 20, 1, 2, 3, 4, 5]
OTHERS = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]


def scored(members=MEMBERS, others=OTHERS, model="m"):
    """Return a row for each score, each a family of its own; a retain row plays no part."""
    splits = ["forget"] * len(members) + ["approximate"] * len(others) + ["retain"]
    families = [f"f{i}" for i in range(len(splits))]
    scores = [*members, *others, 99]
    return pd.DataFrame({"split": splits, "min_k_40": scores, "family": families, "model": model})


def test_an_unknown_score_is_refused_with_the_titles_that_there_are():
    with pytest.raises(ValueError, match="unknown score 'Min-4%'; choose one of: Min-20%.*zlib"):
        tables.auc_table(scored(), ["model"], ["Min-4%"])


def test_a_model_that_is_not_there_has_no_auc():
    rows = scored().assign(min_k_40=np.nan)
    found = tables.auc_table(rows, ["model"], ["Min-40%"])
    assert found[["value", "low", "high"]].isna().all(axis=None)
    assert found.n.tolist() == [0]


# ----------------------------------------------------------------------------- one and another


def test_log_ratio_by_hand():
    one, other = ROWS[:2], ROWS[2:3]
    found = tables.log_ratio(one, other, resamples=20)
    assert found.value == pytest.approx(20 / 8 - 1)
    easier = one.assign(nll=one.nll - one.tokens)  # by one nat a token
    assert tables.log_ratio(one, easier, resamples=20)[:3] == pytest.approx((1, 1, 1))


def others(ids):
    return [f"other {i}" for i in ids]


def test_log_ratio_of_the_same_documents_is_paired_and_narrower():
    rows = many(40)
    easier = rows.assign(nll=0.9 * rows.nll + np.random.default_rng(3).normal(size=40))
    paired = tables.log_ratio(rows, easier)
    unpaired = tables.log_ratio(rows, easier.assign(id=others(easier.id)))
    assert paired.value == unpaired.value > 0 and paired.low < paired.value < paired.high
    assert paired.high - paired.low < 0.5 * (unpaired.high - unpaired.low)


@pytest.mark.parametrize("paired", [True, False])
def test_log_ratio_resamples_families_not_documents(paired):
    def width(copies):
        rows = many(30, copies=copies)
        other = many(30, seed=1, copies=copies)
        other["id"] = rows.id if paired else others(rows.id)
        found = tables.log_ratio(rows, other, resamples=400)
        assert found.n == 30
        return found.high - found.low

    assert width(8) == pytest.approx(width(1), rel=0.2)


def test_log_ratios_of_the_groups_that_both_have():
    theirs = ROWS.assign(nll=ROWS.nll - 0.5 * ROWS.tokens)
    of_forget = theirs[theirs.split == "forget"]
    found = tables.log_ratios(ROWS, of_forget, ["model", "split"], "to retraining", resamples=20)
    assert found[["model", "split", "measure", "n"]].values.tolist() == [
        ["a", "forget", "to retraining", 2],
        ["b", "forget", "to retraining", 1],
    ]
    every = found[["value", "low", "high"]].to_numpy()
    assert every == pytest.approx(0.5)  # paired: the same in every resample
    alone = tables.log_ratios(ROWS, theirs, ["model"], "x", resamples=20)
    assert alone.model.tolist() == ["a", "b"]
    assert alone.value.tolist() == pytest.approx([0.5, 0.5])


# --------------------------------------------------------------------------------------- to read


def test_a_row_as_text():
    row = pd.Series({"value": 1.234, "low": -0.996, "high": 10.0, "measure": "x"})
    assert tables.text(row) == "1.23 [-1.00, 10.00]"
    assert tables.text(row, 1, "+") == "+1.2 [-1.0, +10.0]"
    large = {"value": 12345.6, "low": 9999.9, "high": 3.21e12}
    assert tables.text(large, 1) == "1.2e+04 [9999.9, 3.2e+12]"
    assert tables.text(large, 4, significant=True) == "1.235e+04 [1.000e+04, 3.210e+12]"
    assert tables.text(row, 4, significant=True) == "1.234 [-0.9960, 10.00]"
    assert tables.text(tables.NOT_AVAILABLE._asdict()) == "not available"


def test_wide_tables_keep_the_order_of_appearance():
    rows = [("z", 1, "p", 1.0), ("z", 1, "a", 2.0), ("b", 0, "p", 3.0)]
    table = pd.DataFrame(rows, columns=["model", "seed", "measure", "value"])
    table = table.assign(low=0.0, high=9.0)
    found = tables.wide(table, "model", "measure", digits=0)
    assert found.index.tolist() == ["z", "b"] and found.columns.tolist() == ["p", "a"]
    assert found.to_numpy().tolist() == [["1 [0, 9]", "2 [0, 9]"], ["3 [0, 9]", ""]]
    by_two = tables.wide(table, ["model", "seed"], "measure")
    assert by_two.index.tolist() == [("z", 1), ("b", 0)]
