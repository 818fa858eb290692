"""All methods beside each other: at equal forgetting, at their nearest step, and in a plane.

Two models stand in every comparison that are no method's: "do nothing", which is the target, and
"another retrained model", which is any other model of the pool that did not see the forget set.
All values are of the report half of the documents; choices are made on the other half.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import pandas as pd

from unlearn_utils.core import distances, membership
from unlearn_utils.core.arrays import Floats
from unlearn_utils.core.distances import FORGET, GENERAL, OTHER_TEXT, RETAIN, SPLITS, UNSEEN
from unlearn_utils.core.methods import METHODS
from unlearn_utils.core.replicates import PLAIN, SHARE
from unlearn_utils.findings import draws, robustness
from unlearn_utils.findings.draws import Drawn
from unlearn_utils.findings.replicated import Row, estimates, table, values_of
from unlearn_utils.profiles import Profile
from unlearn_utils.study import method_paths, pool, selection
from unlearn_utils.study.single_run import Run

LEVELS = (-0.5, -0.25, 0.0)  # gaps on the forget set at which methods are compared
WAY = tuple(np.round(np.arange(0.0, 1.26, 0.05), 2))  # shares of the way to retraining, in a figure
NOTHING = "do nothing"
AGAIN = "another retrained model"
OTHERS = (NOTHING, AGAIN)  # models of a comparison that are no method's
MEAN = "mean"  # in the place of a domain: over all of them
AS_IT_IS = "as it is"  # in the place of a level: of a model that goes no way
REACHED, JUMPED, NEVER, BEYOND = "reached", "jumped", "never", "the target is beyond it"
DOMAIN_DAMAGE = "damage to the domain"
DAMAGE = {  # by measure: the kinds of text whose gaps are averaged
    "damage to unseen text": (UNSEEN,),
    "damage to retain text": (RETAIN,),
    "damage to general text": (GENERAL,),
    DOMAIN_DAMAGE: OTHER_TEXT,
    "damage, mean of three": (UNSEEN, RETAIN, GENERAL),
}
GAP, DISTANCE = "forget gap", "distance"
OVER_RETRAINED, LEAK = "AUC over retrained", "PrivLeak"
IN_MEMBERSHIP = ("AUC", OVER_RETRAINED, LEAK)
SCALES = {"AUC": SHARE, "extraction strength": SHARE}  # by measure; of all others it is plain


# --------------------------------------------------------------------------------- what is compared


class State(NamedTuple):
    """One model in each draw, on the report half.

    Attributes:
        gaps: log perplexity over the retrained model's: (draws, splits).
        auc: of Min-40%: (draws,).
        extraction: strength of extraction of the forget set: (draws,).
    """

    gaps: Floats
    auc: Floats
    extraction: Floats


def runs(profile: Profile) -> list[Run]:
    """Return the runs whose paths are compared: the usual ones, and whole grids of rates."""
    found = []
    for replicate in profile.replicates:
        found += method_paths.usual_runs(profile, replicate)
        for domain in profile.grid.domains:
            for method in METHODS:
                found += method_paths.grid_runs(profile, replicate, domain, method)
    return list(dict.fromkeys(found))


@cache
def usual(profile: Profile, domain: str, method: str) -> list[Drawn]:
    """Return the path of a method at the profile's own rate, one for each replicate."""
    chosen = [
        method_paths.usual_run(profile, replicate, domain, method)
        for replicate in profile.replicates
    ]
    return draws.drawn_paths(chosen)


@cache
def retrained_again(profile: Profile, domain: str, replicate: int) -> list[State]:
    """Return the other retrained models of a domain, in the order of the pool's pairs.

    Of a published model there are none.
    """
    if profile.hub:
        return []
    half = selection.REPORT
    exact = draws.levels(profile, pool.truth_rows(profile, domain, replicate), domain, half)
    forget = draws.sample(profile, domain, "forget", half)
    found = []
    for pair in pool.pairs(profile, domain, replicate)[1:]:
        rows = pool.rows_of_domain(profile, pool.trained_model(profile, pair.retrained), domain)
        state = State(
            gaps=draws.levels(profile, rows, domain, half) - exact,
            auc=draws.auc(profile, rows, domain, half),
            extraction=forget.mean(rows[rows.split == "forget"], "extraction"),
        )
        found.append(state)
    return found


