"""The structure of docs/design.md: imports go downwards only, and a method decides once."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from unlearn_utils.core import methods

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "unlearn_utils"
MAY_IMPORT = {  # folder or module of the package -> what of the package it may import
    "core": {"core"},
    "cache": {"cache"},
    "profiles": {"cache"},
    "data": {"core", "cache", "profiles", "data"},
    "engine": {"core", "cache", "profiles", "data", "engine"},
    "study": {"core", "cache", "profiles", "data", "engine", "study"},
    "findings": {"core", "cache", "profiles", "data", "engine", "study", "findings"},
    "app": {"core", "cache", "profiles", "data", "engine", "app"},
    "runner": {"core", "cache", "profiles", "data", "runner"},
}
FILES = sorted(PACKAGE.rglob("*.py"))


def room(path):
    """Return the folder, or the module, at the top of the package that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path):
    """Yield the dotted names that a file imports, wherever the statement stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_downwards_only(path):
    place = room(path)
    if place in ("__main__", "__init__"):
        return  # the command line stands above all; the package itself imports nothing of its own
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "unlearn_utils" and len(parts) > 1 and parts[1] != "__version__":
            assert parts[1] in MAY_IMPORT[place], f"{path.relative_to(ROOT)} imports {name}"


def test_every_folder_is_of_the_plan_and_says_what_it_holds():
    folders = {path.parent for path in FILES}
    for folder in folders:
        text = (folder / "__init__.py").read_text(encoding="utf-8")
        tree = ast.parse(text)
        assert len(ast.get_docstring(tree) or "") > 80, folder
        if folder != PACKAGE:
            assert len(tree.body) == 1, f"{folder}/__init__.py holds more than its docstring"
    tops = {room(path) for path in FILES} - {"__main__", "__init__"}
    assert tops == set(MAY_IMPORT)


def test_the_curation_of_the_corpus_is_imported_by_the_manifest_and_the_command_line_alone():
    users = set()
    for path in FILES:
        if "curation" not in path.parts and any("curation" in name for name in imported(path)):
            users.add(path.relative_to(PACKAGE).as_posix())
    assert users == {"data/manifest.py", "__main__.py"}


SCRIPT = """
import importlib, os, sys
before = dict(os.environ)
for name in sys.argv[1:]:
    importlib.import_module(name)
assert dict(os.environ) == before, "an import changed a variable"
print(sorted({"torch", "transformers"} & set(sys.modules)))
"""


VARIABLES = """
import importlib, os, sys
before = {name: value for name, value in os.environ.items() if "UNLEARN" in name}
for name in sys.argv[1:]:
    importlib.import_module(name)
assert before == {name: value for name, value in os.environ.items() if "UNLEARN" in name}
"""


def modules(*tops):
    """Return the dotted names of all modules in these folders."""
    paths = [path for path in FILES if room(path) in tops and path.name != "__init__.py"]
    return [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths]


def heavy(names):
    command = [sys.executable, "-c", SCRIPT, *names]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_runner_and_the_table_of_methods_import_no_torch():
    light = ["unlearn_utils.profiles", "unlearn_utils.core.methods", "unlearn_utils.core.tables"]
    assert heavy(modules("runner", "cache") + light) == "[]"


def test_importing_changes_no_variable():
    every = modules(*MAY_IMPORT)
    assert len(every) > 40
    command = [sys.executable, "-c", VARIABLES, *every]
    assert subprocess.run(command, cwd=ROOT).returncode == 0


def strings(path):
    """Return the strings of a file that are a method's name, or a term's that is no plain word."""
    names = set(methods.every()) | set(methods.TERMS) - {"descent"}
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and node.value in names:
            found.append((node.lineno, node.value))
    return found


POOLS = ("Parallel", "ProcessPoolExecutor", "Pool")
NAMED = {
    "core/methods.py",  # the table
    "study/method_paths.py",  # the two methods of claim C2, as constants
    "study/released_code.py",  # the method that has a defect
}


def test_a_method_or_a_term_is_named_in_the_table_and_where_a_claim_is_about_it():
    found = {path.relative_to(PACKAGE).as_posix(): strings(path) for path in FILES}
    assert {place: lines for place, lines in found.items() if lines and place not in NAMED} == {}
    assert all(found[place] for place in NAMED)


def test_every_pool_of_processes_ends_with_the_one_that_started_it():
    """A child of a fork server waits for ever when its parent was killed."""
    pools = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(POOLS):
                pools[path.relative_to(PACKAGE).as_posix()] = path.read_text(encoding="utf-8")
    assert {*pools} == {"cache/workers.py", "study/costs.py"}
    for text in pools.values():
        assert re.search(r"initializer\W+endings\.end_with\b", text)


def test_the_variables_are_named_in_one_module():
    users = set()
    for path in FILES:
        if re.search(r"[\"']UNLEARN_", path.read_text(encoding="utf-8")):
            users.add(path.relative_to(PACKAGE).as_posix())
    assert users == {"cache/paths.py"}


def test_the_root_folder_is_found_in_one_module():
    users = set()
    for path in FILES:
        if re.search(r"__file__", path.read_text(encoding="utf-8")):
            users.add(path.relative_to(PACKAGE).as_posix())
    assert users <= {"cache/paths.py", "runner/stamps.py"}


def test_lines_are_at_most_100_characters_long():
    long = []
    for folder in ("unlearn_utils", "tests", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                if len(line) > 100:
                    long.append(f"{path.relative_to(ROOT)}:{number}")
    assert not long
