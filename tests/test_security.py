"""What SECURITY.md promises of the code: read in the package's own source, not taken on trust."""

import ast
import re
from pathlib import Path

import pytest

from unlearn_utils import profiles
from unlearn_utils.data import hub

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "unlearn_utils").rglob("*.py"))
EXECUTES = {  # what a file's content could run, called as a function or as one of a module
    "eval",
    "exec",
    "joblib.load",
    "marshal.load",
    "marshal.loads",
    "pickle.load",
    "pickle.loads",
    "shelve.open",
    "torch.load",
    "yaml.load",
}
# a worker of a scheduler computes what it is sent
ALLOWED = {("workers.py", "pickle.loads")}


def calls(path):
    """Yield each call of a file, with the name that is called."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def executing(path):
    """Return the calls of a file that could run what they read."""
    found = {(path.name, name) for name, _ in calls(path) if name in EXECUTES}
    for name, node in calls(path):
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if given.get("allow_pickle", "False") != "False":
            found.add((path.name, f"{name} with pickles"))
    return found


def trusting(path):
    """Return the calls of a file that may run code which comes with a model."""
    found = set()
    for name, node in calls(path):
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        loads = re.fullmatch(r"Auto\w+\.from_(pretrained|config)", name)
        if given.get("trust_remote_code", "None" if loads else "False") != "False":
            found.add((path.name, name))
    return found


def test_nothing_runs_what_it_reads():
    found = set().union(*(executing(path) for path in FILES))
    assert found == ALLOWED


def test_no_model_brings_code_along():
    assert len(FILES) > 50
    assert not set().union(*(trusting(path) for path in FILES))


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(path)",
        "eval(text)",
        "pickle.loads(data)",
        "np.load(path, allow_pickle=True)",
    ],
)
def test_a_line_that_could_run_something_is_found(tmp_path, line):
    (tmp_path / "module.py").write_text(line)
    assert executing(tmp_path / "module.py")


@pytest.mark.parametrize(
    "line",
    [
        "AutoModelForCausalLM.from_pretrained(folder)",
        "AutoConfig.from_pretrained(folder, trust_remote_code=trusted)",
        "load_dataset(name, trust_remote_code=True)",
    ],
)
def test_a_line_that_trusts_is_found(tmp_path, line):
    (tmp_path / "module.py").write_text(line)
    assert trusting(tmp_path / "module.py")


def test_every_model_and_dataset_of_a_profile_is_a_commit():
    published = [profile.hub for profile in profiles.PROFILES.values() if profile.hub]
    assert published and hub.DATASETS
    for one in [*published, *hub.DATASETS.values()]:
        pinned_at_the_first_fetch = one.revision in ("step48000", "main")
        assert pinned_at_the_first_fetch or re.fullmatch("[0-9a-f]{40}", one.revision), one


def test_every_promise_names_tests_that_are_there():
    promised, _, _ = (ROOT / "SECURITY.md").read_text(encoding="utf-8").partition("What nobody")
    for promise in re.split(r"^- ", promised, flags=re.MULTILINE)[1:]:
        named = re.findall(r"`(tests/test_\w+\.py)`", promise)
        assert named, promise
        assert all((ROOT / name).exists() for name in named), promise
