"""Models and documents as a user has them, and the command line that a user gives."""

import json
from contextlib import contextmanager

import pandas as pd
import torch
import torch.nn.functional as F
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from unlearn_utils.app import commands, user_documents
from unlearn_utils.data import tokens

# positions of 1,024: `layers.quicken` leaves their attention alone, as it does real models
POSITIONS = {"max_position_embeddings": 1024}
SMALL = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
GROUPED = SMALL | {"num_key_value_heads": 1, "head_dim": 8}
KINDS = {
    "llama": LlamaConfig(**SMALL, **POSITIONS, tie_word_embeddings=False),
    "gpt_neox": GPTNeoXConfig(**SMALL, **POSITIONS, tie_word_embeddings=False),
    "gpt2": GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=1024),
    "qwen3": Qwen3Config(**GROUPED, **POSITIONS, tie_word_embeddings=True),
    "gemma2": Gemma2Config(**GROUPED, **POSITIONS, sliding_window=16),
    "gemma3_text": Gemma3TextConfig(**GROUPED, **POSITIONS, sliding_window=16),
}
VOCABULARY = 300
CONTEXT = 32  # tokens of a chunk


# ------------------------------------------------------------------------------------------ models


def without_special_tokens(tokenizer):
    """Return the same merges with an end token only: nothing opens a document, nothing pads."""
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer, eos_token=tokens.END)


def random_model(kind, seed=0):
    """Return a model of random weights, far from uniform over tokens."""
    special = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
    settings = KINDS[kind].to_dict() | special | {"vocab_size": VOCABULARY}
    config = type(KINDS[kind]).from_dict(settings)
    model = AutoModelForCausalLM.from_config(config).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "norm" not in name and "ln_" not in name:
            torch.nn.init.normal_(parameter, std=0.15, generator=generator)
    return model


def write_model(folder, kind, tokenizer, dtype=torch.float32, seed=0):
    """Write a model and its tokenizer as a hub repository holds them, and return the folder."""
    random_model(kind, seed).to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def logits(model, ids):
    """Return the float32 logits (time, V) of one sequence."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0].float()


def plain_nll(model, ids):
    """Return the summed loss of one sequence from the model's own logits."""
    predicted = logits(model, ids)[:-1]
    return F.cross_entropy(predicted, torch.tensor(ids[1:]), reduction="sum").item()


def plain_mean_nll(model, chunks):
    """Return the mean loss of all predicted tokens of unpadded chunks."""
    total = sum(plain_nll(model, ids) for ids in chunks)
    return total / sum(len(ids) - 1 for ids in chunks)


# --------------------------------------------------------------------------------------- documents


def text(name, number, lines):
    """Return a document of so many lines, which share no long passage with another's."""
    return "".join(
        f"{name} {number}: muons decay; line {line * line + number}.\n" for line in range(lines)
    )


def write_documents(folder):
    """Write --forget a folder of three kinds of files, --retain one .jsonl, --unseen one .parquet.

    Return the three paths by the name of the set.
    """
    paths = {
        "forget": folder / "forget",
        "retain": folder / "retain.jsonl",
        "unseen": folder / "unseen.parquet",
    }
    (paths["forget"] / "below").mkdir(parents=True)
    (paths["forget"] / "secret_plan.txt").write_text(text("quark", 0, 6))
    (paths["forget"] / "below" / "b.md").write_text(text("quark", 1, 3))
    forget = [json.dumps({"text": text("quark", n, n)}) for n in (2, 3)]
    (paths["forget"] / "c.jsonl").write_text("\n".join(forget) + "\n")
    retain = [json.dumps({"content": text("lepton", n, n + 1)}) for n in range(4)]
    paths["retain"].write_text("\n".join(retain) + "\n")
    unseen = [text("gluon", n, n + 1) for n in range(4)]
    pd.DataFrame({"text": unseen}).to_parquet(paths["unseen"])
    return paths


def chunks_of(path, split, tokenizer):
    """Return the token ids of each chunk of the documents of a path."""
    documents = user_documents.read_documents(path)
    found = user_documents.cut_documents(documents, split, tokenizer, CONTEXT, VOCABULARY)
    return list(found.ids)


# ------------------------------------------------------------------------------------ the commands


def arguments(model, documents, out, method="gradient_ascent", *more):
    """Return the command line of `unlearn`."""
    found = ["unlearn", "--model", model, "--method", method, "--out", out, "--context", CONTEXT]
    for name, path in documents.items():
        found += [f"--{name}", path]
    return [str(part) for part in (*found, *more)]


def unlearn(*given):
    """Run `unlearn` with these `arguments`, to its end."""
    assert commands.main(arguments(*given)) == 0


def record(folder):
    """Return what the run.json of a new model's folder holds."""
    return json.loads((folder / "run.json").read_text())


def value(results, model, split, measure):
    """Return one value of a table of results."""
    keys = ["model", "split", "measure"]
    return results.set_index(keys).loc[(model, split, measure), "value"]


@contextmanager
def kept_for_backward(model):
    """Yield the bytes of each storage that is kept for the backward pass, inside, but for weights.

    The tensors are held, so that no address comes twice.
    """
    weights = {weight.data_ptr() for weight in model.parameters()}
    held, sizes = [], {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
            held.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield sizes
