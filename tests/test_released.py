"""The released code's switchable defects: what each pair of runs differs in, and at which step it is compared."""

from dataclasses import fields, replace

import pandas as pd
import pytest

from unlearn_utils.cache.store import Artifact
from unlearn_utils.core import methods
from unlearn_utils.engine import training
from unlearn_utils.profiles import PROFILES, Unlearning
from unlearn_utils.study import released_code, single_run, unlearning

SMOKE, LAPTOP = PROFILES["smoke"], PROFILES["laptop"]
TRAINED = {name: profile for name, profile in PROFILES.items() if not profile.hub}  # whose documents are here
DIFFERS = {  # fields in which the official run differs from the corrected one
    "1 shifted labels": {"variant"},
    "2 KL over padding": {"variant"},
    "3 half weights": {"variant"},
    "4 twice the steps": {"variant", "batch"},
    "5 idle first step": {"schedule"},
    "7 random labels": {"variant"},
}


def recipes(profile, defect):
    """The method, the corrected and the official recipe."""
    method, *choices = released_code.pairs(profile)[defect]
    return method, *(replace(profile.unlearning, **chosen) for chosen in choices)


# ---------------------------------------------------------------------------------------------- pairs


@pytest.mark.parametrize("profile", TRAINED.values(), ids=TRAINED)
@pytest.mark.parametrize("defect", DIFFERS)
def test_each_pair_differs_in_what_it_says_and_in_nothing_else(profile, defect):
    _, corrected, official = recipes(profile, defect)
    assert {f.name for f in fields(Unlearning) if getattr(corrected, f.name) != getattr(official, f.name)} == DIFFERS[defect]
    assert corrected.variant == "corrected" and methods.defects(corrected.variant) == set()


@pytest.mark.parametrize("defect", DIFFERS)
def test_each_official_run_has_the_defect_of_its_number(defect):
    method, _, official = recipes(LAPTOP, defect)
    number = int(defect[0])
    assert methods.defects(official.variant) == {1: {1}, 2: {2}, 3: {3}, 4: {3}, 5: set(), 7: {7}}[number]
    concerned = {1: ("forget", "adversarial"), 2: ("retain", "kl"), 3: ("retain", "descent"), 4: ("retain", "descent")}
    concerned |= {5: ("forget", "ascent"), 7: ("forget", "random_label")}
    term, kind = concerned[number]
    assert getattr(methods.METHODS[method], term) == kind


def test_every_pair_has_a_name_and_every_switch_a_pair():
    assert list(released_code.pairs(LAPTOP)) == list(released_code.NAMES) == list(DIFFERS)
    assert set(methods.REPRODUCIBLE) <= {int(name[0]) for name in released_code.NAMES}


@pytest.mark.parametrize("profile", TRAINED.values(), ids=TRAINED)
def test_defect_4_takes_twice_the_steps(profile):
    _, corrected, official = recipes(profile, "4 twice the steps")
    steps = [training.steps_of(profile.corpus.pairs, r.batch, r.epochs) for r in (corrected, official)]
    assert steps[1] == 2 * steps[0]
    _, third, _ = recipes(profile, "3 half weights")
    assert corrected == third  # the same corrected run: trained once


@pytest.mark.parametrize("profile", TRAINED.values(), ids=TRAINED)
def test_defect_5_shows_in_four_steps_of_which_the_first_is_idle(profile):
    import torch

    _, corrected, official = recipes(profile, "5 idle first step")
    first = []
    for recipe in (corrected, official):
        steps = training.steps_of(profile.corpus.pairs, recipe.batch, recipe.epochs)
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=recipe.learning_rate)
        first.append((steps, training._schedule(optimizer, recipe, steps).get_last_lr()[0]))
    assert first == [(4, profile.unlearning.learning_rate), (4, 0)]
    assert official.schedule == corrected.schedule + ", idle warm-up"  # the same curve otherwise


# ---------------------------------------------------------------------------------------------- runs


def test_runs_are_those_of_the_pairs_trained_together(monkeypatch):
    asked, together = [], []

    def unlearned(profile, domain, method, **choices):
        asked.append((profile, domain, method, choices))
        return len(asked)

    monkeypatch.setattr(unlearning, "unlearning_run", unlearned)
    monkeypatch.setattr(released_code, "side_by_side", lambda artifacts, workers: together.append(artifacts))
    found = released_code.trained_runs(SMOKE, "github")
    expected = [(m, choices) for m, *both in released_code.pairs(SMOKE).values() for choices in both]
    assert [(m, choices) for _, _, m, choices in asked] == expected and {a[:2] for a in asked} == {(SMOKE, "github")}
    assert list(found) == [(defect, code) for defect in DIFFERS for code in ("corrected", "official")]
    assert together == [list(found.values())] == [list(range(1, 13))]


def test_trajectories_say_whose_they_are(tmp_path, monkeypatch):
    monkeypatch.setenv("UNLEARN_STORE", str(tmp_path))

    def make(x):
        return lambda folder: pd.DataFrame({"step": [0, 1], "nll": [x, x + 1.0]}).to_parquet(folder / "trajectory.parquet")

    keys = [("1 shifted labels", "corrected"), ("1 shifted labels", "official"), ("7 random labels", "official")]
    found = released_code.trajectories({key: Artifact("toy", 1, {"x": i}, make(10.0 * i)) for i, key in enumerate(keys)})
    assert found[["defect", "code", "step", "nll"]].values.tolist() == [[*k, s, 10.0 * i + s] for i, k in enumerate(keys) for s in (0, 1)]


# ---------------------------------------------------------------------------------------------- the step that is compared


def measured(defect, **steps):
    """Two rows at each step of each code; `nll` says which."""
    rows = [(defect, code, step, i, 100 * step + i) for code, reached in steps.items() for step in reached for i in range(2)]
    return pd.DataFrame(rows, columns=["defect", "code", "step", "id", "nll"])


def last(rows, defect, profile=LAPTOP):
    """The steps compared (official, corrected) and the one that is named; two rows each, of this defect."""
    official, corrected, step = released_code.last(profile, rows, defect)
    for part, code in ((official, "official"), (corrected, "corrected")):
        assert set(part.defect) == {defect} and set(part.code) == {code} and part.id.tolist() == [0, 1]
        assert part.nll.tolist() == [100 * part.step.iloc[0], 100 * part.step.iloc[0] + 1]
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
    rows = pd.concat(
        [
            measured("2 KL over padding", corrected=range(30), official=range(30)),
            measured("1 shifted labels", corrected=corrected, official=official),
        ]
    )
    assert last(rows, "1 shifted labels") == (expected, expected, expected)


@pytest.mark.parametrize(
    ("corrected", "official", "expected"),
    [
        (range(16), range(31), (30, 15, 15)),
        (range(16), range(13), (12, 6, 6)),  # the official run diverged after 12 of its 30 steps
        (range(16), range(14), (12, 6, 6)),
        (range(5), range(31), (8, 4, 4)),
        (single_run.watched_steps(15), single_run.watched_steps(30), (30, 15, 15)),  # as they are watched
    ],
)
def test_defect_4_is_compared_after_the_same_share_of_the_epoch(corrected, official, expected):
    rows = measured("4 twice the steps", corrected=corrected, official=official)
    assert last(rows, "4 twice the steps") == expected


def test_no_other_defect_is_compared_at_twice_the_step():
    """Defect 5 has batches of its own, alike on both sides."""
    rows = measured("5 idle first step", corrected=range(5), official=range(5))
    assert last(rows, "5 idle first step") == (4, 4, 4)
