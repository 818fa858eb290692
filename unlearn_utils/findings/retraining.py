"""How much retraining one needs: what each way to a model without the forget set costs and gives.

All are compared by their score, 1 of which is retraining and 0 doing nothing, against the compute
that they take, as a share of retraining's. Values are of the report half of the documents.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from unlearn_utils.cache.workers import side_by_side
from unlearn_utils.core import distances, tables
from unlearn_utils.core.arrays import Floats
from unlearn_utils.core.methods import BACKWARD_AND_FORWARD, FORWARD, METHODS, SINCE
from unlearn_utils.core.replicates import PLAIN, SHARE, SIZE, Scale
from unlearn_utils.findings import comparison, draws, plots, published, replicated, robustness
from unlearn_utils.findings.comparison import AGAIN, DISTANCE, NOTHING, OVER_RETRAINED
from unlearn_utils.findings.draws import Drawn
from unlearn_utils.findings.replicated import Row
from unlearn_utils.profiles import Profile
from unlearn_utils.study import costs, method_paths, pool, retraining, selection
from unlearn_utils.study.retraining import domain_of

TABLE, SOUPS, FIGURE = "table21_retraining", "table21_soup", "fig21_retraining"
KEYS = ("target_domain", "how", "method", "setting", "measure")
METHOD, REWOUND, DISTILLED, SOUP, NEITHER = "method", "rewound", "distilled", "soup", "-"
USUAL = "usual rate"
COST, WITH_SEARCH = "share of retraining", "share of retraining, with its search"
SCORE, DAMAGE = "score", comparison.DOMAIN_DAMAGE
SCALES: dict[str, Scale] = {COST: SIZE, WITH_SEARCH: SIZE, SCORE: SHARE, DISTANCE: SIZE}
HALF = selection.REPORT
LEFT_OF = 2.0  # what costs nothing is drawn so many times left of what costs least

Values = dict[str, Floats]  # by measure, each (draws,)


class Way(NamedTuple):
    """One row of the table: what was done.

    Attributes:
        how: `METHOD`, `REWOUND`, `DISTILLED` or `SOUP`; `NEITHER` of a model that is there anyway.
        method: its name; of what is no method's, one of `comparison.OTHERS` or `NEITHER`.
        setting: in words.
    """

    how: str
    method: str
    setting: str


# ------------------------------------------------------------------------------- one of everything


def measures(gaps: Floats, target: Floats, told: Floats, share: Floats | float) -> Values:
    """Return what is said of one model, by measure.

    Args:
        gaps: of the model, log perplexity over the retrained model's, (draws, splits).
        target: the target's, likewise.
        told: AUC over the retrained model's, (draws,).
        share: its cost, of retraining's.
    """
    far = distances.distance(gaps)
    return {
        COST: np.broadcast_to(share, far.shape).astype(float),
        SCORE: distances.score(far, distances.distance(target)),
        DISTANCE: far,
        DAMAGE: distances.damage_to_domain(gaps),
        OVER_RETRAINED: told,
    }


def of_rows(profile: Profile, replicate: int, rows: pd.DataFrame, share: float) -> Values:
    """Return `measures` of a model by its rows."""
    domain = domain_of(profile)
    truth = pool.truth_rows(profile, domain, replicate)
    exact = draws.levels(profile, truth, domain, HALF)
    target = draws.levels(profile, pool.target_rows(profile, domain, replicate), domain, HALF)
    told = draws.auc(profile, rows, domain, HALF) - draws.auc(profile, truth, domain, HALF)
    gaps = draws.levels(profile, rows, domain, HALF) - exact
    return measures(gaps, target - exact, told, share)


def of_path(profile: Profile, drawn: Drawn, truth: Floats) -> Values:
    """Return `measures` of a method at the step of its path that is nearest to retraining.

    The step is chosen on the selection half, anew in each draw; so is the cost, of the steps to it.

    truth: AUC of the retrained model, (draws,).
    """
    nearest = np.argmin(distances.distance(drawn.gaps[selection.SELECTION]), axis=1)
    every = np.arange(len(nearest))
    run = drawn.run
    steps = drawn.steps[nearest]
    share = robustness.share_of_steps(profile, run.target_domain, run.method, steps)
    gaps, auc = drawn.gaps[HALF][every, nearest], drawn.auc[HALF][every, nearest]
    return measures(gaps, drawn.target(HALF), auc - truth, share)


# ------------------------------------------------------------------------------------- all of them


def ways(profile: Profile) -> dict[Way, list[Values]]:
    """Return `measures` of all that there is, one of each replicate; what is missing is run first.

    Of a published model there is nothing but its methods: it cannot be trained again here.
    """
    side_by_side(retraining.rewound_and_distilled(profile), profile.workers, "partial retrainings")
    found: dict[Way, list[Values]] = {}
    for replicate in profile.replicates:
        for way, values in _of_replicate(profile, replicate):
            found.setdefault(way, []).append(values)
    for method in _methods(profile):
        found[Way(METHOD, method, USUAL)] = _of_method(profile, method)
    return found


def _methods(profile: Profile) -> list[str]:
    """Return the methods whose paths there are: those since the paper in some profiles."""
    since = list(SINCE) if profile.unlearning.learning_rate in profile.grid.since else []
    return [*METHODS, *since]


def _of_method(profile: Profile, method: str) -> list[Values]:
    """Return what a method does in each replicate, at the profile's own rate.

    Of the paper's methods there is the cost of a search too, which `tune` makes.
    """
    domain = domain_of(profile)
    found = []
    for drawn in comparison.usual(profile, domain, method):
        truth = comparison.retrained_auc(profile, domain, drawn.run.replicate)[0]
        found.append(of_path(profile, drawn, truth))
    if method in METHODS and domain in profile.grid.domains:
        searched = robustness.costs_of_search(profile, domain, method)["share of retraining"]
        for own, search in zip(found, searched, strict=True):
            own[WITH_SEARCH] = own[COST] + search
    return found


def _of_replicate(profile: Profile, replicate: int) -> Iterator[tuple[Way, Values]]:
    """Yield what is no method's alone, of one replicate."""
    domain = domain_of(profile)
    target = pool.target_rows(profile, domain, replicate)
    yield Way(NEITHER, NOTHING, NEITHER), of_rows(profile, replicate, target, 0.0)
    yield from _retrained(profile, replicate)
    if profile.hub or profile.base:
        return
    whole = costs.tokens_of_retraining(profile, domain)
    for share in pool.KEPT:
        artifact = retraining.rewound(profile, domain, replicate, share)
        cost = retraining.tokens_trained(artifact) / whole
        way = Way(REWOUND, NEITHER, retraining.rewound_setting(share))
        yield way, of_rows(profile, replicate, retraining.measured(artifact), cost)
    for method, noise, epochs, artifact in retraining.distilled_of(profile, replicate):
        run = method_paths.usual_run(profile, replicate, domain, method)
        kept = method_paths.outcome(method_paths.path(run, keep=True))["kept"]
        passes = BACKWARD_AND_FORWARD + FORWARD  # the teacher reads, too
        cost = retraining.tokens_trained(artifact) * passes / whole
        cost += robustness.share_of_steps(profile, domain, method, kept)
        way = Way(DISTILLED, method, retraining.distilled_setting(noise, epochs))
        yield way, of_rows(profile, replicate, retraining.measured(artifact), cost)


