"""How far a model is from a retrained one, and what a whole path of models makes of that.

A *gap* is log perplexity less the retrained model's on the same documents, in nats a token: 0 is
retraining. There are four kinds of text. The *distance* is the mean of the four absolute gaps, and
the *score* r = max(0, 1 - distance / the target's): 1 is retraining, 0 doing nothing, or worse.

The settings of a method are the points of a plane, log learning rate x log steps. *Robustness* is
the mean of r over it, which is the area under the curve "share of settings with r >= tau" over
tau. So it needs no bound beyond which a setting would be unacceptable.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from unlearn_utils.core.arrays import Floats

SPLITS = ("forget", "approximate", "retain", "evaluation")
FORGET, UNSEEN, RETAIN, GENERAL = range(4)  # their places
TWO = (FORGET, GENERAL)  # the plane of forget and general text alone
OTHER_TEXT = (UNSEEN, RETAIN)  # the other text of the domain
NEAR = 0.25  # neighbouring marks that differ by more, in log perplexity, are not interpolated
BETWEEN = 8  # points from one mark to the next
HALF = 0.5  # of the best score: what a setting in the window reaches


def distance(gaps: Floats, splits: tuple[int, ...] = (0, 1, 2, 3)) -> Floats:
    """Return the mean of the absolute gaps: (...).

    Args:
        gaps: (..., splits), in the order of `SPLITS`.
        splits: which of them count.
    """
    return np.abs(gaps[..., list(splits)]).mean(-1)


def damage_to_domain(gaps: Floats) -> Floats:
    """Return the mean gap on the other text of the domain, unseen and retain: (...).

    gaps: (..., splits).
    """
    return gaps[..., list(OTHER_TEXT)].mean(-1)


def score(far: Floats, of_target: Floats) -> Floats:
    """Return r = max(0, 1 - far / of_target): distances in, scores out, of the same shape."""
    return np.maximum(0.0, 1.0 - far / of_target)


# --------------------------------------------------------------------------------- along one path


class Path(NamedTuple):
    """The gaps of one run at its marks, in each draw of documents; the first draw is as measured.

    Attributes:
        steps: of the marks that were reached, from 1 on: (marks,).
        gaps: (draws, marks, splits).
        total: the last step that counts; the run may have gone on, and been marked, past it.
        ended: whether the run ended before its own last step.
    """

    steps: Floats
    gaps: Floats
    total: int
    ended: bool


class Points(NamedTuple):
    """Points of a path, and how much of its logarithmic length each stands for.

    Attributes:
        gaps: (draws, points, splits).
        weights: shares of log steps from 1 to the last that counts: (points,). They add up to 1,
            or to less where the run ended.
    """

    gaps: Floats
    weights: Floats


def points(path: Path) -> Points:
    """Return the marks of a path and, where neighbours are near, points between them.

    Between two marks that differ by at most `NEAR` on every kind of text, as measured, gaps are
    interpolated along log steps. Else each of the two stands for its half of what is between them.
    What lies past the path's last step counts for nothing.
    """
    places = np.log(path.steps)
    end = np.log(path.total)
    gaps = []
    weights = []
    for left in range(len(places) - 1):
        start, stop = places[left], places[left + 1]
        one, other = path.gaps[:, left], path.gaps[:, left + 1]
        inside = min(stop, end) - start
        if inside <= 0:
            break
        near = np.abs(other[0] - one[0]).max() <= NEAR
        if near:
            for part in (np.arange(BETWEEN) + 0.5) / BETWEEN * inside / (stop - start):
                gaps.append((1 - part) * one + part * other)
                weights.append(inside / BETWEEN)
        else:
            first = min(inside, (stop - start) / 2)
            gaps += [one, other]
            weights += [first, inside - first]
    if not gaps:  # one mark alone
        return Points(path.gaps[:, :1], np.array([0.0 if path.ended else 1.0]))
    return Points(np.stack(gaps, axis=1), np.array(weights) / end)


class Scores(NamedTuple):
    """What one path says of its method, in each draw.

    Attributes:
        r: the score at each point: (draws, points).
        weights: of the points, (points,).
        worse: the share of settings that are farther than the target: (draws,).
        best: the highest score at a mark: (draws,).
    """

    r: Floats
    weights: Floats
    worse: Floats
    best: Floats


def scores(path: Path, target: Floats, splits: tuple[int, ...] = (0, 1, 2, 3)) -> Scores:
    """Return the scores of a path.

    Args:
        path: its gaps.
        target: the target's gaps, (draws, splits).
        splits: which kinds of text count.
    """
    if not len(path.steps):  # its first step gave no numbers
        none = np.zeros(len(target))
        return Scores(none[:, None], np.zeros(1), none + 1, none)
    on = points(path)
    own = distance(target, splits)[:, None]
    far = distance(on.gaps, splits)
    farther = (far > own) @ on.weights + max(0.0, 1.0 - on.weights.sum())
    marks = path.gaps[:, path.steps <= path.total]
    best = score(distance(marks, splits), own).max(1)
    return Scores(score(far, own), on.weights, farther, best)


# ------------------------------------------------------------------------- over the learning rates


def robustness(rates: list[Scores]) -> Floats:
    """Return the mean score over the plane: (draws,).

    rates: of one method at each learning rate, each of which counts alike.
    """
    return np.mean([one.r @ one.weights for one in rates], axis=0)


def best_score(rates: list[Scores]) -> Floats:
    """Return the highest score at any rate and mark: (draws,)."""
    return np.max([one.best for one in rates], axis=0)


def window(rates: list[Scores]) -> Floats:
    """Return the share of the plane with at least half of the method's own best score: (draws,).

    It is 0 where the best score is 0.
    """
    best = best_score(rates)
    least = np.where(best > 0, HALF * best, np.inf)[:, None]
    return np.mean([(one.r >= least) @ one.weights for one in rates], axis=0)


def worse_than_nothing(rates: list[Scores]) -> Floats:
    """Return the share of the plane that is farther from retraining than the target: (draws,)."""
    return np.mean([one.worse for one in rates], axis=0)


def profile_curve(rates: list[Scores], taus: Floats) -> Floats:
    """Return the share of the plane with a score of at least tau, and above 0: (draws, taus)."""
    shares = []
    for one in rates:
        at_least = (one.r[:, :, None] >= taus) & (one.r[:, :, None] > 0)
        shares.append(np.einsum("dpt,p->dt", at_least, one.weights))
    return np.mean(shares, axis=0)


# ------------------------------------------------------------------------------- equal forgetting


class Crossing(NamedTuple):
    """Where a path first reaches a gap on the forget set, in each draw.

    Attributes:
        left: the mark before, counted from 0, which is the target: (draws,).
        share: of the way from there to the next mark; not a number where the path never reaches the
            gap, or jumps past it: (draws,).
    """

    left: np.ndarray
    share: Floats

    def of(self, values: Floats) -> Floats:
        """Return values there, interpolated: (draws, ...).

        values: at the target and each mark, (draws, 1 + marks, ...).
        """
        draws = np.arange(len(values))
        right = np.minimum(self.left + 1, values.shape[1] - 1)  # a path may have no mark
        share = self.share.reshape(-1, *[1] * (values.ndim - 2))
        return (1 - share) * values[draws, self.left] + share * values[draws, right]


def crossing(gaps: Floats, level: float, near: float = NEAR) -> Crossing:
    """Return where the gap on the forget set first reaches a level.

    A path that moves by more than `near` on any kind of text between the two marks, as measured,
    has jumped. So whether two marks are near is the same in every draw, as in `points`.

    Args:
        gaps: of the target and each mark, (draws, 1 + marks, splits).
        level: of the forget set's gap; the target's is below it.
        near: nats.
    """
    forget = gaps[..., FORGET]
    above = forget >= level
    reached = above.any(1)
    right = np.where(reached, above.argmax(1), 0)
    left = np.maximum(right - 1, 0)
    draws = np.arange(len(gaps))
    before, after = forget[draws, left], forget[draws, right]
    with np.errstate(invalid="ignore", divide="ignore"):
        share = (level - before) / (after - before)
    moved = np.abs(gaps[0, right] - gaps[0, left]).max(-1)
    usable = (moved <= near) & (right > 0)
    return Crossing(left, np.where(usable, share, np.nan))
