"""What a grid says: which cells are acceptable, how many, and what tuning rules cost. Everything is recomputed on resampled documents.

A cell is acceptable if its log perplexity on the forget set is within `band` of the retrained model's and general perplexity rose by
less than `bound` (a share) over the target's. Cells are no sample: intervals come from resampling the documents, the same ones for every
cell, for the target and for the retrained model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from unlearn_utils.core import intervals, membership, tables
from unlearn_utils.profiles import Profile
from unlearn_utils.study import grid, selection, single_run
from unlearn_utils.study.pool import baseline_rows

SPLITS = ("forget", "approximate", "retain", "evaluation")


class LogPerplexities(NamedTuple):
    """Log perplexities of every cell, in the first row as measured, in each other row on resampled documents: (1 + resamples, cells).

    cells: `grid.COLUMNS`. own: by split, inf where a run had diverged. retrained (or its stand-in), target: of the cell's domain. auc: of
    Min-40%, forget against approximate documents, as measured (cells,). n: families of the smallest split. worst: log perplexity at which
    a run is ended.
    """

    cells: pd.DataFrame
    own: dict[str, np.ndarray]
    retrained: dict[str, np.ndarray]
    target: dict[str, np.ndarray]
    auc: np.ndarray
    n: int
    worst: float = np.inf

    def of(self, mask: np.ndarray) -> LogPerplexities:
        """The cells of a mask."""
        parts = ({s: x[:, mask] for s, x in part.items()} for part in (self.own, self.retrained, self.target))
        return LogPerplexities(self.cells[mask].reset_index(drop=True), *parts, self.auc[mask], self.n, self.worst)


def log_perplexities(
    profile: Profile, settings: Sequence[grid.Setting], rows: pd.DataFrame, baselines: pd.DataFrame, seed: int, half: int | None = None
) -> LogPerplexities:
    """`Levels` of every cell of these settings, on all documents or on one half; rows: of `grid.collected`."""
    cells = grid.cells(profile, settings)
    known = {
        name: grid.half_of(baseline_rows(profile, baselines, m), half) for name, m in (("target", "target"), ("retrained", profile.truth))
    }
    found, n = {name: {s: [] for s in SPLITS} for name in ("own", "retrained", "target")}, []
    auc = np.full(len(cells), np.nan)
    for domain in cells.domain.unique():
        mine = np.flatnonzero(cells.domain == domain)
        part = rows[rows.domain == domain]
        for i, split in enumerate(SPLITS):
            docs = {name: k[(k.target_domain == domain) & (k.split == split)].set_index("id") for name, k in known.items()}
            weights = tables.draw_weights(
                docs["target"], np.random.default_rng([seed, i]), profile.resamples
            )  # general documents: alike everywhere
            total = (weights @ docs["target"].tokens.to_numpy())[:, None]
            nll = _matrix(part[part.split == split], cells.loc[mine], docs["target"].index, "nll")
            found["own"][split].append(np.nan_to_num(weights @ np.where(np.isfinite(nll), nll, np.nan) / total, nan=np.inf))
            for name, frame in docs.items():
                nll, tokens = (weights @ frame[c].reindex(docs["target"].index).to_numpy()[:, None] for c in ("nll", "tokens"))
                level = nll / tokens
                found[name][split].append(np.repeat(level, len(mine), 1))
            n.append(docs["target"].family.nunique())
        scores = [_matrix(part[part.split == s], cells.loc[mine], _ids(known, domain, s), "min_k_40") for s in ("forget", "approximate")]
        auc[mine] = [membership.auc(a, b) if np.isfinite([*a, *b]).all() else np.nan for a, b in zip(*(s.T for s in scores), strict=True)]
    joined = ({s: np.concatenate(x, 1) for s, x in part.items()} for part in found.values())
    order = np.concatenate([np.flatnonzero(cells.domain == d) for d in cells.domain.unique()])
    return LogPerplexities(
        cells.loc[order].reset_index(drop=True), *joined, auc[order], min(n), float(np.log(single_run.DIVERGED * profile.shape.vocabulary))
    )


def _ids(known: dict[str, pd.DataFrame], domain: str, split: str) -> pd.Index:
    frame = known["target"]
    return pd.Index(frame[(frame.target_domain == domain) & (frame.split == split)].id)


def _matrix(rows: pd.DataFrame, cells: pd.DataFrame, ids: pd.Index, column: str) -> np.ndarray:
    """(documents, cells) of one column; NaN where a run had ended."""
    keyed = rows.assign(retain_documents=rows.retain_documents.fillna(-1).astype(int))
    wide = keyed.pivot(index="id", columns=grid.COLUMNS, values=column)
    keys = pd.MultiIndex.from_frame(cells.assign(retain_documents=cells.retain_documents.fillna(-1).astype(int)))
    return wide.reindex(index=ids, columns=keys).to_numpy()


# ---------------------------------------------------------------------------------------------- acceptable cells


def rise(found: LogPerplexities) -> np.ndarray:
    """Log general perplexity over the target's."""
    return found.own["evaluation"] - found.target["evaluation"]


def gap(found: LogPerplexities, split: str = "forget") -> np.ndarray:
    """Log perplexity over the retrained model's."""
    return found.own[split] - found.retrained[split]


def acceptable(found: LogPerplexities, band: float = selection.BAND, bound: float = selection.BOUND) -> np.ndarray:
    """Whether each cell is acceptable, as measured and on each resample: bool, (1 + resamples, cells)."""
    return (np.abs(gap(found)) <= band) & (rise(found) < np.log1p(bound))


