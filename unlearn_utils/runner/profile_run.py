"""A run of a profile: its notebooks in order, one printed line each, and what came of it.

Neighbours whose metadata say `side_by_side` are executed at once, a core each. An artifact that two
of them need is computed by one while the other waits for it. A profile's name is all that differs
between runs. `laptop` rewrites `notebooks/` and `figures/`, whose outputs are committed; every
other profile writes copies below `runs/PROFILE/`.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import psutil

from unlearn_utils import profiles
from unlearn_utils.cache import paths
from unlearn_utils.cache.memory import PeakMemory
from unlearn_utils.data import hub
from unlearn_utils.profiles import Profile
from unlearn_utils.runner import expected, kernels, notebooks, stamps
from unlearn_utils.runner.places import COMMITTED, Places

INTERRUPTED = 130  # exit code, as of a shell
SUMMARY = "00"  # the notebook that sums up the others: it comes last


# ----------------------------------------------------------------------------------- the whole run


def run(
    root: Path,
    profile: str,
    only: str | None = None,
    start: str | None = None,
    fresh: bool = False,
) -> int:
    """Execute the notebooks of a profile, and say where the results lie.

    Args:
        root: the repository, with `notebooks/NN_name.ipynb`.
        profile: a name in `profiles.PROFILES`.
        only: the number of the only notebook to execute.
        start: the number of the first notebook to execute.
        fresh: ignore stored results and what an earlier run left.

    Returns:
        The exit code: 0; 1 if a notebook failed; 130 if interrupted.

    Raises:
        ValueError: unknown profile or number.
        FileNotFoundError: no notebooks; a published model or data set that is not to be had.
    """
    chosen = profiles.profile(profile)
    selected = select(sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb")), only, start)
    selected.sort(key=lambda path: path.name.startswith(SUMMARY))
    hub.fetch(chosen)
    places = Places(root, profile)
    began = time.time()
    kernels.prepare(places, fresh)
    with PeakMemory() as memory:
        code = execute_all(places, selected, fresh)
    if code:
        clean_up(places, code)
        return code
    stamps.summarise(places)
    print_report(places, (time.time() - began) / 60, memory.peak)
    if profile == COMMITTED:
        print_text(chosen)
        print(expected.comparison(root, paths.figures_folder(profile)))
    return 0


def print_text(profile: Profile) -> None:
    """Say so where the embedded corpus is not the text of the committed values."""
    from unlearn_utils.data import manifest  # pandas, which no other step of a run needs

    if profile.corpus.source == "embedded" and not manifest.is_as_committed():
        print(
            f"Python {platform.python_version()} ships another text than that of the committed "
            "values (notebook 01), so they need not agree."
        )


def select(every: list[Path], only: str | None, start: str | None) -> list[Path]:
    """Return the notebook numbered `only`, or those from `start` on, or all.

    Raises:
        FileNotFoundError: there are no notebooks.
        ValueError: none has that number; the message lists the numbers.
    """
    if not every:
        raise FileNotFoundError("no notebooks/NN_name.ipynb here")
    asked = only or start
    if asked is None:
        return every
    numbers = [path.name[:2] for path in every]
    if asked.zfill(2) not in numbers:
        raise ValueError(f"no notebook {asked}; there are: {' '.join(numbers)}")
    first = numbers.index(asked.zfill(2))
    if only:
        return [every[first]]
    return every[first:]


def execute_all(places: Places, selected: Sequence[Path], fresh: bool) -> int:
    """Execute the notebooks, group after group, until one fails; return the exit code."""
    labels = {}
    for position, path in enumerate(selected, 1):
        labels[path] = f"[{position:02}/{len(selected):02}] {notebooks.title(path)}"
    try:
        for group in groups(selected):
            code = execute_group(places, group, labels, fresh)
            if code:
                return code
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def groups(selected: Sequence[Path]) -> list[list[Path]]:
    """Return neighbours that may run side by side together, every other notebook by itself."""
    found = []
    may_join = False
    for path in selected:
        side_by_side = notebooks.metadata(path).get("side_by_side", False)
        if side_by_side and may_join:
            found[-1].append(path)
        else:
            found.append([path])
        may_join = side_by_side
    return found


# --------------------------------------------------------------------------------------- one group


def execute_group(
    places: Places, group: Sequence[Path], labels: Mapping[Path, str], fresh: bool
) -> int:
    """Execute what changed of a group, and return the exit code.

    As many run at once as the profile has workers, which they share. The longest go first, so that
    no core waits for the last one; those that only read results go last.
    """

    def order(path: Path) -> tuple[bool, float]:
        reads_only = notebooks.metadata(path).get("reads_only", False)
        return reads_only, -(notebooks.expected_minutes(path, places.profile) or 0)

    changed = []
    for path in group:
        if fresh or not stamps.unchanged(places, path):
            changed.append(path)
        else:
            print(f"{labels[path]:<60}  unchanged", flush=True)
    changed.sort(key=order)
    cores = profiles.profile(places.profile).workers
    at_once = min(len(changed), cores)
    if at_once > 1:
        return _side_by_side(places, changed, labels, at_once, cores // at_once)
    for path in changed:
        code = execute_and_stamp(places, path, labels[path], cores)
        if code:
            return code
    return 0


def execute_and_stamp(places: Places, notebook: Path, label: str, cores: int) -> int:
    """Execute one notebook and record it; return the exit code.

    cores: how many workers it may start.
    """
    os.environ[paths.WORKERS] = str(cores)
    if sys.stdout.isatty():
        print(label, end="\r", flush=True)
    inputs = stamps.inputs(places.profile, notebook)
    began = time.time()
    code = notebooks.execute(places, notebook, label)
    if code:
        return code
    minutes = (time.time() - began) / 60
    line = f"{label:<60} {minutes:5.1f} min"
    budget = notebooks.expected_minutes(notebook, places.profile)
    if budget:
        line += f" (expected {budget:.1f})"
    print(line, flush=True)
    stamps.record(places, notebook, inputs, minutes)
    return 0


def _side_by_side(
    places: Places,
    changed: Sequence[Path],
    labels: Mapping[Path, str],
    at_once: int,
    cores: int,
) -> int:
    """Execute notebooks at once, each in a process of its own, until one fails."""
    started: list[psutil.Popen] = []
    pool = ThreadPoolExecutor(at_once)
    calls = []
    for path in changed:
        words = ["notebook", places.root, places.profile, path, labels[path], cores]
        calls.append(pool.submit(_in_a_process, [str(word) for word in words], started))
    try:
        for call in as_completed(calls):
            if call.result():
                return call.result()
        return 0
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in started:
            _kill(process)


def _in_a_process(words: Sequence[str], started: list[psutil.Popen]) -> int:
    """Return the exit code of a command of this package in a process of its own.

    An interrupt from the keyboard does not reach that process.
    """
    command = [sys.executable, "-m", "unlearn_utils", *words]
    process = psutil.Popen(command, env=dict(os.environ), start_new_session=True)
    started.append(process)
    return process.wait()


def _kill(process: psutil.Popen) -> None:
    """End a process and its kernel, if it still runs."""
    if process.poll() is not None:
        return
    for one in [*process.children(recursive=True), process]:
        one.kill()


# ----------------------------------------------------------------------------------------- closing


def clean_up(places: Places, code: int) -> None:
    """Remove what was half-written, and say so if the run was interrupted."""
    halves = sorted((places.folder / "running").glob("*.ipynb"))
    for path in halves:
        path.unlink()
    if code == INTERRUPTED:
        names = " and ".join(path.name for path in halves)
        kept = "what was stored is kept, the same command goes on from there"
        print(f"\ninterrupted in notebook {names}; {kept}", file=sys.stderr)


def print_report(places: Places, minutes: float, peak: float) -> None:
    """Print where everything lies, what it takes, and how to remove it.

    peak: memory in GB.
    """
    lie_in = {
        "Notebooks": places.executed(places.root / "notebooks" / "NN").parent,
        "Figures": paths.figures_folder(places.profile),
        "Results": paths.store_folder(),
    }
    memory = f"peak memory {peak:.1f} GB (resident, summed over processes)"
    print(f"\nDone in {minutes:.1f} min, {memory}.")
    for name, folder in lie_in.items():
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        print(f"{name:<10} {places.shown(folder)}  ({size / 1e6:.1f} MB)")
    made = "runs"
    if (places.root / ".venv").exists():
        made = "runs .venv"
    times = places.folder / "run.csv"
    print(f"Minutes of each notebook: {places.shown(times)}. To clean up: rm -rf {made}")
