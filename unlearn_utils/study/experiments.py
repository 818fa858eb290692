"""The memoised steps of the study, each a plain function of a profile and its choices. What is stored is not computed again.

torch is imported by what computes, not by what reads: a notebook that finds its results in the store starts in a second.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from unlearn_utils.cache.store import Step
from unlearn_utils.cache.workers import on_threads, side_by_side
from unlearn_utils.data import hub
from unlearn_utils.profiles import Profile, Unlearning
from unlearn_utils.study import runs, selection
from unlearn_utils.study.inputs import documents, fingerprint, measured_parts, tokenizer, tokenizer_step, training_parts

VERSIONS = {
    "pretrained": 4,
    "measured": 2,
    "unlearned": 7,
    "repeated": 3,
    "continued": 1,
    "diverged": 1,
    "answered": 1,
    "grid": 4,
    "counted": 2,
    "timed": 3,
}  # raise when a step's code changes its result
SUMS = ("tokens", "nll", "correct")  # columns that add up over the chunks of a document
BRIEF = ("tokens", "nll", "correct", "min_k_40")  # of `evaluation.brief`
KEYS = ("id", "family", "rank", "domain", "split", "model", "run")  # columns of a row that say whose it is; the others are measurements

# ---------------------------------------------------------------------------------------------- target and retrained models


def pretrained(profile: Profile, left_out: str | None = None, seed: int = 0, threads: int = 1) -> Step:
    """A model trained from scratch on everything but `left_out`'s forget set (None: on everything, the target)."""
    settings = {
        "data": fingerprint(profile),
        "shape": asdict(profile.shape),
        "recipe": asdict(profile.pretraining),
        "left_out": left_out,
        "seed": seed,
    }
    make = partial(_make_pretrained, profile, left_out, seed, threads)
    return Step("pretrained", VERSIONS["pretrained"], settings, make)


def _make_pretrained(profile: Profile, left_out: str | None, seed: int, threads: int, folder: Path) -> dict:
    from unlearn_utils.engine import models, training

    rows = documents(profile, training_parts(profile, left_out))
    model = models.build(profile.shape, tokenizer(profile), seed)
    start = time.perf_counter()
    with on_threads(threads):
        history = training.pretrain(model, list(rows.ids), profile.pretraining, tokenizer(profile).pad_token_id, seed)
    seconds = time.perf_counter() - start
    models.save(model, folder)
    pd.DataFrame(history).assign(left_out=left_out or "nothing", seed=seed).to_parquet(folder / "history.parquet")
    tokens = int(rows.ids.map(len).sum()) * profile.pretraining.epochs
    return {"training_seconds": round(seconds, 2), "tokens": tokens, "threads": threads, "bf16": models.half_precision()}


def target(profile: Profile) -> Step | hub.Snapshot:
    """The model before unlearning: trained on everything, or published."""
    if not profile.hub:
        return pretrained(profile)
    return hub.Snapshot(profile.hub, f"{fingerprint(profile)}-{profile.shape.context}{'-whole' * profile.corpus.whole}")


def retrained(profile: Profile, domain: str) -> Step:
    """The truth: trained by the same recipe on everything but the domain's forget set. Raises ValueError for a published model."""
    if profile.hub:
        raise ValueError(f"{profile.hub.name} cannot be trained again here: the profile {profile.name} has no retrained model")
    return pretrained(profile, domain)


def noise_floor(profile: Profile) -> Step:
    """`retrained` of one domain with another seed: how far apart two retrained models are. Trained last, alone, on every core."""
    return pretrained(profile, profile.noise_domain, seed=1, threads=profile.workers)


def baselines(profile: Profile) -> dict[str, Step | hub.Snapshot]:
    """The models that everything is compared with, by name; of a published model itself alone."""
    if profile.hub:
        return {"target": target(profile)}
    named = {"target": target(profile)} | {f"retrained without {d}": retrained(profile, d) for d in profile.domains}
    return named | {f"retrained without {profile.noise_domain}, seed 1": noise_floor(profile)}


def train_baselines(profile: Profile) -> dict[str, Step]:
    """Trains what is missing: one by one in single-threaded processes side by side, the noise floor last, on every core."""
    steps = baselines(profile)
    *alone, last = steps.values()
    if not profile.hub:
        tokenizer_step(profile).folder()
    side_by_side(profile, alone)
    last.folder()
    return steps


def histories(profile: Profile) -> pd.DataFrame:
    """The training of every baseline that was trained here: model, step, loss, learning_rate; empty for a published model."""
    trained = {} if profile.hub else train_baselines(profile)
    frames = [pd.read_parquet(s.folder() / "history.parquet").assign(model=name) for name, s in trained.items()]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=["model", "step", "loss", "learning_rate"])


# ---------------------------------------------------------------------------------------------- measurements


def measured(profile: Profile, model: Step) -> Step:
    """One row of measurements per document (`evaluation.measure`) of every measured split, by one stored model."""
    settings = {"model": model.path.name, "retain": profile.corpus.measured}
    return Step("measured", VERSIONS["measured"], settings, partial(_make_measured, profile, model))


