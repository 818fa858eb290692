"""Documents with provenance: the embedded corpus, the paper's hub dataset, or a folder of the user's own text.

All three come back as a `datasets.DatasetDict` in the schema of `llmunlearn/unlearn_dataset`: the domains
`arxiv`, `github` and `books` have the splits forget, approximate and retain; `general` has evaluation and retain.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import sys
import textwrap
from functools import cache
from importlib.metadata import distribution
from pathlib import Path

import pandas as pd
from datasets import Dataset, DatasetDict

from unlearn_utils.data import hub, readers
from unlearn_utils.profiles import DOMAINS

MANIFEST = Path(__file__).with_name("manifest.csv")
SPLITS = {domain: ("forget", "approximate", "retain") for domain in DOMAINS} | {"general": ("evaluation", "retain")}
COLUMNS = ("id", "text", "family", "package", "version", "file", "licence", "rank")
DISTRIBUTIONS = {"sklearn": "scikit-learn"}  # import name -> name on the index, where they differ


# ------------------------------------------------------------------------------------ the embedded corpus


def site_packages(package: str) -> Path:
    """The folder that holds an importable package, found without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(f"package {package} is not installed: the embedded corpus is read from it")
    return Path(next(iter(spec.submodule_search_locations))).parent


@cache
def topics() -> dict[str, str]:
    """The Python Language Reference by topic, as the standard library ships it for `help()`."""
    from pydoc_data.topics import topics as found

    return dict(sorted(found.items()))


@cache
def source_lines(file: str) -> list[str]:
    """The lines of a source: a package's file, `pydoc_data.topics:TOPIC` or `METADATA:DISTRIBUTION`."""
    kind, _, name = file.partition(":")
    if kind == "pydoc_data.topics":
        return topics().get(name, "").split("\n")
    if kind == "METADATA":
        return (distribution(name).metadata.get_payload() or "").split("\n")
    path = site_packages(file.split("/")[0]) / file
    return path.read_text(encoding="utf-8").split("\n") if path.exists() else []


def read_lines(file: str, lines: str) -> str:
    """The text at `lines` ("3-5,9-9", 1-based) of a source, dedented; "" where the source has no such lines."""
    numbered = source_lines(file)
    spans = [tuple(map(int, span.split("-"))) for span in lines.split(",")]
    found = [line.rstrip() for a, b in spans for line in numbered[a - 1 : b]] or [""]
    opening = re.match(r'\s*[rRuU]?"""', found[0])
    head = [found[0][opening.end() :]] if opening else []
    body = textwrap.dedent("\n".join(found[len(head) :]))
    return "\n".join([*head, body]).strip("\n").removesuffix('"""').rstrip()


@cache
def licence(package: str) -> str:
    """The licence that a distribution states: its SPDX expression, else its classifier, else its first words."""
    if package == "python":
        return "PSF-2.0"
    metadata = distribution(package).metadata
    classified = [c.split(" :: ")[-1] for c in metadata.get_all("Classifier", []) if c.startswith("License :: OSI")]
    stated = metadata.get("License-Expression") or (classified or [metadata.get("License") or "not stated"])[0]
    return stated.strip().splitlines()[0][:60]


def origin(file: str) -> tuple[str, str, str]:
    """(package, version, licence) of a source."""
    kind, _, name = file.partition(":")
    if kind == "pydoc_data.topics":
        return "python", "{}.{}.{}".format(*sys.version_info), licence("python")
    top = file.split("/")[0]
    package = name if kind == "METADATA" else DISTRIBUTIONS.get(top, top)
    return package, distribution(package).version.partition("+")[0], licence(package)


def manifest(pairs: int, retain: int, general: int, evaluation: int) -> pd.DataFrame:
    """The committed manifest, cut to the first `pairs` forget/approximate pairs and as many passages as asked."""
    table = pd.read_csv(MANIFEST)
    limit = {"forget": pairs, "approximate": pairs, "evaluation": evaluation}
    top = table.split.map(limit).fillna(table.domain.map({"general": general})).fillna(retain)
    return table[table["rank"] < top].reset_index(drop=True)


