"""What the experiments of a profile read: its documents, by part, and its tokenizer."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path

import pandas as pd
from datasets import DatasetDict

from unlearn_utils.cache.store import Artifact
from unlearn_utils.data import corpus, hub
from unlearn_utils.profiles import Profile


@cache
def data(profile: Profile) -> dict[str, DatasetDict]:
    """Every domain of the profile's corpus, `general` last."""
    c = profile.corpus
    sizes = {"pairs": c.pairs, "retain": c.retain, "general": c.general, "evaluation": c.evaluation}
    return {domain: corpus.load(c.source, domain, c.books, **sizes) for domain in (*profile.domains, "general")}


@cache
def fingerprint(profile: Profile) -> str:
    """Hash of every document: part of every key."""
    return corpus.fingerprint(data(profile))


def tokenized(profile: Profile, parts: Sequence[tuple[str, str]], limit: int | None = None) -> pd.DataFrame:
    """Documents of the parts (domain, split), the first `limit` of each retain split: id, text, family, rank, domain, split, ids.

    One row a document, its first chunk; where the profile reads whole documents, one a chunk, whose id says which.
    """
    frames = [_documents(profile, domain, split) for domain, split in parts]
    frames = [f[f["rank"] < limit] if limit and split == "retain" else f for f, (_, split) in zip(frames, parts, strict=True)]
    return pd.concat(frames, ignore_index=True)


@cache
def _documents(profile: Profile, domain: str, split: str) -> pd.DataFrame:
    """Those of one split; tokenized once in a process."""
    from unlearn_utils.data import tokens

    table = data(profile)[domain][split].to_pandas()[["id", "text", "family", "rank"]].assign(domain=domain, split=split)
    context, whole = profile.shape.context, profile.corpus.whole
    table["ids"] = tokens.encode(tokenizer(profile), list(table.text), sys.maxsize if whole else context)
    if not whole:
        return table
    table["ids"] = [tokens.cut(ids, context) for ids in table.ids]
    table = table[table.ids.map(len) > 0].explode("ids", ignore_index=True)
    return table.assign(id=table.id + "/" + table.groupby("id").cumcount().astype(str))


def training_parts(profile: Profile, left_out: str | None) -> list[tuple[str, str]]:
    """What a model is pre-trained on: every forget and retain split, but the forget split of the domain that is left out."""
    parts = [(d, s) for d in profile.domains for s in ("forget", "retain") if (d, s) != (left_out, "forget")]
    return [*parts, ("general", "retain")]


def measured_parts(domains: Sequence[str]) -> list[tuple[str, str]]:
    """What a model is measured on: the three splits of each domain, and general text that no model has seen."""
    return [(d, s) for d in domains for s in ("forget", "approximate", "retain")] + [("general", "evaluation")]


@cache
def tokenizer(profile: Profile):
    """The published model's, or a byte-level BPE of the profile, trained on retain text only."""
    from unlearn_utils.engine import models

    return models.load_tokenizer((hub.Snapshot(profile.hub) if profile.hub else tokenizer_step(profile)).folder())


def tokenizer_step(profile: Profile) -> Artifact:
    """The stored tokenizer, found or trained without importing torch where it is there."""
    settings = {"data": fingerprint(profile), "vocabulary": profile.shape.vocabulary}
    return Artifact("tokenizer", 1, settings, partial(_make_tokenizer, profile))


def _make_tokenizer(profile: Profile, folder: Path) -> None:
    from unlearn_utils.data import tokens

    texts = [text for splits in data(profile).values() for text in splits["retain"]["text"]]
    tokens.train_tokenizer(texts, profile.shape.vocabulary).save_pretrained(folder)
