"""What makes a notebook run again, beside a lost table (`test_run_all.py`)."""

import json

import pytest

from unlearn_utils.cache import paths
from unlearn_utils.runner import stamps
from unlearn_utils.runner.places import Places

CELLS = [
    ("markdown", "# 03 · Words", []),
    ("code", 'PROFILE = "laptop"', ["parameters"]),
    ("code", "print(1)\nprint(2)", []),
]
LAB = {  # what JupyterLab writes into a notebook that was only opened
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python", "version": "3.11.7"},
}
PACKAGE = ("unlearn_utils/runner/stamps.py", "unlearn_utils/deep/er/other.py")
PINS = ("unlearn_utils/data/manifest.csv", "requirements.lock")


def write_notebook(path, cells, outputs=()):
    made = []
    for kind, source, tags in cells:
        cell = {"cell_type": kind, "source": source.splitlines(True), "outputs": list(outputs)}
        cell["metadata"] = {"tags": tags} if tags else {}
        made.append(cell)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"cells": made, "metadata": {}}))
    return path


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A package of two files, a notebook that was executed and recorded, its figures and more."""
    monkeypatch.setenv("UNLEARN_STORE", "/a/store")
    monkeypatch.setenv("UNLEARN_FIGURES", str(tmp_path / "figures"))
    monkeypatch.setattr(paths, "PROJECT", tmp_path)
    monkeypatch.setattr(paths, "MANIFEST", tmp_path / PINS[0])
    monkeypatch.setattr(paths, "LOCK", tmp_path / PINS[1])
    for name in (*PACKAGE, *PINS):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"of {name}")
    (tmp_path / "figures").mkdir()
    for name in ("fig03_x.png", "table03_x.csv", "table04_y.csv", "seconds03.csv"):
        (tmp_path / "figures" / name).write_text(name)
    path = write_notebook(tmp_path / "notebooks" / "03_words.ipynb", CELLS)
    write_notebook(tmp_path / "runs" / "smoke" / "03_words.ipynb", CELLS, ["1"])
    places = Places(tmp_path, "smoke")
    stamps.record(places, path, stamps.inputs("smoke", path), 1.23456)
    return tmp_path


def unchanged(root, profile="smoke"):
    return stamps.unchanged(Places(root, profile), root / "notebooks" / "03_words.ipynb")


def test_what_was_recorded_is_unchanged(root):
    assert unchanged(root)
    recorded = json.loads((root / "runs" / "smoke" / "stamps" / "03.json").read_text())
    assert set(recorded["outputs"]) == {"03_words.ipynb", "fig03_x.png", "table03_x.csv"}
    assert recorded["minutes"] == 1.235


def test_nothing_recorded_is_a_change(root):
    (root / "runs" / "smoke" / "stamps" / "03.json").unlink()
    assert not unchanged(root)


@pytest.mark.parametrize("name", [*PACKAGE, *PINS])
def test_the_package_and_its_pins_are_inputs(root, name):
    (root / name).write_text("another")
    assert not unchanged(root)


@pytest.mark.parametrize("name", ["new.py", "deep/er/new.py"])
def test_a_new_module_is_an_input(root, name):
    (root / "unlearn_utils" / name).write_text("")
    assert not unchanged(root)


@pytest.mark.parametrize(
    "cells",
    [
        [*CELLS[:2], ("code", "print(1)\nprint(3)", [])],
        [*CELLS, ("code", "", [])],
        [CELLS[0], CELLS[2], CELLS[1]],
        [*CELLS[:2], ("markdown", CELLS[2][1], [])],
        [CELLS[0], ("code", 'PROFILE = "laptop"', []), CELLS[2]],
    ],
)
def test_cells_are_inputs(root, cells):
    write_notebook(root / "notebooks" / "03_words.ipynb", cells)
    assert not unchanged(root)


def test_what_a_notebook_printed_is_no_input(root):
    write_notebook(root / "notebooks" / "03_words.ipynb", CELLS, ["printed"])
    assert unchanged(root)


def test_profile_and_store_are_inputs(root, monkeypatch):
    path = root / "notebooks" / "03_words.ipynb"
    assert not unchanged(root, "laptop")
    assert stamps.inputs("laptop", path) != stamps.inputs("smoke", path)
    monkeypatch.setenv("UNLEARN_STORE", "/another/store")
    assert not unchanged(root)


def test_the_committed_tables_of_other_profiles_are_inputs(root):
    """A notebook shows some of them; its own run's are outputs."""
    for name in ("study", "published"):
        table = root / "figures" / name / "table18_x.csv"
        table.parent.mkdir()
        table.write_text("1")
        path = root / "notebooks" / "03_words.ipynb"
        before = {profile: stamps.inputs(profile, path) for profile in ("smoke", name)}
        assert not unchanged(root)
        table.write_text("2")
        assert stamps.inputs("smoke", path) != before["smoke"]
        assert stamps.inputs(name, path) == before[name]


