"""What was measured, by the names of open-unlearning, the field's largest toolbox.

A name of theirs is used only where we measure what it stands for. What still differs is said beside
each value. What nobody can know without a retrained model is left out where none was given.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from unlearn_utils.cache import paths
from unlearn_utils.core import intervals, membership, metrics, tables
from unlearn_utils.core.arrays import Floats
from unlearn_utils.core.intervals import Interval

TOOLBOX = "open-unlearning (https://github.com/locuslab/open-unlearning)"
IN_GENERAL = (
    "A data point of a mean or an AUC is a chunk of a document, as long as the model's context; "
    "theirs is one text, cut off at a length. low and high are a 95% bootstrap over n documents; "
    "theirs have no interval. Names of theirs that are not here were not measured."
)
LAST = "We count every predicted token; they leave the last one of each text out."
HOLDOUT = "Oriented as theirs: 1 where forget text looks seen. Their holdout is our unseen text. "
PRIVACY = "Min-40%"  # the score of privleak, as in theirs
RESAMPLES = 1000


class Name(NamedTuple):
    """A name of theirs.

    Attributes:
        theirs: the name.
        ours: what we call it.
        differs: in definition, a sentence or two.
    """

    theirs: str
    ours: str
    differs: str


EXTRACTION = Name(
    "extraction_strength",
    "extraction strength of the forget text, mean",
    f"{LAST} Where the last counted one is wrong, they give 1 / tokens and we 0.",
)
EXACT = Name(
    "exact_memorization",
    "accuracy on the forget text, mean over chunks",
    f"{LAST} Our table of results has the mean over tokens instead.",
)
ATTACKS = {  # score of `membership.SCORES` -> name
    "Min-40%": Name("mia_min_k", "AUC Min-40%", f"{HOLDOUT}k is 0.4 in both. {LAST}"),
    "Min-40%++": Name("mia_min_k_plus_plus", "AUC Min-40%++", f"{HOLDOUT}k is 0.4 in both. {LAST}"),
    "loss": Name("mia_loss", "AUC loss", f"{HOLDOUT}The score is the same."),
    "zlib": Name("mia_zlib", "AUC zlib", f"{HOLDOUT}The score is the same."),
}
ANSWERS = {  # set -> name
    split: Name(
        f"{split}_Q_A_Prob",
        f"probability of a token of the answer, geometric mean, {split} text",
        "The question stands in plain words before the answer, not in the model's chat template, "
        "and no end token is counted after the answer.",
    )
    for split in ("forget", "retain")
}
REFERENCE = Name(
    "mia_reference",
    "AUC of the loss under the retrained model less that under this one",
    f"{HOLDOUT}The score is the same. Their reference is any model that is named, ours the "
    "retrained one.",
)
QUALITY = Name(
    "forget_quality",
    "p of a Kolmogorov-Smirnov test between mean losses of forget documents and the retrained "
    "model's",
    "They test truth ratios, which need paraphrased and wrong answers, against the stored logs of "
    "a retain model. A p has no interval.",
)
PRIVLEAK = Name(
    "privleak",
    "PrivLeak of Min-40%",
    "The formula is the same, 100 (AUC_retrained - AUC) / (1 - AUC_retrained). They take the "
    "retrained model's AUC from stored logs, or 0.5 without them; we measure it.",
)


# ---------------------------------------------------------------------------------- what is written


def write(file: Path, found: Mapping) -> None:
    """Write what `of_models` returns."""
    paths.write_whole(file, json.dumps(found, indent=1) + "\n")


def of_models(parts: Sequence[pd.DataFrame], forget: str, retrained: str | None = None) -> dict:
    """Return what is known of each model by their names.

    Args:
        parts: rows of `user_run.measure`, one model each, with a column model.
        forget: the set that is forgotten; "unseen" and "retain" may stand beside it.
        retrained: the one of these models that never saw that set.
    """
    rows = {part.model.iloc[0]: part.replace({"split": {forget: "forget"}}) for part in parts}
    models = {}
    for model, own in rows.items():
        models[model] = _of_model(own)
        if retrained is not None and model != retrained:
            models[model] |= _against(own, rows[retrained])
    about = {"names": TOOLBOX, "in_general": IN_GENERAL}
    if retrained is not None:
        about["retrained"] = retrained
    return about | {"models": models}


def _entry(name: Name, found: Interval) -> dict:
    """Return one value by its name; what is no number is null."""
    numbers = {}
    for part, number in found._asdict().items():
        numbers[part] = number if math.isfinite(number) else None
    return {name.theirs: numbers | {"ours": name.ours, "differs": name.differs}}


# ---------------------------------------------------------------------------------- of one model


def _of_model(rows: pd.DataFrame) -> dict:
    """Return what needs no other model."""
    forget = rows[rows.split == "forget"]
    found = _entry(EXTRACTION, _mean(forget, forget.extraction))
    found |= _entry(EXACT, _mean(forget, forget.correct / forget.tokens))
    for split, name in ANSWERS.items():
        part = rows[rows.split == split]
        if len(part) and part.question.all():
            found |= _entry(name, _mean(part, np.exp(-part.nll / part.tokens)))
    if "unseen" in set(rows.split):
        sides = rows.replace({"split": {"unseen": "approximate"}})
        areas = tables.auc_table(sides, ["model"], list(ATTACKS))
        bounds = areas[list(Interval._fields)].itertuples(index=False, name=None)
        for name, found_area in zip(ATTACKS.values(), bounds, strict=True):
            found |= _entry(name, Interval(*found_area))
    return found


def _mean(rows: pd.DataFrame, values: pd.Series) -> Interval:
    """Return the mean of a value of each chunk, bootstrapped over documents."""
    weights = tables.draw_weights(rows, np.random.default_rng(0), RESAMPLES)
    draws = weights @ values.to_numpy() / weights.sum(1)
    return intervals.interval(draws[0], draws[1:], 0.95, rows.family.nunique())


# ------------------------------------------------------------------------ against a retrained model


def _against(rows: pd.DataFrame, retrained: pd.DataFrame) -> dict:
    """Return what needs a retrained model, measured on the same documents."""
    losses = _document_losses(rows), _document_losses(retrained)
    quality = metrics.forget_quality(*losses)
    found = _entry(QUALITY, Interval(quality.ks_p, math.nan, math.nan, quality.n))
    if "unseen" in set(rows.split):
        found |= _entry(REFERENCE, _over_reference(rows, retrained))
        leak = _leak(rows, retrained)
        if leak is not None:
            found |= _entry(PRIVLEAK, leak)
    return found


def _document_losses(rows: pd.DataFrame) -> np.ndarray:
    """Return the mean loss of each forget document, in the order of their hashes."""
    sums = rows[rows.split == "forget"].groupby("family")[["nll", "tokens"]].sum()
    return (sums.nll / sums.tokens).to_numpy()


def _leak(rows: pd.DataFrame, retrained: pd.DataFrame) -> Interval | None:
    """Return PrivLeak; None where the retrained model's AUC is 1, which leaves it undefined.

    Both models are read on the same draws of documents. Draws that leave it undefined do not count.
    """
    column = membership.get_score(PRIVACY).column
    auc, reference = (_areas(of, of[column]) for of in (rows, retrained))
    if reference[0] >= 1:
        return None
    defined = reference < 1
    draws = membership.priv_leak(auc[defined], reference[defined])
    return intervals.interval(draws[0], draws[1:], 0.95, _documents(rows))


def _over_reference(rows: pd.DataFrame, retrained: pd.DataFrame) -> Interval:
    """Return the AUC of how much harder each chunk is for the retrained model."""
    ours, theirs = (of.nll / of.tokens for of in (rows, retrained))
    draws = _areas(rows, theirs - ours)
    return intervals.interval(draws[0], draws[1:], 0.95, _documents(rows))


def _areas(rows: pd.DataFrame, scores: pd.Series) -> Floats:
    """Return the AUC of forget against unseen chunks by a score, in each draw of documents."""
    generator = np.random.default_rng(0)
    sides = [rows.split == split for split in ("forget", "unseen")]
    weights = [tables.draw_weights(rows[side], generator, RESAMPLES) for side in sides]
    return membership.weighted_auc(*(scores[side].to_numpy() for side in sides), *weights)


def _documents(rows: pd.DataFrame) -> int:
    """Return the documents of the smaller of the two sets."""
    return min(rows[rows.split == split].family.nunique() for split in ("forget", "unseen"))
