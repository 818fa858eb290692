"""Tidy tables out of rows of measurements: a value, its 95% interval and its n for every group.

Rows are one a document: `id`, `family` (documents of one family are resampled together), `split`,
and the measurements. Every table has the columns that it is grouped by, then measure, value, low,
high, n.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from unlearn_utils.core import intervals, membership
from unlearn_utils.core.intervals import Interval

NOT_AVAILABLE = Interval(np.nan, np.nan, np.nan, 0)  # of a model that is not there


class Measure(NamedTuple):
    """A measure of many documents: a sum over a sum.

    Attributes:
        above: the column whose sum is divided.
        below: the column whose sum it is divided by; None: the number of documents.
        function: of the ratio; None: the ratio itself.
    """

    above: str
    below: str | None = None
    function: Callable[[np.ndarray], np.ndarray] | None = None


MEASURES = {
    "perplexity": Measure("nll", "tokens", np.exp),
    "accuracy": Measure("correct", "tokens"),  # share of tokens whose argmax is the true token
    "extraction strength": Measure("extraction"),
    "ROUGE-L": Measure("rouge_l"),
}


# --------------------------------------------------------------------------- measures of a group


def summarise(
    rows: pd.DataFrame,
    by: Sequence[str],
    measures: Sequence[str],
    seed: int = 0,
    resamples: int = 1000,
) -> pd.DataFrame:
    """Return each measure of each group, bootstrapped over families of documents.

    Args:
        rows: one a document.
        by: columns that a group has in common.
        measures: keys of `MEASURES`.
        seed, resamples: of the bootstrap.

    Returns:
        Columns `by`, measure, value, low, high, n (families).
    """
    generator = np.random.default_rng(seed)
    table = []
    for group, part in rows.groupby(list(by), sort=False):
        weights = draw_weights(part, generator, resamples)
        for measure in measures:
            draws = _weighted(part, MEASURES[measure], weights)
            table.append(_row(by, group, measure, _interval(draws, part)))
    return pd.DataFrame(table)


def draw_weights(rows: pd.DataFrame, generator: np.random.Generator, resamples: int) -> np.ndarray:
    """Return how often each document counts: (1 + resamples, documents).

    In the first row it is once; in each of the others, as often as its family was drawn.
    """
    units = intervals.cluster_codes(len(rows), rows.family)
    drawn = intervals.draw_counts(units, resamples, generator)
    return np.vstack([np.ones(len(rows)), drawn])


def _weighted(rows: pd.DataFrame, measure: Measure, weights: np.ndarray) -> np.ndarray:
    """Return the measure under each row of weights."""
    above = weights @ rows[measure.above].to_numpy()
    if measure.below is None:
        below = weights @ np.ones(len(rows))
    else:
        below = weights @ rows[measure.below].to_numpy()
    ratio = above / below
    if measure.function is None:
        return ratio
    return measure.function(ratio)


def _interval(draws: np.ndarray, *groups: pd.DataFrame) -> Interval:
    """Return the first draw as the value; n is the families of the smallest group."""
    families = min(group.family.nunique() for group in groups)
    return intervals.interval(draws[0], draws[1:], 0.95, families)


def _row(by: Sequence[str], group: Sequence[Hashable], measure: str, found: Interval) -> dict:
    """Return one row of a table."""
    return {**dict(zip(by, group, strict=True)), "measure": measure, **found._asdict()}


# ------------------------------------------------------------------------------------ membership


class Sides(NamedTuple):
    """Forget documents (members) and approximate ones (non-members) of one group."""

    group: tuple[Hashable, ...]
    members: pd.DataFrame
    non_members: pd.DataFrame

    def scores(self, score: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the score of each document of either side; ValueError for an unknown title."""
        column = membership.get_score(score).column
        return self.members[column].to_numpy(), self.non_members[column].to_numpy()

    @property
    def families(self) -> tuple[np.ndarray, np.ndarray]:
        """The family of each document of either side."""
        return self.members.family.to_numpy(), self.non_members.family.to_numpy()


def _sides(rows: pd.DataFrame, by: Sequence[str]) -> Iterator[Sides]:
    """Yield the sides of each group."""
    for group, part in rows.groupby(list(by), sort=False):
        yield Sides(group, part[part.split == "forget"], part[part.split == "approximate"])


