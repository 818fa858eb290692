"""All methods beside each other: at equal forgetting, at their nearest step, and in a plane.

Two models stand in every comparison that are no method's: "do nothing", which is the target, and
"another retrained model", which is any other model of the pool that did not see the forget set.
All values are of the report half of the documents; choices are made on the other half.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import pandas as pd

from unlearn_utils.core import distances, membership
from unlearn_utils.core.arrays import Floats
from unlearn_utils.core.distances import SPLITS
from unlearn_utils.core.methods import METHODS
from unlearn_utils.core.replicates import SHARE
from unlearn_utils.findings import draws, robustness
from unlearn_utils.findings.draws import Drawn
from unlearn_utils.findings.replicated import Row, estimates, table
from unlearn_utils.profiles import Profile
from unlearn_utils.study import method_paths, pool, selection

LEVELS = (-0.5, -0.25, 0.0)  # gaps on the forget set at which methods are compared
PLANE = tuple(np.round(np.arange(-0.95, 0.26, 0.05), 2))  # of the figure: gaps on the forget set
NOTHING = "do nothing"
AGAIN = "another retrained model"
OTHERS = (NOTHING, AGAIN)  # models of a comparison that are no method's
FORGET, UNSEEN, RETAIN, GENERAL = range(4)  # places in SPLITS
OTHER_TEXT = (UNSEEN, RETAIN)  # of the domain that is unlearned
DAMAGE = {  # by measure: the kinds of text whose gaps are averaged
    "damage to unseen text": (UNSEEN,),
    "damage to retain text": (RETAIN,),
    "damage to general text": (GENERAL,),
    "damage, mean of three": (UNSEEN, RETAIN, GENERAL),
}


# ---------------------------------------------------------------------------------- what is compared


@cache
def usual(profile: Profile, domain: str, method: str) -> list[Drawn]:
    """Return the path of a method at the profile's own rate, one for each replicate."""
    runs = [
        method_paths.usual_run(profile, replicate, domain, method)
        for replicate in profile.replicates
    ]
    return draws.drawn_paths(runs)


@cache
def retrained_again(profile: Profile, domain: str, replicate: int) -> list[tuple[Floats, Floats]]:
    """Return the other retrained models of a domain: gaps (draws, splits) and AUC (draws,).

    Of a published model there are none.
    """
    if profile.hub:
        return []
    truth = pool.truth_rows(profile, domain, replicate)
    exact = draws.levels(profile, truth, domain, selection.REPORT)
    found = []
    for pair in pool.pairs(profile, domain, replicate)[1:]:
        rows = pool.rows_of_domain(profile, pool.trained_model(profile, pair.retrained), domain)
        gaps = draws.levels(profile, rows, domain, selection.REPORT) - exact
        found.append((gaps, draws.auc(profile, rows, domain, selection.REPORT)))
    return found


def truth_auc(profile: Profile, domain: str, replicate: int) -> Floats:
    """Return the AUC of the retrained model, report half: (draws,)."""
    rows = pool.truth_rows(profile, domain, replicate)
    return draws.auc(profile, rows, domain, selection.REPORT)


def n_of(profile: Profile, domains: Sequence[str]) -> int:
    """Return the families of the smallest split of some domains, report half."""
    return robustness.smallest_n(profile, domains)


# -------------------------------------------------------------------------------- equal forgetting


def at_level(drawn: Drawn, level: float) -> dict[str, Floats]:
    """Return what a path has done where its gap on the forget set first reaches a level.

    Returns:
        by measure, each (draws,); not a number where the path never reaches the level, or jumps
        past it.
    """
    half = selection.REPORT
    there = distances.crossing(drawn.gaps[half], level)
    gaps = there.of(drawn.gaps[half])
    found = {measure: gaps[:, list(places)].mean(1) for measure, places in DAMAGE.items()}
    found["AUC"] = there.of(drawn.auc[half])
    found["extraction strength"] = there.of(drawn.extraction)
    return found


def how_it_reaches(drawn: Drawn, level: float) -> str:
    """Return "reached", "jumped" or "never", as measured on the report half."""
    gaps = drawn.gaps[selection.REPORT]
    if np.isfinite(distances.crossing(gaps, level).share[0]):
        return "reached"
    if (gaps[0, :, FORGET] >= level).any():
        return "jumped"
    return "never"


