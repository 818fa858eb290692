"""What is measured for each claim of a profile: an interval, and the number of seeds of a run.

Nothing here knows a threshold. A claim that is about one method names it, as a constant.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from unlearn_utils.cache.workers import side_by_side
from unlearn_utils.core import efficiency, membership, methods, tables
from unlearn_utils.core.intervals import Interval
from unlearn_utils.findings import reports, robustness
from unlearn_utils.findings.robustness import ASCENT, interval_of
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

Evidence = tuple[Interval, int]  # the second: seeds of a run
SEED = 0  # of every bootstrap
WIDE = "ascent_descent_in_distribution"  # the method that claim C2 is about
SCORE = membership.SCORES["Min-40%"].column
SIDES = ("forget", "approximate")  # members and non-members of membership inference


# --------------------------------------------------------------------------------------- C1: cost


def computed_ratio(profile: Profile) -> Evidence:
    """Return C1: the least ratio of all methods and forget sets, computed for Yi-6B.

    The bounds are those of the bytes a token that are thought possible.
    """
    least = []
    for bytes_per_token in efficiency.BYTES_PER_TOKEN:
        ratios = []
        for method in methods.METHODS.values():
            for size in efficiency.FORGET_BYTES.values():
                ratios.append(efficiency.computed_ratio(method.passes, size, bytes_per_token))
        least.append(min(ratios))
    low, value, high = least
    return Interval(value, low, high, len(efficiency.FORGET_BYTES)), 1


def counted_ratio(profile: Profile) -> Evidence:
    """Return C1 at this scale: the largest ratio of all methods and domains, exact."""
    counts = []
    for domain in profile.domains:
        for method in (costs.RETRAINING, *methods.METHODS):
            counts.append(costs.flops(profile, domain, method))
    side_by_side(counts, profile.workers)
    rows = extra_measurements.rows_of(counts)
    flops = rows.pivot(index="target_domain", columns="method", values="flops")
    cheapest = flops[list(methods.METHODS)].min(axis=1)
    ratio = float((flops[costs.RETRAINING] / cheapest).max())
    return Interval(ratio, ratio, ratio, profile.corpus.pairs), 1


# ----------------------------------------------------------------------- C2, C4: hyperparameters


@cache
def _grid(profile: Profile) -> dict[int | None, robustness.LogPerplexities]:
    """Return the grid proper on all documents (None), on the selection and on the report half."""
    settings = [setting for setting in grid.plan(profile) if setting.retain_documents is None]
    rows = grid.grid_rows(profile, settings)
    baselines = pool.measure_baselines(profile)
    found = {}
    for half in (None, selection.SELECTION, selection.REPORT):
        every = robustness.log_perplexities(profile, settings, rows, baselines, SEED, half)
        found[half] = every.subset(grid.goal_cells(every.cells, profile))
    return found


def _acceptable_shares(profile: Profile) -> tuple[dict[str, np.ndarray], int]:
    """Return the share of acceptable cells of each method, (1 + resamples,), and the families."""
    found = _grid(profile)[None]
    shares = {}
    for name in methods.METHODS:
        shares[name] = robustness.share(robustness.acceptable(found.of_method(name)))
    return shares, found.n


def wider_than_ascent(profile: Profile) -> Evidence:
    """Return C2: the share of acceptable cells over gradient ascent's."""
    shares, n = _acceptable_shares(profile)
    return interval_of(shares[WIDE] - shares[ASCENT], n), 1


def widest(profile: Profile) -> Evidence:
    """Return C2: the share of acceptable cells over the best other method's."""
    shares, n = _acceptable_shares(profile)
    ours = shares.pop(WIDE)
    best_other = np.max(list(shares.values()), axis=0)
    return interval_of(ours - best_other, n), 1


def regret(guideline: str, profile: Profile) -> Evidence:
    """Return C4: the mean regret of a guideline, a key of `robustness.GUIDELINES`.

    Nothing is available without a retrained model, whose stand-in is what guidelines tune to.
    """
    if profile.hub:
        return tables.NOT_AVAILABLE, 0
    found = _grid(profile)
    table = robustness.regrets(profile, found[selection.SELECTION], found[selection.REPORT])
    row = table[(table.guideline == guideline) & (table.method == "mean")].iloc[0]
    return Interval(row["value"], row.low, row.high, int(row.n)), 1


# ----------------------------------------------------------------- C3: what the benchmark covers


@cache
def _rows(profile: Profile) -> pd.DataFrame:
    """Return the report half under every model: `reports.report_rows` of all methods."""
    runs = unlearning.unlearn_all(profile, list(methods.METHODS))
    return reports.report_rows(profile, runs)


def covered(profile: Profile) -> Evidence:
    """Return C3: the share of models and domains that were measured on every kind of text.

    Nothing is available without a retrained model.
    """
    if profile.hub:
        return tables.NOT_AVAILABLE, 0
    rows = _rows(profile)
    measured = rows[rows.nll.notna()][["name", "target_domain", "split"]]
    seen = set(measured.itertuples(index=False, name=None))
    complete = []
    for name in (*methods.METHODS, "target", "retrained"):
        for domain in profile.domains:
            complete.append(all((name, domain, split) in seen for split in robustness.SPLITS))
    share = float(np.mean(complete))
    return Interval(share, share, share, int(rows.id.nunique())), profile.seeds


# --------------------------------------------------------------------------------------- findings


