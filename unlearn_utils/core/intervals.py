"""Intervals of a measure by the bootstrap: documents, or clusters of them, are drawn again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unlearn_utils.core.arrays import Floats

BLOCK = 2**18  # numbers per block of resamples: stays in the processor's cache


class Interval(NamedTuple):
    """A value and its interval.

    Attributes:
        value: of the sample itself.
        low, high: bounds of the percentile bootstrap.
        n: independent units behind it, of the smaller group.
    """

    value: float
    low: float
    high: float
    n: int


def interval(value: float, draws: ArrayLike, level: float, n: int) -> Interval:
    """Return the percentile interval of bootstrap draws around a value.

    Source: Efron and Tibshirani 1993, chapter 13.
    """
    draws = np.asarray(draws, float)
    method = "linear"
    if not np.isfinite(draws).all():  # between infinite draws there is nothing to interpolate
        method = "inverted_cdf"
    bounds = [(1 - level) / 2, (1 + level) / 2]
    low, high = np.quantile(draws, bounds, method=method)
    return Interval(float(value), float(low), float(high), n)


# ----------------------------------------------------------------------------------------- draws


def cluster_codes(n: int, clusters: ArrayLike | None) -> NDArray[np.intp]:
    """Return the number of the cluster of each of n documents; without clusters each is its own.

    Raises:
        ValueError: there is not one label for each document.
    """
    if clusters is None:
        return np.arange(n)
    labels = np.asarray(clusters)
    if labels.shape != (n,):
        raise ValueError(f"bootstrap: {n} documents but cluster labels of shape {labels.shape}")
    return np.unique(labels, return_inverse=True)[1]


def draw_counts(units: NDArray[np.intp], size: int, generator: np.random.Generator) -> Floats:
    """Return how often each document is drawn when clusters are drawn with replacement.

    Args:
        units: (documents,), the number of each one's cluster.
        size: resamples.

    Returns:
        (size, documents)
    """
    k = int(units.max()) + 1
    drawn = generator.integers(k, size=(size, k)) + k * np.arange(size)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=size * k).reshape(size, k)
    return counts[:, units].astype(float)


def blocks(resamples: int, width: int) -> Iterator[int]:
    """Yield sizes of blocks of resamples, of `width` numbers each, that add up to `resamples`."""
    size = max(1, BLOCK // width)
    for start in range(0, resamples, size):
        yield min(size, resamples - start)
