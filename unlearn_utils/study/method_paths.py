"""Paths: one method at one learning rate, from the target on, looked at on its way.

A run passes through every shorter run, so one path says what a method does at every number of steps
at that rate. On its way a glance at some forget documents says whether anything has moved; if so,
all documents are measured, which makes the step a *mark*. It ends when it has gone so far past
retraining that no setting there can be better than doing nothing, or when its losses are no numbers
any more. A path could return later: that is not seen.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from unlearn_utils.cache.store import Artifact
from unlearn_utils.cache.workers import on_threads, side_by_side
from unlearn_utils.core import distances, tuning
from unlearn_utils.core.distances import SPLITS
from unlearn_utils.core.methods import DESCENT, METHODS
from unlearn_utils.data import corpus
from unlearn_utils.profiles import Profile
from unlearn_utils.study import pool, selection, single_run
from unlearn_utils.study.single_run import Run
from unlearn_utils.study.study_documents import measured_parts, tokenized, tokenizer
from unlearn_utils.study.versions import VERSIONS

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

BRIEF = ("tokens", "nll", "correct", "min_k_40", "extraction")  # of `evaluation.measure_briefly`
ENDED = 4  # a path ends where its gap on the forget set is past so many times the target's distance
# A step is a mark if log perplexity on the forget set has moved by so much since the last mark. The
# other kinds of text move with it: so most neighbours are near enough to be interpolated
# (`distances.NEAR`). Chosen on a pilot: by doubling steps alone, most paths jumped past retraining.
# Far past retraining, where no setting is good, it may move by more.
MOVED = 0.12
MOVED_BEYOND = 0.5


# ---------------------------------------------------------------------------------------- one path


def path(run: Run, keep: bool = False) -> Artifact:
    """Return the path of a run from its replicate's target.

    Args:
        run: what is unlearned.
        keep: whether the weights of the step that is nearest to retraining are kept. The step is
            chosen on the selection half, and is the first at least.

    Returns:
        An artifact that holds rows.parquet (a row a document and mark, as
        `evaluation.measure_briefly`, with its step, of which 0 is the target), history.parquet,
        ended.json (`ended`: the mark at which the path ended, or null; `kept`: the step whose
        weights are kept, or null), and those weights.
    """
    profile = run.profile
    retrained = None
    if profile.has_retrained:
        retrained = pool.retrained(profile, run.target_domain, run.replicate).path.name
    settings = {
        "target": pool.target(profile, run.replicate).path.name,
        "retrained": retrained,
        "target_domain": run.target_domain,
        "method": run.method,
        "recipe": asdict(run.recipe),
        "seed": run.replicate,
        "retain_documents": run.retain_documents,
        "measured": [profile.corpus.measured, profile.grid.chosen_on],
        "moved": [MOVED, MOVED_BEYOND],
        "keep": keep,
    }
    if run.lora_rank is not None:  # else the keys are those of before there were adapters
        settings["lora_rank"] = run.lora_rank
    return Artifact("path", VERSIONS["path"], settings, partial(_make_path, run, keep))


def _make_path(run: Run, keep: bool, folder: Path) -> dict:
    from unlearn_utils.engine import models

    start = pool.target(run.profile, run.replicate).folder()
    stored_as = models.stored_dtype(start)
    looks = _looks(run, keep, stored_as)
    with on_threads(1):
        every = range(1, single_run.steps_of_run(run) + 1)
        outcome = single_run.execute(run, start, looks.watch, every)
        if keep:
            kept = single_run.load_with_weights(start, looks.weights)
            models.save(kept, folder, stored_as)
    looks.rows().to_parquet(folder / "rows.parquet")
    pd.DataFrame(outcome.history).to_parquet(folder / "history.parquet")
    found = {"ended": looks.ended, "kept": looks.kept}
    (folder / "ended.json").write_text(json.dumps(found))
    return {"training_seconds": round(outcome.seconds, 2), "steps": len(outcome.history)}


def outcome(artifact: Artifact) -> dict:
    """Return how a stored path went: `ended` and `kept`, as `path` says."""
    return json.loads((artifact.path / "ended.json").read_text())


def measured_documents(profile: Profile, target_domain: str) -> pd.DataFrame:
    """Return the documents that a path is measured on, as token ids.

    They are the whole report half, and of the selection half the first `Grid.chosen_on` of a split.
    """
    every = tokenized(profile, measured_parts([target_domain]), profile.corpus.measured)
    return of_path(profile, every)


def of_path(profile: Profile, rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the documents that a path is measured on."""
    chosen = selection.half(rows, selection.SELECTION)
    chosen = chosen[chosen["rank"] < 2 * profile.grid.chosen_on]
    return pd.concat([selection.half(rows, selection.REPORT), chosen], ignore_index=True)


# ----------------------------------------------------------------------------- a path on its way


