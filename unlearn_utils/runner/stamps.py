"""The last execution of each notebook: what it started from and what it wrote.

What has not changed since is not executed again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

from unlearn_utils import profiles
from unlearn_utils.cache import paths
from unlearn_utils.runner import notebooks
from unlearn_utils.runner.places import Places


def record(places: Places, notebook: Path, started_from: str, minutes: float) -> None:
    """Record an execution.

    Args:
        places: of the run.
        notebook: its source.
        started_from: its `inputs` as they were before.
        minutes: how long it took.
    """
    made = {
        "inputs": started_from,
        "outputs": outputs(places, notebook),
        "minutes": round(minutes, 3),
    }
    places.write(places.stamp(notebook), json.dumps(made, indent=1))


def unchanged(places: Places, notebook: Path) -> bool:
    """Return whether the last execution had these inputs, and its outputs are still there.

    An output that is no longer what it wrote is set aside.
    """
    last = _recorded(places, places.stamp(notebook))
    if last is None or last["inputs"] != inputs(places.profile, notebook):
        return False
    here = outputs(places, notebook)
    if last["outputs"] == here:
        return True
    _set_changed_aside(places, notebook, last["outputs"], here)
    return False


def _recorded(places: Places, stamp: Path) -> dict | None:
    """Return what is recorded of an execution, if anything is; a damaged record is set aside."""
    if not stamp.exists():
        return None
    try:
        last = json.loads(stamp.read_text(encoding="utf-8"))
        float(last["minutes"]), str(last["inputs"]), {**last["outputs"]}
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        places.set_aside(stamp, f"is no record of an execution ({error})")
        return None
    return last


def make_way(places: Places, notebook: Path) -> None:
    """Set aside what is no file in the place of an output, before a notebook writes there."""
    for path in _written(places, notebook):
        if not path.is_file():
            places.set_aside(path, "is no file")


def _set_changed_aside(places: Places, notebook: Path, recorded: Mapping, here: Mapping) -> None:
    """Set aside the outputs that are not as recorded; say which are lost."""
    for path in _written(places, notebook):
        own_source = path == notebook  # of the committed profile, which rewrites it
        before = recorded.get(path.name, here[path.name])
        if here[path.name] != before and not own_source:
            places.set_aside(path, "is not what its notebook wrote")
    for name in sorted(recorded.keys() - here.keys()):
        print(f"{name} is gone; it is made again", file=sys.stderr)


def summarise(places: Places) -> None:
    """Write `runs/PROFILE/run.csv`: minutes of each notebook's last execution, never the same."""
    lines = ["notebook,minutes"]
    for stamp in sorted((places.folder / "stamps").glob("*.json")):
        last = _recorded(places, stamp)
        if last:
            lines.append(f"{stamp.stem},{last['minutes']}")
    places.write(places.folder / "run.csv", "\n".join(lines) + "\n")


def inputs(profile: str, notebook: Path) -> str:
    """Return a hash of all that decides a notebook's outputs.

    That is its cells, the package, the pins, Python, the profile, the precision, the folders that
    are read, and the committed tables of other profiles.
    """
    cells = []
    for cell in notebooks.read(notebook)["cells"]:
        cells.append((cell["cell_type"], "".join(cell["source"]), cell["metadata"].get("tags")))
    package = sorted((paths.PROJECT / "unlearn_utils").rglob("*.py"))
    read = (*package, paths.MANIFEST, paths.LOCK, *committed_tables(profile))
    files = [file for file in read if file.exists()]
    made_by = [
        cells,
        [file_hash(file) for file in files],
        sys.version_info[:2],
        repr(profiles.profile(profile)),
        str(paths.hub_mirror()),
        str(paths.store_folder()),
        paths.precision(),
    ]
    return sha256(json.dumps(made_by).encode()).hexdigest()


def committed_tables(profile: str) -> list[Path]:
    """Return the committed tables that a notebook may read beside those of its own run."""
    found = []
    for owner in (profiles.STUDY.name, profiles.PUBLISHED.name):
        if owner != profile:
            found += sorted(paths.own_figures(paths.PROJECT, owner).glob("*.csv"))
    return found


def outputs(places: Places, notebook: Path) -> dict[str, str]:
    """Return hashes of the executed notebook, its figures and tables, which carry its number."""
    hashes = {}
    for path in _written(places, notebook):
        hash_of = notebook_hash if path.suffix == ".ipynb" else file_hash
        hashes[path.name] = hash_of(path)
    return hashes


def _written(places: Places, notebook: Path) -> list[Path]:
    """Return the outputs of a notebook that are there."""
    number = notebook.name[:2]
    figures = paths.figures_folder(places.profile)
    written = [*figures.glob(f"fig{number}_*"), *figures.glob(f"table{number}_*")]
    written = sorted(path for path in written if path.suffix != paths.ASIDE)
    executed = places.executed(notebook)
    return [*written, executed] if executed.exists() else written


def notebook_hash(path: Path) -> str:
    """Return a hash of a notebook's sources and outputs, or of the file if it is no notebook.

    Metadata are left out: JupyterLab changes them when a notebook is merely opened.
    """
    try:
        notebook = notebooks.read(path)
    except ValueError:
        return file_hash(path)
    cells = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        cells.append((source, cell.get("execution_count"), cell.get("outputs")))
    return sha256(json.dumps(cells, sort_keys=True).encode()).hexdigest()


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal; of what is no file there is none."""
    return sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
