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


def _log_ratio(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.log(metrics.perplexity(*ours.T) / metrics.perplexity(*theirs.T)))


def readable(table: pd.DataFrame, digits: int = 1) -> pd.Series:
    """`value [low, high]` of each row, rounded."""
    return table.apply(lambda r: f"{r['value']:.{digits}f} [{r['low']:.{digits}f}, {r['high']:.{digits}f}]", axis=1)
