"""Would somebody who runs it again find the same? Asked of the study's own replicates.

Each replicate is left out in turn, and predicted from the others, as a run of the default profile
is predicted from the study. The tables hold the same few replicates, so that their rows are not
independent of each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from unlearn_utils.core import replicates
from unlearn_utils.core.arrays import Floats
from unlearn_utils.core.replicates import NOT_AVAILABLE, Estimate, Spread
from unlearn_utils.findings import claims
from unlearn_utils.findings.replicated import values_of

LEAST = 4  # replicates that a row must have, so that three are left to predict from
EVERY = "every table"  # in the place of a table's name
DECIDED = {claims.SUPPORTED, claims.NOT_SUPPORTED}


# --------------------------------------------------------------------------------------- coverage


def coverage(folder: Path) -> pd.DataFrame:
    """Return how often the replicate that is left out lies where the others expect it, by table.

    By construction it is 95%. Values are compared as they are shown, perplexities too. A row whose
    replicates are all equal says nothing, and is left out.

    Args:
        folder: of the study's tables.

    Returns:
        table (the last is `EVERY`), rows, predictions, inside (how many of them), share, width
        (the median over rows of the width of the interval, in the units of the table), relative
        (the median of the width over the size of the row's value).
    """
    lines = []
    every: list[Floats] = []
    for file in sorted(folder.glob("table*.csv")):
        known = rows_of_replicates(file)
        every += known
        if known:
            lines.append({"table": file.stem, **_covered(known)})
    if every:
        lines.append({"table": EVERY, **_covered(every), "width": np.nan})  # of many units
    columns = ["table", "rows", "predictions", "inside", "share", "width", "relative"]
    return pd.DataFrame(lines, columns=columns)


def rows_of_replicates(file: Path) -> list[Floats]:
    """Return the values of the replicates of each row of a table that differ between them."""
    table = pd.read_csv(file, dtype={"by_replicate": str})
    if "by_replicate" not in table:
        return []
    values = [values_of(text) for text in table["by_replicate"].dropna()]
    return [each for each in values if len(each) >= LEAST and np.ptp(each) > 0]


def _covered(rows: Sequence[Floats]) -> dict:
    """Return the counts of one table."""
    inside = 0
    widths = []
    for values in rows:
        found, width = replicates.covered(values)
        inside += found
        widths.append(width)
    sizes = np.abs([values.mean() for values in rows])
    predictions = sum(map(len, rows))
    return {
        "rows": len(rows),
        "predictions": predictions,
        "inside": inside,
        "share": inside / predictions,
        "width": float(np.median(widths)),
        "relative": float(np.median(np.array(widths) / np.maximum(sizes, np.finfo(float).tiny))),
    }


# ----------------------------------------------------------------------------------------- verdicts


def labels(table: pd.DataFrame) -> pd.DataFrame:
    """Return the verdict of each claim without one replicate, and that of this replicate alone.

    The one borrows the others' spread, as a run of the default profile does. The spread over
    documents is that of the mean of all replicates, in either case.

    Args:
        table: the study's claims, of `claims.measure_all`.

    Returns:
        id (of the claim), left_out (the place of the replicate, from 1), frozen (the verdict of the
        others), alone (of the one), turned (one of the two is supported, the other not supported),
        opened (the others decide, the one does not).
    """
    frozen: dict[int, dict[str, str]] = {}
    alone: dict[int, dict[str, str]] = {}
    for row in table.itertuples():
        values = values_of(row.by_replicate)
        if len(values) < LEAST:
            continue
        for place, value in enumerate(values):
            others = np.delete(values, place)
            frozen.setdefault(place, {})[row.id] = _verdict(row, of_several(others, row))
            alone.setdefault(place, {})[row.id] = _verdict(row, of_one(value, others, row))
    lines = []
    for place in frozen:
        of_one_alone = claims.of_claims(alone[place])
        for claim, told in claims.of_claims(frozen[place]).items():
            verdicts = (told.partition(":")[0], of_one_alone[claim].partition(":")[0])
            lines.append(
                {
                    "id": claim,
                    "left_out": place + 1,
                    "frozen": told,
                    "alone": of_one_alone[claim],
                    "turned": set(verdicts) == DECIDED,
                    "opened": verdicts[0] in DECIDED and verdicts[1] == claims.OPEN,
                }
            )
    columns = ["id", "left_out", "frozen", "alone", "turned", "opened"]
    return pd.DataFrame(lines, columns=columns)


def _verdict(row: tuple, found: Estimate) -> str:
    """Return the verdict of a row of the table of claims, for another estimate."""
    return claims.verdict(row.sense, row.threshold, found)


def of_several(values: Floats, row: tuple) -> Estimate:
    """Return the estimate of several replicates.

    Args:
        values: one a replicate.
        row: of the table of claims; says what documents add.
    """
    known = Spread.of(values)
    half = _half_width(known, known.replicates, row)
    return _estimate(known.mean, half, known.replicates, replicates.prediction(known))


def of_one(value: float, others: Floats, row: tuple) -> Estimate:
    """Return the estimate of one replicate that borrows the spread of others, not their place.

    Args:
        value: of the one.
        others: values, one a replicate.
        row: of the table of claims; says what documents add.
    """
    known = Spread.of(others)
    return _estimate(value, _half_width(known, 1, row), 1, replicates.prediction(known))


def _half_width(known: Spread, over: int, row: tuple) -> float:
    """Return half the width of the interval of a mean over some replicates of known spread."""
    of_training = known.deviation**2 / over
    return replicates.half_width(of_training, known.replicates - 1, row.documents_sd**2, row.n - 1)


def _estimate(value: float, half: float, over: int, rerun: tuple[float, float]) -> Estimate:
    """Return an estimate with these intervals."""
    return NOT_AVAILABLE._replace(
        value=value,
        low=value - half,
        high=value + half,
        replicates=over,
        rerun_low=rerun[0],
        rerun_high=rerun[1],
    )
