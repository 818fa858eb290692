"""A published model, trained on with and without a forget set: the same measures, another scale.

There are two pairs of a target and a retrained model. Their values stand side by side, each with
the interval of its documents, and there is no verdict: an interval of two replicates is thirteen
times as long as they are apart.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator
from scipy.stats import kendalltau

from unlearn_utils.cache import paths
from unlearn_utils.core import distances, tables
from unlearn_utils.core.arrays import Floats
from unlearn_utils.core.methods import METHODS
from unlearn_utils.core.replicates import PLAIN
from unlearn_utils.findings import (
    comparison,
    elsewhere,
    method_page,
    plots,
    replicated,
    robustness,
    tasks,
)
from unlearn_utils.findings.draws import Drawn
from unlearn_utils.findings.elsewhere import Measured
from unlearn_utils.findings.method_page import Look, Passage
from unlearn_utils.findings.replicated import Row
from unlearn_utils.profiles import PUBLISHED, Profile
from unlearn_utils.study import method_paths, parts, selection, single_run
from unlearn_utils.study.elsewhere import Setting, parameters

TABLE = "table17_published"
RATES = "table17_rates"
PASSAGES = "table17_passages"
TASKS = "table17_tasks"
KEYS = ("target_domain", "measure", "method", "pair")
KEYS_OF_RATES = ("target_domain", "method", "learning_rate", "measure", "pair")

EQUAL = 0.0  # the gap on the forget set at which damage is compared: as hard as for retraining
# Marks are farther apart than elsewhere, for a step moves more: neighbours that differ by up to so
# much, in nats, are interpolated. `left_out` says what that may cost.
NEAR = 0.4
OF_GENERAL, OF_DOMAIN = "damage to general text", comparison.DOMAIN_DAMAGE
OF_ALL = "damage, mean of three"
OFF = "damage is off by, with a mark less"
SCORE, DETECTED = elsewhere.SCORE, elsewhere.DETECTED
STEP = "step at equal forgetting"
BOTH = "1 and 2"  # in the place of a pair
HERE, THERE = "here", "in the study"  # places in the order of methods

SEED = 0  # of the bootstrap over questions
NUMBERS = ("value", "low", "high", "rerun_low", "rerun_high", "documents_sd")
EMPTY = dict.fromkeys(NUMBERS, "")  # what is no number in a file


# ---------------------------------------------------------------------------------------- the table


def published_table(profile: Profile) -> pd.DataFrame:
    """Write and return table17_published; what is not stored yet is computed first.

    Returns:
        target_domain, measure, method (or what stands in its place), pair, and the columns of
        `replicated.table`: intervals are over documents alone.
    """
    for name in profile.parts:
        parts.fill(profile, name)
    rows = []
    for domain in profile.domains:
        setting = _setting(profile, domain)
        found = {**elsewhere.measures(setting, NEAR), **_damage(profile, domain)}
        for (measure, method), (values, n, scale) in found.items():
            for pair, drawn in _of_each_pair(profile, values):
                named = (domain, measure, method, pair)
                rows.append(Row(dict(zip(KEYS, named, strict=True)), drawn, n, scale))
    return replicated.table(profile, TABLE, rows)


def _of_each_pair(profile: Profile, values: Floats) -> list[tuple[str, Floats]]:
    """Return the values of each pair alone, (1, draws), with its number; or of both together."""
    if len(values) != len(profile.replicates):
        return [(BOTH, values)]
    return [(str(number), values[[number - 1]]) for number in range(1, len(values) + 1)]


def _setting(profile: Profile, domain: str) -> Setting:
    """Return a profile as one setting of `study.elsewhere`: its own, on one domain."""
    usual = method_paths.usual_run(profile, profile.replicates[0], domain, method_paths.ASCENT)
    steps = single_run.steps_of_run(usual)
    return Setting("published", parameters(profile.shape), profile, domain, True, steps)


def _damage(profile: Profile, domain: str) -> Measured:
    """Return what each method has damaged where the forget set is as hard as for retraining.

    Not a number of a path that does not come so far, or that jumps past it.
    """
    n = robustness.smallest_n(profile, [domain])
    found = {}
    for method in METHODS:
        usual = comparison.usual(profile, domain, method)
        there = [comparison.at_level(drawn, EQUAL, NEAR) for drawn in usual]
        for measure in (OF_ALL, OF_DOMAIN, OF_GENERAL):
            values = [one[measure] for one in there]
            found[measure, method] = (np.stack(values), n, PLAIN)
    off = np.full((1, 1 + profile.resamples), left_out(profile, domain))
    found[OFF, "most of the methods"] = (off, n, PLAIN)
    return found


def left_out(profile: Profile, domain: str) -> float:
    """Return how far damage is off, at most, where a mark beside equal forgetting is left out.

    So much, or less, may values be off that are interpolated between two marks.
    """
    most = 0.0
    for method in METHODS:
        for drawn in comparison.usual(profile, domain, method):
            gaps = drawn.gaps[selection.REPORT][:1]
            whole = distances.crossing(gaps, EQUAL, NEAR)
            for mark in {int(whole.left[0]), int(whole.left[0]) + 1} - {0}:
                fewer = np.delete(gaps, mark, axis=1)
                other = distances.crossing(fewer, EQUAL, 2 * NEAR)
                off = np.abs(other.of(fewer) - whole.of(gaps)).max()
                most = max(most, float(np.nan_to_num(off)))
    return most


# ---------------------------------------------------------------------------------- learning rates


def rates_table(profile: Profile) -> pd.DataFrame:
    """Write and return table17_rates: the methods of claim C2 at each learning rate.

    Returns:
        target_domain, method, learning_rate, measure, pair, and the columns of `replicated.table`.
        Not a number is what a path has that does not come to equal forgetting, or jumps past it.
    """
    rows = []
    for domain in profile.grid.claimed_domains:
        n = robustness.smallest_n(profile, [domain])
        for method in (method_paths.ASCENT, method_paths.CLAIMED):
            by_rate = zip(*robustness.grid_of(profile, domain, method), strict=True)
            for rate, paths_at in zip(profile.grid.learning_rates, by_rate, strict=True):
                each = [_at_rate(drawn) for drawn in paths_at]
                for measure in each[0]:
                    values = np.stack([one[measure] for one in each])
                    for pair, drawn in _of_each_pair(profile, values):
                        named = (domain, method, rate, measure, pair)
                        rows.append(Row(dict(zip(KEYS_OF_RATES, named, strict=True)), drawn, n))
    return replicated.table(profile, RATES, rows)


def _at_rate(drawn: Drawn) -> dict[str, Floats]:
    """Return how near a path comes, when, and what it has damaged by then, each (draws,)."""
    there = comparison.at_level(drawn, EQUAL, NEAR)
    return {
        SCORE: robustness.score_at_nearest(drawn),
        STEP: method_page.step_at(drawn, EQUAL, NEAR),
        OF_DOMAIN: there[OF_DOMAIN],
        OF_GENERAL: there[OF_GENERAL],
    }


# ---------------------------------------------------------------------------------------- passages


def passages_table(profile: Profile) -> pd.DataFrame:
    """Write and return table17_passages: the loss of each token of one forget document.

    It is the document that the target has memorised most; see `method_page.passage`.

    Returns:
        method, model, document, position, token, value (nats; none for the first token, which is
        not predicted).
    """
    lines = []
    for method in METHODS:
        shown = method_page.passage(profile, method)
        for look in shown.looks:
            for position, (token, loss) in enumerate(zip(look.tokens, look.losses, strict=True)):
                named = (method, look.title, shown.document, position)
                lines.append((*named, token, loss))
    columns = ["method", "model", "document", "position", "token", "value"]
    found = pd.DataFrame(lines, columns=columns)
    plots.save_table(profile, PASSAGES, found)
    return found


def passage(table: pd.DataFrame, method: str) -> Passage | None:
    """Return the passage before and after a method, and after retraining; None of an empty table.

    table: of `passages_table`.
    """
    own = table[table.method == method]
    if own.empty:
        return None
    looks = []
    for title, rows in own.groupby("model", sort=False):
        looks.append(Look(str(title), list(rows.token), rows["value"].to_numpy(float)))
    return Passage(own.document.iloc[0], tuple(looks))


# ------------------------------------------------------------------------------------------- tasks


def tasks_table(profile: Profile) -> pd.DataFrame:
    """Write and return table17_tasks: what target and unlearned models answer of the tasks.

    Where the tasks' questions are not on this machine it says so, and is empty.

    Returns:
        as `tasks.downstream_tasks`.
    """
    try:
        found = tasks.downstream_tasks(profile, SEED)
    except ValueError as error:  # no questions: the rest of the notebook needs none
        print(f"not available: {error}")
        return pd.DataFrame(columns=["model", "target_domain", "task", "measure", "value"])
    plots.save_table(profile, TASKS, found)
    return found


# ------------------------------------------------------------------- of this run, or as committed


def table_of(profile: Profile) -> pd.DataFrame:
    """Return table17_published: of this run if it is the profile's, else as committed."""
    return own_or_committed(profile, TABLE, published_table)