@dataclass
class _Looks:
    """What is known of a path so far.

    Attributes:
        profile: says how text is padded.
        documents: that are measured, as token ids.
        truth: log perplexity under what stands for retraining: by half, then by split.
        bound: the gap on the forget set, by half, past which the path ends.
        stored_as: the type that weights are rounded to; None: none are kept.
        frames: rows of the documents at each mark, 0 (the target) first.
        weights: of the kept step.
        kept: the step that is nearest to retraining so far; None: no step was taken.
        least: its distance.
        ended: the mark at which the path ended; None: it did not.
        marks: steps that are marks whatever has moved.
        at_mark: log perplexity of the forget set, selection half, at the last mark.
        glanced: the step of the last glance, and log perplexity then.
        due: the step of the next glance.
    """

    profile: Profile
    documents: pd.DataFrame
    marks: list[int]
    at_mark: float
    glanced: tuple[int, float]
    truth: dict[int, np.ndarray]
    bound: dict[int, float]
    stored_as: torch.dtype | None
    frames: list[pd.DataFrame]
    weights: dict[str, Tensor] = field(default_factory=dict)
    kept: int | None = None
    least: float = math.inf
    ended: int | None = None
    due: int = 1

    def watch(self, step: int, model: nn.Module) -> bool:
        """Look at the model after a step; return whether the path ends there."""
        if step < self.due and step not in self.marks:
            return False
        level = selection.log_perplexity(self._measured(model, self._at_a_glance()), "forget")
        self.due = next_glance(self.glanced, (step, level))
        self.glanced = (step, level)
        gap = level - self.truth[selection.SELECTION][SPLITS.index("forget")]
        far = MOVED_BEYOND if gap > MOVED_BEYOND else MOVED
        still = abs(level - self.at_mark) < far
        if still and step not in self.marks:
            return False
        self.at_mark = level
        rows = self._measured(model, self.documents).assign(step=step)
        if rows.nll.notna().all():
            self.frames.append(rows)
            self._keep_nearest(step, model, rows)
        if self._past(rows):
            self.ended = step
        return self.ended is not None

    def _measured(self, model: nn.Module, documents: pd.DataFrame) -> pd.DataFrame:
        """Return the rows of some documents under the model."""
        from unlearn_utils.engine import evaluation

        pad_id = tokenizer(self.profile).pad_token_id
        return evaluation.measure_briefly(model, documents, pad_id)

    def _at_a_glance(self) -> pd.DataFrame:
        """Return the forget documents of the selection half."""
        forget = self.documents[self.documents.split == "forget"]
        return selection.half(forget, selection.SELECTION)

    def _gaps(self, rows: pd.DataFrame, half: int) -> np.ndarray:
        """Return log perplexity over retraining on one half, by split: (splits,)."""
        return levels(selection.half(rows, half)) - self.truth[half]

    def _past(self, rows: pd.DataFrame) -> bool:
        """Return whether the forget set is past the bound on both halves; NaN is past any bound."""
        past = []
        for half, bound in self.bound.items():
            gap = self._gaps(rows, half)[SPLITS.index("forget")]
            past.append(not gap <= bound)
        return all(past)

    def _keep_nearest(self, step: int, model: nn.Module, rows: pd.DataFrame) -> None:
        """Keep the weights if no step before was nearer. The first process decides for all."""
        from unlearn_utils.engine import adapters, distributed

        far = float(distances.distance(self._gaps(rows, selection.SELECTION)))
        nearer = distributed.on_main_process(lambda: far < self.least or self.kept is None)
        if not nearer:
            return
        self.kept, self.least = step, far
        if self.stored_as is not None:
            rounded = {}
            for name, value in distributed.gathered_state(adapters.merged(model)).items():
                rounded[name] = value.to(self.stored_as, copy=True)
            self.weights = rounded

    def rows(self) -> pd.DataFrame:
        """Return the rows so far."""
        return pd.concat(self.frames, ignore_index=True)


def next_glance(before: tuple[int, float], now: tuple[int, float]) -> int:
    """Return the step of the next glance, as `tuning.next_glance` for marks `MOVED` apart."""
    return tuning.next_glance(before, now, MOVED)


def _looks(run: Run, keep: bool, stored_as: torch.dtype) -> _Looks:
    """Return what is known of a path before its first step."""
    profile = run.profile
    before = of_path(profile, pool.target_rows(profile, run.target_domain, run.replicate))
    after = of_path(profile, pool.truth_rows(profile, run.target_domain, run.replicate))
    truth, bound = {}, {}
    for half in (selection.SELECTION, selection.REPORT):
        truth[half] = levels(selection.half(after, half))
        target = levels(selection.half(before, half))
        bound[half] = ENDED * float(distances.distance(target - truth[half]))
    level = selection.log_perplexity(selection.half(before, selection.SELECTION), "forget")
    wanted = (*pool.DOCUMENT_KEYS, corpus.INSERTED, *BRIEF)
    kept = [column for column in wanted if column in before]
    return _Looks(
        profile=profile,
        documents=measured_documents(profile, run.target_domain),
        marks=single_run.marks(single_run.steps_of_run(run)),
        at_mark=level,
        glanced=(0, level),
        truth=truth,
        bound=bound,
        stored_as=stored_as if keep else None,
        frames=[before[kept].assign(step=0)],
    )


