"""The committed pages, and the committed tables that their numbers come from.

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

ROOT = Path(__file__).resolve().parents[1]
STUDY = ROOT / "figures" / "study"
PUBLISHED = ROOT / "figures" / "published"
EXPECTED = ROOT / "tests" / "expected" / "laptop.csv"
VALUES = ("value", "low", "high", "rerun_low", "rerun_high")


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
    """A table of the committed study."""
    return pd.read_csv(STUDY / f"{name}.csv")


@cache
def laptop():
    """The expected rows of the default profile, by (table, key)."""
    with EXPECTED.open(newline="", encoding="utf-8") as file:
        return {(row["table"], row["key"]): row for row in csv.DictReader(file)}


def of_study(name, **keys):
    """The one row of a table of the study with these keys; `a__b` stands for the column `a b`."""
    found = study(name)
    for column, wanted in keys.items():
        cells = found[column.replace("__", " ")]
        if pd.api.types.is_numeric_dtype(cells):
            wanted = float(wanted)
        found = found[cells == wanted]
    assert len(found) == 1, (name, keys, len(found))
    return found.iloc[0]


def claim(name):
    """The study's row of a claim."""
    return of_study("table14_claims", id=name)


def of_laptop(name, **keys):
    """The numbers of the one expected row of the default profile with these keys."""
    wanted = {f"{column.replace('__', ' ')}={value}" for column, value in keys.items()}
    found = []
    for (table, key), values in laptop().items():
        if table == name and wanted <= set(key.split("; ")):
            found.append(values)
    assert len(found) == 1, (name, keys, len(found))
    return {column: float(found[0][column] or "nan") for column in VALUES}


def value(name, **keys):
    """The value of the one expected row with these keys; `a__b` stands for the column `a b`."""
    return of_laptop(name, **keys)["value"]


def interval(row, digits=2, sign=""):
    """`value [low, high]` of a row as it stands in prose."""
    shown = [f"{row[name]:{sign}.{digits}f}" for name in ("value", "low", "high")]
    return f"{shown[0]} [{shown[1]}, {shown[2]}]"
