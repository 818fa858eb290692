"""The committed values of the tables: written by `expect`, compared at the end of a run.

A table is tidy. The columns left of `value` name the row and make its key; `value` and all that
stands right of it are results, so that no key depends on what came out. The values are those of the
profile whose outputs are committed.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from unlearn_utils.cache import paths
from unlearn_utils.runner.places import COMMITTED

EXPECTED = Path("tests", "expected", f"{COMMITTED}.csv")
CLAIMS = "table14_claims.csv"
SHOWN = 10  # values outside, at most
RERUN, EXACT, INTERVAL = "rerun", "exact", "interval"  # how a value is compared
NOT_COMPARED = "not compared"
DECIDED = {"supported", "not supported"}
CUT = "a cell too few or too many"

Key = tuple[str, str]  # the table, and `column=cell; column=cell`


class Result(NamedTuple):
    """What a row says beside its key, as text; an empty cell is not a number.

    Attributes:
        value: what was measured.
        low, high: of its 95% interval.
        rerun_low, rerun_high: where a further training would put the value, 19 times out of 20.
    """

    value: str
    low: str = ""
    high: str = ""
    rerun_low: str = ""
    rerun_high: str = ""


# -------------------------------------------------------------------------------- reading, writing


def measured(path: Path) -> Iterator[tuple[Key, Result]]:
    """Yield the key and the result of every row of a table, unless it has no column `value`.

    Raises:
        ValueError: the file is damaged; the message names it.
    """
    for row in _rows(path):
        if "value" not in row:
            break
        names = list(row)
        left = names[: names.index("value")]
        yield (path.stem, "; ".join(f"{name}={row[name]}" for name in left)), _result(path, row)


def _rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file, all of them whole.

    Raises:
        ValueError: the file is damaged; the message names it.
    """
    try:
        text = path.read_text(encoding="utf-8")
        rows = list(csv.DictReader(io.StringIO(text, newline=""), restval=CUT, restkey=CUT))
    except (OSError, ValueError, csv.Error) as error:
        raise ValueError(f"{path} is no table ({error})") from error
    if not text.endswith("\n") or any(CUT in row or CUT in row.values() for row in rows):
        raise ValueError(f"{path} is no whole table")
    return rows


def _result(path: Path, row: Mapping[str, str]) -> Result:
    """Return the result of a row, of which some columns may be missing.

    Raises:
        ValueError: a cell is neither empty nor a number; the message names the file.
    """
    cells = [row.get(name) or "" for name in Result._fields]
    try:
        for cell in cells:
            _number(cell)
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error})") from error
    return Result(*cells)


def _tables(figures: Path) -> list[Path]:
    return sorted(figures.glob("table*.csv"))


def expect(root: Path) -> None:
    """Make the present `figures/table*.csv` the committed values.

    Raises:
        FileNotFoundError: there is no such table.
        ValueError: a table is damaged, or two rows of it have one key.
    """
    rows = {}
    figures = paths.own_figures(root, COMMITTED)
    for key, result in (row for path in _tables(figures) for row in measured(path)):
        if key in rows:
            raise ValueError(
                f"{key[0]} has two rows with the key {key[1]!r}; "
                "a column left of 'value' must tell them apart"
            )
        rows[key] = result
    if not rows:
        raise FileNotFoundError(
            "figures/ holds no table*.csv with a column 'value'; execute ./run_all.sh first"
        )
    path = root / EXPECTED
    path.parent.mkdir(parents=True, exist_ok=True)
    with paths.whole(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["table", "key", *Result._fields])
        for key, result in rows.items():
            writer.writerow([*key, *result])
    print(f"{EXPECTED}: {len(rows)} values")


# --------------------------------------------------------------------------------------- one value


def kind(committed: Result) -> str:
    """Return how a value is compared: with a `rerun`, as `exact`, or with its `interval`.

    Not compared is what has no value, as of a path that jumped, and what came out the same in every
    replicate of the study, so that nothing says how far apart two runs may be.
    """
    if not committed.value:
        return NOT_COMPARED
    if committed.rerun_low and committed.rerun_high:
        if _same(_number(committed.rerun_low), _number(committed.rerun_high)):
            return NOT_COMPARED
        return RERUN
    if _same(_number(committed.low), _number(committed.high)):
        return EXACT
    return INTERVAL


def agrees(committed: Result, found: Result) -> bool:
    """Return whether a value is the committed one, or lies in the interval for it."""
    now = _number(found.value)
    if _same(now, _number(committed.value)):
        return True
    if kind(committed) == EXACT:
        return False
    low, high = bounds(committed)
    return _number(low) <= now <= _number(high)


def bounds(committed: Result) -> tuple[str, str]:
    """Return the interval that a value should lie in; that of an exact one may be empty."""
    if kind(committed) == RERUN:
        return committed.rerun_low, committed.rerun_high
    return committed.low, committed.high


def _same(one: float, other: float) -> bool:
    """Return whether two numbers are equal to the digits that tables have, or both are none."""
    if math.isnan(one) and math.isnan(other):
        return True
    return math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-9)


def _number(text: str) -> float:
    """Return the number that a table holds; an empty cell is not a number."""
    return float(text) if text else math.nan


# ------------------------------------------------------------------------------- what is said of it


