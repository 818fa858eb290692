"""The hyperparameter study: one run a setting, looked at on its way.

So every number of steps of a setting costs one run. A *cell* is a setting and a mark, the share of
an epoch at which its run was looked at.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from unlearn_utils.cache.store import Artifact
from unlearn_utils.cache.workers import on_threads, side_by_side
from unlearn_utils.core.methods import METHODS, get_method
from unlearn_utils.profiles import Profile, Unlearning
from unlearn_utils.study import pool, selection, single_run
from unlearn_utils.study.study_documents import measured_parts, tokenized, tokenizer
from unlearn_utils.study.versions import VERSIONS

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Setting:
    """One run of the grid.

    Attributes:
        target_domain: whose documents are forgotten.
        method: its name.
        learning_rate, batch, retain_weight: in the place of the profile's own.
        seed: of the run.
        retain_documents: how many there are to draw from; None: all.
    """

    target_domain: str
    method: str
    learning_rate: float
    batch: int
    retain_weight: float = 1.0
    seed: int = 0
    retain_documents: int | None = None


COLUMNS = [*Setting.__dataclass_fields__, "epoch"]  # what names a cell; `epoch` is its mark


# ------------------------------------------------------------------------------------- the settings


def usual_rate(profile: Profile) -> float:
    """Return the learning rate of the grid that is nearest, by ratio, to the profile's own."""
    own = profile.unlearning.learning_rate
    return min(profile.grid.learning_rates, key=lambda rate: abs(math.log(rate / own)))


def plan(profile: Profile) -> list[Setting]:
    """Return every setting: the grid proper, then what is varied beside it on the first domain.

    The grid proper is every method at every learning rate on every domain of the grid.
    """
    proper = []
    for domain in profile.grid.domains:
        for method in METHODS:
            for rate in profile.grid.learning_rates:
                proper.append(_usual_setting(profile, domain, method, rate))
    first_domain = profile.grid.domains[0]
    first = [setting for setting in proper if setting.target_domain == first_domain]
    return proper + _varied(profile, first)


def _usual_setting(profile: Profile, target_domain: str, method: str, rate: float) -> Setting:
    """Return a setting in which nothing is varied but the learning rate."""
    own = profile.unlearning
    return Setting(target_domain, method, rate, own.batch, own.retain_weight)


def _varied(profile: Profile, first: Sequence[Setting]) -> list[Setting]:
    """Return the settings that differ from those of the first domain in one thing more."""
    varied = profile.grid
    retaining = [setting for setting in first if get_method(setting.method).retain is not None]
    settings = []
    for batch in varied.batches:
        settings += [replace(setting, batch=batch) for setting in first]
    for weight in varied.retain_weights:
        settings += [replace(setting, retain_weight=weight) for setting in retaining]
    for seed in range(1, varied.seeds):
        settings += [replace(setting, seed=seed) for setting in first]
    rate = usual_rate(profile)
    usual = [setting for setting in retaining if setting.learning_rate == rate]
    for number in varied.retain_documents:
        settings += [replace(setting, retain_documents=number) for setting in usual]
    return settings


# ------------------------------------------------------------------------------------------ one run


def grid_run(profile: Profile, setting: Setting) -> Artifact:
    """Return one run from the target, measured briefly on every document at each mark.

    A run whose forget perplexity passes `single_run.DIVERGED` ends there: later marks are missing.

    Returns:
        rows.parquet: a row a document and mark, as `evaluation.measure_briefly`, with its step and
        epoch.
    """
    settings = {
        "target": pool.target(profile).path.name,
        **asdict(setting),
        "recipe": asdict(_recipe(profile, setting)),
        "marks": list(profile.grid.marks),
        "measured": profile.corpus.measured,
    }
    make = partial(_make_grid_run, profile, setting)
    return Artifact("grid", VERSIONS["grid"], settings, make)


def _recipe(profile: Profile, setting: Setting) -> Unlearning:
    """Return the profile's recipe with a setting's values, as long as the last mark needs."""
    return replace(
        profile.unlearning,
        learning_rate=setting.learning_rate,
        batch=setting.batch,
        retain_weight=setting.retain_weight,
        epochs=math.ceil(profile.grid.marks[-1]),
    )