def rates_of(profile: Profile) -> pd.DataFrame:
    """Return table17_rates: of this run if it is the profile's, else as committed."""
    return own_or_committed(profile, RATES, rates_table)


def passages_of(profile: Profile) -> pd.DataFrame:
    """Return table17_passages: of this run if it is the profile's, else as committed."""
    return own_or_committed(profile, PASSAGES, passages_table)


def tasks_of(profile: Profile) -> pd.DataFrame:
    """Return table17_tasks: of this run if it is the profile's, else as committed."""
    return own_or_committed(profile, TASKS, tasks_table)


def own_or_committed(
    profile: Profile, name: str, make: Callable[[Profile], pd.DataFrame]
) -> pd.DataFrame:
    """Return a table of the profile `published`, and say which; empty where none is committed."""
    if profile.name == PUBLISHED.name:
        print(f"{name}: measured in this run")
        return make(profile)
    file = paths.own_figures(paths.PROJECT, PUBLISHED.name) / f"{name}.csv"
    if not file.exists():
        print(f"{name}: not available, for none is committed; ./run_all.sh published makes it")
        return pd.DataFrame(columns=["method", "measure", "pair", "value"])
    print(f"{name}: committed, not measured in this run")
    # a token may be the text "NA", so only an empty cell is no number
    return pd.read_csv(file, keep_default_na=False, na_values=EMPTY, dtype={"pair": str})


