"""An audit: what tells models that saw a document from models that never did, both really trained.

All of it reads margins, one array of models by documents. The margin of a document is the mean over
its tokens of log p / (1 - p), with p of the true token: it has no bound where a model is sure, and
over models it is about Gaussian (LiRA, arXiv 2112.03570). *Members* are models that saw a document,
or that saw it and were unlearned; *others* never saw it.

With few models every measure here is above 0 by chance alone. So its value for models of one kind,
half against half, stands beside it wherever it is shown.
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from unlearn_utils.core import arrays
from unlearn_utils.core.arrays import Floats

RESOLVED = 2.0**-24  # float32 tells no probability from 1 that is nearer
BINS = 20  # of a histogram of margins; this, the clip and the floor as in arXiv 2410.23232
CLIP = 100.0  # margins beyond count as this
FLOOR = 1e-5  # the least share of a bin
LEAST_SPREAD = 1e-6  # of a Gaussian, in units of margin
# A document is remembered if its margin is more than so many standard deviations of retrained
# models above their mean, and below retrained if it is as far under it.
FAR = 2.0
REMEMBERED, LIKE, BELOW = "remembered", "like retrained", "below retrained"
WORDS = (REMEMBERED, LIKE, BELOW)


def margin(log_probs: ArrayLike) -> float:
    """Return the margin of a document: the mean of log p / (1 - p).

    Args:
        log_probs: (n,), of the true tokens, in nats. p is taken as 1 - 2^-24 at most.

    Raises:
        ValueError: there is no token.
    """
    log_p = np.minimum(arrays.as_vector(log_probs, "margin"), np.log1p(-RESOLVED))
    return float(np.mean(log_p - np.log(-np.expm1(log_p))))


# -------------------------------------------------------------------------------------------- KLoM


def klom(members: Floats, others: Floats) -> Floats:
    """Return KLoM of each document: KL of the histogram of members' margins from the others'.

    The `BINS` bins of a document are equal parts of the range of both groups. It ends at about
    log(1 / `FLOOR`), where no bin is shared. With fewer models it is larger by chance.

    Args:
        members, others: (models, documents), margins; as many models in both.

    Raises:
        ValueError: there are not as many models, or other documents.
    """
    if members.shape != others.shape:
        raise ValueError(f"KLoM: margins of shape {members.shape} against {others.shape}")
    ours = np.clip(members, -CLIP, CLIP)
    theirs = np.clip(others, -CLIP, CLIP)
    found = []
    for mine, yours in zip(ours.T, theirs.T, strict=True):
        limits = min(mine.min(), yours.min()), max(mine.max(), yours.max())
        shares = []
        for group in (mine, yours):
            counts, _ = np.histogram(group, BINS, limits)
            shares.append(np.maximum(counts / len(group), FLOOR))
        found.append(stats.entropy(*shares))  # which makes each sum to 1
    return np.array(found)


# ------------------------------------------------------------------------------------------ U-LiRA


def lira(members: Floats, others: Floats) -> tuple[Floats, Floats]:
    """Return the log likelihood ratio of each model and document, members over others.

    For each document two Gaussians are fitted to the margins of the two groups (U-LiRA, arXiv
    2403.01218). The model that is judged is left out of its own: so by chance alone the ratio of a
    member is the lower of the two.

    Args:
        members, others: (models, documents), margins; three models at least.

    Returns:
        The ratios of the members, and of the others, of the same shapes.

    Raises:
        ValueError: a group has fewer than three models.
    """
    if min(len(members), len(others)) < 3:
        raise ValueError("U-LiRA: each group has three models at least")
    of_members = log_density(members, *_without_each(members))
    of_members -= log_density(members, others.mean(0), _spread(others))
    of_others = log_density(others, members.mean(0), _spread(members))
    of_others -= log_density(others, *_without_each(others))
    return of_members, of_others


def log_density(values: Floats, mean: Floats, deviation: Floats) -> Floats:
    """Return the log density of a Gaussian."""
    return stats.norm.logpdf(values, mean, deviation)


def _without_each(values: Floats) -> tuple[Floats, Floats]:
    """Return mean and standard deviation of the models but each: two of (models, documents)."""
    means, spreads = [], []
    for place in range(len(values)):
        rest = np.delete(values, place, axis=0)
        means.append(rest.mean(0))
        spreads.append(_spread(rest))
    return np.stack(means), np.stack(spreads)


def _spread(values: Floats) -> Floats:
    """Return the standard deviation over models: (documents,)."""
    return np.maximum(values.std(axis=0, ddof=1), LEAST_SPREAD)


def auc_by_document(members: Floats, others: Floats) -> Floats:
    """Return how often a member's score is above another's, by document; ties count 1/2.

    members, others: (models, documents), scores.
    """
    ours, theirs = members[:, None], others[None]
    return ((ours > theirs) + 0.5 * (ours == theirs)).mean(axis=(0, 1))


# ----------------------------------------------------------------------------------------- epsilon


def epsilon(members: ArrayLike, others: ArrayLike, delta: float = 0.0) -> float:
    """Return the epsilon of (epsilon, delta) that an attack's scores show at its best threshold.

    It is the largest log((1 - delta - FPR) / FNR), or the same with the rates exchanged. A rate is
    never taken as less than one model of its group, which no test can tell from none: so it ends
    at `ceiling`. It is chosen with the data, so it is above 0 by chance.

    Args:
        members, others: scores, higher for a member.
        delta: of the definition.

    Raises:
        ValueError: a group is empty.
    """
    members = arrays.as_vector(members, "epsilon members")
    others = arrays.as_vector(others, "epsilon others")
    thresholds = np.unique(np.concatenate([members, others]))
    missed = np.searchsorted(np.sort(members), thresholds, "left") / members.size
    accused = 1 - np.searchsorted(np.sort(others), thresholds, "left") / others.size
    missed = np.maximum(missed, 1 / members.size)
    accused = np.maximum(accused, 1 / others.size)
    ratios = np.concatenate([(1 - delta - accused) / missed, (1 - delta - missed) / accused])
    return float(np.log(max(1.0, ratios.max())))


def ceiling(members: int, others: int, delta: float = 0.0) -> float:
    """Return the largest `epsilon` of so many models: log(N - 1) for N of each, and delta 0."""
    ratios = [(1 - delta - 1 / others) * members, (1 - delta - 1 / members) * others]
    return float(np.log(max(1.0, *ratios)))


# -------------------------------------------------------------------- attacks with reference models


def over_reference(margins: Floats, references: Floats) -> Floats:
    """Return the margin of each document less its mean over reference models: (documents,).

    Args:
        margins: (documents,), of the model that is attacked.
        references: (models, documents), of models that never saw the members.
    """
    return margins - references.mean(0)


def deviations(margins: Floats, references: Floats) -> Floats:
    """Return `over_reference` in standard deviations of the reference models: (documents,)."""
    return over_reference(margins, references) / _spread(references)


def is_told(far: Floats, word: str) -> Floats:
    """Return 1 where a document that lies so many `deviations` off is as one of `WORDS` says."""
    if word == REMEMBERED:
        return (far > FAR).astype(float)
    if word == BELOW:
        return (far < -FAR).astype(float)
    return (np.abs(far) <= FAR).astype(float)


def rmia(margins: Floats, references: Floats, population: np.ndarray, gamma: float = 1.0) -> Floats:
    """Return RMIA of each document: how often its rise beats that of the population.

    The rise is p under the model over its mean under the reference models, which never saw a
    member (the offline attack of arXiv 2312.03262, with a = 1). p of a document is the logistic of
    its margin.

    Args:
        margins: (documents,), of the model that is attacked.
        references: (models, documents).
        population: (documents,), bool: those that the others are compared with. Each of them is
            compared with the rest.
        gamma: by which a document must be ahead.
    """
    rise = logistic(margins) / logistic(references).mean(0)
    wins = rise[:, None] >= gamma * rise[None, population]
    itself = np.arange(len(rise))[:, None] == np.flatnonzero(population)[None]
    return (wins & ~itself).sum(1) / (~itself).sum(1)


def logistic(margins: Floats) -> Floats:
    """Return the probability of a margin."""
    return 1 / (1 + np.exp(-margins))


# -------------------------------------------------------------------------------- rank correlation


def weighted_spearman(ours: Floats, theirs: Floats, times: Floats) -> Floats:
    """Return Spearman's correlation with each document counted as often as drawn: (draws,).

    Args:
        ours, theirs: (documents,), two values of each. Equal ones share the mean rank.
        times: (draws, documents).
    """
    one, other = (_weighted_ranks(values, times) for values in (ours, theirs))
    total = times.sum(1, keepdims=True)
    one = one - (times * one).sum(1, keepdims=True) / total
    other = other - (times * other).sum(1, keepdims=True) / total
    together = (times * one * other).sum(1)
    apart = np.sqrt((times * one**2).sum(1) * (times * other**2).sum(1))
    undefined = np.full_like(together, np.nan)
    return np.divide(together, apart, out=undefined, where=apart > 0)


def _weighted_ranks(values: Floats, times: Floats) -> Floats:
    """Return the mean rank of each value among those drawn, less 1/2: (draws, documents)."""
    below = (values[:, None] < values[None]) + 0.5 * (values[:, None] == values[None])
    return times @ below


# ------------------------------------------------------------------------------------- shared text


def shared_grams(texts: list[str], others: list[str], n: int) -> Floats:
    """Return the share of the word n-grams of each text that other texts hold: (texts,).

    A text of fewer than n words shares nothing.
    """
    known = set().union(*(word_grams(other, n) for other in others))
    found = []
    for text in texts:
        own = word_grams(text, n)
        found.append(len(own & known) / max(1, len(own)))
    return np.array(found)


def word_grams(text: str, n: int) -> set[tuple[str, ...]]:
    """Return the distinct n-grams of the words of a text, in lower case."""
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}
