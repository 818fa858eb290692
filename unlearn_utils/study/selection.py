"""Which step of a run to keep: two rules, stated before any run, that see one half of the documents. The other half is reported.

Both keep general perplexity within `BOUND` of the target's and come as close as they can to a goal on the forget set. *oracle* knows the
retrained model: its goal is that model's perplexity on the forget set. *practitioner* does not: its goal is the paper's proxy, the
target's perplexity on unseen text of the domain. Step 0, the target itself, is always allowed: a method may be better left alone.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

BOUND = 0.10  # general perplexity may rise by this share over the target's; not stated by the paper, a round number chosen beforehand
BAND = 0.25  # a cell is acceptable if log forget perplexity is this close to the retrained model's; the target is about 1 away; as BOUND
RULES = ("practitioner", "oracle")
SELECTION, REPORT = 0, 1  # halves


def half(rows: pd.DataFrame, which: int) -> pd.DataFrame:
    """The documents of one half: pairs alternate, so both halves hold whole pairs of forget and approximate documents."""
    return rows[rows["rank"] % 2 == which]


def log_perplexity(rows: pd.DataFrame, split: str) -> float:
    """Log of the perplexity on one split."""
    part = rows[rows.split == split]
    return float(part.nll.sum(skipna=False) / part.tokens.sum())


def goals(target: pd.DataFrame, retrained: pd.DataFrame) -> dict[str, float]:
    """The log perplexity that each rule wants on the forget set; rows of the selection half by target and retrained model."""
    return {"practitioner": log_perplexity(target, "approximate"), "oracle": log_perplexity(retrained, "forget")}


def choose(trajectory: pd.DataFrame, goal: float, bound: float = BOUND) -> int:
    """The step of a trajectory (rows of the selection half by `step`, 0 = target) that a rule keeps; the earliest of equals."""
    levels = {step: (log_perplexity(part, "forget"), log_perplexity(part, "evaluation")) for step, part in trajectory.groupby("step")}
    allowed = {step: abs(forget - goal) for step, (forget, general) in levels.items() if general - levels[0][1] <= np.log1p(bound)}
    return int(min(allowed, key=lambda step: (allowed[step], step)))
