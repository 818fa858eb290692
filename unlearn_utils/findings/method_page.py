"""One page a method: what notebooks 03 to 09 compute and draw, all seven by the same functions.

Numbers are of the method's paths at the usual rate, on the report half of the documents, and means
over replicates. Methods are compared in each draw of the documents, so differences are paired.
"""

from __future__ import annotations

import ast
import html
import inspect
import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from unlearn_utils.cache.workers import side_by_side
from unlearn_utils.core import distances, tables
from unlearn_utils.core.arrays import Floats
from unlearn_utils.core.distances import FORGET, GENERAL, RETAIN, UNSEEN
from unlearn_utils.core.methods import METHODS, get_method
from unlearn_utils.core.replicates import RATIO
from unlearn_utils.findings import comparison, plots, robustness
from unlearn_utils.findings.comparison import DOMAIN_DAMAGE, LEVELS, OVER_RETRAINED, REACHED
from unlearn_utils.findings.draws import Drawn
from unlearn_utils.findings.replicated import Row, estimates, table
from unlearn_utils.profiles import Profile
from unlearn_utils.study import costs, extra_measurements, method_paths, pool, selection

FIRST = 3  # the number of the first method's notebook
READ_AT = -0.25  # the gap on the forget set that is reported; even the slowest method comes so far
TEXTS = {"unseen text": UNSEEN, "retain text": RETAIN, "general text": GENERAL}


def page(method: str) -> str:
    """Return the two digits of a method's notebook, which its tables and figures carry.

    Raises:
        ValueError: there is no such method; the message lists the names.
    """
    return f"{FIRST + list(METHODS).index(get_method(method).name):02}"


def settings(profile: Profile, method: str) -> str:
    """Return what a method minimises, and the recipe of its path, for reading.

    Raises:
        ValueError: there is no such method; the message lists the names.
    """
    found = get_method(method)
    run = method_paths.usual_run(profile, profile.replicates[0], profile.domains[0], found.name)
    return f"{found.title}: minimises {found.minimises}\n{run.recipe}"


def code(*functions: Callable) -> str:
    """Return the source of some functions without their docstrings."""
    return "\n\n\n".join(_without_docstring(function) for function in functions)


def _without_docstring(function: Callable) -> str:
    """Return the source of one function without its docstring, comments and all."""
    source = textwrap.dedent(inspect.getsource(function))
    (tree,) = ast.parse(source).body
    lines = source.rstrip().splitlines()
    if ast.get_docstring(tree) is None:
        return "\n".join(lines)
    words = tree.body[0]
    return "\n".join(lines[: words.lineno - 1] + lines[words.end_lineno :])


# ------------------------------------------------------------------------------------- its own path


def steps_shown(total: int) -> list[int]:
    """Return the steps of the figure: 0, 1, each about a quarter more than the one before, all.

    total: steps of the whole run.
    """
    found = [0]
    step = 1.0
    while step < 0.9 * total:
        found.append(round(step))
        step *= 1.25
    return sorted({*found, total})


def path_data(profile: Profile, method: str) -> pd.DataFrame:
    """Return a method's gaps over its steps, on every domain and the four kinds of text.

    Returns:
        target_domain, step, split, and the columns of `replicated.table`.
    """
    rows = []
    for domain in profile.domains:
        total = comparison.usual(profile, domain, method)[0].total
        rows += comparison.path_rows(profile, domain, method, steps_shown(total))
    return estimates(profile, f"fig{page(method)}_path", rows)


def path_figure(profile: Profile, method: str) -> None:
    """Draw and save figNN_path, one panel a domain."""
    data = path_data(profile, method)
    figure, axes = plots.panels(len(profile.domains), sharey=True)
    for ax, domain in zip(axes, profile.domains, strict=True):
        here = data[data.target_domain == domain]
        draw_path(here, len(profile.replicates), profile.truth, ax).set(title=domain)
    axes[0].set_ylabel(f"gap: log perplexity\nover {profile.truth} (nats)")
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, ncols=3, loc="outside upper center", fontsize=7)
    plots.save(profile, figure, f"fig{page(method)}_path", data)