# ------------------------------------------------------------------------------------------ reading


def side_by_side(table: pd.DataFrame, *measures: str, digits: int = 3) -> pd.DataFrame | None:
    """Return the values of each pair, with the intervals of the documents; None of an empty table.

    table: of `published_table`.
    """
    if table.empty:
        return None
    part = pd.concat([elsewhere.of_measures(table, measure) for measure in measures])
    return tables.wide(part, ["measure", "method"], "pair", digits)


def rates_side_by_side(table: pd.DataFrame) -> pd.DataFrame | None:
    """Return each measure at each rate, a column a pair; None of an empty table.

    table: of `rates_table`.
    """
    if table.empty:
        return None
    return tables.wide(table, ["measure", "method", "learning_rate"], "pair", digits=2)


def orders(table: pd.DataFrame) -> pd.DataFrame:
    """Return the place of each method by its damage at equal forgetting, here and in the study.

    The study's is that of the same domain, with the study's own model and training; a method has no
    place where it does not come to equal forgetting.

    Returns:
        a row a method; `HERE` (mean of the pairs), `THERE`, and each pair alone: 1 damages least.
    """
    study = elsewhere.of_measures(plots.committed("table10_equal"), OF_ALL)
    (domain,) = table.target_domain.unique()
    own = (study["forget gap"] == EQUAL) & (study.target_domain == domain)
    here = elsewhere.of_measures(table, OF_ALL).pivot(
        index="method", columns="pair", values="value"
    )
    values = {HERE: here.mean(axis=1), THERE: study[own].set_index("method")["value"]}
    for pair in here:
        values[f"pair {pair}"] = here[pair]
    places = pd.DataFrame(values).rank(method="min")
    return places.astype("Int64").reindex(list(METHODS))


