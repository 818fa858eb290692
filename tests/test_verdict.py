"""The verdict on a run, case by case, and that it comes from the numbers that stand in results."""

import math

import pandas as pd
import pytest

from unlearn_utils.app import cards, verdict
from unlearn_utils.app.verdict import Change, Goal
from unlearn_utils.core.intervals import Interval

DOCUMENTS = 60


def change(before, after, n=DOCUMENTS, spread=0.01):
    """Return a change whose log ratio is known to within `spread`."""
    ratio = math.log(after / before)
    return Change(before, after, Interval(ratio, ratio - spread, ratio + spread, n))


def goal(level, forget, n=DOCUMENTS, spread=0.05):
    """Return a goal of this perplexity, known to within a share of `spread`."""
    ahead = math.log(level / forget)
    return Goal(
        Interval(level, level * (1 - spread), level * (1 + spread), n),
        Interval(ahead, ahead - spread, ahead + spread, n),
    )


FROM_119 = "forget 119 to {after}; goal, the unseen documents before: 150; "


@pytest.mark.parametrize(
    ("after", "state", "said"),
    [
        (122.0, verdict.UNDER_WAY, "11% of the way: raise the rate or the steps"),
        (141.0, verdict.UNDER_WAY, "73% of the way: raise the rate or the steps"),
        (143.0, verdict.ARRIVED, "79% of the way, arrived as far as 60 unseen documents tell"),
        (157.0, verdict.ARRIVED, "120% of the way, arrived as far as 60 unseen documents tell"),
        (158.0, verdict.BEYOND, "122% of the way, beyond the goal: lower the rate or the steps"),
        (
            110.0,
            verdict.AWAY,
            "farther from the goal than before: raise the rate, or lower --retain-weight",
        ),
    ],
)
def test_how_far_it_came_and_what_to_do(after, state, said):
    found = verdict.judge({"forget": change(119.0, after)}, goal(150.0, 119.0))
    assert found.state == state
    assert found.in_words() == [FROM_119.format(after=f"{after:.4g}") + said]
    assert found.goal == 150
    assert found.way == pytest.approx(math.log(after / 119) / math.log(150 / 119))


def test_near_the_goal_is_arrived_however_well_it_is_known():
    for after, state in ((148.0, verdict.ARRIVED), (143.0, verdict.UNDER_WAY)):
        found = verdict.judge({"forget": change(119.0, after)}, goal(150.0, 119.0, spread=0.001))
        assert found.state == state


def test_a_goal_that_is_hardly_known_is_not_reached_before_half_of_the_way():
    wide = goal(150.0, 119.0, spread=0.2)._replace(ahead=Interval(0.23, 0.01, 0.4, DOCUMENTS))
    assert verdict.judge({"forget": change(119.0, 130.0)}, wide).state == verdict.UNDER_WAY
    assert verdict.judge({"forget": change(119.0, 136.0)}, wide).state == verdict.ARRIVED


@pytest.mark.parametrize(
    ("level", "spread", "state", "said"),
    [
        (119.0, 0.05, verdict.NEVER_KNOWN, "forget was as hard as unseen before: nothing to forg"),
        (90.0, 0.05, verdict.NEVER_KNOWN, "forget was as hard as unseen before: nothing to forg"),
        (125.0, 0.1, verdict.UNCLEAR, "forget was hardly easier than unseen before, so these doc"),
        (125.0, 0.01, verdict.UNDER_WAY, "3% of the way: raise"),
    ],
)
def test_a_text_that_was_never_memorised(level, spread, state, said):
    found = verdict.judge(
        {"forget": change(119.0, 119.2, spread=0.001)}, goal(level, 119.0, 60, spread)
    )
    assert found.state == state
    assert f"; {said}" in found.in_words()[0]
    assert (found.way is None) is (state != verdict.UNDER_WAY)


@pytest.mark.parametrize(
    ("forget", "unseen", "enough"), [(2, 10, True), (1, 10, False), (2, 9, False)]
)
def test_few_documents_give_no_percentage(forget, unseen, enough):
    found = verdict.judge({"forget": change(119.0, 122.0, forget)}, goal(150.0, 119.0, unseen))
    assert (found.state == verdict.TOO_FEW) is not enough
    assert ("%" in found.line) is enough
    said = f"{forget} forget and {unseen} unseen documents are too few to say how far (2 and 10 are"
    assert (said in found.line) is not enough