@cache
def retrained_auc(profile: Profile, domain: str, replicate: int) -> list[Floats]:
    """Return the AUC of every retrained model of a domain, first that of the truth: (draws,) each.

    The truth is what unlearned models are compared with, also of a published model.
    """
    rows = pool.truth_rows(profile, domain, replicate)
    own = draws.auc(profile, rows, domain, selection.REPORT)
    return [own, *(state.auc for state in retrained_again(profile, domain, replicate))]


# ---------------------------------------------------------------------------- measures of one model


def measures(state: State) -> dict[str, Floats]:
    """Return what a model has lost and still tells, by measure, each (draws,)."""
    found = {name: state.gaps[:, list(places)].mean(1) for name, places in DAMAGE.items()}
    return {**found, "AUC": state.auc, "extraction strength": state.extraction}


def detected(auc: Floats, truth: Floats, retrained: Sequence[Floats]) -> dict[str, Floats]:
    """Return how much better a model's members are told than a retrained model's.

    Args:
        auc: of the model, (draws,).
        truth: AUC of the retrained model that it is compared with, (draws,).
        retrained: AUC of the retrained models whose mean PrivLeak is against, each (draws,).

    Returns:
        by measure, each (draws,). PrivLeak has no value in a draw in which all of them reach 1,
        which may happen with a few documents.
    """
    pooled = np.mean(retrained, axis=0)
    pooled = np.where(pooled < 1, pooled, np.nan)
    return {OVER_RETRAINED: auc - truth, LEAK: membership.priv_leak(auc, pooled)}


def other_models(
    profile: Profile, domain: str, replicate: int
) -> list[tuple[str, str, dict[str, Floats]]]:
    """Return the models that are no method's: (one of `OTHERS`, what it saw, its measures).

    What it saw is a pool member's name. PrivLeak of another retrained model is against all
    retrained models but itself.
    """
    place = profile.replicates.index(replicate)
    start = usual(profile, domain, method_paths.CLAIMED)[place]  # the target is on every path
    target = State(
        gaps=start.target(selection.REPORT),
        auc=start.auc[selection.REPORT][:, 0],
        extraction=start.extraction[:, 0],
    )
    areas = retrained_auc(profile, domain, replicate)
    pairs = pool.pairs(profile, domain, replicate)
    models = [(NOTHING, pairs[0].target.name, target, areas)]
    again = retrained_again(profile, domain, replicate)
    for number, state in enumerate(again, 1):
        without = [*areas[:number], *areas[number + 1 :]]
        models.append((AGAIN, pairs[number].retrained.name, state, without))
    found = []
    for model, saw, state, compared in models:
        own = {GAP: state.gaps[:, FORGET], DISTANCE: distances.distance(state.gaps)}
        own |= {**measures(state), **detected(state.auc, areas[0], compared)}
        found.append((model, saw, own))
    return found


@cache
def others_mean(profile: Profile, domain: str) -> dict[str, dict[str, Floats]]:
    """Return the measures of `OTHERS`: by model, then by measure, each (replicates, draws).

    Another retrained model is a mean over those that there are; of a published model there is none.
    """
    found: dict[str, dict[str, list[Floats]]] = {}
    for replicate in profile.replicates:
        by_model: dict[str, list[dict[str, Floats]]] = {}
        for model, _, own in other_models(profile, domain, replicate):
            by_model.setdefault(model, []).append(own)
        for model, each in by_model.items():
            for measure in each[0]:
                mean = np.mean([own[measure] for own in each], axis=0)
                found.setdefault(model, {}).setdefault(measure, []).append(mean)
    return {
        model: {measure: np.stack(values) for measure, values in by_measure.items()}
        for model, by_measure in found.items()
    }