def draw_path(data: pd.DataFrame, replicates: int, truth: str, ax: Axes) -> Axes:
    """Draw the gap of each kind of text over optimizer steps, with 95% bands.

    A line ends where the path of any replicate ends, for a mean over the others is of fewer models.

    Args:
        data: of one domain: step, split, value, low, high, replicates.
        replicates: how many there are.
        truth: a label, of the retrained model or what stands for it.
        ax: what is drawn on.
    """
    whole = data[data.replicates == replicates]
    for split, (colour, line, marker) in plots.SPLITS.items():
        part = whole[whole.split == split]
        style = {"color": colour, "marker": marker, "ms": 3, "label": plots.LABELS[split]}
        ax.plot(part.step, part["value"], line, **style)
        ax.fill_between(part.step, part["low"], part["high"], color=colour, alpha=0.15, lw=0)
    ax.axhline(0, color="black", ls=plots.DOTTED, label=truth)
    ax.set_xscale("symlog", linthresh=1, linscale=0.5)
    last = int(data.step.max())
    ticks = [0, *(2**power for power in range(last.bit_length()))]
    ax.set_xticks(ticks, ticks)
    ax.set_xticks([], minor=True)
    ax.set(xlabel="optimizer steps", xlim=(-0.2, last * 1.1))
    return ax


# -------------------------------------------------------------------------------------- one passage

SHOWN = 72  # tokens of a passage
HARD = 4.0  # nats from which a token is marked without colours too; probability below 1 in 55
BOUNDS = (0.5, 1.0, 2.0, 4.0, 6.0)  # in nats, between one colour and the next
SHADES = ("#ffffff", "#fef0d9", "#fdd49e", "#fdbb84", "#fc8d59", "#e34a33")  # light: easy


class Look(NamedTuple):
    """A passage as one model reads it.

    Attributes:
        title: which model.
        tokens: their texts, as far as they are shown.
        losses: of each token, in nats; not a number where it is not predicted.
    """

    title: str
    tokens: list[str]
    losses: Floats

    @property
    def mean(self) -> float:
        """The mean loss of what is shown, in nats a token."""
        return float(np.nanmean(self.losses))

    @property
    def in_words(self) -> str:
        """How hard the passage is for the model."""
        known = self.losses[np.isfinite(self.losses)]
        hard = int((known >= HARD).sum())
        return (
            f"{self.title}: mean {self.mean:.2f} nats a token, "
            f"{hard} of {len(known)} tokens at {HARD:g} or more"
        )


@dataclass(frozen=True, repr=False)
class Passage:
    """One passage as several models read it; a notebook shows it coloured, a terminal as text.

    Attributes:
        document: its id.
        looks: before, after, and where there is one by the retrained model.
    """

    document: str
    looks: tuple[Look, ...]

    @property
    def in_words(self) -> str:
        """How far unlearning has taken this passage."""
        if len(self.looks) < 3:
            return "There is no retrained model to compare with."
        before, after, truth = (look.mean for look in self.looks)
        share = (after - before) / (truth - before)
        return (
            "Of the way from the target's mean loss on this passage to the retrained model's, "
            f"unlearning has gone {share:.0%}."
        )

    def _repr_html_(self) -> str:
        """Return the passage with each token coloured by its loss.

        The hardest are bold as well, since some viewers (GitHub's) take colours away.
        """
        edges = [0.0, *BOUNDS]
        names = [f"{low:g} to {high:g}" for low, high in pairwise(edges)]
        names.append(f"{BOUNDS[-1]:g} or more")
        middles = [*((low + high) / 2 for low, high in pairwise(edges)), BOUNDS[-1]]
        legend = [_coloured(name, loss) for name, loss in zip(names, middles, strict=True)]
        parts = [
            f"<p>Document {html.escape(self.document)}. Loss of a token, in nats: "
            f"{' '.join(legend)}. Bold: {HARD:g} nats or more.</p>"
        ]
        for look in self.looks:
            spans = [_coloured(*one) for one in zip(look.tokens, look.losses, strict=True)]
            parts.append(f"<p>{html.escape(look.in_words)}</p>")
            parts.append(f'<pre style="white-space: pre-wrap">{"".join(spans)}</pre>')
        parts.append(f"<p>{html.escape(self.in_words)}</p>")
        return "\n".join(parts)

    def __repr__(self) -> str:
        """Return the passage as text, with the hardest tokens in brackets."""
        parts = [f"Document {self.document}; in brackets: {HARD:g} nats or more"]
        for look in self.looks:
            words = ""
            for token, loss in zip(look.tokens, look.losses, strict=True):
                words += f"⟦{token}⟧" if loss >= HARD else token
            parts += ["", look.in_words, words.replace("⟧⟦", "")]
        return "\n".join([*parts, "", self.in_words])


