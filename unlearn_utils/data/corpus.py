"""A corpus, domain by domain: the embedded one, one of the hub, or a folder of the user's own text.

All come back as a `datasets.DatasetDict` in the schema of `llmunlearn/unlearn_dataset`: the domains
`arxiv`, `github` and `books` have the splits forget, approximate and retain; `general` has
evaluation and retain.
"""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path

import pandas as pd
from datasets import Dataset, DatasetDict

from unlearn_utils.data import hub, manifest, readers, sources
from unlearn_utils.profiles import DOMAINS

SPLITS = {domain: ("forget", "approximate", "retain") for domain in DOMAINS}
SPLITS["general"] = ("evaluation", "retain")
COLUMNS = ("id", "text", "family", "package", "version", "file", "licence", "rank")
INSERTED = "duplicates"  # a further column, of Hubble: how often a passage was inserted


# --------------------------------------------------------------------------- the embedded corpus


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
    """Return a short hash of every text in its place and order.

    It is part of the key of every result that was computed from them.
    """
    parts = []
    for domain, splits in data.items():
        for split, documents in splits.items():
            for row in documents:
                parts.append(f"{domain}/{split}/{row['id']}/{sources.hash_text(row['text'])}")
    return sources.hash_text("\n".join(parts))[:16]


def _as_datasets(table: pd.DataFrame, domain: str, columns: tuple[str, ...]) -> DatasetDict:
    """Return one `Dataset` a split, in the table's order."""
    kept = [column for column in columns if column in table]
    splits = {}
    for split in SPLITS[domain]:
        rows = table[table.split == split][kept]
        splits[split] = Dataset.from_pandas(rows, preserve_index=False)
    return DatasetDict(splits)


def resized(splits: DatasetDict, size: int, measured: int) -> DatasetDict:
    """Return a domain whose forget set has another size; forget and retain are the same in all.

    A smaller forget set has the first documents, and the others are retained. A larger one has
    further documents of the retain split, in whole families, so that no family is on both sides. A
    document that changes sides is ranked after those that were there.

    Args:
        splits: of the domain.
        size: documents of the forget set that is wanted.
        measured: retain documents that are measured, the first: none of their families changes.

    Raises:
        ValueError: the retain split has not so many documents in such families.
    """
    forget = splits["forget"].to_pandas()
    retain = splits["retain"].to_pandas()
    leave = forget["rank"] >= size
    join = retain.family.isin(_whole_families(retain, size - len(forget), measured))
    sides = {
        "forget": [forget[~leave], _ranked_after(retain[join], forget)],
        "retain": [retain[~join], _ranked_after(forget[leave], retain)],
    }
    found = DatasetDict(splits)
    for split, parts in sides.items():
        found[split] = Dataset.from_pandas(pd.concat(parts), preserve_index=False)
    return found


def _whole_families(retain: pd.DataFrame, size: int, measured: int) -> list[str]:
    """Return families of unmeasured retain documents, so many documents together; none for < 1."""
    stay = set(retain.family[retain["rank"] < measured])
    sizes = retain[~retain.family.isin(stay)].groupby("family", sort=False).size()
    found = []
    left = size
    for family, documents in sizes.items():
        if documents <= left:
            found.append(family)
            left -= documents
    if left > 0:
        raise ValueError(
            f"a forget set larger by {size} needs as many retain documents in families of which "
            f"none is measured; there are {size - left}"
        )
    return found


def _ranked_after(rows: pd.DataFrame, others: pd.DataFrame) -> pd.DataFrame:
    """Return rows in their order, with ranks that go on where those of others end."""
    first = others["rank"].max() + 1
    return rows.assign(rank=range(first, first + len(rows)))


# ----------------------------------------------------------- a hub dataset, a user's own text


def load(source: str, domain: str, books: str = "", **sizes: int) -> DatasetDict:
    """Return one domain of a corpus.

    Args:
        source: "embedded"; a folder `DOMAIN/{forget,approximate,retain}[.suffix or /files]`; or a
            corpus of `hub.SOURCES`: the paper's, which is such a folder, MIMIR, or Hubble's.
        domain: github, arxiv, books or general; for a folder any name.
        books: such a folder with the domain books, which the paper's dataset lacks.
        sizes: pairs, retain, general, evaluation; documents of a split at most. A folder's splits
            are given whole without them.

    Raises:
        FileNotFoundError: the folder lacks the domain, or holds no readable document; or the
            dataset is not on this machine.
        ValueError: a document cannot be read, or one column `text` (or `content`) is missing; or
            the source is unknown.
    """
    if source == "embedded":
        return embedded(domain, **sizes)
    if source == hub.HUBBLE:
        return _hubble(domain, **sizes)
    if domain == "books" and books:
        return sample(_from_folder(Path(books), domain), **sizes)
    if source and Path(source).is_dir():  # an empty path would be the current folder
        return sample(_from_folder(Path(source), domain), **sizes)
    if source not in hub.SOURCES:
        known = ", ".join(hub.SOURCES)
        raise ValueError(
            f"{source}: no such folder; expected a folder, embedded, or one of {known}"
        )
    folder = hub.dataset(source)
    if source == hub.MIMIR:
        return _mimir(folder, domain, **sizes)
    return sample(_from_folder(folder, domain), **sizes)


