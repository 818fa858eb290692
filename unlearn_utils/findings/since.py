"""The methods since the paper beside those of the paper: tuned alike, and at equal forgetting.

All are on one domain, at the same learning rates (`study.since`). A method is compared in three
ways. *Tuned*: at the setting that the rule of the command `tune` chooses, which knows no retrained
model, after a search that has as many steps for every method. *At equal forgetting*: where its path
first reaches a level of the forget set, at the usual rate, and at the rate that damages least.
*All settings*: the mean score over the plane of rates and steps, and the best score in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from unlearn_utils.core import distances, methods, tables
from unlearn_utils.core.arrays import Floats
from unlearn_utils.core.methods import METHODS, SINCE
from unlearn_utils.core.replicates import PLAIN, SHARE, SIZE, Scale
from unlearn_utils.findings import comparison, draws, plots, plots_of_paths, replicated, robustness
from unlearn_utils.findings.comparison import DOMAIN_DAMAGE, NOTHING
from unlearn_utils.findings.draws import Drawn
from unlearn_utils.findings.replicated import Row
from unlearn_utils.findings.robustness import MAIN_PLANE
from unlearn_utils.profiles import Profile
from unlearn_utils.study import selection, since
from unlearn_utils.study.method_paths import CLAIMED

TABLE, OVER = "table18_methods", "table18_differences"
FIGURE, CURVES = "fig18_methods", "fig18_profile"
KEYS = ("target_domain", "method", "where", "measure")

# Passes over the forget set that all paths of one search have together: half of what the study's
# three rates have. Chosen before any path of a method since the paper was run at another rate than
# the usual one.
BUDGET = 3.0
RULE = robustness.RULES[robustness.SEARCH]._replace(budget=BUDGET)

# where a method is looked at
TUNED_STEPS, TUNED = "tuned steps, usual rate", "tuned rate and steps"
ALL_SETTINGS, AS_IT_IS = "all settings", "as it is"
AT_USUAL, AT_BEST = "usual rate", "best rate"  # of equal forgetting

# what is measured there
SCORE, GAP, OVER_RETRAINED = "score", comparison.GAP, comparison.OVER_RETRAINED
ALL_DAMAGE, GENERAL_DAMAGE = "damage, mean of three", "damage to general text"
DAMAGES = (ALL_DAMAGE, DOMAIN_DAMAGE, GENERAL_DAMAGE)
STEPS, SEARCH_STEPS = "steps", "steps of the search"
COST, SEARCH_COST = "share of retraining", "cost of the search"
ROBUSTNESS, BEST = "robustness", "best score"
SCALES = {  # by measure; of all others it is plain
    SCORE: SHARE,
    ROBUSTNESS: SHARE,
    BEST: SHARE,
    STEPS: SIZE,
    SEARCH_STEPS: SIZE,
    COST: SIZE,
    SEARCH_COST: SIZE,
}

Measured = dict[tuple[str, str], Floats]  # by where and measure, each (replicates, draws)


# ------------------------------------------------------------------------------------ what is said


def domain_of(profile: Profile) -> str:
    """Return the domain on which all methods are compared: the first of the grid."""
    return profile.grid.domains[0]


def names(profile: Profile) -> list[str]:
    """Return the methods that are compared: all, or none where the profile has no rates for it."""
    if not profile.grid.since:
        return []
    return list(methods.every())


def at(level: float, rate: str) -> str:
    """Return a level of equal forgetting in words, as it stands in the tables.

    rate: `AT_USUAL` or `AT_BEST`.
    """
    return f"{comparison.at(level)}, {rate}"


@cache
def measured(profile: Profile, method: str) -> Measured:
    """Return what is said of a method, each (replicates, draws).

    Paths that are missing are run first. At equal forgetting a replicate whose path does not come
    there, or jumps past it, has no value. Where there is one rate alone, what is said of several
    is left out: it would be another quantity of the same name.
    """
    usual = profile.unlearning.learning_rate
    of = since.compared(profile)
    of_usual = since.compared(profile, (usual,))
    each: dict[tuple[str, str], list[Floats]] = {}
    grid = robustness.grid_of(of, domain_of(profile), method)
    for replicate, rates in zip(profile.replicates, grid, strict=True):
        own = [drawn for drawn in rates if drawn.run.recipe.learning_rate == usual]
        found = as_tuned(of_usual, TUNED_STEPS, replicate, own)
        found |= at_equal(profile, AT_USUAL, own)
        if len(rates) > 1:
            found |= as_tuned(of, TUNED, replicate, rates)
            found |= at_equal(profile, AT_BEST, rates)
            told = robustness.scores(rates, MAIN_PLANE)
            found[ALL_SETTINGS, ROBUSTNESS] = distances.robustness(told)
            found[ALL_SETTINGS, BEST] = distances.best_score(told)
        for key, values in found.items():
            each.setdefault(key, []).append(values)
    return {key: np.stack(values) for key, values in each.items()}


def at_equal(profile: Profile, rate: str, rates: Sequence[Drawn]) -> dict[tuple[str, str], Floats]:
    """Return what a method has lost and still tells at each level, each (draws,).

    Args:
        profile: says the retrained models.
        rate: `AT_USUAL` or `AT_BEST`, for the names.
        rates: the paths of one replicate.
    """
    found = {}
    for level in comparison.LEVELS:
        there = comparison.beside_truth(profile, rates[0], comparison.at_best_rate(rates, level))
        for measure in (*DAMAGES, OVER_RETRAINED):
            found[at(level, rate), measure] = there[measure]
    return found


def as_tuned(
    of: Profile, where: str, replicate: int, rates: Sequence[Drawn]
) -> dict[tuple[str, str], Floats]:
    """Return what is said of a method at the setting that the rule chooses, each (draws,).

    Args:
        of: the profile, with the rates that the rule may choose from.
        where: `TUNED` or `TUNED_STEPS`, for the names.
        replicate: that is unlearned.
        rates: its paths at these rates.
    """
    domain = domain_of(of)
    here = robustness.cells(rates)
    proxy = draws.proxy_gap(of, domain, replicate, selection.SELECTION)
    chosen = robustness.chosen(of, RULE, here, proxy)
    every = np.arange(len(chosen))
    gaps = here.gaps[selection.REPORT][every, chosen]
    own = distances.distance(here.target[selection.REPORT])
    truth = comparison.retrained_auc(of, domain, replicate)[0]

    steps = here.steps[chosen]
    ran = robustness.searched(of, here, proxy, BUDGET)
    method = rates[0].run.method
    found = {
        SCORE: distances.score(distances.distance(gaps), own),
        GAP: gaps[:, distances.FORGET],
        ALL_DAMAGE: gaps[:, 1:].mean(1),
        OVER_RETRAINED: here.auc[selection.REPORT][every, chosen] - truth,
        STEPS: steps,
        SEARCH_STEPS: ran.steps,
        COST: robustness.share_of_steps(of, domain, method, steps),
        SEARCH_COST: robustness.share_of_search(of, domain, method, ran),
    }
    return {(where, measure): values for measure, values in found.items()}


def others(profile: Profile) -> dict[str, Measured]:
    """Return what is said of the models that are no method's, by model."""
    found: dict[str, Measured] = {}
    by_model = comparison.others_mean(profile, domain_of(profile))
    of_target = by_model[NOTHING][comparison.DISTANCE]
    for model, own in by_model.items():
        score = distances.score(own[comparison.DISTANCE], of_target)
        found[model] = {(AS_IT_IS, SCORE): score}
        for measure in (GAP, *DAMAGES, OVER_RETRAINED):
            found[model][AS_IT_IS, measure] = own[measure]
    return found


