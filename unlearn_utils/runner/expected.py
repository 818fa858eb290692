"""The committed values of the tables: written by `expect`, compared at the end of a run of the `laptop` profile.

A table is tidy: the columns `value`, `low`, `high` and `n`, the interval being the 95% one; every other column is a key.
"""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

EXPECTED = Path("tests", "expected", "laptop.csv")
MEASURES = ("value", "low", "high", "n")


def measured(figures: Path) -> Iterator[tuple[tuple[str, str], list[str]]]:
    """((table, key), [value, low, high]) of every row of `table*.csv`; tables without a column `value` have none."""
    for path in sorted(figures.glob("table*.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if "value" in row:
                    key = "; ".join(f"{name}={text}" for name, text in row.items() if name not in MEASURES)
                    yield (path.stem, key), [row.get(name) or "" for name in MEASURES[:3]]


def expect(root: Path) -> None:
    """Make the present `figures/table*.csv` the committed values."""
    rows = dict(measured(root / "figures"))
    if not rows:
        raise FileNotFoundError("figures/ holds no table*.csv with a column 'value'; execute ./run_all.sh first")
    path = root / EXPECTED
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["table", "key", "value", "low", "high"])
        writer.writerows([*key, *values] for key, values in rows.items())
    print(f"{EXPECTED}: {len(rows)} values")


def verdict(expected: list[str] | None, found: list[str] | None) -> str:
    """`same` to four digits, `within` the committed interval, `outside`, `missing` or `new`."""
    if expected is None or found is None:
        return "new" if expected is None else "missing"
    value, low, high = (float(x) if x else math.nan for x in expected)
    now = float(found[0]) if found[0] else math.nan
    if math.isclose(now, value, rel_tol=1e-4, abs_tol=1e-9) or (math.isnan(now) and math.isnan(value)):
        return "same"
    return "within" if low <= now <= high else "outside"


def comparison(root: Path, figures: Path) -> str:
    """What is said at the end of a run of the committed profile about its tables; for information only."""
    if not (root / EXPECTED).exists():
        return f"No committed values to compare with ({EXPECTED})."
    with (root / EXPECTED).open(newline="", encoding="utf-8") as file:
        expected = {(row["table"], row["key"]): [row["value"], row["low"], row["high"]] for row in csv.DictReader(file)}
    found = dict(measured(figures))
    verdicts = {key: verdict(expected.get(key), found.get(key)) for key in expected | found}
    counts = Counter(verdicts.values())
    said = ", ".join(f"{counts[name]} {name}" for name in ("same", "within", "outside", "missing", "new"))
    outside = [f"  outside: {table}, {key}" for (table, key), v in verdicts.items() if v == "outside"]
    legend = "(within: inside the committed 95% interval; for information, the exit code does not depend on it)"
    return "\n".join([f"Compared with the committed values: {said} {legend}", *outside[:10]])
