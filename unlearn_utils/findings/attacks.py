"""Which method survives which attack: what comes back, over what a retrained model learns.

Attacked are the models that the methods' own paths keep, at the step nearest to retraining, beside
the target and another retrained model. The retrained model goes through the same attacks. Values
are of the report half of the forget set, in each draw of its documents.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from unlearn_utils.cache.workers import side_by_side
from unlearn_utils.core import attacks, methods, tables
from unlearn_utils.core.arrays import Floats
from unlearn_utils.core.distances import SPLITS
from unlearn_utils.core.replicates import PLAIN, SHARE, Scale
from unlearn_utils.findings import draws, plots, replicated
from unlearn_utils.findings.comparison import AGAIN, NOTHING
from unlearn_utils.findings.replicated import Row
from unlearn_utils.profiles import Profile
from unlearn_utils.study import attacked, extra_measurements, method_paths, pool, selection

TABLE, CURVES = "table19_attacks", "fig19_relearning"
KEYS = ("target_domain", "method", "attack", "source", "setting", "measure")
UNATTACKED, RELEARNING, ROUNDING, PREFIX = "none", "relearning", "rounding", "prefix"
NO_SOURCE = "-"
GAP = "forget gap"  # log perplexity of the forget set over the retrained model's, both attacked
RECOVERY, AREA = "recovery", "area"
SHARE_BACK = "share that came back"  # of what was unlearned: of the gap that the target had more
DAMAGE = "rise of general text"
ROUGE, EXACT = "ROUGE-L", "exact prefix"
OVER = {ROUGE: "ROUGE-L over retrained", EXACT: "exact prefix over retrained"}
CONTINUED = {ROUGE: "rouge_l", EXACT: "exact_prefix"}
LORA, CONTROL = attacked.LORA, attacked.CONTROL  # in the place of a method
NAMES = {attacked.TARGET: NOTHING, attacked.AGAIN: AGAIN}  # of other models


class Looks(NamedTuple):
    """What the attacks on one model of one replicate came to, as rows of documents.

    Attributes:
        relearned, rounded, continued: as `study.attacked` returns them.
    """

    relearned: pd.DataFrame
    rounded: pd.DataFrame
    continued: pd.DataFrame


# ------------------------------------------------------------------------------ what is attacked


@cache
def looks(profile: Profile) -> dict[tuple[int, str], Looks]:
    """Return what attacks came to, by replicate and model; what is missing is attacked first."""
    pool.train_all(profile)
    replicates = attacked.replicates_of(profile)
    runs = []
    for replicate in replicates:
        runs += attacked.runs(profile, replicate).values()
    method_paths.make_all(runs)
    side_by_side(attacked.artifacts(profile), profile.workers, "attacks")
    found = {}
    for replicate in replicates:
        for name, model in attacked.models(profile, replicate).items():
            three = attacked.attacks_on(profile, model, replicate)
            rows = [extra_measurements.rows_of([artifact]) for artifact in three]
            found[replicate, NAMES.get(name, name)] = Looks(*rows)
    return found


# ---------------------------------------------------------------------------------------- measures


def curves_of(profile: Profile, rows: pd.DataFrame, by: str, split: str = "forget") -> Floats:
    """Return log perplexity at each mark, in each draw: (draws, marks).

    Args:
        profile: says the documents.
        rows: of one model.
        by: the column of the marks, which are taken from small to large.
        split: whose documents.
    """
    domain = "general" if split == SPLITS[-1] else attacked.domain_of(profile)
    sample = draws.sample(profile, domain, split, selection.REPORT)
    wide = rows[rows.split == split].pivot(index="id", columns=by, values=["nll", "tokens"])
    return sample.ratio(wide, "nll", "tokens")


def measures(
    profile: Profile, ours: Looks, control: Looks | None
) -> Iterator[tuple[tuple[str, str, float, str], Floats, Scale]]:
    """Yield (attack, source, setting, measure), what it came to, (draws,), and its scale.

    Without a control what is relative to it is not a number.

    Args:
        profile: says the documents.
        ours: of the attacked model.
        control: of the retrained model.
    """
    yield from _of_relearning(profile, ours, control)
    yield from _of_rounding(profile, ours, control)
    yield from _of_prefixes(profile, ours, control)


def _of_relearning(profile: Profile, ours: Looks, control: Looks | None) -> Iterator[tuple]:
    steps = sorted(ours.relearned.step.unique())
    for (source, rate), model, other in relearning(profile, ours, control):
        gap = np.fmin.reduce(model, axis=1) - np.fmin.reduce(other, axis=1)
        by_measure = {
            RECOVERY: attacks.recovery(model, other),
            AREA: attacks.area_between(steps, model, other),
            GAP: gap,
        }
        for measure, values in by_measure.items():
            yield (RELEARNING, source, rate, measure), values, PLAIN


def relearning(
    profile: Profile, ours: Looks, control: Looks | None
) -> Iterator[tuple[tuple[str, float], Floats, Floats]]:
    """Yield source and rate, and the curves of the model and of the control, (draws, marks)."""
    for keys, rows in ours.relearned.groupby(["source", "learning_rate"], sort=False):
        model = curves_of(profile, rows, "step")
        other = np.full_like(model, np.nan)
        if control is not None:
            same = control.relearned.groupby(["source", "learning_rate"]).get_group(keys)
            other = curves_of(profile, same, "step")
        yield keys, model, other


def _of_rounding(profile: Profile, ours: Looks, control: Looks | None) -> Iterator[tuple]:
    model = curves_of(profile, ours.rounded, "bits")
    general = curves_of(profile, ours.rounded, "bits", SPLITS[-1])
    other = np.full_like(model, np.nan)
    if control is not None:
        other = curves_of(profile, control.rounded, "bits")
    gaps = model - other
    every = sorted(ours.rounded.bits.unique())
    before = every.index(attacked.WHOLE)
    yield (UNATTACKED, NO_SOURCE, 0, GAP), gaps[:, before], PLAIN
    for place, bits in enumerate(every):
        if place != before:
            keys = (ROUNDING, NO_SOURCE, bits)
            yield (*keys, RECOVERY), gaps[:, before] - gaps[:, place], PLAIN
            yield (*keys, GAP), gaps[:, place], PLAIN
            yield (*keys, DAMAGE), general[:, place] - general[:, before], PLAIN


def _of_prefixes(profile: Profile, ours: Looks, control: Looks | None) -> Iterator[tuple]:
    for prefix, rows in ours.continued.groupby("prefix"):
        for measure, column in CONTINUED.items():
            model = _mean(profile, rows, column)
            other = np.full_like(model, np.nan)
            if control is not None:
                same = control.continued[control.continued.prefix == prefix]
                other = _mean(profile, same, column)
            keys = (PREFIX, NO_SOURCE, prefix)
            yield (*keys, measure), model, SHARE if measure == ROUGE else PLAIN
            yield (*keys, OVER[measure]), model - other, PLAIN


def _mean(profile: Profile, rows: pd.DataFrame, column: str) -> Floats:
    """Return the mean of the documents that are long enough, in each draw: (draws,)."""
    sample = draws.sample(profile, attacked.domain_of(profile), "forget", selection.REPORT)
    kept = sample.ids.isin(rows.id)
    shorter = sample._replace(ids=sample.ids[kept], weights=sample.weights[:, kept])
    return shorter.mean(rows, column)


# ---------------------------------------------------------------------------------------- the table


def attacks_table(profile: Profile) -> pd.DataFrame:
    """Write and return table19_attacks; what is not stored yet is attacked first.

    Returns:
        target_domain, method (or `NOTHING`, `AGAIN`), attack, source (of relearning), setting (a
        learning rate, bits, or tokens of a prefix; 0 of none), measure, and the columns of
        `replicated.table`.
    """
    domain = attacked.domain_of(profile)
    n = draws.sample(profile, domain, "forget", selection.REPORT).families
    values: dict[tuple, list[Floats]] = {}
    scales: dict[tuple, Scale] = {}
    for (replicate, method), ours, control in _with_control(profile):
        found = list(measures(profile, ours, control))
        if method not in (NOTHING, AGAIN):
            found += _shares(profile, found, ours, looks(profile)[replicate, NOTHING])
        for keys, drawn, scale in found:
            values.setdefault((domain, method, *keys), []).append(drawn)
            scales[domain, method, *keys] = scale
    rows = []
    for keys, drawn in values.items():
        named = dict(zip(KEYS, keys, strict=True))
        rows.append(Row(named, np.stack(drawn), n, scales[keys]))
    return replicated.table(profile, TABLE, rows)


def _shares(profile: Profile, found: list[tuple], ours: Looks, target: Looks) -> list[tuple]:
    """Return which share of what a method unlearned came back in relearning, as `measures` does.

    found: the measures of the method's model.
    """
    levels = [curves_of(profile, one.rounded, "bits")[:, -1] for one in (ours, target)]
    unlearned = levels[0] - levels[1]  # the last mark is `attacked.WHOLE`: nothing was rounded
    shares = []
    for (attack, source, setting, measure), drawn, _ in found:
        if (attack, measure) == (RELEARNING, RECOVERY):
            shares.append(((attack, source, setting, SHARE_BACK), drawn / unlearned, PLAIN))
    return shares


def _with_control(
    profile: Profile,
) -> Iterator[tuple[tuple[int, str], Looks, Looks | None]]:
    """Yield each model's replicate and method, its looks, and those of its control."""
    every = looks(profile)
    for (replicate, method), ours in every.items():
        if method != CONTROL:
            yield (replicate, method), ours, every.get((replicate, CONTROL))


