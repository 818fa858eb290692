"""What `attack` says and writes: a table, the curves of relearning, a figure, and a verdict."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from unlearn_utils.app import figures, terminal
from unlearn_utils.app.attack_command import BASE, LENGTH, MODEL, RETRAINED, Found, Inputs
from unlearn_utils.core import attacks, intervals, tables
from unlearn_utils.core.arrays import Floats
from unlearn_utils.core.intervals import Interval
from unlearn_utils.core.style import COLOURS, STYLE

TABLE, CURVES, FIGURE = "attacks.csv", "curves.csv", "relearning.png"
KEYS = ("attack", "source", "setting", "model", "split", "measure")
RESAMPLES, SEED = 1000, 0
UNATTACKED, RELEARNING, ROUNDING, PREFIX = "none", "relearning", "rounding", "prefix"
NO_SOURCE = "-"
UNSEEN = "unseen of base"  # what stands for a retrained model: documents that the base has not seen
PERPLEXITY, RECOVERY, AREA = "perplexity", "recovery", "area"
ROUGE, EXACT = "ROUGE-L", "exact prefix"
CONTINUED = {ROUGE: "rouge_l", EXACT: "exact_prefix"}
# what an interval of a recovery says
STATES = {
    1: "it gives back what was unlearned",
    0: "these documents cannot say whether it gives back more than that",
    -1: "it gives back no more than that",
}


# ---------------------------------------------------------------------------------------- the table


def table(inputs: Inputs, found: Found) -> pd.DataFrame:
    """Return every result.

    Returns:
        attack, source (of relearning), setting (a learning rate, bits, or tokens of a prefix; 0 of
        none), model, split, measure; value, low, high, n (documents), and the step that a value of
        relearning is of.
    """
    lines = []
    for name, rows in found.before.items():
        for split, drawn in _levels(rows.assign(step=0)).items():
            keys = (UNATTACKED, NO_SOURCE, 0, name, split, PERPLEXITY)
            lines.append(_line(keys, np.exp(drawn[:, 0]), rows, split))
    lines += [*_relearned(inputs, found), *_rounded(inputs, found), *_continued(found)]
    return pd.DataFrame(lines)


def _line(keys: tuple, drawn: Floats, rows: pd.DataFrame, *splits: str, step: object = "") -> dict:
    """Return one row of the table; n is of the smallest of the splits.

    drawn: (1 + resamples,), the first as measured.
    """
    n = min(rows[rows.split == split].family.nunique() for split in splits)
    found = intervals.interval(drawn[0], drawn[1:], 0.95, n)
    return {**dict(zip(KEYS, keys, strict=True)), **found._asdict(), "step": step}


def _weights(rows: pd.DataFrame) -> Floats:
    """Return how often each document of a split counts: the same for every model and attack."""
    return tables.draw_weights(rows, np.random.default_rng(SEED), RESAMPLES)


def _levels(rows: pd.DataFrame) -> dict[str, Floats]:
    """Return the levels of each split, (draws, marks)."""
    found = {}
    for split, part in rows.groupby("split", sort=False):
        found[split] = attacks.levels(part, _weights(part[part.step == part.step.min()]))
    return found


def reference(found: Found, model: Mapping, control: Mapping | None) -> Floats | None:
    """Return the curve that the model's is compared with, (draws, marks); None: there is none.

    It is that of the retrained model. Without one it begins at the level that unseen documents have
    under the base, and falls as they fall under the attacked model.

    Args:
        found: of the attacks.
        model: levels of the attacked model.
        control: those of the retrained model; None: there is none.
    """
    if control is not None:
        return control["forget"]
    if "unseen" not in model:
        return None
    base = _levels(found.before[BASE].assign(step=0))["unseen"]
    return base + model["unseen"] - model["unseen"][:, :1]


def _compared(inputs: Inputs) -> tuple[str, list[str]]:
    """Return the name of the reference, and the sets whose documents are behind it."""
    if RETRAINED in inputs.models:
        return RETRAINED, ["forget"]
    return UNSEEN, ["forget", "unseen"]


def _relearned(inputs: Inputs, found: Found) -> Iterator[dict]:
    """Yield the rows of relearning: perplexity where it is least, and what came back."""
    name, splits = _compared(inputs)
    for source, rate, who in found.relearned:
        if who != MODEL:
            continue
        rows = found.relearned[source, rate, MODEL]
        steps = sorted(rows.step.unique())
        model = _levels(rows)
        control = found.relearned.get((source, rate, RETRAINED))
        other = reference(found, model, None if control is None else _levels(control))
        both = {MODEL: model["forget"]}
        if other is not None:
            both[name] = other
        keys = (RELEARNING, source, rate)
        for who_else, curve in both.items():
            step = steps[int(np.nanargmin(curve[0]))]
            least = np.exp(np.fmin.reduce(curve, axis=1))
            of_it = ["forget"] if who_else == MODEL else splits
            yield _line((*keys, who_else, "forget", PERPLEXITY), least, rows, *of_it, step=step)
        if other is not None:
            values = {
                RECOVERY: attacks.recovery(model["forget"], other),
                AREA: attacks.area_between(steps, model["forget"], other),
            }
            for measure, drawn in values.items():
                where = (*keys, f"{MODEL} less {name}", "forget", measure)
                yield _line(where, drawn, rows, *splits)


def _rounded(inputs: Inputs, found: Found) -> Iterator[dict]:
    """Yield the rows of rounding: perplexity of every set, and what came back."""
    name, splits = _compared(inputs)
    for (bits, who), rows in found.rounded.items():
        of_model = _before_and_after(found, bits, who)
        for split, drawn in of_model.items():
            keys = (ROUNDING, NO_SOURCE, bits, who, split, PERPLEXITY)
            yield _line(keys, np.exp(drawn[:, 1]), rows, split)
        if who != MODEL:
            continue
        control = None
        if RETRAINED in inputs.models:
            control = _before_and_after(found, bits, RETRAINED)
        other = reference(found, of_model, control)
        if other is not None:
            ours = of_model["forget"]
            drawn = (ours[:, 0] - ours[:, 1]) - (other[:, 0] - other[:, 1])
            where = (ROUNDING, NO_SOURCE, bits, f"{MODEL} less {name}", "forget", RECOVERY)
            yield _line(where, drawn, rows, *splits)


def _before_and_after(found: Found, bits: int, who: str) -> dict[str, Floats]:
    """Return the levels of each set before and after rounding, (draws, 2)."""
    parts = [found.before[who].assign(step=0), found.rounded[bits, who].assign(step=1)]
    return _levels(pd.concat(parts, ignore_index=True))


def _continued(found: Found) -> Iterator[dict]:
    """Yield the rows of prefixes: how much of a document each model writes."""
    for (prefix, who), rows in found.continued.items():
        weights = _weights(rows)
        for measure, column in CONTINUED.items():
            drawn = weights @ rows[column].to_numpy(float) / weights.sum(1)
            yield _line((PREFIX, NO_SOURCE, prefix, who, "forget", measure), drawn, rows, "forget")


def to_read(table: pd.DataFrame) -> str:
    """Return the table as it is printed: models side by side."""
    shown = table.assign(setting=[f"{setting:g}" for setting in table.setting])
    index = ["attack", "source", "setting", "split", "measure"]
    return tables.wide(shown, index, "model", terminal.SIGNIFICANT, significant=True).to_string()


# ------------------------------------------------------------------------------------- the verdict


def verdict(inputs: Inputs, found: Found, table: pd.DataFrame) -> list[str]:
    """Return a line for each attack, of relearning each source, and what cannot be known."""
    lines = [_on_relearning(inputs, table, source) for source in inputs.sources]
    lines += [_on_rounding(inputs, found, table), _on_prefix(table)]
    return [line for line in (*lines, _unknown(inputs)) if line]


def _on_relearning(inputs: Inputs, table: pd.DataFrame, source: str) -> str:
    """Return what relearning from a source came to, at the rate that gives most back."""
    every = table[(table.attack == RELEARNING) & (table.source == source)]
    name, _ = _compared(inputs)
    of_recovery = every[every.measure == RECOVERY]
    if of_recovery["value"].notna().any():
        strongest = of_recovery.loc[of_recovery["value"].idxmax()]
    else:
        ours = every[every.model == MODEL]
        strongest = ours.loc[ours["value"].idxmin()]
    same = every[every.setting == strongest.setting]
    levels = same[same.measure == PERPLEXITY].set_index("model")
    some = f"from {source} text"
    if source == "forget":
        some = "from {} of {} forget documents".format(*inputs.relearned)
    ours = levels.loc[MODEL]
    line = (
        f"relearning {some} at {strongest.setting:g} brings the other forget documents back to "
        f"{ours['value']:.4g} from {_before(table, MODEL):.4g} in {_steps(ours.step)} (before "
        f"unlearning {_before(table, BASE):.4g})"
    )
    if name not in levels.index:
        return line
    other = levels.loc[name]
    if name == RETRAINED:
        start = _before(table, RETRAINED)
        line += f"; a retrained model comes to {other['value']:.4g} from {start:.4g}"
    else:
        start = _before(table, BASE, "unseen")
        line += (
            f"; unseen documents, which stand for a retrained model, come to {other['value']:.4g} "
            f"from {start:.4g}"
        )
    line = f"{line} in {_steps(other.step)}; {_recovered(strongest)}"
    if strongest.low <= 0 and _before(table, MODEL) < start:
        line += "; it knew them better before any attack"
    return line


def _steps(number: int) -> str:
    """Return a number of steps in words."""
    return f"{number:g} step" + "s" * bool(number != 1)


def _before(table: pd.DataFrame, model: str, split: str = "forget") -> float:
    """Return a perplexity before any attack."""
    rows = table[(table.attack == UNATTACKED) & (table.model == model) & (table.split == split)]
    return float(rows["value"].iloc[0])


def _recovered(row: pd.Series) -> str:
    """Return a recovery in words, with its interval and n."""
    found = Interval(row["value"], row.low, row.high, int(row.n))
    shown = f"recovery {tables.text(row)} nats a token, n = {found.n}"
    if not math.isfinite(found.value):
        return shown
    sign = int(found.low > 0) - int(found.high <= 0)
    return f"{shown}: {STATES[sign]}"


def _on_rounding(inputs: Inputs, found: Found, table: pd.DataFrame) -> str:
    """Return what the fewest bits came to."""
    every = table[(table.attack == ROUNDING) & (table.split == "forget")]
    fewest = every[every.setting == every.setting.min()]
    ours = fewest[(fewest.model == MODEL) & (fewest.measure == PERPLEXITY)].iloc[0]
    line = (
        f"rounding to {ours.setting:g} bits (linear layers, {found.share:.0%} of the parameters) "
        f"brings them to {ours['value']:.4g}"
    )
    of_recovery = fewest[fewest.measure == RECOVERY]
    if of_recovery.empty:
        return line
    return f"{line}; {_recovered(of_recovery.iloc[0])}"


def _on_prefix(table: pd.DataFrame) -> str:
    """Return how much the models write of what follows the longest prefix; nothing if none fits."""
    every = table[(table.attack == PREFIX) & (table.measure == ROUGE)]
    if every.empty:
        return ""
    longest = every[every.setting == every.setting.max()]
    each = [f"{row['model']} {tables.text(row)}" for _, row in longest.iterrows()]
    return (
        f"after {longest.setting.iloc[0]:g} tokens of a document the next {LENGTH} have ROUGE-L "
        f"{', '.join(each)}, n = {longest.n.min()}"
    )


def _unknown(inputs: Inputs) -> str:
    """Return what cannot be known without a control."""
    if RETRAINED in inputs.models:
        return ""
    if "unseen" in inputs.sources:
        return (
            "without --retrained it cannot be known how fast a model learns these documents that "
            "never saw them: unseen documents stand for it, which may be easier or harder"
        )
    return (
        "without --retrained or --unseen there is nothing to compare with: any model learns from "
        "text that it is trained on"
    )


# -------------------------------------------------------------------------------------- the curves


def curves(inputs: Inputs, found: Found) -> pd.DataFrame:
    """Return perplexity of the forget documents that relearning did not read, at every mark.

    Returns:
        source, learning_rate, model, step, value, low, high, n.
    """
    name, splits = _compared(inputs)
    lines = []
    for source, rate, who in found.relearned:
        if who != MODEL:
            continue
        rows = found.relearned[source, rate, MODEL]
        model = _levels(rows)
        control = found.relearned.get((source, rate, RETRAINED))
        other = reference(found, model, None if control is None else _levels(control))
        both = {MODEL: (model["forget"], ["forget"]), name: (other, splits)}
        for who_else, (drawn, of_it) in both.items():
            if drawn is None:
                continue
            for place, step in enumerate(sorted(rows.step.unique())):
                line = _line(("",) * len(KEYS), np.exp(drawn[:, place]), rows, *of_it)
                keys = {"source": source, "learning_rate": rate, "model": who_else, "step": step}
                lines.append({**keys, **{key: line[key] for key in Interval._fields}})
    return pd.DataFrame(lines)


@matplotlib.rc_context(STYLE)
def draw(curves: pd.DataFrame, file: Path) -> None:
    """Draw the curves, a panel a source, a colour a rate; the reference is dashed.

    Intervals of a level are wide, for documents differ, and would hide the changes: the table has
    those of the changes.
    """
    sources = list(dict.fromkeys(curves.source))
    figure = Figure(figsize=(1 + 3 * len(sources), 3), layout="constrained")
    axes = figure.subplots(1, len(sources), sharey=True, squeeze=False)[0]
    rates = sorted(curves.learning_rate.unique())
    colours = dict(zip(rates, COLOURS.values(), strict=False))
    for ax, source in zip(axes, sources, strict=True):
        part = curves[curves.source == source]
        for (rate, model), rows in part.groupby(["learning_rate", "model"], sort=False):
            style = {"color": colours[rate], "label": f"{model}, {rate:g}"}
            ax.plot(rows.step, rows["value"], "-o" if model == MODEL else "--", ms=3, **style)
        ax.set(title=f"relearning from {source}", xlabel="step", yscale="log")
    for axis in (axes[0].yaxis.set_major_formatter, axes[0].yaxis.set_minor_formatter):
        axis(LogFormatter(minor_thresholds=(1, 0.5)))
    axes[0].set_ylabel("perplexity of the other\nforget documents")
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside right upper", fontsize="x-small", frameon=False)
    figures.save(figure, file)