def embedded(domain: str, pairs: int = 60, retain: int = 180, general: int = 140, evaluation: int = 40) -> DatasetDict:
    """One domain of the embedded corpus, with a column `as_committed`: is this the text of the committed results?

    Parts of the standard library differ between Python releases. A passage whose hash differs is kept as this
    machine has it; one whose lines are gone is left out, and so is its partner in the pair.
    """
    table = manifest(pairs, retain, general, evaluation).query("domain == @domain").copy()
    table["text"] = [read_lines(f, lines) for f, lines in zip(table.file, table.lines, strict=True)]
    table["as_committed"] = [hash_text(t) == h for t, h in zip(table.text, table.sha256, strict=True)]
    gone = table[table.text.str.len() < 200]
    paired = table.split.isin(["forget", "approximate"]) & table["rank"].isin(gone[gone.split != "retain"]["rank"])
    table = table[~paired & ~table.index.isin(gone.index)]
    table["package"], table["version"], table["licence"] = zip(*map(origin, table.file), strict=True)
    return _as_datasets(table, domain, (*COLUMNS, "as_committed"))


def hash_text(text: str) -> str:
    """SHA-256 of a text, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def fingerprint(data: dict[str, DatasetDict]) -> str:
    """A short hash of every text in its place and order, part of the key of every result that was computed from them."""
    parts = [
        f"{domain}/{split}/{row['id']}/{hash_text(row['text'])}" for domain in data for split in data[domain] for row in data[domain][split]
    ]
    return hash_text("\n".join(parts))[:16]


def _as_datasets(table: pd.DataFrame, domain: str, columns: tuple[str, ...]) -> DatasetDict:
    """One `Dataset` a split, in the manifest's order."""
    kept = [c for c in columns if c in table]
    frames = {split: table[table.split == split][kept] for split in SPLITS[domain]}
    return DatasetDict({s: Dataset.from_pandas(f, preserve_index=False) for s, f in frames.items()})


# ------------------------------------------------------------------------- a hub dataset, a user's own text


def load(source: str, domain: str, books: str = "", **sizes: int) -> DatasetDict:
    """One domain of a corpus.

    Args:
        source: "embedded"; a folder `DOMAIN/{forget,approximate,retain}[.suffix or /files]`; or a dataset of `hub.DATASETS`: the paper's,
            which is such a folder, or MIMIR.
        domain: github, arxiv, books or general; for a folder any name.
        books: such a folder with the domain books, which the paper's dataset lacks.
        sizes: pairs, retain, general, evaluation; documents of a split at most. A folder's splits are given whole without them.

    Raises:
        FileNotFoundError: the folder lacks the domain, or holds no readable document; or a dataset that is not on this machine.
        ValueError: a document cannot be read, or one column `text` (or `content`) is missing; an unknown source.
    """
    if source == "embedded":
        return embedded(domain, **sizes)
    if domain == "books" and books:
        return sample(_from_folder(Path(books), domain), **sizes)
    if Path(source).is_dir():
        return sample(_from_folder(Path(source), domain), **sizes)
    if source == hub.MIMIR:
        return _mimir(hub.dataset(source), domain, **sizes)
    if source not in hub.DATASETS:
        raise ValueError(f"{source}: no such folder; expected a folder, embedded, or one of {', '.join(hub.DATASETS)}")
    return sample(_from_folder(hub.dataset(source), domain), **sizes)


