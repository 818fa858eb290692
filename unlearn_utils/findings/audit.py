"""The audit: unlearned models beside those that saw the documents and those that never did.

All of it reads the margins of `core.audit` under every model of the pool, and under each method's
model at the step nearest to retraining (at the usual rate). A domain has several pairs of a target
and a retrained model in each replicate, and one unlearned model of each method.

Forget sets came and went as a whole, so a document is never alone in what a model did not see.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pandas as pd

from unlearn_utils.cache.workers import side_by_side
from unlearn_utils.core import audit, intervals, membership
from unlearn_utils.core.arrays import Floats
from unlearn_utils.core.distances import SPLITS
from unlearn_utils.core.methods import METHODS
from unlearn_utils.core.replicates import PLAIN, SHARE, SIZE
from unlearn_utils.findings import comparison, draws, plots, pool_tables, replicated
from unlearn_utils.findings.draws import ALL, Sample
from unlearn_utils.findings.replicated import Row
from unlearn_utils.profiles import STUDY, Profile
from unlearn_utils.study import extra_measurements, method_paths, pool, study_documents
from unlearn_utils.study.pool import Member

TABLE = "table20_audit"
POOLED = "table20_pool"
DOCUMENTS = "table20_documents"
CAUSES = "table20_causes"

NOTHING, AGAIN = comparison.OTHERS  # the target as it is; a retrained model
MODELS = (NOTHING, *METHODS, AGAIN)
SIDES = {NOTHING: "target", AGAIN: "retrained"}  # of a pair
FORGET, UNSEEN = pool_tables.FORGET, pool_tables.UNSEEN
MEAN = pool_tables.MEAN

BY_DOCUMENT, LIRA = "AUC of the margin, by document", "AUC of U-LiRA, by document"
EPSILON = "epsilon of U-LiRA, documents of a model"
ACROSS = "AUC of the margin, forget against unseen"
REFERENCE = "AUC over reference models, forget against unseen"
RMIA = "AUC of RMIA, forget against unseen"
LEAK = "PrivLeak against the pool"
KLOM, KLOM_MEAN = "KLoM, 95th percentile of documents", "KLoM, mean of documents"
POOLED_LIRA, POOLED_EPSILON = "AUC of U-LiRA, mean of documents", "epsilon, mean of documents"

WORDS, REMEMBERED, FAR = audit.WORDS, audit.REMEMBERED, audit.FAR
SHARE_OF = "share of documents "

N_GRAM = 4  # words in a row that count as shared text; of 8 in a row most documents share none
KNEW = "margin that the target had over retrained"
CAUSE_LENGTH, CAUSE_DIFFICULTY = "tokens", "loss under retrained models"
CAUSE_SHARED = f"share of its {N_GRAM}-grams in retain text of the domain"


# ---------------------------------------------------------------------------- the margins of models


def fill(profile: Profile) -> None:
    """Measure the margins of all models; models and paths that are missing come first."""
    pool.train_all(profile)
    runs = []
    for replicate in profile.replicates:
        runs += method_paths.usual_runs(profile, replicate)
    method_paths.make_all(runs)
    looks = [_of_member(profile, member) for member in pool.all_members(profile)]
    looks += [_of_run(run) for run in runs]
    side_by_side(looks, profile.workers, "models, audited")


def _of_member(profile: Profile, member: Member) -> extra_measurements.Artifact:
    """Return the margins of a model of the pool, of every domain."""
    model = pool.trained_model(profile, member)
    return extra_measurements.margins(profile, model, profile.domains)


def _of_run(run: method_paths.Run) -> extra_measurements.Artifact:
    """Return the margins of an unlearned model, of the domain that it forgets."""
    kept = method_paths.path(run, keep=True)
    return extra_measurements.margins(run.profile, kept, [run.target_domain])


@cache
def rows_of(profile: Profile, domain: str, model: str) -> list[list[pd.DataFrame]]:
    """Return the rows of one of `MODELS`: by replicate, then by pair; of a method there is one."""
    found = []
    for replicate in profile.replicates:
        if model in METHODS:
            looks = [_of_run(method_paths.usual_run(profile, replicate, domain, model))]
        else:
            pairs = pool.pairs(profile, domain, replicate)
            looks = [_of_member(profile, pair._asdict()[SIDES[model]]) for pair in pairs]
        found.append([extra_measurements.rows_of([look]) for look in looks])
    return found


def sample_of(profile: Profile, domain: str, split: str) -> Sample:
    """Return every measured document of one of `SPLITS`, and how often each is drawn."""
    return draws.samples(profile, domain, ALL)[SPLITS.index(split)]


@cache
def values_of(
    profile: Profile, domain: str, model: str, split: str, column: str = "margin"
) -> Floats:
    """Return a column of the rows of one of `MODELS`: (replicates, pairs, documents)."""
    drawn = sample_of(profile, domain, split)
    found = []
    for of_replicate in rows_of(profile, domain, model):
        found.append([drawn.values(rows, column) for rows in of_replicate])
    return np.array(found)


def references(profile: Profile, domain: str, split: str, place: int) -> Floats:
    """Return the margins under the retrained models of all replicates but one: (models, documents).

    place: of the replicate that is left out, for its models are compared with these.
    """
    never = values_of(profile, domain, AGAIN, split)
    rest = np.delete(never, place, axis=0)
    return rest.reshape(-1, rest.shape[-1])


# ----------------------------------------------------------------------------- document by document


def wins(ours: Floats, theirs: Floats) -> Floats:
    """Return how often our model has the higher score, in each replicate: (replicates, documents).

    ours: (replicates, documents); theirs: (replicates, models, documents), of which those of the
    same replicate are compared; ties count 1/2.
    """
    mine = ours[:, None]
    return ((mine > theirs) + 0.5 * (mine == theirs)).mean(axis=1)


class Judged(NamedTuple):
    """Models of one kind, one a replicate, judged beside retrained models that are not their own.

    Attributes:
        margins: wins of the margin alone, (replicates, documents).
        ratios: wins of U-LiRA's likelihood ratio, likewise.
        epsilon: of that ratio over all documents of a replicate, (replicates,).
        ceiling: of epsilon.
    """

    margins: Floats
    ratios: Floats
    epsilon: Floats
    ceiling: float


@cache
def judged(profile: Profile, domain: str, model: str, split: str) -> Judged:
    """Return what tells one of `MODELS` from the retrained models of the other pairs.

    The first pair's model is judged, whose target is unlearned. Of retrained models it is the one
    that is the method's truth: it read the other domains' forget sets too, which the rest did not
    all read, so its own line is what a perfect method would have.
    """
    others = values_of(profile, domain, AGAIN, split)[:, 1:]
    ours = values_of(profile, domain, model, split)[:, 0]
    of_ours, of_others = audit.lira(ours, others.reshape(-1, others.shape[-1]))
    of_others = of_others.reshape(others.shape)
    each = [audit.epsilon(one, rest.ravel()) for one, rest in zip(of_ours, of_others, strict=True)]
    most = audit.ceiling(others.shape[-1], others[0].size)
    return Judged(wins(ours, others), wins(of_ours, of_others), np.array(each), most)


def mean_draws(values: Floats, drawn: Sample) -> Floats:
    """Return the mean over documents in each draw: (replicates, documents) to (..., draws)."""
    return values @ drawn.weights.T / drawn.weights.sum(1)


def without_draws(profile: Profile, values: Floats) -> Floats:
    """Return values of replicates as draws in which the documents stay as they are."""
    return np.tile(np.asarray(values, float)[:, None], (1, 1 + profile.resamples))


def rows_by_document(profile: Profile, domain: str, model: str) -> list[Row]:
    """Return the rows of what is told document by document."""
    found = []
    for split in SPLITS:
        keys = {"target_domain": domain, "model": model, "split": split}
        drawn = sample_of(profile, domain, split)
        told = judged(profile, domain, model, split)
        for measure, values in ((BY_DOCUMENT, told.margins), (LIRA, told.ratios)):
            of_draws = mean_draws(values, drawn)
            found.append(Row({**keys, "measure": measure}, of_draws, drawn.families, SHARE))
        if split == FORGET:
            values = without_draws(profile, told.epsilon)
            found.append(Row({**keys, "measure": EPSILON}, values, drawn.families, SIZE))
    return found


# ---------------------------------------------------------------------- across a model's documents


@cache
def attacks(profile: Profile, domain: str, model: str) -> dict[str, Floats]:
    """Return the AUC of forget against unseen documents within one model, by attack.

    Each is (replicates, pairs, draws). Reference models are the retrained ones of all other
    replicates.
    """
    members, others = (sample_of(profile, domain, split) for split in (FORGET, UNSEEN))
    ours, theirs = (values_of(profile, domain, model, split) for split in (FORGET, UNSEEN))
    first = len(members.ids)
    found: dict[str, list] = {ACROSS: [], REFERENCE: [], RMIA: []}
    for place in range(len(ours)):
        own = [references(profile, domain, split, place) for split in (FORGET, UNSEEN)]
        known = np.concatenate(own, axis=1)
        unseen = np.arange(known.shape[1]) >= first
        scores: dict[str, list] = {name: [] for name in found}
        for mine, yours in zip(ours[place], theirs[place], strict=True):
            both = np.concatenate([mine, yours])
            scores[ACROSS].append(both)
            scores[REFERENCE].append(audit.over_reference(both, known))
            scores[RMIA].append(audit.rmia(both, known, unseen))
        for name, of_models in scores.items():
            areas = []
            for each in of_models:
                weights = (members.weights, others.weights)
                areas.append(membership.weighted_auc(each[:first], each[first:], *weights))
            found[name].append(areas)
    return {name: np.array(areas) for name, areas in found.items()}


def rows_across(profile: Profile, domain: str, model: str) -> list[Row]:
    """Return the rows of what is told across the documents of one model."""
    keys = {"target_domain": domain, "model": model, "split": FORGET}
    n = pool_tables.families(profile, [domain])
    found = []
    for measure, values in attacks(profile, domain, model).items():
        found.append(Row({**keys, "measure": measure}, values[:, 0], n, SHARE))
    never = attacks(profile, domain, AGAIN)[ACROSS].mean(axis=(0, 1))
    never = np.where(never < 1, never, np.nan)
    leak = membership.priv_leak(attacks(profile, domain, model)[ACROSS][:, 0], never)
    found.append(Row({**keys, "measure": LEAK}, leak, n, PLAIN))
    return found


# ------------------------------------------------------------------------ which documents, and why


@cache
def residuals(profile: Profile, domain: str, model: str) -> Floats:
    """Return the margin of each forget document over retrained models: (replicates, documents).

    It is of the first pair's model, and over the mean of the retrained ones of other replicates.
    """
    own = values_of(profile, domain, model, FORGET)[:, 0]
    found = []
    for place, margins in enumerate(own):
        found.append(audit.over_reference(margins, references(profile, domain, FORGET, place)))
    return np.array(found)


@cache
def in_deviations(profile: Profile, domain: str, model: str) -> Floats:
    """Return `residuals` in standard deviations of the same retrained models."""
    own = values_of(profile, domain, model, FORGET)[:, 0]
    found = []
    for place, margins in enumerate(own):
        found.append(audit.deviations(margins, references(profile, domain, FORGET, place)))
    return np.array(found)


def rows_of_shares(profile: Profile, domain: str, model: str) -> list[Row]:
    """Return the rows of how many documents are remembered, like retrained, and below."""
    drawn = sample_of(profile, domain, FORGET)
    deviations = in_deviations(profile, domain, model)
    found = []
    for word in WORDS:
        keys = {"target_domain": domain, "model": model, "split": FORGET}
        values = mean_draws(audit.is_told(deviations, word), drawn)
        found.append(Row({**keys, "measure": SHARE_OF + word}, values, drawn.families, SHARE))
    return found


def audit_table(profile: Profile) -> pd.DataFrame:
    """Write and return table20_audit; what is not stored yet is computed first.

    Returns:
        target_domain, model (one of `MODELS`), split, measure, and the columns of
        `replicated.table`. Epsilon's interval is over replicates alone.
    """
    fill(profile)
    rows = []
    for domain in profile.domains:
        for model in MODELS:
            rows += rows_by_document(profile, domain, model)
            rows += rows_across(profile, domain, model)
            rows += rows_of_shares(profile, domain, model)
    return replicated.table(profile, TABLE, rows)


def documents_table(profile: Profile) -> pd.DataFrame:
    """Write and return table20_documents: each forget document under each of `MODELS`.

    Returns:
        target_domain, id, model; value (margin over retrained models, mean over replicates),
        deviations (the same in standard deviations of retrained models), told (one of `WORDS`, by
        the deviations), auc (of the margin), lira (AUC of U-LiRA), replicates, and what may explain
        it: tokens, difficulty (loss under retrained models), shared (of its `N_GRAM`s).
    """
    frames = []
    for domain in profile.domains:
        causes = features(profile, domain)
        for model in MODELS:
            far = residuals(profile, domain, model)
            deviations = in_deviations(profile, domain, model).mean(axis=0)
            judgement = judged(profile, domain, model, FORGET)
            frame = pd.DataFrame(
                {
                    "target_domain": domain,
                    "id": sample_of(profile, domain, FORGET).ids,
                    "model": model,
                    "value": far.mean(axis=0),
                    "deviations": deviations,
                    "told": [_word(one) for one in deviations],
                    "auc": judgement.margins.mean(axis=0),
                    "lira": judgement.ratios.mean(axis=0),
                    "replicates": len(far),
                    "tokens": causes[CAUSE_LENGTH],
                    "difficulty": causes[CAUSE_DIFFICULTY],
                    "shared": causes[CAUSE_SHARED],
                }
            )
            frames.append(frame)
    found = pd.concat(frames, ignore_index=True)
    plots.save_table(profile, DOCUMENTS, found)
    return found


def _word(deviation: float) -> str:
    """Return which of `WORDS` is true of a document."""
    (found,) = [word for word in WORDS if audit.is_told(np.array(deviation), word)]
    return found


@cache
def features(profile: Profile, domain: str) -> dict[str, Floats]:
    """Return what may explain how a forget document is forgotten, by name: (documents,)."""
    drawn = sample_of(profile, domain, FORGET)
    tokens = values_of(profile, domain, AGAIN, FORGET, "tokens")
    loss = values_of(profile, domain, AGAIN, FORGET, "nll") / tokens
    return {
        CAUSE_LENGTH: tokens[0, 0],
        CAUSE_DIFFICULTY: loss.mean(axis=(0, 1)),
        CAUSE_SHARED: shared_text(profile, domain, drawn),
        KNEW: residuals(profile, domain, NOTHING).mean(axis=0),
    }


def shared_text(profile: Profile, domain: str, drawn: Sample) -> Floats:
    """Return the share of each document's `N_GRAM`s that retain text of its domain holds."""
    texts = study_documents.data(profile)[domain]
    by_id = dict(zip(texts[FORGET]["id"], texts[FORGET]["text"], strict=True))
    ours = [by_id[name] for name in drawn.ids]
    return audit.shared_grams(ours, list(texts["retain"]["text"]), N_GRAM)


