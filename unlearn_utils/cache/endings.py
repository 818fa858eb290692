"""How a process ends: at a signal, and when the process that it works for is gone.

A run starts kernels and steps, and those start workers. A signal reaches the run alone, which ends
what it has started. A run that is killed can end nothing: each of them sees that it is gone.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Thread
from typing import NoReturn

import psutil

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SECONDS_APART = 0.5  # between two looks at another process
SECONDS_TO_END = 3  # that a process has which puts away what it holds
LAUNCHED = ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID")  # what launchers set
TRACKER = "resource_tracker import main"  # is in the command of what removes shared memory


class Ended(SystemExit):
    """A signal that ends this process, with the exit code that a shell gives it.

    Attributes:
        name: of the signal, such as SIGTERM.
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.name = signal.Signals(number).name


@contextmanager
def at_signals(first: Callable[[], None]) -> Iterator[None]:
    """Raise `Ended` inside at SIGINT, SIGTERM or SIGHUP; those that follow are too late to matter.

    What whoever started this process wants ignored stays ignored, as SIGHUP with nohup.

    Args:
        first: called before it is raised.
    """
    heard = [one for one in SIGNALS if signal.getsignal(one) != signal.SIG_IGN]

    def end(number: int, _: object) -> None:
        for one in heard:
            signal.signal(one, signal.SIG_IGN)
        first()
        raise Ended(number)

    before = {one: signal.signal(one, end) for one in heard}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def leave(ended: Ended) -> NoReturn:
    """Exit at once: all is put away by now, and the interpreter would take seconds to tidy up."""
    with suppress(OSError):  # the terminal may be gone
        sys.stdout.flush()
    os._exit(ended.code)


def end_children() -> None:
    """End all that this process has started, and what that has started.

    What of Python removes shared memory is left alone: it ends last, by itself.
    """
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it has ended meanwhile
            if TRACKER not in " ".join(process.cmdline()):
                process.kill()


def end_with(pid: int, gently: bool = False) -> None:
    """End this process when another one is gone: it has nobody left to work for.

    gently: by SIGTERM, so that it can put away what it holds; else at once.
    """
    Thread(target=_watch, args=[pid, gently], daemon=True).start()


def is_there(pid: int) -> bool:
    """Return whether there is a process of that number, and it runs."""
    try:
        return _runs(psutil.Process(pid))
    except psutil.NoSuchProcess:
        return False


def _runs(process: psutil.Process) -> bool:
    """Return whether a process runs: one that has ended may stay listed until it is reaped.

    Another one may have its number by then.
    """
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def end_with_launcher() -> None:
    """End this process with `accelerate launch` or torchrun, if one started it.

    Either, when it is killed, leaves its processes.
    """
    if any(name in os.environ for name in LAUNCHED):
        end_with(os.getppid(), gently=True)


def _watch(pid: int, gently: bool) -> None:
    with suppress(psutil.NoSuchProcess):
        other = psutil.Process(pid)
        while _runs(other):
            time.sleep(SECONDS_APART)
    if gently:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(SECONDS_TO_END)
    os._exit(1)
