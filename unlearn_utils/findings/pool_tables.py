"""What the pool says before anything is unlearned: memorised text, fair splits, the paper's proxy.

Each domain has several pairs of a target and a retrained model in each replicate. A replicate's
value is the mean over its pairs, of log perplexities where it is of perplexity. Every measured
document counts: nothing is chosen here.

A published model may have no retrained counterpart. Then the only pair lacks one, and what is
compared with it is not a number; nor is what takes several pairs, if there is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import pandas as pd

from unlearn_utils.cache.workers import side_by_side
from unlearn_utils.core import membership
from unlearn_utils.core.arrays import Floats
from unlearn_utils.core.distances import SPLITS
from unlearn_utils.core.replicates import PLAIN, RATIO, SHARE, SIZE, Scale
from unlearn_utils.findings import draws
from unlearn_utils.findings.draws import ALL, Sample
from unlearn_utils.findings.replicated import Row, table
from unlearn_utils.profiles import Profile
from unlearn_utils.study import extra_measurements, pool, study_documents
from unlearn_utils.study.pool import Member

TARGET, RETRAINED = "target", "retrained"
MODELS = (TARGET, RETRAINED)
FORGET, UNSEEN = "forget", "approximate"  # splits
SCORES = ("Min-20%", "Min-40%", "loss")  # of membership
MEAN = "mean"  # in the place of a domain: over all of them
LAST = 20  # steps of a training whose losses are averaged

FAIR = "retrained: forget less unseen"
MEMORISED = "target less retrained, on forget"
PROXY_BIAS = "target less retrained, on unseen"
PROXY = "proxy: target on unseen less retrained on forget"
NOISE_ON_FORGET = "SD between retrained models, on forget"
NOISE_ON_UNSEEN = "SD between retrained models, on unseen"


class Measure(NamedTuple):
    """What is said of a model on one kind of text: a sum over a sum.

    Attributes:
        above: the column whose sum is divided.
        below: the column whose sum it is divided by; None: the number of documents.
        scale: on which replicates are averaged and shown.
    """

    above: str
    below: str | None
    scale: Scale


MEASURES = {
    "perplexity": Measure("nll", "tokens", RATIO),  # as its logarithm, in nats a token
    "accuracy": Measure("correct", "tokens", SHARE),
    "extraction strength": Measure("extraction", None, SHARE),
}


# ------------------------------------------------------------------------------ models of the pairs


@cache
def rows_of_members(profile: Profile) -> dict[Member, pd.DataFrame]:
    """Return the rows of each model of the pool, which is trained and measured first if need be.

    A published model is one that has seen every forget set.
    """
    rows = pool.pool_rows(profile)
    by_name = dict(list(rows.groupby(["replicate", "seen"])))
    found = {}
    for member in pool.all_members(profile):
        if (member.replicate, member.name) in by_name:
            found[member] = by_name[member.replicate, member.name]
    return found


def sides_of_pairs(profile: Profile, model: str, domain: str) -> list[list[pd.DataFrame]]:
    """Return the rows of one side of a domain's pairs: by replicate, then by pair.

    Args:
        profile: says the models.
        model: one of `MODELS`.
        domain: whose pairs.

    Returns:
        nothing for a side that is not there.
    """
    rows = rows_of_members(profile)
    found = []
    for replicate in profile.replicates:
        members = [pair._asdict()[model] for pair in pool.pairs(profile, domain, replicate)]
        there = [rows[member] for member in members if member in rows]
        if there:
            found.append(there)
    return found


def not_there(profile: Profile) -> Floats:
    """Return the draws of a model that is not there: (1 replicate, 2 pairs, draws)."""
    return np.full((1, 2, 1 + profile.resamples), np.nan)


def sample_of(profile: Profile, domain: str, split: str) -> Sample:
    """Return every measured document of one kind of text."""
    return draws.samples(profile, domain, ALL)[SPLITS.index(split)]


@cache
def of_pairs(
    profile: Profile, model: str, domain: str, split: str, measure: str = "perplexity"
) -> Floats:
    """Return a measure of one side of a domain's pairs: (replicates, pairs, draws).

    Args:
        profile: says the models and the documents.
        model: one of `MODELS`.
        domain: whose pairs, and whose documents.
        split: one of `SPLITS`.
        measure: a key of `MEASURES`. Of perplexity it is the logarithm, in nats a token.
    """
    above, below, _ = MEASURES[measure]
    drawn = sample_of(profile, domain, split)
    found = []
    for of_replicate in sides_of_pairs(profile, model, domain):
        found.append([drawn.mean(rows, above, below) for rows in of_replicate])
    return np.array(found) if found else not_there(profile)


def members_table(profile: Profile) -> pd.DataFrame:
    """Return the models of the first replicate and how they were trained, for reading.

    Returns:
        model, a column for each domain that says whether its forget set was seen, seed, documents,
        steps, first loss and last loss (mean of the last `LAST` steps), in nats a token. There is
        no row for a published model.
    """
    if profile.hub:
        return pd.DataFrame()
    replicate = profile.replicates[0]
    history = pool.histories(profile)
    losses = history[history.replicate == replicate].groupby("seen").loss
    texts = study_documents.data(profile)
    lines = []
    for member in pool.members(profile, replicate):
        line: dict[str, object] = {"model": member.name}
        for domain in profile.domains:
            line[domain] = "seen" if domain in member.seen else "left out"
        parts = study_documents.training_parts(profile, member.seen)
        loss = losses.get_group(member.name)
        line["seed"] = member.seed(profile.domains)
        line["documents"] = sum(len(texts[domain][split]) for domain, split in parts)
        line["steps"] = len(loss)
        line["first loss"] = loss.iloc[0]
        line["last loss"] = loss.tail(LAST).mean()
        lines.append(line)
    return pd.DataFrame(lines)


# ----------------------------------------------------------------------------------- what they know


def models_table(profile: Profile) -> pd.DataFrame:
    """Write and return table02_models: targets and retrained models on the four kinds of text.

    Returns:
        model (one of `MODELS`), target_domain, split, measure (a key of `MEASURES`), and the
        columns of `replicated.table`.
    """
    rows = []
    for model in MODELS:
        for domain in profile.domains:
            for split in SPLITS:
                n = sample_of(profile, domain, split).families
                for measure in MEASURES:
                    values = of_pairs(profile, model, domain, split, measure).mean(axis=1)
                    keys = {"model": model, "target_domain": domain, "split": split}
                    scale = MEASURES[measure].scale
                    rows.append(Row({**keys, "measure": measure}, values, n, scale))
    return table(profile, "table02_models", rows)


def membership_table(profile: Profile) -> pd.DataFrame:
    """Write and return table02_membership: AUC of forget against unseen documents, not folded.

    Returns:
        model (one of `MODELS`), target_domain, measure, and the columns of `replicated.table`.
    """
    rows = []
    for model in MODELS:
        for domain in profile.domains:
            n = families(profile, [domain])
            for score in SCORES:
                values = _auc_of_pairs(profile, model, domain, score).mean(axis=1)
                keys = {"model": model, "target_domain": domain, "measure": f"AUC {score}"}
                rows.append(Row(keys, values, n, SHARE))
    return table(profile, "table02_membership", rows)


def _auc_of_pairs(profile: Profile, model: str, domain: str, score: str) -> Floats:
    """Return the AUC of one side of a domain's pairs: (replicates, pairs, draws)."""
    column = membership.get_score(score).column
    found = []
    for of_replicate in sides_of_pairs(profile, model, domain):
        found.append([draws.auc(profile, rows, domain, ALL, column) for rows in of_replicate])
    return np.array(found) if found else not_there(profile)


