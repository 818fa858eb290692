"""What the experiments of a profile read: its documents, by part, and its tokenizer.

A part is a domain and a split of it, such as ("arxiv", "forget").
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from datasets import DatasetDict

from unlearn_utils.cache.store import Artifact
from unlearn_utils.data import base_models, corpus, hub
from unlearn_utils.profiles import Profile

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Part = tuple[str, str]  # domain and split
COLUMNS = ["id", "text", "family", "rank"]  # of a document's row in the corpus


# ---------------------------------------------------------------------------------------- documents


@cache
def data(profile: Profile) -> dict[str, DatasetDict]:
    """Return every domain of the profile's corpus, `general` last."""
    settings = profile.corpus
    domains = {}
    for domain in (*profile.domains, "general"):
        domains[domain] = corpus.load(
            settings.source,
            domain,
            settings.books,
            pairs=settings.pairs,
            retain=settings.retain,
            general=settings.general,
            evaluation=settings.evaluation,
        )
    if settings.resized is not None:
        domain, size = settings.resized
        domains[domain] = corpus.resized(domains[domain], size, settings.measured)
    return domains


@cache
def fingerprint(profile: Profile) -> str:
    """Return a hash of every document: part of every artifact's settings."""
    return corpus.fingerprint(data(profile))


def tokenized(profile: Profile, parts: Sequence[Part], limit: int | None = None) -> pd.DataFrame:
    """Return the documents of some parts, as token ids.

    Args:
        profile: says how many tokens of a document are read.
        parts: in this order.
        limit: documents of each retain split, its first, where documents are measured; then of a
            forget set that was made larger those that joined it are left out, too. None: all.

    Returns:
        id, text, family, rank, `corpus.INSERTED` where it is known, domain, split, ids. There is
        one row a document, its first chunk; where the profile reads whole documents, one a chunk,
        whose id says which.
    """
    frames = []
    for domain, split in parts:
        rows = _tokenized_split(profile, domain, split)
        if limit and split == "retain":
            rows = rows[rows["rank"] < limit]
        if limit and split == "forget":
            rows = rows[rows["rank"] < profile.corpus.pairs]
        frames.append(rows)
    return pd.concat(frames, ignore_index=True)


@cache
def _tokenized_split(profile: Profile, domain: str, split: str) -> pd.DataFrame:
    """Return the rows of one split, tokenized once in a process."""
    from unlearn_utils.data import tokens

    documents = data(profile)[domain][split].to_pandas()
    kept = [column for column in (*COLUMNS, corpus.INSERTED) if column in documents]
    table = documents[kept].assign(domain=domain, split=split)
    texts = list(table.text)
    context = profile.shape.context
    if not profile.corpus.whole:
        table["ids"] = tokens.encode(tokenizer(profile), texts, context)
        return table
    whole = tokens.encode(tokenizer(profile), texts, sys.maxsize)
    table["ids"] = [tokens.cut(ids, context) for ids in whole]
    table = table[table.ids.map(len) > 0].explode("ids", ignore_index=True)
    chunk = table.groupby("id").cumcount().astype(str)
    return table.assign(id=table.id + "/" + chunk)


def names_in_training(documents: pd.DataFrame) -> list[str]:
    """Return the names by which training orders documents.

    documents: of `tokenized`.
    """
    return list(documents.domain + "/" + documents.id)


# -------------------------------------------------------------------------------------------- parts


def training_parts(profile: Profile, seen: Collection[str]) -> list[Part]:
    """Return what a model is pre-trained on: every retain split, and some forget splits.

    seen: the domains whose forget split is among it.
    """
    parts = []
    for domain in profile.domains:
        if domain in seen:
            parts.append((domain, "forget"))
        parts.append((domain, "retain"))
    return [*parts, ("general", "retain")]


def measured_parts(domains: Sequence[str]) -> list[Part]:
    """Return what a model is measured on.

    That is the three splits of each domain, and general text that no model has seen.
    """
    parts = []
    for domain in domains:
        for split in ("forget", "approximate", "retain"):
            parts.append((domain, split))
    return [*parts, ("general", "evaluation")]


# ---------------------------------------------------------------------------------------- tokenizer


@cache
def tokenizer(profile: Profile) -> PreTrainedTokenizerBase:
    """Return the published model's tokenizer, or the profile's own of `tokenizer_artifact`."""
    from unlearn_utils.engine import models

    if profile.hub:
        return models.load_tokenizer(hub.Snapshot(profile.hub).folder())
    return models.load_tokenizer(tokenizer_artifact(profile).folder())


def tokenizer_artifact(profile: Profile) -> Artifact | hub.Snapshot:
    """Return the stored tokenizer: a byte-level BPE, trained on retain text only; or the base's.

    It is found or trained without importing torch. Where a forget set was resized it is the one
    of before, so that losses compare.
    """
    if profile.base:
        return base_models.base_model(profile.base)
    profile = replace(profile, corpus=replace(profile.corpus, resized=None))
    settings = {"data": fingerprint(profile), "vocabulary": profile.shape.vocabulary}
    return Artifact("tokenizer", 1, settings, partial(_make_tokenizer, profile))


def _make_tokenizer(profile: Profile, folder: Path) -> None:
    from unlearn_utils.data import tokens

    texts = []
    for splits in data(profile).values():
        texts += splits["retain"]["text"]
    tokens.train_tokenizer(texts, profile.shape.vocabulary).save_pretrained(folder)