def beside_truth(profile: Profile, drawn: Drawn, found: dict[str, Floats]) -> dict[str, Floats]:
    """Return the measures of `at_level` with AUC over the retrained model's, and PrivLeak.

    PrivLeak is against the pool: the mean AUC of all retrained models of the domain.
    """
    run = drawn.run
    auc = truth_auc(profile, run.target_domain, run.replicate)
    others = retrained_again(profile, run.target_domain, run.replicate)
    pooled = np.mean([auc, *(again for _, again in others)], axis=0)
    pooled = np.where(pooled < 1, pooled, np.nan)  # a draw of few documents may reach 1
    added = {
        "AUC over retrained": found["AUC"] - auc,
        "PrivLeak": membership.priv_leak(found["AUC"], pooled),
    }
    return {**found, **added}


def equal_rows(profile: Profile, domain: str, method: str) -> list[Row]:
    """Return the rows of one method on one domain at equal forgetting, at the usual rate."""
    n = n_of(profile, [domain])
    rows = []
    for level in LEVELS:
        by_measure: dict[str, list[Floats]] = {}
        for drawn in usual(profile, domain, method):
            found = beside_truth(profile, drawn, at_level(drawn, level))
            for measure, values in found.items():
                by_measure.setdefault(measure, []).append(values)
        for measure, values in by_measure.items():
            keys = {"target_domain": domain, "method": method, "forget gap": level}
            rows.append(Row({**keys, "measure": measure}, np.stack(values), n))
    return rows


def equal_table(profile: Profile) -> pd.DataFrame:
    """Write and return table10_equal: every method at equal forgetting, at the usual rate.

    Returns:
        target_domain, method, forget gap, measure, and the columns of `replicated.table`. The
        column `replicates` says how many reach the level without a jump.
    """
    rows = []
    for domain in profile.domains:
        for method in METHODS:
            rows += equal_rows(profile, domain, method)
    return table(profile, "table10_equal", rows)


def reached_table(profile: Profile) -> pd.DataFrame:
    """Return how the paths of each method come to each level, in words, for reading.

    Returns:
        target_domain, method, forget gap, reached, jumped, never (numbers of replicates).
    """
    lines = []
    for domain in profile.domains:
        for method in METHODS:
            for level in LEVELS:
                told = [how_it_reaches(drawn, level) for drawn in usual(profile, domain, method)]
                line = {"target_domain": domain, "method": method, "forget gap": level}
                for word in ("reached", "jumped", "never"):
                    line[word] = told.count(word)
                lines.append(line)
    return pd.DataFrame(lines)


def at_best_rate(rates: Sequence[Drawn], level: float) -> dict[str, Floats]:
    """Return `at_level` at the rate with the least damage on the selection half, in each draw.

    rates: the paths of one method in one replicate.
    """
    lost = []
    for drawn in rates:
        gaps = drawn.gaps[selection.SELECTION]
        there = distances.crossing(gaps, level).of(gaps)
        damage = there[:, [UNSEEN, RETAIN, GENERAL]].mean(1)
        lost.append(np.where(np.isfinite(damage), damage, np.inf))
    best = np.argmin(lost, axis=0)
    none = np.isinf(np.min(lost, axis=0))
    by_rate = [at_level(drawn, level) for drawn in rates]
    draws_of = np.arange(len(best))
    found = {}
    for measure in by_rate[0]:
        values = np.stack([one[measure] for one in by_rate])
        found[measure] = np.where(none, np.nan, values[best, draws_of])
    return found


def best_rate_table(profile: Profile) -> pd.DataFrame:
    """Write and return table10_best_rate: as `equal_table`, each method at its best rate.

    It is on the domains whose grid has every method.
    """
    rows = []
    for domain in profile.grid.domains:
        n = n_of(profile, [domain])
        for method in METHODS:
            grid = robustness.grid_of(profile, domain, method)
            for level in LEVELS:
                by_measure: dict[str, list[Floats]] = {}
                for rates in grid:
                    found = beside_truth(profile, rates[0], at_best_rate(rates, level))
                    for measure, values in found.items():
                        by_measure.setdefault(measure, []).append(values)
                for measure, values in by_measure.items():
                    keys = {"target_domain": domain, "method": method, "forget gap": level}
                    rows.append(Row({**keys, "measure": measure}, np.stack(values), n))
    return table(profile, "table10_best_rate", rows)


# --------------------------------------------------------------------------------------- the ranking


def nearest(drawn: Drawn) -> np.ndarray:
    """Return the mark that is nearest to retraining on the selection half, in each draw: (draws,).

    Mark 0, the target, is among them: a method may be better left alone.
    """
    return np.argmin(distances.distance(drawn.gaps[selection.SELECTION]), axis=1)


