"""Are the metrics robust? What attacks change of them, on unlearned models and on retrained ones.

An attack makes any model know more of a forget set. A metric that moves on an unlearned model as it
moves on a retrained one said before what was there; one that moves farther had missed what the
attack brought back. That is the robustness of arXiv 2506.12618: the retrained model's change over
the unlearned one's, and 1 at most. There rounding is judged without a control; here it has one.

The models are those that notebook 19 attacks. Its rows have four metrics of single documents.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from unlearn_utils.core.arrays import Floats
from unlearn_utils.core.methods import METHODS
from unlearn_utils.core.replicates import SHARE
from unlearn_utils.findings import attacks, draws, replicated
from unlearn_utils.findings.attacks import CONTROL, NO_SOURCE, RELEARNING, ROUNDING
from unlearn_utils.findings.audit import MEAN
from unlearn_utils.findings.metrics_audited import ACCURACY, EXTRACTION
from unlearn_utils.findings.replicated import Row
from unlearn_utils.profiles import Profile
from unlearn_utils.study import attacked, selection

ROBUST = "table20_robustness"
PERPLEXITY, MIN_K = "forget perplexity", "Min-40%"

COLUMNS = {  # of a metric: the column that is summed, and what it is divided by (None: documents)
    PERPLEXITY: ("known", "tokens"),
    ACCURACY: ("correct", "tokens"),
    MIN_K: ("min_k_40", None),
    EXTRACTION: ("extraction", None),
}


def robustness(unlearned: Floats, retrained: Floats) -> Floats:
    """Return the control's change over the model's, from 0 to 1; 1 where the model knows no more.

    unlearned, retrained: (draws, 2), a metric before and after the attack; higher is a member.
    """
    ours, theirs = (both[:, 1] - both[:, 0] for both in (unlearned, retrained))
    shares = np.divide(theirs, ours, out=np.ones_like(ours), where=ours > 0)
    return np.clip(shares, 0, 1)


def metrics_of(profile: Profile, *frames: pd.DataFrame) -> dict[str, Floats]:
    """Return every metric of a model at some marks, in each draw: (draws, marks); higher: a member.

    frames: rows of the forget documents, a frame a mark.
    """
    sample = draws.sample(profile, attacked.domain_of(profile), "forget", selection.REPORT)
    found = {}
    for metric, (above, below) in COLUMNS.items():
        at_marks = []
        for rows in frames:
            at_marks.append(sample.mean(rows.assign(known=-rows.nll), above, below))
        found[metric] = np.stack(at_marks, axis=1)
    return found


def before_and_after(
    profile: Profile, looks: attacks.Looks
) -> Iterator[tuple[tuple[str, str, float], dict[str, Floats]]]:
    """Yield attack, source and setting, and `metrics_of` a model before the attack and after it.

    Relearning ends with its last step.
    """
    for (source, rate), rows in looks.relearned.groupby(["source", "learning_rate"], sort=False):
        forget = rows[rows.split == "forget"]
        marks = [forget[forget.step == step] for step in (0, forget.step.max())]
        yield (RELEARNING, source, rate), metrics_of(profile, *marks)
    forget = looks.rounded[looks.rounded.split == "forget"]
    for bits in attacked.BITS:
        marks = [forget[forget.bits == one] for one in (attacked.WHOLE, bits)]
        yield (ROUNDING, NO_SOURCE, bits), metrics_of(profile, *marks)


def robustness_table(profile: Profile) -> pd.DataFrame:
    """Write and return table20_robustness; what is not stored yet is attacked first.

    Returns:
        attack, source (of relearning), setting (a learning rate, or bits), method (or `MEAN`, of
        all), measure (a metric), and the columns of `replicated.table`.
    """
    every = attacks.looks(profile)
    n = draws.sample(profile, attacked.domain_of(profile), "forget", selection.REPORT).families
    values: dict[tuple, list[Floats]] = {}
    for replicate in attacked.replicates_of(profile):
        control = dict(before_and_after(profile, every[replicate, CONTROL]))
        found = {}
        for method in METHODS:
            for attack, ours in before_and_after(profile, every[replicate, method]):
                for metric, both in ours.items():
                    share = robustness(both, control[attack][metric])
                    found[*attack, method, metric] = share
                    found.setdefault((*attack, MEAN, metric), []).append(share)
        for keys, share in found.items():
            values.setdefault(keys, []).append(np.mean(share, axis=0) if keys[3] == MEAN else share)
    names = ("attack", "source", "setting", "method", "measure")
    rows = []
    for keys, by_replicate in values.items():
        rows.append(Row(dict(zip(names, keys, strict=True)), np.stack(by_replicate), n, SHARE))
    return replicated.table(profile, ROBUST, rows)
