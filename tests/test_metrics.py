"""Scores and metrics on cases small enough to compute by hand, and their intervals."""

import math
import subprocess
import sys
import zlib

import numpy as np
import pandas as pd
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


def test_weighted_auc_by_hand():
    """3 beats both others, 1 beats neither and ties with one: 2 and 1/2 wins of 4."""
    ours, theirs = np.array([3.0, 1.0]), np.array([1.0, 2.0])
    times = np.array([[1.0, 1.0], [2.0, 0.0], [1.0, 3.0]])
    other_times = np.array([[1.0, 1.0], [1.0, 1.0], [2.0, 1.0]])
    found = membership.weighted_auc(ours, theirs, times, other_times)
    assert found == pytest.approx([2.5 / 4, 1.0, (3 + 3 * 2 * 0.5) / 12])


def test_weighted_auc_counts_a_document_as_often_as_it_is_repeated():
    generator = rng(0)
    ours, theirs = generator.integers(0, 6, 7) * 1.0, generator.integers(0, 6, 5) * 1.0
    times, other_times = generator.integers(1, 4, (9, 7)), generator.integers(1, 4, (9, 5))
    found = membership.weighted_auc(ours, theirs, times * 1.0, other_times * 1.0)
    for value, mine, others in zip(found, times, other_times, strict=True):
        repeated = membership.auc(np.repeat(ours, mine), np.repeat(theirs, others))
        assert value == pytest.approx(repeated)


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


def test_bootstrap_auc_repeats_with_the_generator():
    data = rng(0).normal(size=30)
    aucs = [membership.bootstrap_auc(data, data - 0.5, rng(seed)) for seed in (1, 1, 2)]
    assert aucs[0] == aucs[1] != aucs[2]
    assert aucs[0].low < aucs[0].value < aucs[0].high and aucs[0].n == 30


def test_draws_are_of_whole_clusters_and_independent():
    """Three clusters, drawn three times: each once on average, with variance 3 x 1/3 x 2/3."""
    units = intervals.cluster_codes(5, list("abaca"))
    counts = intervals.draw_counts(units, 4000, rng(0))
    assert counts.shape == (4000, 5)
    assert (counts[:, [0]] == counts[:, [2, 4]]).all()
    assert (counts[:, [0, 1, 3]].sum(1) == 3).all()
    assert counts.mean(0) == pytest.approx([1] * 5, abs=0.05)
    assert counts.var(0) == pytest.approx([2 / 3] * 5, abs=0.07)


def test_the_interval_of_a_mean_is_its_standard_error():
    data = rng(0).normal(size=400)
    drawn = intervals.draw_counts(intervals.cluster_codes(400, None), 1000, rng(1)) @ data / 400
    interval = intervals.interval(data.mean(), drawn, 0.9, 400)
    expected = 2 * stats.norm.ppf(0.95) * data.std() / 20
    assert interval.high - interval.low == pytest.approx(expected, rel=0.1)


def test_intervals_cover():
    hits = 0
    units = intervals.cluster_codes(40, None)
    for seed in range(200):
        data = rng(seed).normal(size=40)
        drawn = intervals.draw_counts(units, 200, rng(1000 + seed)) @ data / 40
        found = intervals.interval(data.mean(), drawn, 0.8, 40)
        hits += found.low < 0 < found.high
    # at 80%, 160 +- 3 standard deviations (17) hold the true mean; a mean of 40 costs a little
    assert 140 <= hits <= 177


OF_UNEQUAL_SIZES = np.sqrt(np.arange(60) * 4).astype(int)


def drawn_again(clusters, generator):
    """Return the documents of as many clusters as there are, drawn with replacement."""
    parts = [part.to_numpy() for _, part in clusters]
    chosen = generator.integers(len(parts), size=len(parts))
    return np.concatenate([parts[i] for i in chosen])


@pytest.mark.parametrize(
    ("clusters", "n"), [(None, 40), ((OF_UNEQUAL_SIZES, np.arange(40) // 4), 10)]
)
def test_bootstrap_auc_equals_the_plain_bootstrap(clusters, n):
    members = rng(1).integers(0, 9, 60) + 2
    others = rng(2).integers(0, 9, 40)  # many ties
    fast = membership.bootstrap_auc(members, others, rng(3), resamples=4000, clusters=clusters)
    labels = clusters or (np.arange(60), np.arange(40))
    sides = [
        pd.Series(members).groupby(labels[0]),
        pd.Series(others).groupby(labels[1]),
    ]
    generator = rng(4)
    plain = []
    for _ in range(1500):
        plain.append(membership.auc(*(drawn_again(side, generator) for side in sides)))
    assert fast.value == membership.auc(members, others) and fast.n == n
    low, high = np.quantile(plain, [0.025, 0.975])
    assert fast.low == pytest.approx(low, abs=0.015)
    assert fast.high == pytest.approx(high, abs=0.015)


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
    "clusters": lambda: intervals.cluster_codes(2, [1]),
    "bootstrap_auc": lambda: membership.bootstrap_auc([1.0], [], rng()),
}


@pytest.mark.parametrize("call", EMPTY.values(), ids=EMPTY)
def test_bad_input_raises_one_clear_line(call):
    with pytest.raises(ValueError, match=r"^[^\n]{10,120}$"):
        call()
