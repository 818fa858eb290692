"""Minutes and peak memory of what has a budget: `python benchmarks/budgets.py smoke`.

Each command starts from an empty store. A budget is a promise about two cores, not a test: the
numbers are printed, an overrun does not fail. `laptop` rewrites notebooks/, as every run of that
profile does; the store and the figures go to a temporary folder. Without .venv: PYTHONPATH=.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

from unlearn_utils.cache import paths
from unlearn_utils.cache.memory import PeakMemory


class Budget(NamedTuple):
    """A command, and what it may take.

    Attributes:
        command: run in the project's folder.
        minutes: on two cores.
        gigabytes: of all its processes together; None: no memory is promised.
    """

    command: list[str]
    minutes: int
    gigabytes: int | None = None


BUDGETS = {
    "smoke": Budget(["./run_all.sh", "smoke", "--fresh"], minutes=3),
    "laptop": Budget(["./run_all.sh", "laptop", "--fresh"], minutes=22, gigabytes=6),
    "tests": Budget(["./run_tests.sh"], minutes=8),
}


def measure(command: list[str]) -> tuple[float, float, int]:
    """Return (minutes, peak GB, exit code) of a command that starts with an empty store."""
    with tempfile.TemporaryDirectory() as folder, PeakMemory() as memory:
        places = {paths.STORE: f"{folder}/store", paths.FIGURES: f"{folder}/figures"}
        began = time.time()
        done = subprocess.run(command, cwd=paths.PROJECT, env=os.environ | places)
    return (time.time() - began) / 60, memory.peak, done.returncode


def main() -> int:
    """Print one line of measurements against the budget, and return the command's exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("mode", choices=BUDGETS)
    mode = parser.parse_args().mode
    budget = BUDGETS[mode]
    minutes, gigabytes, code = measure(budget.command)
    memory = f"peak memory {gigabytes:.1f} GB"
    if budget.gigabytes is not None:
        memory += f" (budget {budget.gigabytes})"
    time_taken = f"{minutes:.1f} min (budget {budget.minutes})"
    print(f"\n{mode}: {time_taken}, {memory}, {os.cpu_count()} cores, exit {code}")
    return code


if __name__ == "__main__":
    sys.exit(main())
