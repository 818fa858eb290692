"""What a run survives, counted: `python benchmarks/soak.py [kills] [runs] [disk]`, by hand.

- kills: runs of `smoke` that random signals end at random times, and a last one that goes on;
- runs: two runs of `smoke` at once;
- disk: a disk that is full at each file of a save, of a stored entry and of a new model.

All of it happens in a copy of the project in a temporary folder. Each part prints its counts, and
what should not have been; the exit code is 1 if there is any. `disk` needs Linux and `unshare`, for
a disk of its own. Half an hour on two cores. Without .venv: PYTHONPATH=.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from unlearn_utils.cache import paths

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
COPIED = ("notebooks", "unlearn_utils", "figures", "tests", "requirements.lock", "pyproject.toml")
NEVER_THE_SAME = ("cost.json", "run.csv", "progress.txt", "seconds")  # begin their names
TIMED = ("12_efficiency.ipynb", "timed")  # parts of the paths of what has seconds in it
PAGE = os.sysconf("SC_PAGE_SIZE")

Wrong = list[str]  # what should not have been, a line each


# ------------------------------------------------------------------------------------------- runs


def copy_project(folder: Path) -> Path:
    """Copy what a run needs, and return the copy."""
    project = folder / "project"
    project.mkdir()
    ignore = shutil.ignore_patterns("__pycache__")
    for name in COPIED:
        source = paths.PROJECT / name
        if source.is_dir():
            shutil.copytree(source, project / name, ignore=ignore)
        else:
            shutil.copy(source, project / name)
    return project


def variables(project: Path) -> dict[str, str]:
    """Return the environment of a run in the copy, whose processes are known by its store."""
    own = {paths.STORE: str(project / "runs" / "store"), "PYTHONPATH": str(project)}
    others = {name: value for name, value in os.environ.items() if name not in paths.VARIABLES}
    return others | own


def start(project: Path, options: Sequence[str]) -> subprocess.Popen:
    """Start a run of `smoke` in the copy."""
    command = [sys.executable, "-m", "unlearn_utils", "run", "smoke", *options]
    return subprocess.Popen(
        command,
        cwd=project,
        env=variables(project),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def survivors(project: Path, seconds: float) -> list[str]:
    """Return the commands of a run's processes that are there after so many seconds; kill them."""
    store = variables(project)[paths.STORE]
    end = time.time() + seconds
    while True:
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(paths.STORE) == store:
                    found.append((process, " ".join(process.cmdline())[:80]))
            except psutil.Error:
                continue  # it has ended, or is another user's
        if not found or time.time() > end:
            break
        time.sleep(0.2)
    for process, _ in found:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    return [command for _, command in found]


def results(project: Path) -> dict[str, str]:
    """Return the hash of each file that two runs should make alike."""
    found = {}
    for path in sorted((project / "runs").rglob("*")):
        name = path.relative_to(project).as_posix()
        own = path.suffix == ".lock" or {"stamps", "kernels", *TIMED} & set(path.parts)
        if path.is_file() and not own and not path.name.startswith(NEVER_THE_SAME):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def leftovers(project: Path) -> list[str]:
    """Return what a finished run should not leave."""
    runs = project / "runs"
    found = [*runs.rglob("*.part"), *runs.rglob(".*.part"), *runs.rglob("*.aside")]
    found += [*runs.glob("smoke/running/*"), *runs.glob("smoke/kernels/runtime/*")]
    found += runs.glob(f"store/{paths.SCRATCH}.*")
    return [str(path.relative_to(project)) for path in found]


def finished(project: Path, run: subprocess.Popen, reference: dict[str, str]) -> Wrong:
    """Wait for a run's end, and return what is not as after an undisturbed one."""
    _, err = run.communicate()
    wrong = [f"exit code {run.returncode}: {err[-500:]}"] if run.returncode else []
    here = results(project)
    for name in sorted(here.keys() | reference.keys()):
        if here.get(name) != reference.get(name):
            wrong.append(f"{name} is not as after an undisturbed run")
    return wrong + [f"{name} was left" for name in leftovers(project)]


def undisturbed(project: Path, options: Sequence[str]) -> dict[str, str]:
    """Return the results of an undisturbed run from nothing, which it removes."""
    run = start(project, options)
    _, err = run.communicate()
    if run.returncode:
        raise SystemExit(f"error: an undisturbed run fails: {err}")
    found = results(project)
    shutil.rmtree(project / "runs")
    return found


