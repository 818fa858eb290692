"""The variables that users may set: what cannot be followed is refused by name, and at once."""

import os

import pytest

from unlearn_utils import __main__
from unlearn_utils.cache import paths


@pytest.fixture(autouse=True)
def none_is_set(monkeypatch, tmp_path):
    for name in paths.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()


IMPOSSIBLE = [
    (paths.STORE, "/dev/null/store"),
    (paths.STORE, "/proc/nowhere"),
    (paths.STORE, "file"),
    (paths.STORE, "file/below"),
    (paths.STORE, "long" * 100),
    (paths.FIGURES, "/dev/null/figures"),
    (paths.FIGURES, "file"),
    (paths.HUB, "nowhere"),
    (paths.HUB, "file"),
    (paths.BOOKS, "nowhere"),
    (paths.BOOKS, "file"),
    (paths.PROGRESS, "nowhere/progress.txt"),
    (paths.PROGRESS, "/proc"),
    (paths.WORKERS, "0"),
    (paths.WORKERS, "-1"),
    (paths.WORKERS, "two"),
    (paths.WORKERS, "1.5"),
    (paths.FRESH, "yesterday"),
    (paths.FRESH, "nan"),
    (paths.FRESH, "inf"),
    (paths.PRECISION, "bf16"),
]


@pytest.mark.parametrize(("name", "value"), IMPOSSIBLE)
def test_what_cannot_be_followed_is_refused_by_name(name, value, monkeypatch):
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"^{name}.*{value}") as refused:
        paths.check()
    assert "\n" not in str(refused.value)


COMMANDS = [
    ["run", "smoke"],
    ["compute", "study"],
    ["unlearn", "--model", "m", "--forget", "f", "--method", "gradient_ascent", "--out", "o"],
    ["claims"],
    ["fetch", "gpu"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_every_command_refuses_it_in_one_line(command, monkeypatch, capsys):
    monkeypatch.setenv(paths.STORE, "/proc/nowhere")
    assert __main__.main(command) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: UNLEARN_STORE=/proc/nowhere: ") and said.count("\n") == 1


def test_a_scheduler_that_does_not_answer_is_named_before_anything_is_computed(monkeypatch, capsys):
    monkeypatch.setenv(paths.SCHEDULER, "garbage")
    assert __main__.main(["compute", "study"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: UNLEARN_SCHEDULER=garbage: ") and said.count("\n") == 1


def test_what_can_be_followed_is_not(tmp_path, monkeypatch):
    (tmp_path / "hub").mkdir()
    possible = {
        paths.STORE: tmp_path / "new" / "store",
        paths.FIGURES: tmp_path / "figures",
        paths.HUB: tmp_path / "hub",
        paths.BOOKS: "hub",
        paths.PROGRESS: "progress.txt",
        paths.WORKERS: 3,
        paths.FRESH: 1700000000.5,
        paths.PRECISION: "float32",
    }
    for name, value in possible.items():
        monkeypatch.setenv(name, str(value))
    paths.check()
    assert not list((tmp_path / "new" / "store").iterdir())
    assert paths.number_of_workers(1) == 3 and paths.fresh_since() == 1700000000.5
    for name in possible:
        monkeypatch.setenv(name, "")
    paths.check()
    assert paths.number_of_workers(2) == 2 and paths.fresh_since() == 0


# ----------------------------------------------------------------------------- files that change


def test_a_file_is_whole_or_as_it_was(tmp_path):
    path = tmp_path / "file.txt"
    paths.write_whole(path, "first")
    with pytest.raises(OSError, match="no space"), paths.whole(path) as part:
        part.write_text("half")
        raise OSError("no space")
    assert path.read_text() == "first" and not list(tmp_path.glob(".*"))


def test_parts_of_processes_that_are_gone_are_found(tmp_path):
    deep = tmp_path / "deep"
    deep.mkdir()
    gone = deep / f".file.txt.{2**22 + 1}.part"  # no process has a number as high
    mine = tmp_path / f".file.txt.{os.getpid()}.part"
    for path in (gone, mine, tmp_path / ".rows.parquet.part", tmp_path / "1.part"):
        path.touch()
    assert paths.abandoned_parts(tmp_path) == [gone]


def test_what_is_set_aside_takes_the_place_of_what_was(tmp_path):
    for text in ("first", "second"):
        (tmp_path / "file").write_text(text)
        assert paths.set_aside(tmp_path / "file") == tmp_path / "file.aside"
    assert (tmp_path / "file.aside").read_text() == "second"
    (tmp_path / "file").mkdir()
    paths.set_aside(tmp_path / "file")
    assert (tmp_path / "file.aside").is_dir() and not (tmp_path / "file").exists()
    paths.remove(tmp_path / "file.aside")
    paths.remove(tmp_path / "file.aside")
    assert not (tmp_path / "file.aside").exists()
