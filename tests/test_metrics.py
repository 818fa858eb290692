"""Scores and metrics on cases small enough to compute by hand, and their intervals."""

import math
import subprocess
import sys
import zlib

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score, roc_curve

from unlearn_utils.core import intervals, membership, metrics


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("module", ["metrics", "membership", "efficiency", "methods"])
def test_importing_needs_no_torch(module):
    code = f"import sys, unlearn_utils.core.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# -------------------------------------------------------------------------------------- scores

TWO_DOCUMENTS = ([-1.0, -2.0, -3.0, -6.0], [-4.0, -8.0, -2.0, -1.0])


@pytest.mark.parametrize(
    ("k", "expected"),
    [
        (0.2, [-6, -8]),
        (0.5, [-4.5, -6]),
        (0.6, [-4.5, -6]),
        (0.75, [-11 / 3, -14 / 3]),
        (1, [-3, -3.75]),
    ],
)
def test_min_k_by_hand(k, expected):
    found = [membership.min_k(log_probs, k) for log_probs in TWO_DOCUMENTS]
    assert found == pytest.approx(expected)


def test_min_k_keeps_the_last_token():
    assert membership.min_k([-1.0, -1.0, -9.0], 0.2) == -9


def test_min_k_counts_whole_tokens_despite_rounding():
    assert 0.29 * 100 < 29
    assert membership.min_k(np.arange(100.0), 0.29) == pytest.approx(14)


def test_min_k_plus_plus_by_hand():
    # standardised: (-1 + 2)/1 = 1, (-4 + 2)/2 = -1, sigma 0 -> 0, (-5 + 2)/1 = -3
    found = membership.min_k_plus_plus([-1, -4, 0, -5], [-2, -2, 0, -2], [1, 2, 0, 1], 0.5)
    assert found == pytest.approx(-2)
    for log_probs in TWO_DOCUMENTS:
        standard = membership.min_k_plus_plus(log_probs, np.zeros(4), np.ones(4), 0.5)
        assert standard == membership.min_k(log_probs, 0.5)


def test_zlib_score_divides_by_compressed_bytes():
    text = "abc" * 50
    assert membership.zlib_score(2.0, text) == -2 / len(zlib.compress(text.encode()))
    assert membership.zlib_score(1.0, text) > membership.zlib_score(2.0, text)  # higher = member


DOCUMENT = membership.TokenScores(
    log_probs=np.array([-1, -4, -2, -5], np.float32),
    mu=np.full(4, -2, np.float32),
    sigma=np.array([1, 2, 0, 1], np.float32),
    correct=np.array([True, False, True, False]),
    text="abc" * 50,
)


@pytest.mark.parametrize(
    ("title", "column", "expected"),
    [
        ("Min-20%", "min_k_20", -5),
        ("Min-30%", "min_k_30", -5),
        ("Min-40%", "min_k_40", -5),
        ("Min-50%", "min_k_50", -4.5),
        ("Min-60%", "min_k_60", -4.5),
        ("loss", "min_k_100", -3),
        ("Min-20%++", "min_k_plus_20", -3),
        ("Min-30%++", "min_k_plus_30", -3),
        ("Min-40%++", "min_k_plus_40", -3),
        ("Min-50%++", "min_k_plus_50", -2),
        ("Min-60%++", "min_k_plus_60", -2),
        ("Min-100%++", "min_k_plus_100", -0.75),
        ("zlib", "zlib", -3 / len(zlib.compress(b"abc" * 50))),
    ],
)
def test_each_score_of_a_document_by_hand(title, column, expected):
    score = membership.get_score(title)
    assert score.column == column
    assert score.function(DOCUMENT) == pytest.approx(expected)


def test_every_score_has_a_column_of_its_own():
    columns = membership.columns()
    assert len(set(columns)) == len(columns) >= 13


# ------------------------------------------------------------------------------------- attacks


def test_auc_by_hand():
    assert membership.auc([3, 1], [2, 0]) == 0.75
    assert membership.auc([1, 1], [1, 0]) == 0.75  # two ties of four pairs
    assert membership.auc([0, 1], [2, 3]) == 0  # not folded
    assert membership.auc([5], [5]) == 0.5


def test_auc_and_tpr_agree_with_sklearn():
    members = rng(1).integers(0, 12, 60) + 1
    others = rng(2).integers(0, 12, 40)  # many ties
    truth = np.r_[np.ones(60), np.zeros(40)]
    scores = np.r_[members, others]
    assert membership.auc(members, others) == pytest.approx(roc_auc_score(truth, scores))
    fpr, tpr, _ = roc_curve(truth, scores, drop_intermediate=False)
    for level in (0, 0.05, 0.1, 0.25, 0.6, 1):
        expected = tpr[fpr <= level + 1e-12].max()
        assert membership.tpr_at_fpr(members, others, level) == pytest.approx(expected)