# ------------------------------------------------------------------------------- how they differ


def differences(profile: Profile, domain: str) -> dict[str, Floats]:
    """Return what is told from a domain's pairs, by measure, in nats a token.

    Each is (replicates, draws). The noise floors are the standard deviation over the retrained
    models of one replicate, which differ in their seeds and in the other domains' forget sets.
    """
    target_forget = of_pairs(profile, TARGET, domain, FORGET)
    target_unseen = of_pairs(profile, TARGET, domain, UNSEEN)
    retrained_forget = of_pairs(profile, RETRAINED, domain, FORGET)
    retrained_unseen = of_pairs(profile, RETRAINED, domain, UNSEEN)
    return {
        FAIR: (retrained_forget - retrained_unseen).mean(axis=1),
        MEMORISED: (target_forget - retrained_forget).mean(axis=1),
        PROXY_BIAS: (target_unseen - retrained_unseen).mean(axis=1),
        PROXY: (target_unseen - retrained_forget).mean(axis=1),
        NOISE_ON_FORGET: _spread(retrained_forget),
        NOISE_ON_UNSEEN: _spread(retrained_unseen),
    }


def _spread(values: Floats) -> Floats:
    """Return the standard deviation over pairs: (replicates, draws). One pair has none."""
    if values.shape[1] < 2:
        return np.full_like(values[:, 0], np.nan)
    return values.std(axis=1, ddof=1)


