"""Results and checkpoints, addressed by what made them: `STORE/<artifact>/<key>/`.

An entry is a folder that one call filled. Its key hashes the artifact's name, its hand-kept version
and every setting, the data's fingerprint among them. It appears whole or not at all, carries the
SHA-256 of each of its files, and keeps what never repeats (seconds, memory, versions) apart in
`cost.json`. A damaged one is set aside and made again. A killed run leaves what was finished, and
the next one goes on from there.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version as installed
from pathlib import Path

from filelock import FileLock, Timeout

from unlearn_utils.cache import memory, paths, progress

CHECKSUMS = "checksums.json"
COST = "cost.json"
SETTINGS = "settings.json"
SIDE_FILES = (CHECKSUMS, COST)  # not part of what an entry promises
KEY = 16 * "[0-9a-f]"  # how an entry is named
SHARED = ".shared-"  # begins the name of a file that shows that two machines see one store
AGAIN = "it is computed again"  # is said of what is damaged


@dataclass(frozen=True)
class Artifact:
    """One computation whose results are kept.

    Attributes:
        name: of the kind of artifact, and of its folder in the store.
        version: kept by hand; raise it when the code changes what it computes.
        settings: all that the results follow from; must be JSON.
        make: fills an empty folder, and may return further costs.
    """

    name: str
    version: int
    settings: Mapping
    make: Callable[[Path], Mapping | None]

    @property
    def path(self) -> Path:
        """Where the entry lies, or will: named by 16 hexadecimal digits of its hash."""
        hashed = {"artifact": self.name, "version": self.version, "settings": self.settings}
        if paths.precision():
            hashed["precision"] = paths.precision()
        text = json.dumps(hashed, sort_keys=True)
        key = hashlib.sha256(text.encode()).hexdigest()[:16]
        return paths.store_folder() / self.name / key

    @property
    def entry(self) -> str:
        """Its place in any store."""
        return f"{self.name}/{self.path.name}"

    def done(self) -> bool:
        """Return whether the entry is there, undamaged, and not older than `UNLEARN_FRESH`."""
        fault = self._fault()
        if fault:
            progress.tell(fault)
        return fault is None

    def folder(self) -> Path:
        """Return the entry's folder, filled first if need be.

        Processes do not disturb each other: whoever comes second waits, and finds it.
        """
        self.fill()
        return self.path

    def fill(self, wait: bool = True) -> None:
        """Fill the entry if need be; what is damaged is set aside.

        Args:
            wait: if another process is at it, wait for that; else leave it alone.
        """
        folder = self.path
        if self._fault() is None:
            return
        _make_parent(folder)
        timeout = -1 if wait else 0
        try:
            with FileLock(_lock(folder), timeout=timeout):
                fault = self._fault()
                if fault:
                    progress.tell(fault)
                    paths.set_aside(folder)
                if fault is not None:
                    self._fill(folder)
        except Timeout:
            pass

    def _fault(self) -> str | None:
        """Return None if the entry can be used, else what is wrong with it; "" if it is to make."""
        folder = self.path
        if not os.path.lexists(folder):
            return ""
        try:
            look = _look(folder)
            _, written = look[CHECKSUMS]
            if written / 1e9 < paths.fresh_since():
                return ""
            if _intact.get(folder) != look:
                self._check(folder)
                _intact[folder] = look
        except (OSError, ValueError) as error:
            return _said(folder, str(error))
        return None

    def _check(self, folder: Path) -> None:
        """Read the whole entry.

        Raises:
            ValueError: a file is damaged, or is another entry's; the message names it.
            OSError: a file cannot be read.
        """
        listed, found = _read(folder / CHECKSUMS), _checksums(folder)
        for name in sorted(listed.keys() | found.keys()):
            if listed.get(name) != found.get(name):
                raise ValueError(f"a file does not match its checksum: {name}")
        if (folder / SETTINGS).read_text() != _text(self.settings):
            raise ValueError(f"{SETTINGS} is another entry's")
        taken = cost(folder)
        if not isinstance(taken.get("seconds"), int | float):
            raise ValueError(f"{COST} does not say what the entry took")
        if taken.get("entry", self.entry) != self.entry:  # older ones do not say it
            raise ValueError(f"{COST} is another entry's")

    def _fill(self, folder: Path) -> None:
        """Make the entry in a folder beside its own, then rename it into place."""
        part = folder.with_name(f"{folder.name}{paths.PART}")
        paths.remove(part)  # left by a run that was killed
        part.mkdir()
        try:
            start = time.perf_counter()
            further = self.make(part) or {}
            taken = {
                "entry": self.entry,
                "seconds": round(time.perf_counter() - start, 2),
                "peak_mb": round(memory.own_peak()),
            }
            (part / SETTINGS).write_text(_text(self.settings))
            (part / COST).write_text(_text({**taken, **further, **_machine()}))
            (part / CHECKSUMS).write_text(_text(_checksums(part)))
            older = paths.set_aside(folder) if folder.exists() else None
            os.replace(part, folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)  # so that it does not fill the disk
        if older:
            paths.remove(older)
        _intact[folder] = _look(folder)


def _make_parent(folder: Path) -> None:
    """Make the folder of all entries of a name; a file in its place is set aside."""
    parent = folder.parent
    if os.path.lexists(parent) and not parent.is_dir():
        progress.tell(_said(parent, "it is a file"))
        paths.set_aside(parent)
    parent.mkdir(parents=True, exist_ok=True)


def _lock(folder: Path) -> Path:
    """Return the file that is locked while an entry is made; what else is there is set aside."""
    lock = folder.with_name(f"{folder.name}.lock")
    if paths.is_no_file(lock):
        progress.tell(_said(lock, "it is a folder or a link"))
        paths.set_aside(lock)
    return lock


def _said(path: Path, fault: str) -> str:
    """Return the line on something damaged."""
    return f"{path}: {fault}; {AGAIN}, and {path.name}{paths.ASIDE} is what was there"


def cost(folder: Path) -> dict:
    """Return what filling an entry took, and on what machine: never the same twice.

    Among it are `seconds` and `peak_mb`, of the process. No results file holds any of it.
    """
    return _read(folder / COST)


def sweep() -> list[Path]:
    """Remove what killed processes left unfinished in the store, and return what it was.

    Other files are left alone, whatever their names: the store may be a folder that has them.
    """
    store = paths.store_folder()
    removed = []
    for left in sorted([*store.glob(f"*/{KEY}{paths.PART}"), *store.glob(f"{SHARED}*")]):
        lock = _lock(left.with_suffix("")) if left.suffix == paths.PART else left
        with suppress(Timeout), FileLock(lock, timeout=0):  # else somebody is at it
            paths.remove(left)
            removed.append(left)
    for scratch in paths.abandoned_scratch():
        paths.remove(scratch)
        removed.append(scratch)
    return removed


# ------------------------------------------------------------------------------------- checking
#
# Weights take long to read, and an entry is looked at often. So its files are hashed once in a
# process, and again only when their sizes or their times of writing are no longer those of then.

Look = dict[str, tuple[int, int]]  # of each file: its size, and when it was written, in ns

_intact: dict[Path, Look] = {}  # the entries that this process has found, or made, intact


def _read(path: Path) -> dict:
    """Return what an object of JSON in a file holds.

    Raises:
        ValueError: it is nothing of the kind.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} is no JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} is no object of JSON")
    return content


def _look(folder: Path) -> Look:
    """Return what can be seen of an entry's files without reading them."""
    look = {}
    for path in [*_files(folder), *(folder / name for name in SIDE_FILES)]:
        status = path.stat()
        look[path.relative_to(folder).as_posix()] = (status.st_size, status.st_mtime_ns)
    return look


def _checksums(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file that an entry promises."""
    return {path.relative_to(folder).as_posix(): _sha256(path) for path in _files(folder)}


def _files(folder: Path) -> list[Path]:
    """Return the files that an entry promises, in order."""
    aside = [folder / name for name in SIDE_FILES]
    return sorted(path for path in folder.rglob("*") if path.is_file() and path not in aside)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:  # weights may be larger than memory
        return hashlib.file_digest(file, "sha256").hexdigest()


def _text(content: Mapping) -> str:
    return json.dumps(content, indent=1, sort_keys=True) + "\n"


def _machine() -> dict[str, str]:
    """Return the versions and the kind of machine that a computation ran on."""
    return {
        "torch": installed("torch"),
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
