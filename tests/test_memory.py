"""What becomes of freed memory."""

import os
import platform
import subprocess
import sys

import pytest

from unlearn_utils.cache import memory

MEASURE = """
import sys
import psutil
from unlearn_utils.cache import memory
if sys.argv[1] == "kept":
    memory.keep_freed()
import torch
own = psutil.Process()
before = own.memory_info().rss
tensor = torch.ones(64, 2**18)
del tensor
print((own.memory_info().rss - before) // 2**20)
"""


def megabytes_left(how):
    """Return by how much a process has grown after it freed a tensor of 64 MB."""
    given = {name: value for name, value in os.environ.items() if name not in memory.KEEP_FREED}
    given["THP_MEM_ALLOC_ENABLE"] = "0"
    command = [sys.executable, "-c", MEASURE, how]
    done = subprocess.run(command, capture_output=True, text=True, env=given, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="others have no such settings")
def test_freed_memory_stays_with_a_process_that_asked_for_it():
    assert megabytes_left("returned") < 32
    assert megabytes_left("kept") > 48


def test_large_pages_are_not_forced_on_who_said_otherwise(monkeypatch):
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    memory.keep_freed()
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "0"
