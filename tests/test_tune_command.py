"""`tune` and `unlearn --until` on a tiny model that has memorised what it shall forget."""

import argparse
import json

import numpy as np
import pandas as pd
import pytest
from transformers import AutoModelForCausalLM
from user_models import CONTEXT, VOCABULARY, record, value, write_model

from unlearn_utils.app import commands, tune_command, tuning_report, user_documents, user_run
from unlearn_utils.core import methods
from unlearn_utils.core import tuning as rules
from unlearn_utils.engine import training, tuning
from unlearn_utils.profiles import Pretraining

SETS = {"forget": ("quark", 6), "retain": ("lepton", 4), "unseen": ("gluon", 10)}
RATES = "1e-4,1e-3,1e-2"


def write_set(folder, name, number):
    folder.mkdir()
    for place in range(number):
        lines = [f"{name} {place}, {name} {line * 7 + place} decays.\n" for line in range(4)]
        (folder / f"{place}.txt").write_text("".join(lines))
    return folder


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    every = {**SETS, "general": ("boson", 4)}
    return {name: write_set(folder / name, *of) for name, of in every.items()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tokenizer, sets):
    """The folder of a model that was trained on the forget and the retain set."""
    folder = write_model(tmp_path_factory.mktemp("trained"), "llama", tokenizer)
    model = AutoModelForCausalLM.from_pretrained(folder)
    read = []
    for name in ("forget", "retain"):
        found = user_documents.read_documents(sets[name])
        read += list(user_documents.cut_documents(found, name, tokenizer, CONTEXT, VOCABULARY).ids)
    recipe = Pretraining(epochs=15, batch=4, muon_learning_rate=None, adamw_learning_rate=1e-2)
    training.pretrain(model, read, recipe, tokenizer.pad_token_id, 0)
    model.save_pretrained(folder)
    return folder


def line(command, model, paths, out, *more):
    given = [command, "--model", model, "--out", out, "--context", CONTEXT, "--float32"]
    for name, path in paths.items():
        given += [f"--{name}", path]
    return [str(part) for part in (*given, *more)]


def tune(model, paths, out, *more):
    given = ("--method", "gradient_ascent", "--learning-rates", RATES, *more)
    return commands.main(line("tune", model, paths, out, *given))


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, trained, sets):
    """The folder of a search, undisturbed."""
    out = tmp_path_factory.mktemp("tuned") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rules, "BOUND", 9.0)
        assert tune(trained, sets, out) == 0
    return out


@pytest.fixture
def wide_bound(monkeypatch):
    """Other text may become ten times as hard: a model of a few thousand weights loses so much."""
    monkeypatch.setattr(rules, "BOUND", 9.0)


# --------------------------------------------------------------------------------- the documents


def chunks(**counts):
    """Return chunks: so many documents of each set, of which document n has n chunks."""
    rows = []
    for split, number in counts.items():
        for document in range(1, number + 1):
            rows += [(split, f"{document:02}", part) for part in range(document)]
    return pd.DataFrame(rows, columns=["split", "family", "part"])


def test_halves_go_by_documents_in_the_order_of_their_hash():
    found = tuning.halved(chunks(forget=5, unseen=11))
    halves = found.groupby(["split", "family"]).half.unique().map(list)
    assert halves["forget"].tolist() == [[0], [1], [0], [1], [0]]
    assert (found.split == "unseen").sum() == 66


def test_on_the_way_the_first_chunks_of_many_documents_are_read(monkeypatch):
    monkeypatch.setattr(rules, "READ", 4)
    found = tuning.read_on_the_way(tuning.halved(chunks(forget=5)))
    read = sorted(zip(found.half, found.part, found.family, strict=True))
    first = [(0, 0, "01"), (0, 0, "03"), (0, 0, "05"), (0, 1, "03")]
    assert read == [*first, *[(1, 0, "02"), (1, 0, "04"), (1, 1, "02"), (1, 1, "04")]]


# ------------------------------------------------------------------------------------- the search


