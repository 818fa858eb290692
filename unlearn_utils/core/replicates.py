"""Values over replicates: an interval of the mean, and where one further replicate is expected.

A *replicate* is a set of models that were trained anew. Every value is measured once a replicate,
on the same documents. Two kinds of chance are in their mean: that of training, which the replicates
show, and that of the documents, which a bootstrap shows that draws the same families of documents
for every replicate, method and model. Differences are paired by that.

* Interval of the mean over R replicates: a t interval of variance s^2 / R + v, where s is the
  standard deviation between replicates and v the variance of the mean over resamples. Its degrees
  of freedom are Satterthwaite's (1946, Biometrics Bulletin 2, 110).
* Rerun interval: a t prediction interval for one further replicate with these documents, the mean
  plus or minus t s sqrt(1 + 1 / R).

What is chosen with the data, such as the best step, is chosen anew in each draw, so that the noise
of choosing is part of the interval.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.stats import t as student

from unlearn_utils.core.arrays import Floats

LEVEL = 0.95


class Estimate(NamedTuple):
    """A value over replicates.

    Attributes:
        value: the mean over replicates of what was measured.
        low, high: of the 95% interval of that mean.
        n: families of documents, of the smallest group.
        replicates: that the mean is over; those without a value are left out.
        rerun_low, rerun_high: where one further replicate lies, 19 times out of 20; not a number
            where nothing is known of other replicates.
        by_replicate: the value of each replicate, in order, as text with spaces between.
        documents_sd: standard deviation of the mean over resamples of the documents, on the scale
            on which replicates are averaged.
    """

    value: float
    low: float
    high: float
    n: int
    replicates: int
    rerun_low: float
    rerun_high: float
    by_replicate: str
    documents_sd: float


class Spread(NamedTuple):
    """What other replicates say of a value, for a run that has one replicate alone.

    Attributes:
        mean: of their values.
        deviation: their standard deviation.
        replicates: how many they are.
    """

    mean: float
    deviation: float
    replicates: int

    @classmethod
    def of(cls, values: Floats) -> Spread:
        """Return the spread of the values of at least two replicates."""
        return cls(float(np.mean(values)), float(np.std(values, ddof=1)), len(values))


NOT_AVAILABLE = Estimate(np.nan, np.nan, np.nan, 0, 0, np.nan, np.nan, "", np.nan)


class Scale(NamedTuple):
    """How a measure is averaged and shown.

    Attributes:
        shown: of the mean and of the bounds, an increasing function; None: as they are.
        inverse: of `shown`.
        least, most: that the measure can be; bounds are cut there.
    """

    shown: Callable[[Floats], Floats] | None = None
    inverse: Callable[[Floats], Floats] | None = None
    least: float = -np.inf
    most: float = np.inf


PLAIN = Scale()
SHARE = Scale(least=0.0, most=1.0)
SIZE = Scale(least=0.0)  # of what has no sign
RATIO = Scale(shown=np.exp, inverse=np.log)  # of perplexities: averaged in nats


def estimate(
    draws: Floats, families: int, spread: Spread | None = None, scale: Scale = PLAIN
) -> Estimate:
    """Return the mean of replicates with its intervals.

    Args:
        draws: (replicates, 1 + resamples), on the scale on which they are averaged. The first
            column is as measured; column b is of the same documents in each row. A replicate whose
            first is not a number has no value, and is left out.
        families: of documents, of the smallest group.
        spread: of other replicates, on the same scale; read where there is one replicate alone.
        scale: of the measure.
    """
    draws = np.asarray(draws, float)
    draws = draws[np.isfinite(draws[:, 0])]
    if not len(draws):
        return NOT_AVAILABLE
    first = draws[:, 0]
    value = first.mean()
    of_documents = variance_over_documents(draws[:, 1:])
    if len(first) > 1:
        own = Spread.of(first)
        half = half_width(own.deviation**2 / len(first), len(first) - 1, of_documents, families - 1)
        rerun = prediction(own)
    elif spread is not None:
        half = half_width(spread.deviation**2, spread.replicates - 1, of_documents, families - 1)
        rerun = prediction(spread)
    else:
        half = half_width(0.0, 1, of_documents, families - 1)
        rerun = (np.nan, np.nan)
    bounds = np.clip([value, value - half, value + half, *rerun], scale.least, scale.most)
    shown = bounds if scale.shown is None else scale.shown(bounds)
    each = first if scale.shown is None else scale.shown(first)
    listed = " ".join(f"{one:.6g}" for one in each)
    middle, low, high, rerun_low, rerun_high = map(float, shown)
    return Estimate(
        value=middle,
        low=low,
        high=high,
        n=families,
        replicates=len(first),
        rerun_low=rerun_low,
        rerun_high=rerun_high,
        by_replicate=listed,
        documents_sd=float(np.sqrt(of_documents)),
    )


def variance_over_documents(draws: Floats) -> float:
    """Return the variance over resamples of the mean over replicates.

    A replicate that has no value in some resample is left out of that resample's mean.

    draws: (replicates, resamples).
    """
    known = np.isfinite(draws)
    counted = known.sum(0)
    total = np.where(known, draws, 0.0).sum(0)
    means = total[counted > 0] / counted[counted > 0]
    if len(means) < 2:
        return 0.0
    return float(np.var(means, ddof=1))


def half_width(of_training: float, degrees: int, of_documents: float, others: int) -> float:
    """Return half the width of a t interval whose variance is a sum of two.

    Args:
        of_training: the variance of the mean that replicates show.
        degrees: its degrees of freedom.
        of_documents: the variance of the mean that resamples show.
        others: its degrees of freedom.
    """
    total = of_training + of_documents
    if total == 0:
        return 0.0
    parts = of_training**2 / max(1, degrees) + of_documents**2 / max(1, others)
    satterthwaite = total**2 / parts
    return float(student.ppf((1 + LEVEL) / 2, satterthwaite) * np.sqrt(total))


def prediction(known: Spread) -> tuple[float, float]:
    """Return where one further replicate lies, with these documents, 19 times out of 20."""
    factor = student.ppf((1 + LEVEL) / 2, known.replicates - 1)
    half = float(factor * known.deviation * np.sqrt(1 + 1 / known.replicates))
    return known.mean - half, known.mean + half


def covered(values: Floats) -> tuple[int, float]:
    """Return how many replicates lie where all the others expect them, and the median width.

    Each is left out in turn, and predicted from the rest.

    values: of at least three replicates.
    """
    inside = 0
    widths = []
    for place, left_out in enumerate(values):
        low, high = prediction(Spread.of(np.delete(values, place)))
        inside += low <= left_out <= high
        widths.append(high - low)
    return inside, float(np.median(widths))
