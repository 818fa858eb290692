"""Execute the numbered notebooks in order, one printed line each, and compare the tables with the committed ones.

A profile's name is all that differs between runs. `laptop` rewrites `notebooks/` and `figures/`, whose outputs are committed;
every other profile writes copies below `runs/PROFILE/`.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

from unlearn_utils import expected, profiles
from unlearn_utils.memory import PeakMemory

ROOT = Path(__file__).resolve().parents[1]
COMMITTED = "laptop"  # the profile whose outputs are committed


# ------------------------------------------------------------------------------------------------ one run


def run(root: Path, profile: str, only: str | None = None, start: str | None = None, fresh: bool = False) -> int:
    """Execute the notebooks of a profile and say where the results lie.

    Args:
        root: the repository, with `notebooks/NN_name.ipynb`.
        profile: a name in `profiles.PROFILES`.
        only, start: the number of the only, or of the first, notebook to execute.
        fresh: ignore stored results and what an earlier run left.

    Returns:
        0; 1 if a notebook failed; 130 if interrupted.

    Raises:
        ValueError: unknown profile or number. FileNotFoundError: no notebooks.
    """
    offline = profiles.profile(profile).corpus.source == "embedded"
    paths = select(sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb")), only, start)
    began = time.time()
    prepare(root, profile, offline, fresh)
    with PeakMemory() as memory:
        for position, path in enumerate(paths, 1):
            code = step(root, profile, path, f"[{position:02}/{len(paths):02}] {title(path)}", memory, fresh)
            if code:
                return code
    write_summary(root, profile)
    report(root, profile, (time.time() - began) / 60, memory.highest)
    if profile == COMMITTED:
        print(expected.comparison(root, Path(os.environ["UNLEARN_FIGURES"])))
    return 0


def select(paths: list[Path], only: str | None, start: str | None) -> list[Path]:
    """The notebook numbered `only`, or those from `start` on, or all."""
    if not paths:
        raise FileNotFoundError("no notebooks/NN_name.ipynb here")
    asked = only or start
    if asked is None:
        return paths
    numbers = [path.name[:2] for path in paths]
    if asked.zfill(2) not in numbers:
        raise ValueError(f"no notebook {asked}; there are: {' '.join(numbers)}")
    first = numbers.index(asked.zfill(2))
    return paths[first : first + 1] if only else paths[first:]


def prepare(root: Path, profile: str, offline: bool, fresh: bool) -> None:
    """Set what the kernels inherit. They run in this interpreter, and read nothing of the user's Jupyter or IPython."""
    from ipykernel.kernelspec import get_kernel_dict

    runs = root / "runs"
    quiet = "--IPKernelApp.log_level=50"  # else every kernel warns that it speaks plain TCP, on the loopback
    spec = get_kernel_dict() | {"display_name": "Python 3", "argv": [*get_kernel_dict()["argv"], quiet]}
    write(runs / "kernels" / "kernels" / "python3" / "kernel.json", json.dumps(spec))
    figures = root / "figures" if profile == COMMITTED else runs / profile / "figures"
    for name, default in {"UNLEARN_FIGURES": figures, "UNLEARN_STORE": runs / "store"}.items():
        os.environ[name] = str(Path(os.environ.get(name) or default).resolve())  # absolute: kernels work in notebooks/
    Path(os.environ["UNLEARN_FIGURES"]).mkdir(parents=True, exist_ok=True)
    os.environ["JUPYTER_PATH"] = os.pathsep.join([str(runs / "kernels"), *filter(None, [os.environ.get("JUPYTER_PATH")])])
    os.environ |= {"JUPYTER_RUNTIME_DIR": str(runs / "kernels" / "runtime"), "IPYTHONDIR": str(runs / "kernels" / "ipython")}
    os.environ |= {"PYDEVD_DISABLE_FILE_VALIDATION": "1", "TOKENIZERS_PARALLELISM": "false"}
    if offline:
        os.environ |= dict.fromkeys(("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"), "1")
    if fresh:  # the store takes what is older than this for missing
        os.environ["UNLEARN_FRESH"] = str(time.time())
    os.environ.pop("MPLBACKEND", None)  # Agg would leave the figures out of the notebooks


