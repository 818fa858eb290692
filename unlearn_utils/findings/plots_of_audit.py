"""The audit's tables laid out for reading, and its figures; of an empty table there is nothing."""

from __future__ import annotations

import pandas as pd

from unlearn_utils.core import tables
from unlearn_utils.core.distances import FORGET, SPLITS
from unlearn_utils.core.style import COLOURS
from unlearn_utils.findings import audit, plots
from unlearn_utils.findings import audit_at_equal as equal
from unlearn_utils.findings import metrics_audited as held
from unlearn_utils.profiles import Profile
from unlearn_utils.study import elsewhere

SHOWN = {  # of the metrics in a figure: their colours
    "margin": COLOURS["green"],
    "loss": COLOURS["blue"],
    "Min-40%": COLOURS["red"],
    "Min-20%++": COLOURS["purple"],
    "zlib": COLOURS["brown"],
    held.EXTRACTION: COLOURS["grey"],
}
BESIDE = 0.04  # epochs, between the marks of two metrics
WORD_COLOURS = (COLOURS["red"], COLOURS["grey"], COLOURS["blue"])  # of `audit.WORDS`


# ------------------------------------------------------------------------------- tables to read


def by_model(
    table: pd.DataFrame, *measures: str, split: str = SPLITS[FORGET], digits: int = 2
) -> pd.DataFrame | None:
    """Return measures of `audit.audit_table`, a row a domain and model."""
    if table.empty:
        return None
    part = table[table.measure.isin(measures) & (table.split == split)]
    return tables.wide(part, ["target_domain", "model"], "measure", digits)


def at_equal(table: pd.DataFrame, *measures: str, digits: int = 2) -> pd.DataFrame | None:
    """Return measures of `audit_at_equal.equal_table`, a row a domain and model."""
    if table.empty:
        return None
    part = table[table.measure.isin(measures)]
    return tables.wide(part, ["target_domain", "model"], "measure", digits)


def correlations(table: pd.DataFrame, digits: int = 2) -> pd.DataFrame | None:
    """Return the correlations of `audit_at_equal.equal_table`, a row a domain and model."""
    if table.empty:
        return None
    part = table[table.measure.str.startswith(equal.CORRELATION)]
    named = part.assign(measure=part.measure.str.removeprefix(equal.CORRELATION))
    return tables.wide(named, ["target_domain", "model"], "measure", digits)


def by_split(table: pd.DataFrame, measure: str, digits: int = 2) -> pd.DataFrame | None:
    """Return a measure of `audit.audit_table` on each kind of text."""
    if table.empty:
        return None
    part = table[table.measure == measure]
    return tables.wide(part, ["target_domain", "model"], "split", digits)


def pooled(table: pd.DataFrame, measure: str, digits: int = 1) -> pd.DataFrame | None:
    """Return a measure of `audit.pool_table` on each kind of text, a row a group of models.

    The fewest models come last: there are the methods.
    """
    if table.empty:
        return None
    part = table[table.measure == measure].sort_values("models", ascending=False, kind="stable")
    return tables.wide(part, ["target_domain", "models", "model"], "split", digits)


def remembered_by(documents: pd.DataFrame) -> pd.DataFrame | None:
    """Return how many documents are remembered by how many methods, a row a domain.

    documents: of `audit.documents_table`.
    """
    if documents.empty:
        return None
    own = _of_methods(documents)
    times = own.assign(remembered=own.told == audit.REMEMBERED)
    each = times.groupby(["target_domain", "id"]).remembered.sum().reset_index()
    wide = each.groupby(["target_domain", "remembered"]).size().unstack(fill_value=0)
    return wide.reindex(columns=range(own.model.nunique() + 1), fill_value=0)