def causes_table(profile: Profile) -> pd.DataFrame:
    """Write and return table20_causes: what goes with a document's margin over retrained models.

    Returns:
        target_domain (or `MEAN`), model, measure (a feature's name), and the columns of
        `replicated.table`, of Spearman's correlation over the forget documents.
    """
    rows = []
    for model in (NOTHING, *METHODS):
        by_cause: dict[str, list[Floats]] = {}
        for domain in profile.domains:
            drawn = sample_of(profile, domain, FORGET)
            far = residuals(profile, domain, model)
            for cause, values in features(profile, domain).items():
                if cause == KNEW and model == NOTHING:
                    continue  # it is the same
                each = [audit.weighted_spearman(one, values, drawn.weights) for one in far]
                by_cause.setdefault(cause, []).append(np.array(each))
                keys = {"target_domain": domain, "model": model, "measure": cause}
                rows.append(Row(keys, np.array(each), drawn.families))
        n = pool_tables.families(profile, profile.domains)
        for cause, of_domains in by_cause.items():
            keys = {"target_domain": MEAN, "model": model, "measure": cause}
            rows.append(Row(keys, np.mean(of_domains, axis=0), n))
    return replicated.table(profile, CAUSES, rows)


# ------------------------------------------------------------------------------ the pool as a whole


