"""The command `audit`: a user's model beside several that were retrained."""

import shutil

import numpy as np
import pandas as pd
import pytest
from user_models import CONTEXT, chunks_of, logits, value, write_model

from unlearn_utils.app import audit_command, commands
from unlearn_utils.core import audit, membership


def run(*given):
    return commands.main([str(part) for part in given])


def margins_of(forget, unseen):
    """A table of margins: a column a model, of one value a document of each set."""
    splits = ["forget"] * len(forget["m"]) + ["unseen"] * len(unseen["m"])
    table = pd.DataFrame({"split": splits, "family": range(len(splits))})
    for name in forget:
        table[name] = [*forget[name], *unseen[name]]
    return table


UNSEEN = {"m": [0.1, -0.1], "a": [0.0, 0.1], "b": [0.1, 0.0], "c": [-0.1, 0.0]}


def test_the_unlearned_model_is_judged_beside_all_retrained_but_one():
    forget = {"m": [9.0, 0.0], "a": [0.0, 0.1], "b": [0.2, 0.0], "c": [0.1, 0.2]}
    table = margins_of(forget, UNSEEN)
    found = audit_command.audit_table(table)
    assert list(dict.fromkeys(found.model)) == ["m", "a", "b", "c"]
    far = []
    for beside in (("b", "c"), ("a", "c"), ("a", "b")):
        own = np.array([forget[name] for name in beside])
        far.append((np.array(forget["m"]) - own.mean(0)) / own.std(0, ddof=1))
    far = np.array(far)
    assert value(found, "m", "forget", "deviations, mean") == pytest.approx(far.mean())
    assert value(found, "m", "forget", "share remembered") == pytest.approx((far > 2).mean())
    shares = sum(value(found, "m", "forget", f"share {word}") for word in audit.WORDS)
    assert shares == pytest.approx(1)
    alone = value(found, "a", "forget", "AUC of the margin")
    assert alone == membership.auc(forget["a"], UNSEEN["a"])
    assert set(found.n) == {2}


def test_a_model_that_remembers_is_told_and_one_like_retrained_is_not():
    generator = np.random.default_rng(0)

    def some(mean):
        return list(generator.normal(mean, 1, 60))

    names = ("m", "a", "b", "c", "d", "e", "f", "g")
    same = {name: some(0) for name in names}
    unseen = {name: some(0) for name in names}
    alike = audit_command.audit_table(margins_of(same, unseen))
    assert value(alike, "m", "forget", "share remembered") < 0.2
    assert 0.3 < value(alike, "m", "forget", "AUC of RMIA") < 0.7
    apart = audit_command.audit_table(margins_of({**same, "m": some(20)}, unseen))
    assert value(apart, "m", "forget", "share remembered") == 1
    assert value(apart, "m", "forget", "AUC over reference models") == 1
    below = audit_command.audit_table(margins_of({**same, "m": some(-20)}, unseen))
    assert value(below, "m", "forget", "share below retrained") == 1


@pytest.fixture(scope="module")
def retrained(tmp_path_factory, tokenizer):
    folders = []
    for seed in (1, 2, 3):
        folder = tmp_path_factory.mktemp(f"retrained{seed}")
        folders.append(write_model(folder, "llama", tokenizer, seed=seed))
    return folders


def test_the_command_reads_models_and_documents(
    llama, retrained, documents, tokenizer, tmp_path, capsys
):
    csv = tmp_path / "audit.csv"
    sets = ("--forget", documents["forget"], "--unseen", documents["unseen"])
    given = ("--model", llama, "--retrained", *retrained, *sets, "--context", CONTEXT)
    assert run("audit", *given, "--out", csv) == 0
    said = capsys.readouterr()
    assert "share remembered" in said.out and "KLoM" in said.out + said.err
    found = pd.read_csv(csv)
    assert list(dict.fromkeys(found.model)) == [str(llama), *map(str, retrained)]

    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(llama).eval()
    own = {}
    for name in ("forget", "unseen"):
        own[name] = []
        for ids in chunks_of(documents[name], name, tokenizer):
            p = logits(model, ids)[:-1].double().softmax(-1).numpy()
            p = p[np.arange(len(ids) - 1), ids[1:]]
            own[name].append(np.mean(np.log(p / (1 - p))))
    area = membership.auc(own["forget"], own["unseen"])
    assert value(found, str(llama), "forget", "AUC of the margin") == pytest.approx(area)


def test_a_model_under_two_names_is_found_out(llama, retrained, documents, tmp_path, capsys):
    """A copy, as another spelling of its path, would make the spread of retrained models 0."""
    shutil.copytree(retrained[0], tmp_path / "copy")
    sets = ("--forget", documents["forget"], "--unseen", documents["unseen"])
    given = ("--retrained", *retrained, tmp_path / "copy", *sets, "--context", CONTEXT)
    assert run("audit", "--model", llama, *given, "--out", tmp_path / "a.csv") == 2
    said = capsys.readouterr().err
    assert f"{retrained[0]} and {tmp_path / 'copy'} give the same numbers" in said
    assert not (tmp_path / "a.csv").exists()


def test_one_document_is_too_few(llama, retrained, documents, tmp_path, capsys):
    (tmp_path / "one.txt").write_text("All of this was never seen, or so they say. " * 3)
    sets = ("--forget", documents["forget"], "--unseen", tmp_path / "one.txt")
    given = ("--model", llama, "--retrained", *retrained, *sets, "--context", CONTEXT)
    assert run("audit", *given) == 2
    assert "--unseen: one document; 2 are needed" in capsys.readouterr().err


def test_damaged_weights_are_named(llama, retrained, documents, tokenizer, tmp_path, capsys):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(write_model(tmp_path / "bad", "llama", tokenizer))
    model.lm_head.weight.data[:] = np.nan
    model.save_pretrained(tmp_path / "bad")
    sets = ("--forget", documents["forget"], "--unseen", documents["unseen"])
    given = ("--model", tmp_path / "bad", "--retrained", *retrained, *sets, "--context", CONTEXT)
    assert run("audit", *given, "--out", tmp_path / "a.csv") == 2
    assert f"{tmp_path / 'bad'}: not every probability is finite" in capsys.readouterr().err
    assert not (tmp_path / "a.csv").exists()


def test_a_table_that_is_there_stays(llama, retrained, documents, tmp_path, capsys):
    (tmp_path / "a.csv").write_text("mine")
    sets = ("--forget", documents["forget"], "--unseen", documents["unseen"])
    given = ("--model", llama, "--retrained", *retrained, *sets)
    assert run("audit", *given, "--out", tmp_path / "a.csv") == 2
    assert "a.csv: already there" in capsys.readouterr().err
    assert (tmp_path / "a.csv").read_text() == "mine"


def test_three_different_retrained_models_are_needed(llama, retrained, documents, capsys):
    sets = ("--forget", documents["forget"], "--unseen", documents["unseen"])
    two = (retrained[0], retrained[1], retrained[0], llama)
    assert run("audit", "--model", llama, "--retrained", *two, *sets) != 0
    said = capsys.readouterr().err
    assert "--retrained: 2 models beside --model, and 3 different ones" in said
