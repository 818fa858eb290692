"""The rule of tuning by hand-made arrays: the choice, the pace, and the ladder of rates."""

import math

import numpy as np
import pytest

from unlearn_utils.core import tuning
from unlearn_utils.core.tuning import AT_GOAL, BEYOND_BOUND, DIVERGED, TOO_SLOW, Tried

EDGE = math.log1p(tuning.BOUND)


def choose(missed, *rises, fits=None):
    """Return the choices where each text rises so: (settings,) each, in one draw."""
    return tuning.chosen(
        np.array([missed]), np.stack(rises, axis=-1)[None], tuning.BOUND, fits
    ).tolist()


# ------------------------------------------------------------------------------------ the choice


def test_the_setting_that_misses_the_goal_least_is_chosen():
    assert choose([0.8, 0.3, 0.1, 0.2], [0.0] * 4) == [2]


def test_every_bounded_text_must_be_within_the_bound():
    assert choose([0.8, 0.3, 0.1], [0, 0, EDGE + 1e-9], [0, 0, 0]) == [1]
    assert choose([0.8, 0.3, 0.1], [0, 0, 0], [0, 0, EDGE + 1e-9]) == [1]
    assert choose([0.8, 0.3, 0.1], [0, 0, EDGE - 1e-9], [0, 0, -5]) == [2]


def test_what_is_no_number_is_beyond_the_bound():
    assert choose([0.8, 0.3, 0.1], [0, 0, math.nan]) == [1]


def test_where_nothing_is_within_the_bound_it_is_the_model_before():
    assert choose([0.8, 0.3, 0.1], [0, 1, 1]) == [0]
    assert choose([0.1, 0.3, 0.2], [0, 0, 0]) == [0]


def test_the_choice_is_among_what_fits_and_the_first_of_equals():
    assert choose([0.8, 0.1, 0.3], [0] * 3, fits=np.array([True, False, True])) == [2]
    assert choose([0.8, 0.3, 0.3], [0] * 3) == [1]


def test_each_draw_chooses_by_itself():
    missed = np.array([[0.8, 0.3, 0.1], [0.8, 0.1, 0.3]])
    assert tuning.chosen(missed, np.zeros((2, 3, 1)), tuning.BOUND).tolist() == [2, 1]


# -------------------------------------------------------------------------------------- the pace


def test_the_next_glance_is_where_half_of_a_mark_is_covered():
    assert tuning.next_glance((90, 1.0), (100, 1.1), 0.15) == 107
    assert tuning.next_glance((0, 1.0), (1, 1.0), 0.15) == 2
    assert tuning.next_glance((90, 1.0), (100, math.nan), 0.15) == 125


def test_a_path_is_too_slow_if_the_third_power_of_its_steps_does_not_reach_the_goal():
    assert tuning.too_slow(0.0124, 10, 40 + 3)  # 0.0124 x 4.3 cubed is 0.986
    assert not tuning.too_slow(0.0127, 10, 43)
    assert tuning.too_slow(-0.5, 10, 43)
    assert not tuning.too_slow(0.0, 3, 43)  # too early to say
    assert not tuning.too_slow(0.0124, 10, 43, faster=1.1)


# -------------------------------------------------------------------------------- the ladder


RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3)


def path(rate, ended=None, step=40, way=0.5, missed=0.5):
    return Tried(rate, ended, step, 40, way, missed)


def following(*tried):
    return tuning.next_rate(RATES, tried)


def test_the_ladder_begins_with_the_smallest_rate_and_ends_with_the_largest():
    assert following() == 1e-5
    assert following(path(1e-5)) == 3e-5
    assert following(path(1e-3)) is None


def test_rates_that_are_too_slow_by_the_last_pace_are_left_out():
    """In 4 of 40 steps 1e-6 of the way: at the same pace 1e-3, ten times faster 1."""
    slow = path(1e-5, TOO_SLOW, step=4, way=1.001e-6)
    assert following(slow) == 1e-4
    assert following(slow._replace(way=0.99e-6)) == 3e-4
    assert following(slow._replace(way=1e-15)) == 1e-3  # the largest is tried whatever it is
    assert following(slow._replace(way=-0.01)) == 3e-5  # it says nothing of others


def test_a_larger_rate_than_one_that_diverged_is_not_tried():
    assert following(path(1e-5, DIVERGED)) is None


@pytest.mark.parametrize("ended", [AT_GOAL, BEYOND_BOUND])
def test_the_ladder_ends_where_the_first_step_is_too_far(ended):
    assert following(path(1e-5, ended, step=1, way=3.0)) is None
    assert following(path(1e-5, ended, step=2, way=3.0)) == 3e-5


@pytest.mark.parametrize("ended", [AT_GOAL, BEYOND_BOUND])
def test_the_ladder_ends_where_a_path_is_no_better_than_one_before(ended):
    before = path(1e-5, missed=0.2)
    assert following(before, path(3e-5, ended, missed=0.2)) is None
    assert following(before, path(3e-5, ended, missed=0.1)) == 1e-4


def test_the_ladder_goes_on_while_paths_end_before_the_goal():
    assert following(path(1e-5, missed=0.1), path(3e-5, missed=0.2)) == 1e-4


def test_the_ladder_has_half_decades_from_small_to_large():
    steps = np.diff(np.log10(tuning.LADDER))
    assert ((steps > 0.4) & (steps < 0.6)).all()


def test_the_choice_is_the_one_that_the_study_made_before_bit_by_bit():
    """The rule as it stood in findings/robustness when the committed tables were made."""
    generator = np.random.default_rng(0)
    missed = generator.normal(size=(200, 9)).round(1)
    general = generator.normal(0, 0.1, size=(200, 9))
    rise = general - general[:, :1]
    fits = generator.random(9) < 0.7
    allowed = fits & (rise < np.log1p(0.10))
    expected = np.argmin(np.where(allowed, missed, np.inf), axis=1)
    assert (tuning.chosen(missed, rise[..., None], tuning.BOUND, fits) == expected).all()
