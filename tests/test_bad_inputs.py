"""A table of bad inputs: each is one line that says what is wrong, before anything costly.

A row changes one thing of a right command: its options, the model's files, the documents. The exit
code is 2 and every file stays as it was. `test_user_input` and `test_downstream` have other rows.
"""

import io
import json
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import httpx
import huggingface_hub
import jinja2
import pandas as pd
import pyarrow
import pytest
import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from test_user_input import Place, change_config
from transformers import AutoModelForCausalLM
from user_models import CONTEXT, arguments

from unlearn_utils import __main__
from unlearn_utils.app import (
    cards,
    errors,
    model_files,
    output_folder,
    settings,
    terminal,
    unlearn_command,
    user_documents,
)
from unlearn_utils.cache import endings
from unlearn_utils.engine import evaluation, training


@pytest.fixture
def place(tmp_path, llama):
    return Place(tmp_path, llama)


@pytest.fixture(autouse=True)
def children_live(monkeypatch):
    """Leave the children of the process of the tests alone, which a signal would end."""
    monkeypatch.setattr(endings, "end_children", lambda: None)


def main(given):
    """Run a command as `python -m unlearn_utils` does, and return its exit code."""
    try:
        return __main__.main([str(part) for part in given])
    except SystemExit as ended:
        return ended.code


def fail(error):
    """Return a function that raises an error, whatever it is given."""

    def raised(*_, **__):
        raise error

    return raised


def one_line(capsys):
    """Return what stands on stderr, which is one line."""
    err = capsys.readouterr().err
    assert err.startswith("error: "), err
    assert err.count("\n") == 1, err
    return err


# ----------------------------------------------------------------------------- the options of a run


def option(*more):
    """Add options to the command line."""
    return lambda place: place.more.extend(more)


def below(name, *parts):
    """Give an option a path in the user's folder."""
    return lambda place: place.more.extend([name, str(place.folder.joinpath(*parts))])


def model(name):
    """Name the model otherwise."""
    return lambda place: setattr(place, "model", name)


def out(name):
    """Name the new folder otherwise: below the user's, or elsewhere if it begins with a slash."""
    return lambda place: setattr(place, "out", place.folder / name)


def documents(split, name):
    return lambda place: place.documents.update({split: name})


def model_is_a_file(place):
    place.model = place.model / "config.json"


def model_is_empty(place):
    place.model = place.folder / "nothing"
    place.model.mkdir()


def model_is_no_utf8(place):
    renamed = place.folder / os.fsdecode(b"mod\xe8le")
    place.model = place.model.rename(renamed)


def out_is_a_loop(place):
    place.out.symlink_to(place.out)


def out_by_a_link(place):
    """A folder beside the model by its name, and below it in truth."""
    (place.folder / "elsewhere").symlink_to(place.model)
    place.out = place.folder / "elsewhere" / "new"


def without(name):
    """Leave an option out."""
    return lambda place: setattr(place, "left_out", name)


def method(name):
    return lambda place: setattr(place, "method", name)


