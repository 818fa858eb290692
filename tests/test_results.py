"""The committed results: every number in prose is that of a committed table.

Two sets of tables are committed. The study's lie in figures/study/, and no other run writes there.
Those of the default profile are in tests/expected/laptop.csv, which only `expect` writes: so the
texts stay true after a run on another machine, which writes figures/ anew.
"""

import csv
import json
import re
from functools import cache
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parents[1]
STUDY = ROOT / "figures" / "study"
EXPECTED = ROOT / "tests" / "expected" / "laptop.csv"
DOMAINS = ["arxiv", "books", "github"]
NUMBER = re.compile(r"\{(\w+)\}")


# ---------------------------------------------------------------------------- pages and tables


@cache
def words(page):
    """The text of a page, or of a notebook's words, as one line: sentences are wrapped anywhere."""
    text = (ROOT / page).read_text(encoding="utf-8")
    if page.endswith(".ipynb"):
        cells = json.loads(text)["cells"]
        text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    return re.sub(r"\s+", " ", text)


@cache
def study(name):
    return pd.read_csv(STUDY / f"{name}.csv")


@cache
def laptop():
    """The expected rows: {(table, key): {value, low, high, rerun_low, rerun_high}}."""
    with EXPECTED.open(newline="", encoding="utf-8") as file:
        return {(row["table"], row["key"]): row for row in csv.DictReader(file)}


def row(name, **keys):
    """The one row of a table of the study with these keys."""
    found = study(name)
    for column, value in keys.items():
        found = found[found[column] == value]
    assert len(found) == 1, (name, keys, len(found))
    return found.iloc[0]


def of_laptop(name, **keys):
    """The one expected row of the default profile with these keys."""
    wanted = {f"{column}={value}" for column, value in keys.items()}
    found = []
    for (table, key), values in laptop().items():
        if table == name and wanted <= set(key.split("; ")):
            found.append(values)
    assert len(found) == 1, (name, keys, len(found))
    return {column: float(value or "nan") for column, value in found[0].items() if column in VALUES}


VALUES = ("value", "low", "high", "rerun_low", "rerun_high")


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
