"""A Dask scheduler with two worker processes on one store, one of which is killed half-way."""

import contextlib
import json
import logging
import os
import re
import signal
import socket
import sys
import threading
import time
from functools import partial

import pytest
from distributed import KilledWorker, LocalCluster
from filelock import FileLock

from unlearn_utils.cache import paths, workers
from unlearn_utils.cache.store import Artifact
from unlearn_utils.data import sources


def local_cluster(folder, n_workers, threads, processes):
    return LocalCluster(
        local_directory=str(folder),
        n_workers=n_workers,
        threads_per_worker=threads,
        processes=processes,
        host="127.0.0.1",
        protocol="tcp://",
        dashboard_address="127.0.0.1:0",
        silence_logs=logging.CRITICAL,  # of workers that are killed on purpose
    )


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A scheduler with two worker processes, which have none of this package's variables.

    A worker that is killed is started again, as by the command `dask worker`.
    """
    here = {name: os.environ.pop(name) for name in paths.VARIABLES if name in os.environ}
    folder = tmp_path_factory.mktemp("dask")
    with local_cluster(folder, 2, threads=1, processes=True) as started:
        os.environ.update(here)
        yield started


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    for name in paths.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("UNLEARN_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(workers, "SEEN_WITHIN", 5)  # one file system shows files at once
    return tmp_path / "store"


@pytest.fixture
def two_workers(cluster, monkeypatch):
    monkeypatch.setenv("UNLEARN_SCHEDULER", cluster.scheduler_address)


# ------------------------------------------------------------------------------- toys
#
# `place` is a folder that all of them see.


def wait_for(*files):
    """Wait until the files are there; half a minute is far more than it takes."""
    until = time.monotonic() + 30
    while not all(file.exists() for file in files):
        assert time.monotonic() < until, files
        time.sleep(0.01)


def plain(place, folder):
    """Write which process this is and what its variables are, and note the call in `place`."""
    variables = {name: os.environ[name] for name in paths.VARIABLES if name in os.environ}
    seen = {"process": os.getpid(), "variables": variables}
    (folder / "seen.json").write_text(json.dumps(seen))
    with (place / "calls").open("a") as lines:
        print(folder.stem, file=lines)


def slow(place, folder):
    """Take long enough for another process to come by."""
    time.sleep(0.2)
    plain(place, folder)


def meets(place, name, other, folder):
    """Run at the same time as the toy of the other name, and so in another process."""
    (place / name).touch()
    wait_for(place / other)
    plain(place, folder)


def fails(place, others, folder):
    """Fail as soon as the others are there."""
    wait_for(*others)
    raise ValueError("this toy cannot be made")


def killed_at_first(place, folder):
    """Be half done when the process is killed; the second time, succeed."""
    started = place / "started"
    if not started.exists():
        (folder / "half").write_text("")
        paths.write_whole(started, str(os.getpid()))
        time.sleep(600)
    plain(place, folder)


def kills(place, folder):
    """Kill the process that `killed_at_first` runs in, unless another toy has done so."""
    wait_for(place / "started")
    with contextlib.suppress(FileExistsError):
        (place / "killed").touch(exist_ok=False)
        os.kill(int((place / "started").read_text()), signal.SIGKILL)
    plain(place, folder)


def ends_its_process(folder):
    os.kill(os.getpid(), signal.SIGKILL)


def toys(*makes):
    return [Artifact("toy", 1, {"x": x}, make) for x, make in enumerate(makes)]


def seen(artifact):
    return json.loads((artifact.path / "seen.json").read_text())


def calls(place):
    """Return the keys of the entries that were made whole, in order."""
    return sorted((place / "calls").read_text().split())


def keys(artifacts):
    return sorted(artifact.path.name for artifact in artifacts)


def left_over(store):
    """Return what lies in the store beside entries and their locks."""
    names = [path.name for path in [*store.iterdir(), *(store / "toy").iterdir()]]
    return [name for name in names if not re.fullmatch(r"toy|[0-9a-f]{16}(\.lock)?", name)]


# ---------------------------------------------------------------------------- filling


def test_two_workers_fill_each_once_and_progress_is_told(two_workers, store, tmp_path, capsys):
    first, second = partial(meets, tmp_path, "a", "b"), partial(meets, tmp_path, "b", "a")
    made = toys(first, second, *[partial(plain, tmp_path)] * 2)
    workers.side_by_side(made, 1, "toys")  # the profile's one worker does not matter
    assert all(artifact.done() for artifact in made)
    assert calls(tmp_path) == keys(made) and left_over(store) == []
    one, another = (seen(artifact)["process"] for artifact in made[:2])
    assert one != another and os.getpid() not in (one, another)
    told = capsys.readouterr().out.splitlines()
    assert [line.split(" toys")[0] for line in told] == [f"{n} of 4" for n in range(1, 5)]


def test_two_calls_at_once_fill_each_once(two_workers, tmp_path):
    made = toys(*[partial(slow, tmp_path)] * 4)
    other = threading.Thread(target=workers.side_by_side, args=(made, 1))
    other.start()
    workers.side_by_side(made, 1)
    other.join()
    assert all(artifact.done() for artifact in made)
    assert calls(tmp_path) == keys(made)


def test_what_somebody_else_began_and_left_is_filled_by_a_worker(two_workers, tmp_path):
    made = toys(*[partial(plain, tmp_path)] * 3)
    made[0].path.parent.mkdir(parents=True)
    locked = threading.Event()

    def somebody_else():
        with FileLock(f"{made[0].path}.lock"):
            locked.set()
            wait_for(made[1].path, made[2].path)  # they do not wait for the first

    other = threading.Thread(target=somebody_else)
    other.start()
    locked.wait()
    workers.side_by_side(made, 1)
    other.join()
    assert calls(tmp_path) == keys(made)
    assert seen(made[0])["process"] != os.getpid()


def test_a_worker_computes_with_the_variables_of_the_call(two_workers, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = {"STORE": "store", "BOOKS": "books", "HUB": "/hub", "FRESH": "1.5", "WORKERS": "2"}
    for name, value in given.items():
        monkeypatch.setenv(f"UNLEARN_{name}", value)
    made = toys(*[partial(slow, tmp_path)] * 4)
    workers.side_by_side(made[:2], 1)
    monkeypatch.delenv("UNLEARN_BOOKS")  # nothing of an earlier call is left in a worker
    monkeypatch.delenv("UNLEARN_STORE")
    monkeypatch.setattr(paths, "PROJECT", tmp_path / "project")
    workers.side_by_side(made[2:], 1)
    numbers = {"UNLEARN_FRESH": "1.5", "UNLEARN_WORKERS": "2", "UNLEARN_HUB": "/hub"}
    folders = {"UNLEARN_STORE": f"{tmp_path}/project/runs/store"}
    for artifact in made[2:]:
        assert seen(artifact)["variables"] == numbers | folders
    monkeypatch.setenv("UNLEARN_STORE", "store")
    folders = {"UNLEARN_STORE": f"{tmp_path}/store", "UNLEARN_BOOKS": f"{tmp_path}/books"}
    for artifact in made[:2]:
        assert seen(artifact)["variables"] == numbers | folders


def test_a_process_that_imports_dask_reads_the_same_corpus():
    """On Python 3.11 Dask imports a backport, with which `metadata` has no text of a package."""
    file = next(sources.site_packages("networkx").glob("networkx-*.dist-info/METADATA"))
    body = file.read_text(encoding="utf-8").partition("\n\n")[2]
    assert len(body) > 1000
    sources.source_lines.cache_clear()
    assert sources.source_lines("METADATA:networkx") == body.split("\n")


# ------------------------------------------------------------------- what goes wrong


def test_what_a_killed_worker_was_at_is_computed_by_another(two_workers, store, tmp_path):
    made = toys(partial(killed_at_first, tmp_path), *[partial(kills, tmp_path)] * 3)
    workers.side_by_side(made, 1)
    killed = int((tmp_path / "started").read_text())
    assert all(artifact.done() for artifact in made)
    assert calls(tmp_path) == keys(made) and left_over(store) == []
    assert seen(made[0])["process"] not in (killed, os.getpid())
    assert not (made[0].path / "half").exists()


def test_an_artifact_that_ends_every_worker_ends_the_call(two_workers, tmp_path):
    made = toys(ends_its_process, partial(plain, tmp_path))
    with pytest.raises(KilledWorker, match="task 'toy-.* all those workers died"):
        workers.side_by_side(made[:1], 1)
    workers.side_by_side(made[1:], 1)  # workers are started again
    assert made[1].done()


def test_an_error_is_raised_with_its_message_and_what_is_finished_stays(two_workers, tmp_path):
    made = toys(None, *[partial(plain, tmp_path)] * 3)
    others = [artifact.path / "checksums.json" for artifact in made[1:]]
    bad = Artifact("toy", 1, {"x": 0}, partial(fails, tmp_path, others))
    with pytest.raises(ValueError, match="^this toy cannot be made$"):
        workers.side_by_side([bad, *made[1:]], 1)
    assert [artifact.done() for artifact in made] == [False, True, True, True]
    mended = Artifact("toy", 1, {"x": 0}, partial(plain, tmp_path))
    workers.side_by_side([mended, *made[1:]], 1)
    assert calls(tmp_path) == keys(made)


def test_a_worker_with_another_store_is_refused(two_workers, tmp_path, monkeypatch):
    elsewhere = contextlib.nullcontext(str(tmp_path / "elsewhere" / "file"))
    monkeypatch.setattr(workers, "_shared_file", lambda _: elsewhere)
    made = toys(partial(plain, tmp_path))
    message = f"^the Dask worker tcp://.* does not see {tmp_path}/elsewhere; set UNLEARN_STORE to"
    with pytest.raises(ValueError, match=message):
        workers.side_by_side(made, 1)
    assert not made[0].path.exists()


def test_a_worker_with_several_threads_is_refused(tmp_path, monkeypatch):
    made = toys(partial(plain, tmp_path))
    with local_cluster(tmp_path, 1, threads=2, processes=False) as threaded:
        monkeypatch.setenv("UNLEARN_SCHEDULER", threaded.scheduler_address)
        monkeypatch.setenv("UNLEARN_WORKERS", "7")
        with pytest.raises(ValueError, match="has 2 threads, .*; start it with --nthreads 1$"):
            workers.side_by_side(made, 1)
    assert os.environ["UNLEARN_WORKERS"] == "7"  # the worker was in this process
    assert not made[0].path.exists()


def test_without_a_worker_the_call_says_so_and_waits_for_the_first(tmp_path, monkeypatch):
    made, told = toys(partial(plain, tmp_path)), []
    with local_cluster(tmp_path, 0, threads=1, processes=False) as empty:

        def tell(line):
            told.append(line)
            empty.scale(1)

        monkeypatch.setattr(workers, "tell", tell)
        address = empty.scheduler_address
        monkeypatch.setenv("UNLEARN_SCHEDULER", address)
        workers.side_by_side(made, 1)
    assert told == [f"the scheduler at {address} has no worker yet; this waits for the first"]
    assert made[0].done()


# -------------------------------------------------------------------- wrong addresses


@pytest.fixture
def free_port():
    """A port of this machine that nothing listens at."""
    with socket.socket() as line:
        line.bind(("127.0.0.1", 0))
        yield line.getsockname()[1]  # bound and not listening, so that nothing else takes it


def refusal(monkeypatch, address):
    """Return the one line that a call with this address ends with."""
    monkeypatch.setenv("UNLEARN_SCHEDULER", address)
    with pytest.raises(ValueError) as caught:
        workers.side_by_side(toys(ends_its_process), 1)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(f"UNLEARN_SCHEDULER={address}: no Dask scheduler answers (")
    assert text.endswith(
        "start one with `dask scheduler` and give the address that it prints, or unset the variable"
    )
    return text


def test_an_address_where_nothing_listens(monkeypatch, free_port):
    assert "refused" in refusal(monkeypatch, f"tcp://127.0.0.1:{free_port}")


@pytest.mark.parametrize("address", ["tcp://:8786", "tcp://host", "localhost:8786", "8786"])
def test_what_is_no_address(monkeypatch, address):
    assert "(it is not of the form tcp://HOST:PORT)" in refusal(monkeypatch, address)


def test_a_port_that_is_no_number(monkeypatch):
    refusal(monkeypatch, "tcp://127.0.0.1:PORT")


@pytest.mark.parametrize("closes", [True, False])
def test_a_server_of_another_kind(monkeypatch, closes):
    """It says nothing, as the scheduler's dashboard does, or closes the connection."""
    monkeypatch.setattr(workers, "ANSWERS_WITHIN", 0.1 + 30 * closes)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            server.accept()[0].close()

        if closes:
            threading.Thread(target=answer).start()
        text = refusal(monkeypatch, f"tcp://127.0.0.1:{server.getsockname()[1]}")
    assert ("something else listens" in text) == closes


def test_without_the_package(monkeypatch):
    monkeypatch.setenv("UNLEARN_SCHEDULER", "tcp://127.0.0.1:8786")
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ValueError, match=r"^UNLEARN_SCHEDULER is set, .*\[cluster\]'.*\)$"):
        workers.side_by_side(toys(ends_its_process), 1)


# --------------------------------------------------------------- a slow file system


def test_what_this_machine_sees_late_is_waited_for(tmp_path, monkeypatch):
    made = toys(*[partial(plain, tmp_path)] * 2)
    naps = []

    def nap(seconds):
        naps.append(seconds)
        made[len(naps) - 1].fill()

    monkeypatch.setattr(workers.time, "sleep", nap)
    workers._see(made)
    assert naps == [1, 1]


def test_what_this_machine_never_sees(tmp_path, monkeypatch):
    made = toys(partial(plain, tmp_path))
    monkeypatch.setattr(workers, "SEEN_WITHIN", -1)
    with pytest.raises(ValueError, match="which this machine does not see; set UNLEARN_STORE to"):
        workers._see(made)