def test_tpr_by_hand():
    members, others = [4, 3, 1, 0], [2, 1, 0, -1]
    assert membership.tpr_at_fpr(members, others, 0) == 0.5
    # a threshold of 1 lets the 2 pass; the member 1 itself must not exceed it
    assert membership.tpr_at_fpr(members, others, 0.25) == 0.5
    assert membership.tpr_at_fpr(members, others, 0.5) == 0.75
    with pytest.raises(ValueError, match="4 non-members cannot tell"):
        membership.tpr_at_fpr([1], [1, 2, 3, 4], 0.1)


def test_priv_leak_by_hand():
    assert membership.priv_leak(0.5, 0.5) == 0
    assert membership.priv_leak(0.9, 0.5) == pytest.approx(-80)  # still a member: under-unlearned
    assert membership.priv_leak(0.25, 0.5) == pytest.approx(50)
    with pytest.raises(ValueError, match="undefined"):
        membership.priv_leak(0.5, 1.0)


def test_priv_leak_of_arrays_is_that_of_each_pair():
    found = membership.priv_leak(np.array([0.5, 0.9, np.nan]), np.array([0.5, 0.75, 0.5]))
    assert found == pytest.approx([0, -60, np.nan], nan_ok=True)
    with pytest.raises(ValueError, match="undefined"):
        membership.priv_leak(np.array([0.5, 0.5]), np.array([0.5, 1.0]))


# -------------------------------------------------------- memorisation, closeness to retraining


@pytest.mark.parametrize(
    ("correct", "expected"),
    [("1111", 1), ("0111", 0.75), ("1011", 0.5), ("1110", 0), ("0000", 0), ("1", 1)],
)
def test_extraction_strength_by_hand(correct, expected):
    assert metrics.extraction_strength([digit == "1" for digit in correct]) == expected


def test_rouge_l_by_hand():
    assert metrics.rouge_l([1, 2, 3, 4], [1, 3, 5, 4]) == pytest.approx(2 * 3 / 8)  # 1 3 4
    assert metrics.rouge_l([7, 1, 2], [1, 2]) == pytest.approx(0.8)  # precision 2/3, recall 1
    assert metrics.rouge_l(["the", "cat"], ["the", "cat"]) == 1
    assert metrics.rouge_l([2, 1], [1, 2]) == 0.5  # order matters
    assert metrics.rouge_l([], [1]) == 0
    assert metrics.rouge_l(np.array([1, 2]), np.array([3, 300])) == 0


@pytest.mark.parametrize(
    ("truth", "expected"), [([1, 2, 4], 2), ([1, 2, 3, 4], 3), ([1, 5, 3], 1), ([2], 0), ([], 0)]
)
def test_exact_prefix_by_hand(truth, expected):
    assert metrics.exact_prefix([1, 2, 3], truth) == expected


def test_forget_quality_by_hand_and_by_scipy():
    same = metrics.forget_quality([1, 2, 3, 4], [1, 2, 3, 4])
    assert same == (0, 1, 1, 4)
    apart = metrics.forget_quality([1, 2, 3, 4], [11, 12, 13, 15])
    assert apart.ks_distance == 1
    assert apart.ks_p == pytest.approx(2 / math.comb(8, 4))  # exact: 2 of 70 arrangements
    assert apart.wilcoxon_p == pytest.approx(2 / 2**4)
    noise = rng(3).normal(size=(2, 50))
    shifted = metrics.forget_quality(noise[0], noise[0] + 0.1 + 0.01 * noise[1])
    assert shifted.ks_p > 0.05 > shifted.wilcoxon_p  # a paired test sees more
    assert shifted.wilcoxon_p == pytest.approx(stats.wilcoxon(0.1 + 0.01 * noise[1]).pvalue)


# ----------------------------------------------------------------------------------- intervals


def test_bootstrap_repeats_with_the_generator():
    data = rng(0).normal(size=30)
    seeds = (1, 1, 2)
    means = [intervals.bootstrap(np.mean, data, generator=rng(seed)) for seed in seeds]
    assert means[0] == means[1] != means[2]
    one = means[0]
    assert one.value == data.mean() and one.low < one.value < one.high and one.n == 30
    aucs = [membership.bootstrap_auc(data, data - 0.5, rng(seed)) for seed in seeds]
    assert aucs[0] == aucs[1] != aucs[2]


def test_bootstrap_of_a_mean_is_its_standard_error():
    data = rng(0).normal(size=400)
    interval = intervals.bootstrap(np.mean, data, generator=rng(1), level=0.9)
    expected = 2 * stats.norm.ppf(0.95) * data.std() / 20
    assert interval.high - interval.low == pytest.approx(expected, rel=0.1)


def test_bootstrap_covers():
    hits = 0
    for seed in range(200):
        data = rng(seed).normal(size=40)
        found = intervals.bootstrap(
            np.mean, data, generator=rng(1000 + seed), resamples=200, level=0.8
        )
        hits += found.low < 0 < found.high
    # at 80%, 160 +- 3 standard deviations (17) hold the true mean; a mean of 40 costs a little
    assert 140 <= hits <= 177


