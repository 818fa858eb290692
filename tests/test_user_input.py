"""Mistakes of the user's: one line that says what is wrong and where, and exit code 2.

Nothing is written, nothing changed.
"""

import hashlib
import json
import os
import shutil
from functools import partial

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from user_models import arguments, record, text, write_documents

from unlearn_utils.app import commands
from unlearn_utils.data import tokens
from unlearn_utils.engine import models, training


class Place:
    """A folder of the user's: a model, documents, and the command's options.

    A mistake changes one of them.
    """

    def __init__(self, folder, model):
        self.folder = folder
        self.model = folder / "model"
        self.out = folder / "out"
        shutil.copytree(model, self.model)
        (folder / "documents").mkdir()
        self.documents = write_documents(folder / "documents")
        self.method = "ascent_kl_general"
        self.more = []

    def files(self):
        """Return every file below the folder with its hash, and every folder."""
        found = {}
        for path in self.folder.rglob("*"):
            found[path] = path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest()
        return found

    def run(self):
        given = arguments(self.model, self.documents, self.out, self.method, *self.more)
        return commands.main(given)


@pytest.fixture
def place(tmp_path, llama):
    return Place(tmp_path, llama)


def not_utf8(place):
    (place.documents["forget"] / "d.txt").write_bytes(b"caf\xe9, in another encoding")


def not_json(place):
    place.documents["retain"].write_text('{"text": "a"}\n{"text": \n')


def no_object(place):
    place.documents["retain"].write_text('"a"\n')


def no_parquet(place):
    place.documents["unseen"].write_text("not a table")


def no_column(place):
    pd.DataFrame({"body": ["a"]}).to_parquet(place.documents["unseen"])


def no_text(place):
    place.documents["retain"].write_text(json.dumps({"text": 5}) + "\n")


def unreadable(place):
    """A link to nowhere below the folder is no file; one that is named is."""
    place.documents["retain"] = place.folder / "link.txt"
    place.documents["retain"].symlink_to(place.folder / "nowhere.txt")


def empty_folder(place):
    place.documents["forget"] = place.folder / "empty"
    place.documents["forget"].mkdir()


def wrong_suffix(place):
    place.documents["forget"] = place.folder / "paper.pdf"
    place.documents["forget"].write_text("%PDF")


def absent(place):
    place.documents["retain"] = place.folder / "none.txt"


def only_short_documents(place):
    place.documents["forget"] = place.folder / "short.txt"
    place.documents["forget"].write_text("ab")


def in_both(place):
    (place.documents["forget"] / "same.txt").write_text(text("lepton", 2, 3))


def unseen_in_forget(place):
    shutil.copy(place.documents["forget"] / "secret_plan.txt", place.folder / "copy.txt")
    place.documents["unseen"] = place.folder / "copy.txt"


def no_config(place):
    (place.model / "config.json").unlink()


def change_config(place, changes):
    file = place.model / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | changes))


def own_code(place):
    classes = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    change_config(place, {"model_type": "unheard_of", "auto_map": classes})
    (place.model / "own.py").write_text("raise SystemExit('this ran')")


def quantized(place):
    change_config(place, {"quantization_config": {"quant_method": "gptq", "bits": 4}})


def no_weights(place):
    (place.model / "model.safetensors").unlink()


def damaged_weights(place):
    file = place.model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:500])


def missing_weights(place):
    weights = load_file(place.model / "model.safetensors")
    weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, place.model / "model.safetensors", {"format": "pt"})


def whole_numbers(place):
    weights = {"model.norm.weight": torch.ones(16, dtype=torch.int8)}
    save_file(weights, place.model / "model.safetensors", {"format": "pt"})


def no_tokenizer(place):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (place.model / name).unlink()


def half_a_tokenizer(place):
    (place.model / "tokenizer.json").unlink()


def damaged_tokenizer(place):
    (place.model / "tokenizer.json").write_text("{}")


def wrong_tokenizer(place):
    texts = ["".join(text("quark", number, 9) for number in range(9))]
    tokens.train_tokenizer(texts, 330).save_pretrained(place.model)


def no_model(place):
    place.model = place.folder / "none"