def test_the_folder_that_stands_in_for_the_hub_is_an_input(root, monkeypatch):
    monkeypatch.setenv("UNLEARN_HUB", "/a/mirror")
    assert not unchanged(root)


@pytest.mark.parametrize(
    "name", ["runs/smoke/03_words.ipynb", "figures/fig03_x.png", "figures/table03_x.csv"]
)
@pytest.mark.parametrize("lost", [True, False])
def test_outputs_that_were_edited_or_lost_are_made_again(root, name, lost):
    if lost:
        (root / name).unlink()
    else:
        (root / name).write_text("edited")
    assert not unchanged(root)


@pytest.mark.parametrize("profile", ["smoke", "laptop"])
def test_a_notebook_that_was_only_opened_in_jupyterlab_is_unchanged(root, profile):
    places = Places(root, profile)
    path = root / "notebooks" / "03_words.ipynb"
    stamps.record(places, path, stamps.inputs(profile, path), 1)
    for one in {path, places.executed(path)}:
        notebook = json.loads(one.read_text())
        for cell in notebook["cells"]:
            cell["source"] = "".join(cell["source"])
        notebook |= {"metadata": LAB, "nbformat": 4, "nbformat_minor": 5}
        one.write_text(json.dumps(notebook, indent=1, sort_keys=True) + "\n")
    assert unchanged(root, profile)


@pytest.mark.parametrize(
    "changed", [{"outputs": ["2"]}, {"source": "print(3)"}, {"execution_count": 7}]
)
def test_an_executed_notebook_that_was_changed_is_made_again(root, changed):
    path = root / "runs" / "smoke" / "03_words.ipynb"
    notebook = json.loads(path.read_text())
    notebook["cells"][-1] |= changed
    path.write_text(json.dumps(notebook))
    assert not unchanged(root)


def test_another_notebook_s_table_does_not_matter(root):
    (root / "figures" / "table04_y.csv").write_text("another")
    (root / "figures" / "seconds03.csv").unlink()  # never the same twice: no output
    assert unchanged(root)


def test_minutes_of_every_notebook_in_order(root):
    places = Places(root, "smoke")
    stamps.record(places, root / "notebooks" / "01_first.ipynb", "x", 0.5)
    stamps.summarise(places)
    assert (
        root / "runs" / "smoke" / "run.csv"
    ).read_text() == "notebook,minutes\n01,0.5\n03,1.235\n"


