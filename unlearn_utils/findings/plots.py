"""Figures: data and `ax` in, `ax` out; one colour and marker for each model and method of the whole artifact."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator, NullFormatter

from unlearn_utils.cache import paths

COLOURS = dict(zip(("blue", "orange", "green", "red", "purple", "brown", "pink", "grey"), sns.color_palette("colorblind", 8), strict=True))
SPLITS = {  # colour, line style and marker of what a model is measured on
    "forget": (COLOURS["red"], "-", "o"),
    "approximate": (COLOURS["blue"], "-", "s"),
    "retain": (COLOURS["green"], "--", "^"),
    "evaluation": (COLOURS["grey"], ":", "D"),
}
LABELS = {
    "forget": "forget",
    "approximate": "approximate (unseen, same domain)",
    "retain": "retain (same domain)",
    "evaluation": "general (unseen)",
}
METHODS = {  # colour and marker of each method; target and retrained models are black
    "gradient_ascent": (COLOURS["red"], "o"),
    "random_label": (COLOURS["orange"], "v"),
    "adversarial": (COLOURS["brown"], "^"),
    "ascent_descent_general": (COLOURS["blue"], "s"),
    "ascent_descent_in_distribution": (COLOURS["green"], "D"),
    "ascent_kl_general": (COLOURS["purple"], "P"),
    "ascent_kl_in_distribution": (COLOURS["pink"], "X"),
}
STYLE = {
    "figure.dpi": 100,
    "savefig.dpi": 200,
    "figure.facecolor": "white",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
FIXED = {"png": {"Software": None}, "pdf": {"CreationDate": None, "Producer": None, "Creator": None}}  # nothing that changes with time


def panels(columns: int, width: float = 3.1, height: float = 2.7, **kwargs) -> tuple[Figure, list[Axes]]:
    """A row of axes in the artifact's style."""
    plt.rcParams.update(STYLE)
    figure, axes = plt.subplots(1, columns, figsize=(width * columns, height), layout="constrained", squeeze=False, **kwargs)
    return figure, list(axes[0])


def save(figure: Figure, name: str, data: pd.DataFrame) -> None:
    """Writes `name`.png, .pdf and the plotted data as .csv, byte-identical for the same data."""
    for kind, metadata in FIXED.items():
        figure.savefig(paths.figures_folder() / f"{name}.{kind}", metadata=metadata)
    save_table(name, data)


def save_table(name: str, data: pd.DataFrame) -> None:
    """Writes a table as .csv, numbers with 6 significant digits."""
    data.to_csv(paths.figures_folder() / f"{name}.csv", index=False, float_format="%.6g", lineterminator="\n")


def trajectory(data: pd.DataFrame, retrained: pd.DataFrame, ax: Axes, kept: int | None = None) -> Axes:
    """Perplexity (log axis) against steps for each split, with 95% bands; dotted: the retrained model's level on the forget set.

    data: split, step, value, low, high; retrained: one row of model (its label), value, low, high. A triangle marks the step that was kept.
    """
    for split, (colour, line, marker) in SPLITS.items():
        part = data[data.split == split]
        ax.plot(part.step, part["value"], line, color=colour, marker=marker, ms=3, label=LABELS[split])
        ax.fill_between(part.step, part["low"], part["high"], color=colour, alpha=0.15, lw=0)
    level = retrained.iloc[0]
    ax.axhspan(level["low"], level["high"], color="black", alpha=0.1, lw=0)
    ax.axhline(level["value"], color="black", ls=(0, (1, 1)), label=f"{level['model']}, forget set")
    if kept is not None:
        ax.plot(kept, 0.02, "^", color="black", ms=6, transform=ax.get_xaxis_transform(), clip_on=False, label="step that was kept")
    ax.set(yscale="log", xlabel="optimizer steps", ylabel="perplexity")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return ax