def levels(rows: pd.DataFrame) -> np.ndarray:
    """Return log perplexity on each of `SPLITS`: (splits,), in nats a predicted token."""
    return np.array([selection.log_perplexity(rows, split) for split in SPLITS])


# ------------------------------------------------------------------------------------- which paths


# The two methods that claim C2 is about.
CLAIMED = "ascent_descent_in_distribution"
ASCENT = "gradient_ascent"

LORA_RANK = 8  # ours: a common one
LORA_FASTER = 10  # times the rate of training every weight: a common rule, with no search


def usual_run(profile: Profile, replicate: int, domain: str, method: str, **choices) -> Run:
    """Return the run of a method at the profile's own learning rate.

    choices: any field of `profiles.Unlearning`, in the place of the profile's own.
    """
    epochs = {"epochs": profile.grid.usual_epochs}
    recipe = replace(profile.unlearning, **{**epochs, **choices})
    return Run(profile, domain, method, recipe, replicate)


def lora_run(profile: Profile, replicate: int, domain: str) -> Run:
    """Return the usual run of `CLAIMED` as a LoRA, at `LORA_FASTER` times the rate."""
    rate = LORA_FASTER * profile.unlearning.learning_rate
    usual = usual_run(profile, replicate, domain, CLAIMED, learning_rate=rate)
    return replace(usual, lora_rank=LORA_RANK)


def usual_runs(profile: Profile, replicate: int) -> list[Run]:
    """Return every method on every domain at the profile's own learning rate."""
    runs = []
    for domain in profile.domains:
        for method in METHODS:
            runs.append(usual_run(profile, replicate, domain, method))
    return runs


def grid_runs(profile: Profile, replicate: int, domain: str, method: str) -> list[Run]:
    """Return a method on a domain at every learning rate of the grid, the lowest first.

    At the profile's own rate it is the usual run, which is longer.
    """
    runs = []
    for rate in profile.grid.learning_rates:
        if rate == profile.unlearning.learning_rate:
            runs.append(usual_run(profile, replicate, domain, method))
            continue
        recipe = replace(profile.unlearning, learning_rate=rate, epochs=profile.grid.epochs)
        runs.append(Run(profile, domain, method, recipe, replicate))
    return runs


def grid_places(profile: Profile) -> list[tuple[str, str]]:
    """Return (domain, method) of every grid of learning rates.

    On the domains of the grid it is every method, on the others the two of claim C2.
    """
    found = []
    for domain in profile.domains:
        for method in METHODS:
            if domain in profile.grid.domains or method in (ASCENT, CLAIMED):
                found.append((domain, method))
    return [place for place in found if place[0] in profile.grid.claimed_domains]


def fewer_retain_runs(profile: Profile, replicate: int) -> list[Run]:
    """Return the methods with descent on retain text, with fewer retain documents to draw from.

    They are on the first domain of the grid, at the profile's own rate.
    """
    runs = []
    for method in METHODS.values():
        if method.retain is not DESCENT:
            continue
        for number in profile.grid.retain_documents:
            usual = usual_run(profile, replicate, profile.grid.domains[0], method.name)
            runs.append(replace(usual, retain_documents=number))
    return runs


def every_run(profile: Profile) -> list[Run]:
    """Return every run of a profile's paths, once each."""
    runs = []
    for replicate in profile.replicates:
        runs += usual_runs(profile, replicate)
        for domain, method in grid_places(profile):
            runs += grid_runs(profile, replicate, domain, method)
        runs += fewer_retain_runs(profile, replicate)
    return list(dict.fromkeys(runs))


def make_all(runs: Sequence[Run], what: str = "paths") -> list[Artifact]:
    """Run the paths that are missing, side by side, and return all.

    Usual runs keep the weights of their nearest step.
    """
    artifacts = [path(run, keeps(run)) for run in runs]
    side_by_side(artifacts, runs[0].profile.workers, what)
    return artifacts


def keeps(run: Run) -> bool:
    """Return whether a path keeps weights: those of the methods' own notebooks do, and the LoRA's.

    Of a base, which is large, those of the first replicate do.
    """
    if run.profile.base and run.replicate != run.profile.replicates[0]:
        return False
    place = (run.profile, run.replicate, run.target_domain)
    return run in (usual_run(*place, run.method), lora_run(*place))
