"""What rows of documents make of models, in each draw of the documents.

The first draw is the documents as they are; in each of the others every family of documents counts
as often as it was drawn. A family is drawn alike for every model, method and replicate, so
differences are paired.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import pandas as pd

from unlearn_utils.core import membership, tables
from unlearn_utils.core.arrays import Floats
from unlearn_utils.core.distances import SPLITS, Path
from unlearn_utils.profiles import Profile
from unlearn_utils.study import method_paths, pool, selection, single_run
from unlearn_utils.study.single_run import Run

SEED = 0  # of every draw
SCORE = membership.SCORES["Min-40%"].column
ALL = None  # in the place of a half: every measured document


class Sample(NamedTuple):
    """Documents of one split, and how often each counts in each draw.

    Attributes:
        ids: of the documents.
        weights: (1 + resamples, documents).
        families: how many there are.
    """

    ids: pd.Index
    weights: Floats
    families: int

    def values(self, rows: pd.DataFrame, column: str) -> Floats:
        """Return a column of rows, one a document, in the order of the sample: (documents,)."""
        return rows.set_index("id")[column].reindex(self.ids).to_numpy(float)

    def mean(self, rows: pd.DataFrame, above: str, below: str | None = None) -> Floats:
        """Return a sum over a sum, or a mean, in each draw: (1 + resamples,)."""
        total = self.weights @ self.values(rows, above)
        if below is None:
            return total / self.weights.sum(1)
        return total / (self.weights @ self.values(rows, below))

    def at_marks(self, wide: pd.DataFrame, column: str) -> Floats:
        """Return a column of a path's rows in the order of the sample: (documents, marks).

        wide: a row a document, and of each column of measurements one a mark.
        """
        return wide[column].reindex(self.ids).to_numpy(float)

    def ratio(self, wide: pd.DataFrame, above: str, below: str) -> Floats:
        """Return a sum over a sum, in each draw and at each mark: (1 + resamples, marks)."""
        return (
            self.weights @ self.at_marks(wide, above) / (self.weights @ self.at_marks(wide, below))
        )


@cache
def sample(profile: Profile, domain: str, split: str, half: int | None) -> Sample:
    """Return the documents of a split that are measured, and their draws.

    Args:
        profile: says which documents, and how often they are drawn.
        domain: "general" for general text.
        split: one of `distances.SPLITS`.
        half: `selection.REPORT`, or `selection.SELECTION`, of which a path reads some; `ALL`.
    """
    of = profile.domains[0] if domain == "general" else domain
    rows = pool.target_rows(profile, of, profile.replicates[0])
    if half is not ALL:
        rows = selection.half(method_paths.of_path(profile, rows), half)
    rows = rows[(rows.domain == domain) & (rows.split == split)]
    number = -1 if domain == "general" else profile.domains.index(domain)
    place = -1 if half is ALL else half
    seeds = [SEED, number + 1, SPLITS.index(split), place + 1]
    weights = tables.draw_weights(rows, np.random.default_rng(seeds), profile.resamples)
    return Sample(pd.Index(rows.id), weights, rows.family.nunique())


def samples(profile: Profile, domain: str, half: int | None) -> list[Sample]:
    """Return the four samples of a domain, in the order of `SPLITS`; the last is general text."""
    found = []
    for split in SPLITS:
        where = "general" if split == "evaluation" else domain
        found.append(sample(profile, where, split, half))
    return found


def families(profile: Profile, domain: str, half: int | None) -> int:
    """Return the families of the smallest of a domain's four samples."""
    return min(one.families for one in samples(profile, domain, half))


# -------------------------------------------------------------------------------------- one model


def levels(profile: Profile, rows: pd.DataFrame, domain: str, half: int | None) -> Floats:
    """Return log perplexity on the four kinds of text: (1 + resamples, splits).

    rows: of one model.
    """
    found = []
    for split, drawn in zip(SPLITS, samples(profile, domain, half), strict=True):
        found.append(drawn.mean(rows[rows.split == split], "nll", "tokens"))
    return np.stack(found, axis=1)