def share(ok: np.ndarray) -> np.ndarray:
    """Share of acceptable cells: (1 + resamples,)."""
    return ok.mean(1)


def width(ok: np.ndarray, cells: pd.DataFrame) -> np.ndarray:
    """Decades of learning rate of the widest acceptable run of neighbouring rates at one mark (of one domain); a single rate counts as
    its grid's spacing. (1 + resamples,)"""
    rates = np.sort(cells.learning_rate.unique())
    spacing = np.log10(rates[-1] / rates[0]) / max(1, len(rates) - 1)
    best = np.zeros(len(ok))
    for _, part in cells.groupby(["domain", "epoch"]):
        run = np.zeros(len(ok))
        for column in part.sort_values("learning_rate").index:
            run = (run + 1) * ok[:, column]
            best = np.maximum(best, run)
    return best * spacing


def interval_columns(draws: np.ndarray, n: int) -> dict:
    """value, low, high, n of draws whose first is the value."""
    return intervals.interval(draws[0], draws[1:], 0.95, n)._asdict()


def table_by_method(found: LogPerplexities, statistic: Callable[[LogPerplexities], np.ndarray], measure: str) -> pd.DataFrame:
    """A statistic of each method's cells: method, measure, value, low, high, n."""
    names = found.cells.method.unique()
    return pd.DataFrame(
        [
            {"method": m, "measure": measure, **interval_columns(statistic(found.of((found.cells.method == m).to_numpy())), found.n)}
            for m in names
        ]
    )


def shares(found: LogPerplexities, band: float = selection.BAND, bound: float = selection.BOUND) -> pd.DataFrame:
    """Share of acceptable cells, its width in decades, and, where gradient ascent is among the methods, the share over its."""
    statistics = {
        "acceptable share": lambda part: share(acceptable(part, band, bound)),
        "width (decades)": lambda part: width(acceptable(part, band, bound), part.cells),
    }
    ascent = (found.cells.method == "gradient_ascent").to_numpy()
    if ascent.any():
        base = share(acceptable(found.of(ascent), band, bound))
        statistics["share - ascent's"] = lambda part: share(acceptable(part, band, bound)) - base
    return pd.concat([table_by_method(found, s, name) for name, s in statistics.items()], ignore_index=True)


# ---------------------------------------------------------------------------------------------- what a rule of tuning costs


def distance(found: LogPerplexities) -> np.ndarray:
    """Distance to retraining of each cell: mean over the four kinds of text of |log perplexity / retrained|; (1 + resamples, cells).

    A run that has ended counts with the perplexity at which runs are ended, and so does what is past it: a lower bound.
    """
    return np.mean([np.abs(np.minimum(found.own[s], found.worst) - found.retrained[s]) for s in SPLITS], axis=0)


def by_proxy(found: LogPerplexities) -> np.ndarray:
    """What each cell misses of the practitioner's goal, as measured: |log forget perplexity / target's on unseen text|, inf past the bound
    of general perplexity. Knows no retrained model. (cells,)"""
    return _bounded(found, np.abs(found.own["forget"] - found.target["approximate"])[0])


def by_membership(found: LogPerplexities) -> np.ndarray:
    """|AUC - 1/2| of each cell, inf past the bound of general perplexity. Knows no retrained model. (cells,)"""
    return _bounded(found, np.abs(found.auc - 0.5))


def _bounded(found: LogPerplexities, missed: np.ndarray) -> np.ndarray:
    allowed = rise(found)[0] < np.log1p(selection.BOUND)
    return np.where(allowed & np.isfinite(missed), missed, np.inf)


GUIDELINES = {  # name: what is minimised on the selection half, among which cells
    "tune rate and steps to the proxy": (by_proxy, None),
    "tune steps alone to the proxy, usual rate": (by_proxy, ("learning_rate",)),
    "usual rate, one epoch, nothing measured": (None, ("learning_rate", "epoch")),
    "tune rate and steps to AUC 1/2": (by_membership, None),
}


def regrets(profile: Profile, chosen_on: LogPerplexities, reported_on: LogPerplexities) -> pd.DataFrame:
    """What each guideline costs each method: its distance to retraining less that of the best cell, which knows the retrained model.

    Both are chosen on one half of the documents and compared on the other, so a regret may be negative. Columns guideline, method,
    domain, learning_rate, epoch (those chosen), value, low, high, n; and, by method "mean", the mean over methods and domains.
    """
    usual, table, draws = {"learning_rate": grid.usual_rate(profile), "epoch": 1.0}, [], {}
    far = distance(reported_on)
    for (domain, method), part in chosen_on.cells.groupby(["domain", "method"], sort=False):
        here = chosen_on.of(chosen_on.cells.index.isin(part.index))
        best = part.index[int(np.argmin(distance(here)[0]))]
        for name, (missed, fixed) in GUIDELINES.items():
            fits = np.ones(len(part), bool) if fixed is None else (part[list(fixed)] == [usual[f] for f in fixed]).all(axis=1).to_numpy()
            among = np.flatnonzero(fits)  # if none of these respects the bound: the first
            place = int(among[np.argmin(missed(here)[among])]) if missed else int(among[0])
            cell, lost = part.iloc[place], far[:, part.index[place]] - far[:, best]
            row = {"guideline": name, "method": method, "domain": domain, "learning_rate": cell.learning_rate, "epoch": cell.epoch}
            table.append(row | interval_columns(lost, reported_on.n))
            draws.setdefault(name, []).append(lost)
    means = [{"guideline": g, "method": "mean", **interval_columns(np.mean(d, axis=0), reported_on.n)} for g, d in draws.items()]
    return pd.DataFrame(table + means)
