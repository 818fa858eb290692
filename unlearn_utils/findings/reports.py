"""What the notebooks of the methods say alike: rows of the report half side by side, and how close each model is to retraining."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from unlearn_utils.core import intervals, membership, metrics, tables
from unlearn_utils.profiles import Profile
from unlearn_utils.study import extra_measurements, pool, selection, unlearning
from unlearn_utils.study.study_documents import data

MEASURED = [
    "tokens",
    "nll",
    "correct",
    "extraction",
]  # columns of a document that are averaged over seeds, with every score
NAMES = {"practitioner": "unlearned", "oracle": "unlearned (oracle)"}


def over_seeds(rows: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """One row a document and group: the mean over seeds of every measurement, and `seeds`, their number."""
    scores = [c for c in rows if c.startswith(("min_k", "zlib"))]
    groups = rows.groupby(
        [*by, "target_domain", "domain", "split", "family", "rank", "id"], sort=False, dropna=False
    )
    return groups[MEASURED + scores].mean().assign(seeds=groups.size()).reset_index()


def report_rows(profile: Profile, runs: pd.DataFrame) -> pd.DataFrame:
    """The report half under target, unlearned model (`practitioner`, mean of the seeds; `oracle`, seed 0) and retrained model.

    Where there is no retrained model (a published one is unlearned) its rows are not a number, and approximate retraining comes beside.
    runs: of `experiments.unlearn_all`. Columns model, method ("" for the baselines), name (the method or the model) and those of
    `evaluation.measure`.
    """
    baselines = pool.measure_baselines(profile)
    names = dict.fromkeys(("target", "retrained", "retrained again", profile.truth))
    known = {
        m: selection.half(pool.baseline_rows(profile, baselines, m), selection.REPORT).assign(
            method="", seeds=1
        )
        for m in names
    }
    unlearned = over_seeds(unlearning.rows_of_runs(runs, "report"), ["method", "rule"])
    unlearned = unlearned.assign(model=unlearned.rule.map(NAMES))
    before, *after = known.values()
    order = [before, *(unlearned[unlearned.rule == rule] for rule in selection.RULES), *after]
    rows = pd.concat(order, ignore_index=True).drop(columns="rule")
    return rows.assign(
        name=rows.model.where(
            rows.method == "",
            rows.method + rows.model.map({"unlearned (oracle)": " (oracle)"}).fillna(""),
        )
    )


def distances(profile: Profile, rows: pd.DataFrame, seed: int) -> pd.DataFrame:
    """log perplexity over the retrained model's, on the same documents: name, model, method, run, split, value, low, high, n.

    Where there is no retrained model, over its stand-in's, approximate retraining; so in `quality` and `ranking`."""
    truth = rows[rows.model == profile.truth]
    found = []
    for (name, model, method), part in rows[rows.model != profile.truth].groupby(
        ["name", "model", "method"], sort=False
    ):
        ratios = tables.log_ratios(
            part,
            truth,
            ["target_domain", "split"],
            f"log perplexity / {profile.truth}",
            seed,
            profile.resamples,
        )
        found.append(ratios.assign(name=name, model=model, method=method))
    return pd.concat(found, ignore_index=True)


