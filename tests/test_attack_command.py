"""`attack` on a tiny model that memorised documents and has unlearned them a little."""

import json
import math

import pandas as pd
import pytest
from transformers import AutoModelForCausalLM
from user_models import VOCABULARY, plain_mean_nll, write_model

from unlearn_utils.app import attack_command, commands, user_documents
from unlearn_utils.core.methods import METHODS
from unlearn_utils.engine import attacks, evaluation, training

CONTEXT = 64
SETS = {"forget": ("quark", 8), "unseen": ("gluon", 6), "general": ("boson", 4)}


def write_set(folder, name, number):
    folder.mkdir()
    for place in range(number):
        lines = [f"{name} {place}, {name} {line * 7 + place} decays.\n" for line in range(6)]
        (folder / f"{place}.txt").write_text("".join(lines))
    return folder


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    return {name: write_set(folder / name, *of) for name, of in SETS.items()}


def ids_of(path, tokenizer):
    found = user_documents.read_documents(path)
    return user_documents.cut_documents(found, "forget", tokenizer, CONTEXT, VOCABULARY)


def train(folder, read, rate, steps, method=attacks.RELEARNING):
    model = AutoModelForCausalLM.from_pretrained(folder)
    recipe = attacks.recipe(rate, steps, 4, len(read))
    job = training.Job(method, read, [], recipe, pad_id=1, seed=0, nested=True)
    training.unlearn(model, job)
    return model


@pytest.fixture(scope="module")
def world(tmp_path_factory, tokenizer, sets):
    """Folders: `base` has seen the forget set, `retrained` has not, `model` has unlearned it."""
    folder = tmp_path_factory.mktemp("models")
    other = write_set(folder / "lepton", "lepton", 8)
    for name in ("base", "retrained", "model"):
        write_model(folder / name, "llama", tokenizer)
    forget = list(ids_of(sets["forget"], tokenizer).ids)
    rest = list(ids_of(other, tokenizer).ids)
    train(folder / "base", forget + rest, 1e-2, 60).save_pretrained(folder / "base")
    train(folder / "retrained", rest, 1e-2, 60).save_pretrained(folder / "retrained")
    unlearned = train(folder / "base", forget, 1e-2, 4, METHODS["gradient_ascent"])
    unlearned.save_pretrained(folder / "model")
    return folder


def attack(world, sets, out, *more, models=("model", "base"), given=tuple(SETS)):
    line = ["attack", "--out", out, "--context", CONTEXT, "--steps", 4]
    line += ["--learning-rates", "1e-3,1e-2"]
    for name in models:
        line += [f"--{name}", world / name]
    for name in given:
        line += [f"--{name}", sets[name]]
    return commands.main([str(part) for part in (*line, *more)])


def one(table, **keys):
    for name, value in keys.items():
        table = table[table[name] == value]
    (row,) = table.to_dict("records")
    return row


@pytest.fixture(scope="module")
def controlled(world, sets, tmp_path_factory, module_capture):
    """The folder of an attack with a retrained model, and what was said."""
    out = tmp_path_factory.mktemp("out") / "new"
    with module_capture() as said:
        assert attack(world, sets, out, models=("model", "base", "retrained")) == 0
    return out, said.getvalue()


@pytest.fixture(scope="module")
def module_capture():
    import contextlib
    import io

    def capture():
        return contextlib.redirect_stdout(io.StringIO())

    return capture


@pytest.fixture(scope="module")
def measured(sets, tokenizer):
    """The forget documents that are measured."""
    chunks = ids_of(sets["forget"], tokenizer)
    return attack_command.divided("forget", chunks, attack_command.SHARE)[1]


# ----------------------------------------------------------------------------------------- division


def test_what_is_relearned_is_not_measured(sets, tokenizer):
    chunks = ids_of(sets["forget"], tokenizer)
    learned, rest = attack_command.divided("forget", chunks, 1 / 4)
    assert learned.family.nunique() == 2 and len(learned) > 2  # all their chunks
    assert rest.family.nunique() == len(rest) == 6  # a chunk each, the first
    assert rest.id.str.endswith("-0").all()
    assert not set(learned.family) & set(rest.family)
    with pytest.raises(ValueError, match="--forget: one document; 2 are needed"):
        attack_command.divided("forget", chunks[chunks.family == chunks.family[0]], 1 / 4)


# ---------------------------------------------------------------------------------------- the table


