"""Figures of whole paths: data and `ax` in, `ax` out, in the styles of `plots`."""

from __future__ import annotations

from collections.abc import Collection

import pandas as pd
from matplotlib.axes import Axes

from unlearn_utils.findings import plots


def profile_curves(data: pd.DataFrame, ax: Axes, banded: Collection[str]) -> Axes:
    """Draw the share of settings whose score is at least tau, a line a method.

    The area under a line is the method's robustness. Where no setting of any method has such a
    score, nothing is drawn.

    Args:
        data: method, tau, value, low, high.
        ax: what is drawn on.
        banded: methods that have a 95% band too, so few that bands can be told apart.
    """
    for method, part in data.groupby("method", sort=False):
        colour, marker = plots.method_style(method)
        style = {"color": colour, "marker": marker, "ms": 3, "markevery": 4, "lw": 1.2}
        ax.plot(part.tau, part["value"], label=plots.readable(method), **style)
        if method in banded:
            ax.fill_between(part.tau, part["low"], part["high"], color=colour, alpha=0.2, lw=0)
    reached = data[data["value"] > 0].tau
    ax.set(xlabel="score r: 0 is doing nothing, 1 is retraining", ylabel="share of settings")
    ax.set(xlim=(0, reached.max() if len(reached) else 1), ylim=(0, None))
    return ax


def plane(data: pd.DataFrame, points: pd.DataFrame, ax: Axes, truth: str = "retrained") -> Axes:
    """Draw damage to the domain (y) against the gap on the forget set (x); retraining is at 0, 0.

    A line is a method's path from the target on. It ends, or has a gap, where fewer than half of
    the replicates have a value. Its band is where one further replicate is expected, as far as that
    is known.

    Args:
        data: of one domain: method, forget gap, value, rerun_low, rerun_high, replicates.
        points: of one domain, a row a model: model ("do nothing" or another), forget gap, damage.
        ax: what is drawn on.
        truth: a label, of the retrained model or what stands for it.
    """
    columns = ["forget gap", "value", "rerun_low", "rerun_high"]
    for method, part in data.groupby("method", sort=False):
        colour, marker = plots.method_style(method)
        line = part[columns].where(2 * part.replicates >= data.replicates.max())
        style = {"color": colour, "marker": marker, "ms": 3, "markevery": 5, "lw": 1.2}
        ax.plot(line["forget gap"], line["value"], label=plots.readable(method), **style)
        band = {"color": colour, "alpha": 0.12, "lw": 0}
        ax.fill_between(line["forget gap"], line.rerun_low, line.rerun_high, **band)
    for model, part in points.groupby("model", sort=False):
        marker, face = ("o", "white") if model != "do nothing" else ("s", "black")
        style = {"color": "black", "mfc": face, "ls": "none", "ms": 4, "mew": 0.8, "zorder": 3}
        ax.plot(part["forget gap"], part["damage"], marker, label=model, **style)
    ax.plot(0, 0, "x", color="black", ms=7, zorder=3, label=truth)
    ax.axvline(0, color="black", ls=":", lw=0.8)
    ax.axhline(0, color="black", ls=":", lw=0.8)
    ax.set(xlabel="gap on the forget set (nats a token)")
    return ax
