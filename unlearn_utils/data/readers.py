"""Documents in files: which files of a folder are read, and what stands in each.

What is not read is named, with the reason.
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import NamedTuple

import pyarrow as pa
from pyarrow import parquet

# in capitals too, and each with .gz after it
SUFFIXES = (".txt", ".md", ".py", ".tex", ".jsonl", ".json", ".parquet")
MARK = "\ufeff"  # the byte order mark that some programs write before a text
PAIR = ("question", "answer")  # columns of a record in the place of a text

EMPTY = "empty"
HIDDEN = "hidden"
NOWHERE = "linked to nothing"
NO_FILE = "neither file nor folder"
OTHER_KIND = "of another kind"
READ_ALREADY = "read under another name"
NAMED = 20  # names in a line, of each reason


class Unread(NamedTuple):
    """What no document was made of: a file, a folder, or a row.

    Attributes:
        name: below the path that was given; a folder's ends with `/`, a row's with its number.
        reason: in words that follow a number of files.
        files: how many it stands for.
    """

    name: str
    reason: str
    files: int = 1


# -------------------------------------------------------------------------------------- which files


def find_files(path: Path) -> tuple[list[Path], list[Unread]]:
    """Return the file at `path`, or those below it in sorted order, and what is not to be read.

    Linked folders are followed, each folder once. What is hidden below `path` is not read.

    Raises:
        OSError: a folder cannot be listed.
    """
    if not path.is_dir():
        reason = _why_no_document(path)
        return ([path], []) if reason is None else ([], [Unread(shown(path.name), reason)])
    files = []
    unread = []
    for found in sorted(_walk(path)):
        reason = _why_not(found)
        name = _below(shown(found), path)
        if reason is None:
            files.append(found)
        elif found.is_dir():
            unread.append(Unread(f"{name}/", reason, _number_of_files(found)))
        else:
            unread.append(Unread(name, reason))
    return files, unread


def _walk(folder: Path) -> Iterator[Path]:
    """Yield what lies below a folder; of folders those that are not entered.

    They are hidden ones, and those that were entered under another name, which ends loops of links.
    The folder's own come before those that are linked into it.
    """
    seen = set()
    own = [folder]
    linked = []
    while own or linked:
        entered = own.pop() if own else linked.pop(0)
        real = os.path.realpath(entered)
        if real in seen:
            yield entered
            continue
        seen.add(real)
        for path in sorted(entered.iterdir()):
            if not path.is_dir() or _is_hidden(path):
                yield path
            elif path.is_symlink():
                linked.append(path)
            else:
                own.append(path)


def _is_hidden(path: Path) -> bool:
    """Return whether a name is hidden, as .git, .ipynb_checkpoints and a Mac's ._a.txt are."""
    return path.name.startswith(".")


def _why_not(path: Path) -> str | None:
    """Return why a path that `_walk` yields is not read; None if it is."""
    if _is_hidden(path):
        return HIDDEN
    if path.is_dir():
        return READ_ALREADY
    return _why_no_document(path)


def _why_no_document(path: Path) -> str | None:
    """Return why what is no folder is not read; None if it is."""
    if not path.exists():
        return NOWHERE
    if not path.is_file():
        return NO_FILE
    if kind_of(path) not in SUFFIXES:
        return OTHER_KIND
    return None


def _number_of_files(folder: Path) -> int:
    """Return how many files lie below a folder, links not followed."""
    return sum(len(names) for _, _, names in os.walk(folder))


def kind_of(path: Path) -> str:
    """Return a file's suffix in small letters: that before .gz, if it is compressed."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


# -------------------------------------------------------------------------------------- their names


def shown(path: str | Path) -> str:
    """Return a path as it is printed: what is not UTF-8, or not printable, is escaped."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(map(_printed, text))


def _printed(character: str) -> str:
    """Return a character, or its escape if it cannot be printed."""
    return character if character.isprintable() else ascii(character)[1:-1]


def _below(name: str, path: Path) -> str:
    """Return the rest of a name that begins with the path that was given, or with its folder."""
    folder = path if path.is_dir() else path.parent
    return name.removeprefix(f"{shown(folder)}/")


def describe_unread(unread: Collection[Unread]) -> str:
    """Return how much was not read, and of each reason how much and its names."""
    parts = []
    for reason in sorted({one.reason for one in unread}):
        same = [one for one in unread if one.reason == reason]
        names = [one.name for one in same[:NAMED]]
        if len(same) > NAMED:
            names.append("...")
        parts.append(f"{_count(same)} {reason} ({', '.join(names)})")
    return f"{_count(unread)} not read: {', '.join(parts)}"


def _count(unread: Iterable[Unread]) -> int:
    """Return how many files these stand for."""
    return sum(one.files for one in unread)


# ------------------------------------------------------------------------------ what stands in them


def read_files(files: Iterable[Path], path: Path) -> tuple[list[dict], list[Unread]]:
    """Return the documents of files, as `read_documents`, and the files and rows without text.

    path: where the files were found.

    Raises:
        ValueError: as `read_documents`.
    """
    documents = []
    unread = []
    for file in files:
        found = read_documents(file)
        if not found:
            unread.append(Unread(_below(shown(file), path), EMPTY))
        for document in found:
            if document["text"].strip():
                documents.append(document)
            else:
                unread.append(Unread(_below(document["name"], path), EMPTY))
    return documents, unread