def distance_at_nearest(drawn: Drawn) -> Floats:
    """Return the distance to retraining at the nearest mark, on the report half: (draws,)."""
    far = distances.distance(drawn.gaps[selection.REPORT])
    return far[np.arange(len(far)), nearest(drawn)]


@cache
def ranking_draws(profile: Profile) -> dict[str, dict[str, Floats]]:
    """Return the distance of each method and of `OTHERS`: by name, then by domain and "mean".

    Each is (replicates, draws). Another retrained model is a mean over the three that there are.
    """
    found: dict[str, dict[str, Floats]] = {}
    for domain in profile.domains:
        for method in METHODS:
            paths = usual(profile, domain, method)
            far = [distance_at_nearest(drawn) for drawn in paths]
            found.setdefault(method, {})[domain] = np.stack(far)
        target = [distances.distance(drawn.target(selection.REPORT)) for drawn in paths]
        found.setdefault(NOTHING, {})[domain] = np.stack(target)
        again = []
        for replicate in profile.replicates:
            others = retrained_again(profile, domain, replicate)
            if others:
                again.append(np.mean([distances.distance(gaps) for gaps, _ in others], axis=0))
        if again:
            found.setdefault(AGAIN, {})[domain] = np.stack(again)
    for by_domain in found.values():
        by_domain["mean"] = np.mean(list(by_domain.values()), axis=0)
    return found


def ranking_table(profile: Profile) -> pd.DataFrame:
    """Write and return table10_ranking: distances to retraining, the nearest first.

    Returns:
        model (a method, or one of `OTHERS`), target_domain (or "mean"), measure, and the columns of
        `replicated.table`. Measures: distance, and distance less that of the method of claim C2.
    """
    n = n_of(profile, profile.domains)
    found = ranking_draws(profile)
    order = sorted(found, key=lambda name: found[name]["mean"][:, 0].mean())
    rows = []
    for name in order:
        for domain, values in found[name].items():
            keys = {"model": name, "target_domain": domain}
            rows.append(Row({**keys, "measure": "distance"}, values, n))
            if name != method_paths.CLAIMED:
                less = values - found[method_paths.CLAIMED][domain]
                over = f"distance - {method_paths.CLAIMED}'s"
                rows.append(Row({**keys, "measure": over}, less, n))
    return table(profile, "table10_ranking", rows)


# ------------------------------------------------------------------------------- membership inference


def auc_excess(profile: Profile, level: float) -> dict[str, Floats]:
    """Return AUC of Min-40% over the retrained model's at equal forgetting, mean of domains.

    Args:
        profile: says the domains.
        level: the gap on the forget set.

    Returns:
        by method and for `OTHERS`, each (replicates, draws); not a number where a path of the
        replicate does not reach the level on one of the domains.
    """
    found: dict[str, list[Floats]] = {}
    for domain in profile.domains:
        truth = [truth_auc(profile, domain, replicate) for replicate in profile.replicates]
        exact = np.stack(truth)
        for method in METHODS:
            paths = usual(profile, domain, method)
            found.setdefault(method, []).append(
                np.stack([at_level(drawn, level)["AUC"] for drawn in paths]) - exact
            )
        target = np.stack([drawn.auc[selection.REPORT][:, 0] for drawn in paths])
        found.setdefault(NOTHING, []).append(target - exact)
        again = []
        for replicate, own in zip(profile.replicates, truth, strict=True):
            others = retrained_again(profile, domain, replicate)
            if others:
                again.append(np.mean([auc for _, auc in others], axis=0) - own)
        if again:
            found.setdefault(AGAIN, []).append(np.stack(again))
    return {name: np.mean(by_domain, axis=0) for name, by_domain in found.items()}


def membership_table(profile: Profile) -> pd.DataFrame:
    """Write and return table10_membership: AUC over the retrained model's at equal forgetting.

    Returns:
        model, forget gap, measure, and the columns of `replicated.table`. `OTHERS` stand at each
        level alike: they are one model.
    """
    n = n_of(profile, profile.domains)
    rows = []
    for level in LEVELS:
        for name, values in auc_excess(profile, level).items():
            keys = {"model": name, "forget gap": level, "measure": "AUC over retrained"}
            rows.append(Row(keys, values, n))
    return table(profile, "table10_membership", rows)


def least_detected(profile: Profile) -> Floats:
    """Return finding F3: of all methods that reach retraining, the least AUC over retrained.

    It is the mean over domains: (replicates, draws).
    """
    excess = auc_excess(profile, 0.0)
    of_methods = np.stack([excess[method] for method in METHODS])
    known = np.where(np.isfinite(of_methods), of_methods, np.inf).min(0)
    return np.where(np.isfinite(known), known, np.nan)


