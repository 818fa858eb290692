"""Documents with provenance: the embedded corpus, the paper's hub dataset, or a folder of the user's own text.

All three come back as a `datasets.DatasetDict` in the schema of `llmunlearn/unlearn_dataset`: the domains
`arxiv`, `github` and `books` have the splits forget, approximate and retain; `general` has evaluation and retain.
"""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

SUFFIXES = (".txt", ".md", ".py", ".tex", ".jsonl", ".parquet")


def read_documents(path: Path) -> list[dict]:
    """The documents of one file: a whole text file, each line of a .jsonl, each row of a .parquet.

    Raises:
        ValueError: not UTF-8, not JSON, or without a column `text` or `content`.
    """
    try:
        if path.suffix == ".parquet":
            rows = pd.read_parquet(path).to_dict("records")
        elif path.suffix == ".jsonl":
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        else:
            rows = [{"text": path.read_text(encoding="utf-8")}]
    except (OSError, ValueError) as error:  # not UTF-8, not JSON, no parquet
        raise ValueError(f"{path}: cannot be read ({error}); expected UTF-8 text, one JSON object a line, or a parquet table") from error
    return [{"file": path.name} | text_row(row, path) for row in rows]


def text_row(row: object, path: Path) -> dict:
    """A document as a dict with `text`; hub datasets call it `content` in their general domain."""
    if not isinstance(row, dict):
        raise ValueError(f'{path}: a line is no JSON object, but {row!r:.40}; expected {{"text": ...}}')
    if not ({"text", "content"} & row.keys()):
        raise ValueError(f"{path}: no column 'text' or 'content' (found: {', '.join(map(str, row))})")
    text = row["text"] if "text" in row else row["content"]
    if not isinstance(text, str):
        raise ValueError(f"{path}: a document is no text, but {text!r:.40}")
    return {k: v for k, v in row.items() if k != "content"} | {"text": text}
