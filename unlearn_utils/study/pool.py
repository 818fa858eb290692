"""The memoised steps of the study, each a plain function of a profile and its choices. What is stored is not computed again.

torch is imported by what computes, not by what reads: a notebook that finds its results in the store starts in a second.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from unlearn_utils.cache.store import Artifact
from unlearn_utils.cache.workers import on_threads, side_by_side
from unlearn_utils.data import hub
from unlearn_utils.profiles import Profile
from unlearn_utils.study import selection, versions
from unlearn_utils.study.study_documents import fingerprint, measured_parts, tokenized, tokenizer, tokenizer_step, training_parts

SUMS = ("tokens", "nll", "correct")  # columns that add up over the chunks of a document
KEYS = ("id", "family", "rank", "domain", "split", "model", "target_domain")  # columns of a row that say whose it is; the others are measurements

# ---------------------------------------------------------------------------------------------- target and retrained models


def pretrained_model(profile: Profile, left_out: str | None = None, seed: int = 0, threads: int = 1) -> Artifact:
    """A model trained from scratch on everything but `left_out`'s forget set (None: on everything, the target)."""
    settings = {
        "data": fingerprint(profile),
        "shape": asdict(profile.shape),
        "recipe": asdict(profile.pretraining),
        "left_out": left_out,
        "seed": seed,
    }
    make = partial(_make_pretrained_model, profile, left_out, seed, threads)
    return Artifact("pretrained", versions.VERSIONS["pretrained"], settings, make)


def _make_pretrained_model(profile: Profile, left_out: str | None, seed: int, threads: int, folder: Path) -> dict:
    from unlearn_utils.engine import models, training

    rows = tokenized(profile, training_parts(profile, left_out))
    model = models.build(profile.shape, tokenizer(profile), seed)
    start = time.perf_counter()
    with on_threads(threads):
        history = training.pretrain(model, list(rows.ids), profile.pretraining, tokenizer(profile).pad_token_id, seed)
    seconds = time.perf_counter() - start
    models.save(model, folder)
    pd.DataFrame(history).assign(left_out=left_out or "nothing", seed=seed).to_parquet(folder / "history.parquet")
    tokens = int(rows.ids.map(len).sum()) * profile.pretraining.epochs
    return {"training_seconds": round(seconds, 2), "tokens": tokens, "threads": threads, "bf16": models.half_precision()}


def target(profile: Profile) -> Artifact | hub.Snapshot:
    """The model before unlearning: trained on everything, or published."""
    if not profile.hub:
        return pretrained_model(profile)
    return hub.Snapshot(profile.hub, f"{fingerprint(profile)}-{profile.shape.context}{'-whole' * profile.corpus.whole}")


def retrained(profile: Profile, domain: str) -> Artifact:
    """The truth: trained by the same recipe on everything but the domain's forget set. Raises ValueError for a published model."""
    if profile.hub:
        raise ValueError(f"{profile.hub.name} cannot be trained again here: the profile {profile.name} has no retrained model")
    return pretrained_model(profile, domain)


def noise_floor(profile: Profile) -> Artifact:
    """`retrained` of one domain with another seed: how far apart two retrained models are. Trained last, alone, on every core."""
    return pretrained_model(profile, profile.noise_domain, seed=1, threads=profile.workers)


def baselines(profile: Profile) -> dict[str, Artifact | hub.Snapshot]:
    """The models that everything is compared with, by name; of a published model itself alone."""
    if profile.hub:
        return {"target": target(profile)}
    named = {"target": target(profile)} | {f"retrained without {d}": retrained(profile, d) for d in profile.domains}
    return named | {f"retrained without {profile.noise_domain}, seed 1": noise_floor(profile)}


def train_baselines(profile: Profile) -> dict[str, Artifact]:
    """Trains what is missing: one by one in single-threaded processes side by side, the noise floor last, on every core."""
    steps = baselines(profile)
    *alone, last = steps.values()
    if not profile.hub:
        tokenizer_step(profile).folder()
    side_by_side(alone, profile.workers)
    last.folder()
    return steps


def histories(profile: Profile) -> pd.DataFrame:
    """The training of every baseline that was trained here: model, step, loss, learning_rate; empty for a published model."""
    trained = {} if profile.hub else train_baselines(profile)
    frames = [pd.read_parquet(s.folder() / "history.parquet").assign(model=name) for name, s in trained.items()]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=["model", "step", "loss", "learning_rate"])


# ---------------------------------------------------------------------------------------------- measurements


def measurements(profile: Profile, model: Artifact) -> Artifact:
    """One row of measurements per document (`evaluation.measure`) of every measured split, by one stored model."""
    settings = {"model": model.path.name, "retain": profile.corpus.measured}
    return Artifact("measured", versions.VERSIONS["measured"], settings, partial(_make_measurements, profile, model))


def _make_measurements(profile: Profile, model: Artifact, folder: Path) -> None:
    from unlearn_utils.engine import evaluation, models

    rows = tokenized(profile, measured_parts(profile.domains), profile.corpus.measured)
    with on_threads(1):
        found = evaluation.measure(models.load(model.folder()), rows, tokenizer(profile))
    found.to_parquet(folder / "rows.parquet")


def measure_baselines(profile: Profile) -> pd.DataFrame:
    """Rows of every baseline on every measured split; `model` says whose."""
    steps = {name: measurements(profile, step) for name, step in train_baselines(profile).items()}
    side_by_side(list(steps.values()), profile.workers)
    return pd.concat([pd.read_parquet(s.folder() / "rows.parquet").assign(model=name) for name, s in steps.items()], ignore_index=True)


def baseline_rows(profile: Profile, rows: pd.DataFrame, model: str) -> pd.DataFrame:
    """Rows of one baseline as each domain's runs are compared with it: the domain's documents and the general ones, `run` = domain.

    rows: of `measure_baselines`; model: "target"; "retrained", the one without the run's forget set; "retrained again", with another
    seed, for the domain that has one; or "approximate retraining" (`stand_in`). Of a published model there is no retrained one: its
    rows are not a number, and those with another seed are not there.
    """
    name = {"retrained": "retrained without {}", "retrained again": "retrained without {}, seed 1"}.get(model, "target")
    if profile.hub:
        name = "target"
    domains = [profile.noise_domain] if model == "retrained again" else profile.domains
    parts = [rows[(rows.model == name.format(d)) & rows.domain.isin([d, "general"])].assign(target_domain=d) for d in domains]
    if model == "approximate retraining":
        parts = map(approximate_retraining, parts)
    found = pd.concat(parts, ignore_index=True).assign(model=model)
    if not profile.hub or name == model or model == profile.truth:
        return found
    return found.assign(**{c: np.nan for c in found if c not in KEYS}) if model == "retrained" else found[:0]


def approximate_retraining(rows: pd.DataFrame) -> pd.DataFrame:
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


def rows_of_domain(profile: Profile, model: Artifact, domain: str) -> pd.DataFrame:
    """Rows of a baseline on one domain's documents and the general ones."""
    rows = pd.read_parquet(measurements(profile, model).folder() / "rows.parquet")
    return rows[rows.domain.isin([domain, "general"])]
