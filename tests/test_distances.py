"""Distances, scores and what a whole path makes of them, on gaps set by hand."""

import numpy as np
import pytest

from unlearn_utils.core import distances
from unlearn_utils.core.distances import BETWEEN, NEAR, Path, Scores

TARGET = np.array([[0.8, 0.8, 0.8, 0.8]])  # its distance is 0.8


def gaps(*levels):
    """Return gaps of one draw that are alike on every kind of text: (1, marks, splits)."""
    return np.repeat(np.array(levels, float)[None, :, None], 4, axis=2)


def path(steps, levels, total=None, ended=False):
    last = steps[-1] if total is None else total
    return Path(np.array(steps, float), gaps(*levels), last, ended)


def one_rate(r, weights, best=None, worse=0.0):
    r = np.atleast_2d(np.array(r, float))
    highest = r.max(1) if best is None else np.array(best, float)
    return Scores(r, np.array(weights, float), np.full(len(r), worse), highest)


# ------------------------------------------------------------------------------ distance and score


def test_distance_is_the_mean_of_absolute_gaps():
    found = distances.distance(np.array([[0.1, -0.2, 0.3, -0.6], [0.0, 0.0, 0.0, 0.0]]))
    assert found == pytest.approx([0.3, 0.0])


def test_the_plane_of_two_is_of_forget_and_general_text():
    assert distances.distance(np.array([0.1, 9.0, -9.0, -0.5]), distances.TWO) == pytest.approx(0.3)
    assert [distances.SPLITS[place] for place in distances.TWO] == ["forget", "evaluation"]


def test_score_is_1_at_retraining_and_0_from_the_target_on():
    far = np.array([0.0, 0.1, 0.2, 0.3])
    assert distances.score(far, np.array(0.2)) == pytest.approx([1.0, 0.5, 0.0, 0.0])


# ------------------------------------------------------------------------------- points of a path


def test_between_near_neighbours_gaps_are_interpolated():
    """From 0 to 0.16 there are eight points at 0.01, 0.03 and so on, and they weigh alike."""
    found = distances.points(path([1, 4], [0.0, 0.16]))
    assert found.gaps[0, :, 0] == pytest.approx(np.arange(0.01, 0.16, 0.02))
    assert found.weights == pytest.approx([1 / 8] * 8)
    assert BETWEEN == 8


def test_neighbours_that_differ_by_just_the_bound_are_near():
    assert NEAR == 0.25
    assert len(distances.points(path([1, 4], [0.0, 0.25])).weights) == 8
    assert len(distances.points(path([1, 4], [0.0, 0.2501])).weights) == 2


def test_far_neighbours_stand_for_their_halves():
    found = distances.points(path([1, 4], [0.0, 0.9]))
    assert found.gaps[0, :, 0] == pytest.approx([0.0, 0.9])
    assert found.weights == pytest.approx([0.5, 0.5])


def test_one_kind_of_text_makes_neighbours_far():
    whole = path([1, 4], [0.0, 0.1])
    whole.gaps[0, 1, 2] = -0.3
    assert len(distances.points(whole).weights) == 2


def test_weights_are_shares_of_log_steps():
    """From 1 to 2 is a third of the way from 1 to 8; from 2 to 8 the other two, in halves."""
    found = distances.points(path([1, 2, 8], [0.0, 0.1, 0.9]))
    assert found.weights == pytest.approx([1 / 24] * 8 + [1 / 3, 1 / 3])
    assert found.gaps[0, -2:, 0] == pytest.approx([0.1, 0.9])


def test_near_is_decided_as_measured_for_every_draw():
    both = np.concatenate([gaps(0.0, 0.1), gaps(0.0, 5.0)])
    found = distances.points(Path(np.array([1.0, 4.0]), both, 4, False))
    assert found.gaps.shape == (2, 8, 4)
    assert found.gaps[1, 0, 0] == pytest.approx(5.0 / 16)
    swapped = distances.points(Path(np.array([1.0, 4.0]), both[::-1], 4, False))
    assert swapped.gaps.shape == (2, 2, 4)


def test_what_a_path_that_ended_did_not_reach_has_no_weight():
    found = distances.points(path([1, 2], [0.0, 0.9], total=8, ended=True))
    assert found.weights == pytest.approx([1 / 6, 1 / 6])


@pytest.mark.parametrize(("ended", "weight"), [(False, 1.0), (True, 0.0)])
def test_one_mark_alone(ended, weight):
    found = distances.points(path([1], [0.3], total=30 if ended else 1, ended=ended))
    assert found.gaps.shape == (1, 1, 4)
    assert found.weights.tolist() == [weight]


def test_an_infinite_gap_leaves_its_neighbour_a_number():
    found = distances.points(path([1, 4], [0.0, np.inf]))
    assert found.gaps[0, 0].tolist() == [0.0] * 4
    assert np.isposinf(found.gaps[0, 1]).all()


