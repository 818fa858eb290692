"""The committed results: what the texts say about them, and what every later comparison assumes."""

import pandas as pd
import pytest
from committed import ROOT, STUDY, laptop, study


# ------------------------------------------------------------------------- what holds of the tables


def tables_with_values():
    for folder in (ROOT / "figures", STUDY):
        for path in sorted(folder.glob("table*.csv")):
            frame = pd.read_csv(path)
            if {"value", "low"} <= set(frame):
                yield path, frame


def test_every_number_has_an_interval_and_an_n():
    seen = 0
    for path, frame in tables_with_values():
        known = frame[frame["value"].notna()]
        assert known[["low", "high", "n"]].notna().all().all(), path
        assert (known.n > 0).all() and (known.low <= known.high).all(), path
        seen += len(known)
    assert seen > 500


def test_no_row_has_two_values():
    for path, frame in tables_with_values():
        keys = list(frame.columns[: frame.columns.get_loc("value")])
        twice = frame[frame.duplicated(keys, keep=False)]
        assert not len(twice), (path, twice[keys].head(2).to_dict("records"))


def test_a_run_of_the_default_profile_has_the_study_s_rows():
    """So every trained value has a rerun interval: keys never depend on results."""
    trained = 0
    for (table, key), values in laptop().items():
        file = STUDY / f"{table}.csv"
        exact = values["low"] == values["high"]
        if not file.exists() or exact or "by_replicate" not in study(table):
            continue
        if values["value"]:
            assert values["rerun_low"], (table, key)
            trained += 1
    assert trained > 300
