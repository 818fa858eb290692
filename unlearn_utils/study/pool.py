"""The pool: every model that was trained with, or without, each domain's forget set.

A replicate of the pool is a factorial. With three domains it has 2^3 models, one for each choice of
the forget sets that it was trained on. So each domain has four pairs of a target, which saw its
forget set, and a retrained model, which did not and is alike in everything else. Every model has a
seed of its own, for its weights and for the order of its documents: retraining is a new training.

Of a profile with a published model there is the target alone. In the place of a retrained model
stands the paper's proxy, `approximate_retraining`. If its makers have trained one without any of
the forget sets, that is the retrained model of every domain.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd

from unlearn_utils.cache.store import Artifact
from unlearn_utils.cache.workers import on_threads, side_by_side
from unlearn_utils.core import membership
from unlearn_utils.data import base_models, hub
from unlearn_utils.profiles import Hub, Profile
from unlearn_utils.study import selection
from unlearn_utils.study.study_documents import (
    fingerprint,
    measured_parts,
    names_in_training,
    tokenized,
    tokenizer,
    tokenizer_artifact,
    training_parts,
)
from unlearn_utils.study.versions import VERSIONS

if TYPE_CHECKING:
    from torch import nn

KEPT = (0.25, 0.5, 0.75, 0.9)  # shares of a training at which a target's weights are kept
SUMS = ("tokens", "nll", "correct")  # columns that add up over the chunks of a document
DOCUMENT_KEYS = ("id", "family", "rank", "domain", "split")  # columns that say which document it is


# --------------------------------------------------------------------------- which models there are


@dataclass(frozen=True)
class Member:
    """One model of the pool.

    Attributes:
        replicate: the number of the pool that it is of.
        seen: the domains whose forget set it was trained on, in the profile's order.
    """

    replicate: int
    seen: tuple[str, ...]

    @property
    def name(self) -> str:
        """Its forget sets in words: "arxiv + github", or "none"."""
        return " + ".join(self.seen) or "none"

    def seed(self, domains: Sequence[str]) -> int:
        """Return the seed of its weights and of the order of its documents, which is its alone.

        domains: of the profile.
        """
        place = 0
        for number, domain in enumerate(domains):
            place += (domain in self.seen) * 2**number
        return self.replicate * 2 ** len(domains) + place


class Pair(NamedTuple):
    """A target and the model that was retrained without one forget set, alike in all else."""

    target: Member
    retrained: Member


def members(profile: Profile, replicate: int) -> list[Member]:
    """Return the models of one replicate; the first has seen every forget set, the last none."""
    found = []
    for choice in product((True, False), repeat=len(profile.domains)):
        seen = [domain for domain, chosen in zip(profile.domains, choice, strict=True) if chosen]
        found.append(Member(replicate, tuple(seen)))
    return found


def all_members(profile: Profile) -> list[Member]:
    """Return the models of every replicate of a profile."""
    found = []
    for replicate in profile.replicates:
        found += members(profile, replicate)
    return found


def pairs(profile: Profile, target_domain: str, replicate: int) -> list[Pair]:
    """Return the pairs of one domain.

    The first is the one that is unlearned: its target has seen every forget set. Of a published
    pair there is no other, and its retrained model has seen none.
    """
    if hub.counterpart(profile):
        first, *_, last = members(profile, replicate)
        return [Pair(first, last)]
    found = []
    for member in members(profile, replicate):
        if target_domain in member.seen:
            others = tuple(domain for domain in member.seen if domain != target_domain)
            found.append(Pair(member, Member(replicate, others)))
    return found


# ----------------------------------------------------------------------------------- trained models


def trained_model(profile: Profile, member: Member) -> Artifact:
    """Return a model trained on every retain set and the member's forget sets.

    It is trained from nothing, or on from the profile's base.

    Args:
        profile: documents, shape and recipe.
        member: says which forget sets, and the seed.

    Returns:
        An artifact that holds weights, config and history.parquet; where the model has seen a
        forget set also the weights at the shares `KEPT` of its steps, in folders of their own. Of a
        base, which is large, there are none of these, and weights are rounded to its type.

    Raises:
        ValueError: the profile's model is published.
    """
    if profile.hub:
        raise ValueError(
            f"{profile.hub.name} cannot be trained again here: the profile {profile.name} has no "
            "retrained model"
        )
    settings = {
        "data": fingerprint(profile),
        "shape": asdict(profile.shape),
        "recipe": asdict(profile.pretraining),
        "seen": list(member.seen),
        "seed": member.seed(profile.domains),
        "kept": list(KEPT),
    }
    if profile.base:
        settings["kept"] = []
        settings["base"] = base_models.base_model(profile.base).path.name
    make = partial(_make_trained_model, profile, member)
    return Artifact("pretrained", VERSIONS["pretrained"], settings, make)


def _make_trained_model(profile: Profile, member: Member, folder: Path) -> dict:
    from unlearn_utils.engine import models, training

    documents = tokenized(profile, training_parts(profile, member.seen))
    seed = member.seed(profile.domains)
    stored_as = None
    if profile.base:
        start = base_models.base_model(profile.base).folder()
        stored_as = models.stored_dtype(start)
        model = models.load(start)
    else:
        model = models.build(profile.shape, tokenizer(profile), seed)
    recipe = profile.pretraining
    steps = training.steps_of(len(documents), recipe.batch, recipe.epochs)
    marks = {}
    if member.seen and not profile.base:
        marks = {round(share * steps): kept_folder(folder, share) for share in KEPT}

    def keep(step: int, model: nn.Module) -> None:
        models.save(model, marks[step])

    start = time.perf_counter()
    with on_threads(1):
        history = training.pretrain(
            model,
            list(documents.ids),
            recipe,
            tokenizer(profile).pad_token_id,
            seed,
            training.Execution(watch=keep, watched=list(marks)),
            names=names_in_training(documents),
        )
    seconds = time.perf_counter() - start
    models.save(model, folder, stored_as)
    table = pd.DataFrame(history).assign(seen=member.name, replicate=member.replicate)
    table.to_parquet(folder / "history.parquet")
    return {
        "training_seconds": round(seconds, 2),
        "tokens": int(documents.ids.map(len).sum()) * recipe.epochs,
        "bf16": models.half_precision(),
    }


def kept_folder(folder: Path, share: float) -> Path:
    """Return where the weights of a trained model are at a share of its steps."""
    return folder / f"at_{share:.0%}".replace("%", "")


def target(profile: Profile, replicate: int | None = None) -> Artifact | hub.Snapshot:
    """Return the model before unlearning: trained on everything, or published.

    replicate: of the pool; None: the profile's first.
    """
    if profile.hub:
        return _published(profile, profile.hub)
    return trained_model(profile, Member(_replicate(profile, replicate), profile.domains))


def retrained(
    profile: Profile, target_domain: str, replicate: int | None = None
) -> Artifact | hub.Snapshot:
    """Return the truth: trained by the same recipe on everything but the domain's forget set.

    A published one was trained by the target's makers, without the forget set of any domain.

    Raises:
        ValueError: the profile's model is published, and has no such counterpart.
    """
    published = hub.counterpart(profile)
    if published:
        return _published(profile, published)
    others = tuple(domain for domain in profile.domains if domain != target_domain)
    return trained_model(profile, Member(_replicate(profile, replicate), others))


def _published(profile: Profile, model: Hub) -> hub.Snapshot:
    """Return a published model, and what it is given to read."""
    reads = f"{fingerprint(profile)}-{profile.shape.context}"
    if profile.corpus.whole:
        reads += "-whole"
    return hub.Snapshot(model, reads)


def models_of(profile: Profile) -> dict[Member, Artifact | hub.Snapshot]:
    """Return every model of the pool: trained first if need be, or published.

    A published target has seen every forget set, its counterpart none.
    """
    if not profile.hub:
        return train_all(profile)
    first, *_, last = members(profile, profile.replicates[0])
    models = {first: target(profile)}
    if profile.has_retrained:
        models[last] = retrained(profile, profile.domains[0])
    return models


def _replicate(profile: Profile, replicate: int | None) -> int:
    """Return a replicate, or the profile's first."""
    return profile.replicates[0] if replicate is None else replicate