def read_documents(path: Path) -> list[dict]:
    """Return the documents of one file, each a dict with `name`, `file`, `text` and other columns.

    They are the whole file, each line of a .jsonl, each record of a .json or each row of a
    .parquet: their names are the file's, with the number of the line, record or row after it.
    `question` is the number of leading characters that are a question, as `answered_row` says.

    Raises:
        ValueError: the file is not UTF-8, not JSON, or has no column `text` or `content`, nor
            `question` and `answer`; the message names the file, and the line or row.
    """
    file = shown(path.name)
    documents = []
    for name, row in _rows(path):
        if _is_pair(row):
            document = answered_row(row, name)
        else:
            document = text_row(row, name) | {"question": 0}
        documents.append({"file": file} | document | {"name": name})
    return documents


def _rows(path: Path) -> list[tuple[str, object]]:
    """Return the name and the content of each document of a file, not yet checked."""
    kind = kind_of(path)
    if kind == ".jsonl":
        return json_lines(path)
    if kind == ".json":
        return _json_records(path)
    if kind == ".parquet":
        return _table_rows(path)
    with _readable(path):
        text = _content(path).decode()
    return [(shown(path), {"text": text.replace("\r\n", "\n").replace("\r", "\n")})]


def json_lines(path: Path) -> list[tuple[str, object]]:
    """Return the name and the object of each line that is not blank. Only `\\n` ends a line.

    Raises:
        ValueError: the file is not UTF-8, or a line is not JSON; the message names both.
    """
    file = shown(path)
    rows = []
    with _readable(path):
        for number, line in enumerate(_content(path).decode().split("\n"), 1):
            written = line.removeprefix(MARK)
            if written.strip():
                rows.append((f"{file}:{number}", _parsed(written, number)))
    return rows


def _json_records(path: Path) -> list[tuple[str, object]]:
    """Return the name and the object of each record of a list; else as `json_lines`."""
    with _readable(path):
        written = _content(path).decode().removeprefix(MARK)
        if not written.lstrip().startswith("["):
            return json_lines(path)
        records = _parsed(written)
    return [(f"{shown(path)}:{number}", row) for number, row in enumerate(records, 1)]


def _parsed(written: str, number: int | None = None) -> object:
    """Return the object of a line of JSON, or of a file. Raise ValueError, with the line."""
    try:
        return json.loads(written)
    except (ValueError, RecursionError) as error:
        if number is None:
            raise ValueError(str(error)) from error
        reason = str(error).replace("line 1 column", "column")
        raise ValueError(f"line {number}: {reason}") from error


def _table_rows(path: Path) -> list[tuple[str, object]]:
    """Return the name and the columns of each row of a .parquet. Raise ValueError."""
    file = shown(path)
    with _readable(path):
        content = _content(path)
        if not content:
            return []
        table = parquet.read_table(pa.BufferReader(content))
        rows = table.to_pylist()
    if not _is_pair(dict.fromkeys(table.column_names)):
        _check_columns(table.column_names, file)
    return [(f"{file}:{number}", row) for number, row in enumerate(rows, 1)]


def _content(path: Path) -> bytes:
    """Return the bytes of a file, decompressed."""
    content = path.read_bytes()
    return gzip.decompress(content) if path.suffix.lower() == ".gz" else content


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Raise ValueError, with the file's name, where it cannot be read inside."""
    try:
        yield
    except (OSError, ValueError, EOFError, zlib.error, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{shown(path)}: cannot be read ({reason}); expected UTF-8 text, one JSON object a "
            "line, a JSON list of them, or a parquet table"
        ) from error


def text_row(row: object, place: str | Path) -> dict:
    """Return a document as a dict with `text`; the hub's general domain calls it `content`.

    A byte order mark before the text is left out.

    place: where it stands, for the error.

    Raises:
        ValueError: it is no object, or its text is missing or no text.
    """
    if not isinstance(row, dict):
        raise ValueError(
            f'{place}: a line is no JSON object, but {row!r:.40}; expected {{"text": ...}}'
        )
    _check_columns(row, place)
    text = row["text"] if "text" in row else row["content"]
    _check_text(text, "a document", place)
    others = {name: value for name, value in row.items() if name != "content"}
    return others | {"text": text.removeprefix(MARK)}


def answered_row(row: dict, place: str | Path) -> dict:
    """Return a question with its answer as a dict with `text` and `question`.

    The text is both, in plain words; `question` is how many of its leading characters are before
    the answer.

    place: where it stands, for the error.

    Raises:
        ValueError: one of the two is missing, empty or no text.
    """
    for column in PAIR:
        if column not in row:
            raise ValueError(
                f"{place}: no column {column!r} beside the other (found: {_listed(row)})"
            )
        _check_text(row[column], f"the {column}", place)
        if not row[column].strip():
            raise ValueError(f"{place}: the {column} is empty")
    before = f"Question: {row['question']}\nAnswer:"
    return {"text": f"{before} {row['answer']}", "question": len(before)}


def _is_pair(row: object) -> bool:
    """Return whether a record has a question or an answer in the place of a text."""
    if not isinstance(row, dict) or "text" in row or "content" in row:
        return False
    return any(column in row for column in PAIR)


def _check_text(text: object, what: str, place: str | Path) -> None:
    """Check that a value is text. Raise ValueError, with its place and what it is of."""
    if not isinstance(text, str):
        raise ValueError(f"{place}: {what} is no text, but {text!r:.40}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{place}: {what} is no text: {error.reason}") from error


def _check_columns(names: Collection[str], place: str | Path) -> None:
    """Check that one of the columns holds the text. Raise ValueError, which lists them."""
    if "text" not in names and "content" not in names:
        raise ValueError(
            f"{place}: no column 'text' or 'content', nor 'question' and 'answer' (found: "
            f"{_listed(names)})"
        )


def _listed(names: Iterable[str]) -> str:
    """Return the names of columns in a line, cut where they are many."""
    return shorten(", ".join(map(str, names)), 200, placeholder=" ...")
