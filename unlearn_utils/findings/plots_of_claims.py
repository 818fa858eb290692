"""The figure of notebook 14: value and intervals of each claim against its threshold, by unit."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from unlearn_utils.findings import plots

STUDY, HERE = "committed study", "this run"
LOOKS = {  # of whose a mark is: how far below the middle of its line it stands, and its colour
    HERE: (-0.17, "black"),
    STUDY: (0.17, plots.COLOURS["blue"]),
}
SCALES = {  # of the axis of a unit; every other is linear
    "ratio of FLOPs": {"value": "log"},
    "nats a token": {"value": "symlog", "linthresh": 0.1},
}
SHADE = 0.08  # of where a claim holds
BESIDE = 2  # panels in a row, beside the largest
WIDTH, ROW, EDGE = 9, 0.28, 0.7  # inches: of the figure, of a claim, of an axis with its label


def draw(here: pd.DataFrame, study: pd.DataFrame | None) -> Figure:
    """Draw all claims, in a panel for each unit; the one with the most claims stands at the left.

    Args:
        here: the claims of this run, of `claims.measure_all`.
        study: those of the committed study, which stand below; None: there is no study.
    """
    plt.rcParams.update(plots.STYLE)
    data = here.assign(whose=HERE)
    if study is not None:
        data = pd.concat([data, study.assign(whose=STUDY)])
    counts = here["unit"].value_counts()
    rows = mosaic(list(counts.index))
    heights = [max(counts[unit] for unit in row[1:] or row) * ROW + EDGE for row in rows]
    height = max(sum(heights), counts.iloc[0] * ROW + EDGE)
    figure, axes = plt.subplot_mosaic(
        rows,
        figsize=(WIDTH, height),
        layout="constrained",
        gridspec_kw={"height_ratios": heights},
    )
    for unit, ax in axes.items():
        rungs(data[data["unit"] == unit], ax)
        ax.set_xlabel(unit)
    handles = axes[counts.index[0]].get_legend_handles_labels()
    figure.legend(*handles, ncols=5, loc="outside upper center", fontsize=7)
    return figure


def mosaic(units: Sequence[str]) -> list[list[str]]:
    """Return which panel stands where: the first at the left of rows of `BESIDE` others."""
    first, *others = units
    rows = [others[start : start + BESIDE] for start in range(0, len(others), BESIDE)]
    for row in rows:
        row += row[-1:] * (BESIDE - len(row))  # the last panel fills its row
    return [[first, *row] for row in rows] or [[first]]


def rungs(data: pd.DataFrame, ax: Axes) -> Axes:
    """Draw claims of one unit, from top to bottom.

    A bar is the 95% interval, a thin line where a further replicate of several is expected, the
    dotted line the threshold. Where the claim holds is grey.

    Args:
        data: id, unit, sense, threshold, whose (a key of `LOOKS`), and the columns of
            `replicated.table`.
        ax: what is drawn on.
    """
    ids = list(data["id"].unique())
    ax.set_xscale(**SCALES.get(data["unit"].iloc[0], {"value": "linear"}))
    for whose, part in data.groupby("whose", sort=False):
        aside, colour = LOOKS[whose]
        places = [ids.index(name) + aside for name in part["id"]]
        several = part["replicates"] > 1  # the rerun interval of one replicate is the study's
        further = part[["rerun_low", "rerun_high"]].where(several)
        ax.hlines(places, further["rerun_low"], further["rerun_high"], color=colour, lw=0.8)
        ax.hlines(places, part["low"], part["high"], color=colour, lw=3, alpha=0.5)
        ax.plot(part["value"], places, "o", color=colour, ms=3.5, label=whose)
    ax.plot([], [], "-", color="grey", lw=3, label="95% interval")
    ax.plot([], [], "-", color="grey", lw=0.8, label="a further replicate")
    ax.plot([], [], "s", color="black", ms=7, alpha=SHADE, mew=0, label="the claim holds")
    stated = data.drop_duplicates("id")
    _thresholds(stated["sense"], stated["threshold"], ax)
    ax.xaxis.set_major_formatter("{x:,g}")
    ax.set_yticks(range(len(ids)), ids)
    ax.set_ylim(len(ids) - 0.5, -0.5)
    return ax


def _thresholds(senses: Sequence[str], thresholds: Sequence[float], ax: Axes) -> None:
    """Draw the threshold of each line, and where its claim holds, which moves no limit."""
    for place, (sense, bound) in enumerate(zip(senses, thresholds, strict=True)):
        bounds = [-bound, bound] if sense == "inside" else [bound]
        ax.vlines(bounds, place - 0.4, place + 0.4, color="black", ls=":", lw=1)
    ax.margins(x=0.08)
    low, high = ax.get_xlim()
    for place, (sense, bound) in enumerate(zip(senses, thresholds, strict=True)):
        holds = {"above": (bound, high), "below": (low, bound), "inside": (-bound, bound)}
        start, stop = holds[sense]
        ax.fill_betweenx([place - 0.4, place + 0.4], start, stop, color="black", alpha=SHADE, lw=0)
    ax.set_xlim(low, high)
