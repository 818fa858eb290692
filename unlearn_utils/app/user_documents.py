"""A user's own documents: read from files, cut into chunks of tokens, checked, and counted."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path

import pandas as pd
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from unlearn_utils.data import readers, sources, tokens

Tables = Mapping[str, pd.DataFrame]  # of each set, such as "forget": its documents, or its chunks
SEVERAL = (".jsonl", ".parquet")  # files that may hold more than one document
SHOWN = 5  # names in a message; the rest is a number


# ------------------------------------------------------------------------------------------- read


def read_sets(paths: Mapping[str, Path | None]) -> dict[str, pd.DataFrame]:
    """Return the documents of each set that has a path. Raise as `read_documents`."""
    documents = {}
    for name, path in paths.items():
        if path is not None:
            documents[name] = read_documents(path)
    return documents


def read_documents(path: Path) -> pd.DataFrame:
    """Return the documents of a file, or of every readable file below a folder in sorted order.

    Returns:
        A row for each document: name, text, sha256.

    Raises:
        FileNotFoundError: there is nothing at `path`.
        ValueError: a file is unreadable, or there is no document.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    files = [path]
    if path.is_dir():
        files = sorted(below for below in path.rglob("*") if below.is_file())
    rows = []
    for file in files:
        if file.suffix in readers.SUFFIXES:
            for name, text in _named_texts(file):
                rows.append((name, text, sources.hash_text(text)))
    if not rows:
        raise ValueError(f"{path}: no document found; readable are {', '.join(readers.SUFFIXES)}")
    return pd.DataFrame(rows, columns=["name", "text", "sha256"])


def _named_texts(file: Path) -> list[tuple[str, str]]:
    """Return (name, text) of each document of a file.

    Raises:
        ValueError: it is unreadable; the message has its name.
    """
    try:
        texts = [row["text"] for row in readers.read_documents(file)]
    except (OSError, ValueError) as error:  # of pyarrow too, which does not name the file
        named = str(file) in str(error)
        raise ValueError(str(error) if named else f"{file}: {error}") from error
    if file.suffix in SEVERAL:
        return [(f"{file}:{number}", text) for number, text in enumerate(texts, 1)]
    return [(str(file), text) for text in texts]


# -------------------------------------------------------------------------------------------- cut


def cut_documents(
    documents: pd.DataFrame,
    split: str,
    tokenizer: PreTrainedTokenizerBase,
    context: int,
    embeddings: int,
) -> pd.DataFrame:
    """Return documents cut into consecutive chunks of `context` tokens.

    The opening token stands before the first chunk. A last chunk under `tokens.SHORTEST` tokens is
    dropped, also where it is the document's only one.

    Args:
        documents: of `read_documents`.
        split: the name of the set.
        embeddings: how many tokens the model has an embedding of.

    Returns:
        A row for each chunk: id, family, split, name, ids. The family is the document's hash, so
        that its chunks count as one in every interval, as do copies of it.

    Raises:
        ValueError: a document, which the message names, has no token, or one beyond the
            embeddings; or nothing is left of all documents.
    """
    rows = []
    for document in documents.itertuples():
        try:
            (ids,) = tokens.encode(tokenizer, [document.text], sys.maxsize)
        except ValueError as error:
            reason = str(error).removeprefix("document 0 ")
            raise ValueError(f"{document.name}: {reason}") from error
        if max(ids) >= embeddings:
            raise ValueError(
                f"{document.name}: the tokenizer gives id {max(ids)}, the model has {embeddings} "
                "embeddings; not its tokenizer?"
            )
        for number, chunk in enumerate(tokens.cut(ids, context)):
            identity = f"{document.sha256[:16]}-{number}"
            rows.append((identity, document.sha256, split, document.name, chunk))
    if not rows:
        raise ValueError(f"--{split}: no document has {tokens.SHORTEST} tokens")
    return pd.DataFrame(rows, columns=["id", "family", "split", "name", "ids"])


def cut_sets(
    documents: Tables, tokenizer: PreTrainedTokenizerBase, context: int, config: PreTrainedConfig
) -> Tables:
    """Return the chunks of each set. Raise ValueError as `cut_documents` and `check_apart`.

    config: of the model that shall read them.
    """
    embeddings = config.get_text_config().vocab_size
    chunks = {}
    for name, table in documents.items():
        chunks[name] = cut_documents(table, name, tokenizer, context, embeddings)
    check_apart(chunks)
    return chunks


def check_apart(chunks: Tables) -> None:
    """Check that no two sets share a document, or a chunk of one.

    Raises:
        ValueError: two do; the message has their names.
    """
    for (one, ours), (other, theirs) in combinations(chunks.items(), 2):
        names = dict(zip(map(tuple, theirs.ids), theirs.name, strict=True))
        both = set()
        for name, ids in zip(ours.name, ours.ids, strict=True):
            if tuple(ids) in names:
                both.add((name, names[tuple(ids)]))
        if both:
            listed = ", ".join(f"{a} = {b}" for a, b in sorted(both)[:SHOWN])
            raise ValueError(
                f"{len(both)} in both --{one} and --{other}, wholly or by a chunk: {listed}; "
                "remove them from one"
            )


# ------------------------------------------------------------------------------------------ count


def describe_sets(documents: Tables, chunks: Tables, context: int) -> list[str]:
    """Return a line on each set: documents, chunks, and documents of which nothing is left."""
    lines = []
    for name, found in chunks.items():
        line = f"{name}: {len(documents[name])} documents, "
        line += f"{len(found)} chunks of up to {context} tokens"
        short = sorted(set(documents[name].name) - set(found.name))
        if short:
            listed = ", ".join(short[:SHOWN])
            line += f"; too short, so left out: {listed} ({len(short)} in all)"
        lines.append(line)
    return lines