def _coloured(token: str, loss: float) -> str:
    """Return a token as HTML, on the colour of its loss; one without a loss has no colour."""
    text = html.escape(token).replace("\n", "↵\n")
    if math.isnan(loss):
        return text
    shade = SHADES[int(np.searchsorted(BOUNDS, loss, side="right"))]
    if loss >= HARD:
        text = f"<b>{text}</b>"
    return f'<span style="background-color: {shade}; color: #000000">{text}</span>'


def best_remembered(profile: Profile, domain: str) -> str:
    """Return the id of the forget document that the target has memorised most.

    It is the one whose loss a token lies farthest under the retrained model's, of the first
    replicate and the report half: the best case for memorisation, not the typical one.
    """
    replicate = profile.replicates[0]
    known = _loss_per_token(pool.target_rows(profile, domain, replicate))
    truth = _loss_per_token(pool.truth_rows(profile, domain, replicate))
    return str((truth - known).idxmax())


def _loss_per_token(rows: pd.DataFrame) -> pd.Series:
    """Return nats a token of each forget document of the report half, by id."""
    forget = selection.half(rows[rows.split == "forget"], selection.REPORT).set_index("id")
    return forget.nll / forget.tokens


def passage(profile: Profile, method: str) -> Passage:
    """Return a passage of the first domain, before and after unlearning, and by the truth.

    It is the same one for every method. "After" is the step that a path keeps: the one that is
    nearest to retraining on the selection half. A published model has no retrained one to show.
    """
    domain = profile.domains[0]
    replicate = profile.replicates[0]
    document = best_remembered(profile, domain)
    (path,) = method_paths.make_all([method_paths.usual_run(profile, replicate, domain, method)])
    kept = method_paths.outcome(path)["kept"]
    after = "after no step"
    if kept is not None:
        after = f"after {kept} step{'s' * (kept > 1)}"
    models = {"before (the target)": pool.target(profile, replicate), after: path}
    if profile.has_retrained:
        models["retrained"] = pool.retrained(profile, domain, replicate)
    looks = []
    for title, model in models.items():
        read = extra_measurements.token_losses(profile, model, domain, document)
        rows = extra_measurements.rows_of([read]).head(SHOWN + 1)  # the first opens the document
        looks.append(Look(title, list(rows.token), rows.nll.to_numpy(float)))
    return Passage(document, tuple(looks))


# ------------------------------------------------------------------ what is particular: how it goes

STRETCHES = (-0.75, -0.5, -0.25, 0.0, 0.25)  # forget gaps between which steps are counted


def step_at(drawn: Drawn, level: float, near: float = distances.NEAR) -> Floats:
    """Return the step at which the gap on the forget set first reaches a level: (draws,).

    It is interpolated between marks; not a number where the level is not reached, or jumped.
    """
    gaps = drawn.gaps[selection.REPORT]
    steps = np.broadcast_to(drawn.steps, gaps.shape[:2])
    return distances.crossing(gaps, level, near).of(steps)


def speed(drawn: Drawn) -> dict[str, Floats]:
    """Return how fast a path goes, by measure, each (draws,).

    The first measures are the steps that each quarter of a nat takes. Then what the whole path as
    far as it was followed, cut in two by its steps, brings in either half.
    """
    found = {}
    for low, high in pairwise(STRETCHES):
        found[f"steps from {low:g} to {high:g}"] = step_at(drawn, high) - step_at(drawn, low)
    last = drawn.steps[-1]
    begin, middle, end = (
        comparison.gaps_at(drawn, step)[:, FORGET] for step in (0, max(1.0, last / 2), last)
    )
    found["gap gained in the first half of the path"] = middle - begin
    found["gap gained in the second half of the path"] = end - middle
    found["gap at its last step"] = end
    return found


