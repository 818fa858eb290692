"""A user's own documents and model: read, checked, cut into chunks, loaded, unlearned, measured and saved."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path

import pandas as pd
from transformers import PreTrainedTokenizerBase

from unlearn_utils.data import readers, sources, tokens

Sets = Mapping[str, pd.DataFrame]  # "forget", "retain", "unseen" -> `chunks`


# ---------------------------------------------------------------------------------------------- documents


def read(path: Path) -> pd.DataFrame:
    """The documents of a file, or of every readable file below a folder in sorted order: name, text, sha256.

    Raises FileNotFoundError if there is nothing at `path`; ValueError if a file is unreadable, or if there is no document.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    rows = []
    for file in (f for f in files if f.suffix in readers.SUFFIXES):
        try:
            found = [d["text"] for d in readers.read_documents(file)]
        except (OSError, ValueError) as error:  # of pyarrow too, which does not name the file
            raise ValueError(str(error) if str(file) in str(error) else f"{file}: {error}") from error
        single = file.suffix not in (".jsonl", ".parquet")
        rows += [(str(file) if single else f"{file}:{i}", text, sources.hash_text(text)) for i, text in enumerate(found, 1)]
    if not rows:
        raise ValueError(f"{path}: no document found; readable are {', '.join(readers.SUFFIXES)}")
    return pd.DataFrame(rows, columns=["name", "text", "sha256"])


def chunks(documents: pd.DataFrame, split: str, tokenizer: PreTrainedTokenizerBase, context: int, rows: int) -> pd.DataFrame:
    """Documents cut into consecutive chunks of `context` tokens, the opening token before the first: id, family, split, name, ids.

    A last chunk under `tokens.SHORTEST` tokens is dropped, a document's only one too. family: the document's hash, so that its chunks
    count as one in every interval, as do copies of it. rows: of the model's embedding.
    Raises ValueError, naming the document, for one without a token and for an id beyond the embedding; and if nothing is left.
    """
    table = []
    for document in documents.itertuples():
        try:
            ids = tokens.encode(tokenizer, [document.text], sys.maxsize)[0]
        except ValueError as error:
            raise ValueError(f"{document.name}: {str(error).removeprefix('document 0 ')}") from error
        if max(ids) >= rows:
            raise ValueError(f"{document.name}: the tokenizer gives id {max(ids)}, the model has {rows} embeddings; not its tokenizer?")
        parts = enumerate(tokens.cut(ids, context))
        table += [(f"{document.sha256[:16]}-{i}", document.sha256, split, document.name, chunk) for i, chunk in parts]
    if not table:
        raise ValueError(f"--{split}: no document has {tokens.SHORTEST} tokens")
    return pd.DataFrame(table, columns=["id", "family", "split", "name", "ids"])


def check_apart(sets: Sets) -> None:
    """Raises ValueError, with names, for a document (or a chunk of one) that is in two sets."""
    for (a, ours), (b, theirs) in combinations(sets.items(), 2):
        names = dict(zip(map(tuple, theirs.ids), theirs.name, strict=True))
        both = {(name, names[tuple(ids)]) for name, ids in zip(ours.name, ours.ids, strict=True) if tuple(ids) in names}
        if both:
            shown = ", ".join(f"{x} = {y}" for x, y in sorted(both)[:5])
            raise ValueError(f"{len(both)} in both --{a} and --{b}, wholly or by a chunk: {shown}; remove them from one")