# ---------------------------------------------------------------------------------------- the plane


def damage_to_domain(gaps: Floats) -> Floats:
    """Return the mean gap on the other text of the domain, unseen and retain: (...).

    gaps: (..., splits).
    """
    return gaps[..., list(OTHER_TEXT)].mean(-1)


def plane_rows(profile: Profile, domain: str) -> list[Row]:
    """Return damage to the domain at each gap of `PLANE`, of every method at the usual rate."""
    n = n_of(profile, [domain])
    rows = []
    for method in METHODS:
        for level in PLANE:
            values = []
            for drawn in usual(profile, domain, method):
                gaps = drawn.gaps[selection.REPORT]
                values.append(damage_to_domain(distances.crossing(gaps, level).of(gaps)))
            keys = {"target_domain": domain, "method": method, "forget gap": level}
            rows.append(Row(keys, np.stack(values), n))
    return rows


def plane_data(profile: Profile) -> pd.DataFrame:
    """Return the data of the headline figure; points that no replicate reaches are left out.

    Returns:
        target_domain, method, forget gap, and the columns of `replicated.table`: damage to the
        domain's other text.
    """
    rows = []
    for domain in profile.domains:
        rows += plane_rows(profile, domain)
    found = estimates(profile, "fig10_plane", rows)
    return found[found.replicates > 0].reset_index(drop=True)


def plane_points(profile: Profile) -> pd.DataFrame:
    """Return the target and the other retrained models in the plane, one row a model.

    Returns:
        target_domain, model (one of `OTHERS`), replicate, forget gap, damage (as measured).
    """
    lines = []
    for domain in profile.domains:
        for drawn in usual(profile, domain, method_paths.CLAIMED):
            target = drawn.target(selection.REPORT)[0]
            places = [(NOTHING, target)]
            for gaps, _ in retrained_again(profile, domain, drawn.run.replicate):
                places.append((AGAIN, gaps[0]))
            for model, gaps in places:
                line = {"target_domain": domain, "model": model, "replicate": drawn.run.replicate}
                line |= {"forget gap": gaps[FORGET], "damage": float(damage_to_domain(gaps))}
                lines.append(line)
    return pd.DataFrame(lines)


# ------------------------------------------------------------------------------ one method's own path


def path_rows(profile: Profile, domain: str, method: str, steps: Sequence[int]) -> list[Row]:
    """Return a method's gaps over its steps at the usual rate, on the four kinds of text.

    Between marks gaps are interpolated along log steps; after its end a path has no value.

    Args:
        profile: says the replicates.
        domain: that is forgotten.
        method: its name.
        steps: at which gaps are wanted, 0 (the target) among them.
    """
    n = n_of(profile, [domain])
    rows = []
    for step in steps:
        each = [gaps_at(drawn, step) for drawn in usual(profile, domain, method)]
        values = np.stack(each)
        for place, split in enumerate(SPLITS):
            keys = {"target_domain": domain, "step": step, "split": split}
            rows.append(Row(keys, values[..., place], n))
    return rows


def gaps_at(drawn: Drawn, step: int) -> Floats:
    """Return the gaps of a path at a step, report half: (draws, splits); NaN past its last mark."""
    gaps = drawn.gaps[selection.REPORT]
    if step > drawn.steps[-1]:
        return np.full(gaps[:, 0].shape, np.nan)
    right = int(np.searchsorted(drawn.steps, step))
    if drawn.steps[right] == step:
        return gaps[:, right]
    before, after = np.log(drawn.steps[right - 1]), np.log(drawn.steps[right])
    share = (np.log(step) - before) / (after - before)
    return (1 - share) * gaps[:, right - 1] + share * gaps[:, right]


def reached_share(profile: Profile, level: float) -> list[Row]:
    """Return the share of paths that reach a level without a jump, by method, over the domains."""
    rows = []
    for method in METHODS:
        by_replicate = []
        for place in range(len(profile.replicates)):
            told = []
            for domain in profile.domains:
                told.append(how_it_reaches(usual(profile, domain, method)[place], level))
            by_replicate.append(np.full(1 + profile.resamples, told.count("reached") / len(told)))
        keys = {"method": method, "forget gap": level, "measure": "share of paths that reach it"}
        rows.append(Row(keys, np.stack(by_replicate), len(profile.domains), SHARE))
    return rows
