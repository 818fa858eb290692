"""What is measured for each claim: of a profile, an interval and the number of seeds of a run. Nothing here knows a threshold."""

from __future__ import annotations

from functools import cache

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from unlearn_utils.cache.workers import side_by_side
from unlearn_utils.core import efficiency, methods, tables
from unlearn_utils.core.intervals import Interval
from unlearn_utils.findings import reports, robustness
from unlearn_utils.profiles import Profile
from unlearn_utils.study import (
    costs,
    extra_measurements,
    grid,
    pool,
    released_code,
    selection,
    unlearning,
)

SEED = 0  # of every bootstrap
WIDE = "ascent_descent_in_distribution"  # the method that claim C2 is about

# ---------------------------------------------------------------------------------------------- C1: cost


def computed_ratio(profile: Profile) -> tuple[Interval, int]:
    """C1: the least ratio of all methods and forget sets for Yi-6B; bounds: the bytes a token that are thought possible."""
    terms = {m: methods.METHODS[m].retain for m in grid.METHODS}
    ratios = [
        [
            efficiency.computed_ratio(t, s, b)
            for t in terms.values()
            for s in efficiency.FORGET_BYTES.values()
        ]
        for b in efficiency.BYTES_PER_TOKEN
    ]
    low, value, high = (min(r) for r in ratios)
    return Interval(value, low, high, len(efficiency.FORGET_BYTES)), 1


def counted_ratio(profile: Profile) -> tuple[Interval, int]:
    """C1 at this scale: the largest ratio of all methods and domains, exact."""
    steps = {
        (m, d): costs.flops(profile, d, m)
        for d in profile.domains
        for m in (costs.RETRAINING, *grid.METHODS)
    }
    side_by_side(list(steps.values()), profile.workers)
    flops = extra_measurements.rows_of(list(steps.values())).pivot(
        index="target_domain", columns="method", values="flops"
    )
    ratio = float(flops[costs.RETRAINING].div(flops[list(grid.METHODS)].min(axis=1)).max())
    return Interval(ratio, ratio, ratio, profile.corpus.pairs), 1


# ---------------------------------------------------------------------------------------------- C2, C4: hyperparameters


@cache
def _grid(profile: Profile) -> dict[int | None, robustness.LogPerplexities]:
    """The grid proper on all documents (None), on the selection and on the report half."""
    settings = [s for s in grid.plan(profile) if s.retain_documents is None]
    rows, baselines = grid.grid_rows(profile, settings), pool.measure_baselines(profile)
    every = {
        h: robustness.log_perplexities(profile, settings, rows, baselines, SEED, h)
        for h in (None, selection.SELECTION, selection.REPORT)
    }
    return {h: found.of(grid.goal_cells(found.cells, profile)) for h, found in every.items()}


def _acceptable_shares(profile: Profile) -> tuple[dict[str, np.ndarray], int]:
    found = _grid(profile)[None]
    parts = {m: found.of((found.cells.method == m).to_numpy()) for m in grid.METHODS}
    return {m: robustness.share(robustness.acceptable(part)) for m, part in parts.items()}, found.n


def wider_than_ascent(profile: Profile) -> tuple[Interval, int]:
    """C2: share of acceptable cells over gradient ascent's."""
    shares, n = _acceptable_shares(profile)
    return Interval(**robustness.interval_columns(shares[WIDE] - shares["gradient_ascent"], n)), 1


def widest(profile: Profile) -> tuple[Interval, int]:
    """C2: share of acceptable cells over the best other method's."""
    shares, n = _acceptable_shares(profile)
    others = np.max([s for m, s in shares.items() if m != WIDE], axis=0)
    return Interval(**robustness.interval_columns(shares[WIDE] - others, n)), 1


def regret(guideline: str, profile: Profile) -> tuple[Interval, int]:
    """C4: mean regret of a guideline; nothing without a retrained model, whose stand-in is what guidelines tune to."""
    if profile.hub:
        return tables.NOT_AVAILABLE, 0
    found = _grid(profile)
    table = robustness.regrets(profile, found[selection.SELECTION], found[selection.REPORT])
    row = table[(table.guideline == guideline) & (table.method == "mean")].iloc[0]
    return Interval(row["value"], row.low, row.high, int(row.n)), 1


# ---------------------------------------------------------------------------------------------- C3: what the benchmark covers


@cache
def _rows(profile: Profile) -> pd.DataFrame:
    """The report half under every model: `reports.staged` of all methods."""
    return reports.report_rows(profile, unlearning.unlearn_all(profile, grid.METHODS))


def covered(profile: Profile) -> tuple[Interval, int]:
    """C3: share of models and domains that were measured on every kind of text; nothing without a retrained model."""
    if profile.hub:
        return tables.NOT_AVAILABLE, 0
    rows = _rows(profile)
    wanted = [(m, d) for m in (*grid.METHODS, "target", "retrained") for d in profile.domains]
    kinds = {
        s: rows[(rows.split == s) & rows.nll.notna()].groupby(["name", "target_domain"]).size()
        for s in robustness.SPLITS
    }
    there = [all(kinds[s].get(key, 0) > 0 for s in robustness.SPLITS) for key in wanted]
    share = float(np.mean(there))
    return Interval(share, share, share, int(rows.id.nunique())), profile.seeds