def intervals(data: pd.DataFrame, x: str, hue: str, ax: Axes, colours: dict | None = None) -> Axes:
    """Points with 95% intervals: columns `x` (categories), `hue`, value, low, high; groups side by side."""
    hues, groups = list(data[hue].unique()), list(data[x].unique())
    palette = colours or dict(zip(hues, COLOURS.values(), strict=False))
    for i, name in enumerate(hues):
        part = data[data[hue] == name].set_index(x).reindex(groups)
        at = [g + (i - (len(hues) - 1) / 2) * 0.7 / max(len(hues), 1) for g in range(len(groups))]
        error = [part["value"] - part["low"], part["high"] - part["value"]]
        ax.errorbar(at, part["value"], _clipped(error), fmt="o", ms=4, capsize=2, lw=1, color=palette[name], label=name)
    ax.set_xticks(range(len(groups)), groups)
    return ax


def _clipped(error: list[pd.Series]) -> list[pd.Series]:
    """Lengths of error bars, never negative: a percentile interval need not contain the value."""
    return [side.clip(lower=0) for side in error]


def curves(data: pd.DataFrame, x: str, y: str, hue: str, ax: Axes) -> Axes:
    """One line per value of `hue`."""
    for colour, (name, part) in zip(COLOURS.values(), data.groupby(hue, sort=False), strict=False):
        ax.plot(part[x], part[y], color=colour, lw=1, label=name)
    ax.set(xlabel=x, ylabel=y)
    return ax


def tradeoff(data: pd.DataFrame, ax: Axes, truth: str = "retrained") -> Axes:
    """Distance to retraining on the forget set (x) against loss of general utility (y), both log ratios with 95% intervals.

    data, of one domain: method, model ("unlearned", or "unlearned (oracle)", drawn hollow), split ("forget" or "evaluation"), value, low,
    high. truth: a label, of the retrained model or what stands for it.
    """
    for (method, model), part in data.groupby(["method", "model"], sort=False):
        x, y = (part[part.split == split].iloc[0] for split in ("forget", "evaluation"))
        colour, marker = METHODS[method]
        oracle = "oracle" in model
        style = {"color": colour, "fmt": marker, "ms": 5, "mfc": "white" if oracle else colour, "lw": 0.8}
        ax.errorbar(x.value, y.value, xerr=_lengths(x), yerr=_lengths(y), label=None if oracle else method.replace("_", " "), **style)
    ax.plot(0, 0, "x", color="black", ms=8, label=truth)
    ax.axvline(0, color="black", ls=":", lw=0.8)
    ax.axhline(0, color="black", ls=":", lw=0.8)
    ax.set(xlabel=f"log forget perplexity / {truth}")
    return ax


def _lengths(row: pd.Series) -> list[list[float]]:
    """Error bars of one point."""
    return [[max(0.0, row["value"] - row["low"])], [max(0.0, row["high"] - row["value"])]]


def roc(data: pd.DataFrame, ax: Axes) -> Axes:
    """ROC curves on logarithmic axes, where the few false positives count; dotted: a guess. data: name, fpr, tpr; colour, marker."""
    for name, part in data.groupby("name", sort=False):
        colour, line = (METHODS[name][0], "-") if name in METHODS else ("black", "-" if name == "target" else "--")
        ax.step(part.fpr, part.tpr, line, where="post", color=colour, lw=1.2, label=name.replace("_", " "))
    floor = data[data.fpr > 0].fpr.min()
    ax.plot([floor, 1], [floor, 1], ":", color="grey", lw=0.8)
    ax.set(xscale="log", yscale="log", xlim=(floor, 1), ylim=(floor, 1.05), xlabel="false-positive rate")
    return ax


def official(data: pd.DataFrame, ax: Axes) -> Axes:
    """Perplexity (log axis) over the share of an epoch: solid the corrected, dashed the official code; colour by split.

    data: code ("corrected", "official"), split, epoch, value.
    """
    for (code, split), part in data.groupby(["code", "split"], sort=False):
        line, name = "-" if code == "corrected" else "--", "general" if split == "evaluation" else split
        ax.plot(part.epoch, part["value"], line, color=SPLITS[split][0], lw=1.3, label=f"{name}, {code}")
    ax.set(yscale="log", xlabel="share of the epoch", xlim=(0, 1))
    return ax


