"""Measures of forgetting, membership and memorisation, and their intervals: pure functions of arrays.

Log-probabilities and negative log-likelihoods (NLL) are in nats. One array of true-token log-probabilities per document, over its
predicted tokens only. Every membership score is oriented so that higher means "member".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from rapidfuzz.distance import LCSseq
from scipy import stats

from unlearn_utils.core import arrays

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


def _documents(nll: ArrayLike, tokens: ArrayLike) -> tuple[arrays.Floats, arrays.Floats]:
    nll, tokens = arrays.as_vector(nll, "perplexity"), arrays.as_vector(tokens, "perplexity")
    if nll.shape != tokens.shape:
        raise ValueError(f"perplexity: {nll.size} documents but {tokens.size} token counts")
    return nll, tokens


# ---------------------------------------------------------------------------------------------- memorisation


def extraction_strength(correct: ArrayLike) -> float:
    """1 - k/n, with k the shortest prefix after which every greedy prediction is right; 0 if the last one is wrong (arXiv 2406.09179).

    correct (n,), bool: whether each predicted token is the argmax, teacher-forced. Raises ValueError if empty.
    """
    wrong = np.flatnonzero(~arrays.as_vector(correct, "extraction strength", bool))
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
    ours, theirs = arrays.as_vector(nll_unlearned, "forget quality"), arrays.as_vector(nll_retrained, "forget quality")
    if ours.shape != theirs.shape:
        raise ValueError(f"forget quality is paired: {ours.size} documents against {theirs.size}")
    ks = stats.ks_2samp(ours, theirs)
    paired = 1.0 if np.array_equal(ours, theirs) else float(stats.wilcoxon(ours, theirs).pvalue)
    return ForgetQuality(float(ks.statistic), float(ks.pvalue), paired, ours.size)
