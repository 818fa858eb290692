"""The audit's measures on cases small enough to compute by hand; each can come out either way."""

import math

import numpy as np
import pytest
from scipy import stats

from unlearn_utils.core import audit

SAME = np.random.default_rng(1).normal(0, 1, (24, 40))
ALIKE = np.random.default_rng(2).normal(0, 1, (24, 40))  # drawn from the same distribution
APART = ALIKE + 20


# ------------------------------------------------------------------------------------------ margins


def test_margin_is_the_mean_log_odds():
    assert audit.margin(np.log([0.5, 0.8])) == pytest.approx((0 + math.log(4)) / 2)
    assert audit.margin([-30.0]) == pytest.approx(-30, abs=1e-9)


def test_a_sure_token_has_the_margin_that_float32_resolves():
    assert audit.margin([0.0]) == pytest.approx(24 * math.log(2), abs=1e-6)
    with pytest.raises(ValueError, match="margin"):
        audit.margin([])


# --------------------------------------------------------------------------------------------- KLoM


def test_klom_by_hand():
    ours = np.array([[0.0], [0.0], [0.0], [20.0]])
    theirs = np.array([[0.0], [20.0], [20.0], [20.0]])
    expected = 0.75 * math.log(3) + 0.25 * math.log(1 / 3)
    assert audit.klom(ours, theirs) == pytest.approx([expected], abs=1e-2)


def test_klom_is_the_divergence_of_the_members_from_the_others():
    """The first of two arguments is P of KL(P || Q): mass where Q has none costs its logarithm."""
    ours, theirs = np.array([[0.0], [20.0]]), np.array([[0.0], [0.0]])
    assert audit.klom(ours, theirs)[0] == pytest.approx(0.5 * math.log(0.5 / 1e-5), abs=0.4)
    assert audit.klom(theirs, ours)[0] == pytest.approx(math.log(2), abs=1e-2)


def test_klom_of_equal_margins_is_0_and_of_separate_ones_its_largest():
    assert audit.klom(SAME, SAME) == pytest.approx(np.zeros(40), abs=1e-12)
    apart = audit.klom(APART, SAME)
    assert (apart > 9).all() and (apart < math.log(1e5)).all()
    one_bin = audit.klom(np.full((24, 1), 20.0), np.zeros((24, 1)))
    assert one_bin == pytest.approx([math.log(1e5)], abs=0.01)
    assert (audit.klom(ALIKE, SAME) < 6).all()


def test_klom_clips_and_wants_as_many_models():
    one = np.array([[0.0], [1e9]])
    other = np.array([[0.0], [100.0]])
    assert audit.klom(one, other) == pytest.approx([0.0], abs=1e-12)
    with pytest.raises(ValueError, match="KLoM"):
        audit.klom(SAME, SAME[:12])


# ------------------------------------------------------------------------------------------- U-LiRA


def test_lira_leaves_the_judged_model_out():
    members, others = np.array([[1.0], [3.0], [8.0]]), np.array([[0.0], [2.0], [4.0], [6.0]])
    of_members, of_others = audit.lira(members, others)

    def density(x, values):
        return stats.norm.logpdf(x, np.mean(values), np.std(values, ddof=1))

    assert of_members[2, 0] == pytest.approx(density(8, [1, 3]) - density(8, [0, 2, 4, 6]))
    assert of_others[0, 0] == pytest.approx(density(0, [1, 3, 8]) - density(0, [2, 4, 6]))


def test_lira_tells_separate_models_and_not_like_ones():
    assert audit.auc_by_document(*audit.lira(APART, SAME)) == pytest.approx(np.ones(40))
    alike = audit.auc_by_document(*audit.lira(ALIKE, SAME)).mean()
    assert 0.35 < alike < 0.55  # leaving a model out puts it below 1/2, never above
    with pytest.raises(ValueError, match="three"):
        audit.lira(SAME[:2], SAME)


def test_auc_by_document_by_hand():
    ours, theirs = np.array([[1.0, 0.0], [3.0, 0.0]]), np.array([[2.0, 0.0], [0.0, 1.0]])
    assert audit.auc_by_document(ours, theirs).tolist() == [0.75, 0.25]


# ------------------------------------------------------------------------------------------ epsilon


