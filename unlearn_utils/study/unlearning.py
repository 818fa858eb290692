"""Unlearned models: a run for each method and domain, its repetitions, and tables of all runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from unlearn_utils.cache.store import Artifact
from unlearn_utils.cache.workers import on_threads, side_by_side
from unlearn_utils.core import membership
from unlearn_utils.profiles import Profile
from unlearn_utils.study import pool, selection, single_run
from unlearn_utils.study.single_run import Run
from unlearn_utils.study.study_documents import measured_parts, tokenized, tokenizer
from unlearn_utils.study.versions import VERSIONS

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

BRIEF = ("tokens", "nll", "correct", "min_k_40")  # of `evaluation.measure_briefly`


# ------------------------------------------------------------------------------------------ one run


def unlearning_run(profile: Profile, target_domain: str, method: str, **choices) -> Artifact:
    """Return one unlearning run from the target.

    It is watched on the selection half, and reported on the other half at the steps that the rules
    chose. The weights of a published model are rounded to the type in which it was published, and
    so reported.

    Args:
        profile: documents, target and recipe.
        target_domain: whose documents are forgotten.
        method: its name.
        choices: any field of `profiles.Unlearning`, in the place of the profile's own.

    Returns:
        An artifact that holds trajectory.parquet (selection half, every watched step, as
        `evaluation.measure_briefly`), report.parquet (report half, by `rule`, as
        `evaluation.measure`), chosen.json (the step of each rule; the step at which the run
        diverged, or null), history.parquet, and the weights at the practitioner's step.
    """
    run = Run(profile, target_domain, method, replace(profile.unlearning, **choices))
    retrained = None
    if not profile.hub:
        retrained = pool.retrained(profile, target_domain).path.name
    settings = {
        "target": pool.target(profile).path.name,
        "retrained": retrained,
        "target_domain": target_domain,
        "method": method,
        "recipe": asdict(run.recipe),
        "retain": profile.corpus.measured,
        "bound": selection.BOUND,
        "scores": membership.columns(),
    }
    make = partial(_make_unlearning_run, run)
    return Artifact("unlearned", VERSIONS["unlearned"], settings, make)


def _make_unlearning_run(run: Run, folder: Path) -> dict:
    from unlearn_utils.engine import models

    documents = _measured_documents(run)
    start = pool.target(run.profile).folder()
    stored_as = models.stored_dtype(start)
    watched = _watched_run(run, selection.half(documents, selection.SELECTION), stored_as)
    steps = single_run.watched_steps(single_run.steps_of_run(run))
    with on_threads(1):
        outcome = single_run.execute(run, start, watched.watch, steps)
        chosen = watched.chosen_steps()
        report = _report(run, start, selection.half(documents, selection.REPORT), watched, chosen)
        kept = watched.weights.get(chosen["practitioner"], {})
        models.save(single_run.load_with_weights(start, kept), folder, stored_as)
    tables = {
        "trajectory": watched.trajectory(),
        "report": report,
        "history": pd.DataFrame(outcome.history),
    }
    for name, table in tables.items():
        table.assign(**_columns(run)).to_parquet(folder / f"{name}.parquet")
    found = {**chosen, "diverged": watched.diverged}
    (folder / "chosen.json").write_text(json.dumps(found))
    return {"training_seconds": round(outcome.seconds, 2), "steps": len(outcome.history)}


def _measured_documents(run: Run) -> pd.DataFrame:
    """Return the documents that a run is measured on, both halves, as token ids."""
    parts = measured_parts([run.target_domain])
    return tokenized(run.profile, parts, run.profile.corpus.measured)


def _columns(run: Run) -> dict:
    """Return the settings of a run as columns of its rows."""
    return {
        "method": run.method,
        "target_domain": run.target_domain,
        "seed": run.seed,
        **asdict(run.recipe),
        "variant": str(run.recipe.variant),
    }


# ------------------------------------------------------------------------------ a run while watched


@dataclass
class _WatchedRun:
    """What is known of a run so far, and the weights that a rule may still keep.

    Attributes:
        profile: says the vocabulary and how text is padded.
        documents: of the selection half, as token ids.
        goals: the log perplexity that each rule wants on the forget set.
        stored_as: the type that weights are rounded to before they are reported.
        frames: rows of the documents at each step that was looked at, 0 (the target) first.
        weights: by step, of the steps that are the best so far for a rule; of step 0 none.
        diverged: the step at which the run diverged; None: it did not.
    """

    profile: Profile
    documents: pd.DataFrame
    goals: Mapping[str, float]
    stored_as: torch.dtype
    frames: list[pd.DataFrame]
    weights: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    diverged: int | None = None

    def watch(self, step: int, model: nn.Module) -> bool:
        """Look at the model after a step; return whether the run has diverged, and so ends."""
        from unlearn_utils.engine import evaluation

        pad_id = tokenizer(self.profile).pad_token_id
        rows = evaluation.measure_briefly(model, self.documents, pad_id).assign(step=step)
        self.frames.append(rows)
        self._keep_best(step, model)
        if single_run.has_diverged(self.profile, rows):
            self.diverged = step
        return self.diverged is not None

    def _keep_best(self, step: int, model: nn.Module) -> None:
        """Keep the weights of a step that is the best so far, and let those go that no longer are.

        What is not the best so far will never be. The first process decides for all of them.
        """
        from unlearn_utils.engine import distributed

        best = distributed.on_main_process(lambda: set(self.chosen_steps().values()))
        if step in best:
            rounded = {}
            for name, value in distributed.gathered_state(model).items():
                rounded[name] = value.to(self.stored_as, copy=True)
            self.weights[step] = rounded
        for old in self.weights.keys() - best:
            del self.weights[old]

    def trajectory(self) -> pd.DataFrame:
        """Return the rows so far, without the steps at which a loss is not a number."""
        whole = [rows for rows in self.frames if rows.nll.notna().all()]
        return pd.concat(whole, ignore_index=True)

    def chosen_steps(self) -> dict[str, int]:
        """Return the step that each rule keeps of those so far."""
        trajectory = self.trajectory()
        return {rule: selection.choose(trajectory, goal) for rule, goal in self.goals.items()}


def _watched_run(run: Run, documents: pd.DataFrame, stored_as: torch.dtype) -> _WatchedRun:
    """Return a run before its first step: step 0 and the goals are known from the baselines.

    documents: of the selection half, as token ids.
    """
    profile = run.profile
    before = pool.rows_of_domain(profile, pool.target(profile), run.target_domain)
    if profile.hub:
        truth = pool.approximate_retraining(before)
    else:
        retrained = pool.retrained(profile, run.target_domain)
        truth = pool.rows_of_domain(profile, retrained, run.target_domain)
    before = selection.half(before, selection.SELECTION)
    truth = selection.half(truth, selection.SELECTION)
    return _WatchedRun(
        profile=profile,
        documents=documents,
        goals=selection.goals(before, truth),
        stored_as=stored_as,
        frames=[before[[*pool.DOCUMENT_KEYS, *BRIEF]].assign(step=0)],
    )


def _report(
    run: Run,
    start: Path,
    documents: pd.DataFrame,
    watched: _WatchedRun,
    chosen: Mapping[str, int],
) -> pd.DataFrame:
    """Return the rows of the report half at the step of each rule, with columns `rule` and `step`.

    A step that both rules chose is measured once.
    """
    from unlearn_utils.engine import evaluation

    measured = {}
    for step in set(chosen.values()):
        model = single_run.load_with_weights(start, watched.weights.get(step, {}))
        measured[step] = evaluation.measure(model, documents, tokenizer(run.profile))
    by_rule = [measured[step].assign(rule=rule, step=step) for rule, step in chosen.items()]
    return pd.concat(by_rule, ignore_index=True)


# -------------------------------------------------------------------------------------- repetitions


def repeated_run(
    profile: Profile, target_domain: str, method: str, seed: int, **choices
) -> Artifact:
    """Return the run of `unlearning_run` with another seed.

    It ends at the practitioner's step of seed 0, and holds report.parquet, of the report half.
    """
    first = unlearning_run(profile, target_domain, method, **choices)
    recipe = replace(profile.unlearning, **choices)
    run = Run(profile, target_domain, method, recipe, seed)
    settings = {"first": first.path.name, "seed": seed}
    make = partial(_make_repeated_run, run, first)
    return Artifact("repeated", VERSIONS["repeated"], settings, make)


def _make_repeated_run(run: Run, first: Artifact, folder: Path) -> None:
    from unlearn_utils.engine import evaluation, models

    step = _chosen(first)["practitioner"]
    documents = selection.half(_measured_documents(run), selection.REPORT)
    start = pool.target(run.profile).folder()
    with on_threads(1):
        outcome = single_run.execute(run, start, steps=step)
        stored_as = models.stored_dtype(start)
        weights = {name: value.to(stored_as) for name, value in outcome.weights.items()}
        model = single_run.load_with_weights(start, weights)
        found = evaluation.measure(model, documents, tokenizer(run.profile))
    found = found.assign(rule="practitioner", step=step, **_columns(run))
    found.to_parquet(folder / "report.parquet")


def _chosen(artifact: Artifact) -> dict:
    """Return the step of each rule of a stored run, and the one at which it diverged, or None."""
    return json.loads((artifact.folder() / "chosen.json").read_text())


# ----------------------------------------------------------------------------------------- all runs


def unlearn_all(profile: Profile, names: Sequence[str], **choices) -> pd.DataFrame:
    """Run methods on every domain, side by side, then repeat them with the other seeds.

    Args:
        profile: says the domains and the number of seeds.
        names: of the methods.
        choices: as in `unlearning_run`.

    Returns:
        method, target_domain, seed, entry (the `Artifact`).
    """
    pool.measure_baselines(profile)
    pairs = [(method, domain) for method in names for domain in profile.domains]

    first = {}
    for method, domain in pairs:
        first[method, domain, 0] = unlearning_run(profile, domain, method, **choices)
    side_by_side(list(first.values()), profile.workers)

    again = {}
    for method, domain in pairs:
        for seed in range(1, profile.seeds):
            artifact = repeated_run(profile, domain, method, seed, **choices)
            again[method, domain, seed] = artifact
    side_by_side(list(again.values()), profile.workers)

    rows = [(*key, artifact) for key, artifact in (first | again).items()]
    return pd.DataFrame(rows, columns=["method", "target_domain", "seed", "entry"])


def rows_of_runs(runs: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return one file of every run together.

    Args:
        runs: of `unlearn_all`.
        name: "report" (of all seeds), "trajectory" or "history" (of seed 0).
    """
    artifacts = runs.entry if name == "report" else runs[runs.seed == 0].entry
    frames = [pd.read_parquet(artifact.folder() / f"{name}.parquet") for artifact in artifacts]
    return pd.concat(frames, ignore_index=True)


def chosen_steps(runs: pd.DataFrame) -> pd.DataFrame:
    """Return of each run of seed 0 the step that each rule kept, and where it diverged.

    Returns:
        method, target_domain, practitioner, oracle, diverged (missing where it did not).
    """
    first = runs[runs.seed == 0]
    keys = first[["method", "target_domain"]].reset_index(drop=True)
    found = pd.DataFrame([_chosen(artifact) for artifact in first.entry])
    return pd.concat([keys, found], axis=1).astype({"diverged": "Int64"})
