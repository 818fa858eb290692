"""Where everything lies, and every variable that users may set.

This module owns the environment variables of the package. Nothing is read when it is imported: each
function reads its variable when it is called, so that a test or a notebook may set one at any time.
`write_whole` is how a text file is replaced.
"""

from __future__ import annotations

import os
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]  # holds notebooks/, figures/ and unlearn_utils/
MANIFEST = PROJECT / "unlearn_utils" / "data" / "manifest.csv"
LOCK = PROJECT / "requirements.lock"

STORE = "UNLEARN_STORE"
FIGURES = "UNLEARN_FIGURES"
FRESH = "UNLEARN_FRESH"
WORKERS = "UNLEARN_WORKERS"
SCHEDULER = "UNLEARN_SCHEDULER"
PROGRESS = "UNLEARN_PROGRESS"
HUB = "UNLEARN_HUB"
BOOKS = "UNLEARN_BOOKS"
PRECISION = "UNLEARN_PRECISION"

FLOAT32 = "float32"  # what `UNLEARN_PRECISION` may say

VARIABLES = {
    STORE: "the folder of stored results; default: runs/store in the project",
    FIGURES: "the folder that figures and tables are written to; default: that of the profile",
    FRESH: "unix seconds: what was stored before is computed again; run_all.sh --fresh sets it",
    WORKERS: "how many processes compute side by side; default: what the profile says",
    SCHEDULER: "the address tcp://HOST:PORT of a Dask scheduler whose workers compute instead",
    PROGRESS: "a file for lines of progress, so that no notebook keeps them; run_all.sh sets it",
    HUB: "a folder with OWNER/NAME folders that stand in for the hub, for machines without one",
    BOOKS: "a folder with the domain books, for the profile paper",
    PRECISION: "float32: matrices are multiplied in it even where bfloat16 is native",
}


def store_folder() -> Path:
    """Return the folder of stored results."""
    return Path(os.environ.get(STORE) or PROJECT / "runs" / "store")


def figures_folder(profile: str) -> Path:
    """Return the folder that a profile's figures and tables go to, which is made if need be."""
    folder = Path(os.environ.get(FIGURES) or own_figures(PROJECT, profile))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def own_figures(project: Path, profile: str) -> Path:
    """Return the folder of a profile's figures and tables in a project, whatever a variable says.

    Git tracks those of `laptop` and `study`, so that no other profile may write there.
    """
    tracked = {"laptop": project / "figures", "study": project / "figures" / "study"}
    return tracked.get(profile, project / "runs" / profile / "figures")


def fresh_since() -> float:
    """Return the time, in unix seconds, before which a stored result counts as missing.

    It is 0 without such a wish.
    """
    return float(os.environ.get(FRESH) or 0)


def number_of_workers(default: int) -> int:
    """Return how many processes compute side by side: as the variable says, else `default`."""
    return int(os.environ.get(WORKERS) or default)


def scheduler() -> str | None:
    """Return the address of the Dask scheduler, or None to compute on this machine."""
    return os.environ.get(SCHEDULER) or None


def progress_file() -> Path | None:
    """Return the file that lines of progress go to, or None for standard output."""
    name = os.environ.get(PROGRESS)
    return Path(name) if name else None


def hub_mirror() -> Path | None:
    """Return the folder that stands in for the hub, or None if there is none."""
    name = os.environ.get(HUB)
    return Path(name) if name else None


def books_folder() -> Path | None:
    """Return the folder that holds the domain books, or None if there is none."""
    name = os.environ.get(BOOKS)
    return Path(name).resolve() if name else None


def precision() -> str | None:
    """Return "float32" where the user wants that everywhere, or None.

    Results in float32 are stored beside those of the machine's own precision.

    Raises:
        ValueError: the variable says anything else.
    """
    name = os.environ.get(PRECISION)
    if name and name != FLOAT32:
        raise ValueError(f"{PRECISION} is {name!r}; it may be {FLOAT32!r} alone, or not set")
    return name or None


def write_whole(path: Path, text: str) -> None:
    """Write a text file whole or not at all: to a file beside it, which is then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
