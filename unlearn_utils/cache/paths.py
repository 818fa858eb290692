"""Where everything lies, and every variable that users may set.

This module owns the environment variables of the package. Nothing is read when it is imported: each
function reads its variable when it is called, so that a test or a notebook may set one at any time.
`write_whole` is how a text file is replaced, `set_aside` how a damaged one goes out of the way.
"""

from __future__ import annotations

import math
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryDirectory

from unlearn_utils.cache import endings

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
DEBUG = "UNLEARN_DEBUG"

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
    DEBUG: "1: the traceback of a mistake is shown before its line",
}

ASIDE = ".aside"  # ends the name of what was damaged, and is kept
PART = ".part"  # ends the name of what is not yet whole
SCRATCH = "scratch"  # begins the name of a folder that goes with a process


# ----------------------------------------------------------------------------- what variables say


def check() -> None:
    """Look at all variables, before anything is computed; make the folders that they name.

    Raises:
        ValueError: one of them cannot be followed; the message names it.
    """
    for name in (STORE, FIGURES):
        if os.environ.get(name):
            check_folder(Path(os.environ[name]), f"{name}={os.environ[name]}")
    for name in (HUB, BOOKS):
        if os.environ.get(name) and not Path(os.environ[name]).is_dir():
            raise ValueError(f"{name}={os.environ[name]}: there is no such folder")
    progress = progress_file()
    if progress is not None:
        try:
            progress.open("a").close()
        except OSError as error:
            raise ValueError(
                f"{PROGRESS}={progress}: no file can be written there ({error.strerror})"
            ) from error
    fresh_since()
    number_of_workers(1)
    precision()


def check_folder(folder: Path, named: str, beginning: str = "") -> None:
    """Make a folder if need be, and write into it.

    Args:
        folder: that shall be written into.
        named: what it is, for messages.
        beginning: of the name of the file that is tried.

    Raises:
        ValueError: neither can be done; the message begins with what it is `named`.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        NamedTemporaryFile(dir=folder, prefix=beginning, suffix=PART).close()
    except OSError as error:
        raise ValueError(
            f"{named}: no files can be written there ({error.strerror}); name a folder of your own"
        ) from error


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

    Git tracks those of `laptop`, `study` and `published`, so that no other profile may write there.
    """
    tracked = {"laptop": project / "figures"}
    for name in ("study", "published"):
        tracked[name] = project / "figures" / name
    return tracked.get(profile, project / "runs" / profile / "figures")


def fresh_since() -> float:
    """Return the time, in unix seconds, before which a stored result counts as missing.

    It is 0 without such a wish.

    Raises:
        ValueError: the variable is no time.
    """
    text = os.environ.get(FRESH) or "0"
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds):
        raise ValueError(f"{FRESH} is {text!r}; it may be a time in unix seconds, or not set")
    return seconds


def number_of_workers(default: int) -> int:
    """Return how many processes compute side by side: as the variable says, else `default`.

    Raises:
        ValueError: the variable is no such number.
    """
    text = os.environ.get(WORKERS) or str(default)
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{WORKERS} is {text!r}; it may be a whole number from 1, or not set")
    return int(text)


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


def debug() -> bool:
    """Return whether the user wants to see tracebacks of mistakes."""
    return bool(os.environ.get(DEBUG))


# ------------------------------------------------------------------------------- files that change


def write_whole(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as part:
        part.write_text(text, encoding="utf-8")


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield where to write a file: beside its place, to which it is moved in the end, if whole."""
    part = part_of(path)
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def part_of(path: Path) -> Path:
    """Return where this process makes a file or folder: beside its place, with its own number."""
    return path.with_name(f".{path.name}.{os.getpid()}{PART}")


def is_abandoned(part: Path) -> bool:
    """Return whether something is named as by `part_of`, of a process that is gone."""
    pid = part.name.removesuffix(PART).rpartition(".")[2]
    return _is_gone(pid)


def _is_gone(pid: str) -> bool:
    """Return whether a text is the number of a process, and there is none."""
    return pid.isdecimal() and not endings.is_there(int(pid))


def scratch_folder() -> TemporaryDirectory:
    """Return a new folder in the store, which goes with this process.

    If that is killed, the next run removes it.
    """
    store_folder().mkdir(parents=True, exist_ok=True)
    prefix = f"{SCRATCH}.{platform.node()}.{os.getpid()}."
    return TemporaryDirectory(prefix=prefix, dir=store_folder())


def abandoned_scratch() -> list[Path]:
    """Return the scratch folders of processes of this machine that are gone."""
    own = f"{SCRATCH}.{platform.node()}."
    found = []
    for path in sorted(store_folder().glob(f"{SCRATCH}.*")):
        pid = path.name.removeprefix(own).partition(".")[0]
        if path.name.startswith(own) and _is_gone(pid):
            found.append(path)
    return found


def abandoned_parts(folder: Path) -> list[Path]:
    """Return what `whole` was writing in a folder, or below it, when it was killed."""
    return [path for path in sorted(folder.rglob(f".*{PART}")) if is_abandoned(path)]


def is_no_file(path: Path) -> bool:
    """Return whether something else than a file is in its place, such as a folder or a link."""
    return os.path.lexists(path) and (path.is_symlink() or not path.is_file())


def set_aside(path: Path) -> Path:
    """Move a damaged file or folder to `NAME.aside` beside it, in the place of an older one.

    Returns:
        Where it is now.
    """
    aside = path.with_name(path.name + ASIDE)
    remove(aside)
    return path.rename(aside)


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