def _retrained(profile: Profile, replicate: int) -> Iterator[tuple[Way, Values]]:
    """Yield the mean over other retrained models, if there are any."""
    domain = domain_of(profile)
    truth = pool.truth_rows(profile, domain, replicate)
    target = pool.target_rows(profile, domain, replicate)
    exact = draws.levels(profile, truth, domain, HALF)
    of_target = draws.levels(profile, target, domain, HALF) - exact
    own, *_ = comparison.retrained_auc(profile, domain, replicate)
    each = []
    for state in comparison.retrained_again(profile, domain, replicate):
        each.append(measures(state.gaps, of_target, state.auc - own, 1.0))
    if each:
        mean = {name: np.mean([one[name] for one in each], axis=0) for name in each[0]}
        yield Way(NEITHER, AGAIN, NEITHER), mean


# ---------------------------------------------------------------------------------------- tables


def retraining_table(profile: Profile) -> pd.DataFrame:
    """Write and return table21_retraining; what is not stored yet is computed first.

    Returns:
        target_domain, how, method, setting, measure, and the columns of `replicated.table`.
    """
    domain = domain_of(profile)
    n = draws.families(profile, domain, HALF)
    rows = []
    for way, by_replicate in ways(profile).items():
        for measure in by_replicate[0]:
            values = np.stack([own[measure] for own in by_replicate])
            named = dict(zip(KEYS, (domain, *way, measure), strict=True))
            rows.append(Row(named, values, n, SCALES.get(measure, PLAIN)))
    return replicated.table(profile, TABLE, rows)


