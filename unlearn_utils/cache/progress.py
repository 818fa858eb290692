"""Lines on how far a computation is, and on what it found damaged."""

from __future__ import annotations

from unlearn_utils.cache import paths


def tell(line: str) -> None:
    """Print a line of progress, into the file `UNLEARN_PROGRESS` if that is set.

    With the file no such line is kept in a notebook.
    """
    file = paths.progress_file()
    if file is None:
        print(line, flush=True)
        return
    with file.open("a", encoding="utf-8") as lines:
        print(line, file=lines)
