"""What a grid says: which cells are acceptable, how many, and what rules of tuning cost.

A cell is acceptable if its log perplexity on the forget set is within `band` of the retrained
model's and general perplexity rose by less than `bound` (a share) over the target's. Cells are no
sample: intervals come from resampling the documents, the same ones for every cell, for the target
and for the retrained model. Everything is computed again on each resample.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from unlearn_utils.core import intervals, membership, tables
from unlearn_utils.core.intervals import Interval
from unlearn_utils.profiles import Profile
from unlearn_utils.study import grid, selection, single_run
from unlearn_utils.study.pool import baseline_rows

SPLITS = ("forget", "approximate", "retain", "evaluation")
ASCENT = (
    "gradient_ascent"  # the method whose share of acceptable cells the others' is compared with
)
SCORE = membership.SCORES["Min-40%"].column


class LogPerplexities(NamedTuple):
    """Log perplexities of every cell: (1 + resamples, cells), the first row as measured.

    Attributes:
        cells: `grid.COLUMNS` of each cell.
        own: of the cell's run, by split; inf where it had diverged.
        retrained: of the retrained model of the cell's domain (or its stand-in), by split.
        target: of the target, by split.
        auc: of Min-40%, forget against approximate documents, as measured: (cells,).
        n: families of the smallest split.
        worst: the log perplexity at which a run is ended.
    """

    cells: pd.DataFrame
    own: dict[str, np.ndarray]
    retrained: dict[str, np.ndarray]
    target: dict[str, np.ndarray]
    auc: np.ndarray
    n: int
    worst: float = np.inf

    def subset(self, mask: ArrayLike) -> LogPerplexities:
        """Return the cells of a mask, (cells,)."""
        mask = np.asarray(mask, bool)
        return LogPerplexities(
            cells=self.cells[mask].reset_index(drop=True),
            own={split: levels[:, mask] for split, levels in self.own.items()},
            retrained={split: levels[:, mask] for split, levels in self.retrained.items()},
            target={split: levels[:, mask] for split, levels in self.target.items()},
            auc=self.auc[mask],
            n=self.n,
            worst=self.worst,
        )

    def of_method(self, name: str) -> LogPerplexities:
        """Return the cells of one method."""
        return self.subset(self.cells.method == name)


# --------------------------------------------------------------------- log perplexities of a grid


def log_perplexities(
    profile: Profile,
    settings: Sequence[grid.Setting],
    rows: pd.DataFrame,
    baselines: pd.DataFrame,
    seed: int,
    half: int | None = None,
) -> LogPerplexities:
    """Return the log perplexities of every cell of these settings, the cells of a domain together.

    Args:
        profile: says how often documents are resampled.
        settings: the runs.
        rows: theirs, of `grid.grid_rows`.
        baselines: rows of `pool.measure_baselines`.
        seed: of the resamples.
        half: `selection.SELECTION` or `selection.REPORT`; None: all documents.
    """
    cells = grid.cells(profile, settings)
    target = grid.half_of(baseline_rows(profile, baselines, "target"), half)
    retrained = grid.half_of(baseline_rows(profile, baselines, profile.truth), half)
    parts = []
    for domain, cells_of_domain in cells.groupby("target_domain", sort=False):
        part = _log_perplexities_of_domain(
            cells_of_domain.reset_index(drop=True),
            rows[rows.target_domain == domain],
            target[target.target_domain == domain],
            retrained[retrained.target_domain == domain],
            seed,
            profile.resamples,
        )
        parts.append(part)
    worst = float(np.log(single_run.DIVERGED * profile.shape.vocabulary))
    return _joined(parts)._replace(worst=worst)


def _log_perplexities_of_domain(
    cells: pd.DataFrame,
    rows: pd.DataFrame,
    target: pd.DataFrame,
    retrained: pd.DataFrame,
    seed: int,
    resamples: int,
) -> LogPerplexities:
    """Return those of one domain's cells; the rows are this domain's and the general documents'."""
    found = {"own": {}, "retrained": {}, "target": {}}
    families = []
    for number, split in enumerate(SPLITS):
        known = target[target.split == split].set_index("id")
        exact = retrained[retrained.split == split].set_index("id").reindex(known.index)
        # the generator of a split alone: general documents are drawn alike in every domain
        generator = np.random.default_rng([seed, number])
        weights = tables.draw_weights(known, generator, resamples)

        nll = _by_cell(rows[rows.split == split], cells, known.index, "nll")
        found["own"][split] = _levels_of_runs(weights, nll, known.tokens.to_numpy())
        found["target"][split] = np.repeat(_levels(weights, known), len(cells), axis=1)
        found["retrained"][split] = np.repeat(_levels(weights, exact), len(cells), axis=1)
        families.append(known.family.nunique())
    members = _scores(rows, cells, target, "forget")
    others = _scores(rows, cells, target, "approximate")
    auc = _aucs(members, others)
    return LogPerplexities(cells, **found, auc=auc, n=min(families))


