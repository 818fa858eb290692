"""Peak memory of a tree of processes."""

from __future__ import annotations

import platform
import resource
import threading
from pathlib import Path

import psutil


class PeakMemory:
    """Peak resident memory, in GB, of this process and its children together, sampled twice a second in a thread.

    Pages that processes share are counted in each, so the sum is an upper bound.
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
        me = psutil.Process()
        while not self._stop.wait(0.5):
            self.peak = max(self.peak, sum(map(resident, [me, *me.children(recursive=True)])) / 1e9)


def resident(process: psutil.Process) -> int:
    """Resident bytes of a process; 0 if it has ended."""
    try:
        return process.memory_info().rss
    except psutil.NoSuchProcess:
        return 0


def own_peak() -> float:
    """Peak resident memory of this process so far, in MB. On Linux from its own address space: ru_maxrss starts with the parent's."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) / 2**10 for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if platform.system() == "Darwin" else 2**10)