def models_table(profile: Profile) -> pd.DataFrame:
    """Write and return table10_models: the models that are no method's, one by one.

    Returns:
        target_domain, model (one of `OTHERS`), saw (forget sets), measure, and the columns of
        `replicated.table`. The column by_replicate has the single models.
    """
    rows = []
    for domain in profile.domains:
        found: dict[tuple[str, str], list[dict[str, Floats]]] = {}
        for replicate in profile.replicates:
            for model, saw, own in other_models(profile, domain, replicate):
                found.setdefault((model, saw), []).append(own)
        for (model, saw), by_replicate in found.items():
            keys = {"target_domain": domain, "model": model, "saw": saw}
            rows += rows_by_measure(keys, by_replicate, robustness.smallest_n(profile, [domain]))
    return table(profile, "table10_models", rows)


def rows_by_measure(
    keys: Mapping, by_replicate: Sequence[Mapping[str, Floats]], n: int
) -> list[Row]:
    """Return a row for each measure.

    Args:
        keys: that all have in common.
        by_replicate: the measures of each replicate, each (draws,).
        n: families.
    """
    rows = []
    for measure in by_replicate[0]:
        values = np.stack([own[measure] for own in by_replicate])
        scale = SCALES.get(measure, PLAIN)
        rows.append(Row({**keys, "measure": measure}, values, n, scale))
    return rows


# -------------------------------------------------------------------------------- equal forgetting


def at_level(drawn: Drawn, level: float, near: float = distances.NEAR) -> dict[str, Floats]:
    """Return what a path has done where its gap on the forget set first reaches a level.

    near: as in `distances.crossing`.

    Returns:
        by measure, each (draws,); not a number where the path never reaches the level, or jumps
        past it. So of a path that barely reaches the level, draws in which it does not are missing.
    """
    half = selection.REPORT
    there = distances.crossing(drawn.gaps[half], level, near)
    state = State(
        gaps=there.of(drawn.gaps[half]),
        auc=there.of(drawn.auc[half]),
        extraction=there.of(drawn.extraction),
    )
    return measures(state)


def how_it_reaches(drawn: Drawn, level: float) -> str:
    """Return how a path comes to a level, as measured on the report half.

    It is `REACHED`, `JUMPED`, `NEVER`, or `BEYOND`: the target itself is at the level, or past it.
    """
    gaps = drawn.gaps[selection.REPORT]
    past = gaps[0, :, FORGET] >= level
    if past[0]:
        return BEYOND
    if np.isfinite(distances.crossing(gaps, level).share[0]):
        return REACHED
    if past.any():
        return JUMPED
    return NEVER


def beside_truth(profile: Profile, drawn: Drawn, found: dict[str, Floats]) -> dict[str, Floats]:
    """Return the measures of `at_level`, and those of `detected` against the pool."""
    areas = retrained_auc(profile, drawn.run.target_domain, drawn.run.replicate)
    return {**found, **detected(found["AUC"], areas[0], areas)}


def equal_rows(profile: Profile, domain: str, method: str) -> list[Row]:
    """Return the rows of one method on one domain at equal forgetting, at the usual rate.

    The last two measures of a level are the shares of replicates that reach it, and that jump.
    """
    n = robustness.smallest_n(profile, [domain])
    paths = usual(profile, domain, method)
    rows = []
    for level in LEVELS:
        keys = {"target_domain": domain, "method": method, "forget gap": level}
        found = [beside_truth(profile, drawn, at_level(drawn, level)) for drawn in paths]
        rows += rows_by_measure(keys, found, n)
        told = [how_it_reaches(drawn, level) for drawn in paths]
        for word in (REACHED, JUMPED):
            rows.append(share_row(profile, {**keys, "measure": word}, told, word, n))
    return rows


def share_row(profile: Profile, keys: Mapping, told: Sequence[str], word: str, n: int) -> Row:
    """Return a row of the share of replicates of which a word is told."""
    each = np.array([float(one == word) for one in told])
    return Row(keys, np.tile(each[:, None], (1, 1 + profile.resamples)), n, SHARE)


def equal_table(profile: Profile) -> pd.DataFrame:
    """Write and return table10_equal: every method at equal forgetting, at the usual rate.

    Returns:
        target_domain, method, forget gap, measure, and the columns of `replicated.table`. A mean is
        over the replicates that reach the level without a jump, which `replicates` counts.
    """
    rows = []
    for domain in profile.domains:
        for method in METHODS:
            rows += equal_rows(profile, domain, method)
    return table(profile, "table10_equal", rows)


