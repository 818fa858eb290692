"""The rules that choose a step, on levels by hand, and the halves of documents that they see."""

import math

import numpy as np
import pandas as pd
import pytest

from unlearn_utils.study import selection


def part(split, mean, documents=2, tokens=10):
    """Return documents of one split with the same mean loss; their perplexity is exp(mean)."""
    return pd.DataFrame({"split": split, "nll": [tokens * mean] * documents, "tokens": tokens})


def trajectory(levels):
    """Return rows by step; retain and approximate rows play no part.

    levels: of each step (forget, general), mean losses in nats.
    """
    frames = []
    for step, (forget, general) in levels.items():
        parts = [
            part("forget", forget),
            part("evaluation", general),
            part("approximate", 50 + step),
            part("retain", 70 - step),
        ]
        frames.append(pd.concat(parts).assign(step=step))
    return pd.concat(frames, ignore_index=True)


# ------------------------------------------------------------------------------------------ halves


def test_halves_by_hand():
    rows = pd.DataFrame({"rank": [0, 1, 2, 3, 0, 1, 2, 3], "id": list("abcdwxyz")})
    assert selection.half(rows, selection.SELECTION).id.tolist() == list("acwy")
    assert selection.half(rows, selection.REPORT).id.tolist() == list("bdxz")


def test_halves_keep_pairs_together_are_disjoint_and_complete():
    generator = np.random.default_rng(0)
    splits = ["forget", "approximate", "retain"]
    ranks = np.concatenate([generator.permutation(61) for _ in splits])
    rows = pd.DataFrame({"rank": ranks, "split": np.repeat(splits, 61)})
    rows.index = generator.permutation(183) + 5
    seen = selection.half(rows, selection.SELECTION)
    reported = selection.half(rows, selection.REPORT)
    for half in (seen, reported):
        forget = set(half[half.split == "forget"]["rank"])
        assert forget == set(half[half.split == "approximate"]["rank"])
        assert len(forget) in (30, 31)
        in_order = [place for place in rows.index if place in set(half.index)]
        assert half.index.tolist() == in_order
    assert set(seen.index).isdisjoint(reported.index)
    assert set(seen.index) | set(reported.index) == set(rows.index)


# -------------------------------------------------------------------------------- levels and goals


def test_log_perplexity_weighs_tokens_not_documents():
    rows = pd.DataFrame({"split": ["forget", "forget", "retain"], "nll": [2.0, 18.0, 99.0]})
    rows = rows.assign(tokens=[2, 6, 1])
    assert selection.log_perplexity(rows, "forget") == pytest.approx(20 / 8)


def test_goals_by_hand():
    """The practitioner's goal is the target's level on unseen text.

    The oracle's is the retrained model's level on the forget set.
    """
    target = [part("forget", 1), part("approximate", 3), part("evaluation", 5), part("retain", 7)]
    exact = [part("forget", 2), part("approximate", 4), part("evaluation", 6), part("retain", 8)]
    found = selection.goals(pd.concat(target), pd.concat(exact))
    assert tuple(found) == selection.RULES
    assert found["practitioner"] == pytest.approx(3)
    assert found["oracle"] == pytest.approx(2)


# -------------------------------------------------------------------------------------- the choice


@pytest.mark.parametrize(
    ("goal", "kept"), [(0, 0), (1.4, 0), (2.6, 1), (2.8, 2), (4.1, 2), (4.3, 4), (9, 4)]
)
def test_the_step_nearest_the_goal_is_kept_from_either_side(goal, kept):
    levels = {0: (1, 4), 1: (2, 4), 2: (3.4, 4), 4: (5, 4)}
    assert selection.choose(trajectory(levels), goal) == kept


def test_a_step_past_the_bound_is_never_kept():
    rows = trajectory({0: (1, 4), 1: (2, 4.05), 2: (3, 4.5)})
    assert selection.choose(rows, 3) == 1
    assert selection.choose(rows, 3, bound=math.e**0.5 - 1 + 1e-9) == 2
    assert selection.choose(rows, 3, bound=0.04) == 0


# general text that becomes easier is no harm
@pytest.mark.parametrize(("rise", "kept"), [(1.0999, 1), (1.1001, 0), (0.5, 1)])
def test_the_bound_is_a_share_of_the_target_s_perplexity(rise, kept):
    rows = trajectory({0: (1, 4), 1: (2, 4 + math.log(rise))})
    assert selection.choose(rows, 2) == kept
    assert selection.BOUND == 0.10


def test_step_0_is_always_allowed():
    assert selection.choose(trajectory({0: (1, 4), 1: (3, 9), 2: (3, 8)}), 3) == 0
    assert selection.choose(trajectory({0: (1, 4), 1: (3, 4.01)}), 3, bound=0) == 0


@pytest.mark.parametrize("seed", range(3))
def test_the_earliest_of_equals_is_kept_whatever_the_order_of_rows(seed):
    rows = trajectory({0: (1, 4), 2: (3, 4), 5: (3, 4), 12: (3, 4)})
    assert selection.choose(rows.sample(frac=1, random_state=seed), 3) == 2


def test_the_earliest_of_equals_is_kept_whatever_the_order_of_steps():
    found = selection.choose(trajectory({12: (3, 4), 5: (3, 4), 2: (3, 4), 0: (1, 4)}), 3)
    assert found == 2
    assert type(found) is int
    assert selection.choose(trajectory({0: (1, 4), 1: (1, 4)}), 3) == 0


def test_a_level_beyond_all_numbers_is_not_kept():
    rows = trajectory({0: (1, 4), 1: (2, 4), 2: (np.inf, np.inf)})
    assert selection.choose(rows, 3) == 1


def test_the_choice_is_the_best_of_all_allowed_ones():
    """Nothing that respects the bound is nearer to the goal."""
    generator = np.random.default_rng(1)
    kept = set()
    for _ in range(25):
        levels = {}
        for step in range(6):
            levels[step] = (generator.uniform(1, 6), generator.uniform(3.9, 4.2))
        goal = generator.uniform(1, 6)
        found = selection.choose(trajectory(levels), goal)
        highest = levels[0][1] + math.log(1.1)
        missed = {}
        for step, (forget, general) in levels.items():
            if general <= highest:
                missed[step] = abs(forget - goal)
        assert found in missed
        assert missed[found] <= min(missed.values()) + 1e-9
        kept.add(found)
    assert len(kept) == 6
