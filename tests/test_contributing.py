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
    start = re.search(rf"^{table}(: dict.*)? = [({{]$|^{table}: dict", text, re.MULTILINE).start()
    end = re.compile(r"\n[)}]\n").search(text, start).start()
    closing = "\n    )" if text[start:end].endswith("\n    )") else ""
    end -= len(closing)
    return text[: end + 1] + row.rstrip("\n") + text[end:]


def change(file, changed):
    """Write what a function makes of a file's text."""
    file.write_text(changed(file.read_text(encoding="utf-8")), encoding="utf-8")


def with_score(text):
    """Return the module of membership with the function above its table, and the row in it."""
    before, table, after = text.partition("\nSCORES: dict")
    text = f"{before}\n{example('membership.py')}\n\n{table.lstrip()}{after}"
    return add_row(text, "SCORES", example("row of SCORES"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A copy of the project with a function and a row for a method, for a score and for a claim."""
    folder = tmp_path_factory.mktemp("copy")
    for name in ("unlearn_utils", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    core, findings = (folder / "unlearn_utils" / name for name in ("core", "findings"))
    change(core / "losses.py", lambda text: f"{text}\n\n{example('losses.py')}")
    change(core / "methods.py", lambda text: add_row(text, "METHODS", example("methods.py")))
    change(core / "membership.py", with_score)
    change(findings / "evidence.py", lambda text: f"{text}\n\n{example('evidence.py')}")
    row = example("row of FINDINGS")
    change(findings / "claims.py", lambda text: add_row(text, "FINDINGS", row))
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
    """What a new user sees of the method, of the score and of the claim."""
    script = str(folder / "tests" / "try_new_method.py")
    done = run(folder, script, "kto", "least likely", "F5")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_no_test_has_to_change_for_them(folder):
    tests = [
        "tests/test_methods.py",
        "tests/test_metrics.py",
        "tests/test_evaluation.py",
        "tests/test_comparison.py::test_every_run_that_is_compared_once",
        "tests/test_robustness.py::test_rate_table",
        "tests/test_method_paths.py::test_every_run_once",
    ]
    done = run(folder, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests)
    assert done.returncode == 0, done.stdout


def test_the_command_line_lists_the_method_with_its_words(seen):
    (line,) = [line for line in seen["listed"].splitlines() if line.startswith("kto ")]
    assert "arXiv 2402.01306" in line
    assert seen["card"]["minimises"].startswith("sigmoid(-0.1 x (NLL")


def test_every_profile_runs_its_paths(seen):
    """At the profile's own rate on every domain, and at each rate of the grid on the first."""
    assert set(seen["runs"]) == {*SEVEN, "kto"}
    assert seen["runs"]["kto"] == seen["runs"]["gradient_ascent"] == 3


def test_the_comparison_the_ranking_and_robustness_have_it(seen):
    assert "kto" in seen["equal"] and "kto" in seen["robust"]
    assert {"kto", "gradient_ascent", "do nothing", "another retrained model"} < set(seen["ranked"])
    assert set(seen["coverage"]) > {"kto", "target", "retrained"}


def test_the_plane_draws_it_in_a_style_of_its_own(seen):
    assert "kto" in seen["drawn"]
    assert len(seen["other styles"]) == len(SEVEN) and seen["style"] not in seen["other styles"]


def test_its_path_makes_the_forget_set_less_likely(seen):
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


def test_the_new_score_is_measured_and_has_an_auc(seen):
    assert "least_likely" in seen["columns"]
    assert {name for name, *_ in seen["scored"]} == {"arxiv + github", "arxiv", "github", "none"}
    assert {measure for _, measure, _ in seen["scored"]} == {"AUC least likely"}
    assert all(0 <= value <= 1 for *_, value in seen["scored"])


def test_notebook_02_has_the_score_where_its_title_is_named(seen):
    assert "AUC least likely" in seen["shown"]


def test_the_claim_has_a_verdict_and_a_reason(seen):
    told = seen["claim"]
    assert told["id"] == "F5" and told["sense"] == "above" and told["threshold"] == 0.05
    assert told["verdict"] == "inconclusive"  # one replicate, and no study of this profile
    assert told["because"] and "nan" not in told["because"]
    assert -1 <= told["low"] <= told["value"] <= told["high"] <= 1


def test_the_claim_measures_what_its_words_say(seen):
    """Accuracy from the rows of the models that saw a domain's forget set, and of the others."""
    assert seen["claim"]["value"] == pytest.approx(seen["accuracy gained"], abs=1e-9)
