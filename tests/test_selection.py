"""The rules that choose a step, on levels set by hand, and the halves of the documents."""

import math

import numpy as np
import pandas as pd
import pytest

from unlearn_utils.study import selection


def part(split, mean, documents=2, tokens=10):
    """Documents of one split with the same mean loss; their perplexity is exp(mean)."""
    return pd.DataFrame({"split": split, "nll": [tokens * mean] * documents, "tokens": tokens})


def trajectory(levels):
    """Rows by step: levels[step] = (forget, general), mean losses in nats.

    Retain and approximate rows play no part.
    """
    steps = []
    for step, (forget, general) in levels.items():
        parts = [
            part("forget", forget),
            part("evaluation", general),
            part("approximate", 50 + step),
            part("retain", 70 - step),
        ]
        steps.append(pd.concat(parts).assign(step=step))
    return pd.concat(steps, ignore_index=True)


# ---------------------------------------------------------------------------------------- halves


def test_halves_by_hand():
    rows = pd.DataFrame({"rank": [0, 1, 2, 3, 0, 1, 2, 3], "id": list("abcdwxyz")})
    assert selection.half(rows, selection.SELECTION).id.tolist() == list("acwy")
    assert selection.half(rows, selection.REPORT).id.tolist() == list("bdxz")


def test_halves_keep_pairs_together_are_disjoint_and_complete():
    rng = np.random.default_rng(0)
    ranks = np.concatenate([rng.permutation(61) for _ in range(3)])
    rows = pd.DataFrame(
        {"rank": ranks, "split": np.repeat(["forget", "approximate", "retain"], 61)},
        index=rng.permutation(183) + 5,
    )
    halves = [selection.half(rows, which) for which in (selection.SELECTION, selection.REPORT)]
    for half in halves:
        forget, other = (set(half[half.split == s]["rank"]) for s in ("forget", "approximate"))
        assert forget == other and len(forget) in (30, 31)
    seen = [set(half.index) for half in halves]
    assert seen[0].isdisjoint(seen[1]) and seen[0] | seen[1] == set(rows.index)
    for half, own in zip(halves, seen, strict=True):
        assert half.index.tolist() == [i for i in rows.index if i in own]  # in order


# ------------------------------------------------------------------------------ levels and goals


def test_log_perplexity_weighs_tokens_not_documents():
    rows = pd.DataFrame(
        {"split": ["forget", "forget", "retain"], "nll": [2.0, 18.0, 99.0], "tokens": [2, 6, 1]}
    )
    assert selection.log_perplexity(rows, "forget") == pytest.approx(20 / 8)


def test_goals_by_hand():
    """The practitioner's is the target's level on unseen text.

    The oracle's is the retrained model's level on the forget set.
    """
    target = pd.concat(
        [part("forget", 1), part("approximate", 3), part("evaluation", 5), part("retain", 7)]
    )
    retrained = pd.concat(
        [part("forget", 2), part("approximate", 4), part("evaluation", 6), part("retain", 8)]
    )
    found = selection.goals(target, retrained)
    assert found == {"practitioner": pytest.approx(3), "oracle": pytest.approx(2)}
    assert tuple(found) == selection.RULES


# ------------------------------------------------------------------------------------ the choice


@pytest.mark.parametrize(
    ("goal", "kept"), [(0, 0), (1.4, 0), (2.6, 1), (2.8, 2), (4.1, 2), (4.3, 4), (9, 4)]
)
def test_the_step_nearest_the_goal_is_kept_from_either_side(goal, kept):
    levels = {0: (1, 4), 1: (2, 4), 2: (3.4, 4), 4: (5, 4)}
    assert selection.choose(trajectory(levels), goal) == kept


def test_a_step_past_the_bound_is_never_kept():
    levels = {0: (1, 4), 1: (2, 4.05), 2: (3, 4.5)}
    assert selection.choose(trajectory(levels), 3) == 1
    assert selection.choose(trajectory(levels), 3, bound=math.e**0.5 - 1 + 1e-9) == 2
    assert selection.choose(trajectory(levels), 3, bound=0.04) == 0


def test_the_bound_is_a_share_of_the_target_s_perplexity():
    # general text that becomes easier is no harm
    for rise, kept in ((1.0999, 1), (1.1001, 0), (0.5, 1)):
        levels = {0: (1, 4), 1: (2, 4 + math.log(rise))}
        assert selection.choose(trajectory(levels), 2) == kept
    assert selection.BOUND == 0.10


def test_step_0_is_always_allowed():
    assert selection.choose(trajectory({0: (1, 4), 1: (3, 9), 2: (3, 8)}), 3) == 0
    assert selection.choose(trajectory({0: (1, 4), 1: (3, 4.01)}), 3, bound=0) == 0


def test_the_earliest_of_equals_is_kept_whatever_the_order_of_rows():
    levels = {0: (1, 4), 2: (3, 4), 5: (3, 4), 12: (3, 4)}
    rows = trajectory(levels)
    for seed in range(3):
        assert selection.choose(rows.sample(frac=1, random_state=seed), 3) == 2
    turned = {12: (3, 4), 5: (3, 4), 2: (3, 4), 0: (1, 4)}
    found = selection.choose(trajectory(turned), 3)
    assert found == 2 and type(found) is int
    assert selection.choose(trajectory({0: (1, 4), 1: (1, 4)}), 3) == 0


def test_a_level_beyond_all_numbers_is_not_kept():
    assert selection.choose(trajectory({0: (1, 4), 1: (2, 4), 2: (np.inf, np.inf)}), 3) == 1


def test_the_choice_is_the_best_of_all_allowed_ones():
    """Property: nothing that respects the bound is nearer to the goal."""
    rng = np.random.default_rng(1)
    kept = []
    for _ in range(25):
        levels = {s: (rng.uniform(1, 6), rng.uniform(3.9, 4.2)) for s in range(6)}
        goal = rng.uniform(1, 6)
        found = selection.choose(trajectory(levels), goal)
        most = levels[0][1] + math.log(1.1)
        distances = {s: abs(f - goal) for s, (f, general) in levels.items() if general <= most}
        assert found in distances
        assert distances[found] <= min(distances.values()) + 1e-9
        kept.append(found)
    assert len(set(kept)) == 6
