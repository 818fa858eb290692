"""What how often a passage was inserted does to memorising and to unlearning; of Hubble alone.

Each number of insertions has documents of its own, which are drawn by themselves, alike for every
model.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from unlearn_utils.core import tables
from unlearn_utils.core.arrays import Floats
from unlearn_utils.core.methods import METHODS
from unlearn_utils.data.corpus import INSERTED
from unlearn_utils.findings import draws, plots
from unlearn_utils.findings.draws import Sample
from unlearn_utils.findings.replicated import Row, table
from unlearn_utils.profiles import Profile
from unlearn_utils.study import method_paths, pool, selection

TARGET = "target"
TABLE = "table10_insertions"


def available(profile: Profile) -> bool:
    """Return whether it is known how often each document of a profile was inserted."""
    return INSERTED in pool.target_rows(profile, profile.domains[0], profile.replicates[0])


def insertions_table(profile: Profile) -> pd.DataFrame:
    """Write and return table10_insertions: models over retrained, by number of insertions.

    It is log perplexity on the forget documents of the report half. A method's model is that of the
    step which is nearest to retraining on the selection half.

    Returns:
        target_domain, model (`TARGET` or a method), duplicates, and the columns of
        `replicated.table`, in nats a token: less than 0 is still remembered.
    """
    rows = []
    replicate = profile.replicates[0]
    for domain in profile.domains:
        target = _reported(pool.target_rows(profile, domain, replicate))
        truth = _reported(pool.truth_rows(profile, domain, replicate))
        models = {TARGET: target, **_unlearned(profile, domain)}
        samples = _samples(profile, domain, target)
        for model, read in models.items():
            for number, drawn in samples.items():
                gap = _level(drawn, read) - _level(drawn, truth)
                keys = {"target_domain": domain, "model": model, INSERTED: number}
                rows.append(Row(keys, gap[None], drawn.families))
    return table(profile, TABLE, rows)


def draw(data: pd.DataFrame, ax: Axes) -> Axes:
    """Draw the target and each method over the number of insertions; a retrained model is at 0.

    data: `insertions_table` of one domain.
    """
    for model, rows in data.groupby("model", sort=False):
        colour, marker = plots.method_style(model)
        label = plots.readable(model)
        ax.plot(rows[INSERTED], rows["value"], color=colour, marker=marker, label=label)
        ax.fill_between(rows[INSERTED], rows["low"], rows["high"], color=colour, alpha=0.1, lw=0)
    ax.axhline(0, color="black", lw=0.6, ls=plots.DOTTED)
    ax.set_xscale("log", base=2)
    ax.set(xlabel="how often it was inserted", ylabel="log perplexity over retrained (nats)")
    return ax


def _reported(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the forget documents of the report half."""
    return selection.half(rows[rows.split == "forget"], selection.REPORT)


def _unlearned(profile: Profile, domain: str) -> dict[str, pd.DataFrame]:
    """Return the rows of each method's model; the target's if no step was taken."""
    replicate = profile.replicates[0]
    runs = [method_paths.usual_run(profile, replicate, domain, name) for name in METHODS]
    found = {}
    for name, artifact in zip(METHODS, method_paths.make_all(runs), strict=True):
        rows = pd.read_parquet(artifact.path / "rows.parquet")
        step = method_paths.outcome(artifact)["kept"] or 0
        found[name] = _reported(rows[rows.step == step])
    return found


def _samples(profile: Profile, domain: str, target: pd.DataFrame) -> dict[int, Sample]:
    """Return the documents of each number of insertions, the fewest first, and their draws."""
    found = {}
    for number, part in target.groupby(INSERTED):
        seeds = [draws.SEED, profile.domains.index(domain), number]
        weights = tables.draw_weights(part, np.random.default_rng(seeds), profile.resamples)
        found[number] = Sample(pd.Index(part.id), weights, part.family.nunique())
    return found


def _level(drawn: Sample, rows: pd.DataFrame) -> Floats:
    """Return log perplexity in each draw: (1 + resamples,)."""
    return drawn.mean(rows, "nll", "tokens")