def test_the_best_step_is_written_with_the_paths_and_how_it_was_chosen(tuned):
    paths = pd.read_csv(tuned / "paths.csv")
    assert list(paths.learning_rate.unique()) == [0, 1e-4, 1e-3, 1e-2]
    best = paths[paths.chosen].iloc[0]
    assert best.missed == paths.missed.min()
    assert list(paths.ended.dropna()) == [rules.TOO_SLOW, rules.TOO_SLOW, rules.BEYOND_BOUND]

    found = record(tuned)
    assert found["learning_rate"] == best.learning_rate == 1e-2
    assert len(found["history"]) == best.step
    assert found["tuning"]["steps_of_paths"] == paths.groupby("learning_rate").step.max().sum()
    card = (tuned / "README.md").read_text()
    results = pd.read_csv(tuned / "results.csv")
    before = value(results, "before", "forget", "perplexity")
    goal = value(results, "before", "unseen", "perplexity")
    after = value(results, "after", "forget", "perplexity")
    assert set(results.goal) == {goal} and set(results.steps) == {best.step}
    assert set(results.learning_rate) == {1e-2} and set(results.method) == {"gradient_ascent"}
    way = np.log(after / before) / np.log(goal / before)
    assert found["verdict"]["way"] == pytest.approx(way)
    assert found["verdict"]["advice"] == ""  # the search has said what to do
    assert f"- {found['verdict']['line']}" in card
    assert "## How learning rate and step were chosen" in card
    assert f"step {best.step} of 18" in card
    assert (tuned / "paths.png").stat().st_size > 10_000
    assert not tuned.with_name("out.tuning").exists()


def test_the_model_that_is_written_is_the_one_of_the_best_step(tuned):
    """All chunks are read on the way here, so both halves together give what is measured after."""
    paths = pd.read_csv(tuned / "paths.csv")
    best = paths[paths.chosen].iloc[0]
    results = pd.read_csv(tuned / "results.csv")
    after = value(results, "after", "unseen", "perplexity")
    levels = best[["unseen_selection", "unseen_report"]].astype(float)
    assert after == pytest.approx(levels.map(np.exp).mean(), rel=0.01)


def test_a_search_that_was_killed_goes_on_to_the_same_files(
    tuned, trained, sets, tmp_path, monkeypatch, wide_bound, capsys
):
    whole = user_run.unlearn
    begun = []

    def killed_in_the_second(*given):
        begun.append(given)
        if len(begun) == 2:
            raise MemoryError("no memory")
        return whole(*given)

    monkeypatch.setattr(user_run, "unlearn", killed_in_the_second)
    assert tune(trained, sets, tmp_path / "out") == 1
    assert not (tmp_path / "out").exists()
    assert tune(trained, sets, tmp_path / "out") == 0
    assert len(begun) == 4  # the first path is not run again
    assert "goes on after 1 finished path" in capsys.readouterr().out
    assert files(tmp_path / "out") == files(tuned)


def test_paths_of_another_search_are_not_taken(trained, sets, tmp_path, capsys, wide_bound):
    other = tmp_path / "out.tuning"
    other.mkdir()
    assert tune(trained, sets, tmp_path / "out") == 2
    assert "paths of the search go there" in capsys.readouterr().err
    (other / "search.json").write_text(json.dumps({"seed": 5}))
    assert tune(trained, sets, tmp_path / "out") == 2
    assert "begun with other settings" in capsys.readouterr().err


def test_unlearn_until_stops_one_run_at_the_goal_and_keeps_its_best_step(
    tuned, trained, sets, tmp_path, wide_bound, capsys
):
    given = ("--method", "gradient_ascent", "--learning-rate", "1e-2", "--epochs", 4)
    until = line("unlearn", trained, sets, tmp_path / "out", *given, "--until", "unseen")
    assert commands.main(until) == 0
    assert files(tmp_path / "out")["model.safetensors"] == files(tuned)["model.safetensors"]
    assert capsys.readouterr().out.count("of 18: forget") >= 4  # a line a mark


def test_adapters_and_the_goal_of_an_auc(trained, sets, tmp_path, wide_bound):
    given = ("--lora", "rank=2", "--goal", "auc", "--learning-rates", "3e-2")
    out = tmp_path / "out"
    searched = line("tune", trained, sets, out, "--method", "ascent_kl_in_distribution", *given)
    assert commands.main(searched) == 0
    best = pd.read_csv(out / "paths.csv").query("chosen").iloc[0]
    assert best.step > 0 and abs(best.auc_selection - 0.5) == pytest.approx(best.missed)
    assert (out / "adapter_model.safetensors").exists()


def test_all_is_every_method_that_differs_in_what_it_trains_on():
    options = argparse.Namespace(method="all", lora=None)
    names = tune_command.methods_of(options)
    assert "gradient_ascent" in names and "ascent_descent_in_distribution" in names
    assert "ascent_descent_general" not in names
    assert len(names) == 5 + len(methods.SINCE)
    with_adapters = argparse.Namespace(method="all", lora=["rank=2"])
    whole = set(names) - set(tune_command.methods_of(with_adapters))
    assert whole == {"task_vector"}  # the one that needs the change of whole weights