def test_a_path_counts_up_to_its_last_step_alone():
    """Marks at 1 and 16, of which 4 is half the way: the first half of what is interpolated."""
    found = distances.points(path([1, 16], [0.0, 0.16], total=4))
    assert found.gaps[0, :, 0] == pytest.approx(np.arange(0.005, 0.08, 0.01))
    assert found.weights == pytest.approx([1 / 8] * 8)


@pytest.mark.parametrize(
    ("total", "weights"), [(2, [1, 0]), (4, [1, 0]), (8, [2 / 3, 1 / 3]), (16, [1 / 2, 1 / 2])]
)
def test_far_neighbours_across_the_last_step(total, weights):
    """Marks at 1 and 16 stand for what is up to 4, and for what is beyond."""
    found = distances.points(path([1, 16], [0.0, 0.9], total=total))
    assert found.weights == pytest.approx(weights)


def test_marks_past_the_last_step_change_nothing():
    short = distances.points(path([1, 4], [0.0, 0.16]))
    long = distances.points(path([1, 4, 16, 64], [0.0, 0.16, 0.2, 9.0], total=4))
    assert long.weights == pytest.approx(short.weights)
    assert long.gaps == pytest.approx(short.gaps)


# -------------------------------------------------------------------------------- scores of a path


def test_scores_by_hand():
    """Distances of 0.4 and 1.2, where the target's is 0.8."""
    found = distances.scores(path([1, 4], [-0.4, 1.2]), TARGET)
    assert found.r[0] == pytest.approx([0.5, 0.0])
    assert found.weights == pytest.approx([0.5, 0.5])
    assert found.worse == pytest.approx([0.5])
    assert found.best == pytest.approx([0.5])


def test_best_is_of_marks_that_count():
    """Between the marks at -0.1 and 0.1 the score would be higher; past the last step it is."""
    found = distances.scores(path([1, 4, 16], [-0.1, 0.1, 0.0], total=4), TARGET)
    assert found.best == pytest.approx([1 - 0.1 / 0.8])
    assert found.r.max() > found.best[0]


def test_steps_after_the_end_are_worse_than_doing_nothing():
    """The path ends at 2 of 8; two thirds of the way it is not there."""
    found = distances.scores(path([1, 2], [0.1, 0.2], total=8, ended=True), TARGET)
    assert found.worse == pytest.approx([2 / 3])
    as_far = distances.scores(path([1, 8], [0.8, 0.8]), TARGET)
    assert as_far.worse == pytest.approx([0.0])  # the target's distance itself is not farther


def test_scores_of_a_plane_read_its_kinds_of_text_alone():
    whole = path([1, 4], [0.0, 0.0])
    whole.gaps[..., 1:3] = 0.2
    assert distances.scores(whole, TARGET).best == pytest.approx([1 - 0.1 / 0.8])
    assert distances.scores(whole, TARGET, distances.TWO).best == pytest.approx([1.0])


def test_each_draw_has_its_own_target():
    both = np.concatenate([gaps(0.2, 0.2), gaps(0.2, 0.2)])
    target = np.array([[0.4] * 4, [0.8] * 4])
    found = distances.scores(Path(np.array([1.0, 4.0]), both, 4, False), target)
    assert found.best == pytest.approx([0.5, 0.75])
    assert found.r.shape == (2, 8)


# -------------------------------------------------------------------------- over the learning rates


RATES = [one_rate([0.0, 0.6, 0.2], [0.5, 0.25, 0.25]), one_rate([0.8, 0.3], [0.5, 0.25], worse=0.4)]


def test_robustness_by_hand():
    """At the first rate 0.15 + 0.05, at the second 0.4 + 0.075; a quarter of that has ended."""
    assert distances.robustness(RATES) == pytest.approx([(0.2 + 0.475) / 2])


def test_window_by_hand():
    """Half of the best score, 0.4, is reached on 0.25 of the first and 0.5 of the second path."""
    assert distances.best_score(RATES) == pytest.approx([0.8])
    assert distances.window(RATES) == pytest.approx([(0.25 + 0.5) / 2])


def test_window_holds_just_half_of_the_best():
    assert distances.window([one_rate([0.8, 0.4, 0.39], [0.5, 0.2, 0.3])]) == pytest.approx([0.7])


def test_window_is_0_where_nothing_is_better_than_doing_nothing():
    assert distances.window([one_rate([0.0, 0.0], [0.5, 0.5])]).tolist() == [0.0]


def test_window_in_each_draw_is_half_of_that_draw_s_best():
    """In the second draw another rate has the best score."""
    first = one_rate([[0.8, 0.4], [0.1, 0.1]], [0.5, 0.5])
    second = one_rate([[0.1, 0.1], [0.0, 0.2]], [0.5, 0.5])
    assert distances.window([first, second]) == pytest.approx([0.5, (1.0 + 0.5) / 2])