OPTIONS = [
    ("rate is infinite", option("--learning-rate", "inf"), ["--learning-rate inf", "finite"]),
    ("rate is a word", option("--learning-rate", "x"), ["--learning-rate", "'x'"]),
    ("rate is empty", option("--learning-rate", ""), ["--learning-rate", "''"]),
    ("epochs are no number", option("--epochs", "nan"), ["epochs must be positive, not nan"]),
    ("epochs are a word", option("--epochs", "x"), ["--epochs", "'x'"]),
    ("epochs are 0", option("--epochs", "0"), ["epochs must be positive, not 0"]),
    ("epochs below 0", option("--epochs", "-3"), ["epochs must be positive, not -3"]),
    ("epochs without end", option("--epochs", "1e9"), ["--epochs 1000000000", "1000 at most"]),
    ("epochs are infinite", option("--epochs", "inf"), ["--epochs inf", "1000 at most"]),
    ("less than a step", option("--epochs", "0.1"), ["0.1: 1.3 of 13 forget chunks", "--steps 1"]),
    ("steps are 0", option("--steps", "0"), ["--steps 0", "1 to 1000000000"]),
    ("steps below 0", option("--steps", "-3"), ["--steps -3", "1 to"]),
    ("steps in parts", option("--steps", "1.5"), ["--steps", "'1.5'"]),
    ("steps in thousands", option("--steps", "1e9"), ["--steps", "'1e9'"]),
    ("steps without end", option("--steps", "1" + 12 * "0"), ["--steps", "1 to 1000000000"]),
    ("steps of too many epochs", option("--steps", "3251"), ["13 forget chunks; choose 3250"]),
    ("steps and epochs", option("--steps", "2", "--epochs", "1"), ["--epochs", "not allowed with"]),
    ("seed below 0", option("--seed", "-1"), ["--seed -1", "0 to 4294967295"]),
    ("seed beyond 32 bits", option("--seed", "4294967296"), ["--seed 4294967296", "0 to"]),
    ("seed is a word", option("--seed", "x"), ["--seed", "'x'"]),
    ("batch without end", option("--batch", "1000000000000"), ["--batch", "1 to 1000000"]),
    ("batch is a word", option("--batch", "all"), ["--batch", "'all'"]),
    ("micro-batch below 0", option("--micro-batch", "-1"), ["--micro-batch -1", "positive"]),
    ("micro-batch is a word", option("--micro-batch", "x"), ["--micro-batch", "'x'"]),
    ("micro-batch is all", option("--micro-batch", "8"), ["--micro-batch 8", "batch of 4"]),
    ("weight is infinite", option("--retain-weight", "inf"), ["--retain-weight", "inf"]),
    ("weight is no number", option("--retain-weight", "nan"), ["--retain-weight", "nan"]),
    ("weight is 0", option("--retain-weight", "0"), ["--retain-weight must be positive"]),
    ("context below 0", option("--context", "-5"), ["--context -5", "5 to 1024"]),
    ("context without end", option("--context", "99999999999"), ["5 to 1024"]),
    ("context is a word", option("--context", "x"), ["--context", "'x'"]),
    ("adapters of nothing", option("--lora", ""), ["--lora", "rank=8"]),
    ("adapters too wide", option("--lora", "rank=1000000000"), ["--lora", "below 100000"]),
    ("alpha is no whole number", option("--lora", "rank=8,alpha=1e3"), ["alpha=16"]),
    ("alpha without rank", option("--lora", "alpha=8"), ["--lora alpha=8", "rank=8"]),
    ("adapters with a space", option("--lora", "rank=8, alpha=2"), ["--lora", "alpha=16"]),
    ("revision is empty", option("--revision", ""), ["--revision", "empty"]),
    ("no such option", option("--epoch_s", "3"), ["--epoch_s"]),
    ("a word too many", option("more"), ["unrecognized arguments: more"]),
    ("two precisions", option("--bf16", "--float32"), ["--float32", "--bf16"]),
    ("no method", method(""), ["unknown method ''"]),
    ("a missing option", without("--out"), ["required: --out"]),
    ("model is empty", model(""), ["--model", "empty"]),
    ("model is blank", model(" "), ["--model", "empty"]),
    ("model of three parts", model("a/b/c"), ["a/b/c", "no such folder"]),
    ("model is an address", model("https://huggingface.co/a/b"), ["no such folder"]),
    ("model with a space", model("bad name"), ["bad name", "no such folder"]),
    ("model at home", model("~/model"), ["~/model", "no such folder"]),
    ("model is too long", model("x" * 300), ["too long"]),
    ("model is a file", model_is_a_file, ["config.json: a file", "name the folder"]),
    ("model is empty folder", model_is_empty, ["nothing", "config.json"]),
    ("model is not UTF-8", model_is_no_utf8, ["not UTF-8", "rename it"]),
    ("forget is empty", documents("forget", ""), ["--forget", "empty"]),
    ("retain is empty", documents("retain", ""), ["--retain", "empty"]),
    ("unseen is blank", documents("unseen", "  "), ["--unseen", "empty"]),
    ("forget is nowhere", documents("forget", "/no/such"), ["--forget /no/such", "no such file"]),
    ("out is empty", lambda place: setattr(place, "out", ""), ["--out", "empty"]),
    ("out in the model", out("model/new"), ["--out", "outside of --model"]),
    ("out in the model by a link", out_by_a_link, ["--out", "outside of --model"]),
    ("out in the documents", out("documents/forget/new"), ["--out", "outside of --forget"]),
    ("out cannot be made", out("/proc/new"), ["--out /proc/new", "no files can be written"]),
    ("out below a file", out("model/config.json/new"), ["--out", "there is no folder"]),
    ("out is a loop", out_is_a_loop, ["--out", "circle"]),
    ("out is too long", out("x" * 300), ["too long"]),
    ("out is not UTF-8", out(os.fsdecode(b"\xe8")), ["not UTF-8"]),
    ("checkpoints are empty", option("--checkpoints", ""), ["--checkpoints", "empty"]),
    (
        "checkpoints in the model",
        below("--checkpoints", "model", "kept"),
        ["--checkpoints", "outside of --model"],
    ),
    (
        "checkpoints in the documents",
        below("--checkpoints", "documents", "forget", "kept"),
        ["--checkpoints", "outside of --forget"],
    ),
    (
        "checkpoints cannot be made",
        option("--checkpoints", "/proc/kept"),
        ["--checkpoints", "no files can be written"],
    ),
]


