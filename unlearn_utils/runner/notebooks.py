"""Execute the numbered notebooks in order, one printed line each, and compare the tables with the committed ones.

Neighbours whose metadata say `side_by_side` run at once, a core each. A step that two of them need is computed by one while the other
waits for it. A profile's name is all that differs between runs. `laptop` rewrites `notebooks/` and `figures/`, whose outputs are committed;
every other profile writes copies below `runs/PROFILE/`.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import groupby
from pathlib import Path
from typing import Any

import psutil

from unlearn_utils import profiles
from unlearn_utils.cache import paths, workers
from unlearn_utils.cache.memory import PeakMemory
from unlearn_utils.cache.paths import write_whole
from unlearn_utils.data import hub
from unlearn_utils.runner import expected, stamps
from unlearn_utils.runner.stamps import read

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
        ValueError: unknown profile or number. FileNotFoundError: no notebooks; a published model or dataset that is not to be had.
    """
    chosen = profiles.profile(profile)
    paths = select(sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb")), only, start)
    paths.sort(key=lambda path: path.name[:2] == "00")  # it sums up the others: last
    hub.fetch(chosen)
    began = time.time()
    prepare(root, profile, fresh)
    labels = {path: f"[{position:02}/{len(paths):02}] {title(path)}" for position, path in enumerate(paths, 1)}
    with PeakMemory() as memory:
        try:
            code = next((code for group in groups(paths) if (code := beside(root, profile, group, labels, fresh))), 0)
        except KeyboardInterrupt:
            code = 130
    if code:
        return stopped(root / "runs" / profile / "running", code)
    stamps.summarise(root, profile)
    report(root, profile, (time.time() - began) / 60, memory.peak)
    if profile == COMMITTED:
        print(expected.comparison(root, Path(os.environ["UNLEARN_FIGURES"])))
    return 0


def groups(paths: list[Path]) -> list[list[Path]]:
    """Neighbours that may run side by side together, every other notebook by itself."""
    found = groupby(enumerate(paths), lambda item: "beside" if metadata(item[1]).get("side_by_side") else item[0])
    return [[path for _, path in group] for _, group in found]


def beside(root: Path, profile: str, group: list[Path], labels: dict[Path, str], fresh: bool) -> int:
    """Executes what changed of a group, as many at once as the profile has workers, which they share; returns an exit code.

    The longest go first, so that no core waits for the last one; those that only read results go last."""
    changed = [path for path in group if fresh or not stamps.unchanged(root, profile, path, target(root, profile, path))]
    changed.sort(key=lambda path: (metadata(path).get("reads_only", False), -metadata(path).get("expected_minutes", {}).get(profile, 0)))
    for path in group:
        if path not in changed:
            print(f"{labels[path]:<60}  unchanged", flush=True)
    cores = profiles.profile(profile).workers
    lanes = max(1, min(len(changed), cores))
    if lanes == 1:
        return next((code for path in changed if (code := step(root, profile, path, labels[path], cores))), 0)
    pool, started = ThreadPoolExecutor(lanes), []
    asked = [["step", root, profile, path, labels[path], cores // lanes] for path in changed]
    calls = [pool.submit(in_a_process, [str(word) for word in words], started) for words in asked]
    try:
        return next((call.result() for call in as_completed(calls) if call.result()), 0)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in started:
            kill(process)


def in_a_process(words: list[str], started: list[psutil.Popen]) -> int:
    """The exit code of a command of this package in a process of its own, which an interrupt from the keyboard does not reach."""
    started.append(psutil.Popen([sys.executable, "-m", "unlearn_utils", *words], env=dict(os.environ), start_new_session=True))
    return started[-1].wait()


def kill(process: psutil.Popen) -> None:
    """Ends a process and its kernel, if it still runs."""
    if process.poll() is None:
        for one in [*process.children(recursive=True), process]:
            one.kill()


def stopped(running: Path, code: int) -> int:
    """Removes what was half-written; says so if the run was interrupted."""
    halves = sorted(running.glob("*.ipynb"))
    for path in halves:
        path.unlink()
    if code == 130:
        names = " and ".join(path.name for path in halves)
        print(f"\ninterrupted in notebook {names}; what was stored is kept, the same command goes on from there", file=sys.stderr)
    return code


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


def figures(root: Path, profile: str) -> Path:
    """Where a profile's figures and tables go."""
    return {COMMITTED: root / "figures", "study": root / "figures" / "study"}.get(profile, root / "runs" / profile / "figures")


def prepare(root: Path, profile: str, fresh: bool) -> None:
    """Set what the kernels inherit. They run in this interpreter, offline, and read nothing of the user's Jupyter or IPython."""
    from ipykernel.kernelspec import get_kernel_dict

    runs = root / "runs"
    quiet = "--IPKernelApp.log_level=50"  # else every kernel warns that it speaks plain TCP, on the loopback
    spec = get_kernel_dict() | {"display_name": "Python 3", "argv": [*get_kernel_dict()["argv"], quiet]}
    write_whole(runs / "kernels" / "kernels" / "python3" / "kernel.json", json.dumps(spec))
    for name, default in {"UNLEARN_FIGURES": figures(root, profile), "UNLEARN_STORE": runs / "store"}.items():
        os.environ[name] = str(Path(os.environ.get(name) or default).resolve())  # absolute: kernels work in notebooks/
    Path(os.environ["UNLEARN_FIGURES"]).mkdir(parents=True, exist_ok=True)
    os.environ["UNLEARN_PROGRESS"] = str(runs / profile / "progress.txt")
    write_whole(runs / profile / "progress.txt", "")
    os.environ["JUPYTER_PATH"] = os.pathsep.join([str(runs / "kernels"), *filter(None, [os.environ.get("JUPYTER_PATH")])])
    os.environ |= {"JUPYTER_RUNTIME_DIR": str(runs / "kernels" / "runtime"), "IPYTHONDIR": str(runs / "kernels" / "ipython")}
    os.environ |= {"PYDEVD_DISABLE_FILE_VALIDATION": "1", "TOKENIZERS_PARALLELISM": "false", **workers.KEEP_FREED}
    # tqdm, which several libraries import, asks for a package that only draws its bars: the request
    # would stand in the outputs.
    os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"
    os.environ |= dict.fromkeys(hub.OFFLINE, "1")  # what a profile reads from the hub is there by now
    for name in (paths.HUB, paths.BOOKS):
        if os.environ.get(name):
            os.environ[name] = str(Path(os.environ[name]).resolve())
    if fresh:  # the store takes what is older than this for missing
        os.environ["UNLEARN_FRESH"] = str(time.time())
    os.environ.pop("MPLBACKEND", None)  # Agg would leave the figures out of the notebooks


def step(root: Path, profile: str, path: Path, label: str, cores: int) -> int:
    """One notebook, executed with so many workers of its own, and stamped; returns the exit code."""
    os.environ["UNLEARN_WORKERS"] = str(cores)
    if sys.stdout.isatty():
        print(label, end="\r", flush=True)
    inputs, began = stamps.inputs(profile, path), time.time()
    code = execute(root, profile, path, label)
    minutes = (time.time() - began) / 60
    if code == 0:
        budget = metadata(path).get("expected_minutes", {}).get(profile)
        print(f"{label:<60} {minutes:5.1f} min" + (f" (expected {budget:.1f})" if budget else ""), flush=True)
        stamps.record(root, profile, path, target(root, profile, path), inputs, minutes)
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
    except (PapermillExecutionError, DeadKernelError) as error:
        failed.parent.mkdir(parents=True, exist_ok=True)
        os.replace(running, failed)
        print(f"{label:<60}  failed", flush=True)
        print(f"error: {path.name}, {where(failed)}: {last_line(error)}", file=sys.stderr)
        print(f"the notebook as far as it ran: {shown(failed, root)}", file=sys.stderr)
        return 1
    write_whole(target(root, profile, path), nbformat.writes(scrub(executed)) + "\n")
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


def metadata(path: Path) -> dict:
    """A notebook's metadata, such as `expected_minutes` and `reads_only`."""
    return read(path)["metadata"]


def title(path: Path) -> str:
    """`02 Target and retrained models`, from the notebook's heading `# 02 · Target and retrained models`."""
    heading = next((re.match(r"# (\d\d) · (.+)", "".join(cell["source"])) for cell in read(path)["cells"]), None)
    return f"{heading[1]} {heading[2].strip()}" if heading else path.stem.replace("_", " ")


# ----------------------------------------------------------------------------------------------- closing


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
    print(f"Minutes of each notebook: runs/{profile}/run.csv. To clean up: rm -rf {made}")


def shown(path: Path, root: Path) -> str:
    """A path relative to the repository where it lies inside."""
    return str(path.relative_to(root) if path.is_relative_to(root) else path)