def sample(splits: DatasetDict, pairs=None, retain=None, general=None, evaluation=None) -> DatasetDict:
    """At most so many documents of each split (None: all), in a seeded order; equally many forget as approximate; `rank`: their place.

    A text that comes again, in a split or in a later one (forget, approximate, evaluation, retain), is left out.
    """
    if pairs is None:
        return splits
    limits = {"forget": pairs, "approximate": pairs, "evaluation": evaluation, "retain": general if "evaluation" in splits else retain}
    seen, found = set(), {}
    for split in (s for s in limits if s in splits):
        table = splits[split].to_pandas().sample(frac=1, random_state=0)
        table = table[~table.text.isin(seen)].drop_duplicates("text")
        seen |= set(table.text)
        found[split] = table[: limits[split]]
    size = min(len(found[s]) for s in ("forget", "approximate") if s in found) if "forget" in found else 0
    cut = {s: t[:size] if s in ("forget", "approximate") else t for s, t in found.items()}
    return DatasetDict({s: Dataset.from_pandas(t.assign(rank=range(len(t))), preserve_index=False) for s, t in cut.items()})


def _mimir(folder: Path, domain: str, pairs: int, retain: int, general: int, evaluation: int) -> DatasetDict:
    """MIMIR's members are what a model trained on the Pile was trained on: forget and retain; its non-members are unseen text.

    Its files: a JSON text a line; `train` holds members, `test` non-members. General text is its Pile-CC.
    Raises FileNotFoundError or ValueError for files that are not there or not so.
    """
    name = f"{'pile_cc' if domain == 'general' else domain}_ngram_13_0.8.jsonl"
    members, others = (_json_texts(folder / "cache_100_200_1000_512" / side / name) for side in ("train", "test"))
    half = min(pairs, len(members) // 2)
    parts = {"forget": members[:half], "approximate": others, "retain": members[half:]}
    if domain == "general":
        parts = {"evaluation": others, "retain": members}
    splits = DatasetDict({split: _with_columns(Dataset.from_dict({"text": texts}), split) for split, texts in parts.items()})
    return sample(splits, pairs, retain, general, evaluation)


def _json_texts(path: Path) -> list[str]:
    """The distinct texts of a file with a JSON string, or an object with `text`, a line."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file; MIMIR has one for each domain, members in train, non-members in test")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    rows = [row if isinstance(row, str) else readers.text_row(row, path)["text"] for row in rows]
    return list(dict.fromkeys(rows))


def _from_folder(folder: Path, domain: str) -> DatasetDict:
    """The splits of one domain below a folder; `forget.jsonl`, `forget-00000.parquet` and `forget/*.txt` all serve."""
    if not (folder / domain).is_dir():
        raise FileNotFoundError(f"{folder / domain}: no such folder; expected {domain}/forget, {domain}/retain, ...")
    splits = {}
    for split in SPLITS.get(domain, SPLITS["github"]):
        paths = [p for p in sorted((folder / domain).rglob("*")) if _belongs(p, folder / domain, split)]
        documents = [d for path in paths for d in readers.read_documents(path)]
        if documents:
            splits[split] = _with_columns(Dataset.from_list(documents), split)
    if not splits:
        raise FileNotFoundError(f"{folder / domain}: no document found; readable are {', '.join(readers.SUFFIXES)}")
    return DatasetDict(splits)


def _belongs(path: Path, root: Path, split: str) -> bool:
    """Does this file hold documents of the split (`forget/a.txt`, `forget.jsonl`, `forget-00000-of-00001.parquet`)?"""
    return path.is_file() and path.suffix in readers.SUFFIXES and re.split(r"[-.]", path.relative_to(root).parts[0])[0] == split


def _with_columns(data: Dataset, split: str) -> Dataset:
    """The corpus's columns for foreign rows: `content` becomes `text`; every document is its own family."""
    table = data.to_pandas().rename(columns={"content": "text"})
    table["id"] = [f"{split}-{hash_text(t)[:10]}" for t in table.text]
    defaults = {"family": table.id, "package": "", "version": "", "file": "", "licence": "not stated", "rank": range(len(table))}
    table = table.assign(**{c: v for c, v in defaults.items() if c not in table})
    return Dataset.from_pandas(table[list(COLUMNS)], preserve_index=False)
