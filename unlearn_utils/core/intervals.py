"""Measures of forgetting, membership and memorisation, and their intervals: pure functions of arrays.

Log-probabilities and negative log-likelihoods (NLL) are in nats. One array of true-token log-probabilities per document, over its
predicted tokens only. Every membership score is oriented so that higher means "member".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unlearn_utils.core import arrays

BLOCK = 2**18  # numbers per block of resamples: stays in the processor's cache


# ---------------------------------------------------------------------------------------------- intervals


class Interval(NamedTuple):
    """A value, its percentile-bootstrap bounds, and the number of independent units behind it (of the smaller group)."""

    value: float
    low: float
    high: float
    n: int


def bootstrap(
    statistic: Callable[..., float],
    *arrays: ArrayLike,
    generator: np.random.Generator,
    resamples: int = 1000,
    level: float = 0.95,
    clusters: ArrayLike | Sequence[ArrayLike] | None = None,
    paired: bool = True,
) -> Interval:
    """Percentile bootstrap of `statistic(*arrays)` over documents, the arrays' first axis, or over clusters of them.

    paired: all arrays describe the same documents and are resampled together (`clusters`: one label per document); otherwise each is
    resampled by itself (`clusters`: one such array for each). Source: Efron and Tibshirani 1993, chapter 13.
    Raises ValueError if there is no array, if one is empty or if lengths do not match.
    """
    groups = [np.asarray(a) for a in arrays]
    if not groups or any(g.ndim == 0 or len(g) == 0 for g in groups):
        raise ValueError("bootstrap: no documents")
    if paired and len({len(g) for g in groups}) > 1:
        raise ValueError(f"bootstrap: paired arrays of unequal lengths {[len(g) for g in groups]}")
    labels = [clusters] if paired else clusters if clusters is not None else [None] * len(groups)
    members = [_members(len(g), c) for g, c in zip(groups[:1] if paired else groups, labels, strict=True)]
    draws = []
    for _ in range(resamples):
        rows = [_draw(m, generator) for m in members] * (len(groups) if paired else 1)
        draws.append(statistic(*(g[r] for g, r in zip(groups, rows, strict=True))))
    return interval(statistic(*groups), draws, level, min(map(len, members)))


def cluster_codes(n: int, clusters: ArrayLike | None) -> NDArray[np.intp]:
    """Cluster number of each of n documents; each its own if None."""
    if clusters is None:
        return np.arange(n)
    labels = np.asarray(clusters)
    if labels.shape != (n,):
        raise ValueError(f"bootstrap: {n} documents but cluster labels of shape {labels.shape}")
    return np.unique(labels, return_inverse=True)[1]


def _members(n: int, clusters: ArrayLike | None) -> list[NDArray[np.intp]]:
    """Document numbers of each cluster."""
    numbers = cluster_codes(n, clusters)
    return np.split(np.argsort(numbers, kind="stable"), np.bincount(numbers).cumsum()[:-1])


def _draw(members: list[NDArray[np.intp]], generator: np.random.Generator) -> NDArray[np.intp]:
    return np.concatenate([members[i] for i in generator.integers(len(members), size=len(members))])


def draw_counts(units: NDArray[np.intp], size: int, generator: np.random.Generator) -> arrays.Floats:
    """How often each document is drawn, (size, documents), when clusters are drawn with replacement."""
    k = int(units.max()) + 1
    drawn = generator.integers(k, size=(size, k)) + k * np.arange(size)[:, None]
    return np.bincount(drawn.ravel(), minlength=size * k).reshape(size, k)[:, units].astype(float)


def blocks(resamples: int, width: int) -> Iterator[int]:
    """Sizes of blocks of resamples that add up to `resamples`."""
    step = max(1, BLOCK // width)
    return (min(step, resamples - start) for start in range(0, resamples, step))


def interval(value: float, draws: ArrayLike, level: float, n: int) -> Interval:
    """The percentile interval of bootstrap draws around a value."""
    draws = np.asarray(draws, float)
    method = "linear" if np.isfinite(draws).all() else "inverted_cdf"  # between infinite draws there is nothing to interpolate
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], method=method)
    return Interval(float(value), float(low), float(high), n)
