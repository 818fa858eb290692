"""What a command says on the terminal: lines, a table, a bar, one line for a mistake. Of several processes the first speaks."""

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


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, no warnings; bars on a terminal only; lines of the first process alone."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # read when torch is imported: of DDP, in every process
    from transformers.utils import logging

    from unlearn_utils.engine import distributed, models  # noqa: F401 - the second turns bars off

    logging.set_verbosity_error()
    warnings.simplefilter("ignore", FutureWarning)  # of peft against transformers
    speaks = distributed.process_state().is_main_process
    if speaks and sys.stderr.isatty():
        logging.enable_progress_bar()
    with open(os.devnull, "w") as nowhere, redirect_stdout(sys.stdout if speaks else nowhere):
        yield


@contextmanager
def interrupted() -> Iterator[None]:
    """Inside, a request to end (SIGTERM: of a launcher whose other process failed, of a queue) leaves nothing half-written, as Ctrl-C."""

    def end(*_) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def fail(error: Exception, code: int) -> int:
    """One line on stderr, and the exit code. A mistake of all processes (`loop.agreed`) is the first's to say, before any ends."""
    from unlearn_utils.engine import distributed

    everywhere = getattr(error, "everywhere", False)
    if distributed.process_state().is_main_process or not everywhere:
        print("error:", " ".join(str(error).split()), file=sys.stderr, flush=True)
    if everywhere:
        distributed.leave()
    return code


def say(line: str) -> None:
    """A line of the log, at once."""
    print(line, flush=True)


def show(table: pd.DataFrame) -> None:
    """Prints results: value and interval of each model side by side."""
    from unlearn_utils.core import tables

    print(tables.wide(table, ["split" if "split" in table else "task", "measure", "n"], "model", digits=3).to_string())


def progress(steps: int) -> Callable[[int, nn.Module], None]:
    """A watch: a bar on a terminal, else a line at every tenth of the run."""
    from tqdm import tqdm

    from unlearn_utils.engine import distributed

    bar, marks = None, {math.ceil(steps * tenth / 10) for tenth in range(1, 11)}
    hidden = None if distributed.process_state().is_main_process else True  # None: unless stderr is a terminal

    def watch(step: int, model: nn.Module) -> None:
        nonlocal bar
        if bar is None:  # made with the first step: loading and measuring come before
            bar = tqdm(total=steps, initial=step - 1, desc="unlearning", unit="step", disable=hidden)
            if step > 1:
                say(f"unlearning: goes on after step {step - 1}")
        bar.update()
        if bar.disable and step in marks:
            say(f"unlearning: step {step} of {steps}")
        if step == steps:
            bar.close()

    return watch
