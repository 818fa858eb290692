"""One notebook: what its metadata say, and how it is executed."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unlearn_utils.cache.paths import remove
from unlearn_utils.runner.places import COMMITTED, Places

# ------------------------------------------------------------------------------ what it says


def read(path: Path) -> dict:
    """Return a notebook as plain JSON.

    Raises:
        ValueError: the file is no notebook.
    """
    back = f"git may have it: git checkout -- {path}"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no notebook ({error}); {back}") from error
    if not _has_cells(content):
        raise ValueError(f"{path} is no notebook (it has no cells); {back}")
    return content


def _has_cells(content: Any) -> bool:
    """Return whether some JSON is that of a notebook with cells."""
    if not isinstance(content, dict) or not isinstance(content.get("metadata"), dict):
        return False
    cells = content.get("cells")
    if not isinstance(cells, list) or not cells:
        return False
    of_a_cell = {"cell_type", "source", "metadata"}
    return all(isinstance(cell, dict) and of_a_cell <= cell.keys() for cell in cells)


def metadata(path: Path) -> dict:
    """Return a notebook's metadata, such as `reads_only` and `side_by_side`."""
    return read(path)["metadata"]


def expected_minutes(path: Path, profile: str) -> float | None:
    """Return how long a notebook takes with a profile, or None if nobody has said so."""
    return metadata(path).get("expected_minutes", {}).get(profile)


def title(path: Path) -> str:
    """Return `02 Target and retrained models`, of the heading `# 02 · Target and ...`."""
    first = read(path)["cells"][0]
    heading = re.match(r"# (\d\d) · (.+)", "".join(first["source"]))
    if heading is None:
        return path.stem.replace("_", " ")
    number, words = heading.groups()
    return f"{number} {words.strip()}"


# -------------------------------------------------------------------------- how it is executed


def execute(places: Places, notebook: Path, label: str) -> int:
    """Execute a notebook, and return the exit code: 1 if a cell failed.

    It is executed into a file of its own, which is moved into place on success, and into `failed/`
    otherwise; then two lines on stderr say where it failed.
    """
    import nbformat
    from nbclient.exceptions import DeadKernelError
    from papermill import PapermillExecutionError, execute_notebook
    from traitlets.config import Config

    connection = places.connections / f"kernel-{notebook.stem}.json"  # else it lies in /tmp
    running = places.running(notebook)
    for path in (running, connection, places.failed(notebook)):
        places.make_way(path.parent)
    for path in (running, connection):
        path.parent.mkdir(parents=True, exist_ok=True)
    parameters = {}
    if places.profile != COMMITTED:
        parameters["PROFILE"] = places.profile
    try:
        executed = execute_notebook(
            notebook,
            running,
            parameters=parameters,
            kernel_name="python3",
            language="python",
            cwd=notebook.parent,
            progress_bar=False,
            coalesce_streams=True,
            config=Config({"KernelManager": {"connection_file": str(connection)}}),
        )
    except (PapermillExecutionError, DeadKernelError) as error:
        _keep_failed(places, notebook, label, error)
        return 1
    clean(executed)
    name_added_cells(executed, read(notebook))
    places.write(places.executed(notebook), nbformat.writes(executed) + "\n")
    running.unlink()
    remove(places.failed(notebook))
    return 0


def _keep_failed(places: Places, notebook: Path, label: str, error: Exception) -> None:
    """Keep a notebook as far as it ran, and say where it failed."""
    failed = places.failed(notebook)
    failed.parent.mkdir(parents=True, exist_ok=True)
    remove(failed)
    os.replace(places.running(notebook), failed)
    print(f"{label:<60}  failed", flush=True)
    print(f"error: {notebook.name}, {failed_cell(failed)}: {last_line(error)}", file=sys.stderr)
    print(f"the notebook as far as it ran: {places.shown(failed)}", file=sys.stderr)


def failed_cell(notebook: Path) -> str:
    """Return the number and the first line of the cell that was running when a notebook stopped."""
    last = "no cell"
    number = 0
    for cell in read(notebook)["cells"]:
        if cell["cell_type"] != "code":
            continue
        number += 1
        if cell["metadata"].get("papermill", {}).get("start_time"):
            first_line = "".join(cell["source"]).strip().partition("\n")[0]
            last = f"code cell {number} ({first_line})"
    return last


def last_line(error: Exception) -> str:
    """Return the name of an error and the last line of its message, without colours."""
    name = getattr(error, "ename", type(error).__name__)
    text = getattr(error, "evalue", str(error))
    lines = re.sub(r"\x1b\[[0-9;]*m", "", text).strip().splitlines() or [""]
    return f"{name}: {lines[-1]}"


def clean(notebook: Any) -> None:
    """Remove what differs from run to run although the results do not: times, paths, versions.

    notebook: of nbformat; changed in place.
    """
    notebook.metadata.pop("papermill", None)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata["kernelspec"] = kernel
    notebook.metadata.get("language_info", {}).pop("version", None)
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        if not cell.metadata.get("tags", True):
            del cell.metadata["tags"]


def name_added_cells(notebook: Any, source: Mapping) -> None:
    """Give a cell that its source does not have, such as the parameters of a run, a fixed id.

    Args:
        notebook: of nbformat; changed in place. It has random ids for such cells.
        source: what it was executed from.
    """
    known = {cell.get("id") for cell in source["cells"]}
    for place, cell in enumerate(notebook.cells):
        if cell.get("id") not in known:
            cell["id"] = f"added-{place}"
