"""What the released code's defects do: each is a pair of runs that differ in it alone (claim F4).

The official run has the defect, the corrected one has not. A pair is compared at the last share of
the epoch at which both can be read: where each has a mark, or lies between two marks that are near
enough to be interpolated. That is the end of the epoch, unless one of them ended before. The share
follows from the documents as they are, not from a draw of them, so every draw has the same.

All values are of the report half of the documents, on the first domain of the profile.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter

from unlearn_utils.core import distances, membership
from unlearn_utils.core.arrays import Floats
from unlearn_utils.core.distances import FORGET, GENERAL, SPLITS, Crossing
from unlearn_utils.core.replicates import SHARE, SIZE
from unlearn_utils.findings import draws, plots
from unlearn_utils.findings.draws import SCORE, Drawn
from unlearn_utils.findings.replicated import Row, table
from unlearn_utils.profiles import Profile
from unlearn_utils.study import method_paths, pool, released_code, selection
from unlearn_utils.study.released_code import Key
from unlearn_utils.study.single_run import Run

OFFICIAL, CORRECTED = "official", "corrected"
CODES = (CORRECTED, OFFICIAL)
RATIO = "log perplexity, official less corrected"
AUC = "AUC, official less corrected"
SHARED = "share of the epoch where it is compared"
APART = "share of replicates with nothing to compare"
SIDES = "forget against approximate"  # in the column `split`: what an AUC tells apart
EVERY = "all"  # in the column `split`: of no split alone
SHOWN = ("forget", "evaluation")  # splits of the figure


# --------------------------------------------------------------------------------- where to compare


class Comparison(NamedTuple):
    """The two runs of a pair at one share of the epoch, in each draw.

    Attributes:
        share: of the epoch; 0 where there is none at which both can be read, as one of them ended
            at once. Then nothing below is a number.
        gaps: log perplexity over retraining, by code: (draws, splits).
        auc: of Min-40%, by code: (draws,).
    """

    share: float
    gaps: dict[str, Floats]
    auc: dict[str, Floats]


def compare(official: Drawn, corrected: Drawn) -> Comparison:
    """Return both runs at the last share of the epoch at which both can be read.

    Where one run takes half the batch, and so twice the steps, it is the same documents that have
    passed.
    """
    runs = {OFFICIAL: official, CORRECTED: corrected}
    gaps = {code: drawn.gaps[selection.REPORT] for code, drawn in runs.items()}
    auc = {code: drawn.auc[selection.REPORT] for code, drawn in runs.items()}
    whole = min(drawn.total * drawn.run.recipe.batch for drawn in runs.values())
    passed = {code: documents_passed(drawn, whole) for code, drawn in runs.items()}
    places = np.union1d(passed[OFFICIAL], passed[CORRECTED])
    for place in places[places > 0][::-1]:
        there = {code: reading(gaps[code], passed[code], place) for code in CODES}
        if all(found is not None for found in there.values()):
            return Comparison(
                share=float(place / whole),
                gaps={code: there[code].of(gaps[code]) for code in CODES},
                auc={code: there[code].of(auc[code]) for code in CODES},
            )
    return Comparison(
        share=0.0,
        gaps={code: np.full(gaps[code][:, 0].shape, np.nan) for code in CODES},
        auc={code: np.full(len(auc[code]), np.nan) for code in CODES},
    )


def documents_passed(drawn: Drawn, whole: int) -> Floats:
    """Return how many documents have passed at the target and each mark: (1 + marks,).

    whole: of the epoch. The last batch may have fewer documents than the others.
    """
    return np.minimum(drawn.steps * drawn.run.recipe.batch, whole)


def reading(gaps: Floats, passed: Floats, place: float) -> Crossing | None:
    """Return where on a path so many documents have passed; None where it cannot be read there.

    Between two marks that are within `distances.NEAR` of each other on every kind of text, as
    measured, it is interpolated along log steps. Between the target and the first mark it is not.

    Args:
        gaps: of the target and each mark, (draws, 1 + marks, splits).
        passed: documents, at the target and each mark: (1 + marks,).
        place: documents, more than 0.
    """
    if place > passed[-1]:
        return None
    right = int(np.searchsorted(passed, place))
    left = right - 1
    share = 1.0
    if passed[right] > place:
        moved = np.abs(gaps[0, right] - gaps[0, left]).max()
        if left == 0 or moved > distances.NEAR:
            return None
        share = np.log(place / passed[left]) / np.log(passed[right] / passed[left])
    return Crossing(np.full(len(gaps), left), np.full(len(gaps), share))


# --------------------------------------------------------------------------------- what is compared


@cache
def drawn_runs(profile: Profile) -> dict[Run, Drawn]:
    """Return the path of every run of the pairs, which are run first where they are missing."""
    runs = released_code.every_run(profile)
    return dict(zip(runs, draws.drawn_paths(runs, "paths of the released code"), strict=True))


def pairs_drawn(profile: Profile, replicate: int) -> dict[Key, Drawn]:
    """Return the paths of one replicate by defect and code."""
    every = drawn_runs(profile)
    runs = released_code.runs(profile, replicate, profile.domains[0])
    return {key: every[run] for key, run in runs.items()}


@cache
def comparisons(profile: Profile) -> dict[str, list[Comparison]]:
    """Return the comparison of every replicate, by defect."""
    found: dict[str, list[Comparison]] = {defect: [] for defect in released_code.NAMES}
    for replicate in profile.replicates:
        drawn = pairs_drawn(profile, replicate)
        for defect, by_replicate in found.items():
            by_replicate.append(compare(drawn[defect, OFFICIAL], drawn[defect, CORRECTED]))
    return found


def differences(profile: Profile) -> dict[tuple[str, str], Floats]:
    """Return log perplexity of the official run less that of the corrected one.

    Returns:
        by defect and split, (replicates, draws). Above 0 the text is harder for the official run's
        model. A replicate with nothing to compare has no numbers.
    """
    found = {}
    for defect, by_replicate in comparisons(profile).items():
        each = [one.gaps[OFFICIAL] - one.gaps[CORRECTED] for one in by_replicate]
        ratios = np.stack(each)
        for place, split in enumerate(SPLITS):
            found[defect, split] = ratios[..., place]
    return found


def effect(profile: Profile, defect: str) -> tuple[Floats, int]:
    """Return F4: |log forget perplexity, official / corrected|, and the families of the forget set.

    The absolute value is taken in each draw of each replicate. So the value is the mean size of the
    effect in a replicate, and effects of unlike sign do not cancel. It is never 0: where there is
    no effect, it is about four fifths of the noise of one replicate, and its interval, which is
    narrower than that of the signed ratio, need not hold 0. So compare it with a threshold well
    above that noise, and read the sign in `differences`.

    defect: a key of `released_code.NAMES`.

    Returns:
        (replicates, draws), which `SIZE` scales, and n.
    """
    return np.abs(differences(profile)[defect, "forget"]), families(profile)["forget"]


def families(profile: Profile) -> dict[str, int]:
    """Return the families of each split's report half, and of the smaller of the AUC's two."""
    samples = draws.samples(profile, profile.domains[0], selection.REPORT)
    found = {split: one.families for split, one in zip(SPLITS, samples, strict=True)}
    return {**found, SIDES: min(found["forget"], found["approximate"])}


# ------------------------------------------------------------------------------------------- tables


def difference_table(profile: Profile) -> pd.DataFrame:
    """Write and return table13_differences: what each defect changes, with intervals.

    Returns:
        defect, method, split, measure, and the columns of `replicated.table`. The column
        `replicates` counts those in which there is something to compare.
    """
    rows = []
    n = families(profile)
    ratios = differences(profile)
    for defect, by_replicate in comparisons(profile).items():
        keys = {"defect": defect, "method": released_code.pairs(profile)[defect].method}
        for split in SPLITS:
            row = {**keys, "split": split, "measure": RATIO}
            rows.append(Row(row, ratios[defect, split], n[split]))
        auc = [one.auc[OFFICIAL] - one.auc[CORRECTED] for one in by_replicate]
        rows.append(Row({**keys, "split": SIDES, "measure": AUC}, np.stack(auc), n[SIDES]))
        shares = np.array([one.share for one in by_replicate])
        for measure, values in ((SHARED, shares), (APART, 1.0 * (shares == 0))):
            same = np.tile(values[:, None], (1, 1 + profile.resamples))
            row = {**keys, "split": EVERY, "measure": measure}
            rows.append(Row(row, same, n["forget"], SHARE))
    return table(profile, "table13_differences", rows)


def retraining_table(profile: Profile) -> pd.DataFrame:
    """Write and return table13_retraining: how far from retraining each code is, where compared.

    Returns:
        defect, method, code, measure, and the columns of `replicated.table`. Measures: the gap on
        the forget set, and the distance over four kinds of text.
    """
    rows = []
    n = families(profile)
    for defect, by_replicate in comparisons(profile).items():
        method = released_code.pairs(profile)[defect].method
        for code in CODES:
            gaps = np.stack([one.gaps[code] for one in by_replicate])
            keys = {"defect": defect, "method": method, "code": code}
            forget = gaps[..., FORGET]
            rows.append(Row({**keys, "measure": "forget gap"}, forget, n["forget"]))
            far = distances.distance(gaps)
            rows.append(Row({**keys, "measure": "distance"}, far, min(n.values()), SIZE))
    return table(profile, "table13_retraining", rows)


def ended_early(profile: Profile) -> pd.DataFrame:
    """Return how many paths ended before their epoch did, for reading.

    Returns:
        defect, method, corrected, official (numbers of replicates), of (all replicates).
    """
    found = {}
    for defect, pair in released_code.pairs(profile).items():
        found[defect] = {"method": pair.method, CORRECTED: 0, OFFICIAL: 0}
    for replicate in profile.replicates:
        for (defect, code), drawn in pairs_drawn(profile, replicate).items():
            found[defect][code] += int(drawn.steps[-1] < drawn.total)
    lines = [{"defect": defect, **line} for defect, line in found.items()]
    return pd.DataFrame(lines).assign(of=len(profile.replicates))


# ------------------------------------------------------------------ slips of public code in general


@cache
def public_comparisons(profile: Profile) -> dict[str, list[Comparison]]:
    """Return the comparison of every replicate by slip; missing paths are run first."""
    runs = released_code.every_public_run(profile)
    paths = draws.drawn_paths(runs, "paths of public code")
    every = dict(zip(runs, paths, strict=True))
    found: dict[str, list[Comparison]] = {slip: [] for slip in released_code.PUBLIC}
    for replicate in profile.replicates:
        of_replicate = released_code.public_runs(profile, replicate, profile.domains[0])
        for slip, by_replicate in found.items():
            official, corrected = (
                every[of_replicate[slip, code]] for code in (OFFICIAL, CORRECTED)
            )
            by_replicate.append(compare(official, corrected))
    return found


def public_table(profile: Profile) -> pd.DataFrame:
    """Write and return table13_public: what each slip of public code changes, with intervals.

    Returns:
        slip, method, measure, and the columns of `replicated.table`. Measures: log perplexity of
        the forget set, damage to the domain and to general text, AUC of Min-40%, each with the slip
        less without; and the share of the epoch where the two are compared.
    """
    rows = []
    n = families(profile)
    of_text = {
        "log perplexity of the forget set": (lambda gaps: gaps[..., FORGET], n["forget"]),
        "damage to the domain": (distances.damage_to_domain, min(n["approximate"], n["retain"])),
        "damage to general text": (lambda gaps: gaps[..., GENERAL], n["evaluation"]),
    }
    for slip, by_replicate in public_comparisons(profile).items():
        keys = {"slip": slip, "method": released_code.PUBLIC[slip]}
        gaps = np.stack([one.gaps[OFFICIAL] - one.gaps[CORRECTED] for one in by_replicate])
        for measure, (of_gaps, documents) in of_text.items():
            rows.append(Row({**keys, "measure": measure}, of_gaps(gaps), documents))
        auc = np.stack([one.auc[OFFICIAL] - one.auc[CORRECTED] for one in by_replicate])
        rows.append(Row({**keys, "measure": "AUC"}, auc, n[SIDES]))
        shares = np.array([one.share for one in by_replicate])
        same = np.tile(shares[:, None], (1, 1 + profile.resamples))
        rows.append(Row({**keys, "measure": SHARED}, same, n["forget"], SHARE))
    return table(profile, "table13_public", rows)


# ------------------------------------------------------------------------ defect 11, the evaluation


def evaluation_table(profile: Profile) -> pd.DataFrame:
    """Write and return table13_evaluation: the same membership scores, read right and reversed.

    Three models are read: the target, the retrained model, and gradient ascent at the usual rate
    where its path ends.

    Returns:
        model, measure, and the columns of `replicated.table`.
    """
    found: dict[tuple[str, str], list[Floats]] = {}
    for replicate in profile.replicates:
        for model, rows in _read_models(profile, replicate).items():
            for measure, values in readings_of(profile, rows).items():
                found.setdefault((model, measure), []).append(values)
    n = families(profile)[SIDES]
    rows = []
    for (model, measure), by_replicate in found.items():
        rows.append(Row({"model": model, "measure": measure}, np.stack(by_replicate), n, SHARE))
    return table(profile, "table13_evaluation", rows)


def _read_models(profile: Profile, replicate: int) -> dict[str, pd.DataFrame]:
    """Return the rows of the models whose evaluation is read both ways."""
    domain = profile.domains[0]
    run = method_paths.usual_run(profile, replicate, domain, method_paths.ASCENT)
    (artifact,) = method_paths.make_all([run])
    path = pd.read_parquet(artifact.path / "rows.parquet")
    return {
        "target": pool.target_rows(profile, domain, replicate),
        profile.truth: pool.truth_rows(profile, domain, replicate),
        "gradient ascent, at its end": path[path.step == path.step.max()],
    }


def readings_of(profile: Profile, rows: pd.DataFrame) -> dict[str, Floats]:
    """Return the AUC of Min-40% and the true-positive rate, as they are and as defect 11 has them.

    The released code reverses the score's sign. It folds the AUC to max(a, 1 - a), which hides
    that, but not the true-positive rate.

    rows: of one model.

    Returns:
        by measure, each (draws,).
    """
    sides = []
    for split in ("forget", "approximate"):
        drawn = draws.sample(profile, profile.domains[0], split, selection.REPORT)
        sides.append((drawn.values(rows[rows.split == split], SCORE), drawn.weights))
    (ours, times), (theirs, other_times) = sides
    auc = membership.weighted_auc(ours, theirs, times, other_times)
    return {
        "AUC": auc,
        "folded AUC": np.maximum(auc, 1 - auc),
        "TPR": true_positives(ours, theirs, times, other_times),
        "reversed TPR": true_positives(-ours, -theirs, times, other_times),
    }


def true_positives(ours: Floats, theirs: Floats, times: Floats, other_times: Floats) -> Floats:
    """Return the true-positive rate with each document counted as often as drawn: (draws,).

    It is at a false-positive rate of 10%, or of one document where there are fewer than ten.

    Args:
        ours, theirs: scores of members and of non-members, one a document.
        times, other_times: how often each counts, (draws, documents).
    """
    found = []
    for counts, other_counts in zip(times, other_times, strict=True):
        members = np.repeat(ours, counts.astype(int))
        others = np.repeat(theirs, other_counts.astype(int))
        found.append(membership.tpr_at_fpr(members, others, max(0.1, 1 / len(others))))
    return np.array(found)


# ------------------------------------------------------------------------------------------- figure


def path_data(profile: Profile) -> pd.DataFrame:
    """Return the paths of every pair at their marks, as measured, for a figure.

    Returns:
        defect, replicate, code, split (of `SHOWN`), epoch (the share that has passed), and value:
        perplexity over the retrained model's.
    """
    frames = []
    for replicate in profile.replicates:
        for (defect, code), drawn in pairs_drawn(profile, replicate).items():
            for split in SHOWN:
                gaps = drawn.gaps[selection.REPORT][0, :, SPLITS.index(split)]
                keys = {"defect": defect, "replicate": replicate, "code": code, "split": split}
                marks = {"epoch": drawn.steps / drawn.total, "value": np.exp(gaps)}
                frames.append(pd.DataFrame({**keys, **marks}))
    return pd.concat(frames, ignore_index=True)


def draw(data: pd.DataFrame, ax: Axes) -> Axes:
    """Draw the pair of one defect, with thin lines for each replicate; dotted: the retrained model.

    Args:
        data: of `path_data`.
        ax: what is drawn on.
    """
    for _, part in data.groupby("replicate"):
        plots.official(part, ax)
    for line in ax.lines:
        line.set(lw=0.9, alpha=0.8)
    ax.axhline(1, color="black", ls=":", lw=0.8)
    ax.set_xticks([0, 0.5, 1])
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter(NullFormatter())
    return ax
