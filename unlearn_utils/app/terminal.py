"""What a command hears and says on the terminal: its options, lines, a table, a bar.

Of several processes the first speaks. Imports are lazy, so that `--help` is instant.
"""

from __future__ import annotations

import argparse
import io
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from typing import TYPE_CHECKING, NoReturn

from unlearn_utils.app import errors

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

TENTHS = 10  # lines of progress in a log


# -------------------------------------------------------------------------------- around a command


class Parser(argparse.ArgumentParser):
    """A parser whose mistakes are one line, as all others."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and exit."""
        errors.say_error(f"{message}; see {self.prog} --help")
        self.exit(errors.MISTAKE)


@contextmanager
def quiet() -> Iterator[None]:
    """Show no warnings, inside; bars on a terminal only, and lines of the first process alone."""
    # read when torch is imported, in every process: DDP's warnings
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from transformers.utils import logging

    from unlearn_utils.engine import distributed, models  # noqa: F401 - models turns bars off

    escape_what_cannot_be_printed()
    logging.set_verbosity_error()
    warnings.simplefilter("ignore", FutureWarning)  # of peft against transformers
    speaks = distributed.process_state().is_main_process
    if speaks and sys.stderr.isatty():
        logging.enable_progress_bar()
    with open(os.devnull, "w") as nowhere, redirect_stdout(sys.stdout if speaks else nowhere):
        yield


def escape_what_cannot_be_printed() -> None:
    """Let names that the terminal's encoding lacks be printed escaped, instead of ending a run."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


# ---------------------------------------------------------------------------------- on the way


def say(line: str) -> None:
    """Print a line of the log, at once."""
    with suppress(OSError):  # the reader of a pipe may be gone, a log's disk full: no run ends so
        print(line, flush=True)


def results_text(table: pd.DataFrame) -> str:
    """Return results as they are printed: value and interval of each model side by side."""
    from unlearn_utils.core import tables

    measured_on = "split" if "split" in table else "task"
    wide = tables.wide(table, [measured_on, "measure", "n"], "model", digits=3)
    return wide.to_string()


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
