"""Measures of forgetting, membership and memorisation, and their intervals: pure functions of arrays.

Log-probabilities and negative log-likelihoods (NLL) are in nats. One array of true-token log-probabilities per document, over its
predicted tokens only. Every membership score is oriented so that higher means "member".
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from rapidfuzz.distance import LCSseq
from scipy import stats

Floats = NDArray[np.float64]
BLOCK = 2**18  # numbers per block of resamples: stays in the processor's cache


def _vector(values: ArrayLike, what: str, dtype: type = np.float64) -> np.ndarray:
    """`values` as a one-dimensional array; ValueError if there are none."""
    array = np.asarray(values, dtype=dtype)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{what}: expected a non-empty one-dimensional array, not shape {array.shape}")
    return array


# ---------------------------------------------------------------------------------------------- language modelling


def perplexity(nll: ArrayLike, tokens: ArrayLike) -> float:
    """exp(sum of NLL / sum of tokens): every predicted token weighs the same.

    nll (documents,): summed NLL of each; tokens (documents,): its predicted tokens. Raises ValueError if empty, of unequal lengths or
    without a token.
    """
    nll, tokens = _documents(nll, tokens)
    if tokens.sum() <= 0:
        raise ValueError("perplexity: no predicted token")
    return float(np.exp(nll.sum() / tokens.sum()))


def perplexity_per_sequence(nll: ArrayLike, tokens: ArrayLike) -> float:
    """exp(mean over sequences of each one's mean NLL): every sequence weighs the same, as in the released code of arXiv 2402.15159.

    Arguments as in `perplexity`. Raises ValueError if empty, of unequal lengths or if a sequence has no token.
    """
    nll, tokens = _documents(nll, tokens)
    if (tokens <= 0).any():
        raise ValueError("perplexity per sequence: a sequence without a predicted token")
    return float(np.exp((nll / tokens).mean()))


def _documents(nll: ArrayLike, tokens: ArrayLike) -> tuple[Floats, Floats]:
    nll, tokens = _vector(nll, "perplexity"), _vector(tokens, "perplexity")
    if nll.shape != tokens.shape:
        raise ValueError(f"perplexity: {nll.size} documents but {tokens.size} token counts")
    return nll, tokens


# ---------------------------------------------------------------------------------------------- membership scores


def min_k(log_probs: ArrayLike, k: float) -> float:
    """Min-K% Prob: mean of the lowest max(1, floor(k n)) log-probabilities (arXiv 2310.16789); k is a share in (0, 1].

    log_probs (n,). Higher = more member-like. Raises ValueError if empty or if k is outside (0, 1].
    """
    log_probs = _vector(log_probs, "min-k")
    if not 0 < k <= 1:
        raise ValueError(f"min-k: k is a share in (0, 1], not {k}")
    lowest = max(1, _floor(k * log_probs.size))
    return float(np.partition(log_probs, lowest - 1)[:lowest].mean())


def min_k_plus_plus(log_probs: ArrayLike, mu: ArrayLike, sigma: ArrayLike, k: float) -> float:
    """Min-K%++: `min_k` of (log p - mu) / sigma (arXiv 2404.02936).

    mu, sigma (n,): mean and standard deviation, under the model's own distribution at that position, of log p over the vocabulary.
    A position with sigma 0 (all mass on one token) scores 0. Raises ValueError as `min_k`, or for unequal lengths.
    """
    log_probs, mu, sigma = (_vector(a, "min-k++") for a in (log_probs, mu, sigma))
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
    members, non_members = _vector(members, "auc members"), _vector(non_members, "auc non-members")
    ranks = stats.rankdata(np.concatenate([members, non_members]))[: members.size]
    return float((ranks.sum() - members.size * (members.size + 1) / 2) / (members.size * non_members.size))


def tpr_at_fpr(members: ArrayLike, non_members: ArrayLike, fpr: float) -> float:
    """Largest share of members above a threshold that at most a share `fpr` of the non-members exceeds.

    Raises ValueError if a group is empty, if fpr is outside [0, 1] or finer than the non-members resolve (0 < fpr < 1/n).
    """
    members, non_members = _vector(members, "tpr members"), _vector(non_members, "tpr non-members")
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


# ---------------------------------------------------------------------------------------------- memorisation


def extraction_strength(correct: ArrayLike) -> float:
    """1 - k/n, with k the shortest prefix after which every greedy prediction is right; 0 if the last one is wrong (arXiv 2406.09179).

    correct (n,), bool: whether each predicted token is the argmax, teacher-forced. Raises ValueError if empty.
    """
    wrong = np.flatnonzero(~_vector(correct, "extraction strength", bool))
    return 1.0 - (wrong[-1] + 1 if wrong.size else 0) / np.size(correct)


def rouge_l(prediction_tokens: Sequence, truth_tokens: Sequence) -> float:
    """ROUGE-L F1 in [0, 1]: harmonic mean of longest common subsequence / length of each (Lin 2004).

    Sequences of hashable tokens. An empty prediction scores 0. Raises ValueError for an empty truth.
    """
    prediction, truth = list(prediction_tokens), list(truth_tokens)
    if not truth:
        raise ValueError("ROUGE-L: empty truth")
    return 2 * LCSseq.similarity(prediction, truth) / (len(prediction) + len(truth))


def exact_prefix(prediction: Sequence, truth: Sequence) -> int:
    """Number of leading tokens on which prediction and truth agree."""
    pairs = list(zip(prediction, truth, strict=False))
    return next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))


# ---------------------------------------------------------------------------------------------- comparison with retraining


class ForgetQuality(NamedTuple):
    """Two-sample Kolmogorov-Smirnov distance and p-value; p-value of the paired Wilcoxon signed-rank test; documents."""

    ks_distance: float
    ks_p: float
    wilcoxon_p: float
    n: int


def forget_quality(nll_unlearned: ArrayLike, nll_retrained: ArrayLike) -> ForgetQuality:
    """Are the unlearned model's per-document NLL on the forget set those of the retrained model (arXiv 2401.06121)?

    Both (n,), mean NLL of the same documents in the same order: hence the paired test too. Two identical arrays have Wilcoxon p 1.
    Raises ValueError if empty or of unequal lengths.
    """
    ours, theirs = _vector(nll_unlearned, "forget quality"), _vector(nll_retrained, "forget quality")
    if ours.shape != theirs.shape:
        raise ValueError(f"forget quality is paired: {ours.size} documents against {theirs.size}")
    ks = stats.ks_2samp(ours, theirs)
    paired = 1.0 if np.array_equal(ours, theirs) else float(stats.wilcoxon(ours, theirs).pvalue)
    return ForgetQuality(float(ks.statistic), float(ks.pvalue), paired, ours.size)


# ---------------------------------------------------------------------------------------------- intervals


class Interval(NamedTuple):
    """A value, its percentile-bootstrap bounds, and the number of independent units behind it (of the smaller group)."""

    value: float
    low: float
    high: float
    n: int


def bootstrap(
    statistic: Callable[..., float],
    *arrays: ArrayLike,
    generator: np.random.Generator,
    resamples: int = 1000,
    level: float = 0.95,
    clusters: ArrayLike | Sequence[ArrayLike] | None = None,
    paired: bool = True,
) -> Interval:
    """Percentile bootstrap of `statistic(*arrays)` over documents, the arrays' first axis, or over clusters of them.

    paired: all arrays describe the same documents and are resampled together (`clusters`: one label per document); otherwise each is
    resampled by itself (`clusters`: one such array for each). Source: Efron and Tibshirani 1993, chapter 13.
    Raises ValueError if there is no array, if one is empty or if lengths do not match.
    """
    groups = [np.asarray(a) for a in arrays]
    if not groups or any(g.ndim == 0 or len(g) == 0 for g in groups):
        raise ValueError("bootstrap: no documents")
    if paired and len({len(g) for g in groups}) > 1:
        raise ValueError(f"bootstrap: paired arrays of unequal lengths {[len(g) for g in groups]}")
    labels = [clusters] if paired else clusters if clusters is not None else [None] * len(groups)
    members = [_members(len(g), c) for g, c in zip(groups[:1] if paired else groups, labels, strict=True)]
    draws = []
    for _ in range(resamples):
        rows = [_draw(m, generator) for m in members] * (len(groups) if paired else 1)
        draws.append(statistic(*(g[r] for g, r in zip(groups, rows, strict=True))))
    return interval(statistic(*groups), draws, level, min(map(len, members)))


def bootstrap_auc(
    members: ArrayLike,
    non_members: ArrayLike,
    generator: np.random.Generator,
    resamples: int = 1000,
    level: float = 0.95,
    clusters: tuple[ArrayLike, ArrayLike] | None = None,
) -> Interval:
    """`auc` with its interval; both groups are resampled, independently. The same as `bootstrap(auc, ...)`, vectorised.

    clusters: cluster labels (of members, of non-members), as in `bootstrap`. Raises ValueError as `auc` and `bootstrap`.
    """
    value = auc(members, non_members)
    members, others = np.asarray(members, float), np.asarray(non_members, float)
    units = [codes(len(x), c) for x, c in zip((members, others), clusters or (None, None), strict=True)]
    order = np.argsort(others, kind="stable")
    below, upto = (np.searchsorted(others[order], members, side) for side in ("left", "right"))
    draws = []
    for size in _blocks(resamples, len(members) + len(others)):
        ours, theirs = (multiplicities(u, size, generator) for u in units)
        running = np.concatenate([np.zeros((size, 1)), theirs[:, order].cumsum(1)], 1)  # non-members among the i lowest
        wins = (ours * (running[:, below] + running[:, upto])).sum(1) / 2
        draws.append(wins / (ours.sum(1) * running[:, -1]))
    return interval(value, np.concatenate(draws), level, min(int(u.max()) + 1 for u in units))


def codes(n: int, clusters: ArrayLike | None) -> NDArray[np.intp]:
    """Cluster number of each of n documents; each its own if None."""
    if clusters is None:
        return np.arange(n)
    labels = np.asarray(clusters)
    if labels.shape != (n,):
        raise ValueError(f"bootstrap: {n} documents but cluster labels of shape {labels.shape}")
    return np.unique(labels, return_inverse=True)[1]


def _members(n: int, clusters: ArrayLike | None) -> list[NDArray[np.intp]]:
    """Document numbers of each cluster."""
    numbers = codes(n, clusters)
    return np.split(np.argsort(numbers, kind="stable"), np.bincount(numbers).cumsum()[:-1])


def _draw(members: list[NDArray[np.intp]], generator: np.random.Generator) -> NDArray[np.intp]:
    return np.concatenate([members[i] for i in generator.integers(len(members), size=len(members))])


def multiplicities(units: NDArray[np.intp], size: int, generator: np.random.Generator) -> Floats:
    """How often each document is drawn, (size, documents), when clusters are drawn with replacement."""
    k = int(units.max()) + 1
    drawn = generator.integers(k, size=(size, k)) + k * np.arange(size)[:, None]
    return np.bincount(drawn.ravel(), minlength=size * k).reshape(size, k)[:, units].astype(float)


def _blocks(resamples: int, width: int) -> Iterator[int]:
    """Sizes of blocks of resamples that add up to `resamples`."""
    step = max(1, BLOCK // width)
    return (min(step, resamples - start) for start in range(0, resamples, step))


def interval(value: float, draws: ArrayLike, level: float, n: int) -> Interval:
    """The percentile interval of bootstrap draws around a value."""
    draws = np.asarray(draws, float)
    method = "linear" if np.isfinite(draws).all() else "inverted_cdf"  # between infinite draws there is nothing to interpolate
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], method=method)
    return Interval(float(value), float(low), float(high), n)
