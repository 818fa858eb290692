"""A published model, trained on with and without a forget set: the same measures, another scale.

There are two pairs of a target and a retrained model. Their values stand side by side, and there is
no verdict: an interval of two replicates is thirteen times as long as they are apart.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.stats import kendalltau

from unlearn_utils.cache import paths
from unlearn_utils.core.methods import METHODS
from unlearn_utils.core.replicates import PLAIN
from unlearn_utils.findings import comparison, elsewhere, plots, replicated, robustness
from unlearn_utils.findings.elsewhere import Measured
from unlearn_utils.findings.replicated import Row
from unlearn_utils.profiles import PUBLISHED, STUDY, Profile
from unlearn_utils.study import method_paths, parts, single_run
from unlearn_utils.study.elsewhere import EXPOSURES, Setting, parameters

TABLE = "table17_published"
KEYS = ("target_domain", "measure", "method")
EQUAL = 0.0  # the gap on the forget set at which damage is compared: as hard as for retraining
OF_GENERAL, OF_DOMAIN = "damage to general text", comparison.DOMAIN_DAMAGE
HERE, THERE = "here", "in the study"  # places in the order of methods


# ---------------------------------------------------------------------------------------- the table


def published_table(profile: Profile) -> pd.DataFrame:
    """Write and return table17_published; what is not stored yet is computed first.

    Returns:
        target_domain, measure, method (or what stands in its place), and the columns of
        `replicated.table`.
    """
    for name in profile.parts:
        parts.fill(profile, name)
    rows = []
    for domain in profile.domains:
        found = {**elsewhere.measures(_setting(profile, domain)), **_damage(profile, domain)}
        for (measure, method), (values, n, scale) in found.items():
            keys = dict(zip(KEYS, (domain, measure, method), strict=True))
            rows.append(Row(keys, values, n, scale))
    return replicated.table(profile, TABLE, rows)


def _setting(profile: Profile, domain: str) -> Setting:
    """Return a profile as one setting of `study.elsewhere`: its own, on one domain."""
    usual = method_paths.usual_run(profile, profile.replicates[0], domain, method_paths.ASCENT)
    steps = single_run.steps_of_run(usual)
    return Setting("published", parameters(profile.shape), profile, domain, True, steps)


def _damage(profile: Profile, domain: str) -> Measured:
    """Return what each method has lost where the forget set is as hard as for the retrained model.

    Not a number of a path that does not come so far, or that jumps past it.
    """
    n = robustness.smallest_n(profile, [domain])
    found = {}
    for method in METHODS:
        usual = comparison.usual(profile, domain, method)
        there = [comparison.at_level(drawn, EQUAL) for drawn in usual]
        for measure in (OF_GENERAL, OF_DOMAIN):
            values = [one[measure] for one in there]
            found[measure, method] = (np.stack(values), n, PLAIN)
    return found


def table_of(profile: Profile) -> pd.DataFrame:
    """Return the committed table, and say so; with the profile `published` this run's.

    It is empty where none is committed.
    """
    if profile.name == PUBLISHED.name:
        print("measured in this run")
        return published_table(profile)
    file = paths.own_figures(paths.PROJECT, PUBLISHED.name) / f"{TABLE}.csv"
    if not file.exists():
        print(f"not available: no {TABLE} is committed; ./run_all.sh published makes it")
        return pd.DataFrame(columns=[*KEYS, "value", "by_replicate"])
    print("committed, not measured in this run")
    return pd.read_csv(file)


# ------------------------------------------------------------------------------------------ reading


def side_by_side(table: pd.DataFrame, *measures: str) -> pd.DataFrame:
    """Return the values of each pair, and of how many families of documents.

    table: of `published_table`.
    """
    lines = []
    for row in elsewhere.of_measures(table, *measures).to_dict("records"):
        line = {"measure": row["measure"], "method": row["method"]}
        for number, value in enumerate(str(row["by_replicate"]).split(), 1):
            line[f"pair {number}"] = float(value)
        lines.append({**line, "families": row["n"]})
    return pd.DataFrame(lines).round(3)


def orders(table: pd.DataFrame) -> pd.DataFrame:
    """Return the place of each method by its score at the nearest step, here and in the study.

    The study's is that of the same domain, with the study's own model and training.

    Returns:
        a row a method; `HERE` and `THERE`: 1 is the nearest to retraining.
    """
    study = elsewhere.of_measures(plots.committed(elsewhere.TABLE), elsewhere.SCORE)
    own = (study.axis == EXPOSURES) & (study.setting == STUDY.pretraining.epochs)
    values = {
        HERE: elsewhere.of_measures(table, elsewhere.SCORE).set_index("method")["value"],
        THERE: study[own].set_index("method")["value"],
    }
    places = pd.DataFrame(values).rank(ascending=False, method="min")
    return places.astype(int).reindex(list(METHODS))


def agreement(places: pd.DataFrame) -> float:
    """Return Kendall's tau of the two orders: 1 is the same order, 0 none, -1 the reverse.

    places: of `orders`.
    """
    return float(kendalltau(places[HERE], places[THERE]).statistic)
