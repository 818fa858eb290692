"""Each claim: what is measured for it, the threshold stated beforehand, and the verdict.

The paper's claims (C) are those of its abstract (arXiv 2402.15159), the findings (F) are ours. A
verdict needs two intervals: that of the mean, and that of one further replicate, so that somebody
who runs it again should find the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from unlearn_utils.cache import paths
from unlearn_utils.core.replicates import NOT_AVAILABLE, Estimate
from unlearn_utils.findings import evidence, plots, robustness
from unlearn_utils.findings.evidence import Computed, Evidence, Like
from unlearn_utils.findings.replicated import Row, estimates
from unlearn_utils.profiles import STUDY, Profile
from unlearn_utils.study import released_code

ABSTRACT = "abstract of the paper"
OURS = "ours"
TABLE = "table14_claims"
SUPPORTED, NOT_SUPPORTED, OPEN = "supported", "not supported", "inconclusive"
UNKNOWN = "not available"
RESULTS = list(Estimate._fields)


@dataclass(frozen=True)
class Claim:
    """One claim, or one half of it, and how it is put to the test.

    Attributes:
        id: short, and unique among the claims.
        claim: in words.
        source: who says so.
        quantity: what is measured, in words.
        unit: of the quantity, in words.
        sense: the quantity shall be "above" or "below" the threshold, or "inside" plus or minus it.
        threshold: stated before the measurement.
        notebook: the number of the notebook that shows the measurement.
        measure: gives what is measured on a profile.
        half: what this half is called, where two quantities decide one claim together; else "".
    """

    id: str
    claim: str
    source: str
    quantity: str
    unit: str
    sense: str
    threshold: float
    notebook: str
    measure: Callable[[Profile], Evidence]
    half: str = ""


# ------------------------------------------------------------------------------------- the claims

MAIN_CLAIMS = (
    Claim(
        id="C1",
        claim="Unlearning costs over 10^5 times less compute than retraining",
        source=ABSTRACT,
        quantity="one run of one epoch: retraining / unlearning for Yi-6B, computed: the least of "
        "all methods and forget sets; interval: 2.5 to 5 bytes a token",
        unit="ratio of FLOPs",
        sense="above",
        threshold=1e5,
        notebook="12",
        measure=evidence.computed_ratio,
    ),
    Claim(
        id="C1 tuned",
        claim="The same, with the runs and the measuring that tuning takes (C4a)",
        source=OURS,
        quantity="all runs of tuning rate and steps, and what they read to choose: retraining / "
        "unlearning for Yi-6B, computed as for C1",
        unit="ratio of FLOPs",
        sense="above",
        threshold=1e5,
        notebook="12",
        measure=evidence.tuned_ratio,
    ),
    Claim(
        id="C1 here",
        claim="The same at the scale of this profile",
        source=ABSTRACT,
        quantity="one run of one epoch: retraining / unlearning, counted: the largest of all "
        "methods and domains; exact",
        unit="ratio of FLOPs",
        sense="above",
        threshold=1e5,
        notebook="12",
        measure=evidence.counted_ratio,
    ),
    Claim(
        id="C2",
        claim="In-distribution descent makes ascent more robust to hyperparameters: robustness",
        source=ABSTRACT,
        quantity="mean score over learning rates and steps, ascent + descent in-distribution less "
        "gradient ascent, mean of domains",
        unit="score, 0 to 1",
        sense="above",
        threshold=robustness.SMALLEST["robustness"],
        notebook="11",
        measure=partial(evidence.more_robust, "robustness"),
        half="robustness",
    ),
    Claim(
        id="C2 window",
        claim="In-distribution descent makes ascent more robust to hyperparameters: window",
        source=ABSTRACT,
        quantity="share of settings with half of the method's own best score, ascent + descent "
        "in-distribution less gradient ascent, mean of domains",
        unit="share of settings",
        sense="above",
        threshold=robustness.SMALLEST["window"],
        notebook="11",
        measure=partial(evidence.more_robust, "window"),
        half="window",
    ),
)
FINDINGS = (
    Claim(
        id="F1",
        claim="The paper's proxy reads as a retrained model does",
        source=OURS,
        quantity="log perplexity on the same unseen documents, target less retrained, mean of "
        "pairs and domains",
        unit="nats a token",
        sense="inside",
        threshold=0.05,
        notebook="02",
        measure=evidence.proxy,
    ),
    Claim(
        id="F3",
        claim="At equal forgetting, membership inference still tells every unlearned model from a "
        "retrained one",
        source=OURS,
        quantity="AUC of Min-40% less the retrained model's where the forget set is as hard as for "
        "it, mean of domains, of the method where it is least; methods that never come there, or "
        "jump past it, do not count",
        unit="AUC",
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
        quantity="regret on held-out documents: distance to retraining less that of the best "
        "setting, mean of methods",
        unit="nats a token",
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
        quantity="|log forget perplexity, official / corrected| at the end of the epoch, or where "
        "the first of both runs ends; threshold log 1.1",
        unit="nats a token",
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

RETRAINED = "approximate retraining stands for the retrained model"
STANDS_IN = {  # by claim: what stands for what cannot be measured on a published model
    "C1 here": "retraining computed as 6 N D",
    "C2": RETRAINED,
    "C2 window": RETRAINED,
    "F3": RETRAINED,
}


# ------------------------------------------------------------------------------------ the verdict


def verdict(sense: str, threshold: float, found: Estimate) -> str:
    """Return what a measured quantity says of a claim.

    The claim is "supported", or "not supported", where both intervals lie on one side of the
    threshold, and "inconclusive" otherwise, as where one touches it. The intervals are the 95% one
    of the mean and, where there are several replicates, the one in which a further replicate is
    expected. It is "not available" where nothing could be measured.

    Args:
        sense: "above", "below" or "inside" (plus or minus the threshold).
        threshold: stated beforehand.
        found: the measured value and its intervals; not a number if there is none.

    Raises:
        ValueError: there is no such sense.
    """
    if np.isnan(found.value):
        return UNKNOWN
    low, high = both_intervals(found)
    if sense == "above":
        holds, fails = low > threshold, high < threshold
    elif sense == "below":
        holds, fails = high < threshold, low > threshold
    elif sense == "inside":
        holds = -threshold < low and high < threshold
        fails = low > threshold or high < -threshold
    else:
        raise ValueError(f"a quantity is above, below or inside a threshold, not {sense!r}")
    if holds:
        return SUPPORTED
    if fails:
        return NOT_SUPPORTED
    return OPEN


def both_intervals(found: Estimate) -> tuple[float, float]:
    """Return the least and the most of the interval of the mean and the rerun interval.

    One replicate alone has the first only: the rerun interval beside it is the study's, and would
    repeat the study's verdict. Without a study nothing is known of how training varies, so that one
    replicate may be anywhere.
    """
    if found.replicates == 1 and np.isnan(found.rerun_low):
        return -np.inf, np.inf
    if found.replicates < 2:
        return found.low, found.high
    return min(found.low, found.rerun_low), max(found.high, found.rerun_high)


def margin(sense: str, threshold: float, found: Estimate) -> float:
    """Return how far the value is from the threshold, in half widths of the wider interval.

    Half the width is taken on the side of the threshold. So a verdict is decided where the margin
    is above 1. It is infinite where the number is exact, and no number where there is none.
    """
    if np.isnan(found.value):
        return np.nan
    low, high = both_intervals(found)
    bounds = (threshold, -threshold) if sense == "inside" else (threshold,)
    margins = []
    for bound in bounds:
        half = high - found.value if bound > found.value else found.value - low
        apart = abs(found.value - bound)
        margins.append(apart / half if half > 0 else np.inf)
    return float(min(margins))


def together(halves: Sequence[tuple[str, str]]) -> str:
    """Return the verdict of a claim that two quantities decide together.

    It is the halves' own where they agree; one of two is inconclusive, and says which.

    halves: the name of each, and its verdict.
    """
    verdicts = {told for _, told in halves}
    if len(verdicts) == 1:
        return verdicts.pop()
    words = {SUPPORTED: "yes", NOT_SUPPORTED: "no", OPEN: "open", UNKNOWN: UNKNOWN}
    said = ", ".join(f"{name} {words[told]}" for name, told in halves)
    return f"{OPEN}: {said}"


def decided_by(row: str) -> str:
    """Return the id of the claim that a row decides, alone or with another row.

    row: its id. The rows of one claim have their first word in common, which is its id.
    """
    halves = {claim.id for claim in CLAIMS if claim.half}
    return row.split()[0] if row in halves else row


def of_claims(own: Mapping[str, str]) -> dict[str, str]:
    """Return the verdict of each claim.

    own: by the id of a row, its verdict alone.
    """
    names = {claim.id: claim.half for claim in CLAIMS}
    halves: dict[str, list[tuple[str, str]]] = {}
    for row, told in own.items():
        halves.setdefault(decided_by(row), []).append((names[row], told))
    return {claim: together(told) for claim, told in halves.items()}


# -------------------------------------------------------------------------------------- the reason


def because(row: Estimate) -> str:
    """Return why the verdict of a row is what it is: what follows the word "because".

    row: of the table of `measure_all`, with its sense, threshold and unit.
    """
    if np.isnan(row.value):
        return "there is no retrained model to measure it with, or no run comes so far"
    mean, rerun = between(row.low, row.high), between(row.rerun_low, row.rerun_high)
    place = lies(row, row.low, row.high)
    if row.low == row.high:
        return f"{rounded(row.value)} is {place} ({row.unit}), and the number is exact"
    if row.replicates == 0:
        return f"all that is thought possible, {mean}, lies {place} ({row.unit})"
    if row.replicates == 1 and np.isnan(row.rerun_low):
        return "one replicate says nothing of how much training varies, and no study is committed"
    if row.replicates == 1:
        return f"the interval of one replicate, {mean}, lies {place} ({row.unit})"
    further = lies(row, row.rerun_low, row.rerun_high)
    if place == further:
        return (
            f"the interval of the mean, {mean}, and that of a further replicate, {rerun}, lie "
            f"{place} ({row.unit})"
        )
    return (
        f"the interval of the mean, {mean}, lies {place}, but that of a further replicate, "
        f"{rerun}, lies {further} ({row.unit})"
    )


def lies(row: Estimate, low: float, high: float) -> str:
    """Return where an interval lies, in words after "lies": "above 0.01", or "across 0.01"."""
    opposite = {"above": "below", "below": "above", "inside": "outside"}
    alone = NOT_AVAILABLE._replace(value=row.value, low=low, high=high)
    word = {SUPPORTED: row.sense, NOT_SUPPORTED: opposite[row.sense], OPEN: "across"}
    return f"{word[verdict(row.sense, row.threshold, alone)]} {bound_of(row)}"


def bound_of(row: Estimate) -> str:
    """Return the threshold of a row as text."""
    sign = "±" if row.sense == "inside" else ""
    return f"{sign}{row.threshold:,g}"


def between(low: float, high: float) -> str:
    """Return an interval as text."""
    return f"[{rounded(low)}, {rounded(high)}]"


def rounded(number: float) -> str:
    """Return a number with three significant digits, and commas from 1000 on."""
    if np.isnan(number):
        return UNKNOWN
    short = f"{number:.3g}"
    return f"{float(short):,.0f}" if abs(number) >= 1000 else short


def margin_text(number: float) -> str:
    """Return a margin with one decimal, cut and not rounded: below 1 it reads below 1."""
    if np.isnan(number):
        return UNKNOWN
    if np.isinf(number):
        return "exact"
    return f"{np.floor(number * 10) / 10:.1f}"


# -------------------------------------------------------------------------------------- the table


def measure_all(profile: Profile) -> pd.DataFrame:
    """Return the table of all claims on a profile; what is not stored is computed.

    Returns:
        id, claim, source, quantity, unit, target_domains, sense, threshold; the columns of
        `replicated.table`; margin, own verdict (of this row alone), verdict (of the claim),
        because, study (the verdict of the committed study, "" where there is none, and in the study
        itself), notebook.
    """
    lines = [_measured(profile, claim) for claim in CLAIMS]
    table = pd.DataFrame(lines)
    rows = list(table.itertuples())
    own = {row.id: verdict(row.sense, row.threshold, row) for row in rows}
    table["margin"] = [margin(row.sense, row.threshold, row) for row in rows]
    table["own verdict"] = table["id"].map(own)
    table["verdict"] = table["id"].map(decided_by).map(of_claims(own))
    table["because"] = [because(row) for row in rows]
    committed = {} if profile.name == STUDY.name else study_verdicts()
    table["study"] = [committed.get(claim.id, "") for claim in CLAIMS]
    table["notebook"] = [claim.notebook for claim in CLAIMS]
    return table


def _measured(profile: Profile, claim: Claim) -> dict:
    """Return the row of one claim, without its verdict."""
    found = claim.measure(profile)
    quantity = claim.quantity
    if not profile.has_retrained and claim.id in STANDS_IN:
        quantity += f"; {STANDS_IN[claim.id]}"
    keys = {
        "id": claim.id,
        "claim": claim.claim,
        "source": claim.source,
        "quantity": quantity,
        "unit": claim.unit,
        "target_domains": ", ".join(found.domains),
        "sense": claim.sense,
        "threshold": claim.threshold,
    }
    if isinstance(found, Computed):
        number = NOT_AVAILABLE._replace(
            value=found.value, low=found.low, high=found.high, n=found.n
        )
        return {**keys, **number._asdict()}
    if found.draws is None:
        return {**keys, **NOT_AVAILABLE._asdict()}
    like = found.like or Like(TABLE, keys)
    row = Row(like.keys, found.draws, found.n, found.scale)
    line = estimates(profile, like.table, [row]).iloc[0]
    return {**keys, **line[RESULTS]}


def study_table() -> pd.DataFrame:
    """Return the table of the committed study.

    Raises:
        FileNotFoundError: there is none; the message says how it is made.
    """
    return stored(plots.committed_file(TABLE))


def stored(file: Path) -> pd.DataFrame:
    """Return a table of `measure_all` as it was written."""
    return pd.read_csv(file, dtype={"notebook": str, "by_replicate": str})


def study_verdicts() -> dict[str, str]:
    """Return the verdicts of the committed study by claim; none where there is no study."""
    if not plots.is_committed(TABLE):
        return {}
    study = study_table()
    return dict(zip(study["id"], study["verdict"], strict=True))


# ----------------------------------------------------------------------------------------- to read


def text(row: Estimate) -> str:
    """Return `value [low, high]`, or the value alone where the quantity is exact."""
    value = rounded(row.value)
    if np.isnan(row.value) or row.low == row.high:
        return value
    return f"{value} {between(row.low, row.high)}"


def asked(row: Estimate) -> str:
    """Return what a claim asks of its quantity: "above 0.01"."""
    return f"{row.sense} {bound_of(row)}"


def shown(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table of `measure_all` for reading.

    Returns:
        by id: measured, a further replicate (where it is expected), asked, margin, verdict.
    """
    lines = {}
    for row in table.itertuples():
        lines[row.id] = {
            "measured": text(row),
            "a further replicate": "",
            "asked": asked(row),
            "margin": margin_text(row.margin),
            "verdict": row.verdict,
        }
        if np.isfinite(row.rerun_low):
            lines[row.id]["a further replicate"] = between(row.rerun_low, row.rerun_high)
    return pd.DataFrame.from_dict(lines, orient="index").rename_axis("id")


