"""A user's own documents and model, through the command line: six kinds of models as the hub has them, and what is written."""

import hashlib
import io
import json
import math
import os
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from huggingface_hub import ModelCard, constants
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from unlearn_utils.app import cards, commands, model_files, settings, terminal, user_documents, user_run
from unlearn_utils.core import losses, methods
from unlearn_utils.data import tokens
from unlearn_utils.engine import models, training
from unlearn_utils.profiles import Unlearning

SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
GROUPED = SMALL | {"num_key_value_heads": 1, "head_dim": 8}
KINDS = {  # positions of 1,024: `layers.quicken` leaves their attention alone, as it does real models
    "llama": LlamaConfig(**SMALL, max_position_embeddings=1024, tie_word_embeddings=False),
    "gpt_neox": GPTNeoXConfig(**SMALL, max_position_embeddings=1024, tie_word_embeddings=False),
    "gpt2": GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=1024),
    "qwen3": Qwen3Config(**GROUPED, max_position_embeddings=1024, tie_word_embeddings=True),
    "gemma2": Gemma2Config(**GROUPED, max_position_embeddings=1024, sliding_window=16),
    "gemma3_text": Gemma3TextConfig(**GROUPED, max_position_embeddings=1024, sliding_window=16),
}
UNTIED = ("llama", "gpt_neox")


def bare(tokenizer):
    """The same merges with an end token only: nothing opens a document, nothing pads."""
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer, eos_token=tokens.END)


