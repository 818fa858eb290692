"""The models that everything is compared with: target and retrained models, and their rows.

Of a profile with a published model there is the target alone. In the place of a retrained model
stands the paper's proxy, `approximate_retraining`.
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
from unlearn_utils.core import membership
from unlearn_utils.data import hub
from unlearn_utils.profiles import Profile
from unlearn_utils.study import selection
from unlearn_utils.study.study_documents import (
    fingerprint,
    measured_parts,
    tokenized,
    tokenizer,
    tokenizer_artifact,
    training_parts,
)
from unlearn_utils.study.versions import VERSIONS

SUMS = ("tokens", "nll", "correct")  # columns that add up over the chunks of a document
DOCUMENT_KEYS = ("id", "family", "rank", "domain", "split")  # columns that say which document it is
KEYS = (*DOCUMENT_KEYS, "model", "target_domain")  # and whose row; the others are measurements


# ---------------------------------------------------------------------- target and retrained models


def pretrained_model(
    profile: Profile, left_out: str | None = None, seed: int = 0, threads: int = 1
) -> Artifact:
    """Return a model trained from scratch on everything but one forget set.

    Args:
        profile: documents, shape and recipe.
        left_out: the domain whose forget set is left out; None: nothing is, as of the target.
        seed: of the weights and of the order of documents.
        threads: that it is trained on.

    Returns:
        An artifact that holds weights, config and history.parquet.
    """
    settings = {
        "data": fingerprint(profile),
        "shape": asdict(profile.shape),
        "recipe": asdict(profile.pretraining),
        "left_out": left_out,
        "seed": seed,
    }
    make = partial(_make_pretrained_model, profile, left_out, seed, threads)
    return Artifact("pretrained", VERSIONS["pretrained"], settings, make)


def _make_pretrained_model(
    profile: Profile, left_out: str | None, seed: int, threads: int, folder: Path
) -> dict:
    from unlearn_utils.engine import models, training

    documents = list(tokenized(profile, training_parts(profile, left_out)).ids)
    model = models.build(profile.shape, tokenizer(profile), seed)
    pad_id = tokenizer(profile).pad_token_id
    start = time.perf_counter()
    with on_threads(threads):
        history = training.pretrain(model, documents, profile.pretraining, pad_id, seed)
    seconds = time.perf_counter() - start
    models.save(model, folder)
    table = pd.DataFrame(history).assign(left_out=left_out or "nothing", seed=seed)
    table.to_parquet(folder / "history.parquet")
    return {
        "training_seconds": round(seconds, 2),
        "tokens": sum(map(len, documents)) * profile.pretraining.epochs,
        "threads": threads,
        "bf16": models.half_precision(),
    }


def target(profile: Profile) -> Artifact | hub.Snapshot:
    """Return the model before unlearning: trained on everything, or published."""
    if not profile.hub:
        return pretrained_model(profile)
    reads = f"{fingerprint(profile)}-{profile.shape.context}"
    if profile.corpus.whole:
        reads += "-whole"
    return hub.Snapshot(profile.hub, reads)


def retrained(profile: Profile, target_domain: str) -> Artifact:
    """Return the truth: trained by the same recipe on everything but the domain's forget set.

    Raises:
        ValueError: the profile's model is published.
    """
    if profile.hub:
        raise ValueError(
            f"{profile.hub.name} cannot be trained again here: the profile {profile.name} has no "
            "retrained model"
        )
    return pretrained_model(profile, target_domain)


def noise_floor(profile: Profile) -> Artifact:
    """Return `retrained` of one domain with another seed: how far apart two retrained models are.

    It is trained last, alone, on every core.
    """
    return pretrained_model(profile, profile.noise_domain, seed=1, threads=profile.workers)


def baselines(profile: Profile) -> dict[str, Artifact | hub.Snapshot]:
    """Return the models that everything is compared with, by name; the noise floor is last.

    Of a published model it is itself alone.
    """
    models = {"target": target(profile)}
    if profile.hub:
        return models
    for domain in profile.domains:
        models[f"retrained without {domain}"] = retrained(profile, domain)
    models[f"retrained without {profile.noise_domain}, seed 1"] = noise_floor(profile)
    return models


def train_baselines(profile: Profile) -> dict[str, Artifact | hub.Snapshot]:
    """Train the baselines that are missing, and return all.

    They are trained one by one, in single-threaded processes side by side; the last, on every core.
    """
    models = baselines(profile)
    if not profile.hub:
        tokenizer_artifact(profile).folder()
    artifacts = list(models.values())
    side_by_side(artifacts[:-1], profile.workers)
    artifacts[-1].folder()
    return models


def histories(profile: Profile) -> pd.DataFrame:
    """Return the training of every baseline that was trained here.

    Returns:
        model, step, loss, learning_rate; no row for a published model.
    """
    if profile.hub:
        return pd.DataFrame(columns=["model", "step", "loss", "learning_rate"])
    frames = []
    for name, artifact in train_baselines(profile).items():
        history = pd.read_parquet(artifact.folder() / "history.parquet")
        frames.append(history.assign(model=name))
    return pd.concat(frames, ignore_index=True)


# ------------------------------------------------------------------------------------- measurements


def measurements(profile: Profile, model: Artifact | hub.Snapshot) -> Artifact:
    """Return the measurements of one stored model on every measured split.

    It holds rows.parquet, one row a document, as `evaluation.measure`.
    """
    settings = {
        "model": model.path.name,
        "retain": profile.corpus.measured,
        "scores": membership.columns(),
    }
    make = partial(_make_measurements, profile, model)
    return Artifact("measured", VERSIONS["measured"], settings, make)


def _make_measurements(profile: Profile, model: Artifact | hub.Snapshot, folder: Path) -> None:
    from unlearn_utils.engine import evaluation, models

    documents = tokenized(profile, measured_parts(profile.domains), profile.corpus.measured)
    with on_threads(1):
        rows = evaluation.measure(models.load(model.folder()), documents, tokenizer(profile))
    rows.to_parquet(folder / "rows.parquet")


def measure_baselines(profile: Profile) -> pd.DataFrame:
    """Return the rows of every baseline on every measured split; `model` says whose."""
    artifacts = {}
    for name, model in train_baselines(profile).items():
        artifacts[name] = measurements(profile, model)
    side_by_side(list(artifacts.values()), profile.workers)
    frames = []
    for name, artifact in artifacts.items():
        rows = pd.read_parquet(artifact.folder() / "rows.parquet")
        frames.append(rows.assign(model=name))
    return pd.concat(frames, ignore_index=True)


def rows_of_domain(profile: Profile, model: Artifact | hub.Snapshot, domain: str) -> pd.DataFrame:
    """Return the rows of a baseline on one domain's documents and the general ones."""
    rows = pd.read_parquet(measurements(profile, model).folder() / "rows.parquet")
    return rows[rows.domain.isin([domain, "general"])]


