"""A user's own documents: read from files, cut into chunks of tokens, checked, and counted."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import pandas as pd
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from unlearn_utils.app import errors
from unlearn_utils.core import metrics
from unlearn_utils.data import readers, sources, tokens
from unlearn_utils.data.readers import Unread

Tables = Mapping[str, pd.DataFrame]  # of each set, such as "forget": its chunks
SHOWN = 5  # names in a message; the rest is a number


@dataclass(frozen=True)
class Documents:
    """The documents of one set, one item of each list a document, and what none was made of.

    Attributes:
        name: the file, with the line or row after it where it may hold more than one.
        text: the document.
        sha256: of the text.
        unread: files, folders and rows.
        questions: by name, of documents that are a question with its answer: the leading characters
            that are not counted.
    """

    name: list[str]
    text: list[str]
    sha256: list[str]
    unread: list[Unread]
    questions: Mapping[str, int] = field(default_factory=dict)


# ------------------------------------------------------------------------------------------- read


def read_sets(paths: Mapping[str, Path | None]) -> dict[str, Documents]:
    """Return the documents of each set that has a path. Raise as `read_documents`."""
    documents = {}
    for name, path in paths.items():
        if path is not None:
            documents[name] = read_documents(path)
    return documents


def read_documents(path: Path) -> Documents:
    """Return the documents of a file, or of every readable file below a folder in sorted order.

    Raises:
        FileNotFoundError: there is nothing at `path`.
        OSError: a folder cannot be listed.
        ValueError: a file is unreadable, or there is no document.
    """
    if not path.exists():
        raise FileNotFoundError(f"{readers.shown(path)}: no such file or folder")
    files, unread = readers.find_files(path)
    found, empty = readers.read_files(files, path)
    unread = unread + empty
    if not found:
        reason = f"no document found; readable are {', '.join(readers.SUFFIXES)}"
        if unread:
            reason += f"; {readers.describe_unread(unread)}"
        raise ValueError(f"{readers.shown(path)}: {reason}")
    names = [document["name"] for document in found]
    texts = [document["text"] for document in found]
    questions = {one["name"]: one["question"] for one in found if one["question"]}
    return Documents(names, texts, list(map(sources.hash_text, texts)), unread, questions)


# -------------------------------------------------------------------------------------------- cut


def cut_documents(
    documents: Documents,
    split: str,
    tokenizer: PreTrainedTokenizerBase,
    context: int,
    embeddings: int,
) -> pd.DataFrame:
    """Return documents cut into consecutive chunks of `context` tokens.

    The opening token stands before the first chunk. A last chunk under `tokens.SHORTEST` tokens is
    dropped, also where it is the document's only one. A question stands before each part of its
    answer.

    Args:
        documents: of `read_documents`.
        split: the name of the set.
        embeddings: how many tokens the model has an embedding of.

    Returns:
        A row for each chunk: id, family, split, name, ids, question (its leading tokens that are
        not counted). The family is the document's hash, so that its chunks count as one in every
        interval, as do copies of it.

    Raises:
        ValueError: a document, which the message names, has a token beyond the embeddings, or a
            question that leaves no room for its answer; or nothing is left of all documents.
    """
    rows = []
    named = zip(documents.name, documents.text, documents.sha256, strict=True)
    for name, text, digest in named:
        ids = _encode(tokenizer, text, name)
        highest = max(ids, default=0)
        if highest >= embeddings:
            raise ValueError(
                f"{name}: the tokenizer gives id {highest}, the model has {embeddings} "
                "embeddings; not its tokenizer?"
            )
        question = 0
        if name in documents.questions:
            before = _encode(tokenizer, text[: documents.questions[name]], name)
            question = _tokens_before(before, ids, context, name)
            chunks = tokens.cut_answer(ids, question, context)
        else:
            chunks = tokens.cut(ids, context)
        for number, chunk in enumerate(chunks):
            rows.append((f"{digest[:16]}-{number}", digest, split, name, chunk, question))
    if not rows:
        raise ValueError(f"--{split}: no document has {tokens.SHORTEST} tokens")
    return pd.DataFrame(rows, columns=["id", "family", "split", "name", "ids", "question"])


def _encode(tokenizer: PreTrainedTokenizerBase, text: str, name: str) -> list[int]:
    """Return the token ids of a document. Raise ValueError, with its name, if there are none."""
    with errors.reading(f"{name}, read with the model's tokenizer"):
        (ids,) = tokens.encode_whole(tokenizer, [text])
    return ids


def _tokens_before(before: list[int], ids: list[int], context: int, name: str) -> int:
    """Return how many tokens stand before an answer: one that holds a part of it is the answer's.

    Args:
        before: the question by itself.
        ids: with its answer.

    Raises:
        ValueError: the answer has no token, or no room in a chunk.
    """
    question = metrics.exact_prefix(before, ids)
    if question == len(ids):
        raise ValueError(f"{name}: the tokenizer gives the answer no token")
    if question >= context:
        raise ValueError(
            f"{name}: the question has {question} tokens, and a chunk {context}: no room is left "
            "for its answer"
        )
    return question


def cut_sets(
    documents: Mapping[str, Documents],
    tokenizer: PreTrainedTokenizerBase,
    context: int,
    config: PreTrainedConfig,
) -> Tables:
    """Return the chunks of each set. Raise ValueError as `cut_documents` and `check_apart`.

    config: of the model that shall read them.
    """
    embeddings = config.get_text_config().vocab_size
    chunks = {}
    parts = {}
    for name, found in documents.items():
        chunks[name] = cut_documents(found, name, tokenizer, context, embeddings)
        parts[name] = _parts(found, chunks[name], tokenizer, context)
    check_apart(parts)
    return chunks


# ------------------------------------------------------------------------------------------ apart


def check_apart(parts: Mapping[str, list[tuple[str, str]]]) -> None:
    """Check that no two sets share a document, or a chunk of one.

    parts: of each set, its `_parts`.

    Raises:
        ValueError: two do; the message has their names.
    """
    for (one, ours), (other, theirs) in combinations(parts.items(), 2):
        names = dict(theirs)
        both = {(name, names[part]) for part, name in ours if part in names}
        if both:
            listed = ", ".join(f"{a} = {b}" for a, b in sorted(both)[:SHOWN])
            raise ValueError(
                f"{len(both)} in both --{one} and --{other}, wholly or by a chunk: {listed}; "
                "remove them from one"
            )


def _parts(
    documents: Documents, chunks: pd.DataFrame, tokenizer: PreTrainedTokenizerBase, context: int
) -> list[tuple[str, str]]:
    """Return what no other set may have, by its hash, with the name of the document that it is of.

    Parts are the chunks, and of each document that has one its plain form; and the chunks of that
    form, where it is another one.
    """
    found = [(_hash(chunk), name) for chunk, name in zip(chunks.ids, chunks.name, strict=True)]
    used = set(chunks.name)
    for name, text in zip(documents.name, documents.text, strict=True):
        if name not in used:
            continue
        plain = plain_form(text)
        found.append((sources.hash_text(plain), name))
        if plain != text.strip():
            ids = _encode(tokenizer, plain, name)
            found += [(_hash(chunk), name) for chunk in tokens.cut(ids, context)]
    return found


def _hash(chunk: list[int]) -> str:
    """Return the hash of a chunk, which is less to keep than the chunk."""
    return sources.hash_text(str(chunk))


def plain_form(text: str) -> str:
    """Return a text as it is compared: without marks, in one Unicode form, its words a space apart.

    Two that differ in these alone are the same text: lines may end or break otherwise, an accent or
    a ligature may be one character or two.
    """
    return " ".join(unicodedata.normalize("NFKC", text.replace(readers.MARK, "")).split())


# ------------------------------------------------------------------------------------------ count


def describe_sets(documents: Mapping[str, Documents], chunks: Tables, context: int) -> list[str]:
    """Return a line on each set: documents, chunks, and what is left out."""
    lines = []
    for name, found in chunks.items():
        line = f"{name}: {len(documents[name].name)} documents, "
        line += f"{len(found)} chunks of up to {context} tokens"
        if documents[name].questions:
            line += f"; {len(documents[name].questions)} are answers, their questions not counted"
        short = sorted(set(documents[name].name) - set(found.name))
        if short:
            listed = ", ".join(short[:SHOWN])
            line += f"; too short, so left out: {listed} ({len(short)} in all)"
        if documents[name].unread:
            line += f"; {readers.describe_unread(documents[name].unread)}"
        lines.append(line)
    return lines
