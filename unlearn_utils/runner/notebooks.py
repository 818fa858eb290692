"""One notebook: what its metadata say, and how it is executed."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

from unlearn_utils.cache.paths import write_whole
from unlearn_utils.runner.places import COMMITTED, Places

# ------------------------------------------------------------------------------ what it says


def read(path: Path) -> dict:
    """Return a notebook as plain JSON."""
    return json.loads(path.read_text(encoding="utf-8"))


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

    running = places.running(notebook)
    running.parent.mkdir(parents=True, exist_ok=True)
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
        )
    except (PapermillExecutionError, DeadKernelError) as error:
        _keep_failed(places, notebook, label, error)
        return 1
    clean(executed)
    write_whole(places.executed(notebook), nbformat.writes(executed) + "\n")
    running.unlink()
    places.failed(notebook).unlink(missing_ok=True)
    return 0


def _keep_failed(places: Places, notebook: Path, label: str, error: Exception) -> None:
    """Keep a notebook as far as it ran, and say where it failed."""
    failed = places.failed(notebook)
    failed.parent.mkdir(parents=True, exist_ok=True)
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