# -------------------------------------------------------------------------------------- the tables


def methods_table(profile: Profile) -> pd.DataFrame:
    """Write and return table18_methods; what is not stored yet is computed first.

    Returns:
        target_domain, method (or `NOTHING`, `AGAIN`), where (as above), measure, and the columns of
        `replicated.table`. At equal forgetting `replicates` counts those that come there.
    """
    found = {method: measured(profile, method) for method in names(profile)}
    if found:
        found |= others(profile)
    return replicated.table(profile, TABLE, _rows(profile, found))


def differences_table(profile: Profile) -> pd.DataFrame:
    """Write and return table18_differences: each method less ascent + descent in-distribution.

    Differences are of the same documents, and of the same replicate's target.

    Returns:
        as `methods_table`, of the methods alone.
    """
    found = {}
    for method in names(profile):
        if method == CLAIMED:
            continue
        theirs = measured(profile, CLAIMED)
        ours = measured(profile, method)
        found[method] = {key: ours[key] - theirs[key] for key in theirs}
    return replicated.table(profile, OVER, _rows(profile, found, {}))


def _rows(
    profile: Profile, found: Mapping[str, Measured], scales: Mapping[str, Scale] = SCALES
) -> list[Row]:
    """Return the rows of a table.

    scales: by measure; none of differences, which have a sign.
    """
    domain = domain_of(profile)
    rows = []
    for method, by_measure in found.items():
        n = robustness.smallest_n(profile, [domain])
        for (where, measure), values in by_measure.items():
            named = dict(zip(KEYS, (domain, method, where, measure), strict=True))
            rows.append(Row(named, values, n, scales.get(measure, PLAIN)))
    return rows


# ------------------------------------------------------------------------------------------ reading


def to_read(table: pd.DataFrame, where: str, *measures: str, digits: int = 2) -> pd.DataFrame:
    """Return measures of one place, a row a method, a column a measure, in the order of the table.

    table: of `methods_table` or `differences_table`.
    """
    part = table[(table["where"] == where) & table.measure.isin(measures)]
    return tables.wide(part, "method", "measure", digits)[list(measures)]


