"""What a command says on the terminal: lines, a table, a bar, one line for a mistake.

Of several processes the first speaks. Imports are lazy, so that `--help` is instant.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

TENTHS = 10  # lines of progress in a log


# -------------------------------------------------------------------------------- around a command


@contextmanager
def quiet() -> Iterator[None]:
    """Show no warnings, inside; bars on a terminal only, and lines of the first process alone."""
    # read when torch is imported, in every process: DDP's warnings
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from transformers.utils import logging

    from unlearn_utils.engine import distributed, models  # noqa: F401 - models turns bars off

    logging.set_verbosity_error()
    warnings.simplefilter("ignore", FutureWarning)  # of peft against transformers
    speaks = distributed.process_state().is_main_process
    if speaks and sys.stderr.isatty():
        logging.enable_progress_bar()
    with open(os.devnull, "w") as nowhere, redirect_stdout(sys.stdout if speaks else nowhere):
        yield


@contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """End on SIGTERM, inside, as on Ctrl-C, so that nothing is left half-written.

    It comes from a queue, or from a launcher whose other process failed.
    """

    def end(*_: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def report_mistake(error: Exception, code: int) -> int:
    """Print one line on stderr and return the exit code.

    The mistake of all processes (`distributed.raise_together`) is the first's to say, before any of
    them ends.
    """
    from unlearn_utils.engine import distributed

    everywhere = getattr(error, "everywhere", False)
    if distributed.process_state().is_main_process or not everywhere:
        print("error:", " ".join(str(error).split()), file=sys.stderr, flush=True)
    if everywhere:
        distributed.leave()
    return code


# ---------------------------------------------------------------------------------- on the way


def say(line: str) -> None:
    """Print a line of the log, at once."""
    print(line, flush=True)


def show_results(table: pd.DataFrame) -> None:
    """Print results: value and interval of each model side by side."""
    from unlearn_utils.core import tables

    measured_on = "split" if "split" in table else "task"
    wide = tables.wide(table, [measured_on, "measure", "n"], "model", digits=3)
    print(wide.to_string())


def show_progress(steps: int) -> Callable[[int, nn.Module], None]:
    """Return a watch that shows a bar on a terminal, and elsewhere a line at every tenth of a run.

    steps: of the run.
    """
    from tqdm import tqdm

    from unlearn_utils.engine import distributed

    bar = None
    marks = {math.ceil(steps * tenth / TENTHS) for tenth in range(1, TENTHS + 1)}
    hidden = True
    if distributed.process_state().is_main_process:
        hidden = None  # then tqdm shows it if stderr is a terminal

    def watch(step: int, model: nn.Module) -> None:
        nonlocal bar
        if bar is None:  # made with the first step: loading and measuring come before
            first = step - 1
            bar = tqdm(total=steps, initial=first, desc="unlearning", unit="step", disable=hidden)
            if first > 0:
                say(f"unlearning: goes on after step {first}")
        bar.update()
        if bar.disable and step in marks:
            say(f"unlearning: step {step} of {steps}")
        if step == steps:
            bar.close()

    return watch
