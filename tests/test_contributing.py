"""CONTRIBUTING's worked examples, followed to the letter in a copy of the package."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
SEVEN = [
    "gradient_ascent",
    "random_label",
    "adversarial",
    "ascent_descent_general",
    "ascent_descent_in_distribution",
    "ascent_kl_general",
    "ascent_kl_in_distribution",
]


def example(name):
    """Return the lines of the example of that name."""
    found = re.search(rf"<!-- example: {re.escape(name)} -->\n```python\n(.*?)```", TEXT, re.DOTALL)
    return found[1]


def add_row(text, table, row):
    """Return the text with a row at the end of a table, a literal that ends where its lines do."""
    start = text.index(f"{table}: dict")
    end = text.index("\n}\n", start)
    closing = "\n    )" if text[start:end].endswith("\n    )") else ""
    end -= len(closing)
    return text[: end + 1] + row.rstrip("\n") + text[end:]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A copy of the project with one function and one row for a method, and for a score."""
    folder = tmp_path_factory.mktemp("copy")
    for name in ("unlearn_utils", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    core = folder / "unlearn_utils" / "core"

    losses = (core / "losses.py").read_text(encoding="utf-8")
    (core / "losses.py").write_text(f"{losses}\n\n{example('losses.py')}", encoding="utf-8")

    methods = (core / "methods.py").read_text(encoding="utf-8")
    methods = add_row(methods, "METHODS", example("methods.py"))
    (core / "methods.py").write_text(methods, encoding="utf-8")

    membership = (core / "membership.py").read_text(encoding="utf-8")
    before, table, after = membership.partition("\nSCORES: dict")
    membership = f"{before}\n{example('membership.py')}\n\n{table.lstrip()}{after}"
    membership = add_row(membership, "SCORES", example("row of SCORES"))
    (core / "membership.py").write_text(membership, encoding="utf-8")

    return folder


def run(folder, *words):
    """Run Python in the copy."""
    environment = os.environ | {
        "PYTHONPATH": str(folder),
        "UNLEARN_STORE": str(folder / "store"),
        "UNLEARN_FIGURES": str(folder / "figures"),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def seen(folder):
    """What a new user sees of the method and of the score."""
    script = str(folder / "tests" / "try_new_method.py")
    done = run(folder, script, "npo", "least likely", "least_likely")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_no_test_has_to_change_for_them(folder):
    tests = ["tests/test_methods.py", "tests/test_metrics.py", "tests/test_evaluation.py"]
    done = run(folder, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests)
    assert done.returncode == 0, done.stdout


def test_the_command_line_lists_the_method_with_its_words(seen):
    (line,) = [line for line in seen["listed"].splitlines() if line.startswith("npo ")]
    assert "log sigmoid" in line
    assert seen["card"]["minimises"].startswith("-(2 / beta) log sigmoid")


def test_the_comparison_table_the_ranking_and_the_grid_have_it(seen):
    assert {"npo", "npo (oracle)", "gradient_ascent", "target"} <= set(seen["compared"])
    assert "npo" in seen["ranked"]
    assert seen["grid"] == sorted([*SEVEN, "npo"])


def test_the_trade_off_figure_draws_it_in_a_style_of_its_own(seen):
    assert "npo" in seen["drawn"]
    assert len(seen["other styles"]) == len(SEVEN) and seen["style"] not in seen["other styles"]


def test_training_makes_the_forget_set_less_likely(seen):
    before, after = seen["forget NLL"]
    assert after > before * 1.01


def test_the_loss_is_a_mean_over_sequences_against_the_original_model(seen):
    ours, by_hand = seen["loss"]
    assert ours == pytest.approx(by_hand, rel=1e-4) and by_hand > 0


def test_micro_batches_add_up_to_the_batch(seen):
    whole, one_by_one = seen["micro-batches"]
    assert one_by_one == pytest.approx(whole, rel=1e-4) and whole > 0


def test_its_cost_is_counted(seen):
    assert seen["flops"] > 0


def test_the_new_score_is_measured_kept_over_seeds_and_has_an_auc(seen):
    assert "least_likely" in seen["columns"]
    assert {"npo", "target", "retrained"} <= {name for name, *_ in seen["scored"]}
    assert {measure for _, measure, _ in seen["scored"]} == {"AUC least likely"}
    assert all(0 <= value <= 1 for *_, value in seen["scored"])
