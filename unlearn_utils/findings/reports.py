"""What the notebooks of the methods say alike: rows side by side, and distances to retraining.

Where there is no retrained model, because a published one is unlearned, approximate retraining
stands for it (`profile.truth`), and what cannot be measured is not a number.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from unlearn_utils.cache.workers import side_by_side
from unlearn_utils.core import intervals, membership, metrics, tables
from unlearn_utils.profiles import Profile
from unlearn_utils.study import extra_measurements, pool, selection, unlearning
from unlearn_utils.study.study_documents import data

AVERAGED = ("tokens", "nll", "correct", "extraction")  # over seeds, beside every membership score
MODEL_OF_RULE = {"practitioner": "unlearned", "oracle": "unlearned (oracle)"}
KL_SPLITS = ("forget", "approximate", "evaluation")


# ---------------------------------------------------------------------------- rows side by side


def over_seeds(rows: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Return one row for each document and group: every measurement's mean over seeds.

    Args:
        rows: one for each document, group and seed.
        by: the columns of the groups.

    Returns:
        The groups, what says which document it is, the means, and `seeds`, the number of seeds.
    """
    keys = [*by, "target_domain", "domain", "split", "family", "rank", "id"]
    groups = rows.groupby(keys, sort=False, dropna=False)
    means = groups[[*AVERAGED, *membership.columns()]].mean()
    return means.assign(seeds=groups.size()).reset_index()


def report_rows(profile: Profile, runs: pd.DataFrame) -> pd.DataFrame:
    """Return the report half under the target, every unlearned model and the retrained model.

    An unlearned model is the practitioner's (mean of the seeds) or the oracle's (seed 0). Without a
    retrained model its rows are not a number, and approximate retraining comes beside them.

    Args:
        profile: where the models come from.
        runs: of `unlearning.unlearn_all`.

    Returns:
        model, method ("" for the baselines), name (the method or the model), and the columns of
        `evaluation.measure`.
    """
    baselines = pool.measure_baselines(profile)
    known = []
    for name in dict.fromkeys(("target", "retrained", "retrained again", profile.truth)):
        rows = pool.baseline_rows(profile, baselines, name)
        known.append(selection.half(rows, selection.REPORT).assign(method="", seeds=1))
    target, *retrained = known

    unlearned = over_seeds(unlearning.rows_of_runs(runs, "report"), ["method", "rule"])
    unlearned = unlearned.assign(model=unlearned.rule.map(MODEL_OF_RULE))
    by_rule = [unlearned[unlearned.rule == rule] for rule in selection.RULES]

    rows = pd.concat([target, *by_rule, *retrained], ignore_index=True).drop(columns="rule")
    suffix = rows.model.map({"unlearned (oracle)": " (oracle)"}).fillna("")
    return rows.assign(name=rows.model.where(rows.method == "", rows.method + suffix))


# ------------------------------------------------------------------------ distance to retraining


