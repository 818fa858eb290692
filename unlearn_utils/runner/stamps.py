"""The last execution of each notebook: what it started from and what it wrote.

What has not changed since is not executed again.
"""

from __future__ import annotations

import json
import sys
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
    paths.write_whole(places.stamp(notebook), json.dumps(made, indent=1))


def unchanged(places: Places, notebook: Path) -> bool:
    """Return whether the last execution had these inputs, and its outputs are still there."""
    stamp = places.stamp(notebook)
    if not stamp.exists():
        return False
    last = json.loads(stamp.read_text())
    same_inputs = last.get("inputs") == inputs(places.profile, notebook)
    return same_inputs and last.get("outputs") == outputs(places, notebook)


def summarise(places: Places) -> None:
    """Write `runs/PROFILE/run.csv`: minutes of each notebook's last execution, never the same."""
    lines = ["notebook,minutes"]
    for stamp in sorted((places.folder / "stamps").glob("*.json")):
        minutes = json.loads(stamp.read_text())["minutes"]
        lines.append(f"{stamp.stem},{minutes}")
    paths.write_whole(places.folder / "run.csv", "\n".join(lines) + "\n")


def inputs(profile: str, notebook: Path) -> str:
    """Return a hash of all that decides a notebook's outputs.

    That is its cells, the package, the pins, Python, the profile, the precision and the folders
    that are read.
    """
    cells = []
    for cell in notebooks.read(notebook)["cells"]:
        cells.append((cell["cell_type"], "".join(cell["source"]), cell["metadata"].get("tags")))
    package = sorted((paths.PROJECT / "unlearn_utils").rglob("*.py"))
    files = [file for file in (*package, paths.MANIFEST, paths.LOCK) if file.exists()]
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


def outputs(places: Places, notebook: Path) -> dict[str, str]:
    """Return hashes of the executed notebook, its figures and tables, which carry its number."""
    number = notebook.name[:2]
    figures = paths.figures_folder(places.profile)
    written = [*figures.glob(f"fig{number}_*"), *figures.glob(f"table{number}_*")]
    hashes = {file.name: file_hash(file) for file in sorted(written)}
    executed = places.executed(notebook)
    if executed.exists():
        hashes[executed.name] = notebook_hash(executed)
    return hashes


def notebook_hash(path: Path) -> str:
    """Return a hash of a notebook's sources and outputs, or of the file if it is no notebook.

    Metadata are left out: JupyterLab changes them when a notebook is merely opened.
    """
    try:
        notebook = notebooks.read(path)
    except json.JSONDecodeError:
        return file_hash(path)
    cells = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        cells.append((source, cell.get("execution_count"), cell.get("outputs")))
    return sha256(json.dumps(cells, sort_keys=True).encode()).hexdigest()


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    return sha256(path.read_bytes()).hexdigest()
