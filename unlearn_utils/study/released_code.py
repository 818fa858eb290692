"""The released code's defects that can be switched, each as two runs that differ in it alone."""

from __future__ import annotations

from typing import NamedTuple

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

Key = tuple[str, str]  # of a run: its defect, and whose code it is, "corrected" or "official"


class Pair(NamedTuple):
    """Two runs that differ in one defect.

    Attributes:
        method: the method that has the defect.
        corrected, official: fields of `profiles.Unlearning`, in the place of the profile's own.
    """

    method: str
    corrected: dict
    official: dict


def pairs(profile: Profile) -> dict[str, Pair]:
    """Return the pair of each defect, by the defect's number and name."""
    few_steps = {"batch": _batch_of_few_steps(profile)}
    half = {"batch": max(1, profile.unlearning.batch // 2)}
    return {
        "1 shifted labels": Pair("adversarial", {}, {"variant": (1,)}),
        "2 KL over padding": Pair("ascent_kl_in_distribution", {}, {"variant": (2,)}),
        "3 half weights": Pair("ascent_descent_in_distribution", {}, {"variant": (3,)}),
        "4 twice the steps": Pair("ascent_descent_in_distribution", {}, {"variant": (3,), **half}),
        "5 idle first step": Pair(
            "gradient_ascent",
            {"schedule": "cosine", **few_steps},
            {"schedule": "cosine, idle warm-up", **few_steps},
        ),
        "7 random labels": Pair("random_label", {}, {"variant": (7,)}),
    }


def _batch_of_few_steps(profile: Profile) -> int:
    """Return the batch that makes four steps an epoch, as the released code's gradient ascent has.

    For a published model it is a multiple of eight, which eight processes can share.
    """
    documents = profile.corpus.pairs
    if profile.corpus.whole:
        documents = len(tokenized(profile, [(profile.domains[0], "forget")]))  # chunks
    quarter = max(1, documents // 4)
    if profile.hub and quarter > 8:
        return quarter - quarter % 8
    return quarter


# --------------------------------------------------------------------------------------------- runs


def artifacts(profile: Profile, target_domain: str) -> dict[Key, Artifact]:
    """Return the runs of every pair on one domain."""
    runs = {}
    for defect, pair in pairs(profile).items():
        for code, choices in (("corrected", pair.corrected), ("official", pair.official)):
            run = unlearning.unlearning_run(profile, target_domain, pair.method, **choices)
            runs[defect, code] = run
    return runs


def trained_runs(profile: Profile, target_domain: str) -> dict[Key, Artifact]:
    """Return `artifacts`, trained side by side where they are missing."""
    runs = artifacts(profile, target_domain)
    side_by_side(list(runs.values()), profile.workers)
    return runs


def trajectories(runs: dict[Key, Artifact]) -> pd.DataFrame:
    """Return what was measured on the way of every run, with columns `defect` and `code`."""
    frames = []
    for (defect, code), artifact in runs.items():
        rows = pd.read_parquet(artifact.folder() / "trajectory.parquet")
        frames.append(rows.assign(defect=defect, code=code))
    return pd.concat(frames)


# ------------------------------------------------------------------------ the step that is compared


def last(
    profile: Profile, rows: pd.DataFrame, defect: str
) -> tuple[pd.DataFrame, pd.DataFrame, int]:
    """Return the rows of both runs at the last step that both reached.

    Defect 4 takes two steps where the corrected code takes one: the same share of the epoch is
    compared.

    Args:
        profile: says the batches.
        rows: of `trajectories`.
        defect: a key of `pairs`.

    Returns:
        the rows of the official run, those of the corrected one, and the corrected run's step.
    """
    of_defect = rows[rows.defect == defect]
    official = of_defect[of_defect.code == "official"]
    corrected = of_defect[of_defect.code == "corrected"]
    scale = _steps_for_one(profile, defect)
    end = corrected.step.max()
    official_end = official.step.max()
    same_place = scale * (end - 1) < official_end <= scale * end
    if not same_place:  # one of them diverged
        reached = set(official.step)
        end = max(step for step in corrected.step.unique() if step * scale in reached)
        official_end = end * scale
    return official[official.step == official_end], corrected[corrected.step == end], int(end)


def _steps_for_one(profile: Profile, defect: str) -> int:
    """Return how many steps the official run takes where the corrected one takes one."""
    pair = pairs(profile)[defect]
    own = profile.unlearning.batch
    return pair.corrected.get("batch", own) // pair.official.get("batch", own)
