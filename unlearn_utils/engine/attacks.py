"""Attacks that try to tell forget documents from unseen ones. The blind one sees the text only, never a model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline


def blind_scores(
    members: Sequence[str], others: Sequence[str], pairs: Sequence[int], folds: int = 5, seed: int = 0
) -> tuple[np.ndarray, ...]:
    """Out-of-fold scores of members and of others, by logistic regression on a bag of words; higher = more member-like.

    members, others: texts in the order of their pairs; pairs: the number of each pair, which stays in one fold, so that every fold has
    as many of both. Every document is a family of its own, so no family is split either. AUC near 0.5: the split itself gives nothing
    away, and what an attack on a model finds is membership (arXiv 2406.16201 asks for this baseline).
    """
    texts = np.array([*members, *others], dtype=object)
    labels = np.repeat([1, 0], [len(members), len(others)])
    scores = np.zeros(len(texts))
    splitter = GroupKFold(n_splits=min(folds, len(set(pairs))), shuffle=True, random_state=seed)
    for train, test in splitter.split(texts, labels, groups=[*pairs, *pairs]):
        model = make_pipeline(TfidfVectorizer(sublinear_tf=True, token_pattern=r"\w+"), LogisticRegression(max_iter=1000))
        scores[test] = model.fit(texts[train], labels[train]).decision_function(texts[test])
    return scores[: len(members)], scores[len(members) :]
