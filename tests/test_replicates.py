"""Means over replicates and their intervals, by hand and on simulated replicates."""

import math
import warnings

import numpy as np
import pytest
from scipy import stats

from unlearn_utils.core import replicates
from unlearn_utils.core.replicates import RATIO, SHARE, Scale, Spread, estimate

T5 = 2.570582  # of the t distribution, 0.975, by degrees of freedom
T4 = 2.776445
T2 = 4.302653


def of_documents(*means, deviation=0.1):
    """Return draws whose resamples lie at the mean plus and minus the deviation: variance 2 d^2."""
    return np.array([[mean, mean - deviation, mean + deviation] for mean in means])


def same(one, other):
    """Say whether two estimates are equal; numbers that are none are equal too."""
    return repr(one) == repr(other)


# --------------------------------------------------------------------------------- one replicate


def test_one_replicate_alone_has_the_interval_of_its_documents():
    """Variance 0.02 with five families: four degrees of freedom."""
    found = estimate(of_documents(3.0), 5)
    half = T4 * math.sqrt(0.02)
    assert (found.value, found.n, found.replicates) == (3.0, 5, 1)
    assert (found.low, found.high) == pytest.approx((3 - half, 3 + half))
    assert math.isnan(found.rerun_low) and math.isnan(found.rerun_high)
    assert found.by_replicate == "3"


def test_the_first_draw_is_the_value_and_no_resample():
    draws = np.array([[3.0, 1.0, 1.0, 1.0]])
    found = estimate(draws, 5)
    assert (found.value, found.low, found.high) == (3.0, 3.0, 3.0)


def test_one_replicate_borrows_the_spread_of_others():
    """Both variances add up; where a rerun lies is around the others' mean."""
    spread = Spread(mean=2.0, deviation=0.3, replicates=6)
    found = estimate(of_documents(3.0), 5, spread)
    total = 0.09 + 0.02
    degrees = total**2 / (0.09**2 / 5 + 0.02**2 / 4)
    half = stats.t.ppf(0.975, degrees) * math.sqrt(total)
    assert (found.low, found.high) == pytest.approx((3 - half, 3 + half))
    reach = T5 * 0.3 * math.sqrt(7 / 6)
    assert (found.rerun_low, found.rerun_high) == pytest.approx((2 - reach, 2 + reach), rel=1e-5)
    assert found.replicates == 1


def test_several_replicates_do_not_borrow():
    alone = estimate(of_documents(1.0, 2.0, 3.0), 5)
    assert estimate(of_documents(1.0, 2.0, 3.0), 5, Spread(9.0, 9.0, 6)) == alone


# ----------------------------------------------------------------------------- several replicates


def test_several_replicates_by_hand():
    """Standard deviation 1 of three: 1/3 of variance from training, 0.02 from documents."""
    found = estimate(of_documents(1.0, 2.0, 3.0), 11)
    total = 1 / 3 + 0.02
    degrees = total**2 / ((1 / 3) ** 2 / 2 + 0.02**2 / 10)
    half = stats.t.ppf(0.975, degrees) * math.sqrt(total)
    assert (found.value, found.replicates, found.n) == (2.0, 3, 11)
    assert (found.low, found.high) == pytest.approx((2 - half, 2 + half))
    reach = T2 * math.sqrt(4 / 3)
    assert (found.rerun_low, found.rerun_high) == pytest.approx((2 - reach, 2 + reach), rel=1e-5)
    assert found.by_replicate == "1 2 3"


def test_the_documents_share_of_the_interval_is_kept():
    """On the scale of the mean, so that another interval can be made of it."""
    assert estimate(of_documents(1.0, 2.0, 3.0), 11).documents_sd == pytest.approx(0.02**0.5)
    assert estimate(of_documents(0.5), 11, scale=RATIO).documents_sd == pytest.approx(0.02**0.5)


def test_documents_are_drawn_for_all_replicates_together():
    """Where two move against each other the mean does not move, so documents add nothing."""
    draws = np.array([[1.0, 0.0, 2.0], [3.0, 4.0, 2.0]])
    against = estimate(draws, 9)
    half = stats.t.ppf(0.975, 1) * math.sqrt(2 / 2)
    assert (against.low, against.high) == pytest.approx((2 - half, 2 + half))
    together = estimate(np.array([[1.0, 0.0, 2.0], [3.0, 2.0, 4.0]]), 9)
    assert together.high - together.low != pytest.approx(2 * half)


def test_satterthwaite_by_hand():
    """Variances 3 and 1 with 2 and 4 degrees of freedom: 16 / (9/2 + 1/4)."""
    degrees = 16 / 4.75
    expected = stats.t.ppf(0.975, degrees) * 2
    assert replicates.half_width(3.0, 2, 1.0, 4) == pytest.approx(expected)


def test_one_variance_alone_keeps_its_degrees_of_freedom():
    assert replicates.half_width(1.0, 5, 0.0, 9) == pytest.approx(T5)
    assert replicates.half_width(0.0, 1, 1.0, 4) == pytest.approx(T4)
    assert replicates.half_width(0.0, 1, 0.0, 4) == 0.0


def test_values_that_never_differ_have_an_interval_of_no_width():
    found = estimate(np.full((6, 11), 0.25), 9)
    assert (found.low, found.high, found.rerun_low, found.rerun_high) == (0.25,) * 4


# ------------------------------------------------------------------------------ what has no value


