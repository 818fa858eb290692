"""A process ends at a signal, and when the process that it works for is gone."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from unlearn_utils.cache import endings

ROOT = Path(__file__).resolve().parents[1]


def start(script, *words):
    """Start a script that hears the keyboard: a shell's background jobs are started deaf to it."""
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, words)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for(*files):
    end = time.time() + 60
    while not all(file.exists() and file.read_text() for file in files):
        assert time.time() < end, files
        time.sleep(0.05)


def end_of(pids):
    """Return those that still run when there has been much time for them to end."""
    processes = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
    return psutil.wait_procs(processes, timeout=60)[1]


# ---------------------------------------------------------------------------------- at a signal


@pytest.mark.parametrize("number", endings.SIGNALS)
def test_a_signal_is_an_exit_with_the_code_of_a_shell(number):
    before = signal.getsignal(number)
    called = []
    with pytest.raises(SystemExit) as ended, endings.at_signals(lambda: called.append(1)):
        os.kill(os.getpid(), number)
    assert ended.value.code == 128 + number and ended.value.name == number.name
    assert called == [1]
    assert signal.getsignal(number) is before


def test_those_that_follow_do_not_disturb_what_is_being_ended():
    ended = []
    with endings.at_signals(lambda: None):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except endings.Ended as one:
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGINT)
            ended.append(one.name)
    assert ended == ["SIGTERM"]


def test_what_is_to_be_ignored_stays_ignored():
    """As SIGHUP under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with endings.at_signals(lambda: None):
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


LEAVING = """
import atexit, os, signal
from unlearn_utils.cache import endings
atexit.register(print, "tidied up")
try:
    with endings.at_signals(lambda: None):
        print("at work", end="")
        os.kill(os.getpid(), signal.SIGTERM)
except endings.Ended as ended:
    endings.leave(ended)
"""


def test_leaving_is_at_once_but_what_was_printed_is_there():
    process = start(LEAVING)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (128 + signal.SIGTERM, "at work", "")


CHILDREN = """
import subprocess, sys
from unlearn_utils.cache import endings
sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
grandchild = f"import subprocess; subprocess.run({sleep})"
child = subprocess.Popen([sys.executable, "-c", grandchild])
tracker = subprocess.Popen([*sleep, "resource_tracker import main"])
endings.end_children()
print(child.wait(), tracker.poll())
tracker.kill()
"""


def test_all_descendants_end_but_what_removes_shared_memory():
    out, err = start(CHILDREN).communicate(timeout=60)
    assert out.split() == [str(-signal.SIGKILL), "None"], err


# --------------------------------------------------------------------------- with another process

WATCHER = """
import sys, time
from unlearn_utils.cache import endings
endings.end_with(int(sys.argv[1]))
print("watching", flush=True)
time.sleep(600)
"""


def test_a_process_ends_with_another_even_if_nobody_has_reaped_that():
    other = start("import time; time.sleep(600)")
    watcher = start(WATCHER, other.pid)
    assert watcher.stdout.readline() == "watching\n"
    other.kill()  # a zombie, until it is waited for
    assert watcher.wait(timeout=60) == 1
    other.wait()


def test_a_process_ends_if_the_other_was_gone_before():
    other = start("pass")
    other.wait()
    assert start(WATCHER, other.pid).wait(timeout=60) == 1


LAUNCHER = """
import os, subprocess, sys
from pathlib import Path
launched = os.environ | {sys.argv[1]: "x"}
child = subprocess.Popen([sys.executable, "-c", *sys.argv[2:]], env=launched)
print(child.pid, flush=True)
child.wait()
"""
LAUNCHED = """
import sys, time
from pathlib import Path
from unlearn_utils.cache import endings
file = Path(sys.argv[1])
with endings.at_signals(lambda: None):
    endings.end_with_launcher()
    file.write_text("there")
    try:
        time.sleep(600)
    finally:
        file.unlink()
"""


@pytest.mark.parametrize("variable", endings.LAUNCHED)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_what_a_launcher_started_puts_away_what_it_holds_and_ends_with_it(
    variable, number, tmp_path
):
    launcher = start(LAUNCHER, variable, LAUNCHED, tmp_path / "file")
    pid = int(launcher.stdout.readline())
    wait_for(tmp_path / "file")
    launcher.send_signal(number)
    launcher.communicate(timeout=60)
    assert not end_of([pid])
    assert not (tmp_path / "file").exists()


STUCK = """
import signal, sys, time
from unlearn_utils.cache import endings
signal.signal(signal.SIGTERM, lambda *_: None)  # as deaf as what waits in a library
endings.end_with(int(sys.argv[1]), gently=True)
time.sleep(600)
"""


def test_what_does_not_put_it_away_ends_too():
    other = start("import time; time.sleep(600)")
    stuck = start(STUCK, other.pid)
    other.kill()
    assert stuck.wait(timeout=60) == 1
    other.wait()


WORKERS = """
import os, pathlib, sys, time
from unlearn_utils.cache import endings, workers
from unlearn_utils.cache.store import Artifact
place = pathlib.Path(sys.argv[1])
def make(folder):
    (place / folder.name).write_text(str(os.getpid()))
    time.sleep(600)
with endings.at_signals(endings.end_children):
    workers.side_by_side([Artifact("toy", 1, {"x": x}, make) for x in range(2)], 2)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_what_started_them(number, tmp_path, monkeypatch):
    monkeypatch.setenv("UNLEARN_STORE", str(tmp_path / "store"))
    for name in ("UNLEARN_WORKERS", "UNLEARN_PROGRESS", "UNLEARN_FRESH", "UNLEARN_SCHEDULER"):
        monkeypatch.delenv(name, raising=False)
    place = tmp_path / "place"
    place.mkdir()
    run = start(WORKERS, place)
    while len(list(place.iterdir())) < 2:
        assert run.poll() is None, run.stderr.read()
        time.sleep(0.05)
    wait_for(*place.iterdir())
    pids = [int(file.read_text()) for file in place.iterdir()]
    assert len(set(pids)) == 2 and run.pid not in pids
    run.send_signal(number)
    run.communicate(timeout=60)
    assert run.returncode == (-number if number == signal.SIGKILL else 128 + number)
    assert not end_of(pids)