def pool_table(profile: Profile) -> pd.DataFrame:
    """Write and return table20_pool: KLoM, U-LiRA and epsilon with as many models on both sides.

    Each is against retrained models, and a mean over the choices of models where there are several.

    Returns:
        target_domain, model, split, models (on each side), measure; value, low, high, n, ceiling
        (of epsilon and KLoM). Intervals are of the documents alone.
    """
    lines = []
    for domain in profile.domains:
        for split in SPLITS:
            drawn = sample_of(profile, domain, split)
            for model in MODELS:
                for models, choices in sides(profile, domain, model, split).items():
                    for measure, function in _pooled().items():
                        values = np.mean([function(*both) for both in choices], axis=0)
                        line = {"target_domain": domain, "model": model, "split": split}
                        line |= {"models": models, "measure": measure}
                        most = ceilings(models)[measure]
                        lines.append({**line, **_over(values, drawn, measure), "ceiling": most})
    found = pd.DataFrame(lines)
    plots.save_table(profile, POOLED, found)
    return found


Sides = list[tuple[Floats, Floats]]  # members and others, each (models, documents)


def sides(profile: Profile, domain: str, model: str, split: str) -> dict[int, Sides]:
    """Return the groups that are compared, by how many models are on each side.

    Of targets it is all, half of the pairs, and one of each replicate; of retrained models half
    against the other half, and one of each replicate against another; of a method its own.
    """
    never = values_of(profile, domain, AGAIN, split)
    own = values_of(profile, domain, model, split)
    replicates, pairs, _ = never.shape
    half = pairs // 2
    found: dict[int, Sides] = {}

    def flat(values: Floats, chosen: Sequence[int]) -> Floats:
        return values[:, list(chosen)].reshape(-1, values.shape[-1])

    if model in METHODS:
        found[replicates] = [(own[:, 0], never[:, pair]) for pair in range(pairs)]
        return found
    if model == NOTHING:
        found[replicates * pairs] = [(flat(own, range(pairs)), flat(never, range(pairs)))]
    for chosen in combinations(range(pairs), half):
        rest = [pair for pair in range(pairs) if pair not in chosen]
        both = (flat(own, chosen), flat(never, rest))
        found.setdefault(replicates * half, []).append(both)
    if half > 1:
        for pair in range(pairs):
            both = (own[:, pair], never[:, (pair + 1) % pairs])
            found.setdefault(replicates, []).append(both)
    return found


