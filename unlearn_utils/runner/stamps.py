"""The last execution of each notebook: what it started from and what it wrote, so that what did not change is not run again."""

from __future__ import annotations

import json
import os
import sys
from hashlib import sha256
from pathlib import Path

from unlearn_utils import profiles
from unlearn_utils.cache import paths


def stamp(root: Path, profile: str, path: Path) -> Path:
    """Where the last execution of a notebook is recorded."""
    return root / "runs" / profile / "stamps" / f"{path.name[:2]}.json"


def record(root: Path, profile: str, path: Path, executed: Path, started_from: str, minutes: float) -> None:
    """Records an execution: `inputs` as they were before it, outputs as they are now, minutes."""
    made = {"inputs": started_from, "outputs": outputs(path, executed), "minutes": round(minutes, 3)}
    paths.write_whole(stamp(root, profile, path), json.dumps(made, indent=1))


def unchanged(root: Path, profile: str, path: Path, executed: Path) -> bool:
    """Did the last execution start from these inputs, and are its outputs still there?"""
    file = stamp(root, profile, path)
    old = json.loads(file.read_text()) if file.exists() else {}
    return old.get("inputs") == inputs(profile, path) and old.get("outputs") == outputs(path, executed)


def summarise(root: Path, profile: str) -> None:
    """`runs/PROFILE/run.csv`: minutes of the last execution of each notebook; these never repeat."""
    folder = root / "runs" / profile
    rows = [f"{file.stem},{json.loads(file.read_text())['minutes']}" for file in sorted((folder / "stamps").glob("*.json"))]
    paths.write_whole(folder / "run.csv", "\n".join(["notebook,minutes", *rows]) + "\n")


def inputs(profile: str, path: Path) -> str:
    """A hash of all that decides a notebook's outputs: its cells, the package, the pins, Python, profile, store."""
    cells = [(cell["cell_type"], "".join(cell["source"]), cell["metadata"].get("tags")) for cell in read(path)["cells"]]
    package = Path(__file__).resolve().parents[1]
    files = [*sorted(package.rglob("*.py")), package / "data" / "manifest.csv", package.parent / "requirements.lock"]
    parts = [file_hash(file) for file in files if file.exists()]
    made_by = [cells, parts, sys.version_info[:2], repr(profiles.profile(profile)), os.environ.get(paths.HUB), os.environ["UNLEARN_STORE"]]
    return sha256(json.dumps(made_by).encode()).hexdigest()


def outputs(path: Path, executed: Path) -> dict[str, str]:
    """Hashes of the executed notebook and of its figures and tables, which carry its number."""
    number, figures = path.name[:2], Path(os.environ["UNLEARN_FIGURES"])
    written = [*figures.glob(f"fig{number}_*"), *figures.glob(f"table{number}_*"), executed]
    return {file.name: file_hash(file) for file in sorted(written) if file.exists()}


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    return sha256(path.read_bytes()).hexdigest()


def read(path: Path) -> dict:
    """A notebook as plain JSON."""
    return json.loads(path.read_text(encoding="utf-8"))