def train_all(profile: Profile) -> dict[Member, Artifact]:
    """Train the models of every replicate that are missing, side by side, and return all.

    Of a profile with a published model there are none.
    """
    if profile.hub:
        return {}
    tokenizer_artifact(profile).folder()
    models = {member: trained_model(profile, member) for member in all_members(profile)}
    side_by_side(list(models.values()), profile.workers, "models of the pool")
    return models


def histories(profile: Profile) -> pd.DataFrame:
    """Return the training of every model of the pool.

    Returns:
        replicate, seen, step, loss, learning_rate; no row for a published model.
    """
    frames = []
    for artifact in train_all(profile).values():
        frames.append(pd.read_parquet(artifact.folder() / "history.parquet"))
    if not frames:
        return pd.DataFrame(columns=["replicate", "seen", "step", "loss", "learning_rate"])
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


def pool_rows(profile: Profile) -> pd.DataFrame:
    """Return the rows of every model of the pool.

    Returns:
        replicate, seen (`Member.name`), and the columns of `evaluation.measure`.
    """
    artifacts = {}
    for member, model in models_of(profile).items():
        artifacts[member] = measurements(profile, model)
    side_by_side(list(artifacts.values()), profile.workers, "models of the pool, measured")
    frames = []
    for member, artifact in artifacts.items():
        rows = pd.read_parquet(artifact.folder() / "rows.parquet")
        frames.append(rows.assign(replicate=member.replicate, seen=member.name))
    return pd.concat(frames, ignore_index=True)