def soup_table(profile: Profile) -> pd.DataFrame:
    """Write and return table21_soup: every soup of the base's task vectors, a row a pair of models.

    Beside them stand doing nothing, and each method at the profile's own rate. Two replicates have
    no interval worth the name, so each pair is alone, as in `published.published_table`.

    Returns:
        target_domain, how, method, setting, pair, measure, and the columns of `replicated.table`.
    """
    domain = domain_of(profile)
    side_by_side(retraining.soups(profile), 1, "soups")  # one at a time, for memory
    n = draws.families(profile, domain, HALF)
    rows = []
    for way, by_pair in _soups(profile).items():
        for number, values in enumerate(by_pair, 1):
            for measure, drawn in values.items():
                named = dict(zip(KEYS, (domain, *way, measure), strict=True))
                named = {**named, "pair": str(number)}
                rows.append(Row(named, drawn[None], n, SCALES.get(measure, PLAIN)))
    return replicated.table(profile, SOUPS, rows)


def _soups(profile: Profile) -> dict[Way, list[Values]]:
    """Return `measures` of every soup, and of what it is compared with, one of each pair."""
    found = ways(profile)
    whole = costs.tokens_of_retraining(profile, domain_of(profile))
    for replicate in profile.replicates:
        artifact = retraining.soup(profile, domain_of(profile), replicate)
        tokens = retraining.tokens_of_soup(artifact)
        rows = retraining.measured(artifact)
        for alpha, beta in retraining.FACTORS:
            setting = retraining.soup_setting(alpha, beta)
            read = tokens["forget"] + (tokens["retain"] if beta else 0)
            way = Way(SOUP, NEITHER, setting)
            own = rows[rows.setting == setting]
            values = of_rows(profile, replicate, own, read / whole)
            found.setdefault(way, []).append(values)
    return found


def table_of(profile: Profile) -> pd.DataFrame:
    """Return table21_retraining of this run; empty for a base, which has its soup alone."""
    if profile.base:
        print(f"{TABLE}: not available, the profile {profile.name} keeps no weights on the way")
        return pd.DataFrame(columns=[*KEYS, "value", "low", "high", "n"])
    return retraining_table(profile)


def soups_of(profile: Profile) -> pd.DataFrame:
    """Return table21_soup: of this run if it is that of `published`, else as committed."""
    return published.own_or_committed(profile, SOUPS, soup_table)


# ------------------------------------------------------------------------------------------ reading


def laid_out(table: pd.DataFrame, how: Sequence[str], digits: int = 2) -> pd.DataFrame | None:
    """Return the measures of some ways, a row a way, a column a measure; None of an empty table.

    Args:
        table: of `table_of` or `soups_of`.
        how: the ways.
        digits: after the point; costs have as many significant ones.
    """
    if table.empty:
        return None
    part = table[table.how.isin(how)]
    keys = [key for key in ("how", "method", "setting", "pair") if key in part]
    of_cost = part.measure.isin([COST, WITH_SEARCH])
    wide = tables.wide(part[~of_cost], keys, "measure", digits)
    return pd.concat([tables.wide(part[of_cost], keys, "measure", 2, True), wide], axis=1).fillna(
        "not available"
    )