# ------------------------------------------------------------------------------------------ reading


def to_read(
    table: pd.DataFrame, attack: str, *measures: str, digits: int = 2, columns: str = "setting"
) -> pd.DataFrame:
    """Return measures of one attack, a row a method, a column a setting.

    table: of `attacks_table`.
    """
    part = table[(table.attack == attack) & table.measure.isin(measures)]
    part = part.assign(setting=[f"{setting:g}" for setting in part.setting])
    return tables.wide(part, ["measure", "source", "method"], columns, digits)


def strongest(table: pd.DataFrame) -> pd.DataFrame:
    """Return the attack that gives most back of each method, a row a method.

    It is the largest value of many, so it is somewhat too large: an attack that is as good by
    chance is among them.

    table: of `attacks_table`.
    """
    part = table[(table.measure == RECOVERY) & table["value"].notna()]
    best = part.loc[part.groupby("method", sort=False)["value"].idxmax()]
    return best[["method", "attack", "source", "setting", "value", "low", "high", "n"]]


# ------------------------------------------------------------------------------------- the figures


def curves_table(profile: Profile) -> pd.DataFrame:
    """Return the curves of relearning over the control's level before it.

    Returns:
        method (the control is among them), source, learning_rate, step, and the columns of
        `replicated.table`.
    """
    every = looks(profile)
    n = draws.sample(profile, attacked.domain_of(profile), "forget", selection.REPORT).families
    values: dict[tuple, list[Floats]] = {}
    for (replicate, method), ours in every.items():
        steps = sorted(ours.relearned.step.unique())
        for keys, model, other in relearning(profile, ours, every.get((replicate, CONTROL))):
            for place, step in enumerate(steps):
                over = model[:, place] - other[:, 0]
                values.setdefault((method, *keys, step), []).append(over)
    rows = []
    for (method, source, rate, step), drawn in values.items():
        named = {"method": method, "source": source, "learning_rate": rate, "step": step}
        rows.append(Row(named, np.stack(drawn), n))
    return replicated.estimates(profile, CURVES, rows)