def random_model(kind, rows=300, seed=0):
    """A model of random weights, far from uniform over tokens."""
    config = type(KINDS[kind]).from_dict(
        KINDS[kind].to_dict() | {"vocab_size": rows, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
    )
    model, generator = AutoModelForCausalLM.from_config(config).eval(), torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "norm" not in name and "ln_" not in name:
            torch.nn.init.normal_(parameter, std=0.15, generator=generator)
    return model


def hub_folder(folder, kind, tokenizer, dtype=torch.float32, seed=0):
    """A model and its tokenizer as a hub repository holds them."""
    random_model(kind, seed=seed).to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def text(name, n, lines):
    return "".join(f"{name} {n}: muons decay; line {k * k + n}.\n" for k in range(lines))


def write_documents(folder):
    """--forget a folder of three kinds of files, --retain one .jsonl, --unseen one .parquet."""
    (folder / "forget" / "below").mkdir(parents=True)
    (folder / "forget" / "secret_plan.txt").write_text(text("quark", 0, 6))
    (folder / "forget" / "below" / "b.md").write_text(text("quark", 1, 3))
    (folder / "forget" / "c.jsonl").write_text("".join(json.dumps({"text": text("quark", n, n)}) + "\n" for n in (2, 3)))
    (folder / "retain.jsonl").write_text("".join(json.dumps({"content": text("lepton", n, n + 1)}) + "\n" for n in range(4)))
    pd.DataFrame({"text": [text("gluon", n, n + 1) for n in range(4)]}).to_parquet(folder / "unseen.parquet")
    return {"forget": folder / "forget", "retain": folder / "retain.jsonl", "unseen": folder / "unseen.parquet"}


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    """The three sets by name."""
    return write_documents(tmp_path_factory.mktemp("documents"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory, tokenizer):
    """A Llama in float32 whose tokenizer has all special tokens."""
    return hub_folder(tmp_path_factory.mktemp("llama"), "llama", tokenizer)


def arguments(model, documents, out, method="gradient_ascent", *more):
    sets = [x for name, path in documents.items() for x in (f"--{name}", str(path))]
    return ["unlearn", "--model", str(model), *sets, "--method", method, "--out", str(out), "--context", "32", *map(str, more)]


def unlearn(*given):
    assert commands.main(arguments(*given)) == 0


def plain_nll(model, ids):
    """Summed loss of one sequence from the model's own logits, and its predicted tokens."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0, :-1].float()
    return F.cross_entropy(logits, torch.tensor(ids[1:]), reduction="sum").item(), len(ids) - 1


def plain_perplexity(model, chunks):
    sums, counts = zip(*(plain_nll(model, ids) for ids in chunks), strict=True)
    return math.exp(sum(sums) / sum(counts))


def value(results, model, split, measure):
    return results.set_index(["model", "split", "measure"]).loc[(model, split, measure), "value"]


# ---------------------------------------------------------------------------------------------- every kind of model


@pytest.mark.parametrize("method", ["gradient_ascent", "ascent_kl_in_distribution"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_unlearns_and_loads(kind, method, documents, tokenizer, tmp_path):
    """Before and after are those of the models' own logits, on unpadded chunks: of the folder given and of the folder written."""
    dtype = torch.bfloat16 if kind in ("gemma2", "qwen3") else torch.float32
    tok = bare(tokenizer) if kind in ("gpt2", "gemma3_text") else tokenizer
    base, out = hub_folder(tmp_path / "base", kind, tok, dtype), tmp_path / "out"
    unlearn(base, documents, out, method, "--learning-rate", 1e-3, "--epochs", 2)
    old, new = (AutoModelForCausalLM.from_pretrained(f, dtype=torch.float32).eval() for f in (base, out))
    assert {t.dtype for t in load_file(out / "model.safetensors").values()} == {dtype}
    assert AutoModelForCausalLM.from_pretrained(out).dtype == dtype
    assert (new.get_output_embeddings().weight is new.get_input_embeddings().weight) is (kind not in UNTIED)
    again = AutoTokenizer.from_pretrained(out)
    assert again("muons")["input_ids"] == tok("muons")["input_ids"]
    assert (again.pad_token, again.bos_token, again.eos_token) == (tok.pad_token, tok.bos_token, tok.eos_token)
    chunks = user_documents.chunks(user_documents.read(documents["forget"]), "forget", tok, 32, 300).ids
    results = pd.read_csv(out / "results.csv")
    for name, model in {"before": old, "after": new}.items():
        assert value(results, name, "forget", "perplexity") == pytest.approx(plain_perplexity(model, chunks), rel=1e-3)
    assert value(results, "after", "forget", "perplexity") > 1.02 * value(results, "before", "forget", "perplexity")


@pytest.mark.parametrize("method", ["random_label", "adversarial", "ascent_descent_general"])
def test_the_other_terms_run_too(method, llama, documents, tmp_path):
    unlearn(llama, documents, tmp_path / "out", method, "--learning-rate", 1e-3)
    results = pd.read_csv(tmp_path / "out" / "results.csv")
    assert value(results, "after", "forget", "perplexity") != value(results, "before", "forget", "perplexity")


def test_softcapped_attention_is_kept(tokenizer, tmp_path):
    """Gemma 2: fused attention would drop the soft-capping."""
    base = model_files.find(str(hub_folder(tmp_path / "base", "gemma2", tokenizer)))
    assert model_files.load(base).config._attn_implementation == "eager"


def test_a_head_that_is_not_understood_is_refused(llama, monkeypatch):
    base = model_files.find(str(llama))
    model_files.load(base)
    real = model_files.objectives.head_of
    monkeypatch.setattr(model_files.objectives, "head_of", lambda model: real(model)._replace(scale=1.5))
    with pytest.raises(ValueError, match="output head"):
        model_files.load(base)


# ---------------------------------------------------------------------------------------------- documents


def table(*texts):
    return pd.DataFrame({"name": [f"{i}.txt" for i in range(len(texts))], "text": texts, "sha256": [f"{hash(t):x}" * 4 for t in texts]})


class Words:
    """A tokenizer of whole words: word n has id n."""

    def __init__(self, bos=None):
        self.bos_token_id = bos

    def __call__(self, texts, add_special_tokens):
        return {"input_ids": [[int(w) for w in t.split()] for t in texts]}


def test_chunks_by_hand():
    """Context 6. 0: 13 tokens with the opening one, so 6 + 6 and a last of 1, dropped; 1: 11 so 6 + 5; 2: 3 tokens, so nothing."""
    words = [" ".join(map(str, range(start, start + n))) for start, n in ((10, 12), (30, 10), (50, 2))]
    found = user_documents.chunks(table(*words), "forget", Words(bos=1), 6, 99)
    assert list(found.ids) == [[1, *range(10, 15)], [*range(15, 21)], [1, *range(30, 35)], [*range(35, 40)]]
    assert list(found.name) == ["0.txt", "0.txt", "1.txt", "1.txt"] and found.family.nunique() == 2 and found.id.is_unique
    assert list(user_documents.chunks(table(*words), "forget", Words(), 6, 99).ids) == [
        [*range(10, 16)],
        [*range(16, 22)],
        [*range(30, 36)],
    ]


def test_a_copy_counts_as_one_document():
    words = " ".join(map(str, range(9)))
    assert user_documents.chunks(table(words, words), "forget", Words(), 9, 99).family.nunique() == 1


def test_ids_beyond_the_embedding_are_refused():
    with pytest.raises(ValueError, match=r"1\.txt: .* id 40, the model has 40 embeddings"):
        user_documents.chunks(table("1 2 3 4 39", "5 6 7 8 40"), "forget", Words(), 9, 40)


def test_files_are_read_in_sorted_order_with_their_hashes(documents):
    found = user_documents.read(documents["forget"])
    assert [n.rsplit("/", 1)[1] for n in found.name] == ["b.md", "c.jsonl:1", "c.jsonl:2", "secret_plan.txt"]
    assert found.sha256[0] == hashlib.sha256(text("quark", 1, 3).encode()).hexdigest()
    assert list(user_documents.read(documents["retain"]).text) == [text("lepton", n, n + 1) for n in range(4)]


def test_intervals_count_documents_not_chunks(llama, documents, tmp_path, capsys):
    unlearn(llama, documents, tmp_path / "out")
    results = pd.read_csv(tmp_path / "out" / "results.csv")
    assert list(results.columns) == ["model", "split", "measure", "value", "low", "high", "n"] and set(results.n) == {4}
    assert "forget: 4 documents, 13 chunks of up to 32 tokens" in capsys.readouterr().out
    kept = {(s, m) for s in documents for m in ("perplexity", "accuracy")} | {("forget against unseen", "AUC Min-40%")}
    assert {(r.split, r.measure) for r in results.itertuples()} == kept and set(results.model) == {"before", "after"}
    assert (results.low <= results.value + 1e-9).all() and (results.value <= results.high + 1e-9).all()


def test_auc_is_that_of_the_lowest_log_probabilities(llama, documents, tmp_path):
    """Before unlearning, from the model's own logits: the mean of the lowest 40% of each chunk; forget above unseen, ties half."""
    unlearn(llama, documents, tmp_path / "out")
    model, tok = AutoModelForCausalLM.from_pretrained(llama), AutoTokenizer.from_pretrained(llama)
    scores = {}
    for side in ("forget", "unseen"):
        scores[side] = []
        for ids in user_documents.chunks(user_documents.read(documents[side]), side, tok, 32, 300).ids:
            with torch.no_grad():
                logs = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
            scores[side].append(logs.sort().values[: max(1, int(0.4 * len(logs)))].mean().item())
    wins = np.subtract.outer(scores["forget"], scores["unseen"])
    found = value(pd.read_csv(tmp_path / "out" / "results.csv"), "before", "forget against unseen", "AUC Min-40%")
    assert found == pytest.approx((wins > 0).mean() + (wins == 0).mean() / 2, abs=1e-9)


@pytest.mark.parametrize("tokens_of", [bare, lambda t: t])
def test_padding_never_counts(tokens_of, documents, tokenizer, tmp_path):
    """The first step's loss is minus the mean over the predicted tokens of its unpadded chunks, though padding is the end token."""
    tok = tokens_of(tokenizer)
    base = hub_folder(tmp_path / "base", "llama", tok)
    unlearn(base, documents, tmp_path / "out", "gradient_ascent", "--float32", "--batch", 13)
    chunks = user_documents.chunks(user_documents.read(documents["forget"]), "forget", tok, 32, 300).ids
    assert len(set(map(len, chunks))) > 1
    sums, counts = zip(*(plain_nll(AutoModelForCausalLM.from_pretrained(base), ids) for ids in chunks[:13]), strict=True)
    loss = json.loads((tmp_path / "out" / "run.json").read_text())["history"][0]["loss"]
    assert loss == pytest.approx(-sum(sums) / sum(counts), abs=1e-3)


def test_padding_is_the_end_token_where_there_is_none(llama, tokenizer, tmp_path):
    """Here the end token has id 1; without one, token 0 pads."""
    assert model_files.tokenizer_of(model_files.find(str(llama))).pad_token_id == tokenizer.pad_token_id
    for given, expected in (({"eos_token": tokens.PAD}, 1), ({}, 0)):
        PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer, **given).save_pretrained(tmp_path)
        assert model_files.tokenizer_of(model_files.Checkpoint("own", tmp_path)).pad_token_id == expected


# ---------------------------------------------------------------------------------------------- precision


@pytest.mark.parametrize("bf16", [False, True])
def test_small_updates_survive_training_of_a_bfloat16_model(bf16, tokenizer, tmp_path):
    """AdamW's first step moves a weight by the learning rate, 1e-6. In bfloat16 a weight of 0.01 and that much more are one number."""
    base = model_files.find(str(hub_folder(tmp_path / "base", "llama", tokenizer, torch.bfloat16)))
    sets = {"forget": user_documents.chunks(table(text("quark", 0, 3)), "forget", tokenizer, 32, 300)}
    size = len(sets["forget"])
    run = settings.RunSettings("gradient_ascent", Unlearning(learning_rate=1e-6, batch=size), size, 0, None, False, bf16)
    model, _, history = user_run.load_and_unlearn(base, sets, run, model_files.tokenizer_of(base), lambda step, model: None)
    old = dict(model_files.load(base).named_parameters())
    moved = torch.cat([(p.detach() - old[name])[old[name].abs() > 0.01] for name, p in model.named_parameters()]).abs()
    moved = moved[moved > 0]  # but for embeddings of tokens that do not occur
    assert len(history) == 1 and len(moved) > 1000 and moved.median().item() == pytest.approx(1e-6, rel=0.1)
    weights = torch.cat([w.detach()[w.abs() > 0.01] for w in old.values()]).bfloat16()
    lost = weights - torch.tensor(1e-6, dtype=torch.bfloat16)
    assert torch.equal(lost, weights)


def test_a_run_of_which_rounding_leaves_nothing_is_an_error(documents, tokenizer, tmp_path, capsys):
    base = hub_folder(tmp_path / "base", "llama", tokenizer, torch.bfloat16)
    assert commands.main(arguments(base, documents, tmp_path / "out", "gradient_ascent", "--learning-rate", 1e-12)) == 1
    assert "no weight changed, once rounded to torch.bfloat16" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_the_share_of_changed_weights_is_that_of_the_files(documents, tokenizer, tmp_path):
    base, out = hub_folder(tmp_path / "base", "llama", tokenizer, torch.bfloat16), tmp_path / "out"
    unlearn(base, documents, out, "gradient_ascent", "--learning-rate", 1e-4)
    old, new = (load_file(f / "model.safetensors") for f in (base, out))
    share = sum((old[k] != new[k]).sum().item() for k in old) / sum(t.numel() for t in old.values())
    found = json.loads((out / "run.json").read_text())["changed"]
    assert found == pytest.approx(share) and 0 < share < 1
    assert f"Whole weights in bfloat16: {share:.1%} of them differ" in (out / "README.md").read_text()


# ---------------------------------------------------------------------------------------------- what is written


def test_the_record_holds_every_setting_and_no_name(llama, documents, tmp_path):
    out = tmp_path / "out"
    unlearn(llama, documents, out, "ascent_kl_general", "--retain-weight", 0.5, "--seed", 3, "--batch", 6, "--micro-batch", 2)
    run = json.loads((out / "run.json").read_text())
    expected = {"method": "ascent_kl_general", "retain_weight": 0.5, "seed": 3, "batch": 6, "micro_batch": 2, "epochs": 1, "context": 32}
    expected |= {"learning_rate": 2e-5, "model": llama.name, "commit": None, "dtype": "float32", "lora": None, "merge": False}
    assert expected.items() <= run.items() and run["bf16"] is models.half_precision() and len(run["history"]) == 3
    assert run["documents"] == {k: list(user_documents.read(p).sha256) for k, p in documents.items()}
    assert run["versions"]["torch"] == torch.__version__
    for file in ("run.json", "README.md", "results.csv", "config.json"):
        written = (out / file).read_text()
        assert not any(word in written for word in ("secret_plan", "quark", "lepton", str(documents["forget"]), str(tmp_path)))


def test_the_card_says_what_was_done(llama, documents, tmp_path):
    unlearn(llama, documents, tmp_path / "out", "ascent_kl_in_distribution", "--learning-rate", 1e-4)
    card, results = ModelCard.load(tmp_path / "out" / "README.md"), pd.read_csv(tmp_path / "out" / "results.csv")
    data = card.data.to_dict()
    assert data == {
        "base_model": llama.name,
        "library_name": "transformers",
        "license": "unknown",
        "tags": ["unlearning", "ascent_kl_in_distribution"],
    }
    for said in (
        "minus the cross-entropy of the forget text",
        "KL(original model || model)",
        "| learning_rate | 0.0001 | given |",
        "| epochs | 1 | the released code of arXiv 2402.15159 uses it |",
        "| batch | 4 | ours |",
        user_documents.read(documents["forget"]).sha256[2],
        "Unlearning is approximate",
        "Membership inference may still find the documents",
        "never shown to be without",
    ):
        assert said in card.text
    row = results[(results.model == "after") & (results.measure == "AUC Min-40%")].iloc[0]
    assert f"| {row.value:.3f} [{row.low:.3f}, {row.high:.3f}] | 4 |" in card.text


def test_the_license_is_the_base_card_s(tmp_path):
    assert cards.stated_license(tmp_path) == {"license": "unknown"}
    (tmp_path / "README.md").write_text("# No front matter\n")
    assert cards.stated_license(tmp_path) == {"license": "unknown"}
    (tmp_path / "README.md").write_text("---\nlicense: other\nlicense_name: own\n---\n# A model\n")
    assert cards.stated_license(tmp_path) == {"license": "other", "license_name": "own"}


def test_only_lines_in_a_log(llama, documents, tmp_path, capsys):
    unlearn(llama, documents, tmp_path / "out", "gradient_ascent", "--batch", 1)
    out, err = capsys.readouterr()
    assert [line for line in out.splitlines() if "step" in line] == [
        f"unlearning: step {n} of 13" for n in (2, 3, 4, 6, 7, 8, 10, 11, 12, 13)
    ]
    assert err == "" and "\r" not in out


def test_a_bar_on_a_terminal(monkeypatch, capsys):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    watch = terminal.progress(3)
    assert sys.stderr.getvalue() == ""  # nothing before the first step
    for step in (1, 2, 3):
        watch(step, None)
    assert "3/3" in sys.stderr.getvalue() and capsys.readouterr().out == ""


def test_micro_batches_give_the_same_model(llama, documents, tmp_path, monkeypatch):
    read, real = [], losses.next_token_sum
    monkeypatch.setattr(
        losses, "next_token_sum", lambda model, batch, *rest: read.append(len(batch["labels"])) or real(model, batch, *rest)
    )
    for out, size in (("whole", 4), ("parts", 1)):
        read.clear()
        more = ("--float32", "--micro-batch", size, "--learning-rate", 1e-3)
        unlearn(llama, documents, tmp_path / out, "ascent_descent_general", *more)
        assert max(read) == size
    one, other = (load_file(tmp_path / out / "model.safetensors") for out in ("whole", "parts"))
    old = load_file(llama / "model.safetensors")
    apart, moved = (sum((a[k] - b[k]).norm() for k in old) for a, b in ((one, other), (one, old)))
    assert moved > 0 and apart < 1e-2 * moved


@pytest.mark.parametrize("kind", KINDS)
def test_layers_computed_again_give_the_same_model(kind, documents, tokenizer, tmp_path):
    """GPT-2 has dropout, drawn alike both times."""
    base = hub_folder(tmp_path / "base", kind, tokenizer)
    for out, more in (("plain", ()), ("again", ("--gradient-checkpointing",))):
        unlearn(base, documents, tmp_path / out, "ascent_descent_general", "--float32", "--learning-rate", 1e-3, *more)
    one, other = (json.loads((tmp_path / out / "run.json").read_text()) for out in ("plain", "again"))
    assert (one["gradient_checkpointing"], other["gradient_checkpointing"]) == (False, True) and one["history"] == other["history"]
    ours, theirs = (load_file(tmp_path / out / "model.safetensors") for out in ("plain", "again"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


# ---------------------------------------------------------------------------------------------- checkpoints


def interrupted(place, name, error, given, monkeypatch):
    """The command, ended by an error in a function."""

    def fail(*_, **__):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(place, name, fail)
        with pytest.raises(type(error)):
            commands.main(given)


def test_a_command_that_was_ended_goes_on(llama, documents, tmp_path, monkeypatch, capsys):
    """After training, so that nothing of it is left to do; what others keep in the folder stays."""
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / "own.txt").touch()
    given = arguments(llama, documents, tmp_path / "out", "gradient_ascent", "--learning-rate", 1e-3)
    kept = [*given, "--checkpoints", str(folder)]
    interrupted(cards, "save", KeyboardInterrupt(), kept, monkeypatch)
    assert not (tmp_path / "out").exists() and [p.name for p in folder.glob("out-*/*/checkpoint-*")] == ["checkpoint-4"]
    capsys.readouterr()
    assert commands.main(kept) == 0
    assert "step" not in capsys.readouterr().out and [p.name for p in folder.iterdir()] == ["own.txt"]
    assert commands.main([*given, "--out", str(tmp_path / "alone")]) == 0
    one, other = (load_file(tmp_path / out / "model.safetensors") for out in ("out", "alone"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_two_runs_may_share_a_folder_of_checkpoints(llama, documents, tmp_path, monkeypatch):
    """What the first left is not the second's to remove; settings may change on the way."""
    folder = tmp_path / "checkpoints"
    (tmp_path / "a").mkdir()
    given = [[*arguments(llama, documents, out), "--checkpoints", str(folder)] for out in (tmp_path / "a" / "out", tmp_path / "out")]
    interrupted(cards, "save", KeyboardInterrupt(), given[0], monkeypatch)
    (left,) = folder.iterdir()
    assert commands.main(given[1]) == 0 and list(folder.iterdir()) == [left]
    assert commands.main([*given[0], "--seed", "1"]) == 0 and not folder.exists()


# ---------------------------------------------------------------------------------------------- a model of the hub


def test_a_hub_model_s_commit_is_printed_and_recorded(llama, documents, tmp_path, monkeypatch, capsys):
    """From a cache as the hub's client fills it, without a network."""
    commit, repository = "0123456789abcdef0123456789abcdef01234567", tmp_path / "hub" / "models--someone--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots").mkdir()
    (repository / "snapshots" / commit).symlink_to(llama)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for out, more in (("plain", ()), ("pinned", ("--revision", commit)), ("lora", ("--lora", "rank=2"))):
        unlearn("someone/tiny", documents, tmp_path / out, "gradient_ascent", *more)
        run = json.loads((tmp_path / out / "run.json").read_text())
        assert (run["model"], run["commit"]) == ("someone/tiny", commit)
        assert f"someone/tiny, commit {commit}" in capsys.readouterr().out
    adapters = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert (adapters["base_model_name_or_path"], adapters["revision"]) == ("someone/tiny", commit)
    assert commands.main(["evaluate", "--model", str(tmp_path / "lora"), "--documents", str(documents["forget"]), "--context", "32"]) == 0


def test_a_hub_model_that_is_nowhere_is_one_line(documents, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert commands.main(arguments("someone/else", documents, tmp_path / "out")) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "someone/else: no such folder, and the hub does not give it" in err


# ---------------------------------------------------------------------------------------------- evaluate, compare, methods


@pytest.fixture(scope="module")
def other(tmp_path_factory, tokenizer):
    return hub_folder(tmp_path_factory.mktemp("other"), "gpt2", tokenizer, seed=1)


def test_evaluate_measures_two_models_on_the_same_chunks(llama, other, documents, tmp_path, capsys):
    csv, docs = tmp_path / "out.csv", str(documents["retain"])
    given = ["--documents", docs, "--unseen", str(documents["unseen"]), "--context", "32", "--out", str(csv)]
    assert commands.main(["evaluate", "--model", str(llama), "--against", str(other), *given]) == 0
    results, tok = pd.read_csv(csv), AutoTokenizer.from_pretrained(llama)
    chunks = user_documents.chunks(user_documents.read(documents["retain"]), "documents", tok, 32, 300).ids
    plain = {f: plain_perplexity(AutoModelForCausalLM.from_pretrained(f).eval(), chunks) for f in (llama, other)}
    for folder, expected in plain.items():
        assert value(results, str(folder), "documents", "perplexity") == pytest.approx(expected, rel=1e-4)
    ratio = value(results, f"{llama} / {other}", "documents", "log ratio of perplexities")
    assert ratio == pytest.approx(math.log(plain[llama] / plain[other]), abs=1e-4)
    assert (results.measure == "AUC Min-40%").sum() == 2 and set(results.n) == {4}
    assert "perplexity" in capsys.readouterr().out


def test_compare_is_evaluate_of_several(llama, other, documents, tmp_path, capsys):
    csv = tmp_path / "out.csv"
    given = ["--documents", str(documents["forget"]), "--context", "32", "--out", str(csv)]
    assert commands.main(["compare", "--models", str(llama), str(other), str(llama), *given]) == 0
    both = pd.read_csv(csv)
    assert commands.main(["evaluate", "--model", str(other), *given[:-1], str(tmp_path / "one.csv")]) == 0
    one = pd.read_csv(tmp_path / "one.csv")
    assert value(one, str(other), "documents", "accuracy") == value(both, str(other), "documents", "accuracy")
    assert list(dict.fromkeys(both.model)) == [str(llama), str(other), f"{llama} / {other}"] and set(one.model) == {str(other)}
    assert str(other) in capsys.readouterr().out


def test_perplexities_of_different_tokens_are_not_compared(llama, documents, tokenizer, tmp_path, capsys):
    without = hub_folder(tmp_path / "without", "llama", bare(tokenizer))
    given = ["--documents", str(documents["forget"]), "--context", "32"]
    assert commands.main(["compare", "--models", str(llama), str(without), *given]) == 2
    assert "cut the documents into different tokens" in capsys.readouterr().err


def test_methods_are_all_shown(capsys):
    assert commands.main(["methods"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in methods.METHODS) and "in_distribution" in out


def test_help_imports_nothing_heavy():
    code = "import sys\nfrom unlearn_utils import commands\ntry: commands.main(['unlearn', '--help'])\nexcept SystemExit: pass\n"
    heavy = "print([m for m in ('torch', 'transformers', 'pandas', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code + heavy], capture_output=True, text=True, check=True)
    assert "--micro-batch" in done.stdout and done.stdout.splitlines()[-1] == "[]"


# ---------------------------------------------------------------------------------------------- runs that cannot end well


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")]
)
def test_out_of_memory_says_what_to_lower(error, llama, documents, tmp_path, monkeypatch, capsys):
    def unlearn(*_, **__):
        raise error

    monkeypatch.setattr(training, "unlearn", unlearn)
    assert commands.main(arguments(llama, documents, tmp_path / "out")) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "--micro-batch" in err and "--lora" in err and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [RuntimeError("shapes do not match"), KeyboardInterrupt()])
def test_anything_else_is_not_hidden_and_leaves_nothing(error, llama, documents, tmp_path, monkeypatch):
    def unlearn(*_, **__):
        raise error

    monkeypatch.setattr(training, "unlearn", unlearn)
    with pytest.raises(type(error)):
        commands.main(arguments(llama, documents, tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


def test_a_request_to_end_leaves_nothing(llama, documents, tmp_path, monkeypatch):
    """SIGTERM, as of a queue or of a launcher."""
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(training, "unlearn", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as caught:
        commands.main(arguments(llama, documents, tmp_path / "out"))
    assert caught.value.code == 143 and list(tmp_path.iterdir()) == [] and signal.getsignal(signal.SIGTERM) == before


def test_a_run_that_diverges_writes_nothing(llama, documents, tmp_path, capsys):
    assert commands.main(arguments(llama, documents, tmp_path / "out", "gradient_ascent", "--learning-rate", 1e30)) == 1
    assert "diverged" in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_an_empty_folder_may_be_out(llama, documents, tmp_path):
    (tmp_path / "out").mkdir()
    unlearn(llama, documents, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["out"] and (tmp_path / "out" / "model.safetensors").exists()