def speed_table(profile: Profile, method: str) -> pd.DataFrame:
    """Write and return tableNN_particular of a method about whose speed its page is.

    Returns:
        target_domain, measure (of `speed`, and "steps at 0 / steps at -0.5"), and the columns of
        `replicated.table`.
    """
    rows = []
    for domain in profile.domains:
        paths = comparison.usual(profile, domain, method)
        n = robustness.smallest_n(profile, [domain])
        each = [speed(drawn) for drawn in paths]
        for measure in each[0]:
            values = np.stack([one[measure] for one in each])
            rows.append(Row({"target_domain": domain, "measure": measure}, values, n))
        factor = [np.log(step_at(drawn, 0.0) / step_at(drawn, -0.5)) for drawn in paths]
        keys = {"target_domain": domain, "measure": "steps at 0 / steps at -0.5"}
        rows.append(Row(keys, np.stack(factor), n, RATIO))
    return table(profile, f"table{page(method)}_particular", rows)


# ---------------------------------------------------------- what is particular: price of forgetting

RETRAINING, DIFFERENCE = "retraining", "difference"  # beside methods in the column `model`


def price(drawn: Drawn, level: float) -> Floats:
    """Return how much harder each text has become for a nat of forgetting: (draws, splits).

    Both are counted from the target. 1 means: as much as the forget set.
    """
    gaps = drawn.gaps[selection.REPORT]
    rise = distances.crossing(gaps, level).of(gaps) - drawn.target(selection.REPORT)
    return rise / rise[:, [FORGET]]


def price_of_retraining(drawn: Drawn) -> Floats:
    """Return the same of the retrained model, whose gaps are 0: (draws, splits)."""
    target = drawn.target(selection.REPORT)
    return target / target[:, [FORGET]]


def price_table(profile: Profile, method: str, other: str) -> pd.DataFrame:
    """Write and return tableNN_particular: what a nat of forgetting costs other text.

    It is at the gap `READ_AT`, of the method, of another one, their difference, and of retraining.

    Returns:
        target_domain, kind of text, model, and the columns of `replicated.table`.
    """
    rows = []
    for domain in profile.domains:
        ours = comparison.usual(profile, domain, method)
        theirs = comparison.usual(profile, domain, other)
        prices = {
            method: np.stack([price(drawn, READ_AT) for drawn in ours]),
            other: np.stack([price(drawn, READ_AT) for drawn in theirs]),
            RETRAINING: np.stack([price_of_retraining(drawn) for drawn in ours]),
        }
        prices[DIFFERENCE] = prices[method] - prices[other]
        n = robustness.smallest_n(profile, [domain])
        for text, place in TEXTS.items():
            for model, values in prices.items():
                keys = {"target_domain": domain, "kind of text": text, "model": model}
                rows.append(Row(keys, values[..., place], n))
    return table(profile, f"table{page(method)}_particular", rows)


# --------------------------------------------------- what is particular: against a method like it

OF_GENERAL = "damage to general text"
COMPARED = ("damage to unseen text", "damage to retain text", OF_GENERAL, "AUC")


def difference_rows(profile: Profile, domain: str, method: str, other: str) -> list[Row]:
    """Return a method's damage and AUC less another method's, at equal forgetting.

    Beside them stands the method's own damage to the other text of the domain less that to general
    text, which says what it protects. A replicate in which one of the two does not reach the level
    has no difference.
    """
    n = robustness.smallest_n(profile, [domain])
    ours = comparison.usual(profile, domain, method)
    theirs = comparison.usual(profile, domain, other)
    rows = []
    for level in LEVELS:
        keys = {"target_domain": domain, "forget gap": level}
        one = [comparison.at_level(drawn, level) for drawn in ours]
        two = [comparison.at_level(drawn, level) for drawn in theirs]
        for measure in COMPARED:
            less = [mine[measure] - yours[measure] for mine, yours in zip(one, two, strict=True)]
            rows.append(Row({**keys, "measure": measure, "less": other}, np.stack(less), n))
        own = [mine[DOMAIN_DAMAGE] - mine[OF_GENERAL] for mine in one]
        rows.append(Row({**keys, "measure": DOMAIN_DAMAGE, "less": OF_GENERAL}, np.stack(own), n))
    return rows


def difference_table(profile: Profile, method: str, other: str) -> pd.DataFrame:
    """Write and return tableNN_particular of a method with retain text: `difference_rows`.

    Returns:
        target_domain, forget gap, measure, less, and the columns of `replicated.table`.
    """
    rows = []
    for domain in profile.domains:
        rows += difference_rows(profile, domain, method, other)
    return table(profile, f"table{page(method)}_particular", rows)


# ---------------------------------------------------------------------- cost, and equal forgetting


