"""What the paths of a grid of learning rates say: robustness, claim C2, and rules of tuning.

Every quantity is a mean over replicates of what one replicate gives, in each draw of documents.
Choices are made on the selection half, anew in each draw; what is reported is the other half's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import NamedTuple

import numpy as np
import pandas as pd

from unlearn_utils.core import distances, tuning
from unlearn_utils.core.arrays import Floats
from unlearn_utils.core.distances import FORGET, GENERAL, RETAIN, Path, Scores
from unlearn_utils.core.methods import FORWARD, get_method
from unlearn_utils.core.replicates import SHARE, SIZE
from unlearn_utils.findings import draws, searches
from unlearn_utils.findings.draws import Drawn
from unlearn_utils.findings.replicated import Row, table
from unlearn_utils.findings.searches import Paths, Searched
from unlearn_utils.profiles import Profile
from unlearn_utils.study import costs, method_paths, selection, single_run
from unlearn_utils.study.method_paths import ASCENT, CLAIMED
from unlearn_utils.study.study_documents import measured_parts, tokenized

PLANES = {"four kinds of text": (0, 1, 2, 3), "forget and general": distances.TWO}
MAIN_PLANE = "four kinds of text"
TAUS = np.linspace(0.0, 0.8, 33)  # of the profile curve
EVERY = "all"  # in the place of a number of retain documents

# The smallest differences that matter for claim C2, in robustness and in the window. Fixed before
# any path of the study was run, after a pilot of one replicate had been seen (notebook 11).
SMALLEST = {"robustness": 0.01, "window": 0.01}


# ------------------------------------------------------------------------------ paths of the grid


@cache
def grid_of(profile: Profile, domain: str, method: str) -> list[list[Drawn]]:
    """Return the paths of a method on a domain: by replicate, then by learning rate."""
    runs = []
    for replicate in profile.replicates:
        runs += method_paths.grid_runs(profile, replicate, domain, method)
    every = draws.drawn_paths(runs, "paths of the grid")
    width = len(profile.grid.learning_rates)
    return [every[start : start + width] for start in range(0, len(every), width)]


def within_plane(drawn: Drawn, half: int) -> Path:
    """Return a path as far as the plane of settings goes: the epochs of the grid.

    A longer run need not have a mark at the plane's end, so its later marks stay.
    """
    run = drawn.run
    epochs = min(run.recipe.epochs, run.profile.grid.epochs)
    shorter = replace(run, recipe=replace(run.recipe, epochs=epochs))
    return drawn.path(half)._replace(total=single_run.steps_of_run(shorter))


def scores(rates: Sequence[Drawn], plane: str, half: int = selection.REPORT) -> list[Scores]:
    """Return the scores of a method at each rate of one replicate.

    plane: a key of `PLANES`.
    """
    found = []
    for drawn in rates:
        path = within_plane(drawn, half)
        found.append(distances.scores(path, drawn.target(half), PLANES[plane]))
    return found


# ------------------------------------------------------------------------------------- robustness


def measures(rates: Sequence[Scores]) -> dict[str, Floats]:
    """Return what is said of one method on one domain in one replicate, each (draws,)."""
    return {
        "robustness": distances.robustness(rates),
        "window": distances.window(rates),
        "best score": distances.best_score(rates),
        "worse than doing nothing": distances.worse_than_nothing(rates),
        "robustness, lower rates": distances.robustness(rates[:-1]),
        "robustness, higher rates": distances.robustness(rates[1:]),
    }


@cache
def measured(profile: Profile, domain: str, method: str, plane: str) -> dict[str, Floats]:
    """Return `measures` of every replicate: each (replicates, draws)."""
    found: dict[str, list[Floats]] = {}
    for rates in grid_of(profile, domain, method):
        for name, values in measures(scores(rates, plane)).items():
            found.setdefault(name, []).append(values)
    return {name: np.stack(values) for name, values in found.items()}


def robustness_table(profile: Profile) -> pd.DataFrame:
    """Write and return table11_robustness: each method on each domain of its grid, in each plane.

    Returns:
        target_domain, method, plane, measure, and the columns of `replicated.table`.
    """
    rows = []
    for domain, method in method_paths.grid_places(profile):
        n = draws.families(profile, domain, selection.REPORT)
        for plane in PLANES:
            for measure, values in measured(profile, domain, method, plane).items():
                keys = {"target_domain": domain, "method": method, "plane": plane}
                rows.append(Row({**keys, "measure": measure}, values, n, SHARE))
    return table(profile, "table11_robustness", rows)


def differences(profile: Profile, plane: str, measure: str) -> dict[str, Floats]:
    """Return the claimed method less ascent, by domain, and the mean over the domains.

    Args:
        profile: says the domains.
        plane: a key of `PLANES`.
        measure: a key of `measures`.

    Returns:
        (replicates, draws) for each domain, and for "mean".
    """
    found = {}
    for domain in profile.grid.claimed_domains:
        ours = measured(profile, domain, CLAIMED, plane)[measure]
        found[domain] = ours - measured(profile, domain, ASCENT, plane)[measure]
    return {**found, "mean": np.mean(list(found.values()), axis=0)}


def claim_table(profile: Profile) -> pd.DataFrame:
    """Write and return table11_claim: ascent + descent in-distribution less ascent.

    Returns:
        target_domain (or "mean", where there are several), plane, measure, and the columns of
        `replicated.table`.
    """
    domains = profile.grid.claimed_domains
    by_row = {domain: [domain] for domain in domains}
    if len(domains) > 1:  # else it had the name of the study's mean, and were another quantity
        by_row["mean"] = list(domains)
    rows = []
    for plane in PLANES:
        for measure in SMALLEST:
            found = differences(profile, plane, measure)
            for name, of in by_row.items():
                keys = {"target_domain": name, "plane": plane, "measure": measure}
                rows.append(Row(keys, found[name], smallest_n(profile, of)))
    return table(profile, "table11_claim", rows)


def smallest_n(profile: Profile, domains: Sequence[str]) -> int:
    """Return the families of the smallest split of some domains, report half."""
    return min(draws.families(profile, domain, selection.REPORT) for domain in domains)


def curves(profile: Profile, domain: str) -> list[Row]:
    """Return the share of settings with a score of at least tau, of each method, for a figure."""
    rows = []
    n = draws.families(profile, domain, selection.REPORT)
    for where, method in method_paths.grid_places(profile):
        if where != domain:
            continue
        shares = []
        for rates in grid_of(profile, domain, method):
            shares.append(distances.profile_curve(scores(rates, MAIN_PLANE), TAUS))
        for place, tau in enumerate(TAUS):
            values = np.stack([share[:, place] for share in shares])
            keys = {"target_domain": domain, "method": method, "tau": tau}
            rows.append(Row(keys, values, n, SHARE))
    return rows


def rate_table(profile: Profile) -> pd.DataFrame:
    """Write and return table11_rates: each learning rate by itself, first domain of the grid.

    Returns:
        method, learning_rate, measure ("mean score" over log steps, or "best score"), and the
        columns of `replicated.table`.
    """
    domain = profile.grid.domains[0]
    n = smallest_n(profile, [domain])
    rows = []
    for where, method in method_paths.grid_places(profile):
        if where != domain:
            continue
        told = [scores(rates, MAIN_PLANE) for rates in grid_of(profile, domain, method)]
        for place, rate in enumerate(profile.grid.learning_rates):
            here = [[of_replicate[place]] for of_replicate in told]
            by_measure = {
                "mean score": [distances.robustness(one) for one in here],
                "best score": [distances.best_score(one) for one in here],
            }
            for measure, values in by_measure.items():
                keys = {"method": method, "learning_rate": rate, "measure": measure}
                rows.append(Row(keys, np.stack(values), n, SHARE))
    return table(profile, "table11_rates", rows)


# ------------------------------------------------------------------------- how much retain text


def at_nearest(drawn: Drawn) -> Floats:
    """Return the gaps of a path at its best mark, report half: (draws, splits).

    The mark is chosen on the selection half, anew in each draw. The target is among them.
    """
    best = np.argmin(distances.distance(drawn.gaps[selection.SELECTION]), axis=1)
    return drawn.gaps[selection.REPORT][np.arange(len(best)), best]


def distance_at_nearest(drawn: Drawn) -> Floats:
    """Return the distance of a path at its best mark, report half: (draws,)."""
    return distances.distance(at_nearest(drawn))


@cache
def by_retain_documents(profile: Profile) -> dict[tuple[str, str], list[Drawn]]:
    """Return the paths by method and by the number of retain documents, one a replicate.

    The number is in words: the last, `EVERY`, is all that there are.
    """
    fewer = []
    for replicate in profile.replicates:
        fewer += method_paths.fewer_retain_runs(profile, replicate)
    with_all = [replace(run, retain_documents=None) for run in fewer]
    runs = list(dict.fromkeys([*fewer, *with_all]))
    found: dict[tuple[str, str], list[Drawn]] = {}
    for drawn in draws.drawn_paths(runs, "paths with fewer retain documents"):
        number = str(drawn.run.retain_documents or EVERY)
        found.setdefault((drawn.run.method, number), []).append(drawn)
    return found


def retain_text_table(profile: Profile) -> pd.DataFrame:
    """Write and return table11_retain: what the number of different retain documents does.

    Each method with descent is looked at at its best mark, at the profile's own rate, on the first
    domain of the grid. "damage" is a gap, to the other text of the domain or to general text.

    Returns:
        method, retain documents, measure, and the columns of `replicated.table`.
    """
    n = smallest_n(profile, profile.grid.domains[:1])
    paths = by_retain_documents(profile)
    rows = []
    for (method, number), here in paths.items():
        score = np.stack([score_at_nearest(drawn) for drawn in here])
        with_all = np.stack([score_at_nearest(drawn) for drawn in paths[method, EVERY]])
        gaps = np.stack([at_nearest(drawn) for drawn in here])
        by_measure = {
            "score": score,
            "damage to the domain": distances.damage_to_domain(gaps),
            "damage to general text": gaps[..., GENERAL],
        }
        if number != EVERY:
            by_measure["score, less that with all"] = score - with_all
        for measure, values in by_measure.items():
            keys = {"method": method, "retain documents": number, "measure": measure}
            rows.append(Row(keys, values, n))
    return table(profile, "table11_retain", rows)


def score_at_nearest(drawn: Drawn) -> Floats:
    """Return the score of a path at its best mark, report half: (draws,)."""
    own = distances.distance(drawn.target(selection.REPORT))
    return distances.score(distance_at_nearest(drawn), own)


# ------------------------------------------------------------------------------- rules of tuning


class Cells(NamedTuple):
    """The marks of one method on one domain in one replicate, over all rates, the target first.

    Attributes:
        rates: learning rate of each cell, 0 of the target: (cells,).
        steps: at each cell, 0 of the target: (cells,).
        per_epoch: steps of an epoch.
        diverged: rates of the paths that ended within the plane, by themselves or past all use.
        gaps: by half: (draws, cells, splits).
        target: the target's gaps, by half: (draws, splits).
        auc: on the report half: (draws, cells).
    """

    rates: Floats
    steps: Floats
    per_epoch: float
    diverged: frozenset[float]
    gaps: dict[int, Floats]
    target: dict[int, Floats]
    auc: dict[int, Floats]


class Guideline(NamedTuple):
    """A rule of tuning that knows no retrained model.

    Attributes:
        goal: "proxy", "auc", or None: nothing is measured.
        fixed: what is not tuned but as usual, of "rate" and "epochs".
        bounded: the kinds of text whose perplexity may not rise by more than `BOUND`.
        searched: rates are tried and paths ended as `tune` does; else all marks are looked at.
        budget: epochs that all paths of a search have together.
    """

    goal: str | None
    fixed: tuple[str, ...] = ()
    bounded: tuple[int, ...] = (GENERAL,)
    searched: bool = False
    budget: float = np.inf


BOUND = tuning.BOUND
GUIDELINES = {  # claims are made of these
    "tune rate and steps to the proxy": Guideline("proxy"),
    "tune steps alone to the proxy, usual rate": Guideline("proxy", ("rate",)),
    "usual rate, one epoch, nothing measured": Guideline(None, ("rate", "epochs")),
    "tune rate and steps to AUC 1/2": Guideline("auc"),
}
SEARCH = "as the command tune chooses"
RULES = {
    **GUIDELINES,
    # as SEARCH, but with every mark: between the two is what ending early loses
    "tune rate and steps to the proxy, retain bounded": Guideline("proxy", (), (RETAIN, GENERAL)),
    SEARCH: Guideline("proxy", (), (RETAIN, GENERAL), searched=True),
}


def cells(rates: Sequence[Drawn]) -> Cells:
    """Return every mark within the plane, over all rates of one replicate."""
    first = rates[0]
    per_epoch = first.total / first.run.recipe.epochs
    plane = per_epoch * first.run.profile.grid.epochs
    found = {"rates": [0.0], "steps": [0.0]}
    ended = set()
    gaps = {half: [first.gaps[half][:, :1]] for half in first.gaps}
    areas = {half: [first.auc[half][:, :1]] for half in first.auc}
    for drawn in rates:
        inside = np.flatnonzero((drawn.steps > 0) & (drawn.steps <= plane))
        found["rates"] += [drawn.run.recipe.learning_rate] * len(inside)
        found["steps"] += list(drawn.steps[inside])
        if drawn.ended and drawn.steps[-1] <= plane:
            ended.add(drawn.run.recipe.learning_rate)
        for half in gaps:
            gaps[half].append(drawn.gaps[half][:, inside])
            areas[half].append(drawn.auc[half][:, inside])
    return Cells(
        rates=np.array(found["rates"]),
        steps=np.array(found["steps"]),
        per_epoch=per_epoch,
        diverged=frozenset(ended),
        gaps={half: np.concatenate(parts, axis=1) for half, parts in gaps.items()},
        target={half: first.target(half) for half in gaps},
        auc={half: np.concatenate(parts, axis=1) for half, parts in areas.items()},
    )


def chosen(profile: Profile, guideline: Guideline, here: Cells, proxy: Floats) -> np.ndarray:
    """Return the cell that a rule chooses in each draw, on the selection half: (draws,).

    It keeps the perplexity of what it bounds within `BOUND` of the target's. The target itself may
    be chosen, where anything is measured.

    Args:
        profile: says which rate is usual.
        guideline: the rule.
        here: the cells.
        proxy: the gap of the proxy, the target's log perplexity on unseen text less the retrained
            model's on the forget set, selection half: (draws,).
    """
    fits = np.ones(len(here.rates), bool)
    if "rate" in guideline.fixed:
        fits &= (here.rates == profile.unlearning.learning_rate) | (here.rates == 0)
    if guideline.goal is None:
        one_epoch = np.abs(here.steps / here.per_epoch - 1) + np.where(
            fits & (here.rates > 0), 0, np.inf
        )
        return np.full(len(proxy), int(np.argmin(one_epoch)))
    gaps = here.gaps[selection.SELECTION]
    missed = np.abs(gaps[..., FORGET] - proxy[:, None])
    if guideline.goal == "auc":
        missed = np.abs(here.auc[selection.SELECTION] - 0.5)
    if guideline.searched:
        fits = searched(profile, here, proxy, guideline.budget).seen
    return tuning.chosen(missed, rises(here, guideline.bounded), BOUND, fits)


def rises(here: Cells, bounded: Sequence[int]) -> Floats:
    """Return by how much log perplexity is over the target's: (draws, cells, kinds of text).

    Args:
        here: the cells; of their selection half.
        bounded: the kinds of text.
    """
    gaps = here.gaps[selection.SELECTION][..., list(bounded)]
    return gaps - here.target[selection.SELECTION][:, None, list(bounded)]


def searched(profile: Profile, here: Cells, proxy: Floats, budget: float = np.inf) -> Searched:
    """Return what `tune` would look at, and what it would run.

    Args:
        profile: says the rates.
        here: the cells; of their selection half.
        proxy: as for `chosen`.
        budget: epochs that all paths have together.
    """
    forget = here.gaps[selection.SELECTION][..., FORGET]
    start = forget[:, :1]
    goal = proxy[:, None]
    way = np.where(goal > start, forget - start, np.nan) / (goal - start)
    stored = Paths(
        rates=here.rates,
        steps=here.steps,
        total=round(here.per_epoch * profile.grid.epochs),
        diverged=here.diverged,
        way=way,
        missed=np.abs(forget - goal),
        within=tuning.within(rises(here, RULES[SEARCH].bounded), BOUND),
    )
    return searches.search(profile.grid.learning_rates, stored, budget * here.per_epoch)


def regret(profile: Profile, guideline: Guideline, here: Cells, proxy: Floats) -> Floats:
    """Return how much farther from retraining a rule's choice is than the best choice: (draws,).

    The best choice knows the retrained model; both are made on the selection half, and compared on
    the report half, so a regret may be negative.
    """
    of_choice = distances.distance(here.gaps[selection.SELECTION])
    far = distances.distance(here.gaps[selection.REPORT])
    every = np.arange(len(far))
    best = np.argmin(of_choice, axis=1)
    return far[every, chosen(profile, guideline, here, proxy)] - far[every, best]


@cache
def regrets(profile: Profile) -> dict[str, dict[str, Floats]]:
    """Return the regret of each rule: by rule, then by method, (replicates, draws).

    They are on the first domain of the grid. By method "mean" it is the mean over methods.
    """
    domain = profile.grid.domains[0]
    found: dict[str, dict[str, Floats]] = {name: {} for name in RULES}
    for where, method in method_paths.grid_places(profile):
        if where != domain:
            continue
        by_replicate = [cells(rates) for rates in grid_of(profile, domain, method)]
        for name, guideline in RULES.items():
            lost = []
            for replicate, here in zip(profile.replicates, by_replicate, strict=True):
                proxy = draws.proxy_gap(profile, domain, replicate, selection.SELECTION)
                lost.append(regret(profile, guideline, here, proxy))
            found[name][method] = np.stack(lost)
    for by_method in found.values():
        by_method["mean"] = np.mean(list(by_method.values()), axis=0)
    return found


def regret_table(profile: Profile) -> pd.DataFrame:
    """Write and return table11_regret: what each rule costs each method, and their mean.

    Returns:
        guideline, method (or "mean"), and the columns of `replicated.table`.
    """
    n = smallest_n(profile, profile.grid.domains[:1])
    rows = []
    for name, by_method in regrets(profile).items():
        for method, values in by_method.items():
            rows.append(Row({"guideline": name, "method": method}, values, n))
    return table(profile, "table11_regret", rows)


# ----------------------------------------------------------------------- what the search costs


def search_table(profile: Profile) -> pd.DataFrame:
    """Write and return table11_search: what a search costs, on the first domain of the grid.

    A path counts as far as it goes, and each of its marks as one of the command: a forward pass
    over `tuning.READ` documents of each half of four sets.

    Returns:
        method (or "mean"), measure ("paths", "steps", "share of retraining": of its FLOPs), and the
        columns of `replicated.table`.
    """
    domain = profile.grid.domains[0]
    n = draws.families(profile, domain, selection.SELECTION)
    found: dict[str, dict[str, Floats]] = {}
    for where, method in method_paths.grid_places(profile):
        if where == domain:
            found[method] = costs_of_search(profile, domain, method)
    every = list(found.values())
    found["mean"] = {
        measure: np.mean([of_method[measure] for of_method in every], axis=0)
        for measure in every[0]
    }
    rows = []
    for method, by_measure in found.items():
        for measure, values in by_measure.items():
            rows.append(Row({"method": method, "measure": measure}, values, n, SIZE))
    return table(profile, "table11_search", rows)


def costs_of_search(profile: Profile, domain: str, method: str) -> dict[str, Floats]:
    """Return what the search of a method costs, each (replicates, draws)."""
    found: dict[str, list[Floats]] = {"paths": [], "steps": [], "share of retraining": []}
    by_replicate = grid_of(profile, domain, method)
    for replicate, rates in zip(profile.replicates, by_replicate, strict=True):
        proxy = draws.proxy_gap(profile, domain, replicate, selection.SELECTION)
        ran = searched(profile, cells(rates), proxy)
        found["paths"].append(ran.paths)
        found["steps"].append(ran.steps)
        found["share of retraining"].append(share_of_search(profile, domain, method, ran))
    return {measure: np.stack(values) for measure, values in found.items()}


def share_of_search(profile: Profile, domain: str, method: str, ran: Searched) -> Floats:
    """Return what the paths of a search and their marks cost, of retraining: (draws,)."""
    _, of_mark = tokens_read(profile, domain)
    marks = ran.marks * of_mark * FORWARD / costs.tokens_of_retraining(profile, domain)
    return share_of_steps(profile, domain, method, ran.steps) + marks


def share_of_steps(profile: Profile, domain: str, method: str, steps: Floats | float) -> Floats:
    """Return what steps of a method cost, as a share of retraining: as `steps`."""
    of_step, _ = tokens_read(profile, domain)
    passes = get_method(method).passes
    return steps * of_step * passes / costs.tokens_of_retraining(profile, domain)


def tokens_read(profile: Profile, domain: str) -> tuple[float, int]:
    """Return the forget tokens of an average step, and the tokens that `tune` reads at a mark."""
    forget = tokenized(profile, [(domain, "forget")]).ids
    of_step = profile.unlearning.batch * forget.map(len).mean()
    measured = tokenized(profile, measured_parts([domain]), profile.corpus.measured)
    read = measured.groupby("split").head(2 * tuning.READ)
    return of_step, int(read.ids.map(len).sum())