def _make_measured(profile: Profile, model: Step, folder: Path) -> None:
    from unlearn_utils.engine import evaluation, models

    rows = documents(profile, measured_parts(profile.domains), profile.corpus.measured)
    with on_threads(1):
        found = evaluation.measure(models.load(model.folder()), rows, tokenizer(profile))
    found.to_parquet(folder / "rows.parquet")


def measure_baselines(profile: Profile) -> pd.DataFrame:
    """Rows of every baseline on every measured split; `model` says whose."""
    steps = {name: measured(profile, step) for name, step in train_baselines(profile).items()}
    side_by_side(profile, list(steps.values()))
    return pd.concat([pd.read_parquet(s.folder() / "rows.parquet").assign(model=name) for name, s in steps.items()], ignore_index=True)


def by_run(profile: Profile, rows: pd.DataFrame, model: str) -> pd.DataFrame:
    """Rows of one baseline as each domain's runs are compared with it: the domain's documents and the general ones, `run` = domain.

    rows: of `measure_baselines`; model: "target"; "retrained", the one without the run's forget set; "retrained again", with another
    seed, for the domain that has one; or "approximate retraining" (`stand_in`). Of a published model there is no retrained one: its
    rows are not a number, and those with another seed are not there.
    """
    name = {"retrained": "retrained without {}", "retrained again": "retrained without {}, seed 1"}.get(model, "target")
    if profile.hub:
        name = "target"
    domains = [profile.noise_domain] if model == "retrained again" else profile.domains
    parts = [rows[(rows.model == name.format(d)) & rows.domain.isin([d, "general"])].assign(run=d) for d in domains]
    if model == "approximate retraining":
        parts = map(stand_in, parts)
    found = pd.concat(parts, ignore_index=True).assign(model=model)
    if not profile.hub or name == model or model == profile.truth:
        return found
    return found.assign(**{c: np.nan for c in found if c not in KEYS}) if model == "retrained" else found[:0]


def stand_in(rows: pd.DataFrame) -> pd.DataFrame:
    """Approximate retraining, the paper's proxy: what the target does to text that it has not seen stands for what a retrained model does
    to the forget set, to other text it does the same.

    rows: the target's, of one run. Each forget document is measured as an unseen document of its half, in turn; if it has several chunks,
    each has an equal part of that document's tokens, loss and hits, and the mean of its scores.
    """
    measured, parts = [c for c in rows if c not in KEYS], [rows[rows.split != "forget"]]
    for half in (selection.SELECTION, selection.REPORT):
        forget, unseen = (selection.half(rows[rows.split == s], half) for s in ("forget", "approximate"))
        documents = unseen.groupby("family", sort=False)[measured].agg({c: "sum" if c in SUMS else "mean" for c in measured})
        taken = documents.iloc[pd.factorize(forget.family)[0] % len(documents)].set_index(forget.index)
        chunks = forget.groupby("family").family.transform("size")
        parts.append(forget.assign(**{c: taken[c] / chunks if c in SUMS else taken[c] for c in measured}))
    return pd.concat(parts).sort_index()


# ---------------------------------------------------------------------------------------------- unlearned models


def unlearned(profile: Profile, domain: str, method: str, **choices) -> Step:
    """One unlearning run from the target, watched on the selection half, reported on the other half at the steps that the rules chose.

    choices: any field of `profiles.Unlearning`. Holds trajectory.parquet (selection half, every watched step, `evaluation.brief`),
    report.parquet (report half, by `rule`, `evaluation.measure`), chosen.json (the step of each rule; the step at which it diverged, or
    null), history.parquet, and the weights at the practitioner's step. The weights of a published model are rounded to the type in which it
    was published, and so reported.
    """
    recipe = replace(profile.unlearning, **choices)
    settings = {
        "target": target(profile).path.name,
        "retrained": None if profile.hub else retrained(profile, domain).path.name,
        "domain": domain,
        "method": method,
        "recipe": asdict(recipe),
        "retain": profile.corpus.measured,
        "bound": selection.BOUND,
    }
    return Step("unlearned", VERSIONS["unlearned"], settings, partial(_make_unlearned, profile, domain, method, recipe))