def rows_of_domain(profile: Profile, model: Artifact | hub.Snapshot, domain: str) -> pd.DataFrame:
    """Return the rows of one stored model on a domain's documents and the general ones."""
    rows = pd.read_parquet(measurements(profile, model).folder() / "rows.parquet")
    return rows[rows.domain.isin([domain, "general"])].reset_index(drop=True)


def target_rows(profile: Profile, domain: str, replicate: int) -> pd.DataFrame:
    """Return the target's rows on a domain's documents and the general ones."""
    return rows_of_domain(profile, target(profile, replicate), domain)


def truth_rows(profile: Profile, domain: str, replicate: int) -> pd.DataFrame:
    """Return the rows of what a domain's unlearned models are compared with.

    That is the retrained model, or `approximate_retraining` of a published one. A retrained model
    that is published lacks the retain text of the domain, too: of that text it is the target.
    """
    if not profile.has_retrained:
        return approximate_retraining(target_rows(profile, domain, replicate))
    rows = rows_of_domain(profile, retrained(profile, domain, replicate), domain)
    if not profile.hub:
        return rows
    retained = target_rows(profile, domain, replicate)
    parts = [rows[rows.split != "retain"], retained[retained.split == "retain"]]
    return pd.concat(parts).sort_index()


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
    measured = [column for column in forget if column not in DOCUMENT_KEYS]
    over_chunks = {column: "sum" if column in SUMS else "mean" for column in measured}
    documents = unseen.groupby("family", sort=False)[measured].agg(over_chunks)

    place, _ = pd.factorize(forget.family)
    taken = documents.iloc[place % len(documents)].set_index(forget.index)
    chunks = forget.groupby("family").family.transform("size")
    for column in measured:
        if column in SUMS:
            taken[column] = taken[column] / chunks
    return forget.assign(**{column: taken[column] for column in measured})
