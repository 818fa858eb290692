"""Figures of the commands, in the style of the notebooks'."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from unlearn_utils.cache import paths
from unlearn_utils.core.style import COLOURS, FIXED, STYLE

SPLITS = {"documents": COLOURS["red"], "unseen": COLOURS["blue"]}


@matplotlib.rc_context({**STYLE, "svg.hashsalt": "unlearn-utils"})
def save(figure: Figure, file: Path) -> None:
    """Write a figure as its file's ending says, whole or not at all; alike for the same data."""
    kind = file.suffix.removeprefix(".")
    file.parent.mkdir(parents=True, exist_ok=True)
    with paths.whole(file) as part:
        figure.savefig(part, format=kind, metadata=FIXED[kind])


@matplotlib.rc_context(STYLE)
def comparison(table: pd.DataFrame) -> Figure:
    """Return a figure of models: perplexity on each set, and the AUC where there is one.

    table: of `evaluate_command.measure_on_documents`.
    """
    perplexities = table[table.measure == "perplexity"]
    areas = table[table.measure.str.startswith("AUC")]
    columns = 1 if areas.empty else 2
    height = 1.2 + 0.45 * perplexities.model.nunique()
    figure = Figure(figsize=(1 + 3.5 * columns, height), layout="constrained")
    axes = figure.subplots(1, columns, sharey=True, squeeze=False)[0]
    intervals(perplexities, axes[0])
    axes[0].set(xscale="log", xlabel="perplexity")
    for axis in (axes[0].xaxis.set_major_formatter, axes[0].xaxis.set_minor_formatter):
        axis(LogFormatter(minor_thresholds=(1, 0.5)))
    figure.legend(loc="outside upper left", ncols=len(SPLITS), frameon=False)
    if not areas.empty:
        intervals(areas, axes[1])
        axes[1].axvline(0.5, color="black", linestyle="--", linewidth=0.8)
        axes[1].set(xlabel=f"{areas.measure.iloc[0]} (0.5: a guess)", xlim=(-0.02, 1.02))
    return figure


def intervals(rows: pd.DataFrame, ax: Axes) -> None:
    """Draw values with 95% intervals, a line a model, the sets of one beneath each other.

    What is not finite is left out.

    rows: model, split, value, low, high.
    """
    models = list(dict.fromkeys(rows.model))
    splits = list(dict.fromkeys(rows.split))
    for number, split in enumerate(splits):
        part = rows[rows.split == split].set_index("model").reindex(models)
        part = part[["value", "low", "high"]].replace(np.inf, np.nan)
        aside = 0.25 * (number - (len(splits) - 1) / 2)
        bars = [(part.value - part.low).clip(lower=0), (part.high - part.value).clip(lower=0)]
        places = np.arange(len(models)) + aside
        style = {"fmt": "o", "ms": 4, "capsize": 2, "lw": 1, "color": SPLITS.get(split, "black")}
        ax.errorbar(part.value, places, xerr=bars, label=split, **style)
    ax.set_yticks(range(len(models)), short_names(models))
    ax.set_ylim(len(models) - 0.5, -0.5)  # the first at the top


def short_names(models: list[str]) -> list[str]:
    """Return the last part of each model's name, if these differ; else the names."""
    last = [Path(name).name for name in models]
    return last if len(set(last)) == len(last) else models
