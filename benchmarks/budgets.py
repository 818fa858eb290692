"""Minutes and peak memory of the commands that have a budget, from an empty store: `python benchmarks/budgets.py smoke`.

A budget is a promise about two cores, not a test: the numbers are printed, an overrun does not fail. `laptop` rewrites notebooks/,
as every run of that profile does; the store and the figures go to a temporary folder. Without .venv: PYTHONPATH=.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from unlearn_utils.cache.memory import PeakMemory

ROOT = Path(__file__).resolve().parents[1]
MODES = {  # name: (command, minutes, GB or None where no memory is promised)
    "smoke": (["./run_all.sh", "smoke", "--fresh"], 3, None),
    "laptop": (["./run_all.sh", "laptop", "--fresh"], 20, 6),
    "tests": (["./run_tests.sh"], 8, None),
}


def measure(command: list[str]) -> tuple[float, float, int]:
    """(minutes, peak GB, exit code) of a command that starts with an empty store."""
    with tempfile.TemporaryDirectory() as folder, PeakMemory() as memory:
        environment = os.environ | {"UNLEARN_STORE": f"{folder}/store", "UNLEARN_FIGURES": f"{folder}/figures"}
        began = time.time()
        code = subprocess.run(command, cwd=ROOT, env=environment).returncode
    return (time.time() - began) / 60, memory.peak, code


def main() -> int:
    """Print one line of measurements against the budget."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("mode", choices=MODES)
    mode = parser.parse_args().mode
    command, minutes_budget, memory_budget = MODES[mode]
    minutes, memory, code = measure(command)
    promised = f" (budget {memory_budget})" if memory_budget else ""
    print(
        f"\n{mode}: {minutes:.1f} min (budget {minutes_budget}), peak memory {memory:.1f} GB{promised}, {os.cpu_count()} cores, exit {code}"
    )
    return code


if __name__ == "__main__":
    sys.exit(main())
