"""Does it hold elsewhere? Four findings at other exposures, model sizes and forget sets.

A setting has two replicates at most, so intervals are wide; there are no verdicts. A value of one
replicate has the interval of the documents alone, which leaves out the chance of training.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from unlearn_utils.core import distances, tables
from unlearn_utils.core.arrays import Floats
from unlearn_utils.core.distances import FORGET, UNSEEN
from unlearn_utils.core.methods import METHODS
from unlearn_utils.core.replicates import PLAIN, SHARE, SIZE, Estimate, Scale
from unlearn_utils.findings import (
    comparison,
    draws,
    plots,
    pool_tables,
    replicated,
    robustness,
)
from unlearn_utils.findings.draws import ALL, Drawn
from unlearn_utils.findings.replicated import Row
from unlearn_utils.profiles import STUDY, Profile
from unlearn_utils.study import elsewhere, method_paths, parts, pool, selection
from unlearn_utils.study.elsewhere import Setting

TABLE = "table16_elsewhere"
KEYS = ("axis", "setting", "target_domain", "measure", "method")
TARGET, RETRAINED = "target", "retrained model"  # in the place of a method
LEAST = "least of the methods"

MEMORISED = pool_tables.MEMORISED
BIAS = pool_tables.PROXY_BIAS  # F1
NOISE = pool_tables.NOISE_ON_UNSEEN
AUC = "AUC"
DETECTED = "AUC over retrained, at equal forgetting"  # F3
ROBUST, WINDOW = "robustness", "window"  # C2
ROBUST_OVER, WINDOW_OVER = "robustness over ascent's", "window over ascent's"
SCORE = "score at the nearest step"  # what methods are ordered by

LABELS = {
    elsewhere.EXPOSURES: "epochs of pre-training",
    elsewhere.SIZES: "parameters of the model",
    elsewhere.SHARES: "documents of the forget set",
}


# ---------------------------------------------------------------------------------------- the table


def elsewhere_table(study: Profile) -> pd.DataFrame:
    """Write and return table16_elsewhere; what is not stored yet is computed first.

    Returns:
        axis, setting (epochs, parameters or documents), target_domain, measure, method (or what
        stands in its place), and the columns of `replicated.table`.
    """
    for name in parts.ELSEWHERE:
        parts.fill(study, name)
    rows = []
    for setting in elsewhere.settings(study):
        rows += setting_rows(setting)
    return replicated.table(study, TABLE, rows)


def setting_rows(setting: Setting) -> list[Row]:
    """Return the rows of one setting."""
    rows = []
    for (measure, method), (values, n, scale) in measures(setting).items():
        named = (setting.axis, setting.value, setting.domain, measure, method)
        rows.append(Row(dict(zip(KEYS, named, strict=True)), values, n, scale))
    return rows


Measured = dict[tuple[str, str], tuple[Floats, int, Scale]]
# measure and method -> (replicates, draws), families, scale


def measures(setting: Setting, near: float = distances.NEAR) -> Measured:
    """Return everything that is measured in one setting.

    near: as in `distances.crossing`.
    """
    return {**_of_models(setting), **_of_claim(setting), **_of_methods(setting, near)}


def _of_models(setting: Setting) -> Measured:
    """Return what target and retrained model say before anything is unlearned, on all documents."""
    profile, domain = setting.profile, setting.domain
    levels: dict[str, list[Floats]] = {TARGET: [], RETRAINED: []}
    areas: dict[str, list[Floats]] = {TARGET: [], RETRAINED: []}
    for replicate in profile.replicates:
        by_model = {
            TARGET: pool.target_rows(profile, domain, replicate),
            RETRAINED: pool.truth_rows(profile, domain, replicate),
        }
        for model, rows in by_model.items():
            levels[model].append(draws.levels(profile, rows, domain, ALL))
            areas[model].append(draws.auc(profile, rows, domain, ALL))
    gaps = np.stack(levels[TARGET]) - np.stack(levels[RETRAINED])
    forget = draws.sample(profile, domain, "forget", ALL).families
    unseen = draws.sample(profile, domain, "approximate", ALL).families
    found = {
        (MEMORISED, TARGET): (gaps[..., FORGET], forget, PLAIN),
        (BIAS, TARGET): (gaps[..., UNSEEN], unseen, PLAIN),
    }
    for model, values in areas.items():
        found[AUC, model] = (np.stack(values), min(forget, unseen), SHARE)
    if len(profile.replicates) > 1:
        apart = np.stack(levels[RETRAINED])[..., UNSEEN].std(axis=0, ddof=1)
        found[NOISE, RETRAINED] = (apart[None], unseen, SIZE)
    return found


def _of_claim(setting: Setting) -> Measured:
    """Return robustness and window of the two methods of claim C2, and their differences."""
    profile, domain = setting.profile, setting.domain
    n = robustness.smallest_n(profile, [domain])
    found = {}
    for measure, over in ((ROBUST, ROBUST_OVER), (WINDOW, WINDOW_OVER)):
        by_method = {}
        for method in (method_paths.ASCENT, method_paths.CLAIMED):
            here = robustness.measured(profile, domain, method, robustness.MAIN_PLANE)
            by_method[method] = here[measure]
            found[measure, method] = (here[measure], n, SHARE)
        less = by_method[method_paths.CLAIMED] - by_method[method_paths.ASCENT]
        found[over, method_paths.CLAIMED] = (less, n, PLAIN)
    return found


def _of_methods(setting: Setting, near: float) -> Measured:
    """Return how near each method comes at the usual rate, and how well its members are told."""
    profile, domain = setting.profile, setting.domain
    n = robustness.smallest_n(profile, [domain])
    truth = []
    for replicate in profile.replicates:
        rows = pool.truth_rows(profile, domain, replicate)
        truth.append(draws.auc(profile, rows, domain, selection.REPORT))
    found = {}
    told = []
    for method in METHODS:
        usual = comparison.usual(profile, domain, method)
        paths = [first_steps(one, setting.steps) for one in usual]
        score = np.stack([robustness.score_at_nearest(drawn) for drawn in paths])
        found[SCORE, method] = (score, n, SHARE)
        areas = np.stack([comparison.at_level(drawn, 0.0, near)["AUC"] for drawn in paths])
        told.append(areas - np.stack(truth))
        found[DETECTED, method] = (told[-1], n, PLAIN)
    found[DETECTED, LEAST] = (comparison.least_known(np.stack(told)), n, PLAIN)
    return found


def first_steps(drawn: Drawn, steps: int) -> Drawn:
    """Return a path as if it had been planned for so many steps; its marks beyond are left out."""
    if drawn.total <= steps:
        return drawn
    inside = drawn.steps <= steps
    return drawn._replace(
        steps=drawn.steps[inside],
        gaps={half: gaps[:, inside] for half, gaps in drawn.gaps.items()},
        auc={half: areas[:, inside] for half, areas in drawn.auc.items()},
        extraction=drawn.extraction[:, inside],
        total=steps,
        ended=drawn.ended and bool(inside.all()),
    )


# --------------------------------------------------------------------------------- reading a table


def table_of(profile: Profile) -> pd.DataFrame:
    """Return the table of the committed study, and say so; with the profile `study` this run's.

    It is empty where no study is committed.
    """
    if profile.name == STUDY.name:
        print("measured in this run")
        return elsewhere_table(profile)
    try:
        found = plots.committed(TABLE)
    except FileNotFoundError:
        print(f"not available: the committed study has no {TABLE}; ./run_all.sh study makes it")
        return pd.DataFrame(columns=[*KEYS, *Estimate._fields])
    print("of the committed study, not measured in this run")
    return found


def of_measures(table: pd.DataFrame, *measures: str) -> pd.DataFrame:
    """Return the rows of some measures."""
    return table[table.measure.isin(measures)]


def to_read(
    table: pd.DataFrame, *measures: str, columns: str = "measure", digits: int = 3
) -> pd.DataFrame | None:
    """Return some measures laid out, a row a setting; None of an empty table.

    Args:
        table: of `elsewhere_table`.
        measures: of the table.
        columns: the column that names a column, "measure" or "method".
        digits: after the point.
    """
    if table.empty:
        return None
    part = of_measures(table, *measures)
    named = part.assign(setting=part.setting.map(short))
    return tables.wide(named, ["axis", "setting", "target_domain"], columns, digits)


def order_of_methods(table: pd.DataFrame) -> pd.DataFrame | None:
    """Return the place of each method by its score: 1 is the nearest to retraining.

    Places say nothing of how far apart methods are: the table's intervals do.

    Returns:
        a row a method, a column a setting: (axis, setting); None of an empty table.
    """
    if table.empty:
        return None
    scores = of_measures(table, SCORE)
    places = scores.groupby(["axis", "setting"])["value"].rank(ascending=False, method="min")
    named = scores.assign(place=places.astype(int), setting=scores.setting.map(short))
    wide = named.pivot(index="method", columns=["axis", "setting"], values="place")
    in_order = list(dict.fromkeys(zip(named.axis, named.setting, strict=True)))
    return wide.reindex(list(METHODS))[in_order]


# ------------------------------------------------------------------------------------- the figures


def figure(profile: Profile, table: pd.DataFrame, measure: str, name: str) -> None:
    """Draw a measure along each axis, a panel each, and save it; nothing of an empty table.

    Args:
        profile: whose figure it is.
        table: of `elsewhere_table`.
        measure: of the table.
        name: of the figure.
    """
    if table.empty:
        return
    part = of_measures(table, measure)
    drawn, axes = plots.panels(len(elsewhere.AXES), width=3.3, height=2.9, sharey=True)
    for ax, axis in zip(axes, elsewhere.AXES, strict=True):
        draw(part[part.axis == axis], ax)
        (domain,) = part[part.axis == axis].target_domain.unique()
        ax.set(xlabel=f"{LABELS[axis]} ({domain})", ylim=limits(part))
    axes[0].set_ylabel(measure)
    if part.method.nunique() > 1:
        handles = axes[0].get_legend_handles_labels()
        drawn.legend(*handles, ncols=4, loc="outside upper center", fontsize=7)
    plots.save(profile, drawn, name, part)


def draw(part: pd.DataFrame, ax: Axes) -> Axes:
    """Draw one measure along one axis: mean and 95% interval, each replicate as a small point.

    A value of one replicate is hollow: its interval is of the documents alone.

    part: of `elsewhere_table`, one measure on one axis.
    """
    groups = list(part.groupby("method", sort=False))
    for number, (method, rows) in enumerate(groups):
        colour, marker = plots.method_style(method)
        if method not in METHODS:
            marker = "o"  # which can be hollow
        aside = 1 + 0.03 * (number - (len(groups) - 1) / 2)  # so that intervals lie side by side
        places = rows.setting * aside
        ax.plot(places, rows["value"], color=colour, lw=0.9)
        ax.plot([], [], marker + "-", color=colour, lw=0.9, ms=4, label=plots.readable(method))
        for place, row in zip(places, rows.to_dict("records"), strict=True):
            face = colour if row["replicates"] > 1 else "white"
            ax.plot(place, row["value"], marker, color=colour, mfc=face, ms=5)
            ax.plot([place, place], [row["low"], row["high"]], color=colour, lw=0.8, alpha=0.6)
            each = replicated.values_of(row["by_replicate"])
            ax.plot([place] * len(each), each, ".", color=colour, ms=3)
    values = sorted(part.setting.unique())
    ax.axhline(0, color="black", ls=":", lw=0.8)
    ax.set_xscale("log")
    ax.set_xticks(values, [short(value) for value in values])
    ax.xaxis.set_minor_locator(NullLocator())
    return ax


def limits(part: pd.DataFrame) -> tuple[float, float]:
    """Return where an axis begins and ends that shows every replicate's value, and 0.

    Intervals of two replicates are much longer than values are apart, and may run out of it.
    """
    shown = [0.0]
    for text in part.by_replicate:
        shown += list(replicated.values_of(text))
    span = max(shown) - min(shown) or 1.0
    return min(shown) - span / 2, max(shown) + span / 2


def short(number: int) -> str:
    """Return a number as it stands on an axis: 5803776 is 5.8M."""
    if number >= 100_000:
        return f"{number / 1e6:.1f}M"
    return str(number)


def text(row: Mapping) -> str:
    """Return the value of a row with its interval and its sign."""
    return tables.text(row, 3, "+")