def _make_unlearned(profile: Profile, domain: str, method: str, recipe: Unlearning, folder: Path) -> dict:
    from unlearn_utils.engine import evaluation, loop, models

    rows, start = documents(profile, measured_parts([domain]), profile.corpus.measured), target(profile).folder()
    before = _own_rows(profile, target(profile), domain)
    exact = stand_in(before) if profile.hub else _own_rows(profile, retrained(profile, domain), domain)
    before, exact = (selection.half(known, selection.SELECTION) for known in (before, exact))
    goals, frames, states, diverged = selection.goals(before, exact), [before[[*KEYS[:5], *BRIEF]].assign(step=0)], {}, None
    watched, dtype = runs.watched_steps(runs.length(profile, domain, recipe)), models.stored_dtype(start)  # rounded before it is reported

    def so_far() -> tuple[pd.DataFrame, dict[str, int]]:
        trajectory = pd.concat([f for f in frames if f.nll.notna().all()], ignore_index=True)
        return trajectory, {rule: selection.choose(trajectory, goal) for rule, goal in goals.items()}

    def watch(step: int, model) -> bool:
        nonlocal diverged
        frames.append(evaluation.brief(model, selection.half(rows, selection.SELECTION), tokenizer(profile).pad_token_id).assign(step=step))
        best = loop.first(lambda: set(so_far()[1].values()))  # what is not the best so far will not be
        if step in best:
            states[step] = {name: value.to(dtype, copy=True) for name, value in loop.gathered(model).items()}
        for old in states.keys() - best:
            del states[old]
        diverged = step if runs.has_diverged(profile, frames[-1]) else None
        return diverged is not None

    with on_threads(1):
        _, history, seconds = runs.run(profile, start, domain, method, recipe, 0, watch, watched)
        trajectory, chosen = so_far()
        reports, part = {}, selection.half(rows, selection.REPORT)
        for step in set(chosen.values()):
            reports[step] = evaluation.measure(runs.at(start, states.get(step, {})), part, tokenizer(profile))
        loop.save(runs.at(start, states.get(chosen["practitioner"], {})), folder, dtype)
    columns = _columns(method, domain, 0, recipe)
    report = pd.concat([reports[step].assign(rule=rule, step=step) for rule, step in chosen.items()], ignore_index=True)
    for name, frame in {"trajectory": trajectory, "report": report, "history": pd.DataFrame(history)}.items():
        frame.assign(**columns).to_parquet(folder / f"{name}.parquet")
    (folder / "chosen.json").write_text(json.dumps({**chosen, "diverged": diverged}))
    return {"training_seconds": round(seconds, 2), "steps": len(history)}


def repeated(profile: Profile, domain: str, method: str, seed: int, **choices) -> Step:
    """The run of `unlearned` with another seed, up to the practitioner's step of seed 0, reported on the report half."""
    first = unlearned(profile, domain, method, **choices)
    recipe = replace(profile.unlearning, **choices)
    make = partial(_make_repeated, profile, domain, method, recipe, seed, first)
    return Step("repeated", VERSIONS["repeated"], {"first": first.path.name, "seed": seed}, make)


def _make_repeated(profile: Profile, domain: str, method: str, recipe: Unlearning, seed: int, first: Step, folder: Path) -> None:
    from unlearn_utils.engine import evaluation, models

    step = json.loads((first.folder() / "chosen.json").read_text())["practitioner"]
    rows = selection.half(documents(profile, measured_parts([domain]), profile.corpus.measured), selection.REPORT)
    start = target(profile).folder()
    with on_threads(1):
        weights, _, _ = runs.run(profile, start, domain, method, recipe, seed, steps=step)
        weights = {name: value.to(models.stored_dtype(start)) for name, value in weights.items()}
        found = evaluation.measure(runs.at(start, weights), rows, tokenizer(profile))
    found.assign(rule="practitioner", step=step, **_columns(method, domain, seed, recipe)).to_parquet(folder / "report.parquet")


def _columns(method: str, domain: str, seed: int, recipe: Unlearning) -> dict:
    """The settings of a run as columns of its rows."""
    return {"method": method, "run": domain, "seed": seed, **asdict(recipe), "variant": str(recipe.variant)}


def _own_rows(profile: Profile, model: Step, domain: str) -> pd.DataFrame:
    """Rows of a baseline on one domain's documents and the general ones."""
    rows = pd.read_parquet(measured(profile, model).folder() / "rows.parquet")
    return rows[rows.domain.isin([domain, "general"])]


def unlearn_all(profile: Profile, names: Sequence[str], **choices) -> pd.DataFrame:
    """Runs methods on every domain, side by side, then repeats them with other seeds; as a table: method, run, seed, entry (the `Step`)."""
    measure_baselines(profile)
    first = {(m, d, 0): unlearned(profile, d, m, **choices) for m in names for d in profile.domains}
    side_by_side(profile, list(first.values()))
    again = {(m, d, s): repeated(profile, d, m, s, **choices) for m, d, _ in first for s in range(1, profile.seeds)}
    side_by_side(profile, list(again.values()))
    return pd.DataFrame([(*key, step) for key, step in (first | again).items()], columns=["method", "run", "seed", "entry"])


def collected(runs: pd.DataFrame, name: str) -> pd.DataFrame:
    """One file of every run together: "report" (all seeds), "trajectory" or "history" (seed 0)."""
    entries = runs.entry if name == "report" else runs[runs.seed == 0].entry
    return pd.concat([pd.read_parquet(step.folder() / f"{name}.parquet") for step in entries], ignore_index=True)


def chosen_steps(runs: pd.DataFrame) -> pd.DataFrame:
    """Of each run of seed 0: the step that each rule kept, and the step at which it diverged (missing: it did not)."""
    first = runs[runs.seed == 0]
    found = [json.loads((step.folder() / "chosen.json").read_text()) for step in first.entry]
    return pd.concat([first[["method", "run"]].reset_index(drop=True), pd.DataFrame(found)], axis=1).astype({"diverged": "Int64"})