def sample(
    splits: DatasetDict,
    pairs: int | None = None,
    retain: int | None = None,
    general: int | None = None,
    evaluation: int | None = None,
) -> DatasetDict:
    """Return at most so many documents of each split, in a seeded order; `rank` is their place.

    There are equally many forget documents as approximate ones. A text that comes again, in a
    split or in a later one (forget, approximate, evaluation, retain), is left out.

    Args:
        pairs: of forget and approximate documents; None: every split stays whole, as it is.
        retain, evaluation: documents of these splits.
        general: retain documents of the domain general, the one with a split evaluation.
    """
    if pairs is None:
        return splits
    limits = {"forget": pairs, "approximate": pairs, "evaluation": evaluation, "retain": retain}
    if "evaluation" in splits:
        limits["retain"] = general
    seen = set()
    found = {}
    for split, limit in limits.items():
        if split not in splits:
            continue
        table = splits[split].to_pandas().sample(frac=1, random_state=0)
        table = table[~table.text.isin(seen)].drop_duplicates("text")
        seen |= set(table.text)
        found[split] = table[:limit]
    if "forget" in found:
        paired = [split for split in ("forget", "approximate") if split in found]
        size = min(len(found[split]) for split in paired)
        for split in paired:
            found[split] = found[split][:size]
    ranked = {}
    for split, table in found.items():
        table = table.assign(rank=range(len(table)))
        ranked[split] = Dataset.from_pandas(table, preserve_index=False)
    return DatasetDict(ranked)


def _mimir(
    folder: Path, domain: str, pairs: int, retain: int, general: int, evaluation: int
) -> DatasetDict:
    """Return a domain of MIMIR (arXiv 2402.07841), sampled.

    Its members, in `train`, are what a model trained on the Pile was trained on: forget and retain.
    Its non-members, in `test`, are unseen text. General text is its Pile-CC. A file has a JSON text
    a line.

    Raises:
        FileNotFoundError, ValueError: files are not there or not so.
    """
    subset = "pile_cc" if domain == "general" else domain
    name = f"{subset}_ngram_13_0.8.jsonl"
    root = folder / "cache_100_200_1000_512"
    members = _json_texts(root / "train" / name)
    others = _json_texts(root / "test" / name)
    if domain == "general":
        parts = {"evaluation": others, "retain": members}
    else:
        half = min(pairs, len(members) // 2)
        parts = {"forget": members[:half], "approximate": others, "retain": members[half:]}
    splits = {}
    for split, texts in parts.items():
        splits[split] = _with_columns(Dataset.from_dict({"text": texts}), split)
    return sample(DatasetDict(splits), pairs, retain, general, evaluation)


def _json_texts(path: Path) -> list[str]:
    """Return the distinct texts of a file with a JSON string, or an object with `text`, a line.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is neither.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: no such file; MIMIR has one for each domain, members in train, non-members "
            "in test"
        )
    texts = []
    for name, row in readers.json_lines(path):
        document = {"text": row} if isinstance(row, str) else row
        texts.append(readers.text_row(document, name)["text"])
    return list(dict.fromkeys(texts))


def _hubble(domain: str, pairs: int, retain: int, general: int, evaluation: int) -> DatasetDict:
    """Return a domain of the text of Hubble (arXiv 2510.19811), sampled, with `INSERTED`.

    A domain is a kind of book. The passages that were inserted into the training text of the model
    `perturbed` are forgotten, equally many of each number of insertions as far as there are; those
    that were held out are unseen. In-distribution retain text are the inserted passages of the
    other kind of book: like the forget set they are in that model alone, so that the retrained
    model has not seen them. General text was held out, too.

    Raises:
        FileNotFoundError, ValueError: files are not there or not so.
    """
    inserted, held_out = _passages(domain)
    if domain == "general":
        parts = {"evaluation": held_out[:evaluation], "retain": held_out[evaluation:]}
    else:
        (other,) = [kind for kind in hub.PASSAGES if kind not in (domain, "general")]
        retained, _ = _passages(other)
        forget = _in_turns(inserted)[:pairs]
        parts = {"forget": forget, "approximate": held_out, "retain": retained}
    splits = {}
    for split, table in parts.items():
        texts = _with_columns(Dataset.from_dict({"text": list(table.text)}), split)
        splits[split] = texts.add_column(INSERTED, list(table[INSERTED]))
    return sample(DatasetDict(splits), pairs, retain, general, evaluation)


def _passages(domain: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the distinct passages of a domain of Hubble, inserted and held out: text, `INSERTED`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a passage does not say how often it was inserted, or none is of one kind.
    """
    name = hub.PASSAGES[domain]
    (file,) = hub.DATASETS[name].patterns
    path = hub.dataset(name) / file
    rows = []
    for place, row in readers.json_lines(path):
        document = readers.text_row(row, place)
        rows.append({"text": document["text"], INSERTED: _insertions(document, place)})
    table = pd.DataFrame(rows, columns=["text", INSERTED]).drop_duplicates("text")
    inserted, held_out = table[table[INSERTED] > 0], table[table[INSERTED] == 0]
    for passages, sign in ((inserted, ">"), (held_out, "==")):
        if passages.empty:
            raise ValueError(f"{path}: no passage has {INSERTED} {sign} 0; expected some of each")
    return inserted, held_out


def _insertions(document: dict, place: str) -> int:
    """Return how often a passage was inserted, from its `meta`. Raise ValueError if it says not."""
    meta = document.get("meta")
    try:
        number = json.loads(meta)[INSERTED]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{place}: meta is no JSON object with {INSERTED}, but {meta!r:.60}; expected "
            f'{{"{INSERTED}": 0}} or more'
        ) from error
    if type(number) is not int or number < 0:
        raise ValueError(f"{place}: {INSERTED} is no whole number from 0, but {number!r:.40}")
    return number


