"""The hyperparameter study: one run a setting, looked at on its way, so that every number of steps of a setting costs one run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from unlearn_utils.cache.store import Artifact
from unlearn_utils.cache.workers import on_threads, side_by_side
from unlearn_utils.profiles import Profile
from unlearn_utils.study import pool, selection, single_run, versions
from unlearn_utils.study.study_documents import measured_parts, tokenized, tokenizer

WITH_RETAIN = (
    "ascent_descent_general",
    "ascent_descent_in_distribution",
    "ascent_kl_general",
    "ascent_kl_in_distribution",
)
METHODS = ("gradient_ascent", "random_label", "adversarial", *WITH_RETAIN)


@dataclass(frozen=True)
class Setting:
    """One run. `retain_documents`: how many there are to draw from; None: all."""

    domain: str
    method: str
    learning_rate: float
    batch: int
    retain_weight: float = 1.0
    seed: int = 0
    retain_documents: int | None = None


COLUMNS = [*Setting.__dataclass_fields__, "epoch"]  # what names a cell: a setting and the mark at which it was looked at


def usual_rate(profile: Profile) -> float:
    """The learning rate of the grid that is nearest to the profile's own, on a logarithmic scale."""
    return min(profile.grid.learning_rates, key=lambda rate: abs(math.log(rate / profile.unlearning.learning_rate)))


def plan(profile: Profile) -> list[Setting]:
    """Every setting: the grid on each of its domains, then what varies on the first domain alone."""
    g, own = profile.grid, profile.unlearning
    base = [Setting(d, m, rate, own.batch, own.retain_weight) for d in g.domains for m in METHODS for rate in g.learning_rates]
    first = [s for s in base if s.domain == g.domains[0]]
    retaining = [s for s in first if s.method in WITH_RETAIN]
    more = [replace(s, batch=b) for b in g.batches for s in first]
    more += [replace(s, retain_weight=w) for w in g.retain_weights for s in retaining]
    more += [replace(s, seed=seed) for seed in range(1, g.seeds) for s in first]
    more += [replace(s, retain_documents=n) for n in g.retain_documents for s in retaining if s.learning_rate == usual_rate(profile)]
    return base + more


def grid_run(profile: Profile, setting: Setting) -> Artifact:
    """One run from the target, measured briefly on every document at each mark; rows.parquet: a row a document and mark.

    A run whose forget perplexity passes `runs.DIVERGED` ends there: later marks are missing.
    """
    settings = {
        "target": pool.target(profile).path.name,
        **asdict(setting),
        "recipe": asdict(_recipe(profile, setting)),
        "marks": list(profile.grid.marks),
        "measured": profile.corpus.measured,
    }
    return Artifact("grid", versions.VERSIONS["grid"], settings, partial(_make, profile, setting))


def _recipe(profile: Profile, s: Setting):
    epochs = math.ceil(profile.grid.marks[-1])
    return replace(profile.unlearning, learning_rate=s.learning_rate, batch=s.batch, retain_weight=s.retain_weight, epochs=epochs)


def _make(profile: Profile, setting: Setting, folder: Path) -> dict:
    from unlearn_utils.engine import evaluation

    rows, frames = tokenized(profile, measured_parts([setting.domain]), profile.corpus.measured), []
    size = len(tokenized(profile, [(setting.domain, "forget")]))
    marks: dict[int, list[float]] = {}  # of each watched step; a small forget set may have several on one
    for mark in profile.grid.marks:
        marks.setdefault(max(1, round(mark * size / setting.batch)), []).append(mark)

    def watch(step: int, model) -> bool:
        found = evaluation.measure_briefly(model, rows, tokenizer(profile).pad_token_id).assign(step=step)
        frames.extend(found.assign(epoch=mark) for mark in marks[step])
        return single_run.has_diverged(profile, found)

    with on_threads(1):
        recipe = _recipe(profile, setting)
        start, few = pool.target(profile).folder(), setting.retain_documents
        _, history, seconds = single_run.run(
            profile, start, setting.domain, setting.method, recipe, setting.seed, watch, list(marks), retain_documents=few
        )
    pd.concat(frames, ignore_index=True).to_parquet(folder / "rows.parquet")
    return {"training_seconds": round(seconds, 2), "steps": len(history)}


def grid_rows(profile: Profile, settings: Sequence[Setting]) -> pd.DataFrame:
    """Runs what is missing, side by side, and gives the rows of all runs with their settings as columns."""
    pool.measure_baselines(profile)
    steps = [grid_run(profile, s) for s in settings]
    side_by_side(steps, profile.workers, "runs of the grid")
    frames = []
    for setting, step in zip(settings, steps, strict=True):
        frame = pd.read_parquet(step.folder() / "rows.parquet").rename(columns={"domain": "source"})
        frames.append(frame.assign(**asdict(setting)))
    return pd.concat(frames, ignore_index=True)


def cells(profile: Profile, settings: Sequence[Setting]) -> pd.DataFrame:
    """Every cell of these settings, diverged or not: the columns `COLUMNS`, in order."""
    rows = [asdict(s) | {"epoch": mark} for s in settings for mark in profile.grid.marks]
    return pd.DataFrame(rows, columns=COLUMNS).astype({"retain_documents": "Int64"})


def goal_cells(cells: pd.DataFrame, profile: Profile) -> np.ndarray:
    """Mask of the cells of the grid proper: every method at the same learning rates and marks, nothing else varied."""
    own = profile.unlearning
    plain = (cells.batch == own.batch) & (cells.retain_weight == own.retain_weight) & (cells.seed == 0)
    return (plain & cells.retain_documents.isna()).to_numpy()


def half_of(rows: pd.DataFrame, which: int | None) -> pd.DataFrame:
    """One half of the documents, as `selection.half`; all if None."""
    return rows if which is None else selection.half(rows, which)