def cost_table(profile: Profile, method: str, beside: Sequence[str] = ()) -> pd.DataFrame:
    """Write and return tableNN_cost: FLOPs of one epoch, of other methods' too, and of retraining.

    Returns:
        target_domain, method (`costs.RETRAINING` among them), value (FLOPs), estimate (6 N D),
        tokens, steps. All are exact.
    """
    counted = []
    for domain in profile.domains:
        for name in (costs.RETRAINING, *beside, method):
            counted.append(costs.flops(profile, domain, name))
    side_by_side(counted, profile.workers)
    rows = extra_measurements.rows_of(counted).rename(columns={"flops": "value"})
    found = rows[["target_domain", "method", "value", "estimate", "tokens", "steps"]]
    plots.save_table(profile, f"table{page(method)}_cost", found)
    return found


def cost_to_read(costs_of: pd.DataFrame, method: str) -> pd.DataFrame:
    """Return FLOPs by domain, and ratios: retraining over the method, the method over others.

    costs_of: a table of `cost_table`.
    """
    wide = costs_of.pivot(index="target_domain", columns="method", values="value")
    wide = wide[list(dict.fromkeys(costs_of.method))].rename_axis(columns=None)
    ratios = {f"{costs.RETRAINING} / {method}": wide[costs.RETRAINING] / wide[method]}
    for name in wide.columns.drop([method, costs.RETRAINING]):
        ratios[f"{method} / {name}"] = wide[method] / wide[name]
    return wide.assign(**ratios).map("{:.3g}".format)


def equal_table(profile: Profile, method: str) -> pd.DataFrame:
    """Write and return tableNN_equal: the method's rows of `comparison.equal_rows`."""
    rows = []
    for domain in profile.domains:
        rows += comparison.equal_rows(profile, domain, method)
    return table(profile, f"table{page(method)}_equal", rows)


def reached(profile: Profile, domain: str, method: str, level: float) -> str:
    """Return how many paths come to a level without a jump: "1 of 1"."""
    paths = comparison.usual(profile, domain, method)
    told = [comparison.how_it_reaches(drawn, level) for drawn in paths]
    return f"{told.count(REACHED)} of {len(told)}"


def equal_to_read(profile: Profile, method: str, equal: pd.DataFrame) -> pd.DataFrame:
    """Return damage and AUC by domain and level, and how many paths come there.

    equal: a table of `equal_table`.
    """
    wanted = [f"damage to {text}" for text in TEXTS]
    shown = equal[equal.measure.isin([*wanted, OVER_RETRAINED])]
    shown = shown.assign(measure=shown.measure.str.removeprefix("damage to "))
    shown = tables.wide(shown, ["target_domain", "forget gap"], "measure", digits=2)
    told = [reached(profile, domain, method, level) for domain, level in shown.index]
    shown.insert(0, "paths that reach it", told)
    return shown


def difference_to_read(differences: pd.DataFrame) -> pd.DataFrame:
    """Return a table of `difference_table` laid out, a row a domain and level, a column a text."""
    own = differences.less == OF_GENERAL
    columns = differences.measure.where(~own, "domain - general text, its own")
    shown = differences.assign(measure=columns.str.removeprefix("damage to "))
    return tables.wide(shown, ["target_domain", "forget gap"], "measure", digits=2)


def summary(profile: Profile, method: str, equal: pd.DataFrame) -> list[str]:
    """Return one line a domain: what the method has done where the forget gap is `READ_AT`.

    equal: a table of `equal_table`.
    """
    lines = []
    for domain in profile.domains:
        came = reached(profile, domain, method, READ_AT)
        begin = f"{domain}: at a gap of {READ_AT:g} on the forget set ({came} paths reach it)"
        here = equal[(equal.target_domain == domain) & (equal["forget gap"] == READ_AT)]
        here = here.set_index("measure")
        if not here.loc[OVER_RETRAINED, "replicates"]:
            lines.append(f"{begin}: nothing to report")
            continue
        told = []
        for text in TEXTS:
            told.append(f"{text} {tables.text(here.loc[f'damage to {text}'], sign='+')}")
        told.append(f"{OVER_RETRAINED} {tables.text(here.loc[OVER_RETRAINED], sign='+')}")
        lines.append(f"{begin}: {', '.join(told)}; n = {here.loc[OVER_RETRAINED, 'n']} families")
    return lines
