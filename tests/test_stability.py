"""Replicates that are left out: how often they lie where expected, and whether a verdict turns."""

import math

import numpy as np
import pandas as pd
import pytest

from unlearn_utils.core import replicates
from unlearn_utils.core.replicates import Spread, prediction
from unlearn_utils.findings import claims, stability

# From three values 0, 1, 2 a further one is expected in 1 +- 4.303 sqrt(4/3), which is 1 +- 4.97.
FAR = [0.0, 1.0, 2.0, 6.5]


def listed(values):
    return " ".join(f"{value:g}" for value in values)


def store(folder, name, rows):
    pd.DataFrame(rows).to_csv(folder / f"{name}.csv", index=False)


# --------------------------------------------------------------------------------------- coverage


def test_coverage_by_hand(tmp_path):
    """Only the fourth of `FAR` is not where the others expect it.

    Rows of three replicates, rows without a spread, and tables without replicates say nothing.
    """
    near = [3.0, 4.0, 5.0, 4.5]
    rows = [
        {"key": "far", "value": 1, "by_replicate": listed(FAR)},
        {"key": "near", "value": 1, "by_replicate": listed(near)},
        {"key": "few", "value": 1, "by_replicate": listed(FAR[:3])},
        {"key": "one", "value": 1, "by_replicate": "0.3"},
        {"key": "none", "value": 1, "by_replicate": None},
        {"key": "alike", "value": 1, "by_replicate": "0.1 0.1 0.1 0.1"},
    ]
    store(tmp_path, "table11_a", rows)
    store(tmp_path, "table12_counts", [{"key": "x", "value": 1}])
    store(tmp_path, "table13_few", rows[2:4])
    store(tmp_path, "table14_b", rows[1:2])
    store(tmp_path, "fig14_c", rows)
    low, high = prediction(Spread.of(np.array(FAR[:3])))
    assert high < FAR[3] and high == pytest.approx(1 + 4.303 * math.sqrt(4 / 3), abs=1e-3)

    found = stability.coverage(tmp_path).set_index("table")
    assert found.index.tolist() == ["table11_a", "table14_b", stability.EVERY]
    assert found["rows"].tolist() == [2, 1, 3]
    assert found.predictions.tolist() == [8, 4, 12]
    assert found.inside.tolist() == [7, 4, 11]
    assert found.share.tolist() == pytest.approx([7 / 8, 1, 11 / 12])
    widths = [replicates.covered(np.array(values))[1] for values in (FAR, near)]
    assert found.width.tolist()[:2] == pytest.approx([np.mean(widths), widths[1]])
    assert np.isnan(found.width.iloc[2])
    relative = np.array(widths) / [np.mean(FAR), np.mean(near)]
    assert found.relative.tolist()[:2] == pytest.approx([relative.mean(), relative[1]])


def test_a_folder_without_replicates_has_no_coverage(tmp_path):
    store(tmp_path, "table12_counts", [{"key": "x", "value": 1}])
    assert len(stability.coverage(tmp_path)) == 0


# ----------------------------------------------------------------------------------------- verdicts


def of_study(**values):
    """The study's table of claims, by id: sense, threshold, and the values of the replicates."""
    rows = []
    for name, (sense, threshold, each) in values.items():
        row = {"id": name, "sense": sense, "threshold": threshold, "n": 30, "documents_sd": 0.0}
        rows.append(row | {"by_replicate": listed(each)})
    return pd.DataFrame(rows)


NEAR = [0.9, 1.0, 1.1, 1.0, 1.05]


def test_a_clear_verdict_neither_turns_nor_opens():
    found = stability.labels(of_study(F1=("above", 0.2, NEAR), F3=("below", 0.2, NEAR)))
    assert len(found) == 10 and found.left_out.tolist() == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert set(found[found.id == "F1"].frozen) == {"supported"}
    assert set(found[found.id == "F3"].alone) == {"not supported"}
    assert not found.turned.any() and not found.opened.any()


def test_one_replicate_that_is_far_off_turns_a_verdict():
    """The other four say "above 0.2", the last by its own value "below"."""
    found = stability.labels(of_study(F1=("above", 0.2, [0.9, 1.0, 1.1, 1.0, -0.5])))
    last = found.iloc[-1]
    assert (last.frozen, last.alone) == ("supported", "not supported")
    assert last.turned and not last.opened
    assert not found.turned[:-1].any()


def test_one_replicate_that_is_near_the_threshold_opens_a_verdict():
    found = stability.labels(of_study(F1=("above", 0.2, [0.9, 1.0, 1.1, 1.0, 0.3])))
    last = found.iloc[-1]
    assert (last.frozen, last.alone) == ("supported", "inconclusive")
    assert last.opened and not last.turned
    assert set(found.frozen[:-1]) == {"inconclusive"} and not found.opened[:-1].any()


def test_two_rows_of_one_claim_are_one_verdict():
    table = of_study(**{"C2": ("above", 0.2, NEAR), "C2 window": ("above", 2.0, NEAR)})
    found = stability.labels(table)
    assert found.id.tolist() == ["C2"] * 5
    assert set(found.frozen) == set(found.alone) == {"inconclusive: robustness yes, window no"}
    assert not found.turned.any() and not found.opened.any()


def test_claims_with_few_replicates_are_left_out():
    table = of_study(F1=("above", 0.2, NEAR), F3=("above", 0.2, NEAR[:3]))
    table.loc[len(table)] = ["C1", "above", 1e5, 2, math.nan, None]
    assert set(stability.labels(table).id) == {"F1"}


def test_what_is_left_is_judged_as_the_study_and_as_a_run_are():
    """Five values with the spread of the documents: as `estimate` says of such draws."""
    generator = np.random.default_rng(0)
    values = generator.normal(1, 0.1, size=5)
    documents = generator.normal(0, 0.05, size=400)
    draws = np.hstack([values[:, None], values[:, None] + documents])
    table = of_study(F1=("above", 0.9, values)).assign(documents_sd=np.std(documents, ddof=1))
    row = next(table.itertuples())

    expected = replicates.estimate(draws, row.n)
    found = stability.of_several(values, row)
    for name in ("value", "low", "high", "rerun_low", "rerun_high", "replicates"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name))

    one = np.hstack([[1.2], 1.2 + documents])[None]
    expected = replicates.estimate(one, row.n, Spread.of(values))
    found = stability.of_one(1.2, values, row)
    for name in ("value", "low", "high", "replicates"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name))
    assert claims.verdict("above", 0.9, found) == claims.verdict("above", 0.9, expected)