@pytest.mark.parametrize(("within", "said"), [(True, "raise --epochs"), (False, "lost over 10%")])
def test_what_is_advised_far_from_the_goal_depends_on_what_came_nearer(within, said):
    marks = [
        {"missed": 0.8, "within_bound": True},
        {"missed": 0.6, "within_bound": within},
        {"missed": 0.9, "within_bound": False},  # which is no nearer
    ]
    found = tuning.Found("gradient_ascent", 1e-4, None, 9, 0.4, marks, [], 0)
    chosen = (found, marks[1 if within else 0])
    assert said in tuning_report.advice([found], chosen)


# ------------------------------------------------------------------------------------- bad inputs


def refused(capsys, code, *given):
    """Run a command that cannot end well, and return its one line."""
    assert tune(*given) == code
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1, said
    return said[0]


def test_without_unseen_documents_it_says_what_to_give(trained, sets, tmp_path, capsys):
    fewer = {name: path for name, path in sets.items() if name != "unseen"}
    said = refused(capsys, 2, trained, fewer, tmp_path / "out")
    assert "--unseen is missing" in said and "never trained on" in said
    given = ("--method", "gradient_ascent", "--until", "unseen")
    assert commands.main(line("unlearn", trained, fewer, tmp_path / "out", *given)) == 2
    assert "--unseen is missing" in capsys.readouterr().err


def test_too_few_unseen_documents_say_how_many_are_needed(trained, sets, tmp_path, capsys):
    few = write_set(tmp_path / "few", "gluon", 9)
    said = refused(capsys, 2, trained, {**sets, "unseen": few}, tmp_path / "out")
    assert "--unseen: 9 different documents; 10 are needed" in said


def test_a_goal_that_is_reached_before_is_said(trained, sets, tmp_path, capsys):
    """What was trained on is given as unseen, what was not as forgotten."""
    both = {"forget": sets["unseen"], "unseen": write_set(tmp_path / "known", "quark", 12)}
    kept = {name: sets[name] for name in ("retain", "general")}
    for goal in ("unseen", "auc"):
        said = refused(capsys, 2, trained, {**kept, **both}, tmp_path / "out", "--goal", goal)
        assert "the goal is reached before unlearning" in said
    assert [path.name for path in tmp_path.iterdir()] == ["known"]


def test_no_rate_within_the_bound_says_what_came_nearest(trained, sets, tmp_path, capsys):
    out = tmp_path / "out"
    given = (trained, sets, out, "--learning-rates", "1e-2")
    for _ in range(2):  # the second time nothing is run again
        said = refused(capsys, 1, *given)
        assert "no rate respects the bound of 10%" in said
        assert "nearest to the goal came gradient_ascent at 0.01, step" in said
    assert not out.exists()
    assert str(tmp_path / "out.tuning" / "paths.csv") in said
    assert not pd.read_csv(tmp_path / "out.tuning" / "paths.csv").chosen.any()
    assert not list((tmp_path / "out.tuning").glob("*.safetensors"))


def test_paths_that_only_lead_away_from_the_goal_are_said():
    goal = tuning.Goal("unseen", 2.0, 1.0)
    start = {"step": 0, "missed": 1.0, "forget_selection": 1.0, "retain_selection": 1.0}
    away = start | {"step": 9, "missed": 1.5, "forget_selection": 0.5, "within_bound": True}
    setting = tuning.Setting(pd.DataFrame(), goal, goal, start, 0, 9)
    found = tuning.Found("gradient_ascent", 1e-4, None, 9, -0.5, [away], [], 0)
    assert tuning.choice(setting, [found]) is None
    said = tuning_report.why_none(setting, [found])
    assert said.startswith("no step within the bound is nearer to the goal than the model before")
    assert "gradient_ascent at 0.0001, step 9 of 9: forget 1.649, goal 7.389, retain +0.0%" in said


def test_every_path_diverged(trained, sets, tmp_path, capsys):
    said = refused(capsys, 1, trained, sets, tmp_path / "out", "--learning-rates", "1e30,1e31")
    assert "every path diverged (learning rates 1e+30): give smaller ones" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("rates", ["1e-4,,1e-3", "0", "-1", "nan", "inf", "fast", ""])
def test_rates_are_positive_numbers(rates, trained, sets, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        tune(trained, sets, tmp_path / "out", "--learning-rates", rates)
    assert ended.value.code == 2
    assert "is no positive number" in capsys.readouterr().err


def test_checkpoints_do_not_go_with_until(trained, sets, tmp_path, capsys):
    given = ("--method", "gradient_ascent", "--until", "unseen", "--checkpoints", tmp_path / "c")
    assert commands.main(line("unlearn", trained, sets, tmp_path / "out", *given)) == 2
    assert "--checkpoints: a run with --until keeps none" in capsys.readouterr().err
