"""`example`: what it prints runs as it stands, and does something; and figures of `compare`."""

import math
import shlex
import subprocess
from xml.etree import ElementTree

import pandas as pd
import pytest
from user_models import CONTEXT, value

from unlearn_utils.app import commands, example_command, figures
from unlearn_utils.engine import training

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """The folder of an example, whose name needs quotes."""
    folder = tmp_path_factory.mktemp("example") / "it's a try"
    assert commands.main(["example", str(folder)]) == 0
    return folder


def printed(folder):
    """Return the command lines that it printed, by the name of the command."""
    lines = example_command.commands(folder).strip().split("\n\n")
    return {shlex.split(line)[3]: line for line in lines}


def test_what_it_prints_runs_in_a_shell_and_the_model_forgets(example, capsys):
    lines = printed(example)
    assert list(lines) == ["unlearn", "tune", "evaluate", "compare"]
    done = subprocess.run(lines["unlearn"], shell=True, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = pd.read_csv(example / "unlearned" / "results.csv")
    before, goal, after = (
        value(results, model, split, "perplexity")
        for model, split in (("before", "forget"), ("before", "unseen"), ("after", "forget"))
    )
    assert before < 0.75 * goal  # it knew them
    assert abs(math.log(after / goal)) < 0.5 * math.log(goal / before)  # and knows them less

    for name in ("compare", "evaluate"):
        assert commands.main(shlex.split(lines[name])[3:]) == 0
    said = capsys.readouterr().out
    assert f"{example}/compared.png: the figure; its numbers are in {example}/compared.csv" in said
    assert (example / "compared.png").read_bytes().startswith(PNG)
    numbers = pd.read_csv(example / "compared.csv")
    models = [str(example / "model"), str(example / "unlearned")]
    assert list(numbers.model[:2].unique()) == models[:1]
    assert value(numbers, models[0], "documents", "perplexity") == pytest.approx(before, rel=1e-4)


def test_the_sets_are_apart_and_two_examples_are_alike(example, tmp_path, monkeypatch):
    """Texts are written before the model is trained, which is left out here."""
    monkeypatch.setattr(training, "pretrain", lambda *_: None)
    assert commands.main(["example", str(tmp_path / "other")]) == 0
    names = {}
    for name in example_command.SETS:
        files = sorted((example / name).iterdir())
        names[name] = [path.read_text() for path in files]
        assert names[name] == [p.read_text() for p in sorted((tmp_path / "other" / name).iterdir())]
    every = [text for texts in names.values() for text in texts]
    assert len(set(every)) == len(every)
    assert min(map(len, names.values())) >= 10  # as tune needs them


def test_a_run_that_ends_leaves_nothing(tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise MemoryError("no more")

    monkeypatch.setattr(training, "pretrain", fail)
    assert commands.main(["example", str(tmp_path / "new")]) == 1
    assert "no more" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------- figures


def run(*given):
    return commands.main([str(part) for part in given])


def test_a_figure_of_each_kind_has_its_numbers_where_they_are_said(
    llama, documents, tmp_path, capsys
):
    sets = ("--documents", documents["forget"], "--context", CONTEXT)
    for kind, begins in (("png", PNG), ("pdf", b"%PDF"), ("svg", b"<?xml")):
        file = tmp_path / f"figure.{kind}"
        csv = tmp_path / f"{kind}.csv"
        assert run("evaluate", "--model", llama, *sets, "--plot", file, "--out", csv) == 0
        assert file.read_bytes().startswith(begins)
        assert f"{file}: the figure; its numbers are in {csv}\n" in capsys.readouterr().out
        assert csv.exists() and csv.with_suffix(".json").exists()
    assert len(list(tmp_path.iterdir())) == 9


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--plot", "figure.jpeg"), "must end in .png, .pdf, .svg"),
        (("--plot", "same.png", "--out", "same.png"), "--out is the same file"),
        (("--plot", "there.png"), "--plot there.png: already there"),
        (("--plot", "there.pdf"), "its numbers: there.csv: already there"),
    ],
)
def test_a_figure_that_cannot_be_written_is_one_line(
    given, said, llama, documents, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    for name in ("there.png", "there.csv"):
        (tmp_path / name).write_text("mine")
    assert run("compare", "--models", llama, "--documents", documents["forget"], *given) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "there.png": "mine",
        "there.csv": "mine",
    }


def test_a_figure_is_of_documents_alone(llama, capsys):
    assert run("compare", "--models", llama, "--tasks", "arc_easy", "--plot", "figure.png") == 2
    assert "--plot goes with --documents only" in capsys.readouterr().err


def table(*models):
    """Return results of models, with an AUC."""
    rows = []
    for place, model in enumerate(models):
        for split, level in (("documents", 20.0), ("unseen", 60.0)):
            found = level + place
            rows.append((model, split, "perplexity", found, found - 5, found + 9, 4))
            rows.append((model, split, "accuracy", 0.3, 0.2, 0.4, 4))
        rows.append((model, "documents against unseen", "AUC Min-40%", 0.9, 0.8, 1.0, 4))
    columns = ["model", "split", "measure", "value", "low", "high", "n"]
    return pd.DataFrame(rows, columns=columns)


def test_the_figure_shows_values_and_intervals():
    left, right = figures.comparison(table("a/model", "b/new")).axes
    assert left.get_xscale() == "log"
    assert [text.get_text() for text in left.get_yticklabels()] == ["model", "new"]
    documents, unseen = left.containers
    assert (documents.get_label(), unseen.get_label()) == ("documents", "unseen")
    line, _, (bars,) = unseen.lines
    assert list(line.get_xdata()) == [60, 61]
    assert [segment[:, 0].tolist() for segment in bars.get_segments()] == [[55, 69], [56, 70]]
    assert list(right.containers[0].lines[0].get_xdata()) == [0.9, 0.9]
    assert left.get_ylim() == right.get_ylim() == (1.5, -0.5)


def test_the_figure_without_unseen_text_and_with_a_diverged_model(tmp_path):
    """Models of one last name keep their whole names; what is infinite is left out."""
    rows = table("a/model", "b/model")
    rows = rows[(rows.split == "documents") & (rows.measure == "perplexity")]
    rows.loc[rows.model == "b/model", ["value", "low", "high"]] = math.inf
    figure = figures.comparison(rows)
    (ax,) = figure.axes
    assert [text.get_text() for text in ax.get_yticklabels()] == ["a/model", "b/model"]
    assert math.isnan(ax.containers[0].lines[0].get_xdata()[1])
    figures.save(figure, tmp_path / "one.svg")
    figures.save(figures.comparison(rows), tmp_path / "other.svg")
    ElementTree.parse(tmp_path / "one.svg")
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "other.svg").read_bytes()
