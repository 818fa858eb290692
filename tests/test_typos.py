"""A path with a typo costs no time: it is one line, said before torch is imported."""

import json
import subprocess
import sys

import pytest

# runs command lines one after the other; of each: exit code, what was said, what is imported
SCRIPT = """
import contextlib, io, json, sys
from unlearn_utils import __main__

found = []
for line in json.load(sys.stdin):
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            code = __main__.main(line)
        except SystemExit as error:
            code = error.code
    heavy = [name for name in ("torch", "transformers", "datasets") if name in sys.modules]
    found.append((code, said.getvalue(), heavy))
print(json.dumps(found))
"""
NEEDED = {  # of each command: what must be there, or be new
    "unlearn": ("model", "forget", "retain", "unseen", "general", "out"),
    "tune": ("model", "forget", "retain", "unseen", "general", "out"),
    "evaluate": ("model", "documents", "unseen"),
    "compare": ("models", "documents", "unseen"),
    "example": ("",),
}
METHOD = {"unlearn": "ascent_descent_general", "tune": "all"}
TYPO = "a\nb"  # no model of the hub has such a name
TYPOS = [
    *((command, option, f"nowhere/{TYPO}") for command in NEEDED for option in NEEDED[command]),
    *((command, "model", "someone/tpyo") for command in ("unlearn", "tune", "evaluate")),
    ("evaluate", "against", f"nowhere/{TYPO}"),
    ("evaluate", "against", "tpyo"),
    ("compare", "models", "someone/tpyo"),
    ("unlearn", "checkpoints", "nowhere/deeper"),
    ("unlearn", "out", "model"),
    ("tune", "out", "forget"),
    ("evaluate", "out", "table.csv"),
    ("evaluate", "out", "table.csv/deeper.csv"),
    ("compare", "plot", "table.csv/deeper.png"),
    ("compare", "plot", "table.png"),  # its numbers would go to table.csv
    ("compare", "plot", "figure.png"),
    ("compare", "plot", "figure.jpg"),
    ("example", "", "forget"),
]


def line(folder, command, typo, wrong):
    """Return a command line in which one path is wrong."""
    names = dict.fromkeys(NEEDED[command])
    names[typo] = None
    found = [command]
    for name in names:
        given = wrong if name == typo else right(name)
        found += [f"--{name}"] * bool(name) + [given if "tpyo" in given else str(folder / given)]
    if command in METHOD:
        found += ["--method", METHOD[command]]
    return found


def right(name):
    """Return the path of an option, as it is right in the folder of the test."""
    other = {"models": "model", "documents": "forget", "against": "model", "plot": "new.png"}
    return other.get(name, "new.csv" if name == "out" else name)


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What each mistake of `TYPOS` comes to; and that nothing was written."""
    folder = tmp_path_factory.mktemp("typos")
    for name in ("model", "forget", "retain", "unseen", "general"):
        (folder / name).mkdir()
        (folder / name / "a.txt").write_text(name)
    for name in ("table.csv", "figure.png"):
        (folder / name).write_text("mine")
    before = sorted(folder.rglob("*"))
    lines = [line(folder, *typo) for typo in TYPOS]
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, input=json.dumps(lines), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sorted(folder.rglob("*")) == before
    return json.loads(done.stdout)


@pytest.mark.parametrize("number", range(len(TYPOS)), ids=["-".join(one[:2]) for one in TYPOS])
def test_a_typo_is_one_line_before_torch_is_imported(number, answers):
    command, option, wrong = TYPOS[number]
    code, said, heavy = answers[number]
    assert code == 2
    assert said.startswith("error: ") and said.count("\n") == 1
    assert " ".join(wrong.replace("table.png", "table.csv").split()) in said
    assert option in ("model", "models", "against") or (f"--{option}" if option else "DIR") in said
    assert heavy == []