@cache
def differences_of_domains(profile: Profile) -> dict[str, dict[str, Floats]]:
    """Return `differences` of each domain, and their mean as that of `MEAN`."""
    found = {domain: differences(profile, domain) for domain in profile.domains}
    first = found[profile.domains[0]]
    means = {}
    for measure in first:
        means[measure] = np.mean([of_domain[measure] for of_domain in found.values()], axis=0)
    return {**found, MEAN: means}


def differences_table(profile: Profile) -> pd.DataFrame:
    """Write and return table02_differences: `differences` of each domain and of their mean.

    Returns:
        target_domain (or `MEAN`), measure, and the columns of `replicated.table`, in nats a token.
    """
    rows = []
    for domain, by_measure in differences_of_domains(profile).items():
        n = families(profile, profile.domains if domain == MEAN else [domain])
        for measure, values in by_measure.items():
            scale = SIZE if measure in (NOISE_ON_FORGET, NOISE_ON_UNSEEN) else PLAIN
            keys = {"target_domain": domain, "measure": measure}
            rows.append(Row(keys, values, n, scale))
    return table(profile, "table02_differences", rows)


def proxy_bias(profile: Profile) -> Floats:
    """Return finding F1: log perplexity on unseen text, target less retrained, mean of domains.

    It is what is wrong with the paper's proxy on one and the same text: (replicates, draws).
    """
    return differences_of_domains(profile)[MEAN][PROXY_BIAS]


def families(profile: Profile, domains: Sequence[str]) -> int:
    """Return the families of the smallest forget or unseen split of some domains."""
    found = []
    for domain in domains:
        found += [sample_of(profile, domain, split).families for split in (FORGET, UNSEEN)]
    return min(found)


# -------------------------------------------------------------------------------- what they write


@cache
def continuations(profile: Profile) -> pd.DataFrame:
    """Return the forget documents of each domain as the main pair of each replicate goes on.

    The main pair is the target that saw every forget set and the model retrained without one.

    Returns:
        replicate, model (one of `MODELS`), and the columns of
        `extra_measurements.greedy_continuations`. Without a retrained model there are the target's
        rows alone.
    """
    pool.train_all(profile)
    looks = {}
    for replicate in profile.replicates:
        for domain in profile.domains:
            models = {TARGET: pool.target(profile, replicate)}
            if profile.has_retrained:
                models[RETRAINED] = pool.retrained(profile, domain, replicate)
            for name, model in models.items():
                look = extra_measurements.greedy_continuations(profile, model, domain)
                looks[replicate, name, domain] = look
    side_by_side(list(looks.values()), profile.workers, "continuations")
    frames = []
    for (replicate, name, _), look in looks.items():
        written = extra_measurements.rows_of([look])
        frames.append(written.assign(replicate=replicate, model=name))
    return pd.concat(frames, ignore_index=True)


def continuations_table(profile: Profile) -> pd.DataFrame:
    """Write and return table02_continuations: mean ROUGE-L of `continuations` of the main pairs.

    Returns:
        model (one of `MODELS`), target_domain, measure, and the columns of `replicated.table`.
    """
    written = continuations(profile)
    rows = []
    for model in MODELS:
        for domain in profile.domains:
            of_domain = written[written.target_domain == domain]
            drawn = _continued(sample_of(profile, domain, FORGET), of_domain)
            values = []
            for _, part in of_domain[of_domain.model == model].groupby("replicate"):
                values.append(drawn.mean(part, "rouge_l"))
            if not values:
                values = not_there(profile)[:, 0]
            keys = {"model": model, "target_domain": domain, "measure": "ROUGE-L"}
            rows.append(Row(keys, np.array(values), drawn.families, SHARE))
    return table(profile, "table02_continuations", rows)


def _continued(forget: Sample, written: pd.DataFrame) -> Sample:
    """Return the documents of a sample that are long enough to be continued."""
    kept = forget.ids.isin(written.id)
    return Sample(forget.ids[kept], forget.weights[:, kept], written.family.nunique())
