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
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from unlearn_utils import profiles
from unlearn_utils.cache import endings, paths
from unlearn_utils.cache.memory import PeakMemory
from unlearn_utils.data import hub
from unlearn_utils.profiles import Profile
from unlearn_utils.runner import expected, kernels, notebooks, stamps, step, upkeep
from unlearn_utils.runner.places import COMMITTED, Places

SUMMARY = "00"  # the notebook that sums up the others: it comes last
SECONDS_APART = 0.2  # between two looks at the steps that are running


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
        The exit code: 0; 1 if a notebook failed; 128 and its number if a signal ended the run.

    Raises:
        ValueError: unknown profile or number; a notebook is none; a variable cannot be followed.
        FileNotFoundError: no notebooks; a published model or data set that is not to be had.
    """
    chosen = profiles.profile(profile)
    every = sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    if chosen.notebooks:
        every = [path for path in every if path.name[:2] in chosen.notebooks]
    selected = select(every, only, start)
    selected.sort(key=lambda path: path.name.startswith(SUMMARY))
    places = Places(root, profile)
    labels = label(selected)
    upkeep.check(places)
    with_parts = bool(chosen.parts) and not (only or start or fresh)
    with endings.at_signals(endings.end_children):
        try:
            hub.fetch(chosen)
            with upkeep.alone(places):
                return _run(places, labels, fresh, with_parts)
        except endings.Ended as ended:
            return say_ended(ended, [])


def label(selected: Sequence[Path]) -> dict[Path, str]:
    """Return what is printed of each notebook.

    Raises:
        ValueError: one of them is no notebook.
    """
    labels = {}
    for position, path in enumerate(selected, 1):
        labels[path] = f"[{position:02}/{len(selected):02}] {notebooks.title(path)}"
    return labels


def _run(places: Places, labels: Mapping[Path, str], fresh: bool, with_parts: bool) -> int:
    """Execute notebooks as the only run of the profile, and say what came of it.

    Args:
        places: of the run.
        labels: what is printed of each notebook, in order.
        fresh: ignore what is there.
        with_parts: compute the profile in parts before, whose rows are written as each ends.
    """
    began = time.time()
    kernels.prepare(places, fresh)
    upkeep.sweep(places)
    try:
        with PeakMemory() as memory:
            code = compute_parts(places.profile) if with_parts else 0
            code = code or execute_all(places, labels, fresh)
    except endings.Ended as ended:
        return say_ended(ended, places.unfinished.glob("*.ipynb"))
    finally:
        upkeep.clear(places.unfinished)
    upkeep.say_damaged(places)
    if code:
        return code
    stamps.summarise(places)
    print_report(places, (time.time() - began) / 60, memory.peak)
    if places.profile == COMMITTED:
        print_text(profiles.profile(places.profile))
        print(expected.comparison(places.root, paths.figures_folder(places.profile)))
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


def compute_parts(profile: str) -> int:
    """Compute a profile in parts, in a step that says how far it is; return the exit code."""
    variables = {name: value for name, value in os.environ.items() if name != paths.PROGRESS}
    process = step.start(["compute", profile], variables)
    process.wait()
    return step.exit_code(process, f"the computation of {profile}")


def execute_all(places: Places, labels: Mapping[Path, str], fresh: bool) -> int:
    """Execute the notebooks, group after group, until one fails; return the exit code."""
    for group in groups(list(labels)):
        code = execute_group(places, group, labels, fresh)
        if code:
            return code
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
    stamps.make_way(places, notebook)
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
    """Execute notebooks at once, each as a step of its own, until one fails."""
    waiting = list(changed)
    running: dict[int, Path] = {}  # by process
    steps: list[psutil.Popen] = []
    while waiting or steps:
        while waiting and len(steps) < at_once:
            path = waiting.pop(0)
            words = ["notebook", places.root, places.profile, path, labels[path], cores]
            steps.append(step.start([str(word) for word in words], os.environ))
            running[steps[-1].pid] = path
        ended, steps = psutil.wait_procs(steps, timeout=SECONDS_APART)
        for process in ended:
            code = step.exit_code(process, running[process.pid].name)
            if code:
                endings.end_children()
                return code
    return 0


# ----------------------------------------------------------------------------------------- closing


def say_ended(ended: endings.Ended, unfinished: Iterable[Path]) -> int:
    """Say that a signal ended the run, and in which notebooks; return the exit code."""
    names = " and ".join(sorted(path.name for path in unfinished))
    where = f"interrupted in notebook {names}" if names else "interrupted"
    kept = "what was stored is kept, the same command goes on from there"
    with suppress(OSError):  # the terminal may be gone
        print(f"\n{where} ({ended.name}); {kept}", file=sys.stderr, flush=True)
    return ended.code


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
        print(f"{name:<10} {places.shown(folder)}  ({_megabytes(folder):.1f} MB)")
    made = "runs"
    if (places.root / ".venv").exists():
        made = "runs .venv"
    times = places.folder / "run.csv"
    print(f"Minutes of each notebook: {places.shown(times)}. To clean up: rm -rf {made}")


def _megabytes(folder: Path) -> float:
    """Return the size of the files below a folder, which others may change meanwhile."""
    size = 0
    for where, _, names in os.walk(folder):  # leaves out a folder that has gone
        for name in names:
            with suppress(OSError):
                size += (Path(where) / name).stat().st_size
    return size / 1e6
