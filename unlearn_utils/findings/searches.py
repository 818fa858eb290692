"""What the command `tune` would do with the study's paths: the rates it tries, the marks it sees.

The rules are the command's own, `core.tuning`. The paths are there already, so a search ends them
by not looking farther.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from unlearn_utils.core import tuning
from unlearn_utils.core.arrays import Floats
from unlearn_utils.core.tuning import Tried


class Paths(NamedTuple):
    """The marks of one method in one replicate, the model before unlearning first.

    Attributes:
        rates: learning rate of each mark, 0 of the first: (marks,).
        steps: of each mark: (marks,).
        total: steps that a path can have.
        diverged: rates of the paths that gave no numbers after their last mark.
        way: to the goal, at each mark: (draws, marks).
        missed: by how much the goal is missed: (draws, marks).
        within: whether the mark is within the bound: (draws, marks).
    """

    rates: Floats
    steps: Floats
    total: int
    diverged: frozenset[float]
    way: Floats
    missed: Floats
    within: np.ndarray


class Searched(NamedTuple):
    """What a search does, in each draw.

    Attributes:
        seen: which marks it comes to, the model before unlearning among them: (draws, marks).
        paths: how many it runs: (draws,).
        steps: of all its paths: (draws,).
        marks: of all its paths: (draws,).
    """

    seen: np.ndarray
    paths: np.ndarray
    steps: np.ndarray
    marks: np.ndarray


def search(rates: Sequence[float], stored: Paths, budget: float = np.inf) -> Searched:
    """Return what a search over some rates does, where the goal is the level of unseen text.

    Args:
        rates: from small to large.
        stored: paths at each of them.
        budget: steps that all paths of a search have together; a path ends where they are spent.
    """
    seen = np.zeros(stored.way.shape, bool)
    seen[:, 0] = True
    paths, steps = [], []
    for draw in range(len(seen)):
        tried = _search(rates, stored, draw, seen[draw], budget)
        paths.append(len(tried))
        steps.append(sum(path.step for path in tried))
    return Searched(seen, np.array(paths), np.array(steps), seen.sum(1) - 1)


def _search(
    rates: Sequence[float], stored: Paths, draw: int, seen: np.ndarray, budget: float
) -> list[Tried]:
    """Return the paths of one draw.

    seen: is set for the marks that the search comes to.
    """
    tried: list[Tried] = []
    if not np.isfinite(stored.way[draw, 0]):  # the goal is reached before unlearning
        return tried
    while (rate := tuning.next_rate(rates, tried)) is not None and budget >= 1:
        tried.append(_path(rate, stored, draw, seen, budget))
        budget -= tried[-1].step
    return tried


def _path(rate: float, stored: Paths, draw: int, seen: np.ndarray, budget: float) -> Tried:
    """Return one path as far as the search follows it, and as the budget of steps lets it."""
    total = stored.total
    missed = float(stored.missed[draw, 0])
    way = 0.0
    step = 1
    for mark in np.flatnonzero(stored.rates == rate):
        if stored.steps[mark] > budget:
            break
        seen[mark] = True
        step, way = int(stored.steps[mark]), float(stored.way[draw, mark])
        is_within = bool(stored.within[draw, mark])
        if is_within:
            missed = min(missed, float(stored.missed[draw, mark]))
        ended = tuning.ending(step, total, way, way, is_within)
        if ended is not None:
            return Tried(rate, ended, step, total, way, missed)
    if budget < total:
        return Tried(rate, None, int(budget), total, way, missed)
    if rate in stored.diverged:
        return Tried(rate, tuning.DIVERGED, step, total, way, missed)
    return Tried(rate, None, total, total, way, missed)