def points(table: pd.DataFrame) -> pd.DataFrame:
    """Return a row a way: its keys, share (cost), with_search, score, low and high (of the score).

    table: of `table_of` or `soups_of`.
    """
    keys = [key for key in ("how", "method", "setting", "pair") if key in table]
    of = {name: part.set_index(keys) for name, part in table.groupby("measure", sort=False)}
    found = of[SCORE][["value", "low", "high"]].rename(columns={"value": "score"})
    found.insert(0, "share", of[COST]["value"])
    found.insert(1, "with_search", np.nan)
    if WITH_SEARCH in of:
        found["with_search"] = of[WITH_SEARCH]["value"].reindex(found.index)
    return found.reset_index()


def best_below(table: pd.DataFrame, share: float) -> pd.Series | None:
    """Return the point with the highest score of all that cost less than a share of retraining.

    table: of `table_of`.
    """
    found = points(table)
    found = found[(found.share < share) & (found.how != NEITHER)]
    return None if found.empty else found.loc[found.score.idxmax()]


# ------------------------------------------------------------------------------------- the figure


def figure(profile: Profile, table: pd.DataFrame, soups: pd.DataFrame) -> None:
    """Draw and save fig21_retraining: score against cost, and in a second panel the soups.

    Args:
        profile: whose folder it goes to.
        table: of `table_of`.
        soups: of `soups_of`.
    """
    named = {"this profile": table, "published": soups}
    drawn = {title: points(one) for title, one in named.items() if not one.empty}
    if not drawn:
        return
    figure, axes = plots.panels(len(drawn), width=5.2, height=3.6, sharey=True)
    for ax, (title, data) in zip(axes, drawn.items(), strict=True):
        draw(data, ax).set_title(profile.name if title == "this profile" else title, fontsize=8)
    axes[0].set_ylabel("score: 1 is retraining, 0 doing nothing")
    by_label = {}
    for ax in axes:
        handles, labels = ax.get_legend_handles_labels()
        by_label |= dict(zip(labels, handles, strict=True))
    figure.legend(by_label.values(), by_label.keys(), loc="outside right upper", fontsize=6)
    saved = pd.concat([data.assign(panel=title) for title, data in drawn.items()])
    plots.save(profile, figure, FIGURE, saved)


def draw(data: pd.DataFrame, ax: Axes) -> Axes:
    """Draw a point a way, with the 95% interval of its score; "|" is the cost with its search.

    data: of `points`. What costs nothing is drawn at the left edge.
    """
    edge = data.share[data.share > 0].min() / LEFT_OF
    for (how, method), part in data.groupby(["how", "method"], sort=False):
        style = _style(how, method)
        places = part.share.clip(lower=edge)
        bars = [part.score - part.low, part.high - part.score]
        line = "-" if how == REWOUND else "none"
        ax.errorbar(places, part.score, bars, ls=line, lw=0.8, capsize=1, ms=5, **style)
        searched = part.dropna(subset=["with_search"])
        look = {"marker": "|", "color": style["color"], "ls": ":", "lw": 0.6}
        for row in searched.to_dict("records"):
            ax.plot([max(row["share"], edge), row["with_search"]], [row["score"]] * 2, **look)
        if how in (REWOUND, SOUP):
            for row in part.to_dict("records"):
                place = (row["share"], row["score"])
                aside = {"xytext": (-5, 4), "textcoords": "offset points", "ha": "right"}
                ax.annotate(row["setting"], place, fontsize=5, **aside)
    ax.axvline(1, color="black", ls="--", lw=0.6)
    ax.set(xscale="log", xlabel="compute, as a share of retraining", ylim=(-0.03, 1.03))
    return ax


def _style(how: str, method: str) -> dict:
    """Return colour, marker, filling and label of a way."""
    colour, marker = plots.method_style(method)
    if how == DISTILLED:
        label = f"distilled, {plots.readable(method)}"
        return {"color": colour, "marker": marker, "mfc": "white", "label": label}
    if how in (REWOUND, SOUP):
        return {"color": "black", "marker": {REWOUND: "s", SOUP: "*"}[how], "label": how}
    return {"color": colour, "marker": marker, "label": plots.readable(method)}
