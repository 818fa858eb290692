"""Whatever the architecture: perplexity before is that of plain transformers, after the new one's.

A few kinds run here; `tests/all_architectures.sh` runs them all.
"""

import json
import math
from pathlib import Path

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from architectures import KINDS, POSITIONS, config_of, model_of
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM
from user_models import kept_for_backward, text, value

from unlearn_utils.app import commands, lora_adapters, memory_plan, model_files
from unlearn_utils.app.settings import LoraSettings, RunSettings
from unlearn_utils.core import fused, methods
from unlearn_utils.data import tokens
from unlearn_utils.engine import models
from unlearn_utils.profiles import Unlearning

# a cap of a name of its own, a scale, more than a head, no attention, experts, positions that begin
# with those of padding, lengths of other names, a body of another name
QUICK = ("recurrent_gemma", "granite", "bert", "mamba", "roberta", "mpt", "bloom", "llama4_text")
QUICK_LORA = ("recurrent_gemma", "mamba2", "phimoe", "minicpm3")
QUICK_PLANS = ("falcon_mamba", "gemma3n_text", "mixtral", "rwkv")

AFTER_PADDING = (
    "camembert",
    "data2vec-text",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
)
UNBOUND = ("falcon_mamba", "mamba", "mamba2", "recurrent_gemma", "xlstm")
# loaded in bfloat16, constants of theirs are rounded: a scale of embeddings, a table of positions
ROUNDED = ("ctrl", "gemma2", "gemma3_text", "xglm")
# what no head of theirs gives alone is read from the model's own logits
OWN_LOGITS = (
    "bert",
    "big_bird",
    "camembert",
    "data2vec-text",
    "electra",
    "ernie",
    "inkling_text",
    "megatron-bert",
    "minicpm3",
    "modernbert-decoder",
    "rembert",
    "roberta",
    "roberta-prelayernorm",
    "roformer",
    "xlm-roberta",
    "xlm-roberta-xl",
)
QUICK_OWN_LOGITS = ("roberta", "minicpm3")
FLOAT32_ALONE = ("dbrx", "xlstm")  # in transformers they fail under autocast
SHARE = (0.15, 7)  # of what a backward pass keeps, what the plan says


def every(quick, kinds=KINDS):
    """Return all kinds, those that are not quick behind the mark."""
    marks = pytest.mark.architectures
    return [pytest.param(kind, marks=() if kind in quick else marks) for kind in kinds]


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Return folders of documents of unequal lengths, some longer than a model reads."""
    folders = {}
    for name, lengths in (("forget", (1, 4, 6)), ("unseen", (2, 5))):
        folders[name] = tmp_path_factory.mktemp(name)
        for lines in lengths:
            (folders[name] / f"{lines}.txt").write_text(text(name, lines, lines))
    return folders


def write(folder, kind, tokenizer, dtype=torch.float32):
    """Write a tiny model with its tokenizer, and return the folder."""
    model_of(kind, pad_token_id=tokenizer.pad_token_id).to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def unlearn(base, out, sets, *more):
    """Unlearn, and return run.json and results.csv of the new model."""
    given = ["unlearn", "--model", base, "--out", out, "--method", "gradient_ascent", *more]
    for name, folder in sets.items():
        given += [f"--{name}", folder]
    assert commands.main(list(map(str, given))) == 0
    return json.loads((out / "run.json").read_text()), pd.read_csv(out / "results.csv")


def plain_perplexity(model, tokenizer, folder, context):
    """Return the perplexity from the model's own logits, a chunk at a time."""
    total, predicted = 0.0, 0
    for file in sorted(folder.iterdir()):
        ids = [tokenizer.bos_token_id, *tokenizer(file.read_text())["input_ids"]]
        for start in range(0, len(ids), context):
            chunk = torch.tensor(ids[start : start + context])
            if len(chunk) < tokens.SHORTEST:
                continue
            with torch.no_grad():
                logits = model(input_ids=chunk[None], use_cache=False).logits[0, :-1]
            total += F.cross_entropy(logits.double(), chunk[1:], reduction="sum").item()
            predicted += len(chunk) - 1
    return math.exp(total / predicted)