def quality(profile: Profile, rows: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Forget quality: Kolmogorov-Smirnov distance of the documents' mean NLL on the forget set to the retrained model's, its p-value,
    and that of the paired Wilcoxon test: model, method, run, value (the distance), low, high, n, ks_p, wilcoxon_p."""
    generator, table = np.random.default_rng(seed), []
    forget = rows[(rows.split == "forget") & rows.nll.notna()].assign(
        mean=lambda r: r.nll / r.tokens
    )
    truth = {
        d: part["mean"].to_numpy()
        for d, part in forget[forget.model == profile.truth].groupby("target_domain")
    }
    for (model, method, run), part in forget[forget.model != profile.truth].groupby(
        ["model", "method", "target_domain"], sort=False
    ):
        ours, theirs = part["mean"].to_numpy(), truth[run]
        found = metrics.forget_quality(ours, theirs)
        families = part.family.to_numpy()
        interval = intervals.bootstrap(
            _ks, ours, theirs, generator=generator, resamples=profile.resamples, clusters=families
        )
        table.append(
            {
                "model": model,
                "method": method,
                "target_domain": run,
                "measure": "KS distance",
                **interval._asdict(),
            }
        )
        table[-1] |= {
            "ks_p": found.ks_p,
            "wilcoxon_p": np.nan if profile.hub else found.wilcoxon_p,
        }  # other documents are no pairs
        table[-1] |= (
            {"ks_p": np.nan} if profile.corpus.whole else {}
        )  # chunks of one document are not independent
    return pd.DataFrame(table)


def _ks(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest gap between two empirical distributions: scipy's statistic, thirty times as fast for a bootstrap."""
    points = np.concatenate([ours, theirs])
    shares = [np.searchsorted(np.sort(x), points, side="right") / len(x) for x in (ours, theirs)]
    return float(np.abs(shares[0] - shares[1]).max())


def divergences(profile: Profile, runs: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Mean KL(P_retrained || P_model) in nats a token on the report half: of the target, of each unlearned model (seed 0), and, the noise
    floor, of the retrained model with another seed. Columns model, method, run, split, value, low, high, n."""
    if profile.hub:  # there is nothing to diverge from
        lines = [("target", "", d) for d in profile.domains] + [
            ("unlearned", r.method, r.target_domain) for r in runs[runs.seed == 0].itertuples()
        ]
        lines = [
            (*line, split) for line in lines for split in ("forget", "approximate", "evaluation")
        ]
        table = pd.DataFrame(lines, columns=["model", "method", "target_domain", "split"])
        return table.assign(measure="KL", **tables.NOT_AVAILABLE._asdict())
    again = pool.noise_floor(profile)
    steps = {("target", "", d): (pool.target(profile), d) for d in profile.domains}
    steps |= {
        ("unlearned", r.method, r.target_domain): (r.entry, r.target_domain)
        for r in runs[runs.seed == 0].itertuples()
    }
    steps[("retrained again", "", profile.noise_domain)] = (again, profile.noise_domain)
    looks = {
        k: extra_measurements.kl_from_retrained(profile, model, pool.retrained(profile, d), d)
        for k, (model, d) in steps.items()
    }
    pool.side_by_side(list(looks.values()), profile.workers)
    rows = pd.concat(
        [
            extra_measurements.rows_of([look]).assign(model=k[0], method=k[1])
            for k, look in looks.items()
        ],
        ignore_index=True,
    )
    return tables.summarise(
        rows, ["model", "method", "target_domain", "split"], ["KL"], seed, profile.resamples
    )


def continuations(profile: Profile, runs: pd.DataFrame) -> pd.DataFrame:
    """Greedy continuations of the forget documents by target, unlearned (seed 0, practitioner's step) and retrained model."""
    looks = {}
    for r in runs[runs.seed == 0].itertuples():
        made = {"target": pool.target(profile), "unlearned": r.entry}
        made |= {} if profile.hub else {"retrained": pool.retrained(profile, r.target_domain)}
        looks |= {
            (
                name,
                r.method if name == "unlearned" else "",
                r.target_domain,
            ): extra_measurements.greedy_continuations(profile, m, r.target_domain)
            for name, m in made.items()
        }
    pool.side_by_side(list(looks.values()), profile.workers)
    parts = [
        extra_measurements.rows_of([look]).assign(model=name, method=method)
        for (name, method, _), look in looks.items()
    ]
    return pd.concat(parts, ignore_index=True)


def downstream_tasks(profile: Profile, runs: pd.DataFrame, seed: int) -> pd.DataFrame:
    """What the models can still do: the target's score on each of the profile's tasks, and each unlearned model's (seed 0, practitioner's
    step) less that, question by question: model, run, task, measure, value, low, high, n (questions).

    Raises ValueError as `downstream.load`.
    """
    from unlearn_utils.engine import downstream

    before = extra_measurements.rows_of(
        [extra_measurements.task_answers(profile, pool.target(profile))]
    )
    table = [
        downstream.summarise(before, seed, profile.resamples).assign(
            model="target", target_domain=""
        )
    ]
    for row in runs[runs.seed == 0].itertuples():
        after = extra_measurements.rows_of([extra_measurements.task_answers(profile, row.entry)])
        table.append(
            downstream.differences(after, before, seed, profile.resamples).assign(
                model=f"{row.method} - target", target_domain=row.target_domain
            )
        )
    found = pd.concat(table, ignore_index=True)
    return found[["model", "target_domain", *found.columns.drop(["model", "target_domain"])]]


def blind(profile: Profile, seed: int) -> pd.DataFrame:
    """AUC of a classifier that sees the text only, on the report half: model, run, measure, value, low, high, n."""
    from unlearn_utils.engine import attacks

    generator, table = np.random.default_rng(seed), []
    for domain in profile.domains:
        forget, other = (
            selection.half(data(profile)[domain][s].to_pandas(), selection.REPORT)
            for s in ("forget", "approximate")
        )
        scores = attacks.blind_scores(
            list(forget.text), list(other.text), list(forget["rank"]), seed=seed
        )
        found = membership.bootstrap_auc(*scores, generator=generator, resamples=profile.resamples)
        table.append(
            {
                "model": "no model (blind)",
                "target_domain": domain,
                "measure": "AUC",
                **found._asdict(),
            }
        )
    return pd.DataFrame(table)


def ranking(profile: Profile, rows: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Methods by their distance to retraining: the mean of |log perplexity / retrained| over the four splits and the domains.

    Columns method, value, low, high, n, rank: 1 + the number of methods that are closer with an interval of the difference below 0, so
    methods that cannot be told apart share a rank. Every method is resampled with the same families of documents.
    """
    generator, keys = np.random.default_rng(seed), ["target_domain", "split", "id"]
    truth = rows[rows.model == profile.truth].set_index(keys)[["nll", "tokens"]].add_prefix("true_")
    ours = rows[rows.model == "unlearned"].set_index(keys).join(truth)
    names = list(ours.method.unique())
    total, n = np.zeros((profile.resamples + 1, len(names))), []
    groups = ours.groupby(level=["target_domain", "split"], sort=True)
    for _, part in groups:
        by_method = {name: one.sort_index() for name, one in part.groupby("method")}
        weights = tables.draw_weights(by_method[names[0]], generator, profile.resamples)
        for i, name in enumerate(names):
            one = by_method[name]
            levels = [
                weights @ one[nll] / (weights @ one[n])
                for nll, n in (("nll", "tokens"), ("true_nll", "true_tokens"))
            ]
            total[:, i] += np.abs(levels[0] - levels[1]) / groups.ngroups
        n.append(by_method[names[0]].family.nunique())
    low, high = np.quantile(total[1:], [0.025, 0.975], axis=0)
    closer = [
        sum(np.quantile(total[1:, j] - total[1:, i], 0.975) < 0 for j in range(len(names)))
        for i in range(len(names))
    ]
    table = pd.DataFrame(
        {
            "method": names,
            "value": total[0],
            "low": low,
            "high": high,
            "n": min(n),
            "rank": np.add(closer, 1),
        }
    )
    return table.sort_values("value", ignore_index=True)