def test_before_any_attack_perplexity_is_the_models_own(controlled, world, measured):
    table = pd.read_csv(controlled[0] / "attacks.csv")
    assert list(table)[:7] == ["attack", "source", "setting", "model", "split", "measure", "value"]
    assert not table.duplicated(list(table)[:6]).any()
    for name in ("model", "base", "retrained"):
        model = AutoModelForCausalLM.from_pretrained(world / name).eval()
        row = one(table, attack="none", model=name, split="forget")
        assert row["value"] == pytest.approx(
            math.exp(plain_mean_nll(model, list(measured.ids))), rel=0.02
        )
        assert row["low"] <= row["value"] <= row["high"] and row["n"] == 6


def test_relearning_gives_back_more_than_a_retrained_model_learns(controlled):
    table = pd.read_csv(controlled[0] / "attacks.csv")
    curves = pd.read_csv(controlled[0] / "curves.csv")
    assert set(curves.source) == set(SETS) and set(curves.learning_rate) == {1e-3, 1e-2}
    falls = {}
    for name in ("model", "retrained"):
        where = {"source": "forget", "learning_rate": 1e-2, "model": name}
        curve = curves
        for column, value in where.items():
            curve = curve[curve[column] == value]
        assert curve.step.tolist() == [0, 1, 2, 4]
        falls[name] = math.log(curve["value"].iloc[0] / curve["value"].min())
        where = {"attack": "relearning", "source": "forget", "setting": 1e-2, "model": name}
        row = one(table, measure="perplexity", **where)
        assert row["value"] == curve["value"].min()
        assert row["step"] == curve.step[curve["value"].idxmin()]
    found = one(table, attack="relearning", source="forget", setting=1e-2, measure="recovery")
    assert found["model"] == "model less retrained"
    assert found["value"] == pytest.approx(falls["model"] - falls["retrained"])
    assert found["value"] > 0
    assert found["low"] > 0 and "it gives back what was unlearned" in controlled[1]


def test_rounding_is_that_of_the_stored_weights(controlled, world, measured):
    table = pd.read_csv(controlled[0] / "attacks.csv")
    model = AutoModelForCausalLM.from_pretrained(world / "model").eval()
    attacks.round_weights(model, 4)
    rows = evaluation.measure_briefly(model, measured, 1)
    row = one(
        table, attack="rounding", setting=4, model="model", split="forget", measure="perplexity"
    )
    assert row["value"] == pytest.approx(math.exp(rows.nll.sum() / rows.tokens.sum()), rel=1e-3)
    assert set(table[table.attack == "rounding"].split) == set(SETS)


def test_what_was_known_before_is_no_recovery(controlled, world, sets, tmp_path, capsys):
    """The base itself, in the place of the unlearned model, knows the documents without attack."""
    line = ["attack", "--model", world / "base", "--base", world / "base", "--steps", 1]
    line += ["--retrained", world / "retrained", "--forget", sets["forget"], "--context", CONTEXT]
    line += ["--learning-rates", "1e-3", "--out", tmp_path / "out"]
    assert commands.main([str(part) for part in line]) == 0
    said = capsys.readouterr().out
    assert "it gives back no more than that; it knew them better before any attack" in said


def test_a_prefix_is_continued_by_every_model(controlled):
    table = pd.read_csv(controlled[0] / "attacks.csv")
    rows = table[(table.attack == "prefix") & (table.measure == "ROUGE-L")]
    assert rows.setting.unique().tolist() == [16, 32]  # a chunk of 64 has no room for 64 + 32
    assert set(rows.model) == {"model", "base", "retrained"}
    values = rows[rows.setting == 32].set_index("model")["value"]
    assert values["base"] > values["retrained"]


def test_the_verdict_names_the_control(controlled):
    said = controlled[1]
    assert "from 2 of 8 forget documents" in said and "relearning from general text at" in said
    assert "a retrained model comes to" in said and "n = 6" in said
    assert "rounding to 4 bits" in said and "after 32 tokens" in said
    assert "cannot be known" not in said
    assert "6 runs of 4 steps, of model and retrained; about" in said
    assert (controlled[0] / "relearning.png").stat().st_size > 1000


# ------------------------------------------------------------------------------- without a control