def ladder(data: pd.DataFrame, ax: Axes) -> Axes:
    """One rung a name, from top to bottom: value and 95% interval. data: name, value, low, high."""
    for place, (name, row) in enumerate(data.set_index("name").iterrows()):
        ax.errorbar(row["value"], place, xerr=_lengths(row), fmt="o", color=METHODS.get(name, ("black", ""))[0], ms=4, capsize=2, lw=1)
    ax.set_yticks(range(len(data)), data["name"].str.replace("_", " "))
    ax.set_ylim(len(data) - 0.5, -0.5)
    return ax


def cells(data: pd.DataFrame, ax: Axes) -> AxesImage:
    """Learning rate (rows) by epochs (columns), coloured by `value` from -1 to 1; circle: acceptable, cross: lost; grey: diverged.

    data: learning_rate, epoch, value, acceptable, lost. Returns the image, for a colour bar.
    """
    wide = data.pivot(index="learning_rate", columns="epoch", values="value").sort_index(ascending=False)
    colours = plt.get_cmap("RdBu_r").with_extremes(bad="lightgrey")
    image = ax.imshow(wide.where(np.isfinite(wide)), cmap=colours, vmin=-1, vmax=1, aspect="auto")
    for row in data[np.isfinite(data["value"]) & (data.acceptable | data.lost)].itertuples():
        place = (wide.columns.get_loc(row.epoch), wide.index.get_loc(row.learning_rate))
        ax.plot(*place, marker="o" if row.acceptable else "x", ms=5, mfc="none", color="black", mew=0.9)
    ax.set_xticks(range(len(wide.columns)), [f"{e:g}" for e in wide.columns], fontsize=7)
    ax.set_yticks(range(len(wide.index)), [f"{r:g}" for r in wide.index], fontsize=7)
    ax.set(xlabel="epochs")
    return image


def rates(data: pd.DataFrame, ax: Axes, truth: str = "retrained") -> Axes:
    """Perplexity of each split against the learning rate, both logarithmic; dotted: the retrained model on the forget set.

    data: learning_rate, split, value, level. What diverged is left out. truth: a label, of the retrained model or what stands for it.
    """
    for split, (colour, line, marker) in SPLITS.items():
        part = data[(data.split == split) & np.isfinite(data["value"])].sort_values("learning_rate")
        ax.plot(part.learning_rate, part["value"], line, color=colour, marker=marker, ms=3, label=LABELS[split])
    level = data[data.split == "forget"].level.iloc[0]
    ax.axhline(level, color="black", ls=(0, (1, 1)), label=f"{truth}, forget set")
    ax.set(xscale="log", yscale="log", xlabel="learning rate", ylim=(level / 8, level * 30))
    ax.set_xlim(data.learning_rate.min() / 1.3, data.learning_rate.max() * 1.3)
    ax.xaxis.set_minor_formatter(NullFormatter())
    return ax


def ratios(data: pd.DataFrame, ax: Axes) -> Axes:
    """FLOPs of retraining over unlearning against the ratio of tokens, both logarithmic; filled: counted, hollow: computed, with a bar.

    data: method, kind ("counted" or "computed"), token_ratio, value, low, high.
    """
    for name, part in data.groupby("method", sort=False):
        colour, marker = METHODS[name]
        here, there = (part[part.kind == kind] for kind in ("counted", "computed"))
        ax.plot(here.token_ratio, here["value"], marker, color=colour, ms=4, label=name.replace("_", " "))
        bars = [there["value"] - there.low, there.high - there["value"]]
        ax.errorbar(there.token_ratio, there["value"], bars, fmt=marker, color=colour, mfc="white", ms=4, lw=0.8)
    ends = [data.token_ratio.min(), data.token_ratio.max()]
    ax.plot(ends, ends, ":", color="grey", lw=0.8, label="one pass over the forget set")
    ax.axhline(1e5, color="black", ls="--", lw=0.8)
    ax.set(xscale="log", yscale="log", xlabel="training tokens / forget tokens", ylabel="FLOPs, retraining / unlearning")
    return ax
