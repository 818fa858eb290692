"""Artifacts side by side: how many processes, what is told on the way, and where."""

import os

import pytest
from filelock import FileLock

from unlearn_utils.cache import memory, workers
from unlearn_utils.cache.store import Artifact


@pytest.fixture
def toys(tmp_path, monkeypatch):
    """Return what makes n artifacts that write the number of the process that fills them."""
    monkeypatch.setenv("UNLEARN_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("UNLEARN_WORKERS", "1")
    for name in ("UNLEARN_FRESH", "UNLEARN_PROGRESS", "UNLEARN_SCHEDULER"):
        monkeypatch.delenv(name, raising=False)
    for name in memory.KEEP_FREED:
        monkeypatch.setenv(name, "1")  # given back afterwards

    def make(folder):
        (folder / "process").write_text(str(os.getpid()))

    return lambda n: [Artifact("toy", 1, {"x": x}, make) for x in range(n)]


class Pool:
    """Stands for joblib's: remembers how many processes it was asked for, and starts none."""

    asked: list

    def __init__(self, n_jobs, **_):
        Pool.asked.append(n_jobs)

    def __call__(self, tasks):
        return (function(*args, **kwargs) for function, args, kwargs in tasks)


@pytest.fixture
def asked(monkeypatch):
    """The numbers of processes that pools were asked for."""
    monkeypatch.setattr("joblib.Parallel", Pool)
    monkeypatch.setattr(Pool, "asked", [], raising=False)
    return Pool.asked


def all_done(artifacts):
    return all(artifact.done() for artifact in artifacts)


def told_counts(capsys):
    """Return what each line of progress says before the name of the artifacts."""
    return [line.split(" toys")[0] for line in capsys.readouterr().out.splitlines()]


# ------------------------------------------------------------------------------------- processes


def test_what_another_process_is_filling_is_left_for_last(toys, monkeypatch):
    made, order = toys(3), []
    made[0].path.parent.mkdir(parents=True)
    lock = FileLock(f"{made[0].path}.lock")
    lock.acquire()  # somebody else fills the first, when the last has been filled here
    real = Artifact.fill

    def fill(artifact, wait=True):
        if wait and lock.is_locked:  # the second round has begun
            order.append([each.done() for each in made])
            lock.release()
        real(artifact, wait)

    monkeypatch.setattr(Artifact, "fill", fill)
    workers.side_by_side(made, 2)
    assert order == [[False, True, True]]
    assert all_done(made)


def test_one_worker_is_this_process(toys):
    made = toys(3)
    workers.side_by_side(made, 2)  # the environment says one, and wins
    processes = [(artifact.path / "process").read_text() for artifact in made]
    assert processes == [str(os.getpid())] * 3


@pytest.mark.parametrize(
    ("environment", "given", "missing", "expected"),
    [("", 2, 3, 2), ("3", 2, 5, 3), ("1", 2, 3, 1), ("8", 2, 3, 3)],
)
def test_as_many_processes_as_the_environment_says_or_as_given_but_not_more_than_are_missing(
    toys, asked, monkeypatch, environment, given, missing, expected
):
    monkeypatch.setenv("UNLEARN_WORKERS", environment)
    made = toys(missing + 1)
    made[0].folder()
    workers.side_by_side(made, given)
    assert asked == [expected]
    assert all_done(made)


def test_what_is_there_needs_no_process_and_tells_nothing(toys, asked, capsys):
    made = toys(2)
    for artifact in made:
        artifact.folder()
    workers.side_by_side(made, 2, "toys")
    assert asked == []
    assert capsys.readouterr().out == ""


# -------------------------------------------------------------------------------------- progress


@pytest.mark.parametrize("value", [None, ""])
def test_a_line_goes_to_stdout(capsys, monkeypatch, value):
    monkeypatch.delenv("UNLEARN_PROGRESS", raising=False)
    if value is not None:
        monkeypatch.setenv("UNLEARN_PROGRESS", value)
    workers.tell("three of four")
    assert capsys.readouterr().out == "three of four\n"


def test_a_line_goes_to_the_file_of_the_environment_and_nowhere_else(capfd, monkeypatch, tmp_path):
    path = tmp_path / "progress"
    path.write_text("before\n")
    monkeypatch.setenv("UNLEARN_PROGRESS", str(path))
    for line in ("one", "two"):
        workers.tell(line)
    assert path.read_text() == "before\none\ntwo\n"
    assert capfd.readouterr() == ("", "")


def test_the_last_line_says_that_all_are_there(toys, capsys):
    made = toys(3)
    workers.side_by_side(made, 2, "toys")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" toys")[0] for line in lines] == ["1 of 3", "2 of 3", "3 of 3"]
    assert lines[-1] == "3 of 3 toys are there, about 0.0 min left"
    assert all_done(made)


def test_what_was_there_before_is_counted(toys, capsys):
    made = toys(4)
    for artifact in made[1:3]:
        artifact.folder()
    workers.side_by_side(made, 2, "toys")
    assert told_counts(capsys) == ["3 of 4", "4 of 4"]


def test_many_artifacts_tell_about_twenty_lines(toys, asked, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("UNLEARN_PROGRESS", str(tmp_path / "progress"))
    workers.side_by_side(toys(45), 2, "toys")
    told = [int(line.split()[0]) for line in (tmp_path / "progress").read_text().splitlines()]
    assert told == [*range(2, 45, 2), 45]  # every second of 45, and the last
    assert capsys.readouterr().out == ""


def test_the_time_left_by_hand(toys, asked, capsys, monkeypatch):
    clock = iter(range(0, 60000, 60))  # gains a minute at each look
    made, filled = toys(3), []
    monkeypatch.setattr(workers, "_fill", lambda *given: filled.append(given))
    monkeypatch.setattr(workers.time, "perf_counter", lambda: next(clock))
    workers.side_by_side(made, 2, "toys")
    left = [line.split("about ")[1] for line in capsys.readouterr().out.splitlines()]
    assert left == ["2.0 min left", "1.0 min left", "0.0 min left"]
    left = [(artifact, True) for artifact in made]  # nobody has filled them: once more, in vain
    assert filled == [(artifact, False) for artifact in made] + left


def test_without_a_name_nothing_is_told(toys, capfd):
    workers.side_by_side(toys(2), 2)
    assert capfd.readouterr() == ("", "")
