"""Intervals of a measure by the bootstrap: documents, or clusters of them, are drawn again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
    """Return the percentile interval of bootstrap draws around a value."""
    draws = np.asarray(draws, float)
    method = "linear"
    if not np.isfinite(draws).all():  # between infinite draws there is nothing to interpolate
        method = "inverted_cdf"
    bounds = [(1 - level) / 2, (1 + level) / 2]
    low, high = np.quantile(draws, bounds, method=method)
    return Interval(float(value), float(low), float(high), n)


# --------------------------------------------------------------------------------- any statistic


def bootstrap(
    statistic: Callable[..., float],
    *arrays: ArrayLike,
    generator: np.random.Generator,
    resamples: int = 1000,
    level: float = 0.95,
    clusters: ArrayLike | Sequence[ArrayLike] | None = None,
    paired: bool = True,
) -> Interval:
    """Return the percentile bootstrap of `statistic(*arrays)` over documents, or clusters of them.

    Source: Efron and Tibshirani 1993, chapter 13.

    Args:
        statistic: of arrays whose first axis is documents.
        arrays: what it is a statistic of.
        generator: draws the resamples.
        resamples: how many.
        level: share of the resamples that the interval holds.
        clusters: what is drawn as one: a label for each document, if `paired`; else such an array
            for each of the arrays.
        paired: all arrays describe the same documents and are resampled together; else each is
            resampled by itself.

    Raises:
        ValueError: there is no array, one is empty, or lengths do not match.
    """
    groups = [np.asarray(array) for array in arrays]
    _check_groups(groups, paired)
    if paired:
        members = [_members(len(groups[0]), clusters)]
    else:
        labels = clusters if clusters is not None else [None] * len(groups)
        members = []
        for group, label in zip(groups, labels, strict=True):
            members.append(_members(len(group), label))

    draws = []
    for _ in range(resamples):
        rows = [_draw(clustered, generator) for clustered in members]
        if paired:
            rows = rows * len(groups)
        drawn = [group[row] for group, row in zip(groups, rows, strict=True)]
        draws.append(statistic(*drawn))
    smallest = min(len(clustered) for clustered in members)
    return interval(statistic(*groups), draws, level, smallest)


def _check_groups(groups: Sequence[np.ndarray], paired: bool) -> None:
    """Raise ValueError as `bootstrap` says."""
    if not groups or any(group.ndim == 0 or len(group) == 0 for group in groups):
        raise ValueError("bootstrap: no documents")
    lengths = [len(group) for group in groups]
    if paired and len(set(lengths)) > 1:
        raise ValueError(f"bootstrap: paired arrays of unequal lengths {lengths}")


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


def _members(n: int, clusters: ArrayLike | None) -> list[NDArray[np.intp]]:
    """Return the numbers of the documents of each cluster."""
    codes = cluster_codes(n, clusters)
    ends = np.bincount(codes).cumsum()[:-1]
    return np.split(np.argsort(codes, kind="stable"), ends)


def _draw(members: list[NDArray[np.intp]], generator: np.random.Generator) -> NDArray[np.intp]:
    """Return the documents of as many clusters as there are, drawn with replacement."""
    chosen = generator.integers(len(members), size=len(members))
    return np.concatenate([members[i] for i in chosen])


# ------------------------------------------------------------------------- statistics of weights


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
