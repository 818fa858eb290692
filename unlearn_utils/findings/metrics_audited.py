"""Do the metrics mean anything? Each is held against models whose past is known.

* *Faithfulness*: how often a metric ranks a model that saw the forget set above one that did not.
  0.5 is a guess. Of a whole set that is easy when documents were seen often, so it is asked of
  single documents too, and where they were seen less often.
* *Agreement*: Kendall's tau between the orders that two metrics give to the methods, of their
  models at the step nearest to retraining. 1 is the same order, 0 none in common.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import numpy as np
import pandas as pd

from unlearn_utils.core import audit as measures
from unlearn_utils.core import distances, membership, metrics
from unlearn_utils.core.arrays import Floats
from unlearn_utils.core.distances import SPLITS
from unlearn_utils.core.methods import METHODS
from unlearn_utils.core.replicates import SHARE
from unlearn_utils.findings import audit, draws, replicated
from unlearn_utils.findings.audit import AGAIN, FORGET, MEAN, NOTHING, UNSEEN
from unlearn_utils.findings.draws import ALL
from unlearn_utils.findings.replicated import Row
from unlearn_utils.profiles import Profile
from unlearn_utils.study import elsewhere, pool
from unlearn_utils.study.elsewhere import Setting

FAITHFUL = "table20_faithfulness"
AGREEMENT = "table20_agreement"

POOL = "pool"  # in the place of an axis of `elsewhere`: the study's own models, all of them
SET, DOCUMENT = "forget set", "document"  # what a metric is asked of
LOSS, ACCURACY, EXTRACTION = "loss", "accuracy", "extraction strength"

# What orders methods; the smaller, the nearer to a model that never saw the forget set.
DISTANCE = "distance to retraining"
DEVIATIONS = "deviations from the pool, mean of documents"
GAP = "forget perplexity beside the retrained model's"
KS = "Kolmogorov-Smirnov distance of forget losses"
AUC_OVER = "AUC of Min-40% beside the retrained model's"
PROXY = "forget perplexity beside the target's on unseen text"
GENERAL = "general perplexity over the target's"
FROM_HALF = "{}, from 0.5"
OVERLAP = "KLoM, mean of documents, models of all replicates"
NEEDS_RETRAINED = (  # the others can be had without
    *(DISTANCE, DEVIATIONS, OVERLAP, GAP, KS, AUC_OVER),
    *(FROM_HALF.format(attack) for attack in (audit.REFERENCE, audit.RMIA)),
)


# ------------------------------------------------------------------------------------- faithfulness


def of_documents(rows: pd.DataFrame) -> dict[str, pd.Series]:
    """Return every metric of a single document, by name and then by id; higher is a member."""
    by_id = rows.set_index("id")
    found = {title: by_id[score.column] for title, score in membership.SCORES.items()}
    found[ACCURACY] = by_id.correct / by_id.tokens
    found[EXTRACTION] = by_id.extraction
    if "margin" in by_id:
        found["margin"] = by_id.margin
    return found


def of_set(rows: pd.DataFrame, domain: str) -> dict[str, float]:
    """Return every metric of one model's forget set, by name; higher is a member.

    rows: of the model, on the domain's documents.
    """
    rows = rows[rows.domain == domain]
    forget, unseen = rows[rows.split == FORGET], rows[rows.split == UNSEEN]
    found = {
        "forget perplexity": -forget.nll.sum() / forget.tokens.sum(),
        ACCURACY: forget.correct.sum() / forget.tokens.sum(),
        EXTRACTION: forget.extraction.mean(),
        "margin": forget.margin.mean(),
    }
    for title, score in membership.SCORES.items():
        found[f"AUC {title}"] = membership.auc(forget[score.column], unseen[score.column])
    return found


def faithfulness_table(profile: Profile) -> pd.DataFrame:
    """Write and return table20_faithfulness; what is not stored yet is computed first.

    Returns:
        axis (`POOL`, or one of `elsewhere`), setting, target_domain, of (`SET` or `DOCUMENT`),
        measure (a metric), and the columns of `replicated.table`.
    """
    audit.fill(profile)
    rows = []
    for domain in profile.domains:
        rows += pool_rows(profile, domain)
    for setting in elsewhere.settings(profile):
        rows += setting_rows(setting)
    return replicated.table(profile, FAITHFUL, rows)


def pool_rows(profile: Profile, domain: str) -> list[Row]:
    """Return the rows of the pool's models, of the set and of single documents."""
    saw, never = (audit.rows_of(profile, domain, model) for model in (NOTHING, AGAIN))
    keys = {"axis": POOL, "setting": profile.pretraining.epochs, "target_domain": domain}
    drawn = audit.sample_of(profile, domain, FORGET)
    found = []
    by_metric: dict[str, list[float]] = {}
    for ours, theirs in zip(saw, never, strict=True):
        mine = pd.DataFrame([of_set(rows, domain) for rows in ours])
        yours = pd.DataFrame([of_set(rows, domain) for rows in theirs])
        for metric in mine:
            by_metric.setdefault(metric, []).append(membership.auc(mine[metric], yours[metric]))
    attacked = {model: audit.attacks(profile, domain, model) for model in (NOTHING, AGAIN)}
    for attack in (audit.REFERENCE, audit.RMIA):
        both = zip(attacked[NOTHING][attack], attacked[AGAIN][attack], strict=True)
        by_metric[attack] = [membership.auc(one[:, 0], other[:, 0]) for one, other in both]
    for metric, areas in by_metric.items():
        values = audit.without_draws(profile, np.array(areas))
        found.append(Row({**keys, "of": SET, "measure": metric}, values, drawn.families, SHARE))
    return found + document_rows(profile, domain, keys, saw, never)