def step(root: Path, profile: str, path: Path, label: str, memory: PeakMemory, fresh: bool) -> int:
    """One notebook: skipped if nothing changed, else executed and stamped; returns the exit code."""
    stamp = root / "runs" / profile / "stamps" / f"{path.name[:2]}.json"
    inputs = inputs_hash(root, profile, path)
    if not fresh and unchanged(stamp, inputs, outputs_hash(root, profile, path)):
        print(f"{label:<60}  unchanged", flush=True)
        return 0
    if sys.stdout.isatty():
        print(label, end="\r", flush=True)
    memory.restart()
    began = time.time()
    code = execute(root, profile, path, label)
    minutes = (time.time() - began) / 60
    if code == 0:
        budget = metadata(path).get("expected_minutes", {}).get(profile)
        print(f"{label:<60} {minutes:5.1f} min" + (f" (expected {budget:.1f})" if budget else ""), flush=True)
        measures = {"minutes": round(minutes, 3), "peak_gb": round(memory.peak, 3)}
        write(stamp, json.dumps({"inputs": inputs, "outputs": outputs_hash(root, profile, path)} | measures, indent=1))
    return code


# ------------------------------------------------------------------------------------------- one notebook


def target(root: Path, profile: str, path: Path) -> Path:
    """Where the executed notebook goes."""
    return path if profile == COMMITTED else root / "runs" / profile / path.name


def execute(root: Path, profile: str, path: Path, label: str) -> int:
    """Execute one notebook into a temporary file; moved into place on success, into `failed/` otherwise."""
    import nbformat
    from nbclient.exceptions import DeadKernelError
    from papermill import PapermillExecutionError, execute_notebook

    running = root / "runs" / profile / "running" / path.name
    failed = root / "runs" / profile / "failed" / path.name
    running.parent.mkdir(parents=True, exist_ok=True)
    settings = {"kernel_name": "python3", "language": "python", "cwd": path.parent, "progress_bar": False, "coalesce_streams": True}
    settings["parameters"] = {} if profile == COMMITTED else {"PROFILE": profile}
    try:
        executed = execute_notebook(path, running, **settings)
    except KeyboardInterrupt:
        running.unlink(missing_ok=True)
        print(f"\ninterrupted in notebook {path.name}; what was stored is kept, the same command goes on from there", file=sys.stderr)
        return 130
    except (PapermillExecutionError, DeadKernelError) as error:
        failed.parent.mkdir(parents=True, exist_ok=True)
        os.replace(running, failed)
        print(f"{label:<60}  failed", flush=True)
        print(f"error: {path.name}, {where(failed)}: {last_line(error)}", file=sys.stderr)
        print(f"the notebook as far as it ran: {shown(failed, root)}", file=sys.stderr)
        return 1
    write(target(root, profile, path), nbformat.writes(scrub(executed)) + "\n")
    running.unlink()
    failed.unlink(missing_ok=True)
    return 0


def where(failed: Path) -> str:
    """The number and the first line of the cell that was running when a notebook stopped."""
    cells = [cell for cell in read(failed)["cells"] if cell["cell_type"] == "code"]
    started = [(n, cell) for n, cell in enumerate(cells, 1) if cell["metadata"].get("papermill", {}).get("start_time")]
    number, cell = started[-1]
    return f"code cell {number} ({''.join(cell['source']).strip().partition(chr(10))[0]})"


def last_line(error: Exception) -> str:
    """The name of an error and the last line of its message, without colours."""
    name, text = getattr(error, "ename", type(error).__name__), getattr(error, "evalue", str(error))
    lines = re.sub(r"\x1b\[[0-9;]*m", "", text).strip().splitlines() or [""]
    return f"{name}: {lines[-1]}"