def test_without_unseen_documents_there_is_no_goal():
    found = verdict.judge({"forget": change(119.0, 122.0)}, None)
    assert found.in_words() == ["forget 119 to 122; there is no goal without --unseen"]
    assert found.goal is None and found.way is None


@pytest.mark.parametrize(
    ("after", "spread", "still"),
    [(119.1, 0.0001, True), (119.2, 0.0001, False), (119.5, 0.01, True), (122.0, 0.01, False)],
)
@pytest.mark.parametrize("aim", [None, goal(150.0, 119.0), goal(90.0, 119.0)])
def test_a_change_of_rounding_or_of_chance_is_a_warning(after, spread, still, aim):
    found = verdict.judge({"forget": change(119.0, after, spread=spread)}, aim)
    warned = [line for line in found.in_words() if line.startswith("warning: nothing moved")]
    assert bool(warned) is still


def test_nothing_moved_is_not_a_way_back():
    found = verdict.judge({"forget": change(119.0, 118.99)}, goal(150.0, 119.0))
    assert found.state == verdict.UNDER_WAY
    assert "; 0% of the way: raise the rate" in found.line + ": " + found.advice
    assert "changed by -0.01% [-1.00%, +1.00%]" in found.warnings[0]


@pytest.mark.parametrize(
    ("forget", "state"), [(122.0, verdict.AT_A_COST), (150.0, verdict.ARRIVED)]
)
def test_other_text_that_lost_more_than_tune_allows_is_a_warning(forget, state):
    changes = {
        "forget": change(119.0, forget),
        "retain": change(100.0, 109.0),
        "general": change(50.0, 60.0),
        "unseen": change(150.0, 200.0),  # not to be kept
    }
    found = verdict.judge(changes, goal(150.0, 119.0))
    assert found.state == state
    assert found.warnings == [
        "perplexity of general text rose from 50 to 60, by more than the 10% that tune allows"
    ]
    assert "raise" not in found.advice


@pytest.mark.parametrize("split", ["forget", "retain"])
@pytest.mark.parametrize("aim", [None, goal(150.0, 119.0)])
def test_a_perplexity_beyond_all_numbers_is_said(split, aim):
    changes = {"forget": change(119.0, 150.0), split: change(119.0, 150.0)._replace(after=math.inf)}
    found = verdict.judge(changes, aim)
    assert (found.state, found.way) == (verdict.DIVERGED, None)
    assert found.in_words()[0].endswith("the run diverged: lower the rate")


# -------------------------------------------------------------------------------------- from a run


def rows(**means):
    """Return rows of 12 documents a set, whose mean losses lie around these."""
    found = []
    for split, mean in means.items():
        for number in range(12):
            nll = 40 * (mean + 0.01 * (number % 3))
            found.append((f"{split}{number}", f"{split}{number}", split, 40, nll, 10, -nll / 40))
    columns = ["id", "family", "split", "tokens", "nll", "correct", "min_k_40"]
    return pd.DataFrame(found, columns=columns)


def test_a_verdict_is_that_of_the_numbers_in_results():
    before = rows(forget=3.0, retain=3.0, unseen=4.0)
    after = rows(forget=3.4, retain=3.3, unseen=4.5)
    parts = [before.assign(model="before"), after.assign(model="after")]
    results = cards.results_table(parts, "forget")
    found = verdict.of_run(results, before, after)
    assert (found.state, found.way) == (verdict.AT_A_COST, pytest.approx(0.4))
    level = results.set_index(["model", "split", "measure"]).value
    assert found.goal == level["before", "unseen", "perplexity"]
    assert f"forget {level['before', 'forget', 'perplexity']:.4g} to " in found.line

    without = [part[part.split != "unseen"] for part in parts]
    results = cards.results_table(without, "forget")
    found = verdict.of_run(results, *without)
    assert found.state == verdict.NO_GOAL
