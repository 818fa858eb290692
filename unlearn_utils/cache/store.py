"""Results and checkpoints, addressed by what made them: `STORE/<step>/<key>/`.

An entry is a folder that one call filled. Its key hashes the step's name, its hand-kept version and every setting, the data's
fingerprint among them. It appears whole or not at all, carries the SHA-256 of each of its files, and keeps what never repeats
(seconds, memory, versions) apart in `cost.json`. A killed run leaves what was finished, and the next one goes on from there.
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

SIDE_FILES = ("checksums.json", "cost.json")  # not part of what an entry promises


@dataclass(frozen=True)
class Artifact:
    """One memoised computation. `make(folder)` fills an empty folder and may return further costs; `settings` must be JSON.

    `version` is kept by hand: raise it when the code of a step changes what it computes.
    """

    name: str
    version: int
    settings: Mapping
    make: Callable[[Path], Mapping | None]

    @property
    def path(self) -> Path:
        """Where the entry lies, or will: named by 16 hexadecimal digits of its hash."""
        text = json.dumps({"step": self.name, "version": self.version, "settings": self.settings}, sort_keys=True)
        return paths.store_folder() / self.name / hashlib.sha256(text.encode()).hexdigest()[:16]

    def done(self) -> bool:
        """Is the entry there, undamaged, and not older than `UNLEARN_FRESH` (unix seconds)?"""
        return _valid(self.path)

    def folder(self) -> Path:
        """The entry's folder, filled first if need be. Safe between processes: whoever comes second waits, and finds it."""
        self.fill()
        return self.path

    def fill(self, wait: bool = True) -> None:
        """Fills the entry if need be. If another process is at it: waits for that, or, without `wait`, leaves it alone."""
        folder = self.path
        if _valid(folder):
            return
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(f"{folder}.lock", timeout=-1 if wait else 0):
                if not _valid(folder):
                    self._fill(folder)
        except Timeout:
            pass

    def _fill(self, folder: Path) -> None:
        """Makes the entry in a folder beside its own, then renames it into place."""
        part = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)  # left by a run that was killed
        part.mkdir()
        start = time.perf_counter()
        extra = self.make(part) or {}
        _write(part / "settings.json", self.settings)
        _write(
            part / "cost.json",
            {"seconds": round(time.perf_counter() - start, 2), "peak_mb": round(memory.own_peak()), **extra, **_machine()},
        )
        _write(part / "checksums.json", _checksums(part))
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(part, folder)


def cost(folder: Path) -> dict:
    """What filling an entry took (`seconds`, `peak_mb` of the process) and on what: never the same twice, never in a results file."""
    return json.loads((folder / "cost.json").read_text())


def settings(folder: Path) -> dict:
    """The settings that made an entry."""
    return json.loads((folder / "settings.json").read_text())


def _valid(folder: Path) -> bool:
    """Whether an entry can be used. A damaged one is reported: it is made again."""
    path = folder / "checksums.json"
    if not path.exists() or path.stat().st_mtime < float(os.environ.get("UNLEARN_FRESH", 0)):
        return False
    try:
        intact = json.loads(path.read_text()) == _checksums(folder)
    except ValueError:  # the list of checksums is damaged itself
        intact = False
    if intact:
        return True
    print(f"{folder}: a file does not match its checksum; it is computed again", flush=True)
    return False


def _checksums(folder: Path) -> dict[str, str]:
    aside = [folder / name for name in SIDE_FILES]
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p not in aside)
    return {p.relative_to(folder).as_posix(): _sha256(p) for p in files}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:  # weights may be larger than memory
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(path: Path, content: Mapping) -> None:
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


def _machine() -> dict[str, str]:
    return {"torch": installed("torch"), "python": platform.python_version(), "machine": platform.machine()}