def scrub(notebook: Any) -> Any:
    """Remove what differs from run to run although the results do not: timings, paths, versions; in place."""
    notebook.metadata.pop("papermill", None)
    notebook.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata.get("language_info", {}).pop("version", None)
    for cell in notebook.cells:
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
        if not cell.metadata.get("tags", True):
            del cell.metadata["tags"]
    return notebook


def read(path: Path) -> dict:
    """A notebook as plain JSON."""
    return json.loads(path.read_text(encoding="utf-8"))


def metadata(path: Path) -> dict:
    """A notebook's metadata, such as `expected_minutes` and `reads_only`."""
    return read(path)["metadata"]


def title(path: Path) -> str:
    """`02 Target and retrained models`, from the notebook's heading `# 02 · Target and retrained models`."""
    heading = next((re.match(r"# (\d\d) · (.+)", "".join(cell["source"])) for cell in read(path)["cells"]), None)
    return f"{heading[1]} {heading[2].strip()}" if heading else path.stem.replace("_", " ")


# ---------------------------------------------------------------------------------- what has not changed


def unchanged(stamp: Path, inputs: str, outputs: dict[str, str]) -> bool:
    """Did the last execution start from these inputs, and are its outputs still there?"""
    old = json.loads(stamp.read_text()) if stamp.exists() else {}
    return old.get("inputs") == inputs and old.get("outputs") == outputs


def inputs_hash(root: Path, profile: str, path: Path) -> str:
    """A hash of all that decides a notebook's outputs: its cells, the package, the pins, Python, profile, store."""
    cells = [(cell["cell_type"], "".join(cell["source"]), cell["metadata"].get("tags")) for cell in read(path)["cells"]]
    package = Path(__file__).parent
    files = [*sorted(package.rglob("*.py")), package / "manifest.csv", root / "requirements.lock"]
    parts = [file_hash(file) for file in files if file.exists()]
    made_by = [cells, parts, sys.version_info[:2], profile, os.environ["UNLEARN_STORE"]]
    return sha256(json.dumps(made_by).encode()).hexdigest()


def outputs_hash(root: Path, profile: str, path: Path) -> dict[str, str]:
    """Hashes of the executed notebook and of its figures and tables, which carry its number."""
    number, figures = path.name[:2], Path(os.environ["UNLEARN_FIGURES"])
    written = [*figures.glob(f"fig{number}_*"), *figures.glob(f"table{number}_*"), target(root, profile, path)]
    return {file.name: file_hash(file) for file in sorted(written) if file.exists()}


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    return sha256(path.read_bytes()).hexdigest()


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


# ----------------------------------------------------------------------------------------------- closing


def write_summary(root: Path, profile: str) -> None:
    """`runs/PROFILE/run.csv`: minutes and memory of the last execution of each notebook; these never repeat."""
    folder = root / "runs" / profile
    lines = ["notebook,minutes,peak_gb"]
    for stamp in sorted((folder / "stamps").glob("*.json")):
        made = json.loads(stamp.read_text())
        lines.append(f"{stamp.stem},{made['minutes']},{made['peak_gb']}")
    write(folder / "run.csv", "\n".join(lines) + "\n")


def report(root: Path, profile: str, minutes: float, peak: float) -> None:
    """Where everything lies, what it takes, how to remove it."""
    places = {
        "Notebooks": target(root, profile, root / "notebooks" / "NN").parent,
        "Figures": Path(os.environ["UNLEARN_FIGURES"]),
        "Results": Path(os.environ["UNLEARN_STORE"]),
    }
    print(f"\nDone in {minutes:.1f} min, peak memory {peak:.1f} GB (resident, summed over processes).")
    for name, path in places.items():
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) / 1e6
        print(f"{name:<10} {shown(path, root)}  ({size:.1f} MB)")
    made = "runs .venv" if (root / ".venv").exists() else "runs"
    print(f"Minutes and memory of each notebook: runs/{profile}/run.csv. To clean up: rm -rf {made}")


def shown(path: Path, root: Path) -> str:
    """A path relative to the repository where it lies inside."""
    return str(path.relative_to(root) if path.is_relative_to(root) else path)