def _in_turns(passages: pd.DataFrame) -> pd.DataFrame:
    """Return passages, drawn, in such an order that every number of insertions has its turn."""
    drawn = passages.sample(frac=1, random_state=0)
    turn = drawn.groupby(INSERTED).cumcount()
    return drawn.loc[turn.sort_values(kind="stable").index]


def _from_folder(folder: Path, domain: str) -> DatasetDict:
    """Return the splits of one domain below a folder, whole.

    `forget.jsonl`, `forget-00000.parquet` and `forget/*.txt` all serve. A warning names what is not
    read.

    Raises:
        FileNotFoundError: there is no such folder, or no document in it.
        ValueError: a document cannot be read.
    """
    root = folder / domain
    if not root.is_dir():
        raise FileNotFoundError(
            f"{root}: no such folder; expected {domain}/forget, {domain}/retain, ..."
        )
    files, unread = readers.find_files(root)
    names = SPLITS.get(domain, SPLITS["github"])
    splits = {}
    for split in names:
        own = [path for path in files if _split_of(path, root) == split]
        documents, empty = readers.read_files(own, root)
        unread += empty
        if documents:
            splits[split] = _with_columns(Dataset.from_list(documents), split)
    if not splits:
        readable = ", ".join(readers.SUFFIXES)
        raise FileNotFoundError(f"{root}: no document found; readable are {readable}")
    for path in files:
        if _split_of(path, root) not in names:
            unread.append(readers.Unread(readers.shown(path.relative_to(root)), "of no split"))
    if unread:
        warnings.warn(f"{root}: {readers.describe_unread(unread)}", stacklevel=3)
    return DatasetDict(splits)


def _split_of(path: Path, root: Path) -> str:
    """Return the split that a file below `root` is of, if there is a split of that name.

    `forget/a.txt`, `forget.jsonl` and `forget-00000-of-00001.parquet` are of forget.
    """
    top = path.relative_to(root).parts[0]
    return re.split(r"[-.]", top)[0]


def _with_columns(data: Dataset, split: str) -> Dataset:
    """Return foreign rows with the corpus's columns: every document is its own family."""
    table = data.to_pandas().rename(columns={"content": "text"})
    table["id"] = [f"{split}-{sources.hash_text(text)[:10]}" for text in table.text]
    defaults = {
        "family": table.id,
        "package": "",
        "version": "",
        "file": "",
        "licence": "not stated",
        "rank": range(len(table)),
    }
    for column, value in defaults.items():
        if column not in table:
            table[column] = value
    return Dataset.from_pandas(table[list(COLUMNS)], preserve_index=False)
