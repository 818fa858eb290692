"""`unlearn` on a user's own documents and model: six kinds of models as the hub has them."""

import io
import json
import os
import re
import signal
import sys

import pandas as pd
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from user_models import (
    CONTEXT,
    KINDS,
    VOCABULARY,
    arguments,
    chunks_of,
    plain_mean_nll,
    record,
    text,
    unlearn,
    value,
    without_special_tokens,
    write_model,
)

from unlearn_utils.app import (
    commands,
    model_files,
    output_folder,
    settings,
    terminal,
    user_documents,
    user_run,
)
from unlearn_utils.core import losses, methods
from unlearn_utils.data import tokens
from unlearn_utils.engine import training
from unlearn_utils.profiles import Unlearning

UNTIED = ("llama", "gpt_neox")


def weights(folder):
    return load_file(folder / "model.safetensors")


# ------------------------------------------------------------------------------ every kind of model


@pytest.mark.parametrize("method", ["gradient_ascent", "ascent_kl_in_distribution"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_unlearns_and_loads(kind, method, documents, tokenizer, tmp_path):
    """Before and after are those of the models' own logits, on unpadded chunks.

    They are of the folder given and of the folder written.
    """
    dtype = torch.bfloat16 if kind in ("gemma2", "qwen3") else torch.float32
    if kind in ("gpt2", "gemma3_text"):
        tokenizer = without_special_tokens(tokenizer)
    base, out = tmp_path / "base", tmp_path / "out"
    write_model(base, kind, tokenizer, dtype)
    unlearn(base, documents, out, method, "--learning-rate", 1e-3, "--epochs", 2)

    assert {weight.dtype for weight in weights(out).values()} == {dtype}
    assert AutoModelForCausalLM.from_pretrained(out).dtype == dtype
    old = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    new = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    tied = new.get_output_embeddings().weight is new.get_input_embeddings().weight
    assert tied is (kind not in UNTIED)

    again = AutoTokenizer.from_pretrained(out)
    assert again("muons")["input_ids"] == tokenizer("muons")["input_ids"]
    for name in ("pad_token", "bos_token", "eos_token"):
        assert getattr(again, name) == getattr(tokenizer, name)

    chunks = chunks_of(documents["forget"], "forget", tokenizer)
    results = pd.read_csv(out / "results.csv")
    found = {}
    for name, model in {"before": old, "after": new}.items():
        found[name] = value(results, name, "forget", "perplexity")
        expected = torch.tensor(plain_mean_nll(model, chunks)).exp().item()
        assert found[name] == pytest.approx(expected, rel=1e-3)
    assert found["after"] > 1.02 * found["before"]


@pytest.mark.parametrize("method", ["random_label", "adversarial", "ascent_descent_general"])
def test_the_other_terms_run_too(method, llama, documents, tmp_path):
    unlearn(llama, documents, tmp_path / "out", method, "--learning-rate", 1e-3)
    results = pd.read_csv(tmp_path / "out" / "results.csv")
    before = value(results, "before", "forget", "perplexity")
    assert value(results, "after", "forget", "perplexity") != before


def test_a_new_row_of_the_table_of_methods_is_run_and_described(
    llama, documents, tmp_path, monkeypatch
):
    """It reads the original model on the forget side, and its mean is over sequences."""

    def further(model, batch, reference, count):
        return (
            losses.sequence_nll(reference, batch) - losses.sequence_nll(model, batch)
        ).sum() / count

    term = methods.Term(
        "further", "the fall of the NLL", further, counted="sequences", needs_reference=True
    )
    monkeypatch.setitem(methods.METHODS, "mine", methods.Method("mine", "Mine", term))
    out = tmp_path / "out"
    unlearn(llama, documents, out, "mine", "--float32", "--learning-rate", 1e-3)
    history = record(out)["history"]
    assert history[0]["loss"] == pytest.approx(0, abs=1e-3)  # still the original model
    assert history[-1]["loss"] < 0
    card = (out / "README.md").read_text()
    assert "Mine (`mine`). Minimised: the fall of the NLL." in card
    assert "Each term is a mean over the sequences of an optimizer batch." in card


def test_softcapped_attention_is_kept(tokenizer, tmp_path):
    """Gemma 2: fused attention would drop the soft-capping."""
    base = model_files.find(str(write_model(tmp_path / "base", "gemma2", tokenizer)))
    assert model_files.load(base).config._attn_implementation == "eager"


# ----------------------------------------------------------------------------------------- padding


@pytest.mark.parametrize("bare", [True, False])
def test_padding_never_counts(bare, documents, tokenizer, tmp_path):
    """The first step's loss is minus the mean over the predicted tokens of its unpadded chunks.

    Where nothing pads, padding is the end token.
    """
    if bare:
        tokenizer = without_special_tokens(tokenizer)
    base, out = tmp_path / "base", tmp_path / "out"
    write_model(base, "llama", tokenizer)
    unlearn(base, documents, out, "gradient_ascent", "--float32", "--batch", 13)
    chunks = chunks_of(documents["forget"], "forget", tokenizer)[:13]
    assert len(set(map(len, chunks))) > 1
    expected = -plain_mean_nll(AutoModelForCausalLM.from_pretrained(base), chunks)
    assert record(out)["history"][0]["loss"] == pytest.approx(expected, abs=1e-3)


def test_padding_is_the_end_token_where_there_is_none(llama, tokenizer, tmp_path):
    """Here the end token has id 1; without one, token 0 pads."""
    own = model_files.tokenizer_of(model_files.find(str(llama)))
    assert own.pad_token_id == tokenizer.pad_token_id
    for given, expected in (({"eos_token": tokens.PAD}, 1), ({}, 0)):
        merges = PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer, **given)
        merges.save_pretrained(tmp_path)
        found = model_files.tokenizer_of(model_files.StoredModel("own", tmp_path))
        assert found.pad_token_id == expected


# --------------------------------------------------------------------------------------- precision


@pytest.mark.parametrize("bf16", [False, True])
def test_small_updates_survive_training_of_a_bfloat16_model(bf16, tokenizer, tmp_path):
    """AdamW's first step moves a weight by the learning rate, 1e-6.

    In bfloat16 a weight of 0.01 and that much more are one number.
    """
    base = model_files.find(str(write_model(tmp_path / "base", "llama", tokenizer, torch.bfloat16)))
    document = tmp_path / "document.txt"
    document.write_text(text("quark", 0, 3))
    table = user_documents.read_documents(document)
    chunks = user_documents.cut_documents(table, "forget", tokenizer, CONTEXT, VOCABULARY)
    run = settings.RunSettings(
        method=methods.get_method("gradient_ascent"),
        recipe=Unlearning(learning_rate=1e-6, batch=len(chunks)),
        micro_batch=len(chunks),
        seed=0,
        lora=None,
        merge=False,
        bf16=bf16,
    )
    model, _, history = user_run.load_and_unlearn(
        base,
        {"forget": chunks},
        run,
        model_files.tokenizer_of(base),
        watch=lambda step, model: None,
    )
    assert len(history) == 1

    old = dict(model_files.load(base).named_parameters())
    parts = []
    for name, new in model.named_parameters():
        large = old[name].abs() > 0.01
        parts.append((new.detach() - old[name])[large])
    moved = torch.cat(parts).abs()
    moved = moved[moved > 0]  # but for embeddings of tokens that do not occur
    assert len(moved) > 1000
    assert moved.median().item() == pytest.approx(1e-6, rel=0.1)

    kept = torch.cat([weight.detach()[weight.abs() > 0.01] for weight in old.values()]).bfloat16()
    assert torch.equal(kept - torch.tensor(1e-6, dtype=torch.bfloat16), kept)


def test_a_run_of_which_rounding_leaves_nothing_is_an_error(documents, tokenizer, tmp_path, capsys):
    base, out = tmp_path / "base", tmp_path / "out"
    write_model(base, "llama", tokenizer, torch.bfloat16)
    given = arguments(base, documents, out, "gradient_ascent", "--learning-rate", 1e-12)
    assert commands.main(given) == 1
    assert "no weight changed, once rounded to torch.bfloat16" in capsys.readouterr().err
    assert not out.exists()


def test_the_share_of_changed_weights_is_that_of_the_files(documents, tokenizer, tmp_path):
    base, out = tmp_path / "base", tmp_path / "out"
    write_model(base, "llama", tokenizer, torch.bfloat16)
    unlearn(base, documents, out, "gradient_ascent", "--learning-rate", 1e-4)
    old, new = weights(base), weights(out)
    changed = sum((old[name] != new[name]).sum().item() for name in old)
    share = changed / sum(weight.numel() for weight in old.values())
    assert record(out)["changed"] == pytest.approx(share)
    assert 0 < share < 1
    card = (out / "README.md").read_text()
    assert f"Whole weights in bfloat16: {share:.1%} of them differ" in card


# ---------------------------------------------------------------------------------------- progress


def test_only_lines_in_a_log(llama, documents, tmp_path, capsys):
    unlearn(llama, documents, tmp_path / "out", "gradient_ascent", "--batch", 1)
    out, err = capsys.readouterr()
    marks = (2, 3, 4, 6, 7, 8, 10, 11, 12, 13)
    lines = [line for line in out.splitlines() if "unlearning:" in line]
    for step, line in zip(marks, lines, strict=True):
        said = rf"unlearning: step {step} of 13, forget -\d\.\d{{3}}, \d\d:\d\d left"
        assert re.fullmatch(said, line)
    assert "measuring" not in out  # lines of what is soon done are no help
    assert err == ""
    assert "\r" not in out


def show_on_terminal(monkeypatch):
    """Let stderr be a terminal, and return what it is shown."""

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    return sys.stderr


def test_a_bar_on_a_terminal_has_the_loss_of_each_term(monkeypatch, capsys):
    """Those of the micro-batches of a step add up; the method computes what it did."""
    screen = show_on_terminal(monkeypatch)
    progress = terminal.Progress("unlearning", 3)
    term = methods.Term("mine", "mine", lambda model, *_: torch.tensor(float(model)))
    method = methods.Method("mine", "Mine", term, methods.DESCENT, "general")
    followed = progress.follow(method)
    assert followed.retain.count is not None and followed.needs_reference is False
    assert screen.getvalue() == ""  # nothing before the first step
    for step in (1, 2, 3):
        for part in (step, step):
            assert followed.forget.loss_function()(part, None, None, None) == step
        progress.watch(step, None)
    terminal.say("a line")  # draws the bar again, below
    progress.close()
    shown = screen.getvalue()
    assert "1/3" in shown and "forget 2.000" in shown
    assert "3/3" in shown and "forget 6.000" in shown
    assert capsys.readouterr().out == "a line\n"


def test_lines_of_a_log_are_some_time_apart(monkeypatch, capsys):
    now = [0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    progress = terminal.Progress("measuring", 10, "chunk", apart=25)
    for _ in range(10):
        now[0] += 10
        progress.advance()
    assert capsys.readouterr().out.splitlines() == [
        "measuring: chunk 3 of 10, 01:10 left",
        "measuring: chunk 6 of 10, 00:40 left",
        "measuring: chunk 9 of 10, 00:10 left",
    ]


@pytest.mark.parametrize("lora", [(), ("--lora", "rank=2")])
def test_a_terminal_shows_no_bars_of_libraries(lora, llama, documents, tmp_path, monkeypatch):
    screen = show_on_terminal(monkeypatch)
    out = tmp_path / "out"
    unlearn(llama, documents, out, "ascent_descent_general", "--learning-rate", 1e-3, *lora)
    given = ("--models", out, llama, "--documents", documents["forget"], "--context", CONTEXT)
    assert commands.main(["compare", *map(str, given)]) == 0
    titles = {re.split(r":? *\d+%", part)[0].strip() for part in screen.getvalue().split("\r")}
    assert titles - {""} == {"unlearning", "measuring"}


# ------------------------------------------------------------------------------------ less memory


def test_micro_batches_give_the_same_model(llama, documents, tmp_path, monkeypatch):
    sizes = []
    real = losses.next_token_sum

    def counted(model, batch, *rest):
        sizes.append(len(batch["labels"]))
        return real(model, batch, *rest)

    monkeypatch.setattr(losses, "next_token_sum", counted)
    for out, size in (("whole", 4), ("parts", 1)):
        sizes.clear()
        more = ("--float32", "--micro-batch", size, "--learning-rate", 1e-3)
        unlearn(llama, documents, tmp_path / out, "ascent_descent_general", *more)
        assert max(sizes) == size
    old, one, other = (
        weights(folder) for folder in (llama, tmp_path / "whole", tmp_path / "parts")
    )
    apart = sum((one[name] - other[name]).norm() for name in old)
    moved = sum((one[name] - old[name]).norm() for name in old)
    assert moved > 0
    assert apart < 1e-2 * moved


@pytest.mark.parametrize("kind", KINDS)
def test_layers_computed_again_give_the_same_model(kind, documents, tokenizer, tmp_path):
    """GPT-2 has dropout, drawn alike both times."""
    base = write_model(tmp_path / "base", kind, tokenizer)
    plain, again = tmp_path / "plain", tmp_path / "again"
    for out, more in ((plain, ()), (again, ("--gradient-checkpointing",))):
        given = ("ascent_descent_general", "--float32", "--learning-rate", 1e-3, *more)
        unlearn(base, documents, out, *given)
    assert record(plain)["gradient_checkpointing"] is False
    assert record(again)["gradient_checkpointing"] is True
    assert record(plain)["history"] == record(again)["history"]
    ours, theirs = weights(plain), weights(again)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


# ------------------------------------------------------------------------------------- checkpoints


def interrupt_after_training(given, monkeypatch):
    """Run the command, ended where it would save."""

    def fail(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(output_folder, "save_model", fail)
        with pytest.raises(KeyboardInterrupt):
            commands.main(given)


@pytest.mark.parametrize(
    ("length", "last"), [((), 4), (("--epochs", "1.5"), 5), (("--steps", "5"), 5)]
)
def test_a_command_that_was_ended_goes_on(
    length, last, llama, documents, tmp_path, monkeypatch, capsys
):
    """After training, so that nothing of it is left; what others keep in the folder stays."""
    folder, out, alone = (tmp_path / name for name in ("checkpoints", "out", "alone"))
    folder.mkdir()
    (folder / "own.txt").touch()
    given = arguments(llama, documents, out, "gradient_ascent", "--learning-rate", 1e-3, *length)
    kept = [*given, "--checkpoints", str(folder)]
    interrupt_after_training(kept, monkeypatch)
    assert not out.exists()
    assert [path.name for path in folder.glob("out-*/*/checkpoint-*")] == [f"checkpoint-{last}"]

    capsys.readouterr()
    assert commands.main(kept) == 0
    assert "step" not in capsys.readouterr().out
    assert [path.name for path in folder.iterdir()] == ["own.txt"]

    assert commands.main([*given, "--out", str(alone)]) == 0
    one, other = weights(out), weights(alone)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_two_runs_may_share_a_folder_of_checkpoints(llama, documents, tmp_path, monkeypatch):
    """What the first left is not the second's to remove; settings may change on the way."""
    folder = tmp_path / "checkpoints"
    (tmp_path / "a").mkdir()
    kept = ("gradient_ascent", "--checkpoints", folder)
    first = arguments(llama, documents, tmp_path / "a" / "out", *kept)
    second = arguments(llama, documents, tmp_path / "out", *kept)
    interrupt_after_training(first, monkeypatch)
    (left,) = folder.iterdir()
    assert commands.main(second) == 0
    assert list(folder.iterdir()) == [left]
    assert commands.main([*first, "--seed", "1"]) == 0
    assert not folder.exists()


# ------------------------------------------------------------------------------ a model of the hub


def test_a_hub_model_s_commit_is_printed_and_recorded(
    llama, documents, tmp_path, monkeypatch, capsys
):
    """From a cache as the hub's client fills it, without a network."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--someone--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots").mkdir()
    (repository / "snapshots" / commit).symlink_to(llama)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    cases = {"plain": (), "pinned": ("--revision", commit), "lora": ("--lora", "rank=2")}
    for name, more in cases.items():
        out = tmp_path / name
        unlearn("someone/tiny", documents, out, "gradient_ascent", *more)
        run = record(out)
        assert (run["model"], run["commit"]) == ("someone/tiny", commit)
        assert f"someone/tiny, commit {commit}" in capsys.readouterr().out

    adapters = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert adapters["base_model_name_or_path"] == "someone/tiny"
    assert adapters["revision"] == commit
    given = ("--model", tmp_path / "lora", "--documents", documents["forget"], "--context", CONTEXT)
    assert commands.main(["evaluate", *map(str, given)]) == 0


def test_a_hub_model_that_is_nowhere_is_one_line(documents, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert commands.main(arguments("someone/else", documents, tmp_path / "out")) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "someone/else: no such folder, and the hub does not give it" in err


# ----------------------------------------------------------------------- runs that cannot end well


def train_badly(monkeypatch, error):
    """Let training raise an error."""

    def unlearn(*_, **__):
        raise error

    monkeypatch.setattr(training, "unlearn", unlearn)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_out_of_memory_says_what_to_lower(error, llama, documents, tmp_path, monkeypatch, capsys):
    train_badly(monkeypatch, error)
    assert commands.main(arguments(llama, documents, tmp_path / "out")) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "--micro-batch" in err
    assert "--lora" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [RuntimeError("shapes do not match"), KeyboardInterrupt()])
def test_anything_else_is_not_hidden_and_leaves_nothing(
    error, llama, documents, tmp_path, monkeypatch
):
    train_badly(monkeypatch, error)
    with pytest.raises(type(error)) as caught:
        commands.main(arguments(llama, documents, tmp_path / "out"))
    assert caught.value is error
    assert list(tmp_path.iterdir()) == []


def test_a_request_to_end_leaves_nothing(llama, documents, tmp_path, monkeypatch):
    """SIGTERM, as of a queue or of a launcher."""
    before = signal.getsignal(signal.SIGTERM)

    def end(*_, **__):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(training, "unlearn", end)
    with pytest.raises(SystemExit) as caught:
        commands.main(arguments(llama, documents, tmp_path / "out"))
    assert caught.value.code == 143
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_run_that_diverges_writes_nothing(llama, documents, tmp_path, capsys):
    given = ("gradient_ascent", "--learning-rate", 1e30)
    assert commands.main(arguments(llama, documents, tmp_path / "out", *given)) == 1
    assert "diverged" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_may_be_out(llama, documents, tmp_path):
    (tmp_path / "out").mkdir()
    unlearn(llama, documents, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "model.safetensors").exists()
