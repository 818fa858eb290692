"""What is said of a search for rate and step: lines, paths.csv, paths.png, a part of the card."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, MaxNLocator

from unlearn_utils.app import figures
from unlearn_utils.core import methods, tuning
from unlearn_utils.core.style import STYLE
from unlearn_utils.engine import tuning as searching
from unlearn_utils.engine.tuning import AUC, Found, Goal, Setting

if TYPE_CHECKING:
    from unlearn_utils.app.tune_command import Search

TABLE, FIGURE = "paths.csv", "paths.png"
Chosen = tuple[Found, dict]  # a path and the mark


# ---------------------------------------------------------------------------------------- in words


def goal_in_words(goal: Goal) -> str:
    """Return the goal and where it is started from."""
    if goal.name == AUC:
        return f"goal: an AUC of forget against unseen documents of 0.5; before: {goal.start:.4g}"
    return (
        f"goal: perplexity {math.exp(goal.value):.4g} of the forget documents, that of the unseen "
        f"ones before unlearning; before: {math.exp(goal.start):.4g}"
    )


def mark_in_words(setting: Setting, mark: Mapping, half: str = "selection") -> str:
    """Return where a path is at a mark, by one half of the documents."""
    if setting.goal.name == AUC:
        where = f"AUC {mark[f'auc_{half}']:.4g}, goal 0.5"
    else:
        forget = math.exp(mark[f"forget_{half}"])
        where = f"forget {forget:.4g}, goal {math.exp(setting.goal.value):.4g}"
    return f"step {mark['step']} of {setting.steps}: {where}{harm(setting, mark, half)}"


def harm(setting: Setting, mark: Mapping, half: str) -> str:
    """Return by how much the perplexity of each bounded set has risen."""
    found = ""
    for split in searching.BOUNDED:
        name = f"{split}_{half}"
        if name in mark:
            found += f", {split} {math.expm1(mark[name] - setting.start[name]):+.1%}"
    return found


def path_in_words(setting: Setting, found: Found) -> str:
    """Return how a path went."""
    ended = f"all {setting.steps} steps"
    if found.ended:
        ended = f"{found.ended} after {found.step} of {setting.steps} steps"
    line = f"{found.method} at {found.rate:g}: {ended}"
    if found.marks:
        line += f", {found.marks[-1]['way']:.0%} of the way"
    return line


def verdict(setting: Setting, every: Sequence[Found], chosen: Chosen) -> str:
    """Return what was chosen, and what the other half says of it."""
    found, mark = chosen
    line = (
        f"chosen: {found.method} at {found.rate:g}, {mark_in_words(setting, mark)}; "
        f"{mark['way']:.0%} of the way"
    )
    if mark["way"] < 1 / 2:
        line += f", {advice(every, chosen)}"
    return f"{line}. On the other half: {mark_in_words(setting, mark, 'report')}"


def advice(every: Sequence[Found], chosen: Chosen) -> str:
    """Return what may bring a search farther that did not come half the way."""
    _, mark = chosen
    marks = [one for found in every for one in found.marks]
    if any(one["missed"] < mark["missed"] and not one["within_bound"] for one in marks):
        return (
            f"for what came nearer lost over {tuning.BOUND:.0%} of other text's perplexity: give "
            "more retain text, another method, or --learning-rates between those above"
        )
    return "so raise --epochs or the rate"


def why_none(setting: Setting, every: Sequence[Found]) -> str:
    """Return why nothing can be chosen."""
    near = searching.nearest(every)
    if near is None:
        tried = ", ".join(f"{found.rate:g}" for found in every)
        return f"every path diverged (learning rates {tried}): give smaller ones"
    found, mark = near
    if not any(mark["within_bound"] for found in every for mark in found.marks):
        reason = f"no rate respects the bound of {tuning.BOUND:.0%} on retain and general text"
    else:
        reason = "no step within the bound is nearer to the goal than the model before unlearning"
    return (
        f"{reason}; nearest to the goal came {found.method} at {found.rate:g}, "
        f"{mark_in_words(setting, mark)}"
    )


# ------------------------------------------------------------------------------------------- files


def table(setting: Setting, every: Sequence[Found], chosen: Chosen | None) -> pd.DataFrame:
    """Return paths.csv: a row a mark, the model before unlearning first; levels are in nats.

    Returns:
        method, learning_rate, step, way, missed, a level of each set and an AUC by half,
        within_bound, ended (how, in a path's last row), chosen.
    """
    rows = [{"method": "", "learning_rate": 0.0, **setting.start, "ended": "", "chosen": False}]
    for found in every:
        keys = {"method": found.method, "learning_rate": found.rate}
        for mark in found.marks:
            is_chosen = chosen is not None and mark is chosen[1]
            rows.append({**keys, **mark, "ended": "", "chosen": is_chosen})
        if found.marks:
            rows[-1]["ended"] = found.ended or "last step"
        else:
            rows.append({**keys, "step": found.step, "ended": found.ended, "chosen": False})
    return pd.DataFrame(rows)


@matplotlib.rc_context(STYLE)
def draw(setting: Setting, every: Sequence[Found], chosen: Chosen, file: Path) -> None:
    """Draw the goal's measure over steps of each path, and below what other text loses.

    Paths that never came to where a first mark would be due are left out.
    """
    figure = Figure(figsize=(9, 5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    column, of_level = "forget_selection", np.exp
    if setting.goal.name == AUC:
        column, of_level = "auc_selection", np.asarray
    colours = matplotlib.color_sequences["tab10"]
    moved = [one for one in every if one is chosen[0] or one.way > 1 / searching.MARKS]
    names = list(dict.fromkeys(found.method for found in moved))
    for number, found in enumerate(moved):
        marks = [setting.start, *found.marks]
        steps = [mark["step"] for mark in marks]
        style = {
            "color": colours[(names.index(found.method) if len(names) > 1 else number) % 10],
            "alpha": 1.0 if found is chosen[0] else 0.5,
            "marker": ".",
            "label": f"{methods.get_method(found.method).title}, {found.rate:g}",
        }
        above.plot(steps, of_level([mark[column] for mark in marks]), **style)
        rises = [max(searching.rises_of(mark, setting.start), default=0.0) for mark in marks]
        below.plot(steps, 100 * np.expm1(rises), **style)
    step = chosen[1]["step"]
    above.axhline(of_level(setting.goal.value), color="black", linestyle="--", linewidth=1)
    above.plot(step, of_level(chosen[1][column]), "*", color="black", markersize=12)
    below.axhline(100 * tuning.BOUND, color="black", linestyle="--", linewidth=1)
    above.set_ylabel("AUC" if setting.goal.name == AUC else "perplexity, forget")
    if setting.goal.name != AUC:
        above.set_yscale("log")
        above.yaxis.set_major_formatter(LogFormatter())
        above.yaxis.set_minor_formatter(LogFormatter())
    below.set_ylabel("rise of other text, %")
    below.set_xlabel("step (dashed: goal and bound; star: chosen)")
    below.set_ylim(-10, 30)  # a path ends soon after the bound
    below.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(*above.get_legend_handles_labels(), loc="outside right upper", fontsize="x-small")
    figures.save(figure, file)


# ----------------------------------------------------------------------------------------- the card


def summary(search: Search, every: Sequence[Found], chosen: Chosen) -> dict:
    """Return what run.json holds of the search, and the card says."""
    _, mark = chosen
    setting = search.setting
    steps = sum(len(one.history) for one in every)
    forget = search.inputs.chunks["forget"].ids
    of_batch = search.run.recipe.batch * sum(map(len, forget)) / len(forget)
    passes = 0.0
    for one in every:
        passes += len(one.history) * of_batch * methods.get_method(one.method).passes
        passes += one.tokens_read / 3
    return {
        "goal": goal_in_words(setting.goal),
        "goal_name": setting.goal.name,
        "goal_value": setting.goal.value,
        "start": setting.goal.start,
        "bound": tuning.BOUND,
        "bounded": [name for name in searching.BOUNDED if name in search.inputs.chunks],
        "chosen": mark,
        "verdict": verdict(setting, every, chosen),
        "paths": len(every),
        "steps_of_paths": steps,
        "training_passes_tokens": round(passes),
        "documents_read": documents_read(setting),
        "parameters": search.parameters,
    }


def documents_read(setting: Setting) -> dict[str, int]:
    """Return how many documents of each set are read on the way."""
    return {name: int(n) for name, n in setting.documents.groupby("split").family.nunique().items()}
