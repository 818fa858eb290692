"""Independent computations side by side, each in a single-threaded process."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

from unlearn_utils.cache.store import Artifact
from unlearn_utils.profiles import Profile

KEEP_FREED = {  # two glibc settings: freed tensors are kept for the next step instead of going back to the system, page by page
    "MALLOC_TRIM_THRESHOLD_": "1000000000",
    "MALLOC_MMAP_THRESHOLD_": "1000000000",
}


def side_by_side(profile: Profile, steps: Sequence[Artifact], what: str | None = None) -> None:
    """Fills what is missing in `profile.workers` processes, or `UNLEARN_WORKERS`; one is this process. What is finished stays, whatever
    happens to the rest. what: a name for the steps, under which progress is told, with the time left."""
    missing = [s for s in steps if not s.done()]
    if not missing:
        return
    from joblib import Parallel, delayed

    for name, value in KEEP_FREED.items():
        os.environ.setdefault(name, value)
    workers, began = int(os.environ.get("UNLEARN_WORKERS") or profile.workers), time.perf_counter()
    pool = Parallel(n_jobs=min(workers, len(missing)), batch_size=1, return_as="generator_unordered")
    for done, _ in enumerate(pool(delayed(_fill)(step) for step in missing), 1):
        if what and (done % max(1, len(missing) // 20) == 0 or done == len(missing)):
            left = (time.perf_counter() - began) / done * (len(missing) - done) / 60
            tell(f"{len(steps) - len(missing) + done} of {len(steps)} {what} are there, about {left:.1f} min left")
    for step in missing:  # what somebody else was filling
        step.fill()


def tell(line: str) -> None:
    """Prints a line of progress: into the file `UNLEARN_PROGRESS` if that is set, so that no such line is kept in a notebook."""
    path = os.environ.get("UNLEARN_PROGRESS")
    with open(path, "a") if path else nullcontext() as file:
        print(line, file=file, flush=True)


def _fill(step: Artifact) -> None:
    """What a worker runs: fills one entry, unless somebody else is filling it. So two notebooks that need the same steps share them."""
    step.fill(wait=False)


@contextmanager
def on_threads(n: int) -> Iterator[None]:
    """Runs torch on n threads: the order of a sum, and so its last digits, depend on their number."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)