def a_revision(place):
    place.more = ["--revision", "main"]


def unknown_method(place):
    place.method = "gradient_descent"


def no_retain(place):
    del place.documents["retain"]


def out_in_use(place):
    place.out = place.folder / "documents"


def out_is_a_file(place):
    place.out = place.documents["retain"]


def out_in_nowhere(place):
    place.out = place.folder / "nowhere" / "out"


def checkpoints_below(name):
    """An option that is a path in the user's folder."""

    def change(place):
        place.more = ["--checkpoints", str(place.folder / name)]

    return change


def options(*more):
    def change(place):
        place.more = list(more)

    return change


MISTAKES = [
    (not_utf8, ["d.txt", "UTF-8"]),
    (not_json, ["retain.jsonl", "JSON"]),
    (no_object, ["retain.jsonl", "no JSON object"]),
    (no_parquet, ["unseen.parquet"]),
    (no_column, ["unseen.parquet", "no column 'text' or 'content'", "body"]),
    (no_text, ["retain.jsonl", "no text"]),
    (unreadable, ["link.txt", "no such file"]),
    (empty_folder, ["empty", "no document found", ".jsonl"]),
    (wrong_suffix, ["paper.pdf", "no document found", ".jsonl"]),
    (absent, ["none.txt", "no such file or folder"]),
    (only_short_documents, ["--forget", "5 tokens"]),
    (in_both, ["--forget and --retain", "same.txt = ", "retain.jsonl:3", "remove"]),
    (unseen_in_forget, ["--forget and --unseen", "secret_plan.txt = ", "copy.txt"]),
    (no_config, ["model", "config.json"]),
    (own_code, ["model", "config.json"]),
    (quantized, ["model", "quantized"]),
    (no_weights, ["model", "no weights"]),
    (damaged_weights, ["model.safetensors", "damaged"]),
    (missing_weights, ["model", "1 weights are missing", "up_proj"]),
    (whole_numbers, ["model.safetensors", "I8", "BF16"]),
    (no_tokenizer, ["model", "no tokenizer", "tokenizer.json"]),
    (half_a_tokenizer, ["model", "no tokenizer", "tokenizer.json"]),
    (damaged_tokenizer, ["model", "its tokenizer: cannot be used"]),
    (wrong_tokenizer, ["secret_plan.txt", "300 embeddings", "not its tokenizer?"]),
    (no_model, ["none", "no such folder"]),
    (a_revision, ["--revision", "is a folder"]),
    (unknown_method, ["gradient_descent", "gradient_ascent, random_label, adversarial"]),
    (no_retain, ["--retain is missing", "ascent_kl_general"]),
    (out_in_use, ["--out", "documents", "not empty"]),
    (out_is_a_file, ["--out", "retain.jsonl"]),
    (out_in_nowhere, ["--out", "no folder", "nowhere"]),
    (options("--lora", "8"), ["--lora 8", "rank=8"]),
    (options("--lora", "rank=0"), ["--lora rank=0", "above 0"]),
    (options("--lora", "rank=8,alpha=x"), ["--lora rank=8,alpha=x", "alpha=16"]),
    (options("--merge"), ["--merge", "--lora"]),
    (options("--learning-rate", "0"), ["learning_rate must be positive"]),
    (options("--learning-rate", "nan"), ["learning_rate must be positive"]),
    (options("--epochs", "0"), ["epochs must be positive"]),
    (options("--batch", "-1"), ["batch must be positive"]),
    (options("--retain-weight", "-1"), ["--retain-weight must be positive"]),
    (options("--micro-batch", "0"), ["--micro-batch 0", "positive"]),
    (options("--micro-batch", "3"), ["--micro-batch 3", "divide the batch of 4"]),
    (checkpoints_below("nowhere/checkpoints"), ["--checkpoints", "nowhere", "none can be made"]),
    (
        checkpoints_below("documents/retain.jsonl"),
        ["--checkpoints", "retain.jsonl", "none can be made"],
    ),
    (checkpoints_below("out"), ["--checkpoints", "outside of --out"]),
    (options("--context", "4"), ["--context 4", "5 to 1024"]),
    (options("--context", "1025"), ["--context 1025", "5 to 1024"]),
]


