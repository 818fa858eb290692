"""Tables of values over replicates: keys, columns, and what one replicate borrows of others."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from unlearn_utils.cache import paths
from unlearn_utils.core.replicates import RATIO, SHARE, Estimate
from unlearn_utils.findings import plots, replicated
from unlearn_utils.findings.replicated import Row, key_of
from unlearn_utils.profiles import LAPTOP, SMOKE, STUDY

SIX = np.array([[1.0], [2.0], [3.0], [4.0], [5.0], [6.5]])
RESULTS = list(Estimate._fields)


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    """A project without tables."""
    monkeypatch.setattr(paths, "PROJECT", tmp_path)
    monkeypatch.delenv("UNLEARN_FIGURES", raising=False)
    return tmp_path


def draws(first, deviation=0.1):
    """Return (replicates, 3) draws around the first of each replicate."""
    first = np.atleast_2d(first)
    return np.hstack([first, first - deviation, first + deviation])


def study_has(name, *rows):
    """Write a table of the study."""
    return replicated.table(STUDY, name, rows)


def one(profile, name, row):
    """Return the only line of a table of one row."""
    (line,) = replicated.estimates(profile, name, [row]).to_dict("records")
    return line


# ----------------------------------------------------------------------------------------- columns


def test_keys_stand_left_of_the_value_and_results_right_of_it():
    row = Row({"method": "adversarial", "tau": 0.1}, draws(SIX), 7)
    found = replicated.estimates(STUDY, "table", [row])
    assert list(found) == ["method", "tau", *RESULTS]
    assert found["value"][0] == pytest.approx(21.5 / 6)
    assert (found.n[0], found.replicates[0]) == (7, 6)
    assert found.by_replicate[0] == "1 2 3 4 5 6.5"


def test_rows_stay_in_order(project):
    names = ["c", "a", "b"]
    rows = [Row({"method": name}, draws([[place]]), 3) for place, name in enumerate(names)]
    found = replicated.table(SMOKE, "table", rows)
    assert found.method.tolist() == names and found["value"].tolist() == [0, 1, 2]


def test_a_table_is_written_to_the_folder_of_its_profile(project):
    found = study_has("table11_x", Row({"measure": "m"}, draws(SIX), 7))
    file = project / "figures" / "study" / "table11_x.csv"
    assert list(pd.read_csv(file)) == list(found)
    assert not (project / "figures" / "table11_x.csv").exists()
    replicated.estimates(STUDY, "table11_y", [Row({"measure": "m"}, draws(SIX), 7)])
    assert not (project / "figures" / "study" / "table11_y.csv").exists()


# -------------------------------------------------------------------------------------- borrowing


KEYS = {"target_domain": "arxiv", "retain documents": "all", "step": 16, "tau": 0.1 + 0.2}


def test_one_replicate_borrows_the_study_s_spread():
    study_has("table", Row(KEYS, draws(SIX), 7), Row({**KEYS, "step": 32}, draws(SIX * 9), 7))
    found = one(LAPTOP, "table", Row(KEYS, draws([[2.5]]), 7))
    mean, deviation = SIX.mean(), SIX.std(ddof=1)
    reach = 2.570582 * deviation * math.sqrt(7 / 6)
    assert found["value"] == 2.5
    assert found["rerun_low"] == pytest.approx(mean - reach, rel=1e-5)
    assert found["rerun_high"] == pytest.approx(mean + reach, rel=1e-5)
    assert found["high"] - 2.5 == pytest.approx(2.57 * deviation, rel=0.01)
    assert (found["replicates"], found["by_replicate"]) == (1, "2.5")


def test_another_row_or_table_lends_nothing():
    study_has("table", Row(KEYS, draws(SIX), 7))
    row = Row({**KEYS, "tau": 0.31}, draws([[2.5]]), 7)
    for found in (one(LAPTOP, "table", row), one(LAPTOP, "other", Row(KEYS, row.draws, 7))):
        assert math.isnan(found["rerun_low"]) and math.isnan(found["rerun_high"])
        assert found["low"] == pytest.approx(2.5 - 2.446912 * 0.1 * math.sqrt(2), rel=1e-5)


@pytest.mark.parametrize("profile", [SMOKE, replace(LAPTOP, name="mine")])
def test_no_other_profile_borrows(profile):
    study_has("table", Row(KEYS, draws(SIX), 7))
    assert math.isnan(one(profile, "table", Row(KEYS, draws([[2.5]]), 7))["rerun_low"])


def test_two_replicates_with_a_value_lend_nothing():
    few = SIX.copy()
    few[2:] = np.nan
    study_has("table", Row(KEYS, draws(few), 7))
    assert replicated.spreads(LAPTOP, "table") == {}
    few[2] = 3.0
    study_has("table", Row(KEYS, draws(few), 7))
    (values,) = replicated.spreads(LAPTOP, "table").values()
    assert values.tolist() == [1, 2, 3]


def test_a_row_without_a_value_lends_nothing():
    study_has("table", Row(KEYS, draws(SIX * np.nan), 7), Row({**KEYS, "step": 1}, draws(SIX), 7))
    assert len(replicated.spreads(LAPTOP, "table")) == 1


def test_a_table_without_replicates_lends_nothing():
    plots.save_table(STUDY, "table", pd.DataFrame({"method": ["a"], "value": [1.0]}))
    assert replicated.spreads(LAPTOP, "table") == {}


def test_what_is_averaged_in_nats_is_borrowed_in_nats():
    """The study's values, as shown, are e to the six."""
    study_has("table", Row(KEYS, draws(SIX), 7, RATIO))
    found = one(LAPTOP, "table", Row(KEYS, draws([[2.5]]), 7, RATIO))
    reach = 2.570582 * SIX.std(ddof=1) * math.sqrt(7 / 6)
    assert found["value"] == pytest.approx(math.exp(2.5))
    assert math.log(found["rerun_high"]) == pytest.approx(SIX.mean() + reach, rel=1e-4)


