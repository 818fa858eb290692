"""Attacks: the blind one, which sees no model, and three on a model that has unlearned.

Relearning trains it on a little text, rounding leaves its weights fewer bits, and a prefix asks it
to go on. The mathematics of what they give back is in `core.attacks`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import Pipeline, make_pipeline
from torch import nn
from transformers import Conv1D

from unlearn_utils.core import metrics
from unlearn_utils.core.methods import DESCENT, Method
from unlearn_utils.engine import evaluation
from unlearn_utils.profiles import Unlearning

# ordinary training, of `training.unlearn`: its "forget" text is what is learned
RELEARNING = Method("relearning", "Relearning", DESCENT)

# ------------------------------------------------------------------------------- without a model


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


# ------------------------------------------------------------------------------------ relearning


def recipe(learning_rate: float, steps: int, batch: int, documents: int) -> Unlearning:
    """Return the recipe of a relearning run: AdamW at a constant rate.

    documents: that are learned from, over and over.
    """
    return Unlearning(learning_rate=learning_rate, epochs=steps * batch / documents, batch=batch)


def marks(steps: int) -> list[int]:
    """Return the steps of a run at which it is measured: 0, doubling ones, and the last."""
    doubling = [2**power for power in range(steps.bit_length())]
    return sorted({0, *doubling, steps})


@dataclass
class Marks:
    """A watch of a run that measures documents at some of its steps.

    Attributes:
        documents: that are measured, with a column `ids`.
        pad_id: the token that pads.
        steps: at which they are.
        frames: of `evaluation.measure_briefly`, one a step, with the step.
    """

    documents: pd.DataFrame
    pad_id: int
    steps: Sequence[int]
    frames: list[pd.DataFrame] = field(default_factory=list)

    def __call__(self, step: int, model: nn.Module) -> None:
        """Measure after a step, if it is one of them."""
        if step in self.steps:
            rows = evaluation.measure_briefly(model, self.documents, self.pad_id)
            self.frames.append(rows.assign(step=step))

    def rows(self) -> pd.DataFrame:
        """Return the rows so far."""
        return pd.concat(self.frames, ignore_index=True)


# -------------------------------------------------------------------------------------- rounding


@torch.no_grad()
def round_weights(model: nn.Module, bits: int) -> float:
    """Round the weights of every linear layer in place, each to the nearest of 2^bits - 1 values.

    The values are symmetric about 0, and each output channel has a scale of its own: its largest
    weight is the largest value. Embedding, head and biases stay, as is usual in practice; so do
    experts that are no layers of their own.

    Returns:
        The share of the model's parameters that were rounded.
    """
    most = 2 ** (bits - 1) - 1
    rounded = 0
    for module in model.modules():
        if not isinstance(module, nn.Linear | Conv1D) or module is model.get_output_embeddings():
            continue
        inputs = 0 if isinstance(module, Conv1D) else 1  # the other dimension is the outputs'
        weight = module.weight.float()
        largest = weight.abs().amax(inputs, keepdim=True)
        scale = largest.clamp(min=torch.finfo(torch.float32).tiny) / most
        module.weight.copy_((weight / scale).round() * scale)
        rounded += weight.numel()
    return rounded / sum(weight.numel() for weight in model.parameters())


# ---------------------------------------------------------------------------------------- prefix


def continued(
    model: nn.Module, documents: pd.DataFrame, prefix: int, length: int, pad_id: int
) -> pd.DataFrame:
    """Return how a model goes on greedily after the first tokens of each document.

    Args:
        model: that is asked.
        documents: with a column `ids`; those of fewer than `prefix + length` tokens are left out.
            `question`, if there is one, says how many of the first are given beside, and not
            counted.
        prefix: tokens that it is given.
        length: tokens that it then writes.
        pad_id: the token that pads.

    Returns:
        The documents' own columns less text and `ids`; prefix; rouge_l and exact_prefix (tokens)
        of what is written against the document.

    Raises:
        ValueError: no document is so long.
    """
    chosen = documents[counted_tokens(documents) >= prefix + length]
    if chosen.empty:
        raise ValueError(f"no document has {prefix} + {length} tokens that are counted")
    starts = chosen.ids.map(len) - counted_tokens(chosen) + prefix
    parts = []
    for start, same in chosen.groupby(starts):
        prompts = [ids[:start] for ids in same.ids]
        true = [ids[start : start + length] for ids in same.ids]
        written = evaluation.greedy_continuations(model, prompts, length, pad_id)
        part = same.drop(columns=["ids", "text"], errors="ignore").assign(
            prefix=prefix,
            rouge_l=list(map(metrics.rouge_l, written, true)),
            exact_prefix=list(map(metrics.exact_prefix, written, true)),
        )
        parts.append(part)
    return pd.concat(parts).loc[chosen.index]


def counted_tokens(documents: pd.DataFrame) -> pd.Series:
    """Return how many tokens each document has after its question, if it has one."""
    tokens = documents.ids.map(len)
    return tokens - documents.question if "question" in documents else tokens
