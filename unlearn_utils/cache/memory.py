"""Memory of a process: its peak, and what becomes of freed memory."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import sys
import threading
from pathlib import Path

import psutil

SECONDS_APART = 0.5  # between two samples

# Freed tensors are kept for the next optimizer step instead of going back to the system, page by
# page (glibc), and large ones lie in large pages (torch). Read when a process starts.
KEPT = 1_000_000_000  # bytes
LARGE_PAGES = {"THP_MEM_ALLOC_ENABLE": "1"}
KEEP_FREED = {
    "MALLOC_TRIM_THRESHOLD_": str(KEPT),
    "MALLOC_MMAP_THRESHOLD_": str(KEPT),
    **LARGE_PAGES,
}
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h: the same two in a running process


def keep_freed() -> None:
    """Let this process do what `KEEP_FREED` lets a new one do; to be called before torch allocates.

    Only glibc has the two settings; elsewhere memory is freed as ever.
    """
    for name, value in LARGE_PAGES.items():
        os.environ.setdefault(name, value)
    if sys.platform != "linux":
        return
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(M_TRIM_THRESHOLD, KEPT)
        set_option(M_MMAP_THRESHOLD, KEPT)


class PeakMemory:
    """The peak memory of this process and its children together, while the `with` block runs.

    It is sampled twice a second in a thread. Pages that processes share are counted in each, so the
    sum is an upper bound.

    Attributes:
        peak: resident memory so far, in GB.
    """

    def __init__(self) -> None:
        self.peak = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        this = psutil.Process()
        while not self._stop.wait(SECONDS_APART):
            processes = [this, *this.children(recursive=True)]
            total = sum(_resident(process) for process in processes)
            self.peak = max(self.peak, total / 1e9)


def _resident(process: psutil.Process) -> int:
    """Return the resident bytes of a process; 0 if it has ended."""
    try:
        return process.memory_info().rss
    except psutil.NoSuchProcess:
        return 0


def own_peak() -> float:
    """Return the peak resident memory of this process so far, in MB.

    On Linux it is that of its own address space, for ru_maxrss starts with the parent's.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 2**10
    units = 2**20 if platform.system() == "Darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / units