# -------------------------------------------------------------------------------------- the parts


def kills(project: Path, asked: argparse.Namespace) -> Wrong:
    """End runs by random signals at random times; then let one go on to its end."""
    reference = undisturbed(project, asked.options)
    chance = random.Random(asked.seed)
    counts, wrong = Counter(), []
    while counts.total() < asked.kills:
        number = SIGNALS[counts.total() % len(SIGNALS)]
        run = start(project, asked.options)
        wait = chance.uniform(1, asked.window)
        try:
            run.wait(wait)
        except subprocess.TimeoutExpired:
            counts[number.name] += 1
            wrong += ended_well(project, run, number, wait, asked.within)
        else:  # it had come to its end
            wrong += finished(project, run, reference)
            shutil.rmtree(project / "runs")
    wrong += finished(project, start(project, asked.options), reference)
    each = ", ".join(f"{count} {name}" for name, count in counts.items())
    print(f"kills: {counts.total()} ({each}), then a run that goes on")
    return wrong


def ended_well(
    project: Path, run: subprocess.Popen, number: signal.Signals, wait: float, within: float
) -> Wrong:
    """Send a signal to a run, and return what is not as it should be after it."""
    what = f"{number.name} after {wait:.1f} s"
    run.send_signal(number)
    left = survivors(project, within)
    wrong = [f"{what}: still there: {command}" for command in left]
    _, err = run.communicate()
    lines = [line for line in err.splitlines() if line]
    if run.returncode not in (-number, 128 + number):  # a shell says the same of both
        wrong.append(f"{what}: exit code {run.returncode}")
    if len(lines) > (number != signal.SIGKILL):
        wrong.append(f"{what}: {len(lines)} lines, the last of them {lines[-1]}")
    return wrong


def runs(project: Path, asked: argparse.Namespace) -> Wrong:
    """Start two runs at once."""
    reference = undisturbed(project, asked.options)
    both = [start(project, asked.options) for _ in range(2)]
    wrong = []
    for run in both:
        _, err = run.communicate()
        if run.returncode:
            wrong.append(f"two at once: exit code {run.returncode}: {err[-500:]}")
    print("runs: 2 at once")
    return wrong + finished(project, start(project, asked.options), reference)


# ------------------------------------------------------------------------------------- a full disk

ENTRY = """
import sys
import numpy as np
import pandas as pd
from safetensors.numpy import save_file
from unlearn_utils.cache.store import Artifact
def make(folder):
    save_file({"weights": np.arange(50_000)}, folder / "model.safetensors")
    pd.DataFrame({"x": np.arange(5000)}).to_parquet(folder / "rows.parquet")
    (folder / "log.csv").write_text("a,b\\n" * 5000)
Artifact("toy", 1, {"x": 1}, make).folder()
"""

BASE = """
import sys
from pathlib import Path
from unlearn_utils.data import tokens
from unlearn_utils.engine import models
from unlearn_utils.profiles import Shape
folder = Path(sys.argv[1])
texts = {}
for name in ("forget", "retain", "unseen"):
    texts[name] = "".join(f"{name} {n * n} {name} {n}.\\n" for n in range(60))
    (folder / f"{name}.txt").write_text(texts[name])
tokenizer = tokens.train_tokenizer(list(texts.values()), 300)
shape = Shape(vocabulary=300, hidden=32, intermediate=64, layers=2, heads=2, context=64)
models.build(shape, tokenizer, 0).save_pretrained(folder / "base")
tokenizer.save_pretrained(folder / "base")
"""


class Save:
    """Something that is saved to a disk, and may find it full.

    Attributes:
        command: that saves it.
        full_from: begins the line after which the disk is full; None: from the start.
        place: the folder where it appears.
    """

    def __init__(self, command: list[str], place: Path, full_from: str | None = None) -> None:
        self.command = command
        self.place = place
        self.full_from = full_from

    def run(self, disk: Path, project: Path, leave: int | None = None) -> tuple[int, str]:
        """Save it, onto a disk with so many bytes left; return the exit code and what it said."""
        own = variables(project) | {paths.STORE: str(disk / "store")}
        if leave is not None and self.full_from is None:
            fill(disk, leave)
        process = subprocess.Popen(
            self.command,
            cwd=project,
            env=own,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for line in process.stdout:
            if leave is not None and self.full_from and line.startswith(self.full_from):
                process.send_signal(signal.SIGSTOP)
                fill(disk, leave)
                process.send_signal(signal.SIGCONT)
                break
        _, err = process.communicate()
        return process.returncode, err

    def files(self) -> list[Path]:
        """Return the files that were saved, in the order in which they were written."""
        found = [path for path in self.place.rglob("*") if path.is_file()]
        found.sort(key=lambda path: path.stat().st_ctime_ns)
        return [path for path in found if path.suffix != ".lock"]

    def names(self) -> list[str]:
        """Return their names."""
        return [path.relative_to(self.place).as_posix() for path in self.files()]


def fill(disk: Path, leave: int) -> None:
    """Fill a disk, but for so many bytes."""
    ballast = disk / "ballast"
    if not ballast.exists():
        with ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free - leave)


