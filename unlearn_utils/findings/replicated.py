"""Tables of values over replicates.

A profile with one replicate borrows what the committed study knows of the others: the spread
between replicates of the same row. Where the study has no such row, the interval is that of the
documents alone, and there is no rerun interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from unlearn_utils.core import replicates
from unlearn_utils.core.arrays import Floats
from unlearn_utils.core.replicates import PLAIN, Scale, Spread
from unlearn_utils.findings import plots
from unlearn_utils.profiles import LAPTOP, Profile


@dataclass(frozen=True)
class Row:
    """One row of a table before its intervals are known.

    Attributes:
        keys: the columns that name it.
        draws: (replicates, 1 + resamples), the first as measured.
        n: families of documents, of the smallest group.
        scale: on which replicates are averaged.
    """

    keys: Mapping
    draws: Floats
    n: int
    scale: Scale = PLAIN


def table(profile: Profile, name: str, rows: Sequence[Row]) -> pd.DataFrame:
    """Write and return a table, one line a row.

    Returns:
        the keys, then value, low, high, n, replicates, rerun_low, rerun_high, by_replicate.
    """
    found = estimates(profile, name, rows)
    plots.save_table(profile, name, found)
    return found


def estimates(profile: Profile, name: str, rows: Sequence[Row]) -> pd.DataFrame:
    """Return a table as `table` does, without writing it.

    name: of the table in the committed study whose spreads are borrowed.
    """
    known = spreads(profile, name)
    lines = []
    for row in rows:
        spread = known.get(key_of(row.keys))
        if spread is not None and row.scale.inverse is not None:
            values = row.scale.inverse(np.array(spread))
        else:
            values = spread
        borrowed = None if values is None else Spread.of(values)
        found = replicates.estimate(row.draws, row.n, borrowed, row.scale)
        lines.append({**row.keys, **found._asdict()})
    return pd.DataFrame(lines)


def spreads(profile: Profile, name: str) -> dict[tuple[str, ...], Floats]:
    """Return the values of the study's replicates by the key of their row.

    They are for the profile whose one replicate is like each of the study's, and nothing for any
    other.
    """
    file = plots.study_file(name)
    if profile.name != LAPTOP.name or not file.exists():
        return {}
    study = pd.read_csv(file, dtype={"by_replicate": str})
    if "by_replicate" not in study:
        return {}
    keys = list(study.columns[: study.columns.get_loc("value")])  # as every table is laid out
    found = {}
    for row in study.to_dict("records"):
        values = values_of(row["by_replicate"])
        if len(values) > 2:
            found[key_of({column: row[column] for column in keys})] = values
    return found


def values_of(text: object) -> Floats:
    """Return the values of replicates that a cell lists."""
    return np.array([float(word) for word in str(text).split() if word != "nan"])


def key_of(keys: Mapping) -> tuple[str, ...]:
    """Return what names a row, the same from a run and from a file."""
    found = []
    for name in sorted(keys):
        value = keys[name]
        if isinstance(value, float | np.floating | int | np.integer):
            value = f"{value:.6g}"
        found.append(f"{name}={value}")
    return tuple(found)
