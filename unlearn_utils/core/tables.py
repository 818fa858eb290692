"""Tidy tables out of rows of measurements: a value, its 95% interval and its n for every group of documents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import pandas as pd

from unlearn_utils.core import intervals, membership

Rows = pd.DataFrame


MEASURES = {  # sum of one column over sum of another (None: over documents), then a function of that
    "perplexity": ("nll", "tokens", np.exp),
    "accuracy": (
        "correct",
        "tokens",
        None,
    ),  # share of predicted tokens whose argmax is the true token
    "extraction strength": ("extraction", None, None),
    "ROUGE-L": ("rouge_l", None, None),
    "KL": ("kl", None, None),
}
NOT_AVAILABLE = intervals.Interval(np.nan, np.nan, np.nan, 0)  # of a model that is not there


def summarise(
    rows: Rows, by: Sequence[str], measures: Sequence[str], seed: int = 0, resamples: int = 1000
) -> pd.DataFrame:
    """Each measure of each group: columns `by`, measure, value, low, high, n (families). Bootstrap over families of documents."""
    generator = np.random.default_rng(seed)
    table = []
    for group, part in rows.groupby(list(by), sort=False):
        weights = draw_weights(part, generator, resamples)
        for measure in measures:
            above, below, function = MEASURES[measure]
            draws = (weights @ part[above].to_numpy()) / (
                weights @ (part[below].to_numpy() if below else np.ones(len(part)))
            )
            found = _interval(function(draws) if function else draws, part)
            table.append(
                {**dict(zip(by, group, strict=True)), "measure": measure, **found._asdict()}
            )
    return pd.DataFrame(table)


def draw_weights(rows: Rows, generator: np.random.Generator, resamples: int) -> np.ndarray:
    """How often each document counts: once in the first row, then in each resample of families."""
    drawn = intervals.draw_counts(
        intervals.cluster_codes(len(rows), rows.family), resamples, generator
    )
    return np.vstack([np.ones(len(rows)), drawn])


def _interval(draws: np.ndarray, *groups: Rows) -> intervals.Interval:
    """The first draw is the value; n is the number of families of the smallest group."""
    return intervals.interval(draws[0], draws[1:], 0.95, min(g.family.nunique() for g in groups))


def auc_table(
    rows: Rows, by: Sequence[str], scores: Sequence[str], seed: int = 0, resamples: int = 1000
) -> pd.DataFrame:
    """AUC of forget documents (members) against approximate ones (non-members), not folded: by, measure, value, low, high, n."""
    generator, table = np.random.default_rng(seed), []
    for group, sides, clusters in _sides(rows, by):
        for score in scores:
            values = [s[membership.get_score(score).column].to_numpy() for s in sides]
            found = NOT_AVAILABLE
            if not np.isnan(np.concatenate(values)).all():
                found = membership.bootstrap_auc(
                    *values, generator=generator, resamples=resamples, clusters=clusters
                )
            table.append({**group, "measure": f"AUC {score}", **found._asdict()})
    return pd.DataFrame(table)


def tpr_table(
    rows: Rows, by: Sequence[str], score: str, fpr: float, seed: int = 0, resamples: int = 1000
) -> pd.DataFrame:
    """TPR at a false-positive rate that the sample resolves, of one score: by, measure, value, low, high, n."""
    generator, table = np.random.default_rng(seed), []
    rate = partial(membership.tpr_at_fpr, fpr=fpr)
    for group, sides, clusters in _sides(rows, by):
        values = [s[membership.get_score(score).column].to_numpy() for s in sides]
        found = NOT_AVAILABLE
        if not np.isnan(np.concatenate(values)).all():
            found = intervals.bootstrap(
                rate,
                *values,
                generator=generator,
                resamples=resamples,
                clusters=clusters,
                paired=False,
            )
        table.append({**group, "measure": f"TPR at {fpr:.0%} FPR, {score}", **found._asdict()})
    return pd.DataFrame(table)


def _sides(
    rows: Rows, by: Sequence[str]
) -> Iterator[tuple[dict, list[Rows], tuple[np.ndarray, np.ndarray]]]:
    """Of each group: its keys, its forget and its approximate documents, and the families of each."""
    for group, part in rows.groupby(list(by), sort=False):
        sides = [part[part.split == s] for s in ("forget", "approximate")]
        yield dict(zip(by, group, strict=True)), sides, tuple(s.family.to_numpy() for s in sides)


def log_ratio(rows: Rows, other: Rows, seed: int = 0, resamples: int = 1000) -> intervals.Interval:
    """log(perplexity of rows / perplexity of other), with its interval; paired where both hold the same documents in the same order."""
    generator = np.random.default_rng(seed)
    weights = [draw_weights(rows, generator, resamples)]
    weights.append(
        weights[0]
        if rows.id.tolist() == other.id.tolist()
        else draw_weights(other, generator, resamples)
    )
    logs = [
        (w @ r.nll.to_numpy()) / (w @ r.tokens.to_numpy())
        for w, r in zip(weights, (rows, other), strict=True)
    ]
    return _interval(logs[0] - logs[1], rows, other)


def log_ratios(
    rows: Rows, other: Rows, by: Sequence[str], measure: str, seed: int = 0, resamples: int = 1000
) -> pd.DataFrame:
    """`log_ratio` of each group that both have: columns `by`, measure, value, low, high, n."""
    theirs = dict(list(other.groupby(list(by), sort=False)))
    table = []
    for group, part in rows.groupby(list(by), sort=False):
        if group in theirs:
            found = log_ratio(part, theirs[group], seed, resamples)
            table.append(
                {**dict(zip(by, group, strict=True)), "measure": measure, **found._asdict()}
            )
    return pd.DataFrame(table)


def text(row: pd.Series, digits: int = 2, sign: str = "") -> str:
    """`value [low, high]` of a row, rounded; sign "+" shows it. From 10,000 on two significant digits. Not a number: "not available"."""
    if np.isnan(row["value"]):
        return "not available"
    value, low, high = (
        f"{row[c]:{sign}.{digits}f}" if abs(row[c]) < 1e4 else f"{row[c]:.1e}"
        for c in ("value", "low", "high")
    )
    return f"{value} [{low}, {high}]"


def wide(
    table: pd.DataFrame, index: str | list[str], columns: str, digits: int = 1
) -> pd.DataFrame:
    """The table laid out for reading: `text` of each row; rows and columns keep their order of appearance."""
    shown = table.assign(text=table.apply(text, axis=1, digits=digits)).pivot(
        index=index, columns=columns, values="text"
    )
    keys = list(
        dict.fromkeys(
            table[index]
            if isinstance(index, str)
            else table[index].itertuples(index=False, name=None)
        )
    )
    return shown.loc[keys, list(dict.fromkeys(table[columns]))].fillna("")
