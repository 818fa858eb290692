"""Files of documents: whole text files, JSON lines and parquet tables."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

SUFFIXES = (".txt", ".md", ".py", ".tex", ".jsonl", ".parquet")


def read_documents(path: Path) -> list[dict]:
    """Return the documents of one file, each a dict with `file`, `text` and its other columns.

    They are the whole file, each line of a .jsonl, or each row of a .parquet.

    Raises:
        ValueError: the file is not UTF-8, not JSON, or has no column `text` or `content`.
    """
    try:
        rows = _rows(path)
    except (OSError, ValueError) as error:  # not UTF-8, not JSON, no parquet
        raise ValueError(
            f"{path}: cannot be read ({error}); expected UTF-8 text, one JSON object a line, or a "
            "parquet table"
        ) from error
    return [{"file": path.name} | text_row(row, path) for row in rows]


def _rows(path: Path) -> list:
    """Return what stands in a file, document by document, not yet checked."""
    if path.suffix == ".parquet":
        return pd.read_parquet(path).to_dict("records")
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".jsonl":
        return [{"text": text}]
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def text_row(row: object, path: Path) -> dict:
    """Return a document as a dict with `text`; the hub's general domain calls it `content`.

    path: the file that it is from, for the error.

    Raises:
        ValueError: it is no object, or its text is missing or no text.
    """
    if not isinstance(row, dict):
        raise ValueError(
            f'{path}: a line is no JSON object, but {row!r:.40}; expected {{"text": ...}}'
        )
    if not ({"text", "content"} & row.keys()):
        columns = ", ".join(map(str, row))
        raise ValueError(f"{path}: no column 'text' or 'content' (found: {columns})")
    text = row["text"] if "text" in row else row["content"]
    if not isinstance(text, str):
        raise ValueError(f"{path}: a document is no text, but {text!r:.40}")
    others = {name: value for name, value in row.items() if name != "content"}
    return others | {"text": text}
