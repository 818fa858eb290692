"""What is looked after around a run: its places and variables, what killed runs left, damage."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from unlearn_utils.cache import paths, store, workers
from unlearn_utils.runner.places import Places


def check(places: Places) -> None:
    """See, before anything is computed, that what the run needs is to be had.

    Raises:
        ValueError: a variable cannot be followed, or a folder cannot be written; it is named.
    """
    paths.check()
    own = [places.folder]
    if not os.environ.get(paths.FIGURES):
        own.append(places.figures)
    for folder in own:
        places.make_way(folder)
        paths.check_folder(folder, str(folder))
    workers.check_scheduler()


@contextmanager
def alone(places: Places) -> Iterator[None]:
    """Keep other runs of the profile out, inside; wait for one that is there."""
    if paths.is_no_file(places.lock):
        places.set_aside(places.lock, "is a folder or a link")
    lock = FileLock(places.lock)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"another run of {places.profile} is at work; this one waits for it", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def clear(folder: Path) -> list[Path]:
    """Remove what is in a folder, if there is one, and return it."""
    found = sorted(folder.glob("*"))
    for path in found:
        paths.remove(path)
    return found


def sweep(places: Places) -> None:
    """Remove what killed runs of the profile left, and say so."""
    left = clear(places.unfinished) + clear(places.connections) + store.sweep()
    for folder in {places.folder, paths.figures_folder(places.profile)}:
        for part in paths.abandoned_parts(folder):
            paths.remove(part)
            left.append(part)
    if left:
        names = ", ".join(places.shown(path) for path in left)
        print(f"removed what a killed run left: {names}", flush=True)


def say_damaged(places: Places) -> None:
    """Say, on stderr, what stored results a run found damaged."""
    if not places.progress.is_file():  # somebody has removed it meanwhile
        return
    lines = places.progress.read_text(encoding="utf-8", errors="replace").splitlines()
    for line in dict.fromkeys(line for line in lines if store.AGAIN in line):
        print(line, file=sys.stderr)
