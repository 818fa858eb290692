"""What is measured for each claim of a profile: draws of each replicate, or exact numbers.

Nothing here knows a threshold. A claim that is about one method names it, as a constant.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from unlearn_utils.cache.workers import side_by_side
from unlearn_utils.core import efficiency, methods, tuning
from unlearn_utils.core.arrays import Floats
from unlearn_utils.core.distances import SPLITS
from unlearn_utils.core.replicates import PLAIN, SIZE, Scale
from unlearn_utils.findings import comparison, defects, draws, pool_tables, robustness
from unlearn_utils.findings.draws import ALL
from unlearn_utils.findings.robustness import Guideline
from unlearn_utils.profiles import LAPTOP, Profile
from unlearn_utils.study import costs, extra_measurements, pool, selection, single_run


class Like(NamedTuple):
    """A row of another table that holds the same quantity.

    Attributes:
        table: its name.
        keys: the columns that name the row.
    """

    table: str
    keys: Mapping


class Measured(NamedTuple):
    """A quantity over replicates.

    Attributes:
        draws: (replicates, 1 + resamples), the first as measured; None: nothing can be measured.
        n: families of documents, of the smallest split.
        domains: whose forget sets it is about.
        scale: of the quantity.
        like: the row of the committed study whose spread between replicates is borrowed; None: that
            of the same claim.
    """

    draws: Floats | None
    n: int
    domains: tuple[str, ...]
    scale: Scale = PLAIN
    like: Like | None = None


class Computed(NamedTuple):
    """A number that follows from arithmetic, and the range of what it assumes.

    Attributes:
        value, low, high: the same number three times where nothing is assumed.
        n: of what it is over.
        domains: whose forget sets it is about; none, where it is about the paper's scale.
    """

    value: float
    low: float
    high: float
    n: int
    domains: tuple[str, ...] = ()


Evidence = Measured | Computed


# --------------------------------------------------------------------------------------- C1: cost


def computed_ratio(profile: Profile) -> Computed:
    """Return C1: the least ratio of all methods and forget sets, computed for Yi-6B.

    The bounds are those of the bytes a token that are thought possible.
    """
    return _least_ratio({method.name: method.passes for method in methods.METHODS.values()})


def tuned_ratio(profile: Profile) -> Computed:
    """Return C1 with tuning: as `computed_ratio`, but a method costs all runs of its tuning.

    It is tuned as the first guideline says, on the default profile's grid.
    """
    return _tuned_ratio(next(iter(robustness.GUIDELINES.values())))


# Text that is read at a mark, as a share of the forget set: half of it (the selection half) and as
# much general text, which bounds the choice; for an AUC as much unseen text, too.
READ = {None: 0.0, "proxy": 1.0, "auc": 1.5}
READ_BY_SEARCH = 4 * 2 * tuning.READ / LAPTOP.corpus.pairs  # of four sets both halves


def passes_of_tuning(guideline: Guideline, passes: float) -> float:
    """Return what a guideline costs, in training passes over the forget set.

    It runs the rates of the default profile's grid for the epochs of its plane, or what it leaves
    as usual. It reads at each step that is a power of two, and at the last; marks between these,
    which the study's own paths have, would cost more. The weights of the best step are kept on the
    way, so no run comes after the choice. Of a search it is the most: nothing is ended early.

    Args:
        guideline: of `robustness.RULES`.
        passes: what a forget token costs in an epoch, `Method.passes`.
    """
    rates = 1 if "rate" in guideline.fixed else len(LAPTOP.grid.learning_rates)
    epochs = 1 if "epochs" in guideline.fixed else LAPTOP.grid.epochs
    steps = LAPTOP.corpus.pairs * epochs // LAPTOP.unlearning.batch
    marks = len(single_run.marks(steps))
    read = READ_BY_SEARCH if guideline.searched else READ[guideline.goal]
    return efficiency.tuning_passes(passes, rates, epochs, marks, read)


def _tuned_ratio(guideline: Guideline) -> Computed:
    """Return the least ratio where each method is tuned by a guideline."""
    found = {}
    for method in methods.METHODS.values():
        found[method.name] = passes_of_tuning(guideline, method.passes)
    return _least_ratio(found)


def cost_of_guidelines() -> pd.DataFrame:
    """Return what guidelines and `tune` take of claim C1: exact, but for the bytes of a token.

    Returns:
        guideline, rates (that are run, by a search at most), epochs (of each, likewise), value,
        low, high: retraining over unlearning for Yi-6B, as `computed_ratio`.
    """
    lines = []
    for name in (*robustness.GUIDELINES, robustness.SEARCH):
        guideline = robustness.RULES[name]
        ratio = _tuned_ratio(guideline)
        lines.append(
            {
                "guideline": name,
                "rates": 1 if "rate" in guideline.fixed else len(LAPTOP.grid.learning_rates),
                "epochs": 1 if "epochs" in guideline.fixed else LAPTOP.grid.epochs,
                "value": ratio.value,
                "low": ratio.low,
                "high": ratio.high,
            }
        )
    return pd.DataFrame(lines)


def _least_ratio(passes: dict[str, float]) -> Computed:
    """Return the least ratio over methods and the paper's forget sets.

    passes: what a forget token costs, in training passes, by method.
    """
    least = []
    for bytes_per_token in efficiency.BYTES_PER_TOKEN:
        ratios = []
        for number in passes.values():
            for size in efficiency.FORGET_BYTES.values():
                ratios.append(efficiency.computed_ratio(number, size, bytes_per_token))
        least.append(min(ratios))
    low, value, high = least
    return Computed(value, low, high, len(efficiency.FORGET_BYTES))


def counted_ratio(profile: Profile) -> Computed:
    """Return C1 at this scale: the largest ratio of all methods and domains, exact."""
    counts = []
    for domain in profile.domains:
        for method in (costs.RETRAINING, *methods.METHODS):
            counts.append(costs.flops(profile, domain, method))
    side_by_side(counts, profile.workers)
    rows = extra_measurements.rows_of(counts)
    flops = rows.pivot(index="target_domain", columns="method", values="flops")
    cheapest = flops[list(methods.METHODS)].min(axis=1)
    ratio = float((flops[costs.RETRAINING] / cheapest).max())
    return Computed(ratio, ratio, ratio, profile.corpus.pairs, profile.domains)


# ----------------------------------------------------------------------- C2, C4: hyperparameters


def more_robust(measure: str, profile: Profile) -> Measured:
    """Return C2: ascent + descent in-distribution less ascent, mean over domains.

    On one domain alone it is another quantity than the study's mean over three, so the spread is
    that of the study's row of this domain.

    measure: a key of `robustness.SMALLEST`.
    """
    plane, domains = robustness.MAIN_PLANE, profile.grid.claimed_domains
    found = robustness.differences(profile, plane, measure)["mean"]
    of = domains[0] if len(domains) == 1 else "mean"
    like = Like("table11_claim", {"target_domain": of, "plane": plane, "measure": measure})
    return Measured(found, robustness.smallest_n(profile, domains), domains, like=like)


def regret(guideline: str, profile: Profile) -> Measured:
    """Return C4: the mean regret of a guideline, a key of `robustness.GUIDELINES`.

    Nothing is available without a retrained model, whose stand-in is what guidelines tune to.
    """
    domains = profile.grid.domains[:1]
    if not profile.has_retrained:
        return Measured(None, 0, domains)
    found = robustness.regrets(profile)[guideline]["mean"]
    return Measured(found, robustness.smallest_n(profile, domains), domains)


# --------------------------------------------------------------------------------------- findings


def proxy(profile: Profile) -> Measured:
    """Return F1: log perplexity of the target over the retrained model's, on unseen text."""
    domains = profile.domains
    if not profile.has_retrained:
        return Measured(None, 0, domains)
    n = min(draws.sample(profile, domain, "approximate", ALL).families for domain in domains)
    return Measured(pool_tables.proxy_bias(profile), n, domains)