NAMES = [f"{number} {said[0]}" for number, (_, said) in enumerate(MISTAKES)]


@pytest.mark.parametrize(("mistake", "said"), MISTAKES, ids=NAMES)
def test_a_mistake_is_one_line(mistake, said, place, monkeypatch, capsys):
    monkeypatch.setattr(training, "unlearn", lambda *_, **__: pytest.fail("it was trained"))
    mistake(place)
    before = place.files()
    assert place.run() == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert all(word in err for word in said), err
    assert place.files() == before


def test_without_a_mistake_it_is_trained(place):
    """What the mistakes are made of is right by itself; and the user's files stay as they are."""
    before = place.files()
    assert place.run() == 0
    after = place.files()
    beside = {path: digest for path, digest in after.items() if not path.is_relative_to(place.out)}
    assert beside == before
    assert place.out / "model.safetensors" in after


def test_a_document_too_short_is_left_out_and_named(place, capsys):
    """Of fewer than five tokens nothing is left, as in the released code."""
    (place.documents["forget"] / "tiny.txt").write_text("ab")
    assert place.run() == 0
    out = capsys.readouterr().out
    assert "forget: 5 documents, 13 chunks of up to 32 tokens; too short, so left out: " in out
    assert "tiny.txt (1 in all)" in out

    tiny = hashlib.sha256(b"ab").hexdigest()
    run = record(place.out)
    forgotten = run["documents"]["forget"]
    assert run["left_out"]["forget"] == [tiny]
    assert tiny not in forgotten
    assert len(forgotten) == 4
    card = (place.out / "README.md").read_text()
    assert "- forget: 4 documents; too short, so left out: 1\n" in card
    assert tiny not in card
    assert all(digest in card for digest in forgotten)


def test_what_is_not_read_is_named_in_the_plan_the_card_and_the_record(place, capsys):
    forget = place.documents["forget"]
    (forget / "empty.txt").write_text(" \n")
    (forget / "page.html").write_text("<p>")
    (forget / ".git").mkdir()
    (forget / ".git" / "HEAD").write_text("ref")
    (forget / "gone.md").symlink_to("nowhere.md")
    (forget / os.fsdecode(b"caf\xe9.html")).write_text("<p>")
    assert place.run() == 0
    said = (
        "5 not read: 1 empty (empty.txt), 1 hidden (.git/), 1 linked to nothing (gone.md), 2 of "
        r"another kind (caf\xe9.html, page.html)"
    )
    plan = capsys.readouterr().out
    assert f"forget: 4 documents, 13 chunks of up to 32 tokens; {said}\n" in plan
    card = (place.out / "README.md").read_text()
    assert f"- forget: 4 documents; {said}\n- retain: 4 documents\n" in card
    not_read = record(place.out)["not_read"]
    names = [".git/", r"caf\xe9.html", "gone.md", "page.html", "empty.txt"]
    assert [one["name"] for one in not_read["forget"]] == names
    assert not_read["retain"] == []


def test_evaluate_names_what_is_not_read(place, capsys):
    (place.documents["forget"] / "page.html").write_text("<p>")
    given = ["evaluate", "--model", place.model, "--documents", place.documents["forget"]]
    assert commands.main([str(part) for part in given]) == 0
    assert "; 1 not read: 1 of another kind (page.html)\n" in capsys.readouterr().out


def test_ascent_needs_no_retain_text(place):
    del place.documents["retain"]
    place.method = "gradient_ascent"
    assert place.run() == 0
    assert set(pd.read_csv(place.out / "results.csv").split) == {
        "forget",
        "unseen",
        "forget against unseen",
    }


def test_precision_is_the_machine_s_unless_given(place, monkeypatch):
    found = []

    def stop(*_, **__):
        found.append(models.half_precision())
        raise MemoryError

    monkeypatch.setattr(training, "unlearn", stop)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for native in (True, False):
        patched = partial(bool, native)
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", patched)
        for more in ([], ["--bf16"], ["--float32"]):
            place.more = more
            assert place.run() == 1
    assert found == [True, True, False, False, True, False]
    assert models.half_precision() is False