def test_unseen_documents_stand_for_a_retrained_model(world, sets, tmp_path, capsys):
    """They begin at the base's level, and fall as they fall under the attacked model."""
    out = tmp_path / "out"
    assert attack(world, sets, out, given=("forget", "unseen")) == 0
    said = capsys.readouterr().out
    assert "without --retrained it cannot be known" in said
    table = pd.read_csv(out / "attacks.csv")
    curves = pd.read_csv(out / "curves.csv")
    base = one(table, attack="none", model="base", split="unseen")["value"]
    stands = curves[curves.model == "unseen of base"]
    assert (stands[stands.step == 0]["value"] - base).abs().max() == pytest.approx(0, abs=1e-9)
    assert set(table[table.measure == "recovery"].model) == {"model less unseen of base"}
    assert table[table.measure == "recovery"].n.unique().tolist() == [3]  # half of six unseen ones


def test_without_anything_to_compare_with_it_says_so(world, sets, tmp_path, capsys):
    out = tmp_path / "out"
    assert attack(world, sets, out, given=("forget",)) == 0
    assert "there is nothing to compare with" in capsys.readouterr().out
    table = pd.read_csv(out / "attacks.csv")
    assert "recovery" not in set(table.measure)


# ---------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--steps", "0"), "--steps 0: choose 1 to"),
        (("--micro-batch", "3"), "--micro-batch 3: must be positive and divide"),
        (("--learning-rates", "1e-3,fast"), "'fast' is no positive number"),
    ],
)
def test_an_option_that_cannot_be_followed(world, sets, tmp_path, capsys, more, said):
    try:
        code = attack(world, sets, tmp_path / "out", *more)
    except SystemExit as error:
        code = error.code
    assert code == 2 and said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_damaged_weights_are_named_and_nothing_is_left(world, sets, tokenizer, tmp_path, capsys):
    write_model(tmp_path / "broken", "llama", tokenizer)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "broken")
    model.lm_head.weight.data[:] = math.nan
    model.save_pretrained(tmp_path / "broken")
    line = [
        "attack",
        "--model",
        tmp_path / "broken",
        "--base",
        world / "base",
        "--context",
        CONTEXT,
    ]
    line += ["--forget", sets["forget"], "--out", tmp_path / "out"]
    assert commands.main([str(part) for part in line]) == 2
    assert "not every probability is finite" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


def test_a_base_of_another_kind_is_refused(world, sets, tokenizer, tmp_path, capsys):
    write_model(tmp_path / "other", "gpt2", tokenizer)
    line = ["attack", "--model", world / "model", "--base", tmp_path / "other"]
    line += ["--forget", sets["forget"], "--out", tmp_path / "out"]
    assert commands.main([str(part) for part in line]) == 2
    said = capsys.readouterr().err
    assert "is a gpt2 and --model" in said and "a llama: they must be of one kind" in said
    assert not (tmp_path / "out").exists()


def test_a_folder_without_a_model_is_named(world, sets, tmp_path, capsys):
    line = ["attack", "--model", world / "model", "--base", sets["forget"]]
    line += ["--forget", sets["forget"], "--out", tmp_path / "out"]
    assert commands.main([str(part) for part in line]) == 2
    assert f"{sets['forget']}: no usable config.json" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_where_no_document_is_long_enough_the_plan_says_that_no_prefix_is_asked(
    world, tmp_path, capsys
):
    (tmp_path / "short").mkdir()
    for place in range(3):
        (tmp_path / "short" / f"{place}.txt").write_text(f"quark {place} is short")
    out = tmp_path / "out"
    assert attack(world, {"forget": tmp_path / "short"}, out, given=("forget",)) == 0
    said = capsys.readouterr().out
    assert "no prefix, for no forget document has 16 + 32 tokens" in said
    assert "prefix" not in set(pd.read_csv(out / "attacks.csv").attack)


def test_a_question_is_read_and_not_counted_in_any_attack(world, tmp_path, capsys):
    """With one more question token nothing else that is counted is added."""
    answer = "the quark 3 of gluon 4 decays into boson 5 and quark 7, gluon 8. " * 3
    found = {}
    for name, question in (("short", "Why?"), ("long", "Why do the quark and the gluon decay?")):
        pairs = [{"question": question, "answer": f"{place} {answer}"} for place in range(4)]
        (tmp_path / f"{name}.json").write_text(json.dumps(pairs))
        out = tmp_path / name
        more = ("--context", 256)
        sets = {"forget": tmp_path / f"{name}.json"}
        assert attack(world, sets, out, *more, given=("forget",)) == 0
        found[name] = pd.read_csv(out / "attacks.csv")
    both = [table[["attack", "setting", "n"]].to_numpy().tolist() for table in found.values()]
    assert both[0] == both[1]
    assert {"relearning", "rounding", "prefix"} <= set(found["long"].attack)
