"""Figures of whole paths: data and `ax` in, `ax` out, in the styles of `plots`."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes

from unlearn_utils.findings import plots


def profile_curves(data: pd.DataFrame, ax: Axes) -> Axes:
    """Draw the share of settings whose score is at least tau, a line and a 95% band a method.

    The area under a line is the method's robustness. Where no setting of any method has such a
    score, nothing is drawn.

    Args:
        data: method, tau, value, low, high.
        ax: what is drawn on.
    """
    for method, part in data.groupby("method", sort=False):
        colour, marker = plots.method_style(method)
        style = {"color": colour, "marker": marker, "ms": 3, "markevery": 4, "lw": 1.2}
        ax.plot(part.tau, part["value"], label=plots.readable(method), **style)
        ax.fill_between(part.tau, part["low"], part["high"], color=colour, alpha=0.12, lw=0)
    reached = data[data["value"] > 0].tau
    ax.set(xlabel="score r: 0 is doing nothing, 1 is retraining", ylabel="share of settings")
    ax.set(xlim=(0, reached.max() if len(reached) else 1), ylim=(0, None))
    return ax