def test_a_replicate_without_a_value_is_left_out():
    draws = np.vstack([of_documents(1.0, 2.0, 3.0), [[np.nan, 7.0, 9.0]]])
    assert same(estimate(draws, 11), estimate(of_documents(1.0, 2.0, 3.0), 11))


def test_no_replicate_with_a_value():
    found = estimate(np.full((2, 4), np.nan), 11)
    assert (found.n, found.replicates, found.by_replicate) == (0, 0, "")
    numbers = (found.value, found.low, found.high, found.rerun_low, found.rerun_high)
    assert all(math.isnan(number) for number in (*numbers, found.documents_sd))


def test_one_of_two_replicates_with_a_value_is_one_replicate():
    draws = np.vstack([of_documents(1.0), np.full((1, 3), np.nan)])
    assert same(estimate(draws, 5), estimate(of_documents(1.0), 5))


def test_resamples_without_a_value_are_left_out_and_nobody_is_warned():
    """A warning would stand in a notebook."""
    draws = np.array([[3.0, np.nan, 2.9, 3.1, np.nan]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = estimate(draws, 5)
        without = estimate(np.array([[3.0, np.nan, np.nan]]), 5)
    assert found.low == pytest.approx(estimate(of_documents(3.0), 5).low)
    assert found.high == pytest.approx(estimate(of_documents(3.0), 5).high)
    assert (without.value, without.low, without.high) == (3.0, 3.0, 3.0)


def test_a_resample_in_which_one_replicate_has_a_value_is_that_one_s():
    draws = np.array([[1.0, 1.5, 0.5], [1.0, np.nan, 0.5]])
    half = replicates.half_width(0.0, 1, np.var([1.5, 0.5], ddof=1), 8)
    found = estimate(draws, 9)
    assert (found.low, found.high) == pytest.approx((1 - half, 1 + half))


# ---------------------------------------------------------------------------------------- scales


def test_a_ratio_is_averaged_in_nats():
    draws = np.log([[2.0, 2.0, 2.0], [8.0, 8.0, 8.0]])
    found = estimate(draws, 9, scale=RATIO)
    assert found.value == pytest.approx(4.0)
    plain = estimate(draws, 9)
    assert found.low == pytest.approx(math.exp(plain.low))
    assert found.rerun_high == pytest.approx(math.exp(plain.rerun_high))
    assert found.by_replicate == "2 8"


def test_a_share_is_cut_at_0_and_1():
    found = estimate(of_documents(0.05, 0.9), 3, scale=SHARE)
    assert (found.low, found.high, found.rerun_low, found.rerun_high) == (0.0, 1.0, 0.0, 1.0)
    assert found.value == pytest.approx(0.475)


def test_bounds_are_cut_on_the_scale_of_the_mean():
    at_least_1 = Scale(shown=np.exp, inverse=np.log, least=0.0)
    found = estimate(of_documents(0.05, 0.9), 3, scale=at_least_1)
    assert found.low == pytest.approx(1.0)
    assert found.value == pytest.approx(math.exp(0.475))


# -------------------------------------------------------------------------- prediction, by chance


def test_prediction_by_hand():
    """Five values 1 to 5 have mean 3 and variance 2.5."""
    low, high = replicates.prediction(Spread.of(np.arange(1.0, 6.0)))
    half = T4 * math.sqrt(2.5) * math.sqrt(6 / 5)
    assert (low, high) == pytest.approx((3 - half, 3 + half), rel=1e-5)


def test_prediction_covers_a_further_normal_value_19_times_out_of_20():
    """Of 4,000 sets of seven, the last in the prediction from six: 0.95, give or take 0.0034."""
    sets = np.random.default_rng(0).normal(5.0, 2.0, (4000, 7))
    inside = 0
    for values in sets:
        low, high = replicates.prediction(Spread.of(values[:6]))
        inside += low <= values[6] <= high
    assert inside / len(sets) == pytest.approx(0.95, abs=0.012)


@pytest.mark.parametrize(("of_training", "of_text"), [(1.0, 0.0), (1.0, 1.0), (0.2, 1.0)])
def test_the_interval_covers_the_mean_19_times_out_of_20(of_training, of_text):
    """Six replicates share what the documents do to them; 2,000 studies, give or take 0.005.

    Satterthwaite's approximation and 60 families may move that by a little more.
    """
    generator = np.random.default_rng(1)
    inside = 0
    for _ in range(2000):
        text = generator.normal(0, of_text)
        first = text + generator.normal(0, of_training, (6, 1))
        draws = first + generator.normal(0, of_text, 200)
        found = estimate(np.hstack([first, draws]), 60)
        inside += found.low <= 0 <= found.high
    assert inside / 2000 == pytest.approx(0.95, abs=0.02)


def test_covered_leaves_each_out_in_turn():
    """Of 0, 1, 2, 3 and 100 the last is not expected by the others, who are all by the rest."""
    inside, width = replicates.covered(np.array([0.0, 1.0, 2.0, 3.0, 100.0]))
    assert inside == 4
    widths = []
    for left in range(5):
        rest = np.delete([0.0, 1.0, 2.0, 3.0, 100.0], left)
        widths.append(2 * stats.t.ppf(0.975, 3) * np.std(rest, ddof=1) * math.sqrt(5 / 4))
    assert width == pytest.approx(np.median(widths))


def test_equal_values_are_all_covered():
    for value in np.random.default_rng(2).uniform(-3, 3, 200):
        inside, _ = replicates.covered(np.full(6, value))
        assert inside == 6