def auc_table(
    rows: pd.DataFrame,
    by: Sequence[str],
    scores: Sequence[str],
    seed: int = 0,
    resamples: int = 1000,
) -> pd.DataFrame:
    """Return the AUC of forget documents against approximate ones, not folded.

    Args:
        rows, by, seed, resamples: as in `summarise`.
        scores: titles in `membership.SCORES`.

    Returns:
        Columns `by`, measure, value, low, high, n; not a number where no document has the score.

    Raises:
        ValueError: an unknown title; the message lists the titles.
    """
    generator = np.random.default_rng(seed)
    table = []
    for sides in _sides(rows, by):
        for score in scores:
            values = sides.scores(score)
            found = NOT_AVAILABLE
            if not np.isnan(np.concatenate(values)).all():
                found = membership.bootstrap_auc(
                    *values, generator=generator, resamples=resamples, clusters=sides.families
                )
            table.append(_row(by, sides.group, f"AUC {score}", found))
    return pd.DataFrame(table)


# ------------------------------------------------------------------------ one group and another


def log_ratio(
    rows: pd.DataFrame, other: pd.DataFrame, seed: int = 0, resamples: int = 1000
) -> Interval:
    """Return log(perplexity of rows / perplexity of other), with its interval.

    It is paired where both hold the same documents in the same order.
    """
    generator = np.random.default_rng(seed)
    weights = draw_weights(rows, generator, resamples)
    if rows.id.tolist() == other.id.tolist():
        other_weights = weights
    else:
        other_weights = draw_weights(other, generator, resamples)
    mean_nll = Measure("nll", "tokens")
    ours = _weighted(rows, mean_nll, weights)
    theirs = _weighted(other, mean_nll, other_weights)
    return _interval(ours - theirs, rows, other)


def log_ratios(
    rows: pd.DataFrame,
    other: pd.DataFrame,
    by: Sequence[str],
    measure: str,
    seed: int = 0,
    resamples: int = 1000,
) -> pd.DataFrame:
    """Return `log_ratio` of each group that both have.

    Returns:
        Columns `by`, measure (as given), value, low, high, n.
    """
    others = dict(list(other.groupby(list(by), sort=False)))
    table = []
    for group, part in rows.groupby(list(by), sort=False):
        if group in others:
            found = log_ratio(part, others[group], seed, resamples)
            table.append(_row(by, group, measure, found))
    return pd.DataFrame(table)


# --------------------------------------------------------------------------------------- to read


def text(
    row: Mapping | pd.Series, digits: int = 2, sign: str = "", significant: bool = False
) -> str:
    """Return `value [low, high]` of a row, rounded, or "not available" for what is not a number.

    Args:
        row: with value, low and high.
        digits: after the point; from 10,000 on there are two significant digits.
        sign: "+" shows the sign of positive numbers too.
        significant: `digits` are significant ones instead.
    """
    if np.isnan(row["value"]):
        return "not available"
    shown = []
    for name in ("value", "low", "high"):
        if significant:
            shown.append(f"{row[name]:{sign}#.{digits}g}".rstrip("."))
        else:
            shown.append(_rounded(row[name], digits, sign))
    value, low, high = shown
    return f"{value} [{low}, {high}]"


def _rounded(number: float, digits: int, sign: str) -> str:
    if abs(number) < 1e4:
        return f"{number:{sign}.{digits}f}"
    return f"{number:.1e}"


def wide(
    table: pd.DataFrame,
    index: str | list[str],
    columns: str,
    digits: int = 1,
    significant: bool = False,
) -> pd.DataFrame:
    """Return the table laid out for reading, with `text` in each cell.

    Rows and columns keep their order of appearance.

    Args:
        table: with value, low and high.
        index: column or columns that name a row.
        columns: the column that names a column.
        digits, significant: as in `text`.
    """
    cells = table.apply(text, axis=1, digits=digits, significant=significant)
    shown = table.assign(text=cells)
    shown = shown.pivot(index=index, columns=columns, values="text")
    if isinstance(index, str):
        keys = table[index]
    else:
        keys = table[index].itertuples(index=False, name=None)
    in_order = list(dict.fromkeys(keys))
    return shown.loc[in_order, list(dict.fromkeys(table[columns]))].fillna("")