def _make_grid_run(profile: Profile, setting: Setting, folder: Path) -> dict:
    run = single_run.Run(
        profile,
        setting.target_domain,
        setting.method,
        _recipe(profile, setting),
        setting.seed,
        setting.retain_documents,
    )
    parts = measured_parts([setting.target_domain])
    documents = tokenized(profile, parts, profile.corpus.measured)
    looks = _Looks(profile, documents, _marks_by_step(profile, setting))
    with on_threads(1):
        start = pool.target(profile).folder()
        outcome = single_run.execute(run, start, looks.watch, list(looks.marks))
    pd.concat(looks.frames, ignore_index=True).to_parquet(folder / "rows.parquet")
    return {"training_seconds": round(outcome.seconds, 2), "steps": len(outcome.history)}


def _marks_by_step(profile: Profile, setting: Setting) -> dict[int, list[float]]:
    """Return the marks that fall on each watched step: of a small forget set several may."""
    documents = len(tokenized(profile, [(setting.target_domain, "forget")]))
    marks = {}
    for mark in profile.grid.marks:
        step = max(1, round(mark * documents / setting.batch))
        marks.setdefault(step, []).append(mark)
    return marks


@dataclass
class _Looks:
    """What was measured at the marks of a run so far.

    Attributes:
        profile: says the vocabulary and how text is padded.
        documents: that are measured, as token ids.
        marks: those that fall on each watched step.
        frames: rows of the documents at each mark.
    """

    profile: Profile
    documents: pd.DataFrame
    marks: Mapping[int, Sequence[float]]
    frames: list[pd.DataFrame] = field(default_factory=list)

    def watch(self, step: int, model: nn.Module) -> bool:
        """Look at the model after a step; return whether the run has diverged, and so ends."""
        from unlearn_utils.engine import evaluation

        pad_id = tokenizer(self.profile).pad_token_id
        rows = evaluation.measure_briefly(model, self.documents, pad_id).assign(step=step)
        self.frames += [rows.assign(epoch=mark) for mark in self.marks[step]]
        return single_run.has_diverged(self.profile, rows)


# ----------------------------------------------------------------------------------------- all runs


def grid_rows(profile: Profile, settings: Sequence[Setting]) -> pd.DataFrame:
    """Run what is missing, side by side, and return the rows of all runs.

    Returns:
        the columns of `grid_run`, and each run's setting as columns. `domain` is the document's,
        `target_domain` the one that was forgotten.
    """
    pool.measure_baselines(profile)
    artifacts = [grid_run(profile, setting) for setting in settings]
    side_by_side(artifacts, profile.workers, "runs of the grid")
    frames = []
    for setting, artifact in zip(settings, artifacts, strict=True):
        rows = pd.read_parquet(artifact.folder() / "rows.parquet")
        frames.append(rows.assign(**asdict(setting)))
    return pd.concat(frames, ignore_index=True)


def cells(profile: Profile, settings: Sequence[Setting]) -> pd.DataFrame:
    """Return every cell of these settings, diverged or not: the columns `COLUMNS`, in order."""
    rows = []
    for setting in settings:
        for mark in profile.grid.marks:
            rows.append(asdict(setting) | {"epoch": mark})
    return pd.DataFrame(rows, columns=COLUMNS).astype({"retain_documents": "Int64"})


def goal_cells(cells: pd.DataFrame, profile: Profile) -> np.ndarray:
    """Return the mask (cells,) of the grid proper.

    Its cells are every method at the same learning rates and marks, with nothing else varied.
    """
    own = profile.unlearning
    as_usual = (cells.batch == own.batch) & (cells.retain_weight == own.retain_weight)
    plain = as_usual & (cells.seed == 0) & cells.retain_documents.isna()
    return plain.to_numpy()


def half_of(rows: pd.DataFrame, which: int | None) -> pd.DataFrame:
    """Return one half of the documents, as `selection.half`; None: all of them."""
    if which is None:
        return rows
    return selection.half(rows, which)
