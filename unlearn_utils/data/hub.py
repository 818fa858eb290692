"""Published models and data: pinned revisions, downloaded once, found again without a connection.

Where `UNLEARN_HUB` names a folder, its OWNER/NAME folders stand in for the hub: copies of these repositories, for machines without a
connection.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from unlearn_utils.profiles import PROFILES, Hub, Profile

MIRROR = "UNLEARN_HUB"
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
WEIGHTS = ("model*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")  # no .bin: pickles can run code
MIMIR, PAPER = "iamgroot42/mimir", "llmunlearn/unlearn_dataset"


class Repository(NamedTuple):
    """A dataset of the hub. asked: it is given on request, to the account whose token `hf auth login` stored."""

    revision: str
    gigabytes: float
    patterns: tuple[str, ...]
    asked: bool = False


DATASETS = {
    PAPER: Repository("6f7a7bd39df4b88b7b24f815c202034be562c012", 0.28, ("*/*.parquet",)),
    MIMIR: Repository("02500d3b7cece0cb7628e939ba9fc93fdb6362ae", 0.02, ("cache_100_200_1000_512/t*/*_ngram_13_0.8.jsonl",), True),
}


def folder(name: str, kind: str, revision: str, patterns: tuple[str, ...], gigabytes: float, asked: bool = False) -> Path:
    """Where a repository's files lie: in the mirror, in the hub's cache, or there after a download. kind: "model" or "dataset".

    Raises FileNotFoundError if they are nowhere, saying what to download, how, and how large it is.
    """
    if mirror := os.environ.get(MIRROR):
        if not (Path(mirror) / name).is_dir():
            raise FileNotFoundError(f"{MIRROR}={mirror} holds no folder {name}; copy the files of revision {revision} there")
        return (Path(mirror) / name).resolve()
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # no line for every time that it tries again
    try:
        return Path(snapshot_download(name, repo_type=kind, revision=revision, allow_patterns=list(patterns)))
    except (OSError, ValueError) as error:  # no connection, none allowed, no access, no such revision
        access = f", after asking for access at https://huggingface.co/datasets/{name} and `hf auth login`" if asked else ""
        reader = next(p.name for p in PROFILES.values() if name in (p.corpus.source, p.hub and p.hub.name))
        reason = " ".join(str(error).split()).split(". ")[0]
        raise FileNotFoundError(
            f"{kind} {name}, revision {revision} ({gigabytes:g} GB), is not on this machine and cannot be downloaded ({reason}); with a "
            f"connection: python -m unlearn_utils fetch {reader}{access}; or copy it to FOLDER/{name} and set {MIRROR}=FOLDER"
        ) from error


def dataset(name: str) -> Path:
    """The folder of a dataset of `DATASETS`. Raises FileNotFoundError as `folder`."""
    pinned = DATASETS[name]
    return folder(name, "dataset", pinned.revision, pinned.patterns, pinned.gigabytes, pinned.asked)


@dataclass(frozen=True)
class Snapshot:
    """A published model in the place of a trained one: answers what the experiments ask of a `store.Step`.

    reads: a hash of the documents that it is given, so that results of others are not taken for its own.
    """

    hub: Hub
    reads: str = ""

    @property
    def path(self) -> Path:
        """Its name among the results: repository, revision, documents."""
        return Path("@".join([self.hub.name.replace("/", "--"), self.hub.revision, self.reads]))

    def done(self) -> bool:
        """There is nothing to compute."""
        return True

    def fill(self, wait: bool = True) -> None:
        """Downloads it, if need be."""
        self.folder()

    def folder(self) -> Path:
        """Where its weights, config and tokenizer lie. Raises FileNotFoundError as `folder`."""
        return folder(self.hub.name, "model", self.hub.revision, WEIGHTS, self.hub.gigabytes)


def fetch(profile: Profile) -> list[Path]:
    """Downloads all that a profile reads; the folders. Raises FileNotFoundError as `folder`."""
    names = [profile.corpus.source] if profile.corpus.source in DATASETS else []
    return [*map(dataset, names), *([Snapshot(profile.hub).folder()] if profile.hub else [])]