def curves_figure(profile: Profile) -> None:
    """Draw and save fig19_relearning: a row a source, a column a learning rate."""
    data = curves_table(profile)
    rates = sorted(data.learning_rate.unique())
    sources = list(dict.fromkeys(data.source))
    figure, axes = plots.panels(
        len(rates), width=2.9, height=2.3, rows=len(sources), sharey="row", sharex=True
    )
    coloured = told_apart(data)
    places = [(source, rate) for source in sources for rate in rates]
    for ax, (source, rate) in zip(axes, places, strict=True):
        part = data[(data.source == source) & (data.learning_rate == rate)]
        draw_curves(part, coloured, ax).set_title(f"from {source} text at {rate:g}", fontsize=8)
    for ax in axes[:: len(rates)]:
        ax.set_ylabel("forget gap (nats)")
    for ax in axes[-len(rates) :]:
        ax.set_xlabel("step of relearning")
    handles, labels = axes[0].get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    figure.legend(once.values(), once, ncols=4, loc="outside upper center", fontsize=7)
    plots.save(profile, figure, CURVES, data)


def told_apart(data: pd.DataFrame) -> list[str]:
    """Return the methods with a colour of their own, in the order of the table.

    They are the method of claim C2 and its LoRA, and four others: those that know the forget set
    least where an attack has made it easiest.

    data: of `curves_table`.
    """
    lowest = data.groupby(["method", "source", "learning_rate"])["value"].min()
    left = lowest.groupby("method").mean()
    others = left.index.intersection([*methods.every()]).drop(method_paths.CLAIMED, errors="ignore")
    chosen = {*left[others].nlargest(4).index, method_paths.CLAIMED, LORA}
    return [method for method in dict.fromkeys(data.method) if method in chosen]