def test_epsilon_by_hand():
    """At the threshold 3: FNR 1/4, FPR 1/4, so log(3); the best is at 2: FNR floored to 1/4."""
    assert audit.epsilon([2, 3, 4, 5], [0, 1, 1, 3]) == pytest.approx(math.log(3))
    # every threshold: (FNR, FPR) = (0, 1), (0, 1/2), (1/2, 1/2), (1/2, 0); floors are 1/2
    assert audit.epsilon([1, 3], [0, 2]) == 0
    assert audit.epsilon(range(10, 20), [*range(9), 15]) == pytest.approx(math.log(9))


def test_epsilon_of_its_mirror_is_the_same():
    ours, theirs = np.array([2.0, 3, 4, 5, 0.5]), np.array([0.0, 1, 1, 3])
    assert audit.epsilon(ours, theirs) == pytest.approx(audit.epsilon(-theirs, -ours), abs=1e-12)


def test_epsilon_ends_at_its_ceiling_and_is_near_0_of_like_models():
    assert audit.ceiling(24, 24) == pytest.approx(math.log(23))
    assert audit.epsilon(APART[:, 0], SAME[:, 0]) == pytest.approx(audit.ceiling(24, 24))
    assert audit.epsilon(APART[:6, 0], SAME[:, 0]) == pytest.approx(audit.ceiling(6, 24))
    many = np.random.default_rng(3).normal(size=(2, 4000))
    assert audit.epsilon(*many, delta=0.01) < 0.2
    assert audit.epsilon([1, 1], [1, 1]) == 0


# -------------------------------------------------------------------------- with reference models


def test_rmia_by_hand():
    """Rises over the reference, p of 1/2 each: 1.5, 1, 0.5; the population is the last two."""
    margins = np.log([3.0, 1.0, 1 / 3])
    references = np.zeros((2, 3))
    population = np.array([False, True, True])
    assert audit.rmia(margins, references, population).tolist() == [1, 1, 0]
    assert audit.rmia(margins, references, population, gamma=2.0).tolist() == [0.5, 1, 0]


def test_rmia_tells_members_and_not_like_documents():
    references = np.random.default_rng(4).normal(0, 0.1, (20, 200))
    margins = np.random.default_rng(5).normal(0, 0.1, 200)
    population = np.arange(200) >= 100
    alike = audit.rmia(margins, references, population)
    assert alike[:100].mean() == pytest.approx(0.5, abs=0.15)
    margins[:100] += 2
    assert audit.rmia(margins, references, population)[:100] == pytest.approx(np.ones(100))


def test_over_reference_takes_off_the_mean():
    found = audit.over_reference(np.array([1.0, 2.0]), np.array([[0.0, 1.0], [2.0, 1.0]]))
    assert found.tolist() == [0, 1]


def test_a_document_is_told_by_its_deviations():
    references = np.array([[0.0, 0.0, 0.0], [2.0, 2.0, 2.0]])  # mean 1, deviation sqrt(2)
    margins = 1 + math.sqrt(2) * np.array([2.1, -1.9, -2.1])
    far = audit.deviations(margins, references)
    assert far == pytest.approx([2.1, -1.9, -2.1])
    found = [audit.is_told(far, word).tolist() for word in audit.WORDS]
    assert found == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]


# ------------------------------------------------------------------- correlation, and shared text


def test_spearman_is_scipy_s_of_the_documents_as_often_as_drawn():
    generator = np.random.default_rng(6)
    one, other = generator.integers(0, 6, (2, 30)).astype(float)
    times = generator.integers(0, 3, (5, 30)).astype(float)
    found = audit.weighted_spearman(one, other, times)
    for value, counts in zip(found, times.astype(int), strict=True):
        drawn = stats.spearmanr(np.repeat(one, counts), np.repeat(other, counts)).statistic
        assert value == pytest.approx(drawn)


def test_spearman_of_a_monotone_function_is_1_and_of_a_constant_nothing():
    values = np.arange(5.0)
    times = np.ones((1, 5))
    assert audit.weighted_spearman(values, np.exp(values), times) == pytest.approx([1])
    assert np.isnan(audit.weighted_spearman(values, np.ones(5), times)).all()


def test_shared_grams_by_hand():
    texts = ["One two three four", "nothing in common here", "one two"]
    assert audit.shared_grams(texts, ["zero one, TWO three!"], 3).tolist() == [0.5, 0, 0]
    assert audit.word_grams("a b a b", 2) == {("a", "b"), ("b", "a")}