DAMAGED = {
    "cut short": '{"inputs": "x", "outp',
    "something else": '{"a": 1}',
    "a list": "[]",
    "a number": "3",
    "deep": "[" * 100_000,
    "nothing": "",
    "bytes": b"\xff\xfe",
    "wrong minutes": '{"inputs": "x", "outputs": {}, "minutes": "long"}',
    "wrong outputs": '{"inputs": "x", "outputs": 7, "minutes": 1}',
    "no outputs": '{"inputs": "x", "outputs": [], "minutes": 1}',
    "outputs are words": '{"inputs": "x", "outputs": "", "minutes": 1}',
    "a folder": None,
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_record_is_named_and_set_aside(root, content, capsys):
    stamp = root / "runs" / "smoke" / "stamps" / "03.json"
    stamp.unlink()
    if content is None:
        stamp.mkdir()
    else:
        stamp.write_bytes(content if isinstance(content, bytes) else content.encode())
    stamps.summarise(Places(root, "smoke"))
    assert (root / "runs" / "smoke" / "run.csv").read_text() == "notebook,minutes\n"
    said = capsys.readouterr().err
    assert said.startswith("runs/smoke/stamps/03.json is no record of an execution")
    assert "made again" in said and said.count("\n") == 1
    assert stamp.with_name("03.json.aside").exists()
    assert not unchanged(root) and capsys.readouterr().err == ""


def test_a_record_cut_at_any_length_is_set_aside(root, capsys):
    stamp = root / "runs" / "smoke" / "stamps" / "03.json"
    whole = stamp.read_bytes()
    for length in range(len(whole)):
        stamp.write_bytes(whole[:length])
        assert not unchanged(root)
        assert capsys.readouterr().err.startswith("runs/smoke/stamps/03.json is no record")
        assert stamp.with_name("03.json.aside").read_bytes() == whole[:length]
    stamp.write_bytes(whole)
    assert unchanged(root)


def test_a_changed_output_is_named_and_set_aside(root, capsys):
    table = root / "figures" / "table03_x.csv"
    table.write_text("my own")
    (root / "figures" / "fig03_x.png").unlink()
    assert not unchanged(root)
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(
        "figures/table03_x.csv is not what its notebook wrote; it is made again"
    )
    assert second == "fig03_x.png is gone; it is made again"
    assert table.with_name("table03_x.csv.aside").read_text() == "my own" and not table.exists()


@pytest.mark.parametrize("content", ["", "[]", '{"cells": [', '{"cells": 3, "metadata": {}}', None])
def test_a_damaged_executed_notebook_is_named_and_set_aside(root, content, capsys):
    path = root / "runs" / "smoke" / "03_words.ipynb"
    path.unlink()
    if content is None:
        path.mkdir()
    else:
        path.write_text(content)
    assert not unchanged(root)
    assert "runs/smoke/03_words.ipynb is not what its notebook wrote" in capsys.readouterr().err
    assert not path.exists() and path.with_name("03_words.ipynb.aside").exists()


def test_what_is_no_file_in_the_place_of_an_output_is_set_aside(root, capsys):
    """Also where the package has changed, so that nobody asks what the output should be."""
    table, figure = root / "figures" / "table03_x.csv", root / "figures" / "fig03_x.png"
    for path in (table, figure):
        path.unlink()
    table.mkdir()
    figure.symlink_to(figure.name)
    places, notebook = Places(root, "smoke"), root / "notebooks" / "03_words.ipynb"
    assert stamps.outputs(places, notebook)["table03_x.csv"] == ""
    stamps.make_way(places, notebook)
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("figures/fig03_x.png is no file; it is made again")
    assert second.startswith("figures/table03_x.csv is no file; it is made again")
    assert not table.exists() and table.with_name("table03_x.csv.aside").is_dir()
    stamps.make_way(places, notebook)
    assert capsys.readouterr().err == ""


def test_a_source_is_never_moved(root):
    """The committed profile's executed notebooks are their own sources."""
    places = Places(root, "laptop")
    path = root / "notebooks" / "03_words.ipynb"
    stamps.record(places, path, stamps.inputs("laptop", path), 1)
    notebook = json.loads(path.read_text())
    notebook["cells"][-1]["outputs"] = ["another"]
    path.write_text(json.dumps(notebook))
    assert not stamps.unchanged(places, path)
    assert path.exists()


def test_a_new_file_of_the_user_s_is_left_where_it_is(root):
    own = root / "figures" / "fig03_mine.png"
    own.write_text("mine")
    assert not unchanged(root)
    assert own.exists()


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "file.txt"
    paths.write_whole(path, "naïve")
    with pytest.raises(UnicodeEncodeError):
        paths.write_whole(path, "half \ud800")
    assert path.read_text(encoding="utf-8") == "naïve"