def _pooled() -> dict[str, Callable[[Floats, Floats], Floats]]:
    """Return what is measured of two groups, by measure: functions of their margins."""
    return {
        KLOM: audit.klom,
        KLOM_MEAN: audit.klom,
        POOLED_LIRA: _lira_auc,
        POOLED_EPSILON: _lira_epsilon,
    }


def _lira_auc(members: Floats, others: Floats) -> Floats:
    """Return the AUC of U-LiRA, by document."""
    return audit.auc_by_document(*audit.lira(members, others))


def _lira_epsilon(members: Floats, others: Floats) -> Floats:
    """Return epsilon of U-LiRA, by document."""
    ours, theirs = audit.lira(members, others)
    return np.array([audit.epsilon(*both) for both in zip(ours.T, theirs.T, strict=True)])


def ceilings(models: int) -> dict[str, float]:
    """Return the largest value of each measure of so many models on each side."""
    disjoint = float(np.log(1 / audit.FLOOR))
    return {
        KLOM: disjoint,
        KLOM_MEAN: disjoint,
        POOLED_LIRA: 1.0,
        POOLED_EPSILON: audit.ceiling(models, models),
    }


def _over(values: Floats, drawn: Sample, measure: str) -> dict:
    """Return the measure over the documents of a sample, with its interval."""
    if measure == KLOM:
        each = [np.percentile(np.repeat(values, times), 95) for times in drawn.weights.astype(int)]
    else:
        each = list(mean_draws(values[None], drawn)[0])
    return intervals.interval(each[0], each[1:], 0.95, drawn.families)._asdict()


# ------------------------------------------------------------------------ of this run, or committed


def table_of(profile: Profile, name: str, make: Callable[[Profile], pd.DataFrame]) -> pd.DataFrame:
    """Return a table of notebook 20: of this run in the profile `study`, else as committed.

    It says which, and is empty where none is committed.

    Args:
        profile: of the run.
        name: of the table.
        make: computes and writes it.
    """
    if profile.name == STUDY.name:
        print(f"{name}: measured in this run")
        return make(profile)
    if not plots.is_committed(name):
        print(f"{name}: not available, for none is committed; ./run_all.sh study makes it")
        return pd.DataFrame()
    print(f"{name}: of the committed study")
    return plots.committed(name)