def test_worse_than_nothing_is_a_mean_over_rates():
    assert distances.worse_than_nothing(RATES) == pytest.approx([0.2])


def test_profile_curve_by_hand():
    taus = np.array([0.0, 0.2, 0.25, 0.6, 0.7, 0.9])
    found = distances.profile_curve(RATES, taus)
    first = np.array([0.5, 0.5, 0.25, 0.25, 0.0, 0.0])
    second = np.array([0.75, 0.75, 0.75, 0.5, 0.5, 0.0])
    assert found[0] == pytest.approx((first + second) / 2)


def test_robustness_is_the_area_under_the_profile_curve():
    """Of random paths, some of which end, with many thin slices of tau."""
    generator = np.random.default_rng(0)
    rates = []
    for number in range(4):
        levels = generator.normal(-0.3, 0.4, (3, 6, 4)).cumsum(1) / 2
        whole = Path(np.array([1.0, 2, 3, 5, 8, 13]), levels, 13 + 9 * number, number > 0)
        rates.append(distances.scores(whole, generator.uniform(0.7, 1.0, (3, 4))))
    width = 1e-4
    middles = np.arange(width / 2, 1, width)
    area = distances.profile_curve(rates, middles).sum(1) * width
    assert distances.robustness(rates) == pytest.approx(area, abs=2e-4)
    assert area.min() > 0.02


# ------------------------------------------------------------------------------- equal forgetting


def crossed(levels, level):
    found = distances.crossing(gaps(*levels), level)
    return int(found.left[0]), float(found.share[0])


def test_crossing_is_interpolated():
    """From -0.6 to -0.4 a level of -0.45 is three quarters of the way."""
    assert crossed([-0.8, -0.6, -0.4, -0.2], -0.45) == (1, pytest.approx(0.75))


def test_values_at_a_crossing():
    found = distances.crossing(gaps(-0.8, -0.6, -0.4), -0.45)
    assert found.of(np.array([[1.0, 2.0, 4.0]])) == pytest.approx([3.5])
    several = np.array([[[1.0, 0.0], [2.0, 10.0], [4.0, 20.0]]])
    assert found.of(several)[0] == pytest.approx([3.5, 17.5])


def test_the_forget_gap_at_a_crossing_is_the_level():
    whole = gaps(-0.8, -0.65, -0.45, -0.6, -0.3)
    assert distances.crossing(whole, -0.5).of(whole)[0, 0] == pytest.approx(-0.5)


def test_a_mark_at_the_level_reaches_it():
    assert crossed([-0.8, -0.6, -0.5, -0.4], -0.5) == (1, pytest.approx(1.0))


def test_the_first_crossing_counts():
    assert crossed([-0.5, -0.3, -0.5, -0.3], -0.4)[0] == 0


def test_a_path_that_never_reaches_the_level_has_no_crossing():
    assert np.isnan(crossed([-0.8, -0.7, -0.6], -0.5)[1])


def test_a_jump_is_no_crossing():
    assert np.isnan(crossed([-0.8, -0.54, -0.28], -0.5)[1])
    moved = gaps(-0.8, -0.6, -0.4)
    moved[0, 2, 3] = 0.5  # general text jumps where the forget set does not
    assert np.isnan(distances.crossing(moved, -0.5).share[0])
    assert np.isfinite(distances.crossing(moved, -0.7).share[0])


def test_a_target_that_is_past_the_level_does_not_reach_it():
    assert np.isnan(crossed([-0.4, -0.3, -0.2], -0.5)[1])
    assert np.isnan(crossed([-0.5, -0.4, -0.3], -0.5)[1])


def test_draws_cross_at_their_own_marks():
    every = np.concatenate([gaps(-0.8, -0.6, -0.4), gaps(-0.6, -0.4, -0.2), gaps(-0.9, -0.8, -0.7)])
    found = distances.crossing(every, -0.5)
    assert found.left[:2].tolist() == [1, 0]
    assert found.share[:2] == pytest.approx([0.5, 0.5])
    assert np.isnan(found.share[2])
    values = found.of(np.array([[1.0, 2.0, 3.0]] * 3))
    assert values[:2] == pytest.approx([2.5, 1.5])
    assert np.isnan(values[2])


# ------------------------------------------------------------------------- a path without a mark


def test_a_path_whose_first_step_gave_no_numbers_scores_nothing():
    path = distances.Path(np.array([]), np.zeros((2, 0, 4)), 8, True)
    found = distances.scores(path, np.full((2, 4), -0.5))
    assert distances.robustness([found]).tolist() == [0, 0]
    assert distances.window([found]).tolist() == [0, 0]
    assert distances.worse_than_nothing([found]).tolist() == [1, 1]
    there = distances.crossing(np.full((2, 1, 4), -0.5), 0.0)
    assert np.isnan(there.share).all()
    assert np.isnan(there.of(np.zeros((2, 1, 4)))).all()
