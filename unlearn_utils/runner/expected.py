"""The committed values of the tables: written by `expect`, compared at the end of a run.

A table is tidy: the columns `value`, `low`, `high` and `n`, the interval being the 95% one; every
other column is a key. The values are those of the profile whose outputs are committed.
"""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

EXPECTED = Path("tests", "expected", "laptop.csv")
INTERVAL = ("value", "low", "high")
MEASURES = (*INTERVAL, "n")
VERDICTS = ("same", "within", "outside", "missing", "new")
SHOWN = 10  # values outside, at most


def measured(figures: Path) -> Iterator[tuple[tuple[str, str], list[str]]]:
    """Yield ((table, key), [value, low, high]) of every row of `table*.csv` that has a value."""
    for path in sorted(figures.glob("table*.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if "value" not in row:
                    break
                names = [name for name in row if name not in MEASURES]
                key = "; ".join(f"{name}={row[name]}" for name in names)
                yield (path.stem, key), [row.get(name) or "" for name in INTERVAL]


def expect(root: Path) -> None:
    """Make the present `figures/table*.csv` the committed values.

    Raises:
        FileNotFoundError: there is no such table.
    """
    rows = dict(measured(root / "figures"))
    if not rows:
        raise FileNotFoundError(
            "figures/ holds no table*.csv with a column 'value'; execute ./run_all.sh first"
        )
    path = root / EXPECTED
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["table", "key", *INTERVAL])
        for key, values in rows.items():
            writer.writerow([*key, *values])
    print(f"{EXPECTED}: {len(rows)} values")


def verdict(expected: list[str] | None, found: list[str] | None) -> str:
    """Return how a value compares with the committed one.

    It is `same` to four digits, `within` the committed interval, `outside` of it, `missing` or
    `new`.

    Args:
        expected: the committed value, low and high; None: there are none.
        found: the present ones.
    """
    if expected is None:
        return "new"
    if found is None:
        return "missing"
    value, low, high = (_number(text) for text in expected)
    now = _number(found[0])
    both_missing = math.isnan(now) and math.isnan(value)
    if both_missing or math.isclose(now, value, rel_tol=1e-4, abs_tol=1e-9):
        return "same"
    if low <= now <= high:
        return "within"
    return "outside"


def _number(text: str) -> float:
    """Return the number that a table holds; an empty cell is not a number."""
    return float(text) if text else math.nan


def comparison(root: Path, figures: Path) -> str:
    """Return what is said at the end of a run about its tables; for information only.

    Args:
        root: holds the committed values.
        figures: the folder of the tables.
    """
    if not (root / EXPECTED).exists():
        return f"No committed values to compare with ({EXPECTED})."
    expected = {}
    with (root / EXPECTED).open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            expected[row["table"], row["key"]] = [row[name] for name in INTERVAL]
    found = dict(measured(figures))
    verdicts = {key: verdict(expected.get(key), found.get(key)) for key in expected | found}

    counts = Counter(verdicts.values())
    said = ", ".join(f"{counts[name]} {name}" for name in VERDICTS)
    legend = (
        "(within: inside the committed 95% interval; for information, the exit code does not "
        "depend on it)"
    )
    lines = [f"Compared with the committed values: {said} {legend}"]
    outside = [key for key, told in verdicts.items() if told == "outside"]
    for table, key in outside[:SHOWN]:
        lines.append(f"  outside: {table}, {key}")
    return "\n".join(lines)
