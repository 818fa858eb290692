"""What `tune` would do with stored paths: which it runs, how far, and what it sees, by hand."""

import numpy as np
import pytest

from unlearn_utils.core import tuning
from unlearn_utils.findings import searches
from unlearn_utils.findings.searches import Paths

RATES = (1e-5, 3e-5, 1e-4)
TOTAL = 40


def stored(paths, beyond=(), diverged=()):
    """Return paths in one draw, whose goal is one nat away.

    Args:
        paths: a rate -> (step, way) of its marks.
        beyond: (rate, step) of marks beyond the bound.
        diverged: rates.
    """
    places = [(0.0, 0, 0.0)]
    for rate, marks in paths.items():
        places += [(rate, step, way) for step, way in marks]
    rates, steps, way = map(np.array, zip(*places, strict=True))
    within = [(rate, step) not in beyond for rate, step, _ in places]
    return Paths(
        rates=rates,
        steps=steps,
        total=TOTAL,
        diverged=frozenset(diverged),
        way=way[None],
        missed=np.abs(1 - way)[None],
        within=np.array([within]),
    )


def searched(*given, budget=np.inf, **more):
    """Return which marks are seen, and the numbers of paths, steps and marks."""
    found = searches.search(RATES, stored(*given, **more), budget)
    seen = "".join("x" if one else "." for one in found.seen[0])
    return seen, int(found.paths[0]), int(found.steps[0]), int(found.marks[0])


def test_a_path_that_is_not_ended_has_all_its_steps_whatever_its_last_mark_is():
    paths = {rate: [(8, 0.3), (32, 0.8)] for rate in RATES}
    assert searched(paths) == ("xxxxxxx", 3, 3 * TOTAL, 6)


def test_what_comes_after_the_goal_is_not_seen_and_a_better_one_is_looked_for():
    paths = {1e-5: [(8, 0.9), (32, 1.2), (40, 1.0)], 3e-5: [(1, 0.5), (4, 1.05), (8, 1.0)]}
    assert searched(paths | {1e-4: [(1, 1.5), (2, 1.0)]}) == ("xxx.xx.x.", 3, 32 + 4 + 1, 5)


def test_a_path_ends_beyond_the_bound_and_the_ladder_where_it_is_no_better():
    paths = {1e-5: [(8, 0.5), (32, 0.6)], 3e-5: [(4, 0.5), (8, 0.9)], 1e-4: [(1, 1.0)]}
    beyond = [(1e-5, 32), (3e-5, 8)]
    assert searched(paths, beyond=beyond) == ("xxxxx.", 2, 32 + 8, 4)


def test_a_slow_path_ends_early_and_rates_that_are_too_slow_are_left_out():
    """At 1e-5 the goal is 1e6 times as far after 4 steps: 3e-5 would go 2.7e4 times as far."""
    paths = {1e-5: [(1, 0.0), (4, 1e-6), (8, 1e-5)], 3e-5: [(4, 0.5)], 1e-4: [(4, 0.5)]}
    assert searched(paths) == ("xxx..x", 2, 4 + TOTAL, 3)


def test_a_path_that_gave_no_numbers_is_the_last():
    paths = {1e-5: [(8, 0.5), (12, 0.6)], 3e-5: [(4, 0.5)], 1e-4: [(4, 0.5)]}
    assert searched(paths, diverged=[1e-5]) == ("xxx..", 1, 12, 2)
    assert searched({1e-5: [(8, 0.5)], 1e-4: []}, diverged=[3e-5]) == ("xx", 2, TOTAL + 1, 1)


def test_a_goal_that_is_reached_before_runs_nothing():
    given = stored({rate: [(8, 0.5)] for rate in RATES})
    found = searches.search(RATES, given._replace(way=np.full_like(given.way, np.nan)))
    assert found.seen.tolist() == [[True, False, False, False]]
    assert (found.paths, found.steps, found.marks) == (0, 0, 0)


def test_each_draw_is_a_search_of_its_own():
    one, other = (stored({rate: [(4, way)] for rate in RATES}) for way in (0.5, 1.0))
    both = one._replace(
        way=np.concatenate([one.way, other.way]),
        missed=np.concatenate([one.missed, other.missed]),
        within=np.concatenate([one.within, other.within]),
    )
    found = searches.search(RATES, both)
    assert found.paths.tolist() == [3, 2] and found.marks.tolist() == [3, 2]


@pytest.mark.parametrize(
    ("mark", "ended"),
    [
        ((8, 1.0, 1.0, False), tuning.BEYOND_BOUND),
        ((8, 1.0, 1e-9, True), tuning.AT_GOAL),
        ((8, 0.001, 0.001, True), tuning.TOO_SLOW),
        ((8, 0.001, 0.5, True), None),
        ((20, 0.1, 0.1, True), tuning.TOO_SLOW),
        ((21, 0.1, 0.1, True), None),  # in the second half
        ((40, 0.001, 0.001, True), None),
    ],
)
def test_how_a_mark_ends_a_path(mark, ended):
    step, way, pace, is_within = mark
    assert tuning.ending(step, TOTAL, way, pace, is_within) == ended


def test_a_search_ends_where_its_steps_are_spent():
    """The first path has 40 steps. So the second has 10 of 50, and the third none."""
    paths = {rate: [(8, 0.3), (32, 0.8)] for rate in RATES}
    assert searched(paths, budget=50) == ("xxxx...", 2, 50, 3)
    assert searched(paths, budget=40) == ("xxx....", 1, 40, 2)
    assert searched(paths, budget=7) == ("x......", 1, 7, 0)
    assert searched(paths, budget=3 * TOTAL) == searched(paths)


def test_steps_that_a_search_does_not_need_stay_unspent():
    paths = {1e-5: [(8, 0.9), (32, 1.0)], 3e-5: [(4, 1.2)], 1e-4: [(1, 1.5)]}
    assert searched(paths, budget=100) == searched(paths) == ("xxxx.", 2, 36, 3)