def extremes(documents: pd.DataFrame, number: int = 3) -> pd.DataFrame | None:
    """Return the documents of each domain that methods remember most, and least.

    Args:
        documents: of `audit.documents_table`.
        number: of documents at each end.

    Returns:
        a row a document, with its deviations: mean of methods, and the least.
    """
    if documents.empty:
        return None
    own = _of_methods(documents)
    keys = ["target_domain", "id", "tokens", "difficulty", "shared"]
    each = own.groupby(keys).deviations.agg(["mean", "min"]).reset_index()
    each = each.sort_values(["target_domain", "mean"], ascending=[True, False])
    parts = []
    for _, part in each.groupby("target_domain"):
        parts += [part.head(number), part.tail(number)]
    found = pd.concat(parts).set_index(["target_domain", "id"])
    return found.rename(columns={"mean": "deviations, mean", "min": "least"}).round(3)


def _of_methods(documents: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the methods alone."""
    return documents[~documents.model.isin([audit.NOTHING, audit.AGAIN])]


def causes(table: pd.DataFrame) -> pd.DataFrame | None:
    """Return the correlations of `audit.causes_table`, mean of domains, a row a model."""
    if table.empty:
        return None
    return tables.wide(table[table.target_domain == audit.MEAN], "model", "measure", digits=2)


def faithful(table: pd.DataFrame, of: str, digits: int = 2) -> pd.DataFrame | None:
    """Return how faithful each metric is, a column a domain of the pool.

    Args:
        table: of `metrics_audited.faithfulness_table`.
        of: `metrics_audited.SET` or `DOCUMENT`.
        digits: after the point.
    """
    if table.empty:
        return None
    part = table[(table.axis == held.POOL) & (table.of == of)]
    return tables.wide(part, "measure", "target_domain", digits)


def agreement(table: pd.DataFrame) -> pd.DataFrame | None:
    """Return the tau of each metric with the two that the pool alone can give, the highest first.

    table: of `metrics_audited.agreement_table`.

    Returns:
        a row a metric: whether it needs a retrained model, and tau with each, mean of domains.
    """
    if table.empty:
        return None
    truths = [held.DISTANCE, held.DEVIATIONS]
    part = table[(table.target_domain == audit.MEAN) & table.other.isin(truths)]
    part = part[~part.measure.isin(truths)]
    best = part[part.other == held.DISTANCE].sort_values("value", ascending=False, kind="stable")
    wide = tables.wide(part, "measure", "other").loc[best.measure, truths]
    needs = ["yes" if name in held.NEEDS_RETRAINED else "no" for name in wide.index]
    wide.insert(0, "needs a retrained model", needs)
    return wide


def robust(table: pd.DataFrame, digits: int = 2) -> pd.DataFrame:
    """Return how robust each metric is, mean of methods: a row an attack, a column a metric.

    table: of `metrics_attacked.robustness_table`.
    """
    part = table[table.method == audit.MEAN]
    part = part.assign(setting=[f"{setting:g}" for setting in part.setting])
    return tables.wide(part, ["attack", "source", "setting"], "measure", digits)


# ------------------------------------------------------------------------------------ figures


def told_figure(profile: Profile, table: pd.DataFrame) -> None:
    """Draw how well each model is told from retrained ones, document by document; a panel a domain.

    table: of `audit.audit_table`.
    """
    if table.empty:
        return
    wanted = [audit.BY_DOCUMENT, audit.LIRA]
    part = table[table.measure.isin(wanted) & (table.split == SPLITS[FORGET])]
    part = part.assign(model=part.model.map(plots.readable))
    domains = list(part.target_domain.unique())
    figure, axes = plots.panels(len(domains), height=3.6, sharey=True)
    for ax, domain in zip(axes, domains, strict=True):
        plots.intervals(part[part.target_domain == domain], "model", "measure", ax)
        ax.tick_params(axis="x", rotation=90)
        ax.axhline(0.5, color="black", ls=":", lw=0.8)
        ax.set(title=domain, ylim=(0, 1.03))
    axes[0].set_ylabel("AUC against retrained models")
    figure.legend(*axes[0].get_legend_handles_labels(), ncols=2, loc="outside upper center")
    plots.save(profile, figure, "fig20_told", part)


def documents_figure(profile: Profile, documents: pd.DataFrame) -> None:
    """Draw each forget document under each model, in deviations; a panel a domain.

    documents: of `audit.documents_table`.
    """
    if documents.empty:
        return
    models = list(documents.model.unique())
    domains = list(documents.target_domain.unique())
    figure, axes = plots.panels(len(domains), height=3.2, sharey=True)
    for ax, domain in zip(axes, domains, strict=True):
        part = documents[documents.target_domain == domain]
        for place, model in enumerate(models):
            own = part[part.model == model].deviations
            colour, _ = plots.method_style(model)
            ax.plot(own, [place] * len(own), "|", color=colour, ms=9, mew=0.8)
        ax.axvspan(-audit.FAR, audit.FAR, color="black", alpha=0.1, lw=0)
        ax.set(title=domain)
        ax.set_xscale("symlog", linthresh=audit.FAR)
    axes[0].set_yticks(range(len(models)), [plots.readable(model) for model in models])
    axes[0].invert_yaxis()
    figure.supxlabel("standard deviations over retrained models", fontsize=9)
    columns = ["target_domain", "model", "id", "deviations"]
    plots.save(profile, figure, "fig20_documents", documents[columns])


def shares_figure(profile: Profile, table: pd.DataFrame) -> None:
    """Draw how many documents are remembered, like retrained and below, at equal forgetting.

    Models without a value, whose paths do not come so far, have no bar.

    table: of `audit_at_equal.equal_table`.
    """
    if table.empty:
        return
    part = table[table.measure.str.startswith(audit.SHARE_OF)]
    models = list(part.model.unique())
    domains = list(part.target_domain.unique())
    figure, axes = plots.panels(len(domains), height=3.0, sharey=True)
    for ax, domain in zip(axes, domains, strict=True):
        own = part[part.target_domain == domain]
        wide = own.pivot(index="model", columns="measure", values="value").loc[models]
        left = 0 * wide.iloc[:, 0]
        for word, colour in zip(audit.WORDS, WORD_COLOURS, strict=True):
            widths = wide[audit.SHARE_OF + word]
            ax.barh(range(len(models)), widths, left=left, color=colour, label=word)
            left = left + widths
        ax.set(title=domain, xlabel="share of forget documents", xlim=(0, 1))
    axes[0].set_yticks(range(len(models)), [plots.readable(model) for model in models])
    axes[0].invert_yaxis()
    figure.legend(*axes[0].get_legend_handles_labels(), ncols=3, loc="outside upper center")
    plots.save(profile, figure, "fig20_shares", part)


def faithful_figure(profile: Profile, table: pd.DataFrame) -> None:
    """Draw how faithful the metrics of a document are, over exposures.

    table: of `metrics_audited.faithfulness_table`.
    """
    if table.empty:
        return
    part = table[(table.axis == elsewhere.EXPOSURES) & table.measure.isin(list(SHOWN))]
    figure, (ax,) = plots.panels(1, width=5, height=3)
    for place, (metric, rows) in enumerate(part.groupby("measure", sort=False)):
        ends = [rows["value"] - rows.low, rows.high - rows["value"]]
        style = {"color": SHOWN[metric], "marker": "o", "ms": 3, "lw": 1, "capsize": 2}
        beside = rows.setting + BESIDE * place  # else one would hide another
        ax.errorbar(beside, rows["value"], ends, label=metric, **style)
    ax.axhline(0.5, color="black", ls=":", lw=0.8)
    ax.set(xlabel="epochs of pre-training", ylabel="AUC, of one document", ylim=(0.4, 1.03))
    ax.set_xticks(sorted(part.setting.unique()))
    figure.legend(ncols=3, loc="outside upper center", fontsize=7)
    plots.save(profile, figure, "fig20_faithful", part)
