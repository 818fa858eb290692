"""A command of this package that is part of a run, and ends when the run is gone.

`python -m unlearn_utils.runner.step PID COMMAND ...` is `python -m unlearn_utils COMMAND ...`, for
as long as the process PID is there.
"""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence

import psutil

from unlearn_utils.cache import endings


def start(words: Sequence[str], variables: Mapping[str, str]) -> psutil.Popen:
    """Start a command of this package as a step of this process.

    What the terminal sends to a run does not reach its steps: the run ends them.

    Args:
        words: the command's name, and its options.
        variables: of its environment.
    """
    command = [sys.executable, "-m", __name__, str(os.getpid()), *words]
    return psutil.Popen(
        command, env=dict(variables), stdin=subprocess.DEVNULL, start_new_session=True
    )


def exit_code(process: psutil.Popen, what: str) -> int:
    """Return the exit code of a step that has ended; say so if it was killed.

    what: it was, in words.
    """
    code = process.returncode
    if code >= 0:
        return code
    name = signal.Signals(-code).name
    print(f"error: {what} was killed ({name}); is there enough memory?", file=sys.stderr)
    return 1


if __name__ == "__main__":
    endings.end_with(int(sys.argv.pop(1)))
    runpy.run_module("unlearn_utils", run_name="__main__", alter_sys=True)