def least_detected(profile: Profile) -> Measured:
    """Return F3: the least, of all methods, AUC over the retrained model's at equal forgetting."""
    n = robustness.smallest_n(profile, profile.domains)
    return Measured(comparison.least_detected(profile), n, profile.domains)


def effect_of_defect(defect: str, profile: Profile) -> Measured:
    """Return F4: |log forget perplexity, official / corrected| at the end of the epoch.

    defect: a key of `released_code.NAMES`.
    """
    found, n = defects.effect(profile, defect)
    return Measured(found, n, profile.domains[:1], SIZE)


# -------------------------------------------------------------------- C3: what the benchmark covers

KINDS = ("forget", "unseen", "retain", "general")  # of text, in words, in the order of `SPLITS`
MEMBERSHIP = "membership"


def coverage(profile: Profile) -> pd.DataFrame:
    """Return which of the models are measured on what: a checklist, and no claim.

    Returns:
        model (each method, the target, the retrained model), then a column a domain, with the kinds
        of text on which its model has a perplexity in every replicate, and `MEMBERSHIP` where it
        has an AUC.
    """
    lines = []
    for name in (*methods.METHODS, "target", "retrained"):
        line = {"model": name}
        for domain in profile.domains:
            known = np.isfinite(_readings(profile, name, domain)).all(axis=0)
            told = zip((*KINDS, MEMBERSHIP), known, strict=True)
            line[domain] = ", ".join(kind for kind, there in told if there)
        lines.append(line)
    return pd.DataFrame(lines)


def _readings(profile: Profile, model: str, domain: str) -> Floats:
    """Return what is measured of one model of a domain, report half: (replicates, kinds + 1).

    It is log perplexity on each kind of text, and the AUC. A method's model is that of the last
    mark.
    """
    found = []
    if model in methods.METHODS:
        for drawn in comparison.usual(profile, domain, model):
            gaps, auc = drawn.gaps[selection.REPORT], drawn.auc[selection.REPORT]
            found.append([*gaps[0, -1], auc[0, -1]])
        return np.array(found)
    if model == "retrained" and not profile.has_retrained:
        return np.full((1, len(SPLITS) + 1), np.nan)
    read = pool.target_rows if model == "target" else pool.truth_rows
    for replicate in profile.replicates:
        rows = read(profile, domain, replicate)
        levels = draws.levels(profile, rows, domain, selection.REPORT)
        auc = draws.auc(profile, rows, domain, selection.REPORT)
        found.append([*levels[0], auc[0]])
    return np.array(found)
