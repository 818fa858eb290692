"""Which step of a run to keep, by two rules that were stated before any run.

The rules see one half of the documents; the other half is reported. Both keep general perplexity
within `BOUND` of the target's, and come as close as they can to a goal on the forget set. *oracle*
knows the retrained model: its goal is that model's perplexity on the forget set. *practitioner*
does not: its goal is the paper's proxy, the target's perplexity on unseen text of the domain. Step
0, the target itself, is always allowed: a method may be better left alone.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

# General perplexity may rise by this share over the target's. The paper states none: a round number
# that was chosen beforehand.
BOUND = 0.10
# A cell is acceptable if log forget perplexity is this close to the retrained model's. The target
# is about 1 away. Chosen as BOUND was.
BAND = 0.25
RULES = ("practitioner", "oracle")
SELECTION, REPORT = 0, 1  # halves


def half(rows: pd.DataFrame, which: int) -> pd.DataFrame:
    """Return the documents of one half.

    Pairs alternate, so both halves hold whole pairs of forget and approximate documents.

    which: `SELECTION` or `REPORT`.
    """
    return rows[rows["rank"] % 2 == which]


def log_perplexity(rows: pd.DataFrame, split: str) -> float:
    """Return the log of the perplexity on one split: nats a predicted token."""
    part = rows[rows.split == split]
    return float(part.nll.sum(skipna=False) / part.tokens.sum())


def goals(target: pd.DataFrame, retrained: pd.DataFrame) -> dict[str, float]:
    """Return the log perplexity that each rule wants on the forget set.

    target, retrained: rows of the selection half, measured by each model.
    """
    return {
        "practitioner": log_perplexity(target, "approximate"),
        "oracle": log_perplexity(retrained, "forget"),
    }


def choose(trajectory: pd.DataFrame, goal: float, bound: float = BOUND) -> int:
    """Return the step that a rule keeps: of the allowed ones the nearest to its goal.

    Of equals it is the earliest.

    Args:
        trajectory: rows of the selection half by `step`, of which 0 is the target.
        goal: the log perplexity that the rule wants on the forget set.
        bound: by which share general perplexity may rise over the target's.
    """
    forget = {}
    general = {}
    for step, part in trajectory.groupby("step"):
        forget[step] = log_perplexity(part, "forget")
        general[step] = log_perplexity(part, "evaluation")
    missed = {}
    for step, level in forget.items():
        if general[step] - general[0] <= np.log1p(bound):
            missed[step] = abs(level - goal)
    return int(min(missed, key=lambda step: (missed[step], step)))
