"""Independent computations side by side, each in a single-threaded process."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from unlearn_utils.cache import paths
from unlearn_utils.cache.store import Artifact

# Two settings of glibc: freed tensors are kept for the next optimizer step instead of going back to
# the system, page by page.
KEEP_FREED = {
    "MALLOC_TRIM_THRESHOLD_": "1000000000",
    "MALLOC_MMAP_THRESHOLD_": "1000000000",
}
LINES = 20  # of progress, about


def side_by_side(artifacts: Sequence[Artifact], workers: int, what: str | None = None) -> None:
    """Fill what is missing, in several processes; what is finished stays if another fails.

    Args:
        artifacts: what shall be there afterwards.
        workers: how many processes, unless `UNLEARN_WORKERS` says so; one is this process.
        what: a name for the artifacts, under which progress is told, with the time left; None: no
            progress is told.
    """
    missing = [artifact for artifact in artifacts if not artifact.done()]
    if not missing:
        return
    began = time.perf_counter()
    line_every = max(1, len(missing) // LINES)
    for filled, _ in enumerate(_fill_all(missing, paths.number_of_workers(workers)), 1):
        if what and (filled % line_every == 0 or filled == len(missing)):
            elapsed = time.perf_counter() - began
            minutes = elapsed / filled * (len(missing) - filled) / 60
            there = len(artifacts) - len(missing) + filled
            tell(f"{there} of {len(artifacts)} {what} are there, about {minutes:.1f} min left")
    for artifact in missing:  # what somebody else was filling
        artifact.fill()


def _fill_all(artifacts: Sequence[Artifact], workers: int) -> Iterator[None]:
    """Fill artifacts in so many processes, and yield as each of them is finished."""
    from joblib import Parallel, delayed  # here, for whoever starts notebooks needs none of it

    for name, value in KEEP_FREED.items():  # read when a process starts
        os.environ.setdefault(name, value)
    processes = min(workers, len(artifacts))
    pool = Parallel(n_jobs=processes, batch_size=1, return_as="generator_unordered")
    return pool(delayed(_fill)(artifact) for artifact in artifacts)


def _fill(artifact: Artifact) -> None:
    """Fill one entry, unless somebody else is filling it: this is what a worker runs.

    So two notebooks that need the same artifacts share them.
    """
    artifact.fill(wait=False)


def tell(line: str) -> None:
    """Print a line of progress, into the file `UNLEARN_PROGRESS` if that is set.

    With the file no such line is kept in a notebook.
    """
    file = paths.progress_file()
    if file is None:
        print(line, flush=True)
        return
    with file.open("a") as lines:
        print(line, file=lines)


@contextmanager
def on_threads(n: int) -> Iterator[None]:
    """Run torch on n threads within the block, then on as many as before.

    The order of a sum, and so its last digits, depend on the number of threads.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)