# ------------------------------------------------------------------------------ the model's files

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 12345678\n"
CONTENTS = {
    "a list": "[]",
    "a text": '"x"',
    "nothing at all": "",
    "null": "null",
    "a number": "5",
    "half of it": "{",
    "Latin-1": '{"é": 1}'.encode("latin-1"),
    "UTF-16": "{}".encode("utf-16"),
    "bytes": bytes(range(256)),
    "without end": "[" * 100_000,
    "a pointer of Git LFS": POINTER,
    "a folder": None,
}


def write(path, content):
    """Put a content in the place of a file; None: a folder."""
    path.unlink(missing_ok=True)
    if content is None:
        path.mkdir()
    elif isinstance(content, str):
        path.write_text(content)
    else:
        path.write_bytes(content)


def file(name, content):
    return lambda place: write(place.model / name, content)


def contents_of(name, said, kinds=tuple(CONTENTS)):
    """Rows of a file that holds something else. What is said of all is the model, at least."""
    return [(f"{name} is {kind}", file(name, CONTENTS[kind]), said) for kind in kinds]


def config(said, **changes):
    """A row of a config with other values."""
    return (f"config {changes}", lambda place: change_config(place, changes), said)


CONFIGS = [
    *contents_of("config.json", ["model"]),
    *contents_of("generation_config.json", ["model"], ["a list", "null", "without end"]),
    config(["config.json", "5"], model_type=5),
    config(["model", "t5"], model_type="t5"),
    config(["model", "hidden_size", "'16'"], hidden_size="16"),
    config(["model", "negative dimension"], hidden_size=-16),
    config(["model", "17"], hidden_size=17),
    config(["model", "num_hidden_layers"], num_hidden_layers="2"),
    config(["model", "weights"], num_hidden_layers=3),
    config(["config.json", "1000000 layers"], num_hidden_layers=1_000_000),
    config(["model", "ZeroDivisionError"], num_attention_heads=0),
    config(["model", "(3)"], num_attention_heads=3),
    config(["model", "ZeroDivisionError"], num_key_value_heads=0),
    config(["model", "vocab_size"], vocab_size="300"),
    config(["20 embeddings", "not its tokenizer?"], vocab_size=20),
    config(["will not fit"], vocab_size=10**12),
    config(["config.json", "3 tokens at a time"], max_position_embeddings=3),
    config(["config.json", "-7 tokens at a time"], max_position_embeddings=-7),
    config(["model", "max_position_embeddings"], max_position_embeddings="1024"),
    config(["model", "KeyError", "'tanh_of_ours'"], hidden_act="tanh_of_ours"),
    config(["model", "rms_norm_eps"], rms_norm_eps="x"),
    config(["model", "KeyError", "'ours'"], rope_scaling={"type": "ours"}),
    config(["model", "factor"], rope_scaling={"rope_type": "yarn"}),
    config(["model", "tie_word_embeddings"], tie_word_embeddings="yes"),
    config(["model", "'float20'"], dtype="float20"),
    config(["model", "floating-point"], dtype="int8"),
    config(["model", "Padding_idx"], pad_token_id=10**6),
    config(["model", "bos_token_id"], bos_token_id=[1, 2]),
    config(["model", "head_dim"], head_dim=7),
    config(["model", "TypeError"], auto_map=5),
    config(["model", "AttributeError"], id2label=5),
    config(["model", "flash"], attn_implementation="flash_attention_of_ours"),
    config(["model", "FlashAttention2"], _attn_implementation="flash_attention_2"),
    config(["model", "layer_types"], layer_types=["ours"]),
]


def json_of(name, change):
    """Change what a JSON file of the model holds."""

    def changed(place):
        path = place.model / name
        held = json.loads(path.read_text())
        change(held)
        path.write_text(json.dumps(held))

    return changed


def tokenizer(change):
    return json_of("tokenizer.json", change)


def tokenizer_config(**changes):
    return json_of("tokenizer_config.json", lambda held: held.update(changes))


