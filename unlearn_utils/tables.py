"""Tidy tables out of rows of measurements: a value, its 95% interval and its n for every group of documents."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from unlearn_utils import metrics

Rows = pd.DataFrame


def accuracy(correct: np.ndarray, tokens: np.ndarray) -> float:
    """Share of predicted tokens whose argmax is the true token."""
    return float(np.sum(correct) / np.sum(tokens))


MEASURES: dict[str, tuple[Callable[..., float], tuple[str, ...]]] = {  # a statistic, and the columns that it takes
    "perplexity": (metrics.perplexity, ("nll", "tokens")),
    "accuracy": (accuracy, ("correct", "tokens")),
    "extraction strength": (np.mean, ("extraction",)),
    "ROUGE-L": (np.mean, ("rouge_l",)),
}
SCORES = {"Min-20%": "min_k_20", "Min-40%": "min_k_40", "loss": "min_k_100", "Min-40%++": "min_k_plus_40", "zlib": "zlib"}


def summarise(rows: Rows, by: Sequence[str], measures: Sequence[str], seed: int = 0, resamples: int = 1000) -> pd.DataFrame:
    """Each measure of each group: columns `by`, measure, value, low, high, n (families). Bootstrap over families of documents."""
    generator = np.random.default_rng(seed)
    table = []
    for group, part in rows.groupby(list(by), sort=False):
        for measure in measures:
            statistic, columns = MEASURES[measure]
            arrays = [part[c].to_numpy() for c in columns]
            found = metrics.bootstrap(statistic, *arrays, generator=generator, resamples=resamples, clusters=part.family.to_numpy())
            table.append({**dict(zip(by, group, strict=True)), "measure": measure, **found._asdict()})
    return pd.DataFrame(table)


def membership(rows: Rows, by: Sequence[str], scores: Sequence[str], seed: int = 0, resamples: int = 1000) -> pd.DataFrame:
    """AUC of forget documents (members) against approximate ones (non-members), not folded: by, measure, value, low, high, n."""
    generator = np.random.default_rng(seed)
    table = []
    for group, part in rows.groupby(list(by), sort=False):
        sides = [part[part.split == s] for s in ("forget", "approximate")]
        clusters = tuple(s.family.to_numpy() for s in sides)
        for score in scores:
            values = [s[SCORES[score]].to_numpy() for s in sides]
            found = metrics.bootstrap_auc(*values, generator=generator, resamples=resamples, clusters=clusters)
            table.append({**dict(zip(by, group, strict=True)), "measure": f"AUC {score}", **found._asdict()})
    return pd.DataFrame(table)


def log_ratio(rows: Rows, other: Rows, seed: int = 0, resamples: int = 1000) -> metrics.Interval:
    """log(perplexity of rows / perplexity of other), with its interval; paired where both hold the same documents in the same order."""
    paired = rows.id.tolist() == other.id.tolist()
    sides = [np.stack([r.nll, r.tokens], axis=1) for r in (rows, other)]
    clusters = rows.family.to_numpy() if paired else (rows.family.to_numpy(), other.family.to_numpy())
    generator = np.random.default_rng(seed)
    return metrics.bootstrap(_log_ratio, *sides, generator=generator, resamples=resamples, clusters=clusters, paired=paired)


def log_ratios(rows: Rows, other: Rows, by: Sequence[str], measure: str, seed: int = 0, resamples: int = 1000) -> pd.DataFrame:
    """`log_ratio` of each group that both have: columns `by`, measure, value, low, high, n."""
    theirs = dict(list(other.groupby(list(by), sort=False)))
    table = []
    for group, part in rows.groupby(list(by), sort=False):
        if group in theirs:
            found = log_ratio(part, theirs[group], seed, resamples)
            table.append({**dict(zip(by, group, strict=True)), "measure": measure, **found._asdict()})
    return pd.DataFrame(table)


def _log_ratio(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.log(metrics.perplexity(*ours.T) / metrics.perplexity(*theirs.T)))


def text(row: pd.Series, digits: int = 2, sign: str = "") -> str:
    """`value [low, high]` of a row, rounded; sign "+" shows it. From 10,000 on two significant digits."""
    value, low, high = (f"{row[c]:{sign}.{digits}f}" if abs(row[c]) < 1e4 else f"{row[c]:.1e}" for c in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def wide(table: pd.DataFrame, index: str | list[str], columns: str, digits: int = 1) -> pd.DataFrame:
    """The table laid out for reading: `text` of each row; rows and columns keep their order of appearance."""
    shown = table.assign(text=table.apply(text, axis=1, digits=digits)).pivot(index=index, columns=columns, values="text")
    keys = list(dict.fromkeys(table[index] if isinstance(index, str) else table[index].itertuples(index=False, name=None)))
    return shown.loc[keys, list(dict.fromkeys(table[columns]))].fillna("")
