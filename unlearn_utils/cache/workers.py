"""Independent computations side by side, each in a single-threaded process.

The processes are those of joblib, on this machine, or the workers of a Dask scheduler.
"""

from __future__ import annotations

import os
import pickle
import socket
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

from filelock import FileLock

from unlearn_utils.cache import endings, memory, paths
from unlearn_utils.cache.progress import tell
from unlearn_utils.cache.store import SHARED, Artifact

LINES = 20  # of progress, about
ANSWERS_WITHIN = 5  # seconds that a scheduler may take
SEEN_WITHIN = 90  # seconds until a file of another machine is seen; NFS may take a minute


def side_by_side(artifacts: Sequence[Artifact], workers: int, what: str | None = None) -> None:
    """Fill what is missing, in several processes; what is finished stays if another fails.

    With `UNLEARN_SCHEDULER` they are all workers of that scheduler, and `workers` does not matter.

    Args:
        artifacts: what shall be there afterwards.
        workers: how many processes, unless `UNLEARN_WORKERS` says so; one is this process.
        what: a name for the artifacts, under which progress is told, with the time left; None: no
            progress is told.

    Raises:
        ValueError: no scheduler answers, or its workers cannot be used as they are.
    """
    missing = [artifact for artifact in artifacts if not artifact.done()]
    if not missing:
        return
    processes = paths.number_of_workers(workers)
    began = time.perf_counter()
    line_every = max(1, len(missing) // LINES)
    for filled, _ in enumerate(_fill_all(missing, processes, wait=False), 1):
        if what and (filled % line_every == 0 or filled == len(missing)):
            elapsed = time.perf_counter() - began
            minutes = elapsed / filled * (len(missing) - filled) / 60
            there = len(artifacts) - len(missing) + filled
            tell(f"{there} of {len(artifacts)} {what} are there, about {minutes:.1f} min left")
    left = [artifact for artifact in missing if not artifact.done()]
    if left:  # somebody else was filling these, or has died while at it
        for _ in _fill_all(left, processes, wait=True):
            pass


def _fill_all(artifacts: Sequence[Artifact], processes: int, wait: bool) -> Iterator[None]:
    """Fill artifacts side by side, and yield as each of them is finished.

    wait: for what somebody else is filling, which is left alone otherwise.
    """
    address = paths.scheduler()
    if address:
        return _fill_on_cluster(address, artifacts, wait)
    return _fill_here(artifacts, processes, wait)


def _fill_here(artifacts: Sequence[Artifact], processes: int, wait: bool) -> Iterator[None]:
    """Fill artifacts in so many processes of this machine."""
    from joblib import Parallel, delayed  # here, for whoever starts notebooks needs none of it

    for name, value in memory.KEEP_FREED.items():  # read when a process starts
        os.environ.setdefault(name, value)
    # joblib replaces a process that has grown, as ours do, which keep freed memory; no work is lost
    warnings.filterwarnings("ignore", message="A worker stopped while some jobs")
    pool = Parallel(
        n_jobs=min(processes, len(artifacts)),
        batch_size=1,
        return_as="generator_unordered",
        initializer=endings.end_with,
        initargs=(os.getpid(),),
    )
    return pool(delayed(_fill)(artifact, wait) for artifact in artifacts)


def _fill(artifact: Artifact, wait: bool) -> None:
    """Fill one entry: this is what a process runs.

    Without `wait` two notebooks that need the same artifacts share them.
    """
    artifact.fill(wait)


# --------------------------------------------------------------------------------------- a cluster
#
# The tasks do not go through joblib's own backend for Dask. With joblib 1.6 that computes in this
# process when there is one worker, and waits for ever when a task ends all the workers it is given.


def _fill_on_cluster(address: str, artifacts: Sequence[Artifact], wait: bool) -> Iterator[None]:
    """Fill artifacts in the workers of a scheduler; those of a worker that dies go to another."""
    try:
        import cloudpickle
        from distributed import Client, as_completed
    except ImportError as error:
        raise ValueError(
            f"{paths.SCHEDULER} is set, which needs the package distributed: "
            f"pip install -e '.[cluster]' in this repository, or unset the variable ({error})"
        ) from error

    ask(address)
    store = paths.store_folder().absolute()
    store.mkdir(parents=True, exist_ok=True)
    with (
        _shared_file(store) as shared,
        Client(address, timeout=ANSWERS_WITHIN, set_as_default=False) as client,
    ):
        if not client.nthreads():
            tell(f"the scheduler at {address} has no worker yet; this waits for the first")
        further = (wait, _variables(), shared)
        futures = []
        for artifact in artifacts:
            key = f"{artifact.name}-{uuid4().hex}"
            pickled = cloudpickle.dumps(artifact)  # which the scheduler need not understand
            futures.append(client.submit(_fill_on_worker, pickled, *further, key=key))
        for future in as_completed(futures, loop=client.loop):
            future.result()
            yield
    if wait:
        _see(artifacts)


@contextmanager
def _shared_file(store: Path) -> Iterator[str]:
    """Yield the name of a new file in the store, which is locked as long as it is of use."""
    with FileLock(store / f"{SHARED}{uuid4().hex}") as lock:
        try:
            yield lock.lock_file
        finally:
            os.remove(lock.lock_file)


def check_scheduler() -> None:
    """See, before anything is computed, that the scheduler answers, if one is to be used.

    Raises:
        ValueError: it does not.
    """
    address = paths.scheduler()
    if address is not None:
        ask(address)


def ask(address: str) -> None:
    """See that a scheduler answers: a client would try for long, or wait for ever.

    A scheduler greets whoever connects. Another server, such as its dashboard, waits to be asked.

    Raises:
        ValueError: none does.
    """
    try:
        parts = urlsplit(address)
        if parts.scheme != "tcp" or not parts.hostname or not parts.port:
            raise ValueError("it is not of the form tcp://HOST:PORT")
        place = (parts.hostname, parts.port)
        with socket.create_connection(place, timeout=ANSWERS_WITHIN) as connection:
            if not connection.recv(1):
                raise ValueError("something else listens there")
    except (ValueError, OSError) as error:
        raise ValueError(
            f"{paths.SCHEDULER}={address}: no Dask scheduler answers ({error}); start one with "
            "`dask scheduler` and give the address that it prints, or unset the variable"
        ) from error


def _variables() -> dict[str, str]:
    """Return the variables of this package that a worker computes with: those of this process.

    Folders are absolute, for a worker runs elsewhere. The scheduler's is left out, for no task
    submits another.
    """
    chosen = {}
    for name in paths.VARIABLES:
        if os.environ.get(name) and name != paths.SCHEDULER:
            chosen[name] = os.environ[name]
    for name in (paths.FIGURES, paths.PROGRESS, paths.HUB, paths.BOOKS):
        if name in chosen:
            chosen[name] = str(Path(chosen[name]).absolute())
    chosen[paths.STORE] = str(paths.store_folder().absolute())
    return chosen


def _fill_on_worker(pickled: bytes, wait: bool, variables: Mapping[str, str], shared: str) -> None:
    """Fill one entry: this is what a worker of a cluster runs.

    Args:
        pickled: the artifact.
        wait: as in `_fill_all`.
        variables: the worker's own are replaced by these.
        shared: a file in the store, which the worker must see.

    Raises:
        ValueError: the worker has several threads, or another store.
    """
    from distributed import get_worker

    worker = get_worker()
    if worker.state.nthreads > 1:  # variables and torch's number of threads are of a process
        raise ValueError(
            f"the Dask worker {worker.address} has {worker.state.nthreads} threads, which would "
            "change each other's results; start it with --nthreads 1"
        )
    if not Path(shared).exists():
        raise ValueError(
            f"the Dask worker {worker.address} does not see {Path(shared).parent}; "
            f"set {paths.STORE} to a folder that all machines share"
        )
    for name in paths.VARIABLES:
        os.environ.pop(name, None)
    os.environ.update(variables)
    _fill(pickle.loads(pickled), wait)


def _see(artifacts: Sequence[Artifact]) -> None:
    """Wait until this machine sees what workers wrote, or raise ValueError."""
    until = time.monotonic() + SEEN_WITHIN
    for artifact in artifacts:
        while not artifact.done():
            if time.monotonic() > until:
                raise ValueError(
                    f"a Dask worker filled {artifact.path}, which this machine does not see; "
                    f"set {paths.STORE} to a folder that all machines share"
                )
            time.sleep(1)


# ----------------------------------------------------------------------------------------- threads


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