def comparison(root: Path, figures: Path) -> str:
    """Return what is said at the end of a run about its tables; for information only.

    Args:
        root: holds the committed values.
        figures: the folder of the tables.
    """
    if not (root / EXPECTED).exists():
        return f"No committed values to compare with ({EXPECTED})."
    try:
        committed = _committed(root / EXPECTED)
    except ValueError as error:
        return f"Not compared: {error}. Git has the committed values: git checkout -- {EXPECTED}"
    found: dict[Key, Result] = {}
    lines = []
    for path in _tables(figures):
        try:
            found |= _found(path, committed)
        except ValueError as error:
            again = f"./run_all.sh --only {path.stem[5:7]} makes it again"
            lines.append(f"Not compared: {error}. {again}.")
            committed = {key: value for key, value in committed.items() if key[0] != path.stem}

    total = dict.fromkeys((RERUN, EXACT, INTERVAL), 0)
    apart: dict[str, list[Key]] = {name: [] for name in total}
    for key in [key for key in committed if key in found]:
        how = kind(committed[key])
        if how == NOT_COMPARED:
            continue
        total[how] += 1
        if not agrees(committed[key], found[key]):
            apart[how].append(key)

    lines += _counts(total, {name: len(keys) for name, keys in apart.items()})
    lines += verdicts(figures)
    missing, new = len(committed.keys() - found.keys()), len(found.keys() - committed.keys())
    if missing:
        lines.append(f"Committed values that are missing here: {missing}.")
    if new:
        lines.append(f"New values, without a committed one: {new}.")
    lines += _listed("differs", apart[EXACT], committed, found)
    lines += _listed("outside", apart[RERUN] + apart[INTERVAL], committed, found)
    return "\n".join(lines)


def _committed(path: Path) -> dict[Key, Result]:
    """Return the committed values.

    Raises:
        ValueError: the file is damaged.
    """
    committed = {}
    for row in _rows(path):
        if not {"table", "key", "value"} <= row.keys():
            raise ValueError(f"{path} has other columns")
        committed[row["table"], row["key"]] = _result(path, row)
    return committed


def _found(path: Path, committed: Mapping[Key, Result]) -> dict[Key, Result]:
    """Return the values of a table.

    Raises:
        ValueError: the file is damaged, or has no value at all where there are committed ones.
    """
    found = dict(measured(path))
    if not found and any(table == path.stem for table, _ in committed):
        raise ValueError(f"{path} has no values")
    return found


def _counts(total: Mapping[str, int], apart: Mapping[str, int]) -> list[str]:
    """Return a sentence for each way of comparing that some value has.

    Args:
        total: the values that are compared in that way.
        apart: those of them that do not agree.
    """
    lines = []
    inside = {name: total[name] - apart[name] for name in total}
    if total[RERUN]:
        share = inside[RERUN] / total[RERUN]
        lines.append(
            f"Of {total[RERUN]} trained values {inside[RERUN]} ({share:.1%}) lie where a rerun of "
            "the training is expected (95% by construction)."
        )
    if apart[EXACT]:
        lines.append(f"{apart[EXACT]} of {total[EXACT]} exact values differ.")
    elif total[EXACT]:
        lines.append(f"All {total[EXACT]} exact values are equal.")
    if total[INTERVAL]:
        lines.append(
            f"Of {total[INTERVAL]} values without a rerun interval {inside[INTERVAL]} lie inside "
            "the committed 95% interval, which is over documents alone."
        )
    return lines


def verdicts(figures: Path) -> list[str]:
    """Return the sentence on this run's verdicts, or none where there is nothing to compare with.

    figures: the folder with the table of notebook 14, whose columns are `id`, `verdict` (this
        run's) and `study` (the committed study's; empty where the study has none).
    """
    if not (figures / CLAIMS).exists():
        return []
    try:
        table = _rows(figures / CLAIMS)
    except ValueError as error:
        return [f"No verdicts: {error}."]
    rows = [row for row in table if {"id", "verdict", "study"} <= row.keys() and row["study"]]
    if not rows:
        return []
    same, here, there, turned = [], [], [], []
    for row in rows:
        verdict, _, _ = row["verdict"].partition(":")  # what follows says why it is inconclusive
        study, _, _ = row["study"].partition(":")
        if verdict == study:
            same.append(row["id"])
        elif {verdict, study} == DECIDED:
            turned.append(f"{row['id']} (committed: {study}, here: {verdict})")
        elif verdict in DECIDED:
            there.append(row["id"])
        else:
            here.append(row["id"])

    parts = [f"{len(same)} as in the committed study"]
    if here:
        parts.append(f"{len(here)} undecided from one replicate alone ({', '.join(here)})")
    if there:
        parts.append(f"{len(there)} undecided in the study alone ({', '.join(there)})")
    said = "none turned"
    if turned:
        said = f"turned: {', '.join(turned)}"
    return [f"Verdicts: {', '.join([*parts, said])}."]


def _listed(
    word: str, keys: Sequence[Key], committed: Mapping[Key, Result], found: Mapping[Key, Result]
) -> list[str]:
    """Return a line for each of the first values, and how many more there are."""
    lines = []
    for table, key in keys[:SHOWN]:
        then = committed[table, key]
        should = then.value or "none"
        if kind(then) != EXACT:
            should = " to ".join(bounds(then))
        now = found[table, key].value or "none"
        lines.append(f"  {word}: {table}, {key}: {now}, expected {should}")
    if len(keys) > SHOWN:
        lines.append(f"  and {len(keys) - SHOWN} more")
    return lines