GROUP = {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False}
CHARACTERS = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
CUT = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 9}
TOKENIZERS = [
    *contents_of("tokenizer.json", ["model"], ["a list", "null", "half of it", "Latin-1"]),
    *contents_of("tokenizer.json", ["model"], ["without end", "a pointer of Git LFS", "a folder"]),
    *contents_of("tokenizer_config.json", ["model"], ["null", "half of it", "bytes"]),
    *contents_of("special_tokens_map.json", ["model"], ["a list", "half of it"]),
    *contents_of("added_tokens.json", ["model"], ["a list", "Latin-1"]),
    *contents_of("chat_template.jinja", ["model"], ["Latin-1"]),
    ("model of no kind", tokenizer(lambda held: held["model"].update(type="Ours")), ["model"]),
    ("no merges", tokenizer(lambda held: held.pop("model")), ["model", "Model missing"]),
    (
        "merges of nothing",
        tokenizer(lambda held: held["model"].update(merges=[["zz", "qq"]])),
        ["zz"],
    ),
    ("wrong expression", tokenizer(lambda held: held.update(pre_tokenizer=GROUP)), ["parenthesis"]),
    ("a panic of Rust", tokenizer(lambda held: held.update(normalizer=CHARACTERS)), ["charsmap"]),
    ("stride beyond length", tokenizer(lambda held: held.update(truncation=CUT)), ["stride"]),
    ("class is a number", tokenizer_config(tokenizer_class=5), ["tokenizer", "int"]),
    ("token is a number", tokenizer_config(bos_token=5), ["tokenizer", "bos_token"]),
    ("pads nowhere", tokenizer_config(padding_side="up"), ["tokenizer", "up"]),
]


def header(held):
    """Return a file of weights that holds a header alone."""
    text = json.dumps(held).encode()
    return struct.pack("<Q", len(text)) + text


def tensor(shape, end):
    return {"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}


def weights(change):
    """Change the weights themselves."""

    def changed(place):
        path = place.model / "model.safetensors"
        held = load_file(path)
        change(held)
        save_file(held, path, {"format": "pt"})

    return changed


def shards(change):
    """Divide the weights into several files, and change one of them."""

    def changed(place):
        whole = AutoModelForCausalLM.from_pretrained(place.model)
        (place.model / "model.safetensors").unlink()
        whole.save_pretrained(place.model, max_shard_size="10KB")
        change(sorted(place.model.glob("*.safetensors"))[-1])

    return changed


def index(content):
    """Divide the weights into several files, and put something in the place of their list."""
    return shards(lambda last: write(last.parent / "model.safetensors.index.json", content))


BASE = {"peft_type": "LORA", "base_model_name_or_path": "/no/such"}
WEIGHTS = [
    ("no byte", file("model.safetensors", b""), ["model.safetensors", "damaged"]),
    ("header too long", file("model.safetensors", struct.pack("<Q", 2**60)), ["damaged"]),
    ("header is a list", file("model.safetensors", header([])), ["damaged"]),
    ("no tensor", file("model.safetensors", header({})), ["no weights"]),
    ("beyond the end", file("model.safetensors", header(tensor([2], 800))), ["damaged"]),
    ("a page of the web", file("model.safetensors", "<html>404</html>"), ["damaged"]),
    ("a pickle", file("model.safetensors", b"\x80\x02}q\x00."), ["damaged"]),
    ("weights are a folder", file("model.safetensors", None), ["model.safetensors"]),
    ("weights are a pointer", file("model.safetensors", POINTER), ["model.safetensors"]),
    (
        "another size",
        weights(lambda held: held.update({"model.norm.weight": torch.ones(7)})),
        ["model.norm.weight"],
    ),
    ("no such place", weights(lambda held: held.update(ours=torch.ones(7))), ["ours"]),
    ("a missing part", shards(lambda last: last.unlink()), ["model-0000", "missing"]),
    ("half a part", shards(lambda last: last.write_bytes(last.read_bytes()[:-50])), ["damaged"]),
    ("part is a pointer", shards(lambda last: last.write_text(POINTER)), ["model-0000"]),
    *[
        (f"index is {kind}", index(CONTENTS[kind]), ["model"])
        for kind in ("a list", "half of it", "bytes", "without end", "a folder")
    ],
    ("index of nothing", index('{"weight_map": {}, "metadata": {}}'), ["no weights"]),
    *contents_of("adapter_config.json", ["model"], ["a list", "half of it", "a folder"]),
    ("adapters of nothing", file("adapter_config.json", "{}"), ["adapter_config.json"]),
    ("adapters of nowhere", file("adapter_config.json", json.dumps(BASE)), ["model"]),
]


# ---------------------------------------------------------------------------------- the documents


def text_file(name, content):
    """Give --retain a file."""

    def written(place):
        place.documents["retain"] = place.folder / name
        write(place.folder / name, content)

    return written


def table(**columns):
    """Give --retain a parquet table."""

    def written(place):
        place.documents["retain"] = place.folder / "retain.parquet"
        pd.DataFrame(columns).to_parquet(place.documents["retain"])

    return written


DOCUMENTS = [
    ("text is UTF-16", text_file("a.txt", "a text".encode("utf-16")), ["a.txt", "UTF-8"]),
    ("lines are UTF-16", text_file("a.jsonl", "{}".encode("utf-16")), ["a.jsonl", "UTF-8"]),
    ("lines are a list", text_file("a.jsonl", "[1, 2]\n"), ["a.jsonl", "no JSON object"]),
    ("text is null", text_file("a.jsonl", '{"text": null}\n'), ["a.jsonl", "None"]),
    ("table is half", text_file("a.parquet", b"PAR1 and no more"), ["a.parquet"]),
    ("table of numbers", table(text=[1, 2]), ["retain.parquet", "1"]),
    ("table of nothing", table(text=[]), ["retain.parquet", "no document"]),
]


ROWS = [*OPTIONS, *CONFIGS, *TOKENIZERS, *WEIGHTS, *DOCUMENTS]


def refuse(monkeypatch, *costly):
    """Let the test fail where something costly begins."""
    for module, name in costly:
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("too late"))


