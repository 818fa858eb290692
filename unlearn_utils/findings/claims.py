"""Each claim: what is measured for it, the threshold stated beforehand, and the verdict.

The paper's claims (C) are those of its abstract (arXiv 2402.15159), the findings (F) are ours. A
verdict comes from the 95% interval alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from unlearn_utils.core.intervals import Interval
from unlearn_utils.findings import evidence, robustness
from unlearn_utils.profiles import Profile
from unlearn_utils.study import released_code

ABSTRACT = "abstract of the paper"
OURS = "ours"


@dataclass(frozen=True)
class Claim:
    """One claim, and how it is put to the test.

    Attributes:
        id: short, and unique among the claims.
        claim: in words.
        source: who says so.
        quantity: what is measured, in words; "; exact" at its end: it has no interval.
        sense: the quantity shall be "above" or "below" the threshold, or "inside" plus or minus it.
        threshold: stated before the measurement.
        notebook: the number of the notebook that shows the measurement.
        measure: gives, of a profile, the interval and the number of seeds of a run.
    """

    id: str
    claim: str
    source: str
    quantity: str
    sense: str
    threshold: float
    notebook: str
    measure: Callable[[Profile], evidence.Evidence]


def verdict(sense: str, threshold: float, found: Interval) -> str:
    """Return what the 95% interval of a measured quantity says of a claim.

    The claim is "supported", or "not supported", where all of the interval lies on one side of the
    threshold, and "inconclusive" otherwise, as where it touches the threshold. It is "not
    available" where nothing could be measured.

    Args:
        sense: "above", "below" or "inside" (plus or minus the threshold).
        threshold: stated beforehand.
        found: the measured value and its interval; not a number if there is none.
    """
    if np.isnan(found.value):
        return "not available"
    above = found.low > threshold
    below = found.high < threshold
    if sense == "above":
        holds, fails = above, below
    elif sense == "below":
        holds, fails = below, above
    elif sense == "inside":
        holds = below and found.low > -threshold
        fails = above or found.high < -threshold
    else:
        raise ValueError(f"a quantity is above, below or inside a threshold, not {sense!r}")
    if holds:
        return "supported"
    if fails:
        return "not supported"
    return "inconclusive"


# ------------------------------------------------------------------------------------- the claims

MAIN_CLAIMS = (
    Claim(
        id="C1",
        claim="Unlearning costs over 10^5 times less compute than retraining",
        source=ABSTRACT,
        quantity="FLOPs of retraining / unlearning for Yi-6B, computed: the least of all methods "
        "and forget sets; interval: 2.5 to 5 bytes a token",
        sense="above",
        threshold=1e5,
        notebook="12",
        measure=evidence.computed_ratio,
    ),
    Claim(
        id="C1 here",
        claim="The same at the scale of this profile",
        source=ABSTRACT,
        quantity="FLOPs of retraining / unlearning, counted: the largest of all methods and "
        "domains; exact",
        sense="above",
        threshold=1e5,
        notebook="12",
        measure=evidence.counted_ratio,
    ),
    Claim(
        id="C2",
        claim="In-distribution descent makes ascent more robust to hyperparameters",
        source=ABSTRACT,
        quantity="share of acceptable cells of the grid, ascent + descent in-distribution less "
        "gradient ascent",
        sense="above",
        threshold=0.0,
        notebook="11",
        measure=evidence.wider_than_ascent,
    ),
    Claim(
        id="C2 widest",
        claim="No other of the seven methods is as robust",
        source=OURS,
        quantity="share of acceptable cells, ascent + descent in-distribution less the best other "
        "method",
        sense="above",
        threshold=0.0,
        notebook="11",
        measure=evidence.widest,
    ),
    Claim(
        id="C3",
        claim="Seven methods on three domains, judged against retraining, utility and membership "
        "inference",
        source=ABSTRACT,
        quantity="share of models x domains measured on forget, unseen, retain and general text, "
        "target and exact retraining among them; exact",
        sense="above",
        threshold=0.999,
        notebook="10",
        measure=evidence.covered,
    ),
)
FINDINGS = (
    Claim(
        id="F1",
        claim="Approximate retraining is a good proxy",
        source=OURS,
        quantity="log perplexity on the same unseen documents, target / retrained, mean of domains",
        sense="inside",
        threshold=0.05,
        notebook="02",
        measure=evidence.proxy,
    ),
    Claim(
        id="F2",
        claim="Perplexity and membership inference agree on who forgot",
        source=OURS,
        quantity="rank correlation, over methods and domains, of distance to retraining in log "
        "forget perplexity and in AUC of Min-40%",
        sense="above",
        threshold=0.5,
        notebook="10",
        measure=evidence.agreement,
    ),
    Claim(
        id="F3",
        claim="Membership inference tells every unlearned model from a retrained one",
        source=OURS,
        quantity="AUC of Min-40% over the retrained model's, mean of domains, of the method where "
        "it is least",
        sense="above",
        threshold=0.05,
        notebook="10",
        measure=evidence.least_detected,
    ),
)


def guideline_claim(letter: str, guideline: str) -> Claim:
    """Return the claim that a guideline, a key of `robustness.GUIDELINES`, costs little."""
    return Claim(
        id=f"C4{letter}",
        claim=f"Guideline without a retrained model: {guideline}",
        source=f"{ABSTRACT}; guideline: {OURS}",
        quantity="regret on held-out documents: distance to retraining over that of the best cell, "
        "log perplexity, mean of methods",
        sense="below",
        threshold=0.05,
        notebook="11",
        measure=partial(evidence.regret, guideline),
    )


def defect_claim(defect: str) -> Claim:
    """Return the claim that a defect of the released code matters; its name begins with a digit."""
    return Claim(
        id=f"F4.{defect[0]}",
        claim=f"It matters that the released code {released_code.NAMES[defect]}",
        source=OURS,
        quantity="|log forget perplexity, official / corrected| at the end of the epoch; threshold "
        "log 1.1",
        sense="above",
        threshold=round(float(np.log(1.1)), 4),
        notebook="13",
        measure=partial(evidence.effect_of_defect, defect),
    )


GUIDELINE_CLAIMS = tuple(
    guideline_claim(letter, guideline)
    for letter, guideline in zip("abcd", robustness.GUIDELINES, strict=True)
)
DEFECT_CLAIMS = tuple(defect_claim(defect) for defect in released_code.NAMES)
CLAIMS: tuple[Claim, ...] = MAIN_CLAIMS + GUIDELINE_CLAIMS + FINDINGS + DEFECT_CLAIMS

RETRAINED = "approximate retraining stands for a retrained model"
STANDS_IN = {  # by claim: what stands for what cannot be measured on a published model
    "C1 here": "retraining computed as 6 N D",
    "C2": RETRAINED,
    "C2 widest": RETRAINED,
    "F2": RETRAINED,
    "F3": RETRAINED,
}


# -------------------------------------------------------------------------------------- the table


def measure_all(profile: Profile) -> pd.DataFrame:
    """Return the table of all claims on a profile; what is not stored is computed.

    Returns:
        id, claim, source, quantity, sense, threshold, value, low, high, n (documents or families),
        seeds, profile, verdict, notebook.
    """
    rows = []
    for claim in CLAIMS:
        found, seeds = claim.measure(profile)
        quantity = claim.quantity
        if profile.hub and claim.id in STANDS_IN:
            quantity += f"; {STANDS_IN[claim.id]}"
        row = {
            "id": claim.id,
            "claim": claim.claim,
            "source": claim.source,
            "quantity": quantity,
            "sense": claim.sense,
            "threshold": claim.threshold,
            **found._asdict(),
            "seeds": seeds,
            "profile": profile.name,
            "verdict": verdict(claim.sense, claim.threshold, found),
            "notebook": claim.notebook,
        }
        rows.append(row)
    return pd.DataFrame(rows)


def text(row: pd.Series) -> str:
    """Return `value [low, high]`, or the value alone where the quantity is exact.

    Large numbers have two significant digits.
    """
    if np.isnan(row["value"]):
        return "not available"
    value = _rounded(row["value"])
    if "; exact" in row["quantity"]:
        return value
    return f"{value} [{_rounded(row['low'])}, {_rounded(row['high'])}]"


def _rounded(number: float) -> str:
    """Return a number with two decimals, or with two significant digits from 1000 on."""
    return f"{number:.2g}" if abs(number) >= 1000 else f"{number:.2f}"


# ----------------------------------------------------------------------------------- in the README

COLUMNS = ("id", "claim", "measured", "threshold", "n", "verdict", "notebook, command")
START = "<!-- claims: python -m unlearn_utils claims --readme -->"
END = "<!-- end of claims -->"


def markdown(table: pd.DataFrame) -> str:
    """Return the table as the README shows it.

    table: of `measure_all`, or as it was stored.
    """
    lines = [_line(COLUMNS), "|---" * len(COLUMNS) + "|"]
    for _, row in table.iterrows():
        sign = "±" if row.sense == "inside" else ""
        threshold = f"{row.sense} {sign}{row.threshold:.2g}"
        command = f"{row.notebook}, `./run_all.sh --only {row.notebook}`"
        cells = (row.id, row.claim, text(row), threshold, str(row.n), row.verdict, command)
        lines.append(_line(cells))
    return "\n".join(lines) + "\n"


def _line(cells: tuple[str, ...]) -> str:
    """Return a line of a table in Markdown."""
    return f"| {' | '.join(cells)} |"


def write_into(readme: Path, table: pd.DataFrame) -> None:
    """Replace what stands between the marks `START` and `END` of a README by the table.

    Raises:
        ValueError: a mark is missing; nothing is written.
    """
    before, start, rest = readme.read_text(encoding="utf-8").partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise ValueError(
            f"{readme} lacks the marks between which the table goes: {START} and, below it, {END}"
        )
    readme.write_text(f"{before}{start}\n{markdown(table)}{end}{after}", encoding="utf-8")
