"""Which passages the embedded corpus consists of: the committed manifest, or this machine's own.

Parts of the standard library differ between Python releases: domain `books` is another edition of
the Python Language Reference. Where any passage of the committed manifest reads otherwise here, the
whole corpus is curated anew by the same rule (`data.curation`), once, and kept below `runs/`. Other
domains come out as committed, since their packages are pinned; but numbers are then not those
committed, and notebook 01 says so.
"""

from __future__ import annotations

import hashlib
import sys
from functools import cache
from importlib.metadata import version

import pandas as pd
from filelock import FileLock

from unlearn_utils.cache import paths
from unlearn_utils.data import sources


def committed() -> pd.DataFrame:
    """Return the committed manifest, with the columns of `curation.splits.row`."""
    return pd.read_csv(paths.MANIFEST)


@cache
def of_this_machine() -> pd.DataFrame:
    """Return the committed manifest if every passage reads as committed, else one curated anew."""
    table = committed()
    for row in table.itertuples():
        if sources.hash_text(sources.read_lines(row.file, row.lines)) != row.sha256:
            return curated_anew()
    return table


def is_as_committed() -> bool:
    """Return whether this machine's text is that of the committed results."""
    return of_this_machine().sha256.tolist() == committed().sha256.tolist()


def curated_anew() -> pd.DataFrame:
    """Return the manifest of this machine's text, curated at the first call and then read.

    Raises:
        ValueError: there is too little text for the splits.
    """
    file = paths.PROJECT / "runs" / "corpus" / f"manifest-{_key()}.csv"
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{file}.lock"):
        if not file.exists():
            from unlearn_utils.data.curation import passages, splits

            table = splits.curate(passages.candidates(paths.LOCK))
            paths.write_whole(file, table.to_csv(index=False))
    return pd.read_csv(file)


def _key() -> str:
    """Return a name for this machine's sources: Python, and the packages that are read."""
    from unlearn_utils.data.curation import passages

    parts = [sys.version]
    for name in passages.locked_distributions(paths.LOCK):
        parts.append(f"{name}=={version(name).partition('+')[0]}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def first_ranks(pairs: int, retain: int, general: int, evaluation: int) -> pd.DataFrame:
    """Return the manifest cut to so many passages of each split, always the first.

    Args:
        pairs: forget and approximate passages of a domain.
        retain: retain passages of a domain; general: those of the domain general.
        evaluation: evaluation passages of the domain general.
    """
    table = of_this_machine()
    limits = {"forget": pairs, "approximate": pairs, "evaluation": evaluation}
    limit = table.split.map(limits)
    limit = limit.fillna(table.domain.map({"general": general})).fillna(retain)
    return table[table["rank"] < limit].reset_index(drop=True)
