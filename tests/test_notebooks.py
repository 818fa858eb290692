"""The notebooks as they are committed: uniform headings, one parameters cell, short cells, clean outputs."""

import ast
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
HEADINGS = ["Setup", "Parameters", "Method", "Result", "Compared with retraining", "Limits", "Summary"]
each = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def cells(path, kind=None):
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell | {"source": "".join(cell["source"])} for cell in found if kind in (None, cell["cell_type"])]


def outputs(path):
    return [output for cell in cells(path, "code") for output in cell["outputs"]]


def test_there_are_notebooks():
    assert len(PATHS) >= 4
    assert all(re.fullmatch(r"\d\d_[a-z0-9_]+", path.stem) for path in PATHS)
    assert len({path.stem[:2] for path in PATHS}) == len(PATHS)


@each
def test_headings(path):
    text = "\n".join(cell["source"] for cell in cells(path, "markdown"))
    assert re.fullmatch(r"# (\d\d) · \S.*", cells(path)[0]["source"].splitlines()[0])[1] == path.stem[:2]
    assert len(re.findall(r"^# ", text, re.MULTILINE)) == 1
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == HEADINGS


@each
def test_one_cell_of_literal_parameters(path):
    tagged = [cell for cell in cells(path, "code") if "parameters" in cell["metadata"].get("tags", [])]
    assert len(tagged) == 1
    statements = ast.parse(tagged[0]["source"]).body
    assert all(isinstance(statement, ast.Assign) for statement in statements)
    values = {statement.targets[0].id: ast.literal_eval(statement.value) for statement in statements}
    assert values["PROFILE"] == "laptop"


@each
def test_words_before_every_code_cell_and_at_most_20_lines(path):
    kinds = [cell["cell_type"] for cell in cells(path)]
    assert all(before == "markdown" for before, kind in zip(kinds, kinds[1:], strict=False) if kind == "code")
    assert not [cell["source"] for cell in cells(path, "code") if len(cell["source"].splitlines()) > 20]


@each
def test_executed_in_order_without_error_or_warning(path):
    counts = [cell["execution_count"] for cell in cells(path, "code")]
    assert counts == list(range(1, len(counts) + 1))
    assert not [o for o in outputs(path) if o["output_type"] == "error" or o.get("name") == "stderr"]


@each
def test_nothing_of_this_machine(path):
    texts = [json.dumps({k: v for k, v in o.get("data", o).items() if not k.startswith("image/")}) for o in outputs(path)]
    local = re.compile(r"/(home|root|tmp|Users|work|opt|usr)/|" + re.escape(str(ROOT)) + r"|[A-Z]:\\\\Users")
    assert not [text for text in texts + [c["source"] for c in cells(path)] if local.search(text)]


@each
def test_metadata(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert all(notebook["metadata"]["expected_minutes"][profile] > 0 for profile in ("smoke", "laptop"))
    assert all("id" in cell for cell in notebook["cells"])
    everything = [notebook["metadata"], *(cell["metadata"] for cell in notebook["cells"])]
    assert not [m for m in everything if {"papermill", "execution"} & m.keys()]
    assert "version" not in notebook["metadata"].get("language_info", {})
