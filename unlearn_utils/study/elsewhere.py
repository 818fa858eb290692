"""Elsewhere: the study's models and paths where one thing is other than in the study.

Three things are varied, one at a time, on one domain each: how often pre-training shows a document
(exposures), how large the model is, and how large the forget set is. Everything else is the study's
own, and so is one setting of each axis, whose models and paths are those of the study.

The rates of claim C2 are every second one of the study's, for time; so robustness here is of three
rates, in the study's own setting too.

Arithmetic, in core seconds at the study's own size, of two cores that do nothing else. A training
of 5 epochs takes 95 and measuring the model 6; there are two models a replicate. The 11 paths of a
setting and a replicate take 150: seven methods at the usual rate, and the two of claim C2 at two
other rates.

* Exposures 1, 2 and 3, two replicates: 4 x (19 + 38 + 57) + 12 x 6 + 6 x 150 = 1,430, or 12
  minutes.
* Forget sets of 15, 30 and 120 documents, two replicates: 12 x (95 + 6) + 6 x 150 = 2,110, or 18
  minutes.
* Sizes: 0.2M parameters (0.4 times as long), two replicates: 4 x 41 + 2 x 60 = 280; 2.1M (1.7
  times), one: 2 x 170 + 255 = 600; 5.8M (5 times to train, 4 to follow a path), one:
  2 x 495 + 600 = 1,590. Together 2,470, or 21 minutes. Two replicates of the larger two would take
  18 minutes more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from unlearn_utils.core.methods import METHODS
from unlearn_utils.profiles import Profile, Shape, sized
from unlearn_utils.study import method_paths
from unlearn_utils.study.single_run import Run

EXPOSURES, SIZES, SHARES = "exposures", "parameters", "forget documents"  # axes
AXES = (EXPOSURES, SIZES, SHARES)
SIZED_ON = "arxiv"  # the domain of exposures and sizes
SHARED_ON = "github"  # the domain whose forget set is resized

EPOCHS = (1, 2, 3)  # of pre-training
SHAPES = ((64, 2), (192, 4), (256, 7))  # widths and layers
PARTS = (0.25, 0.5, 2)  # of the study's forget set
EVERY = 2  # learning rate of the study's grid; its usual rate, the third, is among them
REPLICATES = 2  # the first of the study
REPLICATES_OF_LARGE = 1  # of models that are larger than the study's: all that the time allows


@dataclass(frozen=True)
class Setting:
    """One value of what is varied.

    Attributes:
        axis: one of `AXES`.
        value: epochs, parameters or documents.
        profile: whose models and paths they are; its grid is of the setting's domain alone.
        domain: whose forget set is unlearned.
        own: whether it is the study's own setting, whose models and paths are the study's.
        steps: of a path at the usual rate that count, as many as in the study.
    """

    axis: str
    value: int
    profile: Profile
    domain: str
    own: bool
    steps: int


def settings(study: Profile) -> list[Setting]:
    """Return every setting, axis by axis, in the order of their values.

    study: the profile that is varied.
    """
    return [*of_exposures(study), *of_sizes(study), *of_shares(study)]


def of_axis(study: Profile, axis: str) -> list[Setting]:
    """Return the settings of one axis."""
    return [setting for setting in settings(study) if setting.axis == axis]


def of_exposures(study: Profile) -> list[Setting]:
    """Return the numbers of epochs of pre-training, each document once in each."""
    base = varied(study, SIZED_ON)
    usual = study.pretraining.epochs
    found = []
    for epochs in sorted({*EPOCHS, usual}):
        profile = replace(base, pretraining=replace(study.pretraining, epochs=epochs))
        found.append(_setting(study, EXPOSURES, epochs, profile, SIZED_ON, epochs == usual))
    return found


def of_sizes(study: Profile) -> list[Setting]:
    """Return the sizes of the model: the study's, a smaller and two larger ones."""
    base = varied(study, SIZED_ON)
    own = study.shape
    others = [sized(*size, own.vocabulary, own.context) for size in SHAPES]
    found = []
    for shape in sorted({own, *others}, key=parameters):
        profile = replace(base, shape=shape)
        if parameters(shape) > parameters(own):
            profile = replace(profile, replicates=profile.replicates[:REPLICATES_OF_LARGE])
        found.append(_setting(study, SIZES, parameters(shape), profile, SIZED_ON, shape == own))
    return found


def of_shares(study: Profile) -> list[Setting]:
    """Return the sizes of the forget set, with as many optimizer steps as in the study.

    Forget and retain documents are the same in all (`corpus.resized`), and so is what the target
    was trained on. Where the forget set is larger, the forget documents that are measured are those
    of the study; where it is smaller, those that are left of them.
    """
    base = varied(study, SHARED_ON)
    usual = study.corpus.pairs
    found = [_setting(study, SHARES, usual, base, SHARED_ON, own=True)]
    for part in PARTS:
        size = round(part * usual)
        corpus = replace(study.corpus, resized=(SHARED_ON, size))
        grid = replace(
            base.grid,
            epochs=math.ceil(study.grid.epochs * usual / size),
            usual_epochs=math.ceil(study.grid.usual_epochs * usual / size),
        )
        profile = replace(base, corpus=corpus, grid=grid)
        found.append(_setting(study, SHARES, size, profile, SHARED_ON, own=False))
    return sorted(found, key=lambda setting: setting.value)


def varied(study: Profile, domain: str) -> Profile:
    """Return the study with its first replicates, and a coarser grid on one domain alone."""
    rates = study.grid.learning_rates[::EVERY]
    grid = replace(study.grid, learning_rates=rates, domains=(domain,), claimed_domains=(domain,))
    return replace(study, replicates=study.replicates[:REPLICATES], grid=grid)


def _setting(
    study: Profile, axis: str, value: int, profile: Profile, domain: str, own: bool
) -> Setting:
    """Return a setting, with the steps of the study's paths at the usual rate."""
    documents = study.corpus.pairs * study.grid.usual_epochs
    steps = math.ceil(documents / study.unlearning.batch)
    return Setting(axis, value, profile, domain, own, steps)


def parameters(shape: Shape) -> int:
    """Return the parameters of a Llama of a shape, whose embeddings are tied."""
    attention = 4 * shape.hidden**2
    feed_forward = 3 * shape.hidden * shape.intermediate
    norms = 2 * shape.hidden
    layers = shape.layers * (attention + feed_forward + norms)
    return shape.vocabulary * shape.hidden + layers + shape.hidden


def runs(chosen: Sequence[Setting]) -> list[Run]:
    """Return the runs of some settings, once each.

    They are all methods at the usual rate, and those of claim C2 at every rate of the setting.
    """
    found = []
    for setting in chosen:
        for replicate in setting.profile.replicates:
            place = (setting.profile, replicate, setting.domain)
            found += [method_paths.usual_run(*place, method) for method in METHODS]
            for method in (method_paths.ASCENT, method_paths.CLAIMED):
                found += method_paths.grid_runs(*place, method)
    return list(dict.fromkeys(found))