def sentences(table: pd.DataFrame) -> list[str]:
    """Return a sentence for each row of `measure_all`: its verdict, and why."""
    found = []
    for row in table.to_dict("records"):
        said = f"{row['id']} is {row['own verdict']}, because {row['because']}"
        if row["verdict"] != row["own verdict"]:
            said += f"; of both rows together {decided_by(row['id'])} is {row['verdict']}"
        found.append(f"{said}.")
    return found


# ----------------------------------------------------------------------------------- in the README

START = "<!-- claims: python -m unlearn_utils claims --readme -->"
END = "<!-- end of claims -->"


def markdown(table: pd.DataFrame, beside: pd.DataFrame | None = None) -> str:
    """Return the table of claims as the README shows it.

    Args:
        table: of `measure_all`, or as it was stored.
        beside: of another profile, whose values stand beside; None: of none.
    """
    columns = ["id", "claim", "measured", "asked", "margin", "verdict", "notebook"]
    values = {}
    if beside is not None:
        columns.insert(-1, "one replicate")
        values = dict(zip(beside["id"], beside["value"], strict=True))
    lines = [_line(columns), "|---" * len(columns) + "|"]
    for row in table.itertuples():
        cells = [
            row.id,
            row.claim,
            text(row),
            asked(row),
            margin_text(row.margin),
            row.verdict,
            row.notebook,
        ]
        if beside is not None:
            cells.insert(-1, rounded(values.get(row.id, np.nan)))
        lines.append(_line(cells))
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    """Return a line of a table in Markdown."""
    return f"| {' | '.join(cells)} |"


def write_into(readme: Path, table: str) -> None:
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
    paths.write_whole(readme, f"{before}{start}\n{table}{end}{after}")
