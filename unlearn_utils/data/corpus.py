"""Documents with provenance: the embedded corpus, the paper's hub dataset, or a folder of the user's own text.

All three come back as a `datasets.DatasetDict` in the schema of `llmunlearn/unlearn_dataset`: the domains
`arxiv`, `github` and `books` have the splits forget, approximate and retain; `general` has evaluation and retain.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
from datasets import Dataset, DatasetDict

from unlearn_utils.data import hub, manifest, readers, sources
from unlearn_utils.profiles import DOMAINS

SPLITS = {domain: ("forget", "approximate", "retain") for domain in DOMAINS} | {"general": ("evaluation", "retain")}
COLUMNS = ("id", "text", "family", "package", "version", "file", "licence", "rank")


# ------------------------------------------------------------------------------------ the embedded corpus


def embedded(
    domain: str, pairs: int = 60, retain: int = 180, general: int = 140, evaluation: int = 40
) -> DatasetDict:
    """Return one domain of the embedded corpus, read from installed packages.

    Args:
        domain: arxiv, books, github or general.
        pairs, retain, general, evaluation: how many passages, as `manifest.first_ranks` takes them.

    Returns:
        The splits, each with the columns `COLUMNS` and `as_committed`: whether the text belongs to
        the same split of the committed corpus.
    """
    table = manifest.first_ranks(pairs, retain, general, evaluation)
    table = table[table.domain == domain].copy()
    table["text"] = list(map(sources.read_lines, table.file, table.lines))
    known = manifest.committed()
    known = known[known.domain == domain]
    places = set(zip(known.split, known.sha256, strict=True))
    here = zip(table.split, table.sha256, strict=True)
    table["as_committed"] = [place in places for place in here]
    origins = [sources.origin(file) for file in table.file]
    table["package"], table["version"], table["licence"] = zip(*origins, strict=True)
    return _as_datasets(table, domain, (*COLUMNS, "as_committed"))


def fingerprint(data: dict[str, DatasetDict]) -> str:
    """A short hash of every text in its place and order, part of the key of every result that was computed from them."""
    parts = [
        f"{domain}/{split}/{row['id']}/{sources.hash_text(row['text'])}" for domain in data for split in data[domain] for row in data[domain][split]
    ]
    return sources.hash_text("\n".join(parts))[:16]


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
    table["id"] = [f"{split}-{sources.hash_text(t)[:10]}" for t in table.text]
    defaults = {"family": table.id, "package": "", "version": "", "file": "", "licence": "not stated", "rank": range(len(table))}
    table = table.assign(**{c: v for c, v in defaults.items() if c not in table})
    return Dataset.from_pandas(table[list(COLUMNS)], preserve_index=False)