@pytest.mark.parametrize(
    ("change", "said"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS]
)
def test_a_bad_input_is_one_line_before_anything_costly(change, said, place, monkeypatch, capsys):
    refuse(monkeypatch, (training, "unlearn"), (evaluation, "measure"))
    place.left_out = None
    change(place)
    before = place.files()
    given = arguments(place.model, place.documents, place.out, place.method, *place.more)
    if place.left_out is not None:
        at = given.index(place.left_out)
        del given[at : at + 2]
    capsys.readouterr()
    assert main(given) == 2
    err = one_line(capsys)
    assert all(word in err for word in said), err
    assert place.files() == before
    assert not any(name.endswith(".part") for name in os.listdir(place.folder))


# ------------------------------------------------------------------------------- the other commands

EVALUATE = ["evaluate", "--model", "MODEL"]
ON_DOCUMENTS = [*EVALUATE, "--documents", "DOCUMENTS"]
ON_TASKS = [*EVALUATE, "--tasks", "arc_easy"]
COMMANDS = [
    ([], ["required: COMMAND"]),
    (["unlern"], ["invalid choice: 'unlern'"]),
    (["methods", "all"], ["unrecognized arguments: all"]),
    (["run"], ["required: profile"]),
    (["run", "smoke", "--only", "1", "--from", "2"], ["--from", "--only"]),
    (["fetch", "huge"], ["unknown profile 'huge'"]),
    (["claims", "huge"], ["unknown profile 'huge'"]),
    (["compute", "huge"], ["unknown profile 'huge'"]),
    (["compute", "smoke", "--part", "first"], ["smoke has no parts"]),
    (["compare", "--models", "--documents", "DOCUMENTS"], ["--models"]),
    (["compare", "--models", "MODEL", "/no", "--documents", "DOCUMENTS"], ["/no", "no such"]),
    (EVALUATE, ["--documents", "--tasks", "required"]),
    ([*ON_DOCUMENTS, "--tasks"], ["--tasks", "--documents"]),
    ([*EVALUATE, "--documents", ""], ["--documents", "empty"]),
    ([*EVALUATE, "--documents", "/no/such"], ["--documents /no/such", "no such file"]),
    ([*ON_DOCUMENTS, "--unseen", "/no/such"], ["--unseen /no/such", "no such file"]),
    ([*ON_DOCUMENTS, "--against", ""], ["--against", "empty"]),
    ([*ON_DOCUMENTS, "--against", "/no/such"], ["/no/such", "no such folder"]),
    ([*ON_DOCUMENTS, "--against", "DAMAGED"], ["damaged", "model.safetensors"]),
    ([*ON_DOCUMENTS, "--against", "NO_CONFIG"], ["no_config", "config.json"]),
    ([*ON_DOCUMENTS, "--context", "x"], ["--context", "'x'"]),
    ([*ON_DOCUMENTS, "--context", "3"], ["--context 3", "5 to 1024"]),
    ([*ON_DOCUMENTS, "--out", ""], ["--out", "empty"]),
    ([*ON_DOCUMENTS, "--out", "MODEL"], ["--out", "already there"]),
    ([*ON_DOCUMENTS, "--out", "DOCUMENTS/a.csv"], ["--out", "no files can be written"]),
    ([*ON_DOCUMENTS, "--out", f"FOLDER/{'x' * 250}"], ["--out", "File name too long"]),
    ([*ON_DOCUMENTS, "--out", "/proc/a.csv"], ["--out /proc/a.csv", "no files can be written"]),
    ([*EVALUATE, "--tasks", ""], ["--tasks", "empty"]),
    ([*EVALUATE, "--tasks", ","], ["--tasks ,", "empty"]),
    ([*EVALUATE, "--tasks", "arc_easy,"], ["--tasks arc_easy,", "empty"]),
    ([*ON_TASKS, "--limit", "-5"], ["--limit", "above 0, not -5"]),
    ([*ON_TASKS, "--limit", "all"], ["--limit", "'all'"]),
    ([*ON_TASKS, "--task-folder", ""], ["--task-folder", "empty"]),
    ([*ON_TASKS, "--task-folder", "DOCUMENTS"], ["--task-folder", "no folder"]),
]


