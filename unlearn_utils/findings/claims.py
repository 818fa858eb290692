"""Each claim: what is measured for it, the threshold that was stated beforehand, and the verdict that follows from the numbers.

The paper's claims (C) are those of its abstract (arXiv 2402.15159), the findings (F) are ours. A verdict comes from the 95% interval alone:
`supported` or `not supported` where all of it lies on one side of the threshold, else `inconclusive`; so is what touches the threshold.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd

from unlearn_utils.core.intervals import Interval
from unlearn_utils.findings import evidence, robustness
from unlearn_utils.profiles import Profile
from unlearn_utils.study import released_code

ABSTRACT, OURS = "abstract of the paper", "ours"


@dataclass(frozen=True)
class Claim:
    """`sense` is "above" or "below" the threshold, or "inside" plus or minus it. `measure` gives the interval and the seeds a run."""

    id: str
    claim: str
    source: str
    quantity: str
    sense: str
    threshold: float
    notebook: str
    measure: Callable[[Profile], tuple[Interval, int]]


def verdict(sense: str, threshold: float, found: Interval) -> str:
    """`supported`, `not supported` or `inconclusive`; `not available` where nothing could be measured (not a number)."""
    if np.isnan(found.value):
        return "not available"
    above, below = found.low > threshold, found.high < threshold
    yes = {"above": above, "below": below, "inside": below and found.low > -threshold}[sense]
    no = {"above": below, "below": above, "inside": above or found.high < -threshold}[sense]
    return "supported" if yes else "not supported" if no else "inconclusive"


RETRAINED = "approximate retraining stands for a retrained model"
STANDS_IN = {"C1": "retraining computed as 6 N D", "C2": RETRAINED, "F2": RETRAINED, "F3": RETRAINED}  # of a published model
GUIDELINES = dict(zip("abcd", robustness.GUIDELINES, strict=True))

CLAIMS: tuple[Claim, ...] = (
    Claim(
        "C1",
        "Unlearning costs over 10^5 times less compute than retraining",
        ABSTRACT,
        "FLOPs of retraining / unlearning for Yi-6B, computed: the least of all methods and forget sets; interval: 2.5 to 5 bytes a token",
        "above",
        1e5,
        "12",
        evidence.computed_ratio,
    ),
    Claim(
        "C1 here",
        "The same at the scale of this profile",
        ABSTRACT,
        "FLOPs of retraining / unlearning, counted: the largest of all methods and domains; exact",
        "above",
        1e5,
        "12",
        evidence.counted_ratio,
    ),
    Claim(
        "C2",
        "In-distribution descent makes ascent more robust to hyperparameters",
        ABSTRACT,
        "share of acceptable cells of the grid, ascent + descent in-distribution less gradient ascent",
        "above",
        0.0,
        "11",
        evidence.wider_than_ascent,
    ),
    Claim(
        "C2 widest",
        "No other of the seven methods is as robust",
        OURS,
        "share of acceptable cells, ascent + descent in-distribution less the best other method",
        "above",
        0.0,
        "11",
        evidence.widest,
    ),
    Claim(
        "C3",
        "Seven methods on three domains, judged against retraining, utility and membership inference",
        ABSTRACT,
        "share of models x domains measured on forget, unseen, retain and general text, target and exact retraining among them; exact",
        "above",
        0.999,
        "10",
        evidence.covered,
    ),
    *(
        Claim(
            f"C4{letter}",
            f"Guideline without a retrained model: {guideline}",
            ABSTRACT + "; guideline: ours",
            "regret on held-out documents: distance to retraining over that of the best cell, log perplexity, mean of methods",
            "below",
            0.05,
            "11",
            partial(evidence.regret, guideline),
        )
        for letter, guideline in GUIDELINES.items()
    ),
    Claim(
        "F1",
        "Approximate retraining is a good proxy",
        OURS,
        "log perplexity on the same unseen documents, target / retrained, mean of domains",
        "inside",
        0.05,
        "02",
        evidence.proxy,
    ),
    Claim(
        "F2",
        "Perplexity and membership inference agree on who forgot",
        OURS,
        "rank correlation, over methods and domains, of distance to retraining in log forget perplexity and in AUC of Min-40%",
        "above",
        0.5,
        "10",
        evidence.agreement,
    ),
    Claim(
        "F3",
        "Membership inference tells every unlearned model from a retrained one",
        OURS,
        "AUC of Min-40% over the retrained model's, mean of domains, of the method where it is least",
        "above",
        0.05,
        "10",
        evidence.least_detected,
    ),
    *(
        Claim(
            f"F4.{defect[0]}",
            f"It matters that the released code {released_code.NAMES[defect]}",
            OURS,
            "|log forget perplexity, official / corrected| at the end of the epoch; threshold log 1.1",
            "above",
            round(float(np.log(1.1)), 4),
            "13",
            partial(evidence.defect, defect),
        )
        for defect in released_code.NAMES
    ),
)


def measured(profile: Profile) -> pd.DataFrame:
    """The table: id, claim, source, quantity, sense, threshold, value, low, high, n (documents or families), seeds, profile, verdict,
    notebook. Computes what is not stored."""
    rows = []
    for c in CLAIMS:
        found, seeds = c.measure(profile)
        note = "; " + STANDS_IN[c.id.split()[0]] if profile.hub and c.id.split()[0] in STANDS_IN and c.id != "C1" else ""
        row = {"id": c.id, "claim": c.claim, "source": c.source, "quantity": c.quantity + note, "sense": c.sense, "threshold": c.threshold}
        row |= found._asdict() | {"seeds": seeds, "profile": profile.name}
        rows.append(row | {"verdict": verdict(c.sense, c.threshold, found), "notebook": c.notebook})
    return pd.DataFrame(rows)


def text(row: pd.Series) -> str:
    """`value [low, high]`, or the value alone where the quantity is exact; large numbers with two significant digits."""
    if np.isnan(row["value"]):
        return "not available"
    value, low, high = (f"{row[c]:.2g}" if abs(row[c]) >= 1000 else f"{row[c]:.2f}" for c in ("value", "low", "high"))
    return value if "; exact" in row["quantity"] else f"{value} [{low}, {high}]"


def markdown(table: pd.DataFrame) -> str:
    """The table as the README shows it."""
    head = "| id | claim | measured | threshold | n | verdict | notebook, command |\n|---|---|---|---|---|---|---|\n"
    command = "{0}, `./run_all.sh --only {0}`"
    limits = [f"{r.sense} {'±' if r.sense == 'inside' else ''}{r.threshold:.2g}" for r in table.itertuples()]
    cells = [
        [r.id, r.claim, text(table.loc[i]), limits[i], str(r.n), r.verdict, command.format(r.notebook)]
        for i, r in enumerate(table.itertuples())
    ]
    return head + "".join(f"| {' | '.join(row)} |\n" for row in cells)