def test_a_share_is_borrowed_and_cut():
    study_has("table", Row(KEYS, draws(SIX / 10), 7, SHARE))
    found = one(LAPTOP, "table", Row(KEYS, draws([[0.25]]), 7, SHARE))
    assert (found["rerun_low"], found["low"]) == (0.0, 0.0)


def test_by_replicate_comes_back_with_six_digits(project):
    values = np.random.default_rng(0).normal(0, 1, (6, 1)) / 3
    study_has("table", Row(KEYS, draws(values), 7))
    (found,) = replicated.spreads(LAPTOP, "table").values()
    assert found == pytest.approx(values[:, 0], rel=1e-5)


@pytest.mark.parametrize(
    ("text", "values"), [("1 nan -2e-05", [1, -2e-5]), (math.nan, []), ("", [])]
)
def test_values_of_a_cell(text, values):
    assert replicated.values_of(text).tolist() == values


# ------------------------------------------------------------------------------------------- keys


KINDS = {  # of a key: values that a run may give
    "float": [3e-4, 1.25e-4, 5e-5, 0.1 + 0.2, 1 / 3, 2.0],
    "integer": [0, 7, 123456],
    "numpy": [np.float64(0.3), np.float64(2.0), np.float64(1e-5)],
    "numpy integer": [np.int64(3), np.int64(4)],
    "words": ["do nothing", "mean", "gradient_ascent"],
    "words and numbers as words": ["15", "60", "all"],
    "numbers as words": ["15", "60"],
    "negative": [-0.5, -0.25, 0.0],
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_key_is_the_same_from_a_run_and_from_its_file(kind):
    rows = [Row({"measure": "m", "key": value}, draws(SIX), 7) for value in KINDS[kind]]
    study_has("table", *rows)
    known = replicated.spreads(LAPTOP, "table")
    assert set(known) == {key_of(row.keys) for row in rows}
    assert len(known) == len(rows)


def test_the_taus_of_a_curve_have_keys_of_their_own():
    taus = np.linspace(0.0, 0.8, 33)
    rows = [Row({"method": "adversarial", "tau": tau}, draws(SIX), 7) for tau in taus]
    study_has("figure", *rows)
    assert set(replicated.spreads(LAPTOP, "figure")) == {key_of(row.keys) for row in rows}
    assert len({key_of(row.keys) for row in rows}) == 33


def test_a_key_does_not_depend_on_the_order_of_its_columns():
    assert key_of({"a": 1, "b": "x"}) == key_of({"b": "x", "a": 1.0})
    assert key_of({"a": 1, "b": "x"}) != key_of({"a": "x", "b": 1})
