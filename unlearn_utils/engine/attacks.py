"""The blind attack: it tells forget documents from unseen ones by their text, without a model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import Pipeline, make_pipeline


def blind_scores(
    members: Sequence[str],
    others: Sequence[str],
    pairs: Sequence[int],
    folds: int = 5,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Return out-of-fold scores of members and of others; higher = more member-like.

    They are those of a logistic regression on a bag of words. AUC near 0.5: the split itself gives
    nothing away, and what an attack on a model finds is membership (arXiv 2406.16201 asks for this
    baseline).

    Args:
        members, others: texts in the order of their pairs.
        pairs: the number of each pair, which stays in one fold, so that every fold has as many of
            both. Every document is a family of its own, so no family is split either.
        folds: how many, if there are as many pairs.
        seed: decides which pairs are together.
    """
    texts = np.array([*members, *others], dtype=object)
    labels = np.repeat([1, 0], [len(members), len(others)])
    folds = min(folds, len(set(pairs)))
    splitter = GroupKFold(n_splits=folds, shuffle=True, random_state=seed)
    scores = np.zeros(len(texts))
    for train, test in splitter.split(texts, labels, groups=[*pairs, *pairs]):
        model = _bag_of_words().fit(texts[train], labels[train])
        scores[test] = model.decision_function(texts[test])
    return scores[: len(members)], scores[len(members) :]


def _bag_of_words() -> Pipeline:
    """Return the attack's model, not fitted yet."""
    words = TfidfVectorizer(sublinear_tf=True, token_pattern=r"\w+")
    return make_pipeline(words, LogisticRegression(max_iter=1000))
