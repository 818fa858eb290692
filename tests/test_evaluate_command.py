"""The commands that change nothing: evaluate, compare, methods, and every --help."""

import math
import subprocess
import sys

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from user_models import (
    CONTEXT,
    chunks_of,
    plain_mean_nll,
    unlearn,
    value,
    without_special_tokens,
    write_model,
)

from unlearn_utils.app import commands
from unlearn_utils.core import methods


@pytest.fixture(scope="module")
def other(tmp_path_factory, tokenizer):
    return write_model(tmp_path_factory.mktemp("other"), "gpt2", tokenizer, seed=1)


def run(*given):
    return commands.main([str(part) for part in given])


# ------------------------------------------------------------------------------- evaluate, compare


def test_evaluate_measures_two_models_on_the_same_chunks(llama, other, documents, tmp_path, capsys):
    csv = tmp_path / "out.csv"
    sets = ("--documents", documents["retain"], "--unseen", documents["unseen"])
    pair = ("--model", llama, "--against", other)
    assert run("evaluate", *pair, *sets, "--context", CONTEXT, "--out", csv) == 0
    results = pd.read_csv(csv)
    tokenizer = AutoTokenizer.from_pretrained(llama)
    chunks = chunks_of(documents["retain"], "documents", tokenizer)
    nll = {}
    for folder in (llama, other):
        nll[folder] = plain_mean_nll(AutoModelForCausalLM.from_pretrained(folder).eval(), chunks)
        found = value(results, str(folder), "documents", "perplexity")
        assert found == pytest.approx(math.exp(nll[folder]), rel=1e-4)
    ratio = value(results, f"{llama} / {other}", "documents", "log ratio of perplexities")
    assert ratio == pytest.approx(nll[llama] - nll[other], abs=1e-4)
    assert (results.measure == "AUC Min-40%").sum() == 2
    assert set(results.n) == {4}
    assert "perplexity" in capsys.readouterr().out


def test_compare_is_evaluate_of_several(llama, other, documents, tmp_path, capsys):
    given = ("--documents", documents["forget"], "--context", CONTEXT, "--out")
    assert run("compare", "--models", llama, other, llama, *given, tmp_path / "both.csv") == 0
    assert str(other) in capsys.readouterr().out
    assert run("evaluate", "--model", other, *given, tmp_path / "one.csv") == 0
    both = pd.read_csv(tmp_path / "both.csv")
    one = pd.read_csv(tmp_path / "one.csv")
    alone = value(one, str(other), "documents", "accuracy")
    assert alone == value(both, str(other), "documents", "accuracy")
    assert list(dict.fromkeys(both.model)) == [str(llama), str(other), f"{llama} / {other}"]
    assert set(one.model) == {str(other)}


BFLOAT16 = ("--lora", "rank=2", "--bf16")


@pytest.mark.parametrize(("dtype", "more"), [("float32", ()), ("bfloat16", BFLOAT16)])
def test_one_quantity_has_one_interval(dtype, more, documents, tokenizer, tmp_path):
    """To the last digit, whatever other models and sets stand beside."""
    base, out = tmp_path / "base", tmp_path / "out"
    write_model(base, "llama", tokenizer, getattr(torch, dtype))
    unlearn(base, documents, out, "gradient_ascent", "--learning-rate", 1e-3, *more)
    unlearned = pd.read_csv(out / "results.csv")

    forget = ("--documents", documents["forget"], "--context", CONTEXT)
    both = (*forget, "--unseen", documents["unseen"])
    assert run("evaluate", "--model", out, *both, "--out", tmp_path / "alone.csv") == 0
    pair = ("--models", base, out)
    assert run("compare", *pair, *both, "--out", tmp_path / "pair.csv") == 0
    assert run("compare", *pair, *forget, "--out", tmp_path / "forget.csv") == 0

    names = {"before": str(base), "after": str(out)}
    keys = ["model", "split", "measure"]
    first = unlearned.replace({"model": names}).set_index(keys)
    splits = {"documents": "forget", "documents against unseen": "forget against unseen"}
    for name, rows in (("alone", 5), ("pair", 10), ("forget", 4)):
        found = pd.read_csv(tmp_path / f"{name}.csv").replace({"split": splits})
        found = found[found.measure != "log ratio of perplexities"].set_index(keys)
        assert len(found) == rows
        same = first.loc[found.index, list(found.columns)]
        pd.testing.assert_frame_equal(found, same, check_exact=True)


def test_perplexities_of_different_tokens_are_not_compared(
    llama, documents, tokenizer, tmp_path, capsys
):
    bare = write_model(tmp_path / "bare", "llama", without_special_tokens(tokenizer))
    given = ("--documents", documents["forget"], "--context", CONTEXT)
    assert run("compare", "--models", llama, bare, *given) == 2
    assert "cut the documents into different tokens" in capsys.readouterr().err


def test_a_table_is_not_overwritten(llama, documents, tmp_path, capsys):
    """The user's own file stays."""
    csv = tmp_path / "own.csv"
    csv.write_text("mine")
    given = ("--model", llama, "--documents", documents["forget"], "--out", csv)
    assert run("evaluate", *given) == 2
    assert "already there" in capsys.readouterr().err
    assert csv.read_text() == "mine"


# ----------------------------------------------------------------------------------- methods, help


def test_methods_are_all_shown(capsys):
    assert run("methods") == 0
    out = capsys.readouterr().out
    assert "in_distribution" in out
    for name, method in methods.METHODS.items():
        (line,) = [line for line in out.splitlines() if line.startswith(f"{name} ")]
        assert line.endswith(method.minimises)


HEAVY = ("torch", "transformers", "pandas", "numpy")
SHOW_HELP = f"""
import sys
from unlearn_utils import __main__

try:
    __main__.main(sys.argv[1:])
except SystemExit:
    pass
print([name for name in {HEAVY} if name in sys.modules])
"""


@pytest.mark.parametrize("command", [[], ["unlearn"], ["evaluate"], ["compare"], ["methods"]])
def test_help_imports_nothing_heavy(command):
    given = [sys.executable, "-c", SHOW_HELP, *command, "--help"]
    done = subprocess.run(given, capture_output=True, text=True, check=True)
    assert f"usage: python -m unlearn_utils{''.join(f' {name}' for name in command)}" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"