def setting_rows(setting: Setting) -> list[Row]:
    """Return the rows of single documents in one setting of `elsewhere`, of its main pair."""
    profile, domain = setting.profile, setting.domain
    saw, never = [], []
    for replicate in profile.replicates:
        saw.append([pool.target_rows(profile, domain, replicate)])
        never.append([pool.truth_rows(profile, domain, replicate)])
    keys = {"axis": setting.axis, "setting": setting.value, "target_domain": domain}
    return document_rows(profile, domain, keys, saw, never)


def document_rows(
    profile: Profile,
    domain: str,
    keys: Mapping,
    saw: list[list[pd.DataFrame]],
    never: list[list[pd.DataFrame]],
) -> list[Row]:
    """Return how often each metric of a document ranks a model that saw it above one that did not.

    Args:
        profile: says the documents and their draws.
        domain: whose forget set.
        keys: that name the rows so far.
        saw, never: rows of models, by replicate; those of one replicate are compared.
    """
    drawn = draws.sample(profile, domain, FORGET, ALL)
    by_metric: dict[str, list[Floats]] = {}
    for ours, theirs in zip(saw, never, strict=True):
        mine = [of_documents(rows) for rows in ours]
        yours = [of_documents(rows) for rows in theirs]
        for metric in mine[0]:
            values = [
                np.array([one[metric].reindex(drawn.ids).to_numpy(float) for one in models])
                for models in (mine, yours)
            ]
            won = np.mean([audit.wins(one[None], values[1][None])[0] for one in values[0]], axis=0)
            by_metric.setdefault(metric, []).append(won)
    found = []
    for metric, each in by_metric.items():
        values = audit.mean_draws(np.array(each), drawn)
        named = {**keys, "of": DOCUMENT, "measure": metric}
        found.append(Row(named, values, drawn.families, SHARE))
    return found


# ---------------------------------------------------------------------------------------- agreement


def orders(profile: Profile, domain: str, method: str, place: int) -> dict[str, float]:
    """Return every metric that orders methods, of one method in one replicate.

    place: of the replicate.
    """
    (rows,) = audit.rows_of(profile, domain, method)[place]
    target = audit.rows_of(profile, domain, NOTHING)[place][0]
    truth = audit.rows_of(profile, domain, AGAIN)[place][0]
    rows, target, truth = (of_domain(one, domain) for one in (rows, target, truth))
    ours, before, exact = (
        draws.levels(profile, one, domain, ALL)[0] for one in (rows, target, truth)
    )
    forget, unseen, general = (SPLITS.index(name) for name in (FORGET, UNSEEN, "evaluation"))
    mine = of_set(rows, domain)
    known = of_set(truth, domain)
    losses = [of_documents(one[one.split == FORGET])[LOSS] for one in (rows, truth)]
    deviations = audit.in_deviations(profile, domain, method)[place]
    found = {
        DISTANCE: float(distances.distance(ours - exact)),
        DEVIATIONS: float(np.abs(deviations).mean()),
        OVERLAP: divergence(profile, domain, method),
        GAP: float(abs(ours[forget] - exact[forget])),
        KS: metrics.forget_quality(*losses).ks_distance,
        AUC_OVER: abs(mine["AUC Min-40%"] - known["AUC Min-40%"]),
        PROXY: float(abs(ours[forget] - before[unseen])),
        GENERAL: float(ours[general] - before[general]),
        ACCURACY: mine[ACCURACY],
        EXTRACTION: mine[EXTRACTION],
    }
    for title in membership.SCORES:
        name = f"AUC {title}"
        found[FROM_HALF.format(name)] = abs(mine[name] - 0.5)
    for attack in (audit.REFERENCE, audit.RMIA):
        area = audit.attacks(profile, domain, method)[attack][place, 0, 0]
        found[FROM_HALF.format(attack)] = float(abs(area - 0.5))
    return found


@cache
def divergence(profile: Profile, domain: str, method: str) -> float:
    """Return KLoM of a method's models, one a replicate, from retrained ones; mean of documents.

    A histogram needs several models, so it is of all replicates together.
    """
    ((_, groups),) = audit.sides(profile, domain, method, FORGET).items()
    return float(np.mean([measures.klom(*both) for both in groups]))


def of_domain(rows: pd.DataFrame, domain: str) -> pd.DataFrame:
    """Return the rows of a domain's documents and of general ones."""
    return rows[rows.domain.isin([domain, "general"])]


@cache
def taus(profile: Profile, domain: str) -> dict[tuple[str, str], Floats]:
    """Return Kendall's tau of each two metrics over the methods: (replicates,)."""
    found: dict[tuple[str, str], list[float]] = {}
    for place in range(len(profile.replicates)):
        values = pd.DataFrame([orders(profile, domain, method, place) for method in METHODS])
        table = values.corr(method="kendall")
        for one in table:
            for other in table:
                found.setdefault((one, other), []).append(table.loc[one, other])
    return {both: np.array(each) for both, each in found.items()}


def agreement_table(profile: Profile) -> pd.DataFrame:
    """Write and return table20_agreement: Kendall's tau of each two metrics, over the methods.

    Returns:
        target_domain (or `MEAN`), measure, other, and the columns of `replicated.table`. Intervals
        are over replicates alone.
    """
    audit.fill(profile)
    by_domain = {domain: taus(profile, domain) for domain in profile.domains}
    each = list(by_domain.values())
    by_domain[MEAN] = {both: np.mean([own[both] for own in each], axis=0) for both in each[0]}
    n = len(METHODS)
    rows = []
    for domain, of_both in by_domain.items():
        for (one, other), values in of_both.items():
            keys = {"target_domain": domain, "measure": one, "other": other}
            rows.append(Row(keys, audit.without_draws(profile, values), n))
    return replicated.table(profile, AGREEMENT, rows)
