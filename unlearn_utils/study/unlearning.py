"""The memoised steps of the study, each a plain function of a profile and its choices. What is stored is not computed again.

torch is imported by what computes, not by what reads: a notebook that finds its results in the store starts in a second.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import pandas as pd

from unlearn_utils.cache.store import Artifact
from unlearn_utils.cache.workers import on_threads, side_by_side
from unlearn_utils.profiles import Profile, Unlearning
from unlearn_utils.study import pool, selection, single_run, versions
from unlearn_utils.study.study_documents import measured_parts, tokenized, tokenizer

BRIEF = ("tokens", "nll", "correct", "min_k_40")  # of `evaluation.brief`


# ---------------------------------------------------------------------------------------------- unlearned models


def unlearning_run(profile: Profile, domain: str, method: str, **choices) -> Artifact:
    """One unlearning run from the target, watched on the selection half, reported on the other half at the steps that the rules chose.

    choices: any field of `profiles.Unlearning`. Holds trajectory.parquet (selection half, every watched step, `evaluation.brief`),
    report.parquet (report half, by `rule`, `evaluation.measure`), chosen.json (the step of each rule; the step at which it diverged, or
    null), history.parquet, and the weights at the practitioner's step. The weights of a published model are rounded to the type in which it
    was published, and so reported.
    """
    recipe = replace(profile.unlearning, **choices)
    settings = {
        "target": pool.target(profile).path.name,
        "retrained": None if profile.hub else pool.retrained(profile, domain).path.name,
        "domain": domain,
        "method": method,
        "recipe": asdict(recipe),
        "retain": profile.corpus.measured,
        "bound": selection.BOUND,
    }
    return Artifact("unlearned", versions.VERSIONS["unlearned"], settings, partial(_make_unlearning_run, profile, domain, method, recipe))


def _make_unlearning_run(profile: Profile, domain: str, method: str, recipe: Unlearning, folder: Path) -> dict:
    from unlearn_utils.engine import distributed, evaluation, models

    rows, start = tokenized(profile, measured_parts([domain]), profile.corpus.measured), pool.target(profile).folder()
    before = pool.rows_of_domain(profile, pool.target(profile), domain)
    exact = pool.approximate_retraining(before) if profile.hub else pool.rows_of_domain(profile, pool.retrained(profile, domain), domain)
    before, exact = (selection.half(known, selection.SELECTION) for known in (before, exact))
    goals, frames, states, diverged = selection.goals(before, exact), [before[[*pool.KEYS[:5], *BRIEF]].assign(step=0)], {}, None
    watched, dtype = (
        single_run.watched_steps(single_run.steps_of_run(profile, domain, recipe)),
        models.stored_dtype(start),
    )  # rounded before it is reported

    def so_far() -> tuple[pd.DataFrame, dict[str, int]]:
        trajectory = pd.concat([f for f in frames if f.nll.notna().all()], ignore_index=True)
        return trajectory, {rule: selection.choose(trajectory, goal) for rule, goal in goals.items()}

    def watch(step: int, model) -> bool:
        nonlocal diverged
        frames.append(
            evaluation.measure_briefly(model, selection.half(rows, selection.SELECTION), tokenizer(profile).pad_token_id).assign(step=step)
        )
        best = distributed.on_main_process(lambda: set(so_far()[1].values()))  # what is not the best so far will not be
        if step in best:
            states[step] = {name: value.to(dtype, copy=True) for name, value in distributed.gathered_state(model).items()}
        for old in states.keys() - best:
            del states[old]
        diverged = step if single_run.has_diverged(profile, frames[-1]) else None
        return diverged is not None

    with on_threads(1):
        _, history, seconds = single_run.run(profile, start, domain, method, recipe, 0, watch, watched)
        trajectory, chosen = so_far()
        reports, part = {}, selection.half(rows, selection.REPORT)
        for step in set(chosen.values()):
            reports[step] = evaluation.measure(single_run.at(start, states.get(step, {})), part, tokenizer(profile))
        models.save(single_run.at(start, states.get(chosen["practitioner"], {})), folder, dtype)
    columns = _columns(method, domain, 0, recipe)
    report = pd.concat([reports[step].assign(rule=rule, step=step) for rule, step in chosen.items()], ignore_index=True)
    for name, frame in {"trajectory": trajectory, "report": report, "history": pd.DataFrame(history)}.items():
        frame.assign(**columns).to_parquet(folder / f"{name}.parquet")
    (folder / "chosen.json").write_text(json.dumps({**chosen, "diverged": diverged}))
    return {"training_seconds": round(seconds, 2), "steps": len(history)}


def repeated_run(profile: Profile, domain: str, method: str, seed: int, **choices) -> Artifact:
    """The run of `unlearned` with another seed, up to the practitioner's step of seed 0, reported on the report half."""
    first = unlearning_run(profile, domain, method, **choices)
    recipe = replace(profile.unlearning, **choices)
    make = partial(_make_repeated_run, profile, domain, method, recipe, seed, first)
    return Artifact("repeated", versions.VERSIONS["repeated"], {"first": first.path.name, "seed": seed}, make)