def _levels_of_runs(weights: np.ndarray, nll: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Return log perplexities (1 + resamples, cells); inf where any document has no finite loss.

    Args:
        weights: (1 + resamples, documents), how often each is drawn.
        nll: (documents, cells), in nats.
        tokens: (documents,).
    """
    total = (weights @ tokens)[:, None]
    finite = np.where(np.isfinite(nll), nll, np.nan)
    return np.nan_to_num(weights @ finite / total, nan=np.inf)


def _levels(weights: np.ndarray, rows: pd.DataFrame) -> np.ndarray:
    """Return the log perplexities of a baseline: (1 + resamples, 1)."""
    nll = weights @ rows.nll.to_numpy()[:, None]
    tokens = weights @ rows.tokens.to_numpy()[:, None]
    return nll / tokens


def _scores(
    rows: pd.DataFrame, cells: pd.DataFrame, target: pd.DataFrame, split: str
) -> np.ndarray:
    """Return the membership score of each document of a split: (documents, cells)."""
    ids = pd.Index(target[target.split == split].id)
    return _by_cell(rows[rows.split == split], cells, ids, SCORE)


def _aucs(members: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the AUC of each cell (documents, cells); NaN where a score is missing."""
    found = []
    for ours, theirs in zip(members.T, others.T, strict=True):
        if np.isfinite(ours).all() and np.isfinite(theirs).all():
            found.append(membership.auc(ours, theirs))
        else:
            found.append(np.nan)
    return np.array(found)


def _by_cell(rows: pd.DataFrame, cells: pd.DataFrame, ids: pd.Index, column: str) -> np.ndarray:
    """Return one column as (documents, cells); NaN where a run had ended."""
    wide = _keyed(rows).pivot(index="id", columns=grid.COLUMNS, values=column)
    keys = pd.MultiIndex.from_frame(_keyed(cells))
    return wide.reindex(index=ids, columns=keys).to_numpy()


def _keyed(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table whose settings can be keys: -1 retain documents stands for all of them."""
    return table.assign(retain_documents=table.retain_documents.fillna(-1).astype(int))


def _joined(parts: Sequence[LogPerplexities]) -> LogPerplexities:
    """Return the cells of several domains side by side."""

    def side_by_side(name: str) -> dict[str, np.ndarray]:
        levels = [getattr(part, name) for part in parts]
        return {split: np.concatenate([one[split] for one in levels], axis=1) for split in SPLITS}

    return LogPerplexities(
        cells=pd.concat([part.cells for part in parts], ignore_index=True),
        own=side_by_side("own"),
        retrained=side_by_side("retrained"),
        target=side_by_side("target"),
        auc=np.concatenate([part.auc for part in parts]),
        n=min(part.n for part in parts),
    )


# ------------------------------------------------------------------------------- acceptable cells


def rise(found: LogPerplexities) -> np.ndarray:
    """Return log general perplexity over the target's: (1 + resamples, cells)."""
    return found.own["evaluation"] - found.target["evaluation"]


def gap(found: LogPerplexities, split: str = "forget") -> np.ndarray:
    """Return log perplexity over the retrained model's: (1 + resamples, cells)."""
    return found.own[split] - found.retrained[split]


def acceptable(
    found: LogPerplexities, band: float = selection.BAND, bound: float = selection.BOUND
) -> np.ndarray:
    """Return whether each cell is acceptable, in each row: bool, (1 + resamples, cells)."""
    return (np.abs(gap(found)) <= band) & (rise(found) < np.log1p(bound))


def share(ok: np.ndarray) -> np.ndarray:
    """Return the share of acceptable cells: (1 + resamples,).

    ok: of `acceptable`.
    """
    return ok.mean(1)


def width(ok: np.ndarray, cells: pd.DataFrame) -> np.ndarray:
    """Return the decades of learning rate over which cells stay acceptable: (1 + resamples,).

    That is the widest run of neighbouring rates, at one mark of one domain, that are all
    acceptable. A single rate counts as its grid's spacing.

    Args:
        ok: of `acceptable`.
        cells: theirs, of one method.
    """
    rates = np.sort(cells.learning_rate.unique())
    spacing = np.log10(rates[-1] / rates[0]) / max(1, len(rates) - 1)
    widest = np.zeros(len(ok))
    for _, part in cells.groupby(["target_domain", "epoch"]):
        so_far = np.zeros(len(ok))
        for cell in part.sort_values("learning_rate").index:
            so_far = (so_far + 1) * ok[:, cell]
            widest = np.maximum(widest, so_far)
    return widest * spacing


def interval_of(draws: np.ndarray, n: int) -> Interval:
    """Return the value, which is the first of the draws, and the 95% interval of the others."""
    return intervals.interval(draws[0], draws[1:], 0.95, n)


def shares(
    found: LogPerplexities, band: float = selection.BAND, bound: float = selection.BOUND
) -> pd.DataFrame:
    """Return the share of acceptable cells of each method and its width in decades.

    Where gradient ascent is among the methods, also the share over gradient ascent's.

    Returns:
        method, measure, value, low, high, n.
    """
    names = found.cells.method.unique()
    of_ascent = None
    if ASCENT in names:
        of_ascent = share(acceptable(found.of_method(ASCENT), band, bound))

    by_measure: dict[str, list[dict]] = {}
    for name in names:
        part = found.of_method(name)
        ok = acceptable(part, band, bound)
        draws = {"acceptable share": share(ok), "width (decades)": width(ok, part.cells)}
        if of_ascent is not None:
            draws["share - ascent's"] = share(ok) - of_ascent
        for measure, drawn in draws.items():
            row = {"method": name, "measure": measure, **interval_of(drawn, found.n)._asdict()}
            by_measure.setdefault(measure, []).append(row)
    return pd.concat([pd.DataFrame(rows) for rows in by_measure.values()], ignore_index=True)


# ------------------------------------------------------------------- what a rule of tuning costs


def distance(found: LogPerplexities) -> np.ndarray:
    """Return the distance to retraining of each cell: (1 + resamples, cells).

    It is the mean over the four kinds of text of |log perplexity / retrained|. A run that has ended
    counts with the perplexity at which runs are ended, and so does what is past it: a lower bound.
    """
    far = []
    for split in SPLITS:
        own = np.minimum(found.own[split], found.worst)
        far.append(np.abs(own - found.retrained[split]))
    return np.mean(far, axis=0)


def by_proxy(found: LogPerplexities) -> np.ndarray:
    """Return what each cell misses of the practitioner's goal, as measured: (cells,).

    That is |log forget perplexity / target's on unseen text|, and inf past the bound of general
    perplexity. It knows no retrained model.
    """
    missed = np.abs(found.own["forget"] - found.target["approximate"])[0]
    return _bounded(found, missed)


def by_membership(found: LogPerplexities) -> np.ndarray:
    """Return |AUC - 1/2| of each cell, and inf past the bound of general perplexity: (cells,).

    It knows no retrained model.
    """
    return _bounded(found, np.abs(found.auc - 0.5))


def _bounded(found: LogPerplexities, missed: np.ndarray) -> np.ndarray:
    """Return what is missed, inf past the bound of general perplexity or where nothing is known."""
    allowed = rise(found)[0] < np.log1p(selection.BOUND)
    return np.where(allowed & np.isfinite(missed), missed, np.inf)


class Guideline(NamedTuple):
    """A rule of tuning that knows no retrained model.

    Attributes:
        misses: what is minimised on the selection half; None: nothing is measured.
        fixed: what is not tuned but as usual, of "learning_rate" and "epoch".
    """

    misses: Callable[[LogPerplexities], np.ndarray] | None
    fixed: tuple[str, ...] = ()


GUIDELINES = {
    "tune rate and steps to the proxy": Guideline(by_proxy),
    "tune steps alone to the proxy, usual rate": Guideline(by_proxy, ("learning_rate",)),
    "usual rate, one epoch, nothing measured": Guideline(None, ("learning_rate", "epoch")),
    "tune rate and steps to AUC 1/2": Guideline(by_membership),
}


def regrets(
    profile: Profile, chosen_on: LogPerplexities, reported_on: LogPerplexities
) -> pd.DataFrame:
    """Return what each guideline costs each method, in distance to retraining.

    That is its cell's distance less that of the best cell, which knows the retrained model. Both
    are chosen on one half of the documents and compared on the other, so it may be negative.

    Args:
        profile: says which learning rate is the usual one.
        chosen_on: the selection half.
        reported_on: the report half, of the same cells.

    Returns:
        guideline, method, target_domain, learning_rate, epoch (those chosen), value, low, high, n;
        and, by method "mean", the mean over methods and domains.
    """
    usual = {"learning_rate": grid.usual_rate(profile), "epoch": 1.0}
    far = distance(reported_on)
    table = []
    lost_by_guideline: dict[str, list[np.ndarray]] = {}
    groups = chosen_on.cells.groupby(["target_domain", "method"], sort=False)
    for (target_domain, method), cells in groups:
        here = chosen_on.subset(chosen_on.cells.index.isin(cells.index))
        best = cells.index[int(np.argmin(distance(here)[0]))]
        for name, guideline in GUIDELINES.items():
            place = _chosen_place(guideline, here, usual)
            chosen = cells.iloc[place]
            lost = far[:, cells.index[place]] - far[:, best]
            row = {"guideline": name, "method": method, "target_domain": target_domain}
            row |= {"learning_rate": chosen.learning_rate, "epoch": chosen.epoch}
            table.append(row | interval_of(lost, reported_on.n)._asdict())
            lost_by_guideline.setdefault(name, []).append(lost)
    for name, lost in lost_by_guideline.items():
        mean = interval_of(np.mean(lost, axis=0), reported_on.n)
        table.append({"guideline": name, "method": "mean", **mean._asdict()})
    return pd.DataFrame(table)


def _chosen_place(guideline: Guideline, here: LogPerplexities, usual: Mapping[str, float]) -> int:
    """Return the place of the cell that a guideline chooses among one method's on one domain.

    If none of the cells that it may choose respects the bound, it is their first.
    """
    fits = np.ones(len(here.cells), bool)
    for column in guideline.fixed:
        fits &= (here.cells[column] == usual[column]).to_numpy()
    among = np.flatnonzero(fits)
    if guideline.misses is None:
        return int(among[0])
    missed = guideline.misses(here)[among]
    return int(among[np.argmin(missed)])
