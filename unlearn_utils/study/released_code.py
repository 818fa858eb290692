"""The released code's defects that can be switched, each as two runs that differ in it alone.

So are slips of public code in general, which no claim is about.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from unlearn_utils.profiles import Profile
from unlearn_utils.study.single_run import Run
from unlearn_utils.study.study_documents import tokenized

NAMES = {  # in words, after "the released code"
    "1 shifted labels": "shifts adversarial labels",
    "2 KL over padding": "averages KL over padding",
    "3 half weights": "halves the weights",
    "4 twice the steps": "takes twice the steps",
    "5 idle first step": "idles in its first step",
    "7 random labels": "lets random labels be true or special ones",
}

PUBLIC = {  # slip of `methods.PUBLIC` -> the method that has it here
    "raw logits": "ascent_kl_in_distribution",
    "raw logits in NPO": "npo",
    "no logarithm": "ascent_kl_in_distribution",
    "batch mean": "ascent_kl_in_distribution",
    "equal retain text": "ascent_descent_in_distribution",
    "padding": "gradient_ascent",
    "index -100": "gradient_ascent",
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


def public_pairs() -> dict[str, Pair]:
    """Return the pair of each slip of public code; the run that has it is the official one."""
    return {slip: Pair(method, {}, {"variant": (slip,)}) for slip, method in PUBLIC.items()}


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


def runs(profile: Profile, replicate: int, target_domain: str) -> dict[Key, Run]:
    """Return the runs of every pair on one domain of one replicate.

    They take one epoch, as the released code does, and its cosine schedule spans that epoch. The
    runs of two defects may be equal: they are then one path.
    """
    return _runs(pairs(profile), profile, replicate, target_domain)


def public_runs(profile: Profile, replicate: int, target_domain: str) -> dict[Key, Run]:
    """Return the runs of every pair of `public_pairs`, as `runs`."""
    return _runs(public_pairs(), profile, replicate, target_domain)


def _runs(
    chosen: Mapping[str, Pair], profile: Profile, replicate: int, target_domain: str
) -> dict[Key, Run]:
    """Return the two runs of each pair."""
    found = {}
    for defect, pair in chosen.items():
        for code, choices in (("corrected", pair.corrected), ("official", pair.official)):
            recipe = replace(profile.unlearning, epochs=1, **choices)
            found[defect, code] = Run(profile, target_domain, pair.method, recipe, replicate)
    return found


def every_run(profile: Profile) -> list[Run]:
    """Return the runs of every replicate on the profile's first domain, once each."""
    found = []
    for replicate in profile.replicates:
        found += runs(profile, replicate, profile.domains[0]).values()
    return list(dict.fromkeys(found))


def every_public_run(profile: Profile) -> list[Run]:
    """Return the runs of `public_pairs`, as `every_run`; some without a slip are of both."""
    found = []
    for replicate in profile.replicates:
        found += public_runs(profile, replicate, profile.domains[0]).values()
    return list(dict.fromkeys(found))


def slip_runs(profile: Profile) -> list[Run]:
    """Return the runs of `every_public_run` that are not of `every_run`."""
    known = set(every_run(profile))
    return [run for run in every_public_run(profile) if run not in known]


def all_runs(profile: Profile) -> list[Run]:
    """Return the runs of `every_run` and of `every_public_run`, once each."""
    return [*every_run(profile), *slip_runs(profile)]
