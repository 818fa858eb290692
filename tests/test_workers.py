"""Steps side by side: how many processes, what is told on the way, and where."""

import os
from dataclasses import replace

import pytest
from filelock import FileLock

from unlearn_utils.cache import workers
from unlearn_utils.cache.store import Artifact
from unlearn_utils.profiles import PROFILES

TWO = replace(PROFILES["smoke"], workers=2)


@pytest.fixture
def steps(tmp_path, monkeypatch):
    """Makes n steps that write the number of the process that fills them."""
    monkeypatch.setenv("UNLEARN_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("UNLEARN_WORKERS", "1")
    for name in ("UNLEARN_FRESH", "UNLEARN_PROGRESS"):
        monkeypatch.delenv(name, raising=False)
    for name in workers.KEEP_FREED:
        monkeypatch.setenv(name, "1")  # given back afterwards

    def made(n):
        return [Artifact("toy", 1, {"x": x}, lambda folder: (folder / "process").write_text(str(os.getpid())) and None) for x in range(n)]

    return made


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


# ---------------------------------------------------------------------------------------------- processes


def test_what_another_process_is_filling_is_left_for_last(steps, monkeypatch):
    """The first of three is locked by somebody else, who fills it when the last has been filled here."""
    made, order = steps(3), []
    made[0].path.parent.mkdir(parents=True)
    lock = FileLock(f"{made[0].path}.lock")
    lock.acquire()
    real = Artifact.fill

    def fill(step, wait=True):
        if wait and lock.is_locked:  # the second round has begun
            order.append([s.done() for s in made])
            lock.release()
        real(step, wait)

    monkeypatch.setattr(Artifact, "fill", fill)
    workers.side_by_side(TWO, made)
    assert order == [[False, True, True]] and all(s.done() for s in made)


def test_one_worker_is_this_process(steps):
    """The environment wins over the profile's two."""
    made = steps(3)
    workers.side_by_side(TWO, made)
    assert [(s.path / "process").read_text() for s in made] == [str(os.getpid())] * 3


@pytest.mark.parametrize(("environment", "profile", "missing", "expected"), [("", 2, 3, 2), ("3", 2, 5, 3), ("1", 2, 3, 1), ("8", 2, 3, 3)])
def test_how_many_processes(steps, asked, monkeypatch, environment, profile, missing, expected):
    """`UNLEARN_WORKERS` if it says something, else the profile's; never more than there are steps to fill."""
    monkeypatch.setenv("UNLEARN_WORKERS", environment)
    made = steps(missing + 1)
    made[0].folder()
    workers.side_by_side(replace(TWO, workers=profile), made)
    assert asked == [expected] and all(s.done() for s in made)


def test_what_is_there_needs_no_process_and_tells_nothing(steps, asked, capsys):
    made = steps(2)
    for step in made:
        step.folder()
    workers.side_by_side(TWO, made, "toys")
    assert asked == [] and capsys.readouterr().out == ""


# ---------------------------------------------------------------------------------------------- progress


def test_a_line_goes_to_stdout(capsys, monkeypatch):
    for value in (None, ""):
        monkeypatch.delenv("UNLEARN_PROGRESS", raising=False) if value is None else monkeypatch.setenv("UNLEARN_PROGRESS", value)
        workers.tell("three of four")
        assert capsys.readouterr().out == "three of four\n"


def test_a_line_goes_to_the_file_of_the_environment_and_nowhere_else(capfd, monkeypatch, tmp_path):
    path = tmp_path / "progress"
    path.write_text("before\n")
    monkeypatch.setenv("UNLEARN_PROGRESS", str(path))
    for line in ("one", "two"):
        workers.tell(line)
    assert path.read_text() == "before\none\ntwo\n" and capfd.readouterr() == ("", "")


def test_the_last_line_says_that_all_are_there(steps, capsys):
    made = steps(3)
    workers.side_by_side(TWO, made, "toys")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" toys")[0] for line in lines] == ["1 of 3", "2 of 3", "3 of 3"] and all(s.done() for s in made)
    assert lines[-1] == "3 of 3 toys are there, about 0.0 min left"


def test_what_was_there_before_is_counted(steps, capsys):
    made = steps(4)
    for step in made[1:3]:
        step.folder()
    workers.side_by_side(TWO, made, "toys")
    assert [line.split(" toys")[0] for line in capsys.readouterr().out.splitlines()] == ["3 of 4", "4 of 4"]


def test_many_steps_tell_about_twenty_lines(steps, asked, capsys, monkeypatch, tmp_path):
    """Every second of 45, and the last."""
    monkeypatch.setenv("UNLEARN_PROGRESS", str(tmp_path / "progress"))
    workers.side_by_side(TWO, steps(45), "toys")
    told = [int(line.split()[0]) for line in (tmp_path / "progress").read_text().splitlines()]
    assert told == [*range(2, 45, 2), 45] and capsys.readouterr().out == ""


def test_the_time_left_by_hand(steps, asked, capsys, monkeypatch):
    """A clock that gains a minute at each look: after 1, 2, 3 of 3 steps 1, 2, 3 minutes have gone."""
    clock = iter(range(0, 60000, 60))
    made, told = steps(3), []
    monkeypatch.setattr(workers, "_fill", lambda step: told.append(step))
    monkeypatch.setattr(workers.time, "perf_counter", lambda: next(clock))
    workers.side_by_side(TWO, made, "toys")
    assert [line.split("about ")[1] for line in capsys.readouterr().out.splitlines()] == ["2.0 min left", "1.0 min left", "0.0 min left"]
    assert told == made


def test_without_a_name_nothing_is_told(steps, capfd):
    workers.side_by_side(TWO, steps(2))
    assert capfd.readouterr() == ("", "")
