"""The released code's switchable defects.

What each pair of runs differs in, and at which step it is compared.
"""

from dataclasses import fields, replace

import pandas as pd
import pytest
import torch

from unlearn_utils.cache.store import Artifact
from unlearn_utils.core import methods
from unlearn_utils.engine import training
from unlearn_utils.profiles import PROFILES, Unlearning
from unlearn_utils.study import released_code, single_run, unlearning

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


def test_runs_are_those_of_the_pairs_trained_together(monkeypatch):
    asked = []
    together = []

    def unlearning_run(profile, target_domain, method, **choices):
        assert profile == SMOKE
        assert target_domain == "github"
        asked.append((method, choices))
        return len(asked)

    def side_by_side(artifacts, workers):
        together.append(artifacts)

    monkeypatch.setattr(unlearning, "unlearning_run", unlearning_run)
    monkeypatch.setattr(released_code, "side_by_side", side_by_side)
    found = released_code.trained_runs(SMOKE, "github")
    expected = []
    keys = []
    for defect, pair in released_code.pairs(SMOKE).items():
        expected += [(pair.method, pair.corrected), (pair.method, pair.official)]
        keys += [(defect, code) for code in CODES]
    assert asked == expected
    assert list(found) == keys
    assert list(found.values()) == list(range(1, 13))
    assert together == [list(found.values())]


def test_trajectories_say_whose_they_are(tmp_path, monkeypatch):
    monkeypatch.setenv("UNLEARN_STORE", str(tmp_path))

    def run(first):
        def make(folder):
            rows = pd.DataFrame({"step": [0, 1], "nll": [first, first + 1.0]})
            rows.to_parquet(folder / "trajectory.parquet")

        return Artifact("toy", 1, {"first": first}, make)

    runs = {
        ("1 shifted labels", "corrected"): run(0.0),
        ("1 shifted labels", "official"): run(10.0),
        ("7 random labels", "official"): run(20.0),
    }
    found = released_code.trajectories(runs)
    assert found[["defect", "code", "step", "nll"]].values.tolist() == [
        ["1 shifted labels", "corrected", 0, 0.0],
        ["1 shifted labels", "corrected", 1, 1.0],
        ["1 shifted labels", "official", 0, 10.0],
        ["1 shifted labels", "official", 1, 11.0],
        ["7 random labels", "official", 0, 20.0],
        ["7 random labels", "official", 1, 21.0],
    ]


# ------------------------------------------------------------------------ the step that is compared


def measured(defect, **steps):
    """Return two rows at each step of each code; `nll` says which."""
    rows = []
    for code, reached in steps.items():
        for step in reached:
            for i in range(2):
                row = {"defect": defect, "code": code, "step": step, "id": i}
                rows.append(row | {"nll": 100 * step + i})
    return pd.DataFrame(rows)


def last(rows, defect, profile=LAPTOP):
    """Return the steps compared (official, corrected) and the one that is named.

    Check that there are two rows of each, of this defect.
    """
    official, corrected, step = released_code.last(profile, rows, defect)
    for part, code in ((official, "official"), (corrected, "corrected")):
        assert set(part.defect) == {defect}
        assert set(part.code) == {code}
        assert part.id.tolist() == [0, 1]
        compared = part.step.iloc[0]
        assert part.nll.tolist() == [100 * compared, 100 * compared + 1]
    return official.step.iloc[0], corrected.step.iloc[0], step


@pytest.mark.parametrize(
    ("corrected", "official", "expected"),
    [
        ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4], 4),
        ([0, 1, 2, 3, 4], [0, 1, 2], 2),  # the official run diverged
        ([0, 1], [0, 1, 2, 3, 4], 1),
        ([0, 1, 2, 5, 9], [0, 1, 2, 4, 8, 10], 2),  # watched at different steps
        ([4, 0, 2], [2, 4, 0], 4),
        ([0, 1, 2], [0], 0),
    ],
)
def test_the_last_step_that_both_reached(corrected, official, expected):
    other = measured("2 KL over padding", corrected=range(30), official=range(30))
    own = measured("1 shifted labels", corrected=corrected, official=official)
    rows = pd.concat([other, own])
    assert last(rows, "1 shifted labels") == (expected, expected, expected)


@pytest.mark.parametrize(
    ("corrected", "official", "expected"),
    [
        (range(16), range(31), (30, 15, 15)),
        (range(16), range(13), (12, 6, 6)),  # the official run diverged after 12 of its 30 steps
        (range(16), range(14), (12, 6, 6)),
        (range(5), range(31), (8, 4, 4)),
        # as they are watched
        (single_run.watched_steps(15), single_run.watched_steps(30), (30, 15, 15)),
    ],
)
def test_defect_4_is_compared_after_the_same_share_of_the_epoch(corrected, official, expected):
    rows = measured("4 twice the steps", corrected=corrected, official=official)
    assert last(rows, "4 twice the steps") == expected


@pytest.mark.parametrize("defect", [name for name in DIFFERS if name != "4 twice the steps"])
def test_no_other_defect_is_compared_at_twice_the_step(defect):
    """Defect 5 has batches of its own, alike on both sides."""
    rows = measured(defect, corrected=range(5), official=range(5))
    assert last(rows, defect) == (4, 4, 4)