@pytest.mark.parametrize(("given", "said"), COMMANDS, ids=[" ".join(row[0]) for row in COMMANDS])
def test_a_bad_word_of_another_command_is_one_line(given, said, place, monkeypatch, capsys):
    """Also where the second of two models is wrong: the first is not measured."""
    refuse(monkeypatch, (evaluation, "measure"))
    for name in ("damaged", "no_config"):
        (place.folder / name).mkdir()
        for path in place.model.iterdir():
            (place.folder / name / path.name).write_bytes(path.read_bytes())
    (place.folder / "damaged" / "model.safetensors").write_bytes(b"")
    (place.folder / "no_config" / "config.json").unlink()
    names = {
        "MODEL": place.model,
        "FOLDER": place.folder,
        "DOCUMENTS": place.documents["retain"],
        "DAMAGED": place.folder / "damaged",
        "NO_CONFIG": place.folder / "no_config",
    }
    for name, path in names.items():
        given = [word.replace(name, str(path)) for word in given]
    before = place.files()
    assert main(given) == 2
    err = one_line(capsys)
    assert all(word in err for word in said), err
    assert place.files() == before


def test_the_table_is_a_large_one():
    assert len(ROWS) + len(COMMANDS) >= 120


TYPOS = [
    ["unlearn", "--model", "/no", "--forget", __file__, "--method", "gradient_ascent"],
    ["unlearn", "--model", "a/b", "--forget", __file__, "--method", "gradient_descent"],
    ["unlearn", "--model", "a/b", "--forget", "/no", "--method", "gradient_ascent"],
    ["unlearn", "--model", "a/b", "--forget", __file__, "--method", "adversarial", "--seed", "-1"],
    ["evaluate", "--model", "a/b", "--documents", "/no"],
    ["evaluate", "--model", "a/b", "--tasks", ","],
    ["compute", "huge"],
]
SHOW_TYPOS = """
import json, sys
from unlearn_utils import __main__

for given in json.loads(sys.argv[1]):
    if given[0] == "unlearn":
        given += ["--out", "/tmp/unlearn-utils-of-no-test"]
    print(__main__.main(given))
print([name for name in ("torch", "transformers", "pandas", "numpy") if name in sys.modules])
"""


