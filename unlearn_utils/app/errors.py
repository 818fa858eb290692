"""How errors of a command end: a mistake in what was given as one line, a defect of ours shown.

`reading` gives the errors of a library that reads a user's file the name of what it read. `answer`
is the one place that catches anything. Imports are lazy, so that `--help` is instant.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from unlearn_utils.cache import endings, paths

MISTAKE, FAILURE = 2, 1  # exit codes: of the user's mistake, and of a run that cannot end well
# errors that they define are about what they were given; pyo3_runtime is of those written in Rust
LIBRARIES = (
    "datasets",
    "httpx",
    "huggingface_hub",
    "jinja2",
    "pyarrow",
    "pyo3_runtime",
    "safetensors",
    "tokenizers",
    "yaml",
)
SAYING = (ValueError, OSError, MemoryError, FloatingPointError)  # that say what is wrong


# ---------------------------------------------------------------------------------------- mistakes


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Raise what a library throws inside at a file that it cannot use as ValueError, with its name.

    transformers throws nearly everything: KeyError, TypeError, AssertionError, ImportError. An
    error that this package raises itself stays as it is, and so does OSError, which names its file.

    Args:
        what: is read.

    Raises:
        ValueError: a library cannot use it.
    """
    try:
        yield
    except (OSError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of Rust is no Exception
        if _raised_here(error):
            raise
        reason = _reason(error).rstrip(".")
        raise ValueError(
            f"{what}: cannot be used: {reason}. Are its files whole, and all of one model? "
            f"{paths.DEBUG}=1 shows more"
        ) from error


def _raised_here(error: BaseException) -> bool:
    """Return whether this package raised an error itself, not a library that it called."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    package, _, _ = __name__.partition(".")
    return frame.f_globals["__name__"].split(".")[0] == package


def _reason(error: BaseException) -> str:
    """Return what an error says, with its type where it says little by itself."""
    said = str(error)
    cryptic = type(error).__module__ == "builtins" and not isinstance(error, SAYING)
    if said and (not cryptic or type(error) is Exception):
        return said
    return f"{type(error).__name__}: {said}"


# -------------------------------------------------------------------------------- around a command


def answer(command: Callable[[], int | None]) -> int:
    """Run a command, and return its exit code.

    A mistake of the user's is one line on stderr and exit code 2; so is a run that cannot end well,
    with exit code 1. `UNLEARN_DEBUG` shows their traceback too. Any other error is a defect of
    ours, which is raised.

    Raises:
        Ended: a signal ended it, which is one line, too.
    """
    with endings.at_signals(endings.end_children):
        try:
            return command() or 0
        except endings.Ended as ended:
            _say_ended(ended.name)
            raise
        except BaseException as error:
            code = _exit_code(error)
            if code is None:
                raise
            _report(error)
            return code


def _exit_code(error: BaseException) -> int | None:
    """Return the exit code of an error that is answered by one line, None of a defect of ours."""
    if isinstance(error, MemoryError | FloatingPointError):
        return FAILURE
    if isinstance(error, ValueError | OSError):
        return MISTAKE
    library = type(error).__module__.split(".")[0]
    if library in LIBRARIES or type(error) is Exception:  # tokenizers has no type of its own
        return MISTAKE
    return None


def _report(error: BaseException) -> None:
    """Print one line on stderr.

    The mistake of all processes (`distributed.raise_together`) is the first's to say, before any of
    them ends.
    """
    everywhere = getattr(error, "everywhere", False)
    if first_process() or not everywhere:
        if paths.debug():
            traceback.print_exception(error)
        say_error(_reason(error))
    if everywhere:
        from unlearn_utils.engine import distributed

        distributed.leave()


def _say_ended(name: str) -> None:
    """Say that a signal of this name ended the command."""
    if first_process():
        with suppress(OSError):  # the terminal may be gone
            say_error(f"ended by {name}; nothing is left half-made")


def say_error(text: str) -> None:
    """Print a line on stderr, where bytes of a name that are no text are escaped."""
    line = " ".join(text.split()).encode("utf-8", "backslashreplace").decode()
    print("error:", line, file=sys.stderr, flush=True)


def processes() -> int:
    """Return how many processes the launcher started, which says so in a variable; alone, 1."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def first_process() -> bool:
    """Return whether this process is the first of those, or alone."""
    return os.environ.get("RANK", "0") == "0"
