"""Measures of forgetting, membership and memorisation, and their intervals: pure functions of arrays.

Log-probabilities and negative log-likelihoods (NLL) are in nats. One array of true-token log-probabilities per document, over its
predicted tokens only. Every membership score is oriented so that higher means "member".
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from unlearn_utils.core import arrays, intervals

# ---------------------------------------------------------------------------------------------- membership scores


def min_k(log_probs: ArrayLike, k: float) -> float:
    """Min-K% Prob: mean of the lowest max(1, floor(k n)) log-probabilities (arXiv 2310.16789); k is a share in (0, 1].

    log_probs (n,). Higher = more member-like. Raises ValueError if empty or if k is outside (0, 1].
    """
    log_probs = arrays.as_vector(log_probs, "min-k")
    if not 0 < k <= 1:
        raise ValueError(f"min-k: k is a share in (0, 1], not {k}")
    lowest = max(1, _floor(k * log_probs.size))
    return float(np.partition(log_probs, lowest - 1)[:lowest].mean())


def min_k_plus_plus(log_probs: ArrayLike, mu: ArrayLike, sigma: ArrayLike, k: float) -> float:
    """Min-K%++: `min_k` of (log p - mu) / sigma (arXiv 2404.02936).

    mu, sigma (n,): mean and standard deviation, under the model's own distribution at that position, of log p over the vocabulary.
    A position with sigma 0 (all mass on one token) scores 0. Raises ValueError as `min_k`, or for unequal lengths.
    """
    log_probs, mu, sigma = (arrays.as_vector(a, "min-k++") for a in (log_probs, mu, sigma))
    if not log_probs.shape == mu.shape == sigma.shape:
        raise ValueError(f"min-k++: unequal lengths {log_probs.size}, {mu.size}, {sigma.size}")
    return min_k(np.divide(log_probs - mu, sigma, out=np.zeros_like(sigma), where=sigma > 0), k)


def zlib_score(mean_nll: float, text: str) -> float:
    """Minus mean NLL per zlib-compressed byte of the text (arXiv 2012.07805). Raises ValueError for an empty text."""
    if not text:
        raise ValueError("zlib score: empty text")
    return -float(mean_nll) / len(zlib.compress(text.encode()))


def _floor(x: float) -> int:
    """Floor that forgives rounding: 0.29 * 100 is 28.999999999999996."""
    return int(x + 1e-9)


# ---------------------------------------------------------------------------------------------- membership attacks


def auc(members: ArrayLike, non_members: ArrayLike) -> float:
    """Probability that a member scores above a non-member, ties counting 1/2; not folded: below 0.5 is over-unlearning.

    members (m,), non_members (n,). Raises ValueError if one is empty.
    """
    members, non_members = arrays.as_vector(members, "auc members"), arrays.as_vector(non_members, "auc non-members")
    ranks = stats.rankdata(np.concatenate([members, non_members]))[: members.size]
    return float((ranks.sum() - members.size * (members.size + 1) / 2) / (members.size * non_members.size))


def tpr_at_fpr(members: ArrayLike, non_members: ArrayLike, fpr: float) -> float:
    """Largest share of members above a threshold that at most a share `fpr` of the non-members exceeds.

    Raises ValueError if a group is empty, if fpr is outside [0, 1] or finer than the non-members resolve (0 < fpr < 1/n).
    """
    members, non_members = arrays.as_vector(members, "tpr members"), arrays.as_vector(non_members, "tpr non-members")
    allowed = _floor(fpr * non_members.size)
    if not 0 <= fpr <= 1 or (fpr > 0 and allowed == 0):
        raise ValueError(f"tpr: {non_members.size} non-members cannot tell a false-positive rate of {fpr}")
    if allowed == non_members.size:
        return 1.0
    return float((members > np.sort(non_members)[::-1][allowed]).mean())


def priv_leak(auc: float, auc_retrain: float) -> float:
    """PrivLeak = 100 (AUC_retrain - AUC) / (1 - AUC_retrain), AUCs with higher = member (arXiv 2407.06460); 0 is the goal.

    Negative: under-unlearned; positive: over-unlearned. Raises ValueError if the retrained model's AUC is 1.
    """
    if auc_retrain >= 1:
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
    """`auc` with its interval; both groups are resampled, independently. The same as `bootstrap(auc, ...)`, vectorised.

    clusters: cluster labels (of members, of non-members), as in `bootstrap`. Raises ValueError as `auc` and `bootstrap`.
    """
    value = auc(members, non_members)
    members, others = np.asarray(members, float), np.asarray(non_members, float)
    units = [intervals.cluster_codes(len(x), c) for x, c in zip((members, others), clusters or (None, None), strict=True)]
    order = np.argsort(others, kind="stable")
    below, upto = (np.searchsorted(others[order], members, side) for side in ("left", "right"))
    draws = []
    for size in intervals.blocks(resamples, len(members) + len(others)):
        ours, theirs = (intervals.draw_counts(u, size, generator) for u in units)
        running = np.concatenate([np.zeros((size, 1)), theirs[:, order].cumsum(1)], 1)  # non-members among the i lowest
        wins = (ours * (running[:, below] + running[:, upto])).sum(1) / 2
        draws.append(wins / (ours.sum(1) * running[:, -1]))
    return intervals.interval(value, np.concatenate(draws), level, min(int(u.max()) + 1 for u in units))