def test_a_typo_imports_nothing_heavy():
    command = [sys.executable, "-c", SHOW_TYPOS, json.dumps(TYPOS)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["2"] * len(TYPOS) + ["[]"], done.stderr


# -------------------------------------------------------------------------------- the base's card

CARDS = {
    "no front matter": (b"# A model\n", "unknown"),
    "nothing": (b"", "unknown"),
    "Latin-1": ("---\nlicense: mit\n---\n# Modèle\n".encode("latin-1"), "mit"),
    "UTF-16": ("---\nlicense: mit\n---\n".encode("utf-16"), "unknown"),
    "a mark": (b"\xef\xbb\xbf---\nlicense: mit\n---\n", "mit"),
    "lines of Windows": (b"---\r\nlicense: mit\r\n---\r\n", "mit"),
    "not closed": (b"---\nlicense: mit\n# A model\n", "unknown"),
    "no YAML": (b"---\nlicense: mit: x\n\ttags: [\n---\n", "unknown"),
    "a tag of Python": (b"---\nlicense: !!python/name:os.system\n---\n", "unknown"),
    "a tag of its own": (b"---\nlicense: !ours mit\n---\n", "unknown"),
    "a name without an anchor": (b"---\nlicense: *mit\n---\n", "unknown"),
    "no such day": (b"---\nlicense: mit\nmade: 2020-13-45\n---\n", "unknown"),
    "without end": (b"---\nlicense: " + b"[" * 400 + b"\n---\n", "unknown"),
    "a list": (b"---\n- license\n---\n", "unknown"),
    "a number": (b"---\nlicense: 5\n---\n", "unknown"),
    "a table": (b"---\nlicense: {mit: 1}\n---\n", "unknown"),
    "a line end": (b'---\nlicense: "a\\nb"\n---\n', "unknown"),
    "half a character": (b'---\nlicense: "\\ud800"\n---\n', "unknown"),
    "several": (b"---\nlicense: [mit, gpl]\n---\n", ["mit", "gpl"]),
    "odd evaluations": (b"---\nlicense: mit\nmodel-index: 5\n---\n", "mit"),
    "a folder": (None, "unknown"),
}


@pytest.mark.parametrize("name", CARDS)
def test_a_license_that_cannot_be_read_is_unknown(name, tmp_path):
    content, said = CARDS[name]
    write(tmp_path / "README.md", content)
    assert cards.stated_license(tmp_path) == {"license": said}


def test_an_odd_card_costs_no_run(place):
    write(place.model / "README.md", CARDS["half a character"][0])
    assert place.run() == 0
    written = (place.out / "README.md").read_text()
    assert yaml.safe_load(written.split("---")[1])["license"] == "unknown"


# ------------------------------------------------------------------------------------ the boundary

ANSWERED = [
    (ValueError("why"), "why", 2),
    (FileNotFoundError(2, "No such file", "a.txt"), "a.txt", 2),
    (json.JSONDecodeError("why", "{", 1), "why", 2),
    (UnicodeDecodeError("utf-8", b"\xe9", 0, 1, "why"), "why", 2),
    (SafetensorError("why"), "why", 2),
    (Exception("why"), "why", 2),
    (yaml.YAMLError("why"), "why", 2),
    (pyarrow.ArrowNotImplementedError("why"), "why", 2),
    (huggingface_hub.errors.StrictDataclassError("why"), "why", 2),
    (httpx.ConnectError("why"), "why", 2),
    (jinja2.TemplateSyntaxError("why", 1), "why", 2),
    (FloatingPointError("why"), "why", 1),
    (MemoryError(), "MemoryError", 1),
]
DEFECTS = [AssertionError, AttributeError, KeyError, IndexError, TypeError, RuntimeError]


@pytest.mark.parametrize(("error", "said", "code"), ANSWERED, ids=lambda value: repr(value)[:40])
def test_errors_of_libraries_are_one_line(error, said, code, monkeypatch, capsys):
    assert errors.answer(fail(error)) == code
    assert said in one_line(capsys)

    monkeypatch.setenv("UNLEARN_DEBUG", "1")
    assert errors.answer(fail(error)) == code
    first, *_, last = capsys.readouterr().err.splitlines()
    assert first.startswith("Traceback")
    assert last.startswith("error: ") and said in last


@pytest.mark.parametrize("kind", DEFECTS)
def test_a_defect_of_ours_is_shown(kind, capsys):
    with pytest.raises(kind):
        errors.answer(fail(kind("ours")))
    assert capsys.readouterr().err == ""


def test_a_defect_of_ours_is_shown_where_files_are_read():
    """Our own function is called wrongly; a library's would be a file that it cannot use."""
    with pytest.raises(AttributeError), errors.reading("model"):
        settings.context_of(None, None)
    said = "model: cannot be used: TypeError: 'int' object is not callable"
    with pytest.raises(ValueError, match=said), errors.reading("model"):
        json.dumps({}, cls=5)


STAGES = [
    ("SIGINT", user_documents, "read_sets"),
    ("SIGINT", model_files, "load"),
    ("SIGINT", training, "unlearn"),
    ("SIGTERM", training, "unlearn"),
    ("SIGHUP", training, "unlearn"),
    ("SIGINT", output_folder, "complete_model"),
    ("SIGINT", cards, "write_files"),
]


@pytest.mark.parametrize(("name", "module", "stage"), STAGES)
def test_a_signal_is_one_line_and_leaves_nothing(name, module, stage, place, monkeypatch, capsys):
    number = getattr(signal, name)
    monkeypatch.setattr(module, stage, lambda *_, **__: os.kill(os.getpid(), number))
    before = place.files()
    handler = signal.getsignal(number)
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        place.run()
    assert ended.value.code == 128 + number
    assert one_line(capsys) == f"error: ended by {name}; nothing is left half-made\n"
    assert place.files() == before
    assert signal.getsignal(number) == handler


# ------------------------------------------------------------------------------- what costs no run


class Gone(io.StringIO):
    """A pipe that nobody reads."""

    def write(self, text):
        raise BrokenPipeError(32, "Broken pipe")


def test_a_log_that_nobody_reads_costs_no_run(place, monkeypatch):
    monkeypatch.setattr(sys, "stdout", Gone())
    assert place.run() == 0
    assert (place.out / "README.md").exists()


def test_a_table_that_nobody_reads_is_written_or_an_error(place, monkeypatch, capsys):
    """Where it was only printed it is lost, which is no success."""
    monkeypatch.setattr(sys, "stdout", Gone())
    given = ["evaluate", "--model", place.model, "--documents", place.documents["forget"]]
    assert main(given) == 2
    assert "Broken pipe" in one_line(capsys)
    (place.folder / "link.csv").symlink_to("results.csv")  # is followed, as a shell's > does
    assert main([*given, "--out", place.folder / "link.csv"]) == 0
    assert len(pd.read_csv(place.folder / "results.csv")) == 2
    assert main(["methods"]) == 0


def test_what_a_terminal_cannot_show_is_escaped(monkeypatch):
    held = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(held, encoding="ascii"))
    with terminal.quiet():
        terminal.say("modèle")
    assert held.getvalue() == b"mod\\xe8le\n"