def proxy(profile: Profile) -> Evidence:
    """Return F1: log perplexity of the target over the retrained models', mean of domains.

    Both are on the same unseen documents.
    """
    baselines = pool.measure_baselines(profile)
    target = pool.baseline_rows(profile, baselines, "target")
    retrained = pool.baseline_rows(profile, baselines, "retrained")
    generator = np.random.default_rng(SEED)
    differences = []
    families = []
    for domain in profile.domains:
        ours = _unseen(target, domain)
        theirs = _unseen(retrained, domain)
        weights = tables.draw_weights(ours, generator, profile.resamples)
        lost = weights @ (ours.nll.to_numpy() - theirs.nll.to_numpy())
        differences.append(lost / (weights @ ours.tokens.to_numpy()))
        families.append(ours.family.nunique())
    return interval_of(np.mean(differences, axis=0), min(families)), 1


def _unseen(rows: pd.DataFrame, domain: str) -> pd.DataFrame:
    """Return the rows of one domain's documents that no model has seen."""
    return rows[(rows.target_domain == domain) & (rows.split == "approximate")]


def _forgotten(profile: Profile) -> tuple[np.ndarray, np.ndarray, int]:
    """Return two distances to retraining of each method and domain, on the same resamples.

    Returns:
        |log forget perplexity / retrained|, and the AUC of Min-40% over the retrained model's, each
        (1 + resamples, domains x methods); and the documents of the smallest side.
    """
    rows = _rows(profile)
    generator = np.random.default_rng(SEED)
    far = []
    excess = []
    documents = []
    for domain in profile.domains:
        here = rows[rows.target_domain == domain]
        truth = _sides(here[here.model == profile.truth])
        weights = {}
        for side in SIDES:
            weights[side] = tables.draw_weights(truth[side], generator, profile.resamples)
        level = _log_perplexity(truth["forget"], weights["forget"])
        auc = _auc(truth, weights)
        for name in methods.METHODS:
            kept = _sides(here[(here.model == "unlearned") & (here.method == name)])
            ours = {side: kept[side].loc[truth[side].index] for side in SIDES}
            far.append(np.abs(_log_perplexity(ours["forget"], weights["forget"]) - level))
            excess.append(_auc(ours, weights) - auc)
        documents.append(min(len(truth[side]) for side in SIDES))
    return np.array(far).T, np.array(excess).T, min(documents)


def _sides(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the forget and the approximate documents, by id."""
    return {side: rows[rows.split == side].set_index("id") for side in SIDES}


def _log_perplexity(rows: pd.DataFrame, weights: np.ndarray) -> np.ndarray:
    """Return log perplexity with each document counted as often as drawn: (1 + resamples,)."""
    return weights @ rows.nll.to_numpy() / (weights @ rows.tokens.to_numpy())


def _auc(sides: dict[str, pd.DataFrame], weights: dict[str, np.ndarray]) -> np.ndarray:
    """Return the AUC of Min-40% with each document counted as often as drawn: (1 + resamples,).

    Args:
        sides: members ("forget") and non-members ("approximate").
        weights: of each side, (1 + resamples, documents).
    """
    members = sides["forget"][SCORE].to_numpy()
    others = sides["approximate"][SCORE].to_numpy()
    above = (members[:, None] > others) + 0.5 * (members[:, None] == others)
    times, other_times = weights["forget"], weights["approximate"]
    wins = ((times @ above) * other_times).sum(1)
    return wins / (times.sum(1) * other_times.sum(1))


def agreement(profile: Profile) -> Evidence:
    """Return F2: Spearman's correlation, over methods and domains, of the two distances.

    Where one distance is the same everywhere there is nothing to agree on: 0.
    """
    far, excess, n = _forgotten(profile)
    one = _centred_ranks(far)
    other = _centred_ranks(np.abs(excess))
    with np.errstate(invalid="ignore"):
        scale = np.sqrt((one**2).sum(1) * (other**2).sum(1))
        spearman = (one * other).sum(1) / scale
    return interval_of(np.nan_to_num(spearman), n), profile.seeds


def _centred_ranks(values: np.ndarray) -> np.ndarray:
    """Return the ranks within each row, less their mean."""
    ranks = rankdata(values, axis=1)
    return ranks - ranks.mean(1, keepdims=True)


def least_detected(profile: Profile) -> Evidence:
    """Return F3: the least, of all methods, AUC over the retrained model's, mean of domains."""
    _, excess, n = _forgotten(profile)
    by_method = excess.reshape(len(excess), len(profile.domains), len(methods.METHODS)).mean(1)
    return interval_of(by_method.min(1), n), profile.seeds


@cache
def _trajectories(profile: Profile) -> pd.DataFrame:
    """Return what was measured on the way of every run of the released code, and of ours beside."""
    runs = released_code.trained_runs(profile, profile.domains[0])
    return released_code.trajectories(runs)


def effect_of_defect(defect: str, profile: Profile) -> Evidence:
    """Return F4: |log forget perplexity, official / corrected| at the end of the epoch.

    defect: a key of `released_code.NAMES`.
    """
    official, corrected, _ = released_code.last(profile, _trajectories(profile), defect)
    official = official[official.split == "forget"]
    corrected = corrected[corrected.split == "forget"]
    found = tables.log_ratio(official, corrected, SEED, profile.resamples)
    if found.low < 0 < found.high:
        return Interval(abs(found.value), 0.0, max(-found.low, found.high), found.n), 1
    if found.low >= 0:
        return found, 1
    return Interval(-found.value, -found.high, -found.low, found.n), 1
