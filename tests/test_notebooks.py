"""The notebooks as they are committed: uniform headings, one parameters cell, short cells."""

import ast
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
HEADINGS = [
    "Setup",
    "Parameters",
    "Method",
    "Result",
    "Compared with retraining",
    "Limits",
    "Summary",
]
LANGUAGE = {  # what a kernel says of its language, beside the version
    "codemirror_mode",
    "file_extension",
    "mimetype",
    "name",
    "nbconvert_exporter",
    "pygments_lexer",
}
each = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def cells(path, kind=None):
    found = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if kind in (None, cell["cell_type"]):
            found.append(cell | {"source": "".join(cell["source"])})
    return found


def outputs(path):
    return [output for cell in cells(path, "code") for output in cell["outputs"]]


def test_there_are_notebooks():
    assert len(PATHS) >= 4
    assert all(re.fullmatch(r"\d\d_[a-z0-9_]+", path.stem) for path in PATHS)
    assert len({path.stem[:2] for path in PATHS}) == len(PATHS)


@each
def test_headings(path):
    text = "\n".join(cell["source"] for cell in cells(path, "markdown"))
    title = cells(path)[0]["source"].splitlines()[0]
    assert re.fullmatch(r"# (\d\d) · \S.*", title)[1] == path.stem[:2]
    assert len(re.findall(r"^# ", text, re.MULTILINE)) == 1
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == HEADINGS


@each
def test_one_cell_of_literal_parameters(path):
    tagged = []
    for cell in cells(path, "code"):
        if "parameters" in cell["metadata"].get("tags", []):
            tagged.append(cell)
    assert len(tagged) == 1
    values = {}
    for statement in ast.parse(tagged[0]["source"]).body:
        assert isinstance(statement, ast.Assign)
        values[statement.targets[0].id] = ast.literal_eval(statement.value)
    assert values["PROFILE"] == "laptop"


@each
def test_words_before_every_code_cell(path):
    kinds = [cell["cell_type"] for cell in cells(path)]
    before_code = {
        first for first, second in zip(kinds, kinds[1:], strict=False) if second == "code"
    }
    assert before_code == {"markdown"}


@each
def test_code_cells_are_short(path):
    lines = [cell["source"].splitlines() for cell in cells(path, "code")]
    assert not [cell for cell in lines if len(cell) > 20]
    assert not [line for cell in lines for line in cell if len(line) > 100]


@each
def test_executed_in_order_without_error_or_warning(path):
    counts = [cell["execution_count"] for cell in cells(path, "code")]
    assert counts == list(range(1, len(counts) + 1))
    assert not [output for output in outputs(path) if output["output_type"] == "error"]
    assert not [output for output in outputs(path) if output.get("name") == "stderr"]


@each
def test_nothing_of_this_machine(path):
    texts = [cell["source"] for cell in cells(path)]
    for output in outputs(path):
        shown = output.get("data", output)
        words = {kind: part for kind, part in shown.items() if not kind.startswith("image/")}
        texts.append(json.dumps(words))
    here = re.escape(str(ROOT))
    local = re.compile(rf"/(home|root|tmp|Users|work|opt|usr)/|{here}|[A-Z]:\\\\Users")
    assert not [text for text in texts if local.search(text)]


@each
def test_metadata(path):
    """As a run leaves them, but for what JupyterLab writes into a notebook that was only opened.

    That is the kernel's display name and the version of Python (`test_run_all.py` has the run's).
    """
    notebook = json.loads(path.read_text(encoding="utf-8"))
    kernel = notebook["metadata"]["kernelspec"]
    assert kernel.pop("display_name").startswith("Python 3")
    assert kernel == {"language": "python", "name": "python3"}
    language = notebook["metadata"]["language_info"]
    assert language["name"] == "python" and language.keys() - {"version"} == LANGUAGE
    minutes = notebook["metadata"]["expected_minutes"]
    assert all(minutes[profile] > 0 for profile in ("smoke", "laptop"))
    assert all("id" in cell for cell in notebook["cells"])
    everything = [notebook["metadata"], *(cell["metadata"] for cell in notebook["cells"])]
    assert not [one for one in everything if {"papermill", "execution"} & one.keys()]
