"""The released code's defects that can be switched, each as a pair of runs that differ in it alone."""

from __future__ import annotations

import pandas as pd

from unlearn_utils.cache.store import Artifact
from unlearn_utils.cache.workers import side_by_side
from unlearn_utils.profiles import Profile
from unlearn_utils.study import unlearning
from unlearn_utils.study.study_documents import tokenized

NAMES = {  # in words, after "the released code"
    "1 shifted labels": "shifts adversarial labels",
    "2 KL over padding": "averages KL over padding",
    "3 half weights": "halves the weights",
    "4 twice the steps": "takes twice the steps",
    "5 idle first step": "idles in its first step",
    "7 random labels": "lets random labels be true or special ones",
}


def pairs(profile: Profile) -> dict[str, tuple[str, dict, dict]]:
    """Of each defect (number and name): the method, the corrected choices and the official ones, fields of `profiles.Unlearning`."""
    size = len(tokenized(profile, [(profile.domains[0], "forget")])) if profile.corpus.whole else profile.corpus.pairs  # chunks to forget
    quarter = max(1, size // 4)  # 4 steps an epoch, as the released code's gradient ascent has
    few = {"batch": quarter - quarter % 8 if profile.hub and quarter > 8 else quarter}  # which eight processes can share
    half = {"batch": max(1, profile.unlearning.batch // 2)}
    return {
        "1 shifted labels": ("adversarial", {}, {"variant": (1,)}),
        "2 KL over padding": ("ascent_kl_in_distribution", {}, {"variant": (2,)}),
        "3 half weights": ("ascent_descent_in_distribution", {}, {"variant": (3,)}),
        "4 twice the steps": ("ascent_descent_in_distribution", {}, {"variant": (3,), **half}),
        "5 idle first step": ("gradient_ascent", {"schedule": "cosine", **few}, {"schedule": "cosine, idle warm-up", **few}),
        "7 random labels": ("random_label", {}, {"variant": (7,)}),
    }


def artifacts(profile: Profile, domain: str) -> dict[tuple[str, str], Artifact]:
    """The runs by defect and code ("corrected", "official")."""
    found = {}
    for defect, (method, corrected, official) in pairs(profile).items():
        found[defect, "corrected"] = unlearning.unlearning_run(profile, domain, method, **corrected)
        found[defect, "official"] = unlearning.unlearning_run(profile, domain, method, **official)
    return found


def trained_runs(profile: Profile, domain: str) -> dict[tuple[str, str], Artifact]:
    """`steps`, trained side by side where missing."""
    found = artifacts(profile, domain)
    side_by_side(list(found.values()), profile.workers)
    return found


def trajectories(runs: dict[tuple[str, str], Artifact]) -> pd.DataFrame:
    """What was measured on the way, by defect and code."""
    return pd.concat([pd.read_parquet(s.folder() / "trajectory.parquet").assign(defect=d, code=c) for (d, c), s in runs.items()])


def last(profile: Profile, rows: pd.DataFrame, defect: str) -> tuple[pd.DataFrame, pd.DataFrame, int]:
    """Rows of the official and of the corrected run at the last step that both reached, and that step (of the corrected run).

    Defect 4 takes two steps where the corrected code takes one: the same share of the epoch is compared. rows: of `trajectories`.
    """
    official, corrected = (rows[(rows.defect == defect) & (rows.code == code)] for code in ("official", "corrected"))
    _, _, choices = pairs(profile)[defect]
    scale = profile.unlearning.batch // choices["batch"] if defect.startswith("4") else 1
    ends = corrected.step.max(), official.step.max()
    if not scale * (ends[0] - 1) < ends[1] <= scale * ends[0]:  # one of them diverged
        common = max(s for s in corrected.step.unique() if s * scale in set(official.step))
        ends = common, common * scale
    return official[official.step == ends[1]], corrected[corrected.step == ends[0]], int(ends[0])