def at_levels(table: pd.DataFrame, rate: str, measure: str, digits: int = 2) -> pd.DataFrame:
    """Return one measure at equal forgetting, a row a method, a column a level.

    A cell is empty where no replicate comes to the level without a jump; where not all do, it says
    how many.

    Args:
        table: of `methods_table` or `differences_table`.
        rate: `AT_USUAL` or `AT_BEST`.
        measure: one of `DAMAGES`, or `OVER_RETRAINED`.
        digits: after the point.
    """
    wanted = [at(level, rate) for level in comparison.LEVELS]
    part = table[table["where"].isin(wanted) & (table.measure == measure)]
    most = table.replicates.max()
    cells = []
    for row in part.to_dict("records"):
        said = ""
        if row["replicates"]:
            said = tables.text(row, digits)
        if 0 < row["replicates"] < most:
            said += f", {row['replicates']} of {most}"
        cells.append(said)
    wide = part.assign(cell=cells).pivot(index="method", columns="where", values="cell")
    return wide.reindex(list(dict.fromkeys(part.method)))[wanted]


def better(table: pd.DataFrame, where: str, measure: str, sign: int) -> pd.DataFrame:
    """Return the methods whose difference has an interval on the better side of 0, the best first.

    Args:
        table: of `differences_table`.
        where: a place.
        measure: what is compared there.
        sign: 1 if more is better, -1 if less is.
    """
    part = table[(table["where"] == where) & (table.measure == measure)]
    nearest = part.low if sign > 0 else -part.high
    found = part[nearest > 0]
    return found.sort_values("value", ascending=sign < 0)


# ------------------------------------------------------------------------------------- the figures


def curves_table(profile: Profile) -> pd.DataFrame:
    """Write and return fig18_profile: the share of settings with a score of at least tau.

    Returns:
        target_domain, method, tau, and the columns of `replicated.table`.
    """
    of = since.compared(profile)
    domain = domain_of(profile)
    n = robustness.smallest_n(profile, [domain])
    rows = []
    for method in names(profile):
        shares = []
        for rates in robustness.grid_of(of, domain, method):
            told = robustness.scores(rates, MAIN_PLANE)
            shares.append(distances.profile_curve(told, robustness.TAUS))
        for place, tau in enumerate(robustness.TAUS):
            values = np.stack([share[:, place] for share in shares])
            keys = {"target_domain": domain, "method": method, "tau": tau}
            rows.append(Row(keys, values, n, SHARE))
    return replicated.table(profile, CURVES, rows)


def curves_figure(profile: Profile, data: pd.DataFrame) -> None:
    """Draw and save fig18_profile: the paper's methods on the left, those since on the right.

    The method that the paper advises is in both.

    data: of `curves_table`.
    """
    drawn, axes = plots.panels(2, width=4.2, height=3.2, sharey=True, sharex=True)
    groups = {"of the paper": list(METHODS), "since the paper": [CLAIMED, *SINCE]}
    for ax, (title, chosen) in zip(axes, groups.items(), strict=True):
        part = data[data.method.isin(chosen)]
        plots_of_paths.profile_curves(part, ax, [CLAIMED]).set_title(title, fontsize=9)
        ax.set_ylim(0, 1)
        ax.legend(fontsize=6)
    plots.save(profile, drawn, CURVES, data)


def methods_figure(profile: Profile, table: pd.DataFrame) -> None:
    """Draw and save fig18_methods: a panel a measure, a line a method, with 95% intervals.

    table: of `methods_table`, over several rates.
    """
    half_way = at(comparison.LEVELS[0], AT_BEST)
    panels = (
        (TUNED, SCORE),
        (ALL_SETTINGS, ROBUSTNESS),
        (half_way, ALL_DAMAGE),
        (half_way, OVER_RETRAINED),
        (TUNED, SEARCH_COST),
    )
    data = pd.concat([_panel(table, *panel) for panel in panels])
    drawn, axes = plots.panels(len(panels), width=2.1, height=4.2, sharey=True)
    for ax, (where, measure) in zip(axes, panels, strict=True):
        draw_measure(_panel(data, where, measure), list(methods.every()), ax)
        ax.set_title(f"{measure},\n{where}", fontsize=7)
    axes[0].invert_yaxis()  # the first method is the highest
    plots.save(profile, drawn, FIGURE, data)


def _panel(table: pd.DataFrame, where: str, measure: str) -> pd.DataFrame:
    return table[(table["where"] == where) & (table.measure == measure)]


def draw_measure(part: pd.DataFrame, methods_in_order: Sequence[str], ax: Axes) -> Axes:
    """Draw one measure, a line a method; a method without a value has an empty line.

    The dotted line is at the value of ascent + descent in-distribution.
    """
    for row in part.to_dict("records"):
        if row["method"] not in methods_in_order or np.isnan(row["value"]):
            continue
        colour, marker = plots.method_style(row["method"])
        place = methods_in_order.index(row["method"])
        ax.plot([row["low"], row["high"]], [place, place], color=colour, lw=1)
        ax.plot(row["value"], place, marker=marker, color=colour, ms=5)
        if row["method"] == CLAIMED:
            ax.axvline(row["value"], color="black", ls=":", lw=0.8)
    readable = [plots.readable(name) for name in methods_in_order]
    ax.set_yticks(range(len(readable)), readable)
    return ax
