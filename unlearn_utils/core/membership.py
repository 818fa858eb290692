"""Membership: scores that say whether a model saw a document, and how well a score tells.

A score reads one document: the log-probabilities (nats) of its predicted tokens, or what
`TokenScores` holds beside them. Every score is oriented so that higher means "member". `SCORES` is
the table of all scores: what is measured, averaged and tabulated takes its list from there.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from unlearn_utils.core import arrays, intervals
from unlearn_utils.core.arrays import Floats

# ----------------------------------------------------------------------------- scores of arrays


def min_k(log_probs: ArrayLike, k: float) -> float:
    """Return Min-K% Prob: the mean of the lowest log-probabilities (arXiv 2310.16789).

    Args:
        log_probs: (n,), of the true tokens.
        k: the share that is lowest, in (0, 1]: max(1, floor(k n)) tokens.

    Raises:
        ValueError: there is no token, or k is outside (0, 1].
    """
    log_probs = arrays.as_vector(log_probs, "min-k")
    if not 0 < k <= 1:
        raise ValueError(f"min-k: k is a share in (0, 1], not {k}")
    lowest = max(1, _floor(k * log_probs.size))
    return float(np.partition(log_probs, lowest - 1)[:lowest].mean())


def min_k_plus_plus(log_probs: ArrayLike, mu: ArrayLike, sigma: ArrayLike, k: float) -> float:
    """Return Min-K%++: `min_k` of (log p - mu) / sigma (arXiv 2404.02936).

    A position with sigma 0 (all mass on one token) scores 0.

    Args:
        log_probs: (n,), of the true tokens.
        mu, sigma: (n,), mean and standard deviation of log p over the vocabulary, under the model's
            own distribution at that position.
        k: as in `min_k`.

    Raises:
        ValueError: as `min_k`, or lengths are unequal.
    """
    log_probs = arrays.as_vector(log_probs, "min-k++")
    mu = arrays.as_vector(mu, "min-k++")
    sigma = arrays.as_vector(sigma, "min-k++")
    if not log_probs.shape == mu.shape == sigma.shape:
        raise ValueError(f"min-k++: unequal lengths {log_probs.size}, {mu.size}, {sigma.size}")
    certain = np.zeros_like(sigma)
    standardised = np.divide(log_probs - mu, sigma, out=certain, where=sigma > 0)
    return min_k(standardised, k)


def zlib_score(mean_nll: float, text: str) -> float:
    """Return minus the mean NLL per zlib-compressed byte of the text (arXiv 2012.07805).

    Raises:
        ValueError: the text is empty.
    """
    if not text:
        raise ValueError("zlib score: empty text")
    return -float(mean_nll) / len(zlib.compress(text.encode()))


def _floor(x: float) -> int:
    """Return the floor, forgiving rounding: 0.29 * 100 is 28.999999999999996."""
    return int(x + 1e-9)


# --------------------------------------------------------------------------- scores of a document


class TokenScores(NamedTuple):
    """What a model says of one document, over its n predicted tokens.

    Attributes:
        log_probs: (n,), log-probability of the true token, in nats.
        mu, sigma: (n,), mean and standard deviation of log p over the vocabulary, under p.
        correct: (n,), whether the true token is the likeliest.
        text: the document, decoded.
    """

    log_probs: np.ndarray
    mu: np.ndarray
    sigma: np.ndarray
    correct: np.ndarray
    text: str


class Score(NamedTuple):
    """One membership score: its column in a table of measurements, and what computes it."""

    column: str
    function: Callable[[TokenScores], float]


def lowest_share(document: TokenScores, k: float) -> float:
    """Return `min_k` of a document."""
    return min_k(document.log_probs, k)


def lowest_share_standardised(document: TokenScores, k: float) -> float:
    """Return `min_k_plus_plus` of a document."""
    return min_k_plus_plus(document.log_probs, document.mu, document.sigma, k)


def per_compressed_byte(document: TokenScores) -> float:
    """Return `zlib_score` of a document."""
    nll = -float(document.log_probs.astype(np.float64).sum())
    return zlib_score(nll / len(document.log_probs), document.text)


# The paper's released code uses k of 30% to 60%, and 100%, which is the loss.
SCORES: dict[str, Score] = {
    "Min-20%": Score("min_k_20", partial(lowest_share, k=0.2)),
    "Min-20%++": Score("min_k_plus_20", partial(lowest_share_standardised, k=0.2)),
    "Min-30%": Score("min_k_30", partial(lowest_share, k=0.3)),
    "Min-30%++": Score("min_k_plus_30", partial(lowest_share_standardised, k=0.3)),
    "Min-40%": Score("min_k_40", partial(lowest_share, k=0.4)),
    "Min-40%++": Score("min_k_plus_40", partial(lowest_share_standardised, k=0.4)),
    "Min-50%": Score("min_k_50", partial(lowest_share, k=0.5)),
    "Min-50%++": Score("min_k_plus_50", partial(lowest_share_standardised, k=0.5)),
    "Min-60%": Score("min_k_60", partial(lowest_share, k=0.6)),
    "Min-60%++": Score("min_k_plus_60", partial(lowest_share_standardised, k=0.6)),
    "loss": Score("min_k_100", partial(lowest_share, k=1.0)),
    "Min-100%++": Score("min_k_plus_100", partial(lowest_share_standardised, k=1.0)),
    "zlib": Score("zlib", per_compressed_byte),
}


def columns() -> list[str]:
    """Return the column of each score, in the order of the table."""
    return [score.column for score in SCORES.values()]


def get_score(title: str) -> Score:
    """Return the score of that title.

    Raises:
        ValueError: there is none; the message lists the titles.
    """
    if title not in SCORES:
        raise ValueError(f"unknown score {title!r}; choose one of: {', '.join(SCORES)}")
    return SCORES[title]


# --------------------------------------------------------------------------------------- attacks


def auc(members: ArrayLike, non_members: ArrayLike) -> float:
    """Return the probability that a member scores above a non-member; ties count 1/2.

    It is not folded: below 0.5 is over-unlearning.

    Args:
        members: (m,), their scores.
        non_members: (n,), their scores.

    Raises:
        ValueError: one of them is empty.
    """
    members = arrays.as_vector(members, "auc members")
    non_members = arrays.as_vector(non_members, "auc non-members")
    ranks = stats.rankdata(np.concatenate([members, non_members]))[: members.size]
    wins = ranks.sum() - members.size * (members.size + 1) / 2
    return float(wins / (members.size * non_members.size))


def weighted_auc(ours: Floats, theirs: Floats, times: Floats, other_times: Floats) -> Floats:
    """Return `auc` with each document counted as often as drawn: (draws,).

    Args:
        ours, theirs: scores of members and of non-members, one a document.
        times, other_times: how often each counts, (draws, documents).
    """
    order = np.argsort(theirs, kind="stable")
    below = np.searchsorted(theirs[order], ours, "left")
    up_to = np.searchsorted(theirs[order], ours, "right")
    none = np.zeros((len(other_times), 1))
    running = np.concatenate([none, other_times[:, order].cumsum(1)], 1)  # among the i lowest
    wins = (times * (running[:, below] + running[:, up_to])).sum(1) / 2
    return wins / (times.sum(1) * running[:, -1])


def tpr_at_fpr(members: ArrayLike, non_members: ArrayLike, fpr: float) -> float:
    """Return the largest share of members above a threshold that few non-members exceed.

    Args:
        members, non_members: their scores, (m,) and (n,).
        fpr: at most this share of the non-members exceeds the threshold.

    Raises:
        ValueError: a group is empty; or fpr is outside [0, 1] or finer than the non-members resolve
            (0 < fpr < 1/n).
    """
    members = arrays.as_vector(members, "tpr members")
    non_members = arrays.as_vector(non_members, "tpr non-members")
    allowed = _floor(fpr * non_members.size)
    if not 0 <= fpr <= 1 or (fpr > 0 and allowed == 0):
        raise ValueError(
            f"tpr: {non_members.size} non-members cannot tell a false-positive rate of {fpr}"
        )
    if allowed == non_members.size:
        return 1.0
    threshold = np.sort(non_members)[::-1][allowed]
    return float((members > threshold).mean())


def priv_leak(auc: Floats, auc_retrain: Floats) -> Floats:
    """Return PrivLeak = 100 (AUC_retrain - AUC) / (1 - AUC_retrain) (arXiv 2407.06460).

    The AUCs, numbers or arrays, are oriented so that higher means "member". 0 is the goal; negative
    is under-unlearned, positive over-unlearned.

    Raises:
        ValueError: a retrained model's AUC is 1.
    """
    if np.any(np.asarray(auc_retrain) >= 1):
        raise ValueError("PrivLeak is undefined where the retrained model's AUC is 1")
    return 100 * (auc_retrain - auc) / (1 - auc_retrain)


def bootstrap_auc(
    members: ArrayLike,
    non_members: ArrayLike,
    generator: np.random.Generator,
    resamples: int = 1000,
    level: float = 0.95,
    clusters: tuple[ArrayLike, ArrayLike] | None = None,
) -> intervals.Interval:
    """Return `auc` with its interval; both groups are resampled, independently.

    Args:
        members, non_members: as in `auc`.
        generator: draws the resamples.
        resamples: how many.
        level: share of the resamples that the interval holds.
        clusters: what is drawn as one: a label for each member, and for each non-member.

    Raises:
        ValueError: as `auc`, or there is not one label for each document.
    """
    value = auc(members, non_members)
    members = np.asarray(members, float)
    others = np.asarray(non_members, float)
    member_labels, other_labels = clusters or (None, None)
    member_units = intervals.cluster_codes(len(members), member_labels)
    other_units = intervals.cluster_codes(len(others), other_labels)

    draws = []
    for size in intervals.blocks(resamples, len(members) + len(others)):
        ours = intervals.draw_counts(member_units, size, generator)
        theirs = intervals.draw_counts(other_units, size, generator)
        draws.append(weighted_auc(members, others, ours, theirs))
    smaller = min(int(member_units.max()) + 1, int(other_units.max()) + 1)
    return intervals.interval(value, np.concatenate(draws), level, smaller)