def test_checkpoints_that_stay_cost_no_run(tmp_path, monkeypatch, capsys):
    kept = tmp_path / "kept"
    kept.mkdir()
    monkeypatch.setattr(unlearn_command.shutil, "rmtree", fail(PermissionError("not yours")))
    unlearn_command.remove_checkpoints(kept)
    assert "could not be removed: not yours" in capsys.readouterr().out


def test_a_folder_that_is_taken_during_a_run_costs_no_result(tmp_path):
    out = tmp_path / "out"
    with (
        pytest.raises(
            OSError, match=r"--out .*out: in use by now .*; the new model is in .*\.part"
        ),
        output_folder.new_folder(out) as folder,
    ):
        (folder / "model.safetensors").write_text("weights")
        out.mkdir()
        (out / ".DS_Store").write_text("of a Mac")
    assert (folder / "model.safetensors").read_text() == "weights"


def test_what_a_killed_run_left_is_named(tmp_path, capsys):
    left = tmp_path / ".[out].4194305.part"  # a process of no system
    for path in (left, tmp_path / f".[out].{os.getppid()}.part", tmp_path / ".other.4194305.part"):
        path.mkdir()
    with output_folder.new_folder(tmp_path / "[out]"):
        pass
    assert capsys.readouterr().out == f"{left}: a run that was killed left it; remove it\n"


def test_a_folder_on_which_a_disk_is_mounted_is_refused(place, monkeypatch, capsys):
    """As a volume of a container: no folder can be moved to its place in the end."""
    refuse(monkeypatch, (training, "unlearn"))
    place.out.mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda path: path == place.out)
    assert place.run() == 2
    assert "a disk is mounted there; choose a new folder in it" in one_line(capsys)


# --------------------------------------------------------------------------- where memory ends


@pytest.mark.parametrize(
    ("module", "name", "said"),
    [(evaluation, "measure", "lower --context"), (model_files, "load", "with more memory")],
)
def test_memory_that_ends_elsewhere_is_one_line(module, name, said, place, monkeypatch, capsys):
    monkeypatch.setattr(module, name, fail(torch.OutOfMemoryError("CUDA out of memory")))
    given = ["evaluate", "--model", place.model, "--documents", place.documents["forget"]]
    assert main([*given, "--context", CONTEXT]) == 1
    assert said in one_line(capsys)


def test_a_model_of_no_numbers_is_not_trained(place, monkeypatch, capsys):
    refuse(monkeypatch, (training, "unlearn"))
    norm = {"model.norm.weight": torch.full((16,), torch.nan)}
    weights(lambda held: held.update(norm))(place)
    assert place.run() == 2
    assert "not every probability is finite, before anything is trained" in one_line(capsys)