def _make_repeated_run(profile: Profile, domain: str, method: str, recipe: Unlearning, seed: int, first: Artifact, folder: Path) -> None:
    from unlearn_utils.engine import evaluation, models

    step = json.loads((first.folder() / "chosen.json").read_text())["practitioner"]
    rows = selection.half(tokenized(profile, measured_parts([domain]), profile.corpus.measured), selection.REPORT)
    start = pool.target(profile).folder()
    with on_threads(1):
        weights, _, _ = single_run.run(profile, start, domain, method, recipe, seed, steps=step)
        weights = {name: value.to(models.stored_dtype(start)) for name, value in weights.items()}
        found = evaluation.measure(single_run.at(start, weights), rows, tokenizer(profile))
    found.assign(rule="practitioner", step=step, **_columns(method, domain, seed, recipe)).to_parquet(folder / "report.parquet")


def _columns(method: str, domain: str, seed: int, recipe: Unlearning) -> dict:
    """The settings of a run as columns of its rows."""
    return {"method": method, "target_domain": domain, "seed": seed, **asdict(recipe), "variant": str(recipe.variant)}


def unlearn_all(profile: Profile, names: Sequence[str], **choices) -> pd.DataFrame:
    """Runs methods on every domain, side by side, then repeats them with other seeds; as a table: method, run, seed, entry (the `Step`)."""
    pool.measure_baselines(profile)
    first = {(m, d, 0): unlearning_run(profile, d, m, **choices) for m in names for d in profile.domains}
    side_by_side(list(first.values()), profile.workers)
    again = {(m, d, s): repeated_run(profile, d, m, s, **choices) for m, d, _ in first for s in range(1, profile.seeds)}
    side_by_side(list(again.values()), profile.workers)
    return pd.DataFrame([(*key, step) for key, step in (first | again).items()], columns=["method", "target_domain", "seed", "entry"])


def rows_of_runs(runs: pd.DataFrame, name: str) -> pd.DataFrame:
    """One file of every run together: "report" (all seeds), "trajectory" or "history" (seed 0)."""
    entries = runs.entry if name == "report" else runs[runs.seed == 0].entry
    return pd.concat([pd.read_parquet(step.folder() / f"{name}.parquet") for step in entries], ignore_index=True)


def chosen_steps(runs: pd.DataFrame) -> pd.DataFrame:
    """Of each run of seed 0: the step that each rule kept, and the step at which it diverged (missing: it did not)."""
    first = runs[runs.seed == 0]
    found = [json.loads((step.folder() / "chosen.json").read_text()) for step in first.entry]
    return pd.concat([first[["method", "target_domain"]].reset_index(drop=True), pd.DataFrame(found)], axis=1).astype({"diverged": "Int64"})
