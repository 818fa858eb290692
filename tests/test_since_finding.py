"""What notebook 18 opens with, held against the committed study's tables."""

import pytest

from unlearn_utils.core.methods import SINCE
from unlearn_utils.findings import comparison, plots, since

HALF_WAY = since.at(comparison.LEVELS[0], since.AT_BEST)
ALL_THE_WAY = since.at(0.0, since.AT_BEST)
SLOW = {"simnpo", "wga", "satimp"}


@pytest.fixture(scope="module")
def over():
    return plots.committed(since.OVER)


@pytest.fixture(scope="module")
def table():
    return plots.committed(since.TABLE)


def since_the_paper(found):
    return set(found.method) & set(SINCE)


def test_every_method_has_its_differences_of_six_replicates(over):
    tuned = over[over["where"] == since.TUNED]
    assert since_the_paper(tuned) == set(SINCE)
    assert set(tuned.replicates) == {6} and set(tuned.target_domain) == {"arxiv"}


def test_none_is_better_where_rate_and_steps_are_tuned(over):
    assert since.better(over, since.TUNED, since.SCORE, 1).empty


def test_task_vectors_damage_less_half_way_and_not_all_the_way(over):
    for measure in (since.ALL_DAMAGE, since.OVER_RETRAINED):
        assert list(since.better(over, HALF_WAY, measure, -1).method) == ["task_vector"]
        assert since.better(over, ALL_THE_WAY, measure, -1).empty


def test_three_are_more_robust(over):
    found = since.better(over, since.ALL_SETTINGS, since.ROBUSTNESS, 1)
    assert list(found.method) == ["undial", "npo", "task_vector"]


def test_with_the_usual_rate_task_vectors_are_better_tuned(over):
    found = since.better(over, since.TUNED_STEPS, since.SCORE, 1)
    assert list(found.method) == ["task_vector"]


def test_three_hardly_forget_and_never_reach_retraining(table):
    tuned = table[(table["where"] == since.TUNED) & (table.measure == since.GAP)]
    gaps = tuned.set_index("method")["value"]
    assert set(gaps.sort_values().index[:3]) == SLOW
    there = table[(table["where"] == ALL_THE_WAY) & (table.measure == since.ALL_DAMAGE)]
    assert set(there[there.replicates == 0].method) >= SLOW
