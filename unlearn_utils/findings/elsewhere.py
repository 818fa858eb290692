"""Does it hold elsewhere? Four findings at other exposures, model sizes and forget sets.

A setting has two replicates at most, so intervals are wide; there are no verdicts. A value of one
replicate has the interval of the documents alone, which leaves out the chance of training.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter

from unlearn_utils.core.arrays import Floats
from unlearn_utils.core.distances import SPLITS
from unlearn_utils.core.methods import METHODS
from unlearn_utils.core.replicates import PLAIN, SHARE, Scale
from unlearn_utils.findings import comparison, draws, plots, replicated, robustness
from unlearn_utils.findings.draws import ALL, Drawn
from unlearn_utils.findings.replicated import Row
from unlearn_utils.profiles import Profile
from unlearn_utils.study import elsewhere, method_paths, pool, selection
from unlearn_utils.study.elsewhere import Setting

TABLE = "table16_elsewhere"
TARGET, RETRAINED = "target", "retrained model"  # in the place of a method
LEAST = "least of the methods"
FORGET, UNSEEN = SPLITS.index("forget"), SPLITS.index("approximate")

MEMORISED = "target less retrained, on forget"
BIAS = "target less retrained, on unseen"  # F1
NOISE = "SD between retrained models, on unseen"
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
    rows = []
    for setting in elsewhere.settings(study):
        rows += setting_rows(setting)
    return replicated.table(study, TABLE, rows)


def setting_rows(setting: Setting) -> list[Row]:
    """Return the rows of one setting."""
    rows = []
    for (measure, method), (values, n, scale) in measures(setting).items():
        keys = {
            "axis": setting.axis,
            "setting": setting.value,
            "target_domain": setting.domain,
            "measure": measure,
            "method": method,
        }
        rows.append(Row(keys, values, n, scale))
    return rows


Measured = dict[tuple[str, str], tuple[Floats, int, Scale]]
# measure and method -> (replicates, draws), families, scale


def measures(setting: Setting) -> Measured:
    """Return everything that is measured in one setting."""
    return {**_of_models(setting), **_of_claim(setting), **_of_methods(setting)}


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
        found[NOISE, RETRAINED] = (apart[None], unseen, Scale(least=0.0))
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


def _of_methods(setting: Setting) -> Measured:
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
        paths = [first_steps(one, setting.steps) for one in _usual(setting, method)]
        score = np.stack([robustness.score_at_nearest(drawn) for drawn in paths])
        found[SCORE, method] = (score, n, SHARE)
        areas = np.stack([comparison.at_level(drawn, 0.0)["AUC"] for drawn in paths])
        told.append(areas - np.stack(truth))
        found[DETECTED, method] = (told[-1], n, PLAIN)
    areas = np.stack(told)
    known = np.where(np.isfinite(areas), areas, np.inf).min(axis=0)
    least = np.where(np.isfinite(known), known, np.nan)
    found[DETECTED, LEAST] = (least, n, PLAIN)
    return found


def _usual(setting: Setting, method: str) -> list[Drawn]:
    """Return the path of a method at the usual rate, one for each replicate."""
    return comparison.usual(setting.profile, setting.domain, method)


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


def committed() -> pd.DataFrame | None:
    """Return the table of the committed study, or None if there is none yet."""
    try:
        return plots.committed(TABLE)
    except FileNotFoundError:
        return None


def of_measure(table: pd.DataFrame, *measures: str) -> pd.DataFrame:
    """Return the rows of some measures."""
    return table[table.measure.isin(measures)]


def order_of_methods(table: pd.DataFrame) -> pd.DataFrame:
    """Return the place of each method by its score: 1 is the nearest to retraining.

    Places say nothing of how far apart methods are: the table's intervals do.

    Returns:
        a row a method, a column a setting: (axis, setting).
    """
    scores = of_measure(table, SCORE)
    wide = scores.pivot(index="method", columns=["axis", "setting"], values="value")
    in_order = list(dict.fromkeys(zip(table.axis, table.setting, strict=True)))
    places = wide.rank(ascending=False, method="min").astype(int)
    return places.reindex(list(METHODS))[in_order]


def draw(table: pd.DataFrame, axis: str, measure: str, ax: Axes) -> Axes:
    """Draw a measure along an axis: mean and 95% interval, and each replicate as a small point.

    A value of one replicate is hollow: its interval is of the documents alone. Intervals that are
    much longer than the values are apart run out of the panel.

    Args:
        table: of `elsewhere_table`.
        axis: one of `elsewhere.AXES`.
        measure: a measure of the table.
        ax: what is drawn on.
    """
    part = of_measure(table[table.axis == axis], measure)
    groups = list(part.groupby("method", sort=False))
    drawn = [0.0]
    for number, (method, rows) in enumerate(groups):
        colour, marker = plots.method_style(method)
        aside = 1 + 0.04 * (number - (len(groups) - 1) / 2)  # so that intervals lie side by side
        places = rows.setting * aside
        ax.plot(places, rows["value"], color=colour, lw=0.9, label=plots.readable(method))
        for place, row in zip(places, rows.to_dict("records"), strict=True):
            face = colour if row["replicates"] > 1 else "white"
            ax.plot(place, row["value"], marker, color=colour, mfc=face, ms=5)
            ax.plot([place, place], [row["low"], row["high"]], color=colour, lw=0.8, alpha=0.6)
            each = replicated.values_of(row["by_replicate"])
            ax.plot([place] * len(each), each, ".", color=colour, ms=3)
            drawn += list(each)
    span = max(drawn) - min(drawn)
    values = sorted(part.setting.unique())
    ax.axhline(0, color="black", ls=":", lw=0.8)
    ax.set(xscale="log", xlabel=LABELS[axis], ylabel=measure)
    ax.set_ylim(min(drawn) - span / 2, max(drawn) + span / 2)
    ax.set_xticks(values, [short(value) for value in values])
    ax.xaxis.set_minor_formatter(NullFormatter())
    return ax


def short(number: int) -> str:
    """Return a number as it stands on an axis: 5803776 is 5.8M."""
    if number >= 100_000:
        return f"{number / 1e6:.1f}M"
    return str(number)