def agreement(places: pd.DataFrame, one: str, other: str) -> float:
    """Return Kendall's tau of two orders: 1 is the same order, 0 none, -1 the reverse.

    Methods without a place in one of the two are left out.

    places: of `orders`, with the columns `one` and `other`.
    """
    both = places[[one, other]].dropna().astype(int)
    return float(kendalltau(both[one], both[other]).statistic)


# ------------------------------------------------------------------------------------- the figures


def methods_figure(profile: Profile, table: pd.DataFrame) -> None:
    """Draw what each method does, a panel a measure, a mark a pair; nothing of an empty table.

    table: of `published_table`.
    """
    if table.empty:
        return
    measures = (OF_ALL, OF_DOMAIN, OF_GENERAL, DETECTED)
    part = elsewhere.of_measures(table, *measures)
    part = part[part.method.isin(METHODS)]
    drawn, axes = plots.panels(len(measures), width=2.7, height=2.6, sharey=True)
    for ax, measure in zip(axes, measures, strict=True):
        draw_methods(part[part.measure == measure], ax).set_title(measure, fontsize=7)
    axes[0].invert_yaxis()  # the first method is the highest
    plots.save(profile, drawn, "fig17_methods", part)


def draw_methods(part: pd.DataFrame, ax: Axes) -> Axes:
    """Draw one measure, a line a method: the first pair is a full mark, the second a hollow one.

    part: of `published_table`, one measure of every method.
    """
    names = list(dict.fromkeys(part.method))
    for row in part.to_dict("records"):
        colour, marker = plots.method_style(row["method"])
        face, aside = _look(row["pair"], colour)
        place = names.index(row["method"]) + aside
        ax.plot([row["low"], row["high"]], [place, place], color=colour, lw=0.8, alpha=0.6)
        ax.plot(row["value"], place, marker=marker, color=colour, mfc=face, ms=5)
    ax.axvline(0, color="black", ls=":", lw=0.8)
    ax.set_yticks(range(len(names)), [plots.readable(name) for name in names])
    return ax


def _look(pair: str, colour: object) -> tuple[object, float]:
    """Return the filling of a pair's marks, and how far they are moved aside."""
    if str(pair) == "1":
        return colour, -0.15
    return "white", 0.15


def rates_figure(profile: Profile, table: pd.DataFrame) -> None:
    """Draw what each learning rate gives, a panel a measure; nothing of an empty table.

    table: of `rates_table`.
    """
    if table.empty:
        return
    measures = (SCORE, OF_DOMAIN, OF_GENERAL)
    part = elsewhere.of_measures(table, *measures)
    drawn, axes = plots.panels(len(measures), width=2.9, height=2.7)
    for ax, measure in zip(axes, measures, strict=True):
        draw_rates(part[part.measure == measure], ax).set_title(measure, fontsize=8)
    handles = axes[0].get_legend_handles_labels()
    drawn.legend(*handles, ncols=4, loc="outside upper center", fontsize=7)
    plots.save(profile, drawn, "fig17_rates", part)


def draw_rates(part: pd.DataFrame, ax: Axes) -> Axes:
    """Draw one measure over learning rates, a line a method and pair: the second is dashed.

    part: of `rates_table`, one measure.
    """
    for (method, pair), rows in part.groupby(["method", "pair"], sort=False):
        colour, marker = plots.method_style(method)
        face, _ = _look(pair, colour)
        style = "--" if face == "white" else "-"
        label = f"{plots.readable(method)}, pair {pair}"
        drawn = {"color": colour, "mfc": face, "ms": 4, "label": label}
        ax.plot(rows.learning_rate, rows["value"], marker=marker, ls=style, **drawn)
    values = sorted(part.learning_rate.unique())
    ax.axhline(0, color="black", ls=":", lw=0.8)
    ax.set(xscale="log", xlabel="learning rate", xlim=(values[0] / 1.3, values[-1] * 1.3))
    ax.set_xticks(values, [f"{value:g}" for value in values])
    ax.xaxis.set_minor_locator(NullLocator())
    return ax