def reached_to_read(found: pd.DataFrame) -> pd.DataFrame:
    """Return which paths come to each level, a row a domain and method, a column a level.

    A cell says how many replicates reach it of how many, and how many jump: "5 of 6, 1 jumps". The
    others stop before, or start beyond it.

    found: of `equal_table` or `best_rate_table`.
    """
    keys = ["target_domain", "method", "forget gap"]
    lines = []
    for place, part in found.groupby(keys, sort=False):
        by_measure = part.set_index("measure")
        of = int(by_measure.loc[REACHED, "replicates"])
        said = f"{round(of * by_measure.loc[REACHED, 'value'])} of {of}"
        jumps = 0
        if JUMPED in by_measure.index:
            jumps = round(of * by_measure.loc[JUMPED, "value"])
        if jumps:
            said += f", {jumps} jump{'s' * (jumps == 1)}"
        lines.append({**dict(zip(keys, place, strict=True)), "paths": said})
    shown = pd.DataFrame(lines)
    wide = shown.pivot(index=keys[:2], columns="forget gap", values="paths")
    return wide.reindex(list(dict.fromkeys(zip(shown[keys[0]], shown[keys[1]], strict=True))))


# -------------------------------------------------------------- equal forgetting, at the best rate


def at_best_rate(rates: Sequence[Drawn], level: float) -> dict[str, Floats]:
    """Return `at_level` at the rate with the least damage on the selection half, in each draw.

    Damage is the mean over unseen, retain and general text. A rate at which the selection half does
    not reach the level, or jumps, is not chosen.

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
    every = np.arange(len(best))
    found = {}
    for measure in by_rate[0]:
        values = np.stack([one[measure] for one in by_rate])
        found[measure] = np.where(none, np.nan, values[best, every])
    return found


def best_rate_table(profile: Profile) -> pd.DataFrame:
    """Write and return table10_best_rate: as `equal_table`, each method at its best rate.

    It is on the domains whose grid has every method. `REACHED` is the share of replicates in which
    the chosen rate reaches the level on the report half too.
    """
    rows = []
    for domain in profile.grid.domains:
        n = robustness.smallest_n(profile, [domain])
        for method in METHODS:
            grid = robustness.grid_of(profile, domain, method)
            for level in LEVELS:
                keys = {"target_domain": domain, "method": method, "forget gap": level}
                found = []
                for rates in grid:
                    found.append(beside_truth(profile, rates[0], at_best_rate(rates, level)))
                rows += rows_by_measure(keys, found, n)
                told = [REACHED if np.isfinite(own["AUC"][0]) else NEVER for own in found]
                rows.append(share_row(profile, {**keys, "measure": REACHED}, told, REACHED, n))
    return table(profile, "table10_best_rate", rows)


# -------------------------------------------------------------------------------------- the ranking


@cache
def ranking_draws(profile: Profile) -> dict[str, dict[str, Floats]]:
    """Return the distance of each method and of `OTHERS`: by name, then by domain and `MEAN`.

    A method's is at its nearest mark at the usual rate, the target among them, which is chosen on
    the selection half in each draw: so it needs a retrained model. Each is (replicates, draws).
    """
    found: dict[str, dict[str, Floats]] = {}
    for domain in profile.domains:
        for model, by_measure in others_mean(profile, domain).items():
            found.setdefault(model, {})[domain] = by_measure[DISTANCE]
        for method in METHODS:
            far = []
            for drawn in usual(profile, domain, method):
                far.append(robustness.distance_at_nearest(drawn))
            found.setdefault(method, {})[domain] = np.stack(far)
    for by_domain in found.values():
        by_domain[MEAN] = np.mean(list(by_domain.values()), axis=0)
    return found


def ranking_table(profile: Profile) -> pd.DataFrame:
    """Write and return table10_ranking: distances to retraining, the same order in every run.

    Returns:
        model (a method, or one of `OTHERS`), target_domain (or `MEAN`), measure, and the columns of
        `replicated.table`. Measures: distance, and distance less that of the method of claim C2.
    """
    found = ranking_draws(profile)
    over = f"distance - {method_paths.CLAIMED}'s"
    rows = []
    for name, by_domain in found.items():
        for domain, values in by_domain.items():
            n = robustness.smallest_n(profile, profile.domains if domain == MEAN else [domain])
            keys = {"model": name, "target_domain": domain}
            rows.append(Row({**keys, "measure": DISTANCE}, values, n))
            if name != method_paths.CLAIMED:
                less = values - found[method_paths.CLAIMED][domain]
                rows.append(Row({**keys, "measure": over}, less, n))
    return table(profile, "table10_ranking", rows)


def ranking_to_read(found: pd.DataFrame) -> pd.DataFrame:
    """Return the mean distances, the nearest first, beside the difference to the method of C2.

    found: of `ranking_table`.
    """
    over_domains = found[found.target_domain == MEAN]
    nearest = over_domains[over_domains.measure == DISTANCE].sort_values("value", kind="stable")
    by_model = over_domains.set_index("model")
    return pd.concat([by_model.loc[[name]] for name in nearest.model]).reset_index()


# ----------------------------------------------------------------------------- membership inference


@cache
def membership_draws(profile: Profile) -> dict[tuple[str, str], dict[str, Floats]]:
    """Return the measures of `IN_MEMBERSHIP`, mean over the domains: by model and by where it is.

    Where is a level of equal forgetting in words, or `AS_IT_IS` for `OTHERS`. Each measure is
    (replicates, draws), not a number where a path of the replicate does not reach the level on one
    of the domains.
    """
    found: dict[tuple[str, str], list[dict[str, Floats]]] = {}
    for domain in profile.domains:
        for model, by_measure in others_mean(profile, domain).items():
            found.setdefault((model, AS_IT_IS), []).append(by_measure)
        for method in METHODS:
            paths = usual(profile, domain, method)
            for level in LEVELS:
                each = [beside_truth(profile, drawn, at_level(drawn, level)) for drawn in paths]
                here = {name: np.stack([own[name] for own in each]) for name in IN_MEMBERSHIP}
                found.setdefault((method, at(level)), []).append(here)
    means = {}
    for key, by_domain in found.items():
        means[key] = {
            name: np.mean([own[name] for own in by_domain], axis=0) for name in IN_MEMBERSHIP
        }
    return means


def at(level: float) -> str:
    """Return a level in words."""
    return f"gap {level:g}"


def auc_excess(profile: Profile, level: float) -> dict[str, Floats]:
    """Return AUC of Min-40% over the retrained model's at equal forgetting, mean of domains.

    Args:
        profile: says the domains.
        level: the gap on the forget set, one of `LEVELS`.

    Returns:
        by method and for `OTHERS`, each (replicates, draws); not a number where a path of the
        replicate does not reach the level on one of the domains.
    """
    found = {}
    for (model, where), by_measure in membership_draws(profile).items():
        if where in (AS_IT_IS, at(level)):
            found[model] = by_measure[OVER_RETRAINED]
    return found


def membership_table(profile: Profile) -> pd.DataFrame:
    """Write and return table10_membership: AUC and PrivLeak at equal forgetting, mean of domains.

    Returns:
        model (a method, or one of `OTHERS`), at (a level in words, or `AS_IT_IS`), measure, and the
        columns of `replicated.table`.
    """
    n = robustness.smallest_n(profile, profile.domains)
    rows = []
    for (model, where), by_measure in membership_draws(profile).items():
        for measure, values in by_measure.items():
            keys = {"model": model, "at": where, "measure": measure}
            rows.append(Row(keys, values, n, SCALES.get(measure, PLAIN)))
    return table(profile, "table10_membership", rows)


def least_detected(profile: Profile) -> Floats:
    """Return finding F3: of all methods that reach retraining, the least AUC over retrained.

    It is the mean over domains: (replicates, draws). A method that does not reach retraining on
    each of the domains is left out, as measured and in that draw.
    """
    excess = auc_excess(profile, 0.0)
    of_methods = np.stack([excess[method] for method in METHODS])
    return least_known(of_methods)


def least_known(values: Floats) -> Floats:
    """Return the least of the first axis, not a number where none is known: (k, ...) to (...)."""
    least = np.where(np.isfinite(values), values, np.inf).min(axis=0)
    return np.where(np.isfinite(least), least, np.nan)


# ---------------------------------------------------------------------------------------- the plane


def on_the_way(drawn: Drawn, share: float) -> Floats:
    """Return damage to the domain where a path has gone a share of its way: (draws,).

    The way is that of the gap on the forget set, from the target's (0) to 0 (1). Shares make every
    replicate and draw start at its own target, which gaps do not.
    """
    gaps = drawn.gaps[selection.REPORT]
    if share == 0:
        return distances.damage_to_domain(gaps[:, 0])
    level = (1 - share) * gaps[:, 0, FORGET]
    over_level = gaps.copy()
    over_level[..., FORGET] -= level[:, None]
    return distances.damage_to_domain(distances.crossing(over_level, 0.0).of(gaps))


def plane_data(profile: Profile) -> pd.DataFrame:
    """Return the lines of the headline figure: damage to the domain along each method's path.

    Returns:
        target_domain, method, share of the way (one of `WAY`), the columns of `replicated.table`
        for the damage, and the forget gap there, mean over replicates.
    """
    rows = []
    way = []
    for domain in profile.domains:
        starts = [
            drawn.target(selection.REPORT)[0, FORGET]
            for drawn in usual(profile, domain, method_paths.CLAIMED)
        ]
        for method in METHODS:
            paths = usual(profile, domain, method)
            for share in WAY:
                values = np.stack([on_the_way(drawn, share) for drawn in paths])
                keys = {"target_domain": domain, "method": method, "share of the way": share}
                rows.append(Row(keys, values, robustness.smallest_n(profile, [domain])))
                way.append((1 - share) * np.mean(starts))
    return estimates(profile, "fig10_plane", rows).assign(**{GAP: way})


def plane_points(models: pd.DataFrame) -> pd.DataFrame:
    """Return the models of `OTHERS` in the plane, one row a model of one replicate.

    models: of `models_table`.

    Returns:
        target_domain, model, saw, forget gap, damage (to the domain), as measured.
    """
    keys = ["target_domain", "model", "saw"]
    frames = []
    for place, part in models.groupby(keys, sort=False):
        each = part.set_index("measure")["by_replicate"].map(values_of)
        line = pd.DataFrame({GAP: each[GAP], "damage": each[DOMAIN_DAMAGE]})
        frames.append(line.assign(**dict(zip(keys, place, strict=True))))
    return pd.concat(frames, ignore_index=True)[[*keys, GAP, "damage"]]


# ---------------------------------------------------------------------------- one method's own path


def path_rows(profile: Profile, domain: str, method: str, steps: Sequence[int]) -> list[Row]:
    """Return a method's gaps over its steps at the usual rate, on the four kinds of text.

    Between marks gaps are interpolated along log steps; after its end a path has no value.

    Args:
        profile: says the replicates.
        domain: that is forgotten.
        method: its name.
        steps: at which gaps are wanted, 0 (the target) among them.
    """
    n = robustness.smallest_n(profile, [domain])
    rows = []
    for step in steps:
        each = [gaps_at(drawn, step) for drawn in usual(profile, domain, method)]
        values = np.stack(each)
        for place, split in enumerate(SPLITS):
            keys = {"target_domain": domain, "step": step, "split": split}
            rows.append(Row(keys, values[..., place], n))
    return rows


def gaps_at(drawn: Drawn, step: float) -> Floats:
    """Return the gaps of a path at a step, report half: (draws, splits); NaN past its last mark.

    step: 0, or from 1 on. The first mark of a path is 1.
    """
    gaps = drawn.gaps[selection.REPORT]
    if step > drawn.steps[-1]:
        return np.full(gaps[:, 0].shape, np.nan)
    right = int(np.searchsorted(drawn.steps, step))
    if drawn.steps[right] == step:
        return gaps[:, right]
    before, after = np.log(drawn.steps[right - 1]), np.log(drawn.steps[right])
    share = (np.log(step) - before) / (after - before)
    return (1 - share) * gaps[:, right - 1] + share * gaps[:, right]