def distances(profile: Profile, rows: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Return log perplexity over the retrained model's, on the same documents.

    Args:
        profile: says what stands for retraining.
        rows: of `report_rows`.
        seed: of the bootstrap.

    Returns:
        name, model, method, target_domain, split, measure, value, low, high, n.
    """
    truth = rows[rows.model == profile.truth]
    others = rows[rows.model != profile.truth]
    measure = f"log perplexity / {profile.truth}"
    keys = ["target_domain", "split"]
    found = []
    for (name, model, method), part in others.groupby(["name", "model", "method"], sort=False):
        ratios = tables.log_ratios(part, truth, keys, measure, seed, profile.resamples)
        found.append(ratios.assign(name=name, model=model, method=method))
    return pd.concat(found, ignore_index=True)


def quality(profile: Profile, rows: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Return the forget quality of each model: how the forget set's losses differ from retraining.

    Args:
        profile: says what stands for retraining.
        rows: of `report_rows`.
        seed: of the bootstrap.

    Returns:
        model, method, target_domain, measure, value (the Kolmogorov-Smirnov distance of the
        documents' mean NLL to the retrained model's), low, high, n, ks_p (its p-value), wilcoxon_p
        (that of the paired Wilcoxon test).
    """
    generator = np.random.default_rng(seed)
    forget = rows[(rows.split == "forget") & rows.nll.notna()]
    forget = forget.assign(mean_nll=forget.nll / forget.tokens)
    truth = forget[forget.model == profile.truth]
    others = forget[forget.model != profile.truth]
    keys = ["model", "method", "target_domain"]
    table = []
    for group, part in others.groupby(keys, sort=False):
        row = dict(zip(keys, group, strict=True))
        ours = part.mean_nll.to_numpy()
        theirs = truth[truth.target_domain == row["target_domain"]].mean_nll.to_numpy()
        interval = intervals.bootstrap(
            _ks_distance,
            ours,
            theirs,
            generator=generator,
            resamples=profile.resamples,
            clusters=part.family.to_numpy(),
        )
        row |= {"measure": "KS distance", **interval._asdict()}
        table.append(row | _p_values(profile, ours, theirs))
    return pd.DataFrame(table)


def _p_values(profile: Profile, ours: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
    """Return the p-values of `quality`; not a number where a test's assumptions do not hold."""
    tests = metrics.forget_quality(ours, theirs)
    found = {"ks_p": tests.ks_p, "wilcoxon_p": tests.wilcoxon_p}
    if profile.hub:
        found["wilcoxon_p"] = np.nan  # the stand-in's are other documents: these are no pairs
    if profile.corpus.whole:
        found["ks_p"] = np.nan  # chunks of one document are not independent
    return found


def _ks_distance(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return the largest gap between two empirical distributions.

    It is scipy's statistic, thirty times as fast for a bootstrap.
    """
    points = np.concatenate([ours, theirs])
    our_shares = np.searchsorted(np.sort(ours), points, side="right") / len(ours)
    their_shares = np.searchsorted(np.sort(theirs), points, side="right") / len(theirs)
    return float(np.abs(our_shares - their_shares).max())


def ranking(profile: Profile, rows: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Return the methods by their distance to retraining, the nearest first.

    The distance is the mean of |log perplexity / retrained| over the four splits and the domains.
    Every method is resampled with the same families of documents.

    Args:
        profile: says what stands for retraining.
        rows: of `report_rows`.
        seed: of the bootstrap.

    Returns:
        method, value, low, high, n, and rank: 1 + the number of methods that are closer, with an
        interval of the difference below 0. Methods that cannot be told apart share a rank.
    """
    draws, n = _distances_by_method(profile, rows, seed)
    table = []
    for name, own in draws.items():
        found = intervals.interval(own[0], own[1:], 0.95, n)
        closer = 0
        for other in draws.values():
            difference = other - own
            closer += intervals.interval(difference[0], difference[1:], 0.95, n).high < 0
        table.append({"method": name, **found._asdict(), "rank": 1 + closer})
    return pd.DataFrame(table).sort_values("value", ignore_index=True)


def _distances_by_method(
    profile: Profile, rows: pd.DataFrame, seed: int
) -> tuple[dict[str, np.ndarray], int]:
    """Return the distance of each method, (1 + resamples,), and the families of the smallest group.

    The first of each is as measured.
    """
    generator = np.random.default_rng(seed)
    keys = ["target_domain", "split", "id"]
    truth = rows[rows.model == profile.truth].set_index(keys)[["nll", "tokens"]]
    ours = rows[rows.model == "unlearned"].set_index(keys).join(truth.add_prefix("true_"))
    names = list(ours.method.unique())
    distances = {name: np.zeros(profile.resamples + 1) for name in names}
    families = []
    groups = ours.groupby(level=["target_domain", "split"], sort=True)
    for _, part in groups:
        first = part[part.method == names[0]].sort_index()
        weights = tables.draw_weights(first, generator, profile.resamples)
        for name in names:
            one = part[part.method == name].sort_index()
            own = weights @ one.nll / (weights @ one.tokens)
            true = weights @ one.true_nll / (weights @ one.true_tokens)
            distances[name] += np.abs(own - true) / groups.ngroups
        families.append(first.family.nunique())
    return distances, min(families)


def divergences(profile: Profile, runs: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Return the mean KL(P_retrained || P_model), in nats a token, on the report half.

    It is that of the target, of each unlearned model (seed 0), and of the retrained model with
    another seed, which is the noise floor.

    Args:
        profile: where the models come from.
        runs: of `unlearning.unlearn_all`.
        seed: of the bootstrap.

    Returns:
        model, method, target_domain, split, measure, value, low, high, n.
    """
    keys = ["model", "method", "target_domain", "split"]
    compared = _compared_with_retraining(profile, runs)
    if profile.hub:  # there is nothing to diverge from
        lines = []
        for model, method, domain, _ in compared:
            for split in KL_SPLITS:
                lines.append((model, method, domain, split))
        table = pd.DataFrame(lines, columns=keys)
        return table.assign(measure="KL", **tables.NOT_AVAILABLE._asdict())

    looks = []
    for _, _, domain, artifact in compared:
        retrained = pool.retrained(profile, domain)
        look = extra_measurements.kl_from_retrained(profile, artifact, retrained, domain)
        looks.append(look)
    side_by_side(looks, profile.workers)
    frames = []
    for (model, method, _, _), look in zip(compared, looks, strict=True):
        frames.append(extra_measurements.rows_of([look]).assign(model=model, method=method))
    rows = pd.concat(frames, ignore_index=True)
    return tables.summarise(rows, keys, ["KL"], seed, profile.resamples)


def _compared_with_retraining(profile: Profile, runs: pd.DataFrame) -> list[tuple]:
    """Return (model, method, target_domain, artifact) of all whose KL from retraining is taken."""
    found = []
    for domain in profile.domains:
        found.append(("target", "", domain, pool.target(profile)))
    for run in _first_seed(runs).itertuples():
        found.append(("unlearned", run.method, run.target_domain, run.entry))
    if not profile.hub:
        again = pool.noise_floor(profile)
        found.append(("retrained again", "", profile.noise_domain, again))
    return found


def _first_seed(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the runs of seed 0, whose models are stored."""
    return runs[runs.seed == 0]


# ---------------------------------------------------------------------- further looks at a model


def continuations(profile: Profile, runs: pd.DataFrame) -> pd.DataFrame:
    """Return greedy continuations of the forget documents by three kinds of model.

    They are the target, each unlearned model (seed 0, practitioner's step), and the retrained
    model if there is one.

    Returns:
        model, method ("" but for unlearned models), and the columns of
        `extra_measurements.greedy_continuations`.
    """
    looks = {}
    for run in _first_seed(runs).itertuples():
        models = {"target": pool.target(profile), "unlearned": run.entry}
        if not profile.hub:
            models["retrained"] = pool.retrained(profile, run.target_domain)
        for name, artifact in models.items():
            method = run.method if name == "unlearned" else ""
            key = (name, method, run.target_domain)
            looks[key] = extra_measurements.greedy_continuations(
                profile, artifact, run.target_domain
            )
    side_by_side(list(looks.values()), profile.workers)
    frames = []
    for (name, method, _), look in looks.items():
        frames.append(extra_measurements.rows_of([look]).assign(model=name, method=method))
    return pd.concat(frames, ignore_index=True)


def downstream_tasks(profile: Profile, runs: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Return what the models can still do on each of the profile's tasks.

    That is the target's score, and each unlearned model's (seed 0, practitioner's step) less the
    target's, question by question.

    Returns:
        model, target_domain, task, measure, value, low, high, n (questions).

    Raises:
        ValueError: as `downstream.load`.
    """
    from unlearn_utils.engine import downstream

    target = extra_measurements.task_answers(profile, pool.target(profile))
    before = extra_measurements.rows_of([target])
    scores = downstream.summarise(before, seed, profile.resamples)
    parts = [scores.assign(model="target", target_domain="")]
    for run in _first_seed(runs).itertuples():
        unlearned = extra_measurements.task_answers(profile, run.entry)
        after = extra_measurements.rows_of([unlearned])
        lost = downstream.differences(after, before, seed, profile.resamples)
        model = f"{run.method} - target"
        parts.append(lost.assign(model=model, target_domain=run.target_domain))
    found = pd.concat(parts, ignore_index=True)
    keys = ["model", "target_domain"]
    return found[[*keys, *found.columns.drop(keys)]]


def blind(profile: Profile, seed: int) -> pd.DataFrame:
    """Return the AUC of a classifier that sees the text only, on the report half.

    Returns:
        model, target_domain, measure, value, low, high, n.
    """
    from unlearn_utils.engine import attacks

    generator = np.random.default_rng(seed)
    table = []
    for domain in profile.domains:
        splits = data(profile)[domain]
        forget = selection.half(splits["forget"].to_pandas(), selection.REPORT)
        other = selection.half(splits["approximate"].to_pandas(), selection.REPORT)
        pairs = list(forget["rank"])
        scores = attacks.blind_scores(list(forget.text), list(other.text), pairs, seed=seed)
        found = membership.bootstrap_auc(*scores, generator=generator, resamples=profile.resamples)
        row = {"model": "no model (blind)", "target_domain": domain, "measure": "AUC"}
        table.append(row | found._asdict())
    return pd.DataFrame(table)