def draw_curves(part: pd.DataFrame, coloured: Sequence[str], ax: Axes) -> Axes:
    """Draw a line a model; the control is thick and black, with its 95% interval.

    Args:
        part: of `curves_table`, one source and rate.
        coloured: the methods with a colour and a marker; the other methods are thin and grey.
        ax: what is drawn on.
    """
    for method, rows in part.groupby("method", sort=False):
        style = _style(method, coloured)
        if method == CONTROL:
            ax.fill_between(rows.step, rows.low, rows.high, color="black", alpha=0.15, lw=0)
        ax.plot(rows.step, rows["value"], **style)
    return ax


def _style(method: str, coloured: Sequence[str]) -> dict:
    """Return how the line of a model is drawn."""
    special = {  # models that are no method's are black
        CONTROL: {"color": "black", "lw": 2, "zorder": 3},
        NOTHING: {"color": "black", "ls": "--"},
        AGAIN: {"color": "black", "ls": ":"},
    }
    if method in special:
        return {"lw": 1, "label": method, **special[method]}
    if method not in coloured:
        return {"color": "silver", "lw": 0.7, "zorder": 1, "label": "other methods"}
    colour, marker = plots.method_style(method)
    style = {"color": colour, "marker": marker, "ms": 3, "lw": 1, "label": plots.readable(method)}
    if method == LORA:
        colour, marker = plots.method_style(method_paths.CLAIMED)
        style |= {"color": colour, "marker": marker, "ls": "--", "mfc": "white"}
    return style


def recovery_figure(profile: Profile, table: pd.DataFrame) -> None:
    """Draw and save fig19_recovery: what comes back of each method, a panel an attack.

    table: of `attacks_table`.
    """
    part = table[table.measure.isin([RECOVERY, OVER[ROUGE]])]
    every = [*dict.fromkeys(zip(part.attack, part.source, strict=True))]
    names = list(dict.fromkeys(part.method))
    height = 1.2 + 0.2 * len(names)
    figure, axes = plots.panels(len(every), width=2.1, height=height, sharey=True)
    for ax, (attack, source) in zip(axes, every, strict=True):
        draw_recovery(part[(part.attack == attack) & (part.source == source)], names, ax)
        title = f"{attack} from {source}" if source != NO_SOURCE else attack
        ax.set_title(title, fontsize=8)
        ax.set_xlabel("recovery (nats a token)" if attack != PREFIX else OVER[ROUGE])
    axes[0].set_yticks(range(len(names)), map(plots.readable, names), fontsize=7)
    axes[0].invert_yaxis()
    plots.save(profile, figure, "fig19_recovery", part)


def draw_recovery(part: pd.DataFrame, names: Sequence[str], ax: Axes) -> Axes:
    """Draw points with 95% intervals, a line a method, a colour a setting; the legend is below.

    Args:
        part: of `attacks_table`, one attack, source and measure.
        names: of the methods, from above.
        ax: what is drawn on.
    """
    settings = sorted(part.setting.unique())
    for number, (setting, colour) in enumerate(zip(settings, plots.COLOURS.values(), strict=False)):
        rows = part[part.setting == setting].set_index("method").reindex(names)
        aside = (number - (len(settings) - 1) / 2) * 0.6 / len(settings)
        places = np.arange(len(names)) + aside
        around = [rows["value"] - rows.low, rows.high - rows["value"]]
        style = {"fmt": "o", "ms": 2.5, "lw": 1, "color": colour, "label": f"{setting:g}"}
        ax.errorbar(rows["value"], places, xerr=around, **style)
    ax.axvline(0, color="black", ls=":", lw=0.8)
    ax.grid(axis="y", lw=0.3, alpha=0.5)
    ax.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, -0.12),
        ncols=3,
        fontsize=6,
        frameon=False,
        columnspacing=0.8,
        handletextpad=0.2,
    )
    return ax
