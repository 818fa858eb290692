"""The audit where a method has forgotten as much as retraining, on average over the forget set.

At the step nearest to retraining a method has often forgotten less than that, for going on would
damage other text. Then all documents are remembered, and nothing distinguishes them. Here it is the
mark at which the forget set is as hard as for the retrained model. It is chosen on the selection
half, and documents are those of the report half.

Weights of that mark are not kept. So it is the mean log-probability of a document that is judged,
in the place of its margin: the paths have it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import numpy as np
import pandas as pd

from unlearn_utils.core import audit as measures
from unlearn_utils.core.arrays import Floats
from unlearn_utils.core.methods import METHODS
from unlearn_utils.core.replicates import PLAIN, SHARE, Scale
from unlearn_utils.findings import audit, draws, pool_tables, replicated
from unlearn_utils.findings.audit import AGAIN, FORGET, NOTHING
from unlearn_utils.findings.draws import Sample
from unlearn_utils.findings.replicated import Row
from unlearn_utils.profiles import Profile
from unlearn_utils.study import method_paths, pool, selection
from unlearn_utils.study.single_run import Run

TABLE = "table20_equal"
NEAR = 0.125  # nats: a path with no mark so near to equal forgetting has no value
AREA, LIRA = "AUC of the log-probability, by document", audit.LIRA
REACHED = "reached"
CORRELATION = "Spearman's correlation with "


def equal_table(profile: Profile) -> pd.DataFrame:
    """Write and return table20_equal; paths that are missing are run first.

    Returns:
        target_domain, model (one of `audit.MODELS`), measure, and the columns of
        `replicated.table`. A mean is over the replicates that come near enough.
    """
    pool_tables.rows_of_members(profile)
    for replicate in profile.replicates:
        method_paths.make_all(method_paths.usual_runs(profile, replicate))
    rows = []
    for domain in profile.domains:
        for model in (NOTHING, *METHODS, AGAIN):
            rows += rows_of_model(profile, domain, model)
    return replicated.table(profile, TABLE, rows)


def rows_of_model(profile: Profile, domain: str, model: str) -> list[Row]:
    """Return the rows of one model. The retrained models of the first pair stand aside."""
    drawn = sample_of(profile, domain)
    own = log_probabilities(profile, domain, model)[:, 0]
    never = log_probabilities(profile, domain, AGAIN)
    reached = np.isfinite(own).all(axis=1)
    values: dict[str, tuple[Floats, Scale]] = {}
    values[REACHED] = (audit.without_draws(profile, reached), SHARE)
    values |= _told(own, never, reached, drawn)
    for cause, feature in causes(profile, domain).items():
        if model == NOTHING and cause == audit.KNEW:
            continue  # it is the same
        far = over_retrained(own, never)[reached]
        each = [measures.weighted_spearman(one, feature, drawn.weights) for one in far]
        values[CORRELATION + cause] = (np.array(each), PLAIN)
    found = []
    for measure, (of_replicates, scale) in values.items():
        keys = {"target_domain": domain, "model": model, "measure": measure}
        if not len(of_replicates):
            of_replicates = np.full((1, 1 + profile.resamples), np.nan)
        found.append(Row(keys, of_replicates, drawn.families, scale))
    return found


def _told(
    own: Floats, never: Floats, reached: Floats, drawn: Sample
) -> dict[str, tuple[Floats, Scale]]:
    """Return what is told document by document, of the replicates that reach."""
    others = never[reached, 1:]
    ours = own[reached]
    found = {AREA: (audit.mean_draws(audit.wins(ours, others), drawn), SHARE)}
    if reached.sum() > 2:  # else there is no Gaussian
        mine, yours = measures.lira(ours, others.reshape(-1, others.shape[-1]))
        ratios = audit.wins(mine, yours.reshape(others.shape))
        found[LIRA] = (audit.mean_draws(ratios, drawn), SHARE)
    far = in_deviations(own, never)[reached]
    for word in measures.WORDS:
        share = audit.mean_draws(measures.is_told(far, word), drawn)
        found[audit.SHARE_OF + word] = (share, SHARE)
    return found


# -------------------------------------------------------------------------------- log-probabilities


def sample_of(profile: Profile, domain: str) -> Sample:
    """Return the forget documents of the report half."""
    return draws.sample(profile, domain, FORGET, selection.REPORT)


@cache
def log_probabilities(profile: Profile, domain: str, model: str) -> Floats:
    """Return the mean log-probability of documents: (replicates, pairs, documents).

    Of a method there is one model in the place of pairs, and not a number where its path has no
    mark near equal forgetting.
    """
    found = []
    for replicate in profile.replicates:
        if model in METHODS:
            run = method_paths.usual_run(profile, replicate, domain, model)
            looks = [at_equal(run)]
        else:
            side = audit.SIDES[model]
            pairs = pool.pairs(profile, domain, replicate)
            members = [pair._asdict()[side] for pair in pairs]
            looks = [pool_tables.rows_of_members(profile)[member] for member in members]
        found.append([_mean_log_probability(rows, sample_of(profile, domain)) for rows in looks])
    return np.array(found)


def _mean_log_probability(rows: pd.DataFrame, drawn: Sample) -> Floats:
    """Return it of each document of a sample: (documents,)."""
    return -drawn.values(rows, "nll") / drawn.values(rows, "tokens")


def at_equal(run: Run) -> pd.DataFrame:
    """Return the rows of a path at the mark nearest to equal forgetting; none if none is near."""
    profile, domain = run.profile, run.target_domain
    rows = pd.read_parquet(method_paths.path(run, method_paths.keeps(run)).path / "rows.parquet")
    truth = method_paths.of_path(profile, pool.truth_rows(profile, domain, run.replicate))
    exact = selection.log_perplexity(selection.half(truth, selection.SELECTION), FORGET)
    gaps = {}
    for step, at_mark in selection.half(rows, selection.SELECTION).groupby("step"):
        gaps[step] = abs(selection.log_perplexity(at_mark, FORGET) - exact)
    nearest = min(gaps, key=lambda step: gaps[step])
    return rows[(rows.step == nearest) & (gaps[nearest] <= NEAR)]


# ---------------------------------------------------------------------------- over retrained models


def references(never: Floats, place: int) -> Floats:
    """Return the retrained models of all replicates but one: (models, documents)."""
    return np.delete(never, place, axis=0).reshape(-1, never.shape[-1])


def over_retrained(own: Floats, never: Floats) -> Floats:
    """Return how far documents are over the retrained models of other replicates.

    own: (replicates, documents); never: (replicates, pairs, documents).
    """
    found = [measures.over_reference(one, references(never, i)) for i, one in enumerate(own)]
    return np.array(found)


def in_deviations(own: Floats, never: Floats) -> Floats:
    """Return `over_retrained` in standard deviations of the same models."""
    found = [measures.deviations(one, references(never, i)) for i, one in enumerate(own)]
    return np.array(found)


@cache
def causes(profile: Profile, domain: str) -> Mapping[str, Floats]:
    """Return what may explain how a document is forgotten, as `audit.features`: (documents,)."""
    drawn = sample_of(profile, domain)
    never = log_probabilities(profile, domain, AGAIN)
    own = log_probabilities(profile, domain, NOTHING)[:, 0]
    rows = pool.target_rows(profile, domain, profile.replicates[0])
    return {
        audit.CAUSE_LENGTH: drawn.values(rows, "tokens"),
        audit.CAUSE_DIFFICULTY: -never.mean(axis=(0, 1)),
        audit.CAUSE_SHARED: audit.shared_text(profile, domain, drawn),
        audit.KNEW: over_retrained(own, never).mean(axis=0),
    }
