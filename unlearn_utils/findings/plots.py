"""Figures: data and `ax` in, `ax` out; a split or a method has the same colour everywhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from unlearn_utils.cache import paths
from unlearn_utils.core import methods
from unlearn_utils.core.style import COLOURS, FIXED, STYLE
from unlearn_utils.profiles import STUDY, Profile

DOTTED = (0, (1, 1))  # a line style


# -------------------------------------------------------------------- colours, lines and markers

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
METHOD_STYLES = (  # colour and marker of the first methods, in the order of `core.methods.METHODS`
    (COLOURS["red"], "o"),
    (COLOURS["orange"], "v"),
    (COLOURS["brown"], "^"),
    (COLOURS["blue"], "s"),
    (COLOURS["green"], "D"),
    (COLOURS["purple"], "P"),
    (COLOURS["sky"], "X"),  # pink is too near to purple
)
SINCE_STYLES = (  # the same of `core.methods.SINCE`: other markers, and no colour and marker twice
    (COLOURS["red"], "<"),
    (COLOURS["orange"], ">"),
    (COLOURS["brown"], "*"),
    (COLOURS["blue"], "d"),
    (COLOURS["green"], "p"),
    (COLOURS["purple"], "h"),
    (COLOURS["sky"], "<"),
    (COLOURS["pink"], ">"),
    (COLOURS["grey"], "*"),
)
NO_METHOD = ("black", "x")  # of the target and of retrained models
STAR, ASTERISK = 1, 2  # matplotlib's numbers of these markers


def method_style(name: str) -> tuple[object, str | tuple[int, int, int]]:
    """Return the colour and the marker of a method, or those of a model that is no method's.

    They follow from the method's place in its table of `core.methods`. When the styles are used up,
    the same colours come again with stars, or asterisks, which have one point more in each round.
    """
    tables = (
        (methods.METHODS, METHOD_STYLES, STAR),
        (methods.SINCE, SINCE_STYLES, ASTERISK),
    )
    for table, styles, further in tables:
        if name in table:
            rounds, place = divmod(list(table).index(name), len(styles))
            colour, marker = styles[place]
            if rounds:
                marker = (rounds + 3, further, 0)  # matplotlib: points, kind, angle
            return colour, marker
    return NO_METHOD


def readable(name: str) -> str:
    """Return the name of a method or a model as it stands in a figure."""
    return name.replace("_", " ")


# ------------------------------------------------------------------------------ making and saving


def panels(
    columns: int, width: float = 3.1, height: float = 2.7, rows: int = 1, **kwargs: object
) -> tuple[Figure, list[Axes]]:
    """Return a figure and its axes, row after row, in the project's style.

    width, height: of one panel, in inches.
    """
    plt.rcParams.update(STYLE)
    size = (width * columns, height * rows)
    figure, axes = plt.subplots(
        rows, columns, figsize=size, layout="constrained", squeeze=False, **kwargs
    )
    return figure, list(axes.flat)


def save(profile: Profile, figure: Figure, name: str, data: pd.DataFrame) -> None:
    """Write `name`.png, .pdf and the plotted data as .csv, byte-identical for the same data.

    They go to the folder of the profile, so that a trial leaves the committed ones alone.
    """
    folder = paths.figures_folder(profile.name)
    for kind in ("png", "pdf"):
        figure.savefig(folder / f"{name}.{kind}", metadata=FIXED[kind])
    save_table(profile, name, data)


def save_table(profile: Profile, name: str, data: pd.DataFrame) -> None:
    """Write a table as `name`.csv to the folder of the profile, with 6 significant digits."""
    path = paths.figures_folder(profile.name) / f"{name}.csv"
    data.to_csv(path, index=False, float_format="%.6g", lineterminator="\n")


def study_file(name: str) -> Path:
    """Return where the committed study has a table of that name, or would have it."""
    return paths.own_figures(paths.PROJECT, STUDY.name) / f"{name}.csv"


def is_committed(name: str) -> bool:
    """Return whether the committed study has a table of that name."""
    return study_file(name).exists()


def committed_file(name: str) -> Path:
    """Return where the committed study has a table of that name.

    Raises:
        FileNotFoundError: it has none; the message says how it is made.
    """
    path = study_file(name)
    if not path.exists():
        raise FileNotFoundError(
            f"the committed study has no table {name} ({path}); ./run_all.sh study makes its tables"
        )
    return path


def committed(name: str) -> pd.DataFrame:
    """Return a table of the committed study, whatever `UNLEARN_FIGURES` says.

    Raises:
        FileNotFoundError: as `committed_file`.
    """
    return pd.read_csv(committed_file(name))


def of_study(profile: Profile, name: str, make: Callable[[Profile], pd.DataFrame]) -> pd.DataFrame:
    """Return a table of the study: of this run in its profile, else as committed; it says which.

    Args:
        profile: of the run.
        name: of the table.
        make: computes and writes it.

    Raises:
        FileNotFoundError: as `committed_file`.
    """
    if profile.name == STUDY.name:
        print(f"{name}: measured in this run")
        return make(profile)
    print(f"{name}: of the committed study, not measured in this run")
    return committed(name)


# ------------------------------------------------------------------------------- lines and points


def intervals(
    data: pd.DataFrame, x: str, hue: str, ax: Axes, colours: Mapping | None = None
) -> Axes:
    """Draw points with 95% intervals, groups side by side.

    Args:
        data: `x` (a category), `hue`, value, low, high.
        x: the column of the categories along the axis.
        hue: the column of the groups.
        ax: what is drawn on.
        colours: of each group; None takes the first of `COLOURS`.
    """
    hues = list(data[hue].unique())
    groups = list(data[x].unique())
    palette = colours or dict(zip(hues, COLOURS.values(), strict=False))
    for number, name in enumerate(hues):
        part = data[data[hue] == name].set_index(x).reindex(groups)
        aside = (number - (len(hues) - 1) / 2) * 0.7 / len(hues)
        places = [place + aside for place in range(len(groups))]
        below = (part["value"] - part["low"]).clip(lower=0)
        above = (part["high"] - part["value"]).clip(lower=0)
        style = {"fmt": "o", "ms": 4, "capsize": 2, "lw": 1, "color": palette[name]}
        ax.errorbar(places, part["value"], [below, above], label=name, **style)
    ax.set_xticks(range(len(groups)), groups)
    return ax


def curves(data: pd.DataFrame, x: str, y: str, hue: str, ax: Axes) -> Axes:
    """Draw one line for each value of `hue`."""
    groups = data.groupby(hue, sort=False)
    for colour, (name, part) in zip(COLOURS.values(), groups, strict=False):
        ax.plot(part[x], part[y], color=colour, lw=1, label=name)
    ax.set(xlabel=x, ylabel=y)
    return ax


def official(data: pd.DataFrame, ax: Axes) -> Axes:
    """Draw perplexity (log axis) over the share of an epoch, a colour for each split.

    Solid lines are of the corrected code, dashed ones of the released code.

    data: code ("corrected", "official"), split, epoch, value.
    """
    lines = {"corrected": "-", "official": "--"}
    for (code, split), part in data.groupby(["code", "split"], sort=False):
        name = "general" if split == "evaluation" else split
        style = {"color": SPLITS[split][0], "lw": 1.3, "label": f"{name}, {code}"}
        ax.plot(part.epoch, part["value"], lines[code], **style)
    ax.set(yscale="log", xlabel="share of the epoch", xlim=(0, 1))
    return ax


def ratios(data: pd.DataFrame, ax: Axes) -> Axes:
    """Draw FLOPs of retraining over unlearning against the ratio of tokens, both logarithmic.

    Filled points are counted, hollow ones computed, with a bar.

    data: method, kind ("counted" or "computed"), token_ratio, value, low, high.
    """
    for name, part in data.groupby("method", sort=False):
        colour, marker = method_style(name)
        here = part[part.kind == "counted"]
        there = part[part.kind == "computed"]
        style = {"color": colour, "marker": marker, "ls": "none", "ms": 4}
        ax.plot(here.token_ratio, here["value"], label=readable(name), **style)
        bars = [there["value"] - there.low, there.high - there["value"]]
        ax.errorbar(there.token_ratio, there["value"], bars, mfc="white", lw=0.8, **style)
    ends = [data.token_ratio.min(), data.token_ratio.max()]
    ax.plot(ends, ends, ":", color="grey", lw=0.8, label="one pass over the forget set")
    ax.axhline(1e5, color="black", ls="--", lw=0.8)
    ax.set(xscale="log", yscale="log")
    ax.set(xlabel="training tokens / forget tokens", ylabel="FLOPs, retraining / unlearning")
    return ax
