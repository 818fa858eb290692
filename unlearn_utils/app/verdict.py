"""The verdict on a run: how far the forget text came on its way to the goal, and what to do.

The goal is the perplexity that the unseen documents had before. The way is measured in log
perplexity, as `tune` does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import pandas as pd

from unlearn_utils.core import tables, tuning
from unlearn_utils.core.intervals import Interval
from unlearn_utils.engine import tuning as searching

NEAR = 0.1  # of the way: so near the goal counts as arrived
ROUNDING = 1e-3  # nats a token: products in bfloat16 move a mean loss by about so much
# how a run ended
DIVERGED = "diverged"
NO_GOAL = "no goal"
TOO_FEW = "too few documents"
NEVER_KNOWN = "never memorised"
UNCLEAR = "hardly memorised"
AWAY = "away from the goal"
UNDER_WAY = "under way"
AT_A_COST = "under way, at a cost"
ARRIVED = "arrived"
BEYOND = "beyond the goal"
SAID = {  # of each: what the line says, and what to do
    DIVERGED: ("the run diverged", "lower the rate"),
    NO_GOAL: ("there is no goal without --unseen", ""),
    TOO_FEW: (
        "{forget} forget and {unseen} unseen documents are too few to say how far "
        "({least_forget} and {least_unseen} are needed)",
        "",
    ),
    NEVER_KNOWN: (
        "forget was as hard as unseen before",
        "nothing to forget, unless the two sets differ in kind",
    ),
    UNCLEAR: (
        "forget was hardly easier than unseen before, so these documents cannot say how far",
        "give more of them",
    ),
    AWAY: ("farther from the goal than before", "raise the rate, or lower --retain-weight"),
    UNDER_WAY: ("{way:z.0%} of the way", "raise the rate or the steps"),
    AT_A_COST: ("{way:z.0%} of the way, and other text lost too much", "take another method"),
    ARRIVED: ("{way:z.0%} of the way, arrived as far as {unseen} unseen documents tell", ""),
    BEYOND: ("{way:z.0%} of the way, beyond the goal", "lower the rate or the steps"),
}


class Change(NamedTuple):
    """Perplexity of a set before and after, and the log of after / before, document by document."""

    before: float
    after: float
    ratio: Interval


class Goal(NamedTuple):
    """Perplexity of the unseen documents before, and the log of it over the forget documents'."""

    level: Interval
    ahead: Interval


class Verdict(NamedTuple):
    """What is said of a run.

    Attributes:
        state: a key of `SAID`.
        way: the share of the way to the goal; None: it cannot be said.
        goal: a perplexity; None: there is none.
        line: what happened, in words.
        advice: what to do, or nothing.
        warnings: a line each.
    """

    state: str
    way: float | None
    goal: float | None
    line: str
    advice: str
    warnings: list[str]

    def in_words(self) -> list[str]:
        """Return the verdict line, and a line for each warning."""
        line = f"{self.line}: {self.advice}" if self.advice else self.line
        return [line, *(f"warning: {warning}" for warning in self.warnings)]


# -------------------------------------------------------------------------------------- from a run


def of_run(results: pd.DataFrame, before: pd.DataFrame, after: pd.DataFrame) -> Verdict:
    """Return the verdict on what was measured before and after.

    Args:
        results: of `cards.results_table`.
        before, after: rows of `user_run.measure`.
    """
    perplexity = results[results.measure == "perplexity"].set_index(["model", "split"])
    levels = perplexity[list(Interval._fields)]
    rows = dict(list(before.groupby("split")))
    changes = {}
    for split, part in after.groupby("split"):
        changes[split] = Change(
            levels.loc[("before", split), "value"],
            levels.loc[("after", split), "value"],
            tables.log_ratio(part, rows[split]),
        )
    goal = None
    if "unseen" in rows:
        level = Interval(*levels.loc[("before", "unseen")])
        goal = Goal(level, tables.log_ratio(rows["unseen"], rows["forget"]))
    return judge(changes, goal)


# ---------------------------------------------------------------------------------------- the rule


def judge(changes: Mapping[str, Change], goal: Goal | None) -> Verdict:
    """Return the verdict.

    Args:
        changes: of each set, "forget" among them.
        goal: None where no unseen documents were given.
    """
    forget = changes["forget"]
    line = f"forget {forget.before:.4g} to {forget.after:.4g}"
    lost = _lost(changes)
    way = None
    counts = {"forget": int(forget.ratio.n)}
    if goal is None:
        state = NO_GOAL
    else:
        line += f"; goal, the unseen documents before: {goal.level.value:.4g}"
        counts["unseen"] = int(goal.level.n)
        state = _against_goal(forget, goal, counts)
    if not all(math.isfinite(change.after) for change in changes.values()):
        state = DIVERGED
    if state in (AWAY, UNDER_WAY, ARRIVED, BEYOND):
        way = _way(forget, goal)
    if state == UNDER_WAY and lost:
        state = AT_A_COST
    said, advice = SAID[state]
    least = {f"least_{name}": searching.LEAST[name] for name in ("forget", "unseen")}
    line += f"; {said.format(way=way, **counts, **least)}"
    value = None if goal is None else float(goal.level.value)
    return Verdict(state, way, value, line, advice, [*_still(forget), *lost])


def _against_goal(forget: Change, goal: Goal, counts: Mapping[str, int]) -> str:
    """Return how a run ended, as far as its goal says."""
    if any(counts[name] < searching.LEAST[name] for name in counts):
        return TOO_FEW
    if goal.ahead.value <= 0:
        return NEVER_KNOWN
    if goal.ahead.low <= 0:
        return UNCLEAR
    way = _way(forget, goal)
    if abs(way - 1) <= NEAR:
        return ARRIVED
    if way > 1 / 2 and goal.level.low <= forget.after <= goal.level.high:
        return ARRIVED
    if way > 1:
        return BEYOND
    if way < 0 and not _still(forget):
        return AWAY
    return UNDER_WAY


def _way(forget: Change, goal: Goal) -> float:
    """Return the share of the way to the goal: 0 is the start, 1 the goal."""
    aim = searching.Goal(searching.UNSEEN, math.log(goal.level.value), math.log(forget.before))
    return aim.way(math.log(forget.after))


def _still(forget: Change) -> list[str]:
    """Return a warning where the change of the forget text says nothing."""
    value, low, high, _ = forget.ratio
    if abs(value) >= ROUNDING and not low <= 0 <= high:
        return []
    shown = ", ".join(f"{math.expm1(end):+.2%}" for end in (low, high))
    return [
        f"nothing moved: perplexity of forget changed by {math.expm1(value):+.2%} [{shown}], no "
        "more than rounding to bfloat16 or chance may do"
    ]


def _lost(changes: Mapping[str, Change]) -> list[str]:
    """Return a warning for each set to be kept that became harder than `tune` allows."""
    warnings = []
    for name in searching.BOUNDED:
        if name not in changes:
            continue
        before, after, ratio = changes[name]
        if ratio.value >= math.log1p(tuning.BOUND):
            warnings.append(
                f"perplexity of {name} text rose from {before:.4g} to {after:.4g}, by more than "
                f"the {tuning.BOUND:.0%} that tune allows"
            )
    return warnings