def pages(path: Path) -> int:
    """Return what a file takes of the disk."""
    return -(-path.stat().st_size // PAGE) * PAGE


def empty(disk: Path) -> None:
    for path in disk.iterdir():
        paths.remove(path)


def disk(project: Path, asked: argparse.Namespace) -> Wrong:
    """Let a disk of 64 MB be full at each file of a save in turn."""
    small = project / "disk"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", str(small)], check=True)
    own = project / "user"
    own.mkdir()
    subprocess.run(
        [sys.executable, "-c", BASE, str(own)], env=variables(project), cwd=project, check=True
    )
    unlearn = [sys.executable, "-m", "unlearn_utils", "unlearn", "--model", str(own / "base")]
    unlearn += ["--method", "gradient_ascent", "--out", str(small / "out"), "--context", "32"]
    for name in ("forget", "retain", "unseen"):
        unlearn += [f"--{name}", str(own / f"{name}.txt")]
    saves = {
        "a stored entry": Save([sys.executable, "-c", ENTRY], small / "store"),
        "a new model": Save(unlearn, small / "out", "unlearning: step"),
    }
    wrong = []
    for name, save in saves.items():
        wrong += full_at_each_file(name, save, small, project)
    subprocess.run(["umount", str(small)], check=True)
    return wrong


def full_at_each_file(name: str, save: Save, small: Path, project: Path) -> Wrong:
    """Let the disk be full at each file of one save; return what is not as it should be."""
    code, err = save.run(small, project)
    if code:
        return [f"{name}: with room enough, exit code {code}: {err[-500:]}"]
    names, sizes = save.names(), [pages(path) for path in save.files()]
    wrong, refused = [], 0
    for place, size in enumerate(sizes):
        empty(small)
        half = size // 2 // PAGE * PAGE
        code, err = save.run(small, project, leave=sum(sizes[:place]) + half)
        left = [*save.files(), *small.rglob("*.part")]
        what = f"{name}, full at {names[place]}"
        if code == 0:
            wrong.append(f"{what}: exit code 0")
        if "No space left" not in err:
            wrong.append(f"{what}: it does not say so: {err[-300:]}")
        wrong += [f"{what}: {path} was left" for path in left]
        refused += code != 0 and not left
        (small / "ballast").unlink(missing_ok=True)
    code, err = save.run(small, project)
    if code or sorted(save.names()) != sorted(names):
        wrong.append(f"{name}: with room again, exit code {code}: {err[-300:]}")
    print(f"disk: {name}: {refused} of {len(sizes)} files that did not fit left nothing behind")
    return wrong


PARTS = {"kills": kills, "runs": runs, "disk": disk}


def main() -> int:
    """Run the parts that are asked for, print what they count, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="all, if none is named")
    parser.add_argument("--kills", type=int, default=20, help="how many (20)")
    parser.add_argument("--window", type=float, default=30, help="seconds until a kill (30)")
    parser.add_argument("--within", type=float, default=5, help="seconds to end after it (5)")
    parser.add_argument("--seed", type=int, default=0, help="of the times")
    parser.add_argument("--only", help="one notebook, for a quick look")
    asked = parser.parse_args()
    asked.options = ["--only", asked.only] if asked.only else []
    wrong = []
    for name in asked.parts or PARTS:
        if name == "disk" and os.environ.get("SOAK_DISK") != "1":  # in a namespace that may mount
            again = ["unshare", "-rm", sys.executable, __file__, "disk"]
            done = subprocess.run(again, env=os.environ | {"SOAK_DISK": "1"})
            wrong += ["disk: see above"] * bool(done.returncode)
            continue
        with tempfile.TemporaryDirectory() as folder:
            wrong += PARTS[name](copy_project(Path(folder)), asked)
    print("\n".join([f"{len(wrong)} things that should not have been", *wrong]))
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
