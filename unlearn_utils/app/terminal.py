"""What a command hears and says on the terminal: its options, lines, a table, a bar.

Of several processes the first speaks. Imports are lazy, so that `--help` is instant.
"""

from __future__ import annotations

import argparse
import io
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, NoReturn

from unlearn_utils.app import errors

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor, nn
    from tqdm import tqdm

    from unlearn_utils.core.methods import Method

TENTHS = 10  # lines of progress in a log
SIGNIFICANT = 4  # digits on the screen and on a card


# -------------------------------------------------------------------------------- around a command


class Parser(argparse.ArgumentParser):
    """A parser whose mistakes are one line, as all others."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and exit."""
        errors.say_error(f"{message}; see {self.prog} --help")
        self.exit(errors.MISTAKE)


@contextmanager
def quiet() -> Iterator[None]:
    """Show no warnings, inside; bars of downloads and our own, and lines of the first process."""
    # read when torch is imported, in every process: DDP's warnings
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from huggingface_hub.utils import enable_progress_bars
    from transformers.utils import logging

    from unlearn_utils.engine import distributed, models  # noqa: F401 - models turns bars off

    escape_what_cannot_be_printed()
    logging.set_verbosity_error()
    warnings.simplefilter("ignore", FutureWarning)  # of peft against transformers
    speaks = distributed.process_state().is_main_process
    if speaks and sys.stderr.isatty():
        enable_progress_bars()  # of downloads; those of loading, which is short, stay off
    with open(os.devnull, "w") as nowhere, redirect_stdout(sys.stdout if speaks else nowhere):
        yield


def escape_what_cannot_be_printed() -> None:
    """Let names that the terminal's encoding lacks be printed escaped, instead of ending a run."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


# ---------------------------------------------------------------------------------- on the way


def say(line: str) -> None:
    """Print a line of the log, at once."""
    from tqdm import tqdm

    with suppress(OSError):  # the reader of a pipe may be gone, a log's disk full: no run ends so
        tqdm.write(line)  # above a bar, if there is one
        sys.stdout.flush()


def results_text(table: pd.DataFrame) -> str:
    """Return results as they are printed: value and interval of each model side by side."""
    from unlearn_utils.core import tables

    measured_on = "split" if "split" in table else "task"
    index = [measured_on, "measure", "n"]
    wide = tables.wide(table, index, "model", SIGNIFICANT, significant=True)
    return wide.to_string()


class Progress:
    """Progress of a run: a live bar on a terminal; elsewhere a line at every tenth.

    It begins with what is done first: loading comes before. Of several processes the first shows
    its own part.

    Attributes:
        done: so many of `total`.
    """

    def __init__(self, title: str, total: int, unit: str = "step", apart: float = 0) -> None:
        """Set what is shown.

        Args:
            title: what is being done.
            total: so many units are to be done.
            unit: what is counted.
            apart: in a log, lines are so many seconds apart at least.
        """
        self.title, self.total, self.unit, self.apart = title, total, unit, apart
        self.done = 0
        self._marks = {math.ceil(total * tenth / TENTHS) for tenth in range(1, TENTHS + 1)}
        self._losses: dict[str, Tensor] = {}  # of each side, in the step under way
        self._bar: tqdm | None = None
        self._first = 0
        self._began = self._last_line = time.monotonic()

    def follow(self, method: Method) -> Method:
        """Return a method whose terms are shown: the loss of each, with every step."""
        terms = {}
        for side, term in method.terms.items():
            terms[side] = replace(term, loss=self._heard(side, term.loss_function()))
        return replace(method, **terms)

    def _heard(self, side: str, loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Return a loss that is added up over the micro-batches of a step."""

        def heard(*given: object) -> Tensor:
            value = loss(*given)
            self._losses[side] = self._losses.get(side, 0) + value.detach()
            return value

        return heard

    def watch(self, step: int, model: nn.Module) -> None:
        """Show that a step is done; the watch of a run."""
        if self.done == 0 and step > 1:
            say(f"{self.title}: goes on after step {step - 1}")
        losses = []
        for side, value in self._losses.items():
            losses.append(f"{side} {float(value) * errors.processes():#.4g}")
        self._losses.clear()
        self.advance(step - self.done, ", ".join(losses))

    def advance(self, more: int = 1, said: str = "") -> None:
        """Show that more is done.

        said: beside it.
        """
        from tqdm import tqdm

        self.done += more
        if self._bar is None:
            self._first, self._began = self.done, time.monotonic()
            hidden = None  # then tqdm shows it if stderr is a terminal
            if not errors.first_process():
                hidden = True
            self._bar = tqdm(
                total=self.total,
                initial=self.done,
                desc=self.title,
                unit=self.unit,
                postfix=said,
                disable=hidden,
                leave=False,
                dynamic_ncols=True,
            )
        elif not self._bar.disable:
            self._bar.set_postfix_str(said, refresh=False)
            self._bar.update(more)
        if self._bar.disable and self.done in self._marks:
            self._line(said)

    def _line(self, said: str) -> None:
        """Say how far it is, unless something was said a moment ago."""
        now = time.monotonic()
        if now - self._last_line < self.apart:
            return
        self._last_line = now
        line = [f"{self.title}: {self.unit} {self.done} of {self.total}"]
        if said:
            line.append(said)
        if self.done > self._first:
            from tqdm import tqdm

            left = (now - self._began) / (self.done - self._first) * (self.total - self.done)
            line.append(f"{tqdm.format_interval(left)} left")
        say(", ".join(line))

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