def auc(
    profile: Profile, rows: pd.DataFrame, domain: str, half: int | None, score: str = SCORE
) -> Floats:
    """Return the AUC of a membership score, forget against unseen documents: (1 + resamples,).

    Args:
        profile: says the documents.
        rows: of one model.
        domain: whose documents.
        half: of them.
        score: its column.
    """
    members = sample(profile, domain, "forget", half)
    others = sample(profile, domain, "approximate", half)
    ours = members.values(rows[rows.split == "forget"], score)
    theirs = others.values(rows[rows.split == "approximate"], score)
    return membership.weighted_auc(ours, theirs, members.weights, others.weights)


@cache
def proxy_gap(profile: Profile, domain: str, replicate: int, half: int | None) -> Floats:
    """Return the target's log perplexity on unseen text, less the truth's on the forget set.

    So much does the goal of somebody without a retrained model miss the truth: (1 + resamples,).
    """
    target = pool.target_rows(profile, domain, replicate)
    truth = pool.truth_rows(profile, domain, replicate)
    ours = levels(profile, target, domain, half)[:, SPLITS.index("approximate")]
    return ours - levels(profile, truth, domain, half)[:, SPLITS.index("forget")]


# --------------------------------------------------------------------------------------- one path


class Drawn(NamedTuple):
    """A path in each draw; mark 0 is the target.

    Attributes:
        run: whose path it is.
        steps: of the marks, 0 first: (1 + marks,).
        gaps: log perplexity over retraining, by half of the documents: (draws, 1 + marks, splits).
        auc: of Min-40%, by half: (draws, 1 + marks).
        extraction: strength of extraction of the forget set, report half: (draws, 1 + marks).
        total: the last step of the whole run.
        ended: whether the path ended before.
    """

    run: Run
    steps: Floats
    gaps: dict[int, Floats]
    auc: dict[int, Floats]
    extraction: Floats
    total: int
    ended: bool

    def path(self, half: int) -> Path:
        """Return its marks without the target, as `distances` reads them."""
        return Path(self.steps[1:], self.gaps[half][:, 1:], self.total, self.ended)

    def target(self, half: int) -> Floats:
        """Return the target's gaps: (draws, splits)."""
        return self.gaps[half][:, 0]


def drawn_paths(runs: Sequence[Run], what: str = "paths") -> list[Drawn]:
    """Return the paths of some runs, which are run first where they are missing."""
    artifacts = method_paths.make_all(runs, what)
    found = []
    for run, artifact in zip(runs, artifacts, strict=True):
        rows = pd.read_parquet(artifact.path / "rows.parquet")
        ended = method_paths.outcome(artifact)["ended"]
        found.append(_drawn(run, rows, ended is not None))
    return found


def _drawn(run: Run, rows: pd.DataFrame, ended: bool) -> Drawn:
    profile, domain = run.profile, run.target_domain
    truth = pool.truth_rows(profile, domain, run.replicate)
    columns = ["nll", "tokens", SCORE, "extraction"]
    wide = {}  # by split: a row a document, and of each column one a mark
    for split, part in rows.groupby("split"):
        wide[split] = part.pivot(index="id", columns="step", values=columns)
    gaps = {}
    areas = {}
    for half in (selection.SELECTION, selection.REPORT):
        of_half = dict(zip(SPLITS, samples(profile, domain, half), strict=True))
        each = [drawn.ratio(wide[split], "nll", "tokens") for split, drawn in of_half.items()]
        exact = levels(profile, truth, domain, half)
        gaps[half] = np.stack(each, axis=2) - exact[:, None]
        members, others = of_half["forget"], of_half["approximate"]
        ours = members.at_marks(wide["forget"], SCORE)
        theirs = others.at_marks(wide["approximate"], SCORE)
        told = []
        for mine, yours in zip(ours.T, theirs.T, strict=True):
            told.append(membership.weighted_auc(mine, yours, members.weights, others.weights))
        areas[half] = np.stack(told, axis=1)
    forget = of_half["forget"]  # of the report half
    extracted = forget.weights @ forget.at_marks(wide["forget"], "extraction")
    return Drawn(
        run=run,
        steps=wide["forget"]["nll"].columns.to_numpy(float),
        gaps=gaps,
        auc=areas,
        extraction=extracted / forget.weights.sum(1)[:, None],
        total=single_run.steps_of_run(run),
        ended=ended,
    )
