"""The released code's switchable defects.

What each pair of runs differs in, and which runs they are. `test_defects.py` compares them.
"""

from dataclasses import fields, replace

import pytest
import torch

from unlearn_utils.core import methods
from unlearn_utils.engine import training
from unlearn_utils.profiles import PROFILES, Unlearning
from unlearn_utils.study import released_code
from unlearn_utils.study.single_run import Run

SMOKE, LAPTOP = PROFILES["smoke"], PROFILES["laptop"]
# profiles whose documents are here
TRAINED = {name: profile for name, profile in PROFILES.items() if not profile.hub}
DIFFERS = {  # fields in which the official run differs from the corrected one
    "1 shifted labels": {"variant"},
    "2 KL over padding": {"variant"},
    "3 half weights": {"variant"},
    "4 twice the steps": {"variant", "batch"},
    "5 idle first step": {"schedule"},
    "7 random labels": {"variant"},
}
CODES = ("corrected", "official")


def recipes(profile, defect):
    """Return the corrected and the official recipe."""
    pair = released_code.pairs(profile)[defect]
    corrected = replace(profile.unlearning, **pair.corrected)
    official = replace(profile.unlearning, **pair.official)
    return corrected, official


# ------------------------------------------------------------------------------------------- pairs


@pytest.mark.parametrize("profile", TRAINED.values(), ids=TRAINED)
@pytest.mark.parametrize("defect", DIFFERS)
def test_each_pair_differs_in_what_it_says_and_in_nothing_else(profile, defect):
    corrected, official = recipes(profile, defect)
    names = [field.name for field in fields(Unlearning)]
    different = {name for name in names if getattr(corrected, name) != getattr(official, name)}
    assert different == DIFFERS[defect]
    assert corrected.variant == "corrected"
    assert methods.defects(corrected.variant) == set()


@pytest.mark.parametrize(
    ("defect", "reproduced", "concerned"),
    [
        ("1 shifted labels", {1}, methods.ADVERSARIAL),
        ("2 KL over padding", {2}, methods.KL),
        ("3 half weights", {3}, methods.DESCENT),
        ("4 twice the steps", {3}, methods.DESCENT),
        ("5 idle first step", set(), methods.ASCENT),
        ("7 random labels", {7}, methods.RANDOM_LABEL),
    ],
)
def test_each_official_run_has_its_defect_and_a_term_that_shows_it(defect, reproduced, concerned):
    _, official = recipes(LAPTOP, defect)
    assert methods.defects(official.variant) == reproduced
    method = methods.METHODS[released_code.pairs(LAPTOP)[defect].method]
    assert concerned in method.terms.values()


def test_every_pair_has_a_name_and_every_switch_a_pair():
    assert list(released_code.pairs(LAPTOP)) == list(DIFFERS)
    assert list(released_code.NAMES) == list(DIFFERS)
    numbers = {int(name[0]) for name in released_code.NAMES}
    assert set(methods.REPRODUCIBLE) <= numbers


@pytest.mark.parametrize("profile", TRAINED.values(), ids=TRAINED)
def test_defect_4_takes_twice_the_steps(profile):
    documents = profile.corpus.pairs
    corrected, official = recipes(profile, "4 twice the steps")
    ours = training.steps_of(documents, corrected.batch, corrected.epochs)
    theirs = training.steps_of(documents, official.batch, official.epochs)
    assert theirs == 2 * ours
    same, _ = recipes(profile, "3 half weights")
    assert corrected == same  # the same corrected run: trained once


@pytest.mark.parametrize("profile", TRAINED.values(), ids=TRAINED)
def test_defect_5_shows_in_four_steps_of_which_the_first_is_idle(profile):
    def first_rate(recipe):
        steps = training.steps_of(profile.corpus.pairs, recipe.batch, recipe.epochs)
        assert steps == 4
        weight = torch.nn.Parameter(torch.zeros(1))
        optimizer = torch.optim.SGD([weight], lr=recipe.learning_rate)
        return training._schedule(optimizer, recipe, steps).get_last_lr()[0]

    corrected, official = recipes(profile, "5 idle first step")
    assert first_rate(corrected) == profile.unlearning.learning_rate
    assert first_rate(official) == 0
    # the same curve otherwise
    assert official.schedule == f"{corrected.schedule}, idle warm-up"


# -------------------------------------------------------------------------------------------- runs


def test_runs_are_those_of_the_pairs_over_one_epoch_on_the_target_of_the_replicate():
    """Whatever the profile's own epochs are; so a cosine schedule spans the one epoch."""
    longer = replace(SMOKE, unlearning=replace(SMOKE.unlearning, epochs=3))
    found = released_code.runs(longer, 5, "github")
    keys = []
    for defect in DIFFERS:
        corrected, official = recipes(longer, defect)
        for code, recipe in zip(CODES, (corrected, official), strict=True):
            keys.append((defect, code))
            method = released_code.pairs(longer)[defect].method
            expected = Run(longer, "github", method, replace(recipe, epochs=1), 5)
            assert found[defect, code] == expected
    assert list(found) == keys


def test_runs_that_are_equal_are_one_and_no_others_are():
    found = released_code.runs(SMOKE, 0, "arxiv")
    shared = {"3 half weights", "4 twice the steps"}
    equal = {key for key, run in found.items() if list(found.values()).count(run) > 1}
    assert equal == {(defect, "corrected") for defect in shared}
    assert len(set(found.values())) == 11


def test_every_run_has_all_replicates_on_the_first_domain_once():
    profile = replace(SMOKE, replicates=(2, 5), domains=("github", "arxiv"))
    found = released_code.every_run(profile)
    expected = set()
    for replicate in (2, 5):
        expected |= set(released_code.runs(profile, replicate, "github").values())
    assert set(found) == expected
    assert len(found) == 22
    assert [run.replicate for run in found] == [2] * 11 + [5] * 11