# ---------------------------------------------------------------------------------------------- findings


def proxy(profile: Profile) -> tuple[Interval, int]:
    """F1: log perplexity of the target over the retrained models' on the same unseen documents, mean of domains."""
    rows = pool.measure_baselines(profile)
    target, exact = (
        pool.baseline_rows(profile, rows, m).query("split == 'approximate'")
        for m in ("target", "retrained")
    )
    generator, found, n = np.random.default_rng(SEED), [], []
    for domain in profile.domains:
        ours, theirs = (side[side.target_domain == domain] for side in (target, exact))
        weights = tables.draw_weights(ours, generator, profile.resamples)
        found.append(
            (weights @ (ours.nll.to_numpy() - theirs.nll.to_numpy()))
            / (weights @ ours.tokens.to_numpy())
        )
        n.append(ours.family.nunique())
    return Interval(**robustness.interval_columns(np.mean(found, axis=0), min(n))), 1


def _forgotten(profile: Profile) -> tuple[np.ndarray, np.ndarray, int]:
    """Of each method and domain, on the same resampled documents: |log forget perplexity / retrained| and the AUC of Min-40% over the
    retrained model's, each (1 + resamples, methods x domains); and the documents of a side."""
    rows, generator, far, excess, n = _rows(profile), np.random.default_rng(SEED), [], [], []
    for domain in profile.domains:
        sides = {
            s: rows[(rows.target_domain == domain) & (rows.split == s)]
            for s in ("forget", "approximate")
        }
        exact = {s: part[part.model == profile.truth].set_index("id") for s, part in sides.items()}
        weights = {
            s: tables.draw_weights(part, generator, profile.resamples) for s, part in exact.items()
        }
        base = _auc([exact[s].min_k_40 for s in exact], list(weights.values()))
        for name in grid.METHODS:
            kept = {
                s: part[(part.model == "unlearned") & (part.method == name)].set_index("id")
                for s, part in sides.items()
            }
            ours = {s: part.loc[exact[s].index] for s, part in kept.items()}
            w, pair = weights["forget"], (ours["forget"], exact["forget"])
            logs = [w @ side.nll.to_numpy() / (w @ side.tokens.to_numpy()) for side in pair]
            far.append(np.abs(logs[0] - logs[1]))
            excess.append(_auc([ours[s].min_k_40 for s in ours], list(weights.values())) - base)
        n.append(min(map(len, exact.values())))
    return np.array(far).T, np.array(excess).T, min(n)


def _auc(scores: list[pd.Series], weights: list[np.ndarray]) -> np.ndarray:
    """AUC with each document counted as often as drawn: (1 + resamples,)."""
    members, others = (s.to_numpy() for s in scores)
    above = (members[:, None] > others) + 0.5 * (members[:, None] == others)
    return ((weights[0] @ above) * weights[1]).sum(1) / (weights[0].sum(1) * weights[1].sum(1))


def agreement(profile: Profile) -> tuple[Interval, int]:
    """F2: Spearman correlation over methods and domains of the two distances to retraining."""
    far, excess, n = _forgotten(profile)
    ranks = [rankdata(x, axis=1) for x in (far, np.abs(excess))]
    ranks = [r - r.mean(1, keepdims=True) for r in ranks]
    with np.errstate(invalid="ignore"):
        spearman = (ranks[0] * ranks[1]).sum(1) / np.sqrt(
            (ranks[0] ** 2).sum(1) * (ranks[1] ** 2).sum(1)
        )
    return Interval(**robustness.interval_columns(np.nan_to_num(spearman), n)), profile.seeds


def least_detected(profile: Profile) -> tuple[Interval, int]:
    """F3: the least of all methods of the AUC over the retrained model's, mean of domains."""
    _, excess, n = _forgotten(profile)
    by_method = excess.reshape(len(excess), len(profile.domains), len(grid.METHODS)).mean(1)
    return Interval(**robustness.interval_columns(by_method.min(1), n)), profile.seeds


@cache
def _official(profile: Profile) -> pd.DataFrame:
    return released_code.trajectories(released_code.trained_runs(profile, profile.domains[0]))


def defect(defect: str, profile: Profile) -> tuple[Interval, int]:
    """F4: |log forget perplexity, official / corrected| at the end."""
    official, corrected, _ = released_code.last(profile, _official(profile), defect)
    pair = (rows[rows.split == "forget"] for rows in (official, corrected))
    value, low, high, n = tables.log_ratio(*pair, SEED, profile.resamples)
    if low < 0 < high:
        return Interval(abs(value), 0.0, max(-low, high), n), 1
    return Interval(*((value, low, high) if low >= 0 else (-value, -high, -low)), n), 1
