"""The two halves of the documents: on one, choices are made; the other is reported."""

from __future__ import annotations

import pandas as pd

SELECTION, REPORT = 0, 1  # halves


def half(rows: pd.DataFrame, which: int) -> pd.DataFrame:
    """Return the documents of one half.

    Pairs alternate, so both halves hold whole pairs of forget and approximate documents.

    which: `SELECTION` or `REPORT`.
    """
    return rows[rows["rank"] % 2 == which]


def log_perplexity(rows: pd.DataFrame, split: str) -> float:
    """Return the log of the perplexity on one split: nats a predicted token."""
    part = rows[rows.split == split]
    return float(part.nll.sum(skipna=False) / part.tokens.sum())
