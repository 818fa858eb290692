"""Rules of tuning without a retrained model: which setting is chosen, and which is tried next.

A *goal* is what unlearning shall come to: the level of unseen documents before it, or an AUC of one
half. The *way* is the share of the distance to it that is covered: 0 before the first step, 1 at
the goal. A *bound* limits how far the perplexity of other text may rise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from unlearn_utils.core.arrays import Floats

# Other text's perplexity may rise by this share over the model's before unlearning. The paper
# states none: a round number that was chosen before any run.
BOUND = 0.10
# Half decades. What the paper used for 6e9 parameters (2e-5) and what suits a million (3e-4) or
# LoRA (to 1e-3) lie well inside; below, weights in 16 bits lose what they are moved by.
LADDER = (1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
# The way grows at most with this power of rate x steps, by which AdamW moves weights. On 57 paths
# of the profile laptop the largest power between two marks from step 4 on was 2.7, the median 1.8.
POWER = 3
FIRST_JUDGED = 4  # the step at which a path's pace is first judged
READ = 16  # chunks of a set and half at a mark: with four sets a mark then costs about six steps
# how a path ended, if before its last step
TOO_SLOW = "too slow to come to the goal"
AT_GOAL = "at the goal"
BEYOND_BOUND = "beyond the bound"
DIVERGED = "diverged"


# ------------------------------------------------------------------------------------ the choice


def chosen(
    missed: Floats, rises: Floats, bound: float, fits: np.ndarray | None = None
) -> np.ndarray:
    """Return the setting that misses the goal least within the bound, in each draw: (draws,).

    It is the first, the model before unlearning, where nothing else is within it.

    Args:
        missed: by how much the goal is missed: (draws, settings).
        rises: of log perplexity over the model before unlearning: (draws, settings, texts).
        bound: perplexity rises by less than this share, such as `BOUND`.
        fits: settings that come into question: (settings,) or (draws, settings); None: all.
    """
    allowed = within(rises, bound)
    if fits is not None:
        allowed &= fits
    return np.argmin(np.where(allowed, missed, np.inf), axis=1)


def within(rises: Floats, bound: float) -> np.ndarray:
    """Return whether all texts rise by less than the bound: (...) of (..., texts)."""
    return (rises < np.log1p(bound)).all(-1)


# ----------------------------------------------------------------------------------- on the way


def next_glance(before: tuple[int, float], now: tuple[int, float], moved: float) -> int:
    """Return the step of the next glance at a path.

    It is where half of `moved` is covered at the last pace, but at most a quarter of the steps on.

    Args:
        before, now: the step of a glance, and the level then.
        moved: by so much the level moves from one mark to the next.
    """
    pace = abs(now[1] - before[1]) / (now[0] - before[0])
    furthest = max(1, now[0] // 4)
    if not pace * furthest > moved / 2:
        return now[0] + furthest
    return now[0] + max(1, int(moved / 2 / pace))


def too_slow(way: float, step: int, total: int, faster: float = 1.0) -> bool:
    """Return whether a path that covers `way` in `step` steps cannot come to the goal in all.

    faster: by so much the rate in question is larger.
    """
    if step < FIRST_JUDGED:
        return False
    return max(way, 0.0) * (faster * total / step) ** POWER < 1


def ending(step: int, total: int, way: float, pace: float, is_within: bool) -> str | None:
    """Return how a path ends with a mark; None: it goes on.

    Args:
        step: of the mark.
        total: steps that the path can have.
        way: to the goal, at the mark.
        pace: the way to the goal of level; the same, where that is the goal.
        is_within: whether the mark is within the bound.
    """
    if not is_within:
        return BEYOND_BOUND
    if way >= 1:
        return AT_GOAL
    if given_up(pace, step, total):
        return TOO_SLOW
    return None


def given_up(pace: float, step: int, total: int) -> bool:
    """Return whether a path ends because it is too slow.

    In its second half none does: little is left, and where the bound keeps faster paths from the
    goal, its end may be the best there is.
    """
    return step <= total / 2 and too_slow(pace, step, total)


# ----------------------------------------------------------------------------- the ladder of rates


class Tried(NamedTuple):
    """One path of a method, in short.

    Attributes:
        rate: its learning rate.
        ended: how, as above; None: with its last step.
        step: the last.
        total: steps that it could have had.
        way: at the last step.
        missed: the least by which a mark within the bound misses the goal; doing nothing counts.
    """

    rate: float
    ended: str | None
    step: int
    total: int
    way: float
    missed: float


def next_rate(rates: Sequence[float], tried: Sequence[Tried]) -> float | None:
    """Return the learning rate to try next; None: a larger one can only be worse, or is not there.

    Rates that are too slow by the last path's pace are left out, but for the largest. The ladder
    ends with a path that diverged, that came to the goal or to the bound with its first step, or
    that came to one of them and was no better than a path before.

    Args:
        rates: from small to large.
        tried: paths so far, in that order.
    """
    if not tried:
        return rates[0]
    last = tried[-1]
    larger = [rate for rate in rates if rate > last.rate]
    if not larger or last.ended == DIVERGED:
        return None
    if last.ended in (AT_GOAL, BEYOND_BOUND):
        least_before = min((path.missed for path in tried[:-1]), default=np.inf)
        if last.step == 1 or last.missed >= least_before:
            return None
    if last.way > 0:
        for rate in larger[:-1]:
            if not too_slow(last.way, last.step, last.total, rate / last.rate):
                return rate
        return larger[-1]
    return larger[0]
