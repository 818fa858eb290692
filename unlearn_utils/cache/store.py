"""Results and checkpoints, addressed by what made them: `STORE/<artifact>/<key>/`.

An entry is a folder that one call filled. Its key hashes the artifact's name, its hand-kept version
and every setting, the data's fingerprint among them. It appears whole or not at all, carries the
SHA-256 of each of its files, and keeps what never repeats (seconds, memory, versions) apart in
`cost.json`. A killed run leaves what was finished, and the next one goes on from there.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version as installed
from pathlib import Path

from filelock import FileLock, Timeout

from unlearn_utils.cache import memory, paths

CHECKSUMS = "checksums.json"
COST = "cost.json"
SETTINGS = "settings.json"
SIDE_FILES = (CHECKSUMS, COST)  # not part of what an entry promises


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

    def done(self) -> bool:
        """Return whether the entry is there, undamaged, and not older than `UNLEARN_FRESH`."""
        return _valid(self.path)

    def folder(self) -> Path:
        """Return the entry's folder, filled first if need be.

        Processes do not disturb each other: whoever comes second waits, and finds it.
        """
        self.fill()
        return self.path

    def fill(self, wait: bool = True) -> None:
        """Fill the entry if need be.

        Args:
            wait: if another process is at it, wait for that; else leave it alone.
        """
        folder = self.path
        if _valid(folder):
            return
        folder.parent.mkdir(parents=True, exist_ok=True)
        timeout = -1 if wait else 0
        try:
            with FileLock(f"{folder}.lock", timeout=timeout):
                if not _valid(folder):
                    self._fill(folder)
        except Timeout:
            pass

    def _fill(self, folder: Path) -> None:
        """Make the entry in a folder beside its own, then rename it into place."""
        part = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)  # left by a run that was killed
        part.mkdir()
        start = time.perf_counter()
        further = self.make(part) or {}
        taken = {
            "seconds": round(time.perf_counter() - start, 2),
            "peak_mb": round(memory.own_peak()),
        }
        _write(part / SETTINGS, self.settings)
        _write(part / COST, {**taken, **further, **_machine()})
        _write(part / CHECKSUMS, _checksums(part))
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(part, folder)
        _intact[folder] = _look(folder)


def cost(folder: Path) -> dict:
    """Return what filling an entry took, and on what machine: never the same twice.

    Among it are `seconds` and `peak_mb`, of the process. No results file holds any of it.
    """
    return json.loads((folder / COST).read_text())


# ------------------------------------------------------------------------------------- checking
#
# Weights take long to read, and an entry is looked at often. So its files are hashed once in a
# process, and again only when their sizes or their times of writing are no longer those of then.

Look = dict[str, tuple[int, int]]  # of each file: its size, and when it was written, in ns

_intact: dict[Path, Look] = {}  # the entries that this process has found, or made, intact


def _valid(folder: Path) -> bool:
    """Return whether an entry can be used. Report a damaged one: it is made again."""
    checksums = folder / CHECKSUMS
    if not checksums.exists() or checksums.stat().st_mtime < paths.fresh_since():
        return False
    look = _look(folder)
    if _intact.get(folder) == look:
        return True
    if _matches(folder):
        _intact[folder] = look
        return True
    print(f"{folder}: a file does not match its checksum; it is computed again", flush=True)
    return False


def _matches(folder: Path) -> bool:
    """Return whether the files of an entry are those that its checksums list."""
    try:
        listed = json.loads((folder / CHECKSUMS).read_text())
    except ValueError:  # the list is damaged itself
        return False
    return listed == _checksums(folder)


def _look(folder: Path) -> Look:
    """Return what can be seen of the files and of their checksums without reading them."""
    look = {}
    for path in [*_files(folder), folder / CHECKSUMS]:
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


def _write(path: Path, content: Mapping) -> None:
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


def _machine() -> dict[str, str]:
    """Return the versions and the kind of machine that a computation ran on."""
    return {
        "torch": installed("torch"),
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