def baseline_rows(profile: Profile, rows: pd.DataFrame, model: str) -> pd.DataFrame:
    """Return the rows of one baseline as each domain's runs are compared with it.

    Those are the domain's documents and the general ones, with the domain as `target_domain`. Of a
    published model there is no retrained one: its rows are not a number, and those with another
    seed are not there.

    Args:
        profile: says the domains.
        rows: of `measure_baselines`.
        model: "target"; "retrained", the one without the domain's forget set; "retrained again",
            with another seed, for the domain that has one; or "approximate retraining".
    """
    domains = profile.domains
    if model == "retrained again":
        domains = [profile.noise_domain]
    parts = []
    for domain in domains:
        named = rows.model == _baseline_name(profile, model, domain)
        part = rows[named & rows.domain.isin([domain, "general"])].assign(target_domain=domain)
        if model == "approximate retraining":
            part = approximate_retraining(part)
        parts.append(part)
    found = pd.concat(parts, ignore_index=True).assign(model=model)
    if profile.hub and model == "retrained":
        measured = [column for column in found if column not in KEYS]
        return found.assign(**dict.fromkeys(measured, np.nan))
    if profile.hub and model == "retrained again":
        return found[:0]
    return found


def _baseline_name(profile: Profile, model: str, domain: str) -> str:
    """Return which of `baselines` a model of `baseline_rows` is, for one domain's runs."""
    if model == "retrained" and not profile.hub:
        return f"retrained without {domain}"
    if model == "retrained again" and not profile.hub:
        return f"retrained without {domain}, seed 1"
    return "target"


# --------------------------------------------------------------------------- approximate retraining


def approximate_retraining(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of approximate retraining, the paper's proxy for a retrained model.

    What the target does to text that it has not seen stands for what a retrained model does to the
    forget set; to other text both do the same.

    rows: the target's, of one domain's documents and the general ones. Each forget document is
        measured as an unseen document of its half, in turn.
    """
    parts = [rows[rows.split != "forget"]]
    for which in (selection.SELECTION, selection.REPORT):
        forget = selection.half(rows[rows.split == "forget"], which)
        unseen = selection.half(rows[rows.split == "approximate"], which)
        parts.append(_measured_as(forget, unseen))
    return pd.concat(parts).sort_index()


def _measured_as(forget: pd.DataFrame, unseen: pd.DataFrame) -> pd.DataFrame:
    """Return forget rows with the measurements of unseen documents, in turn.

    If a forget document has several chunks, each has an equal part of the unseen document's tokens,
    loss and hits, and the mean of its scores.
    """
    measured = [column for column in forget if column not in KEYS]
    over_chunks = {column: "sum" if column in SUMS else "mean" for column in measured}
    documents = unseen.groupby("family", sort=False)[measured].agg(over_chunks)

    place, _ = pd.factorize(forget.family)
    taken = documents.iloc[place % len(documents)].set_index(forget.index)
    chunks = forget.groupby("family").family.transform("size")
    for column in measured:
        if column in SUMS:
            taken[column] = taken[column] / chunks
    return forget.assign(**{column: taken[column] for column in measured})