def check(results, model, name, tokenizer, sets, context, rel=1e-5):
    """Check the perplexities of a model, which are called "before" or "after"."""
    for split, folder in sets.items():
        expected = plain_perplexity(model.eval(), tokenizer, folder, context)
        found = value(results, name, split, "perplexity")
        assert found == pytest.approx(expected, rel=rel), (name, split)


def context_of(kind):
    """Return how many tokens a chunk of a kind has."""
    if kind in UNBOUND:
        return 4096
    return POSITIONS - 2 if kind in AFTER_PADDING else POSITIONS


def load(folder):
    """Return the model of a folder as transformers alone reads it, in float32."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.mark.parametrize("kind", every(QUICK))
def test_measured_as_transformers_does(kind, sets, tokenizer, tmp_path):
    base = write(tmp_path / "base", kind, tokenizer)
    out = tmp_path / "out"
    given = ["--learning-rate", 1e-3]
    if kind in FLOAT32_ALONE:
        given.append("--float32")
    record, results = unlearn(base, out, sets, *given)
    context = record["context"]
    assert context == context_of(kind)
    check(results, load(base), "before", tokenizer, sets, context)
    check(results, load(out), "after", tokenizer, sets, context)
    before, after = (value(results, name, "forget", "perplexity") for name in ("before", "after"))
    assert after != pytest.approx(before, rel=1e-4)


def test_what_does_not_train_in_bfloat16_says_so(sets, tokenizer, tmp_path, capsys):
    base = write(tmp_path / "base", "dbrx", tokenizer)
    given = ["unlearn", "--model", base, "--out", tmp_path / "out", "--method", "gradient_ascent"]
    given += ["--forget", sets["forget"], "--bf16", "--context", "32"]
    assert commands.main(list(map(str, given))) == 2
    assert capsys.readouterr().err == (
        "error: this kind of model does not train in bfloat16: add --float32. Nothing was written\n"
    )


@pytest.mark.parametrize("kind", every(QUICK_LORA))
def test_with_adapters_on_bfloat16_too(kind, sets, tokenizer, tmp_path):
    """The weights stay in bfloat16 in memory, and are measured in float32."""
    base = write(tmp_path / "base", kind, tokenizer, torch.bfloat16)
    out = tmp_path / "out"
    precision = "--float32" if kind in FLOAT32_ALONE else "--bf16"
    given = ("--lora", "rank=2", "--learning-rate", 1e-2, precision)
    record, results = unlearn(base, out, sets, *given)
    rel = 1e-4 if kind in ROUNDED else 1e-5
    check(results, load(base), "before", tokenizer, sets, record["context"], rel)
    adapted = AutoPeftModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    check(results, adapted, "after", tokenizer, sets, record["context"], rel)
    before, after = (value(results, name, "forget", "perplexity") for name in ("before", "after"))
    assert after != pytest.approx(before, rel=1e-5)


@pytest.mark.parametrize("kind", every(QUICK_PLANS))
def test_the_plan_is_not_far_from_what_a_backward_pass_keeps(kind):
    model = model_of(kind).train()
    with kept_for_backward(model) as kept:
        fused.body_of(model)(input_ids=torch.randint(3, 300, (2, POSITIONS - 4)), use_cache=False)
    method = methods.get_method("gradient_ascent")
    settings = RunSettings(method, Unlearning(), 2, 0, lora=None, merge=False, bf16=False)
    request = memory_plan.request_of(config_of(kind), settings, POSITIONS - 4, torch.float32)
    head = 2 * 4 * request.vocabulary * request.hidden
    share = (memory_plan.activations(request) - head) / sum(kept.values())
    assert SHARE[0] < share < SHARE[1]


# ------------------------------------------------------------------------------ by their own logits

LENGTHS = {"forget": (9, 14, 6), "retain": (11, 5, 14)}  # tokens of documents


def sides_of(padding):
    """Return a batch of each side, padded."""
    generator = torch.Generator().manual_seed(1)
    sides = {}
    for name, lengths in LENGTHS.items():
        documents = [torch.randint(3, 300, (n,), generator=generator).tolist() for n in lengths]
        sides[name] = tokens.collate(documents, padding)
    return sides


def plain_log_p(model, batch):
    """Return log-probabilities of the predicted positions, and their labels, from full logits."""
    mask = batch["labels"][:, 1:] != -100
    read = {name: batch[name] for name in ("input_ids", "attention_mask")}
    log_p = model(**read, use_cache=False).logits[:, :-1][mask].log_softmax(-1)
    return log_p, batch["labels"][:, 1:][mask]


def plain_loss(method, model, sides, reference):
    """Return what a method minimises; reference: log-probabilities of retain text."""
    sign = -1 if method.forget.ascends else 1
    loss = sign * F.nll_loss(*plain_log_p(model, sides["forget"]))
    if method.retain is None:
        return loss
    log_p, labels = plain_log_p(model, sides["retain"])
    if method.needs_reference:
        return loss + F.kl_div(log_p, reference, reduction="batchmean", log_target=True)
    return loss + F.nll_loss(log_p, labels)


def gradients(loss, weights):
    """Return the gradient of all weights, as one vector."""
    found = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
    return torch.cat([grad.flatten() for grad in found])


def one_by_one(method, model, sides, reference):
    """Return loss and gradient of documents one at a time, with layers computed again."""
    counts = tuple(term.count(sides[side]) for side, term in method.terms.items())
    loss, gradient = 0, 0
    for row in range(3):
        one = {}
        for side in method.terms:
            one[side] = {name: value[[row]] for name, value in sides[side].items()}
        with models.checkpointed(model):
            part = methods.unlearning_loss(
                method,
                model,
                one["forget"],
                one.get("retain"),
                reference,
                counts=(counts[0], counts[-1]),
            )
            gradient += gradients(part, trained(model))
        loss += part.detach()
    return loss, gradient


def trained(model):
    return [weight for weight in model.parameters() if weight.requires_grad]


def without_dropout(kind):
    """Return two models of a kind that differ: one to train, and its original."""
    stated = config_of(kind).to_dict()
    none = {name: 0.0 for name, value in stated.items() if "drop" in name and value}
    model, original = (model_of(kind, pad_token_id=2, **none) for _ in range(2))
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.05)
    return model, original


def adapted(original):
    """Return a model with adapters that change it, and the original under them."""
    stored = model_files.StoredModel("it", None)
    model = lora_adapters.add_adapters(original, LoraSettings(2, 8.0), 0, stored)
    generator = torch.Generator().manual_seed(0)
    for weight in trained(model):
        torch.nn.init.normal_(weight, std=0.2, generator=generator)
    return model, lora_adapters.WithoutAdapters(model)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("kind", every(QUICK_OWN_LOGITS, OWN_LOGITS))
def test_every_method_is_that_of_the_full_logits(kind, lora):
    """Whole, and one document at a time with layers computed again."""
    model, original = without_dropout(kind)
    assert fused.head_of(original).weight is None
    sides = sides_of(2)
    with torch.no_grad():
        log_p, _ = plain_log_p(original, sides["retain"])
    reference = original
    if lora:
        model, reference = adapted(original)
    for method in methods.METHODS.values():
        given = dict(sides)
        if method.replaces_labels:
            generator = torch.Generator().manual_seed(3)
            labels = methods.replacement_labels(
                method, sides["forget"], model.eval(), generator, 300, (0, 1, 2)
            )
            given["forget"] = sides["forget"] | {"labels": labels}
        model.train()
        weights = trained(model)
        expected = plain_loss(method, model, given, log_p)
        theirs = gradients(expected, weights)
        loss = methods.unlearning_loss(method, model, given["forget"], given["retain"], reference)
        whole = (loss, gradients(loss, weights))
        for found, gradient in (whole, one_by_one(method, model, given, reference)):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
            assert (gradient - theirs).norm() < 1e-4 * theirs.norm(), method.name


@pytest.mark.architectures
@pytest.mark.parametrize("kind", KINDS)
def test_which_kinds_are_read_with_their_own_logits(kind):
    assert (fused.head_of(model_of(kind)).weight is None) == (kind in OWN_LOGITS)


def test_the_body_of_llama_4_is_found():
    """Its full logits are 200,000 numbers a token."""
    assert fused.head_of(model_of("llama4_text")).weight is not None


def test_the_table_is_large():
    assert len(KINDS) >= 85
    assert {*QUICK, *QUICK_LORA, *QUICK_PLANS, *AFTER_PADDING, *UNBOUND, *ROUNDED} <= set(KINDS)
    assert {*QUICK_OWN_LOGITS} <= {*OWN_LOGITS} <= set(KINDS)
    assert Path(__file__).with_name("all_architectures.sh").exists()