def test_bootstrap_keeps_pairs_together():
    a = rng(0).normal(size=50)

    def difference(x, y):
        return x.mean() - y.mean()

    paired = intervals.bootstrap(difference, a, a - 1, generator=rng(1), resamples=50)
    assert paired[:3] == pytest.approx((1, 1, 1))
    apart = intervals.bootstrap(difference, a, a - 1, generator=rng(1), resamples=50, paired=False)
    assert apart.high - apart.low > 0.3


def test_bootstrap_unpaired_takes_unequal_lengths():
    interval = intervals.bootstrap(
        membership.auc, [3, 4, 5, 6], [1, 2], generator=rng(1), resamples=20, paired=False
    )
    assert interval == (1, 1, 1, 2)
    with pytest.raises(ValueError, match="unequal lengths"):
        intervals.bootstrap(membership.auc, [3, 4, 5, 6], [1, 2], generator=rng(1))


def test_clusters_stay_together():
    data = rng(0).normal(size=20)
    tenfold = np.repeat(data, 10)
    units = np.repeat([f"unit {i}" for i in range(20)], 10)
    alone = intervals.bootstrap(np.mean, data, generator=rng(1))
    copies = intervals.bootstrap(np.mean, tenfold, generator=rng(1), clusters=units)
    naive = intervals.bootstrap(np.mean, tenfold, generator=rng(1))
    assert copies.n == 20 and naive.n == 200
    assert copies.high - copies.low == pytest.approx(alone.high - alone.low, rel=0.15)
    assert naive.high - naive.low < 0.5 * (copies.high - copies.low)


def test_cluster_members_are_drawn_whole():
    seen = []

    def statistic(documents):
        seen.append(np.bincount(documents, minlength=5))
        return 0.0

    intervals.bootstrap(statistic, range(5), generator=rng(0), clusters=list("abaca"))
    for counts in seen[:-1]:  # the last call is the statistic itself
        assert counts[0] == counts[2] == counts[4]
        assert counts[[0, 1, 3]].sum() == 3


OF_UNEQUAL_SIZES = np.sqrt(np.arange(60) * 4).astype(int)


@pytest.mark.parametrize(
    ("clusters", "n"), [(None, 40), ((OF_UNEQUAL_SIZES, np.arange(40) // 4), 10)]
)
def test_bootstrap_auc_equals_the_plain_bootstrap(clusters, n):
    members = rng(1).integers(0, 9, 60) + 2
    others = rng(2).integers(0, 9, 40)  # many ties
    fast = membership.bootstrap_auc(members, others, rng(3), resamples=4000, clusters=clusters)
    plain = intervals.bootstrap(
        membership.auc,
        members,
        others,
        generator=rng(4),
        resamples=4000,
        paired=False,
        clusters=clusters,
    )
    assert fast.value == plain.value and fast.n == plain.n == n
    assert fast.low == pytest.approx(plain.low, abs=0.01)
    assert fast.high == pytest.approx(plain.high, abs=0.01)


def test_bootstrap_auc_in_several_blocks(monkeypatch):
    monkeypatch.setattr(intervals, "BLOCK", 35)  # 3 resamples of 10 documents at a time
    assert list(intervals.blocks(8, 10)) == [3, 3, 2]
    interval = membership.bootstrap_auc([3, 4, 5, 6, 7], [1, 2, 1, 2, 1], rng(0), resamples=8)
    assert interval == (1, 1, 1, 5)


EMPTY = {
    "min-k": lambda: membership.min_k([], 0.2),
    "min-k in percent": lambda: membership.min_k([-1.0], 20),
    "min-k++": lambda: membership.min_k_plus_plus([-1.0, -2.0], [0.0], [1.0], 0.2),
    "zlib": lambda: membership.zlib_score(1.0, ""),
    "auc": lambda: membership.auc([], [1.0]),
    "tpr": lambda: membership.tpr_at_fpr([1.0], [], 0.1),
    "extraction strength": lambda: metrics.extraction_strength([]),
    "ROUGE-L": lambda: metrics.rouge_l([1], []),
    "forget quality": lambda: metrics.forget_quality([], []),
    "forget quality, unequal": lambda: metrics.forget_quality([1.0], [1.0, 2.0]),
    "bootstrap": lambda: intervals.bootstrap(np.mean, [], generator=rng()),
    "bootstrap of nothing": lambda: intervals.bootstrap(np.mean, generator=rng()),
    "bootstrap, clusters": lambda: intervals.bootstrap(
        np.mean, [1.0, 2.0], generator=rng(), clusters=[1]
    ),
    "bootstrap_auc": lambda: membership.bootstrap_auc([1.0], [], rng()),
}


@pytest.mark.parametrize("call", EMPTY.values(), ids=EMPTY)
def test_bad_input_raises_one_clear_line(call):
    with pytest.raises(ValueError, match=r"^[^\n]{10,120}$"):
        call()
