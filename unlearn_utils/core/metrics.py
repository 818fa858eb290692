"""Measures of memorisation, and of closeness to the retrained model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from rapidfuzz.distance import LCSseq
from scipy import stats

from unlearn_utils.core import arrays

# ----------------------------------------------------------------------------------- memorisation


def extraction_strength(correct: ArrayLike) -> float:
    """Return the share of a document that greedy decoding restores (arXiv 2406.09179).

    It is 1 - k/n, with k the shortest prefix after which every greedy prediction is right; 0 if the
    last one is wrong.

    Args:
        correct: (n,), bool: whether each predicted token is the argmax, teacher-forced.

    Raises:
        ValueError: there is no token.
    """
    wrong = np.flatnonzero(~arrays.as_vector(correct, "extraction strength", bool))
    prefix = wrong[-1] + 1 if wrong.size else 0
    return 1.0 - prefix / np.size(correct)


def rouge_l(prediction_tokens: Sequence, truth_tokens: Sequence) -> float:
    """Return ROUGE-L F1 in [0, 1] (Lin 2004).

    It is the harmonic mean of the longest common subsequence over the length of each. An empty
    prediction scores 0.

    Args:
        prediction_tokens, truth_tokens: hashable tokens.

    Raises:
        ValueError: the truth is empty.
    """
    prediction = list(prediction_tokens)
    truth = list(truth_tokens)
    if not truth:
        raise ValueError("ROUGE-L: empty truth")
    common = LCSseq.similarity(prediction, truth)
    return 2 * common / (len(prediction) + len(truth))


def exact_prefix(prediction: Sequence, truth: Sequence) -> int:
    """Return the number of leading tokens on which prediction and truth agree."""
    agreed = 0
    for ours, theirs in zip(prediction, truth, strict=False):
        if ours != theirs:
            break
        agreed += 1
    return agreed


# ----------------------------------------------------------------------- closeness to retraining


class ForgetQuality(NamedTuple):
    """How far the forget set's losses are from the retrained model's.

    Attributes:
        ks_distance: two-sample Kolmogorov-Smirnov distance.
        ks_p: its p-value.
        wilcoxon_p: p-value of the paired Wilcoxon signed-rank test.
        n: documents.
    """

    ks_distance: float
    ks_p: float
    wilcoxon_p: float
    n: int


def forget_quality(nll_unlearned: ArrayLike, nll_retrained: ArrayLike) -> ForgetQuality:
    """Return how far the unlearned model's losses are from the retrained one's (arXiv 2401.06121).

    Args:
        nll_unlearned, nll_retrained: (n,), mean NLL of the same documents of the forget set in the
            same order: hence the paired test too. Two identical arrays have Wilcoxon p 1.

    Raises:
        ValueError: one is empty, or lengths are unequal.
    """
    ours = arrays.as_vector(nll_unlearned, "forget quality")
    theirs = arrays.as_vector(nll_retrained, "forget quality")
    if ours.shape != theirs.shape:
        raise ValueError(f"forget quality is paired: {ours.size} documents against {theirs.size}")
    kolmogorov = stats.ks_2samp(ours, theirs)
    paired_p = 1.0
    if not np.array_equal(ours, theirs):
        paired_p = float(stats.wilcoxon(ours, theirs).pvalue)
    return ForgetQuality(float(kolmogorov.statistic), float(kolmogorov.pvalue), paired_p, ours.size)
