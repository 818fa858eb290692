"""LoRA on a user's own model: what is trained, the reference without a copy, what is written."""

import pandas as pd
import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from user_models import (
    CONTEXT,
    KINDS,
    VOCABULARY,
    arguments,
    logits,
    record,
    text,
    unlearn,
    value,
    without_special_tokens,
    write_model,
)

from unlearn_utils.app import (
    commands,
    lora_adapters,
    model_files,
    unlearn_arguments,
    user_documents,
    user_run,
)
from unlearn_utils.app.settings import LoraSettings, RunSettings
from unlearn_utils.core import fused, losses, methods
from unlearn_utils.data import tokens
from unlearn_utils.engine import models, training
from unlearn_utils.profiles import Unlearning

IDS = list(range(2, 40))
KL = methods.get_method("ascent_kl_in_distribution")


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tokenizer):
    """A folder of each kind of model, made once."""
    root = tmp_path_factory.mktemp("kinds")
    made = {}

    def folder(kind, dtype=torch.float32):
        name = f"{kind}-{dtype}"
        if name not in made:
            own = without_special_tokens(tokenizer) if kind == "gpt2" else tokenizer
            made[name] = write_model(root / name, kind, own, dtype)
        return made[name]

    return folder


def new_adapters(folder, rank=4, seed=0, dtype=torch.float32):
    """Return the model of a folder with adapters that add nothing yet."""
    base = model_files.find(str(folder))
    model = model_files.load(base, dtype)
    return lora_adapters.add_adapters(model, LoraSettings(rank, 2.0 * rank), seed, base)


def used_adapters(folder):
    """Return the model of a folder with adapters that change it already."""
    model = new_adapters(folder)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05, generator=generator)
    return model


def reference_of(model, folder, separate):
    """Return the original of a model with adapters: a copy from its folder, or itself without."""
    if separate:
        return model_files.load(model_files.find(str(folder)))
    return lora_adapters.WithoutAdapters(model)


def trained(model):
    return {name: one for name, one in model.named_parameters() if one.requires_grad}


# ---------------------------------------------------------------------------------- what is trained


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_sit_on_every_linear_layer_but_the_head(kind, folders):
    model = used_adapters(folders(kind))
    assert all("lora_" in name for name in trained(model))
    layers = {name.split(".lora_")[0].removeprefix("base_model.model.") for name in trained(model)}

    plain = AutoModelForCausalLM.from_pretrained(folders(kind))
    head = plain.get_output_embeddings()
    linear = set()
    for name, layer in plain.named_modules():
        if type(layer).__name__ in ("Linear", "Conv1D") and layer is not head:
            linear.add(name)
    assert layers == linear
    weight = fused.head_of(model).weight
    assert isinstance(weight, torch.nn.Parameter)
    assert not weight.requires_grad


def test_adapters_train_in_float32_on_a_bfloat16_base(folders):
    folder = folders("llama", torch.bfloat16)
    model = new_adapters(folder, rank=2, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in trained(model).values()} == {torch.float32}
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    assert {parameter.dtype for parameter in frozen} == {torch.bfloat16}


def test_adapters_follow_the_seed_and_leave_the_global_generator(folders):
    before = torch.get_rng_state()
    found = []
    for seed in (0, 0, 1):
        model = new_adapters(folders("llama"), rank=2, seed=seed)
        parts = [one.flatten() for name, one in trained(model).items() if "lora_A" in name]
        found.append(torch.cat(parts))
    one, again, other = found
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert torch.equal(before, torch.get_rng_state())


# ---------------------------------------------------------------------------------- the reference


@pytest.mark.parametrize("kind", KINDS)
def test_kl_from_the_model_s_own_original_is_that_from_a_copy(kind, folders):
    """Value and gradients, in training mode: GPT-2 has dropout, the reference none."""
    batch = tokens.collate([IDS, list(range(50, 70)), [5, 9, 11]], 1)
    found = []
    for separate in (False, True):
        model = used_adapters(folders(kind)).train()
        reference = reference_of(model, folders(kind), separate)
        torch.manual_seed(0)
        loss = losses.kl_loss(model, reference, batch)
        loss.backward()
        assert model.training
        for name, parameter in model.named_parameters():
            assert parameter.requires_grad == ("lora_" in name)
        gradients = [one.grad for one in model.parameters() if one.grad is not None]
        found.append([loss.detach(), *gradients])
    assert found[0][0] > 1e-3
    assert len(found[0]) == len(found[1]) > 1
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("bf16", [False, True])
def test_a_run_with_the_model_s_own_original_is_that_with_a_copy(bf16, folders):
    """Weights and losses of several steps; the adapters start at nothing.

    In bfloat16 a copy's attention comes in plain steps, that under the adapters in one: they round
    otherwise.
    """
    forget = [list(range(start, start + 12)) for start in (5, 30, 60)]
    retain = [list(range(start, start + 9)) for start in (100, 140, 180)]
    recipe = Unlearning(learning_rate=1e-2, batch=3, epochs=3)
    runs = []
    for separate in (False, True):
        model = new_adapters(folders("llama"))
        reference = reference_of(model, folders("llama"), separate)
        job = training.Job(KL, forget, retain, recipe, pad_id=1, seed=0, reference=reference)
        with models.matmul_precision(bf16):
            history = training.unlearn(model, job)
        weights = [one.detach().flatten() for one in trained(model).values()]
        runs.append((history, torch.cat(weights)))
    (ours, one), (theirs, other) = runs
    tolerance = 1e-3 if bf16 else 0
    losses = [[step["loss"] for step in history] for history in (ours, theirs)]
    assert losses[0] == pytest.approx(losses[1], rel=tolerance, abs=0)
    assert bf16 or torch.equal(one, other)
    assert len(ours) == 3


@pytest.mark.parametrize(("lora", "loads"), [(None, 2), (LoraSettings(2, 4.0), 1)])
def test_kl_with_lora_loads_no_second_model(lora, loads, folders, tokenizer, monkeypatch, tmp_path):
    """Models are made by from_pretrained alone; the one that comes back has the base's weights."""
    loaded, jobs = [], []
    load, run = AutoModelForCausalLM.from_pretrained, training.unlearn

    def counted_load(*given, **named):
        loaded.append(given)
        return load(*given, **named)

    def seen_run(model, job, execution):
        jobs.append(job)
        return run(model, job, execution)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", counted_load)
    monkeypatch.setattr(training, "unlearn", seen_run)
    chunks = {}
    for number, name in enumerate(("forget", "retain")):
        file = tmp_path / f"{name}.md"
        file.write_text(text(name, number, 3))
        table = user_documents.read_documents(file)
        chunks[name] = user_documents.cut_documents(table, name, tokenizer, CONTEXT, VOCABULARY)
    base = model_files.find(str(folders("llama")))
    own = model_files.tokenizer_of(base)
    settings = RunSettings(KL, Unlearning(), 4, 0, lora, merge=False, bf16=False)
    model, _, _ = user_run.load_and_unlearn(base, chunks, settings, own, lambda step, model: None)

    assert len(loaded) == loads
    reference = jobs[0].reference
    assert isinstance(reference, lora_adapters.WithoutAdapters) is (lora is not None)
    if lora is not None:
        assert list(reference.parameters()) == []
        head = model.get_base_model().get_output_embeddings()
        assert reference.get_output_embeddings() is head


# --------------------------------------------------------------------------------- what is written


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_adapters_alone_load_with_peft_and_with_transformers(
    kind, folders, documents, tmp_path, capsys
):
    base, out, csv = folders(kind), tmp_path / "out", tmp_path / "out.csv"
    given = ("--lora", "rank=4", "--learning-rate", 1e-2, "--epochs", 2)
    unlearn(base, documents, out, KL.name, *given)
    files = {path.name for path in out.iterdir()}
    adapters = {"adapter_model.safetensors", "adapter_config.json"}
    assert adapters | {"README.md", "results.csv", "run.json", "tokenizer.json"} <= files
    assert "model.safetensors" not in files
    assert all("lora_" in name for name in load_file(out / "adapter_model.safetensors"))

    by_peft = logits(AutoPeftModelForCausalLM.from_pretrained(out), IDS)
    by_transformers = logits(AutoModelForCausalLM.from_pretrained(out), IDS)
    original = logits(AutoModelForCausalLM.from_pretrained(base), IDS)
    torch.testing.assert_close(by_peft, by_transformers)
    assert (by_peft - original).abs().max() > 1e-2

    run = record(out)
    assert run["lora"] == {"rank": 4, "alpha": 8.0}
    assert run["changed"] is None
    card = (out / "README.md").read_text()
    assert "LoRA adapters alone" in card
    assert "| lora | {'rank'" in card

    capsys.readouterr()
    models_given = ("--model", out, "--against", base)
    given = ("--documents", documents["forget"], "--context", CONTEXT, "--out", csv)
    assert commands.main(["evaluate", *map(str, (*models_given, *given))]) == 0
    after = value(pd.read_csv(out / "results.csv"), "after", "forget", "perplexity")
    found = value(pd.read_csv(csv), str(out), "documents", "perplexity")
    assert found == pytest.approx(after, rel=1e-3)


@pytest.mark.parametrize(
    ("kind", "dtype", "rounding"), [("llama", torch.bfloat16, 0.1), ("gpt2", torch.float32, 1e-4)]
)
def test_merged_weights_are_plain_and_equal_the_adapters(
    kind, dtype, rounding, folders, documents, tmp_path
):
    base = folders(kind, dtype)
    given = ("gradient_ascent", "--lora", "rank=4,alpha=16", "--learning-rate", 1e-2)
    unlearn(base, documents, tmp_path / "adapters", *given)
    unlearn(base, documents, tmp_path / "merged", *given, "--merge")
    assert not (tmp_path / "merged" / "adapter_config.json").exists()
    new = load_file(tmp_path / "merged" / "model.safetensors")
    old = load_file(base / "model.safetensors")
    assert new.keys() == old.keys()
    assert {weight.dtype for weight in new.values()} == {dtype}

    def load(folder):
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    merged, original = logits(load(tmp_path / "merged"), IDS), logits(load(base), IDS)
    adapters = logits(PeftModel.from_pretrained(load(base), tmp_path / "adapters"), IDS)
    moved = (merged - original).norm()
    assert moved > 0
    assert (merged - adapters).norm() < rounding * moved


def test_a_folder_of_adapters_is_not_unlearned_from(folders, documents, tmp_path, capsys):
    out, again = tmp_path / "out", tmp_path / "again"
    unlearn(folders("llama"), documents, out, "gradient_ascent", "--lora", "rank=2")
    capsys.readouterr()
    assert commands.main(arguments(out, documents, again)) == 2
    assert "holds LoRA adapters alone" in capsys.readouterr().err
    assert not again.exists()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("rank=8", LoraSettings(8, 16.0)),
        ("rank=16,alpha=8", LoraSettings(16, 8.0)),
        (None, None),
    ],
)
def test_lora_is_read(given, expected):
    assert unlearn_arguments.lora_settings(given) == expected


@pytest.mark.parametrize("name", ["random_label", "adversarial", "ascent_descent_general"])
def test_every_method_can_be_adapted(name, folders, documents, tmp_path):
    assert name in methods.METHODS
    unlearn(folders("llama"), documents, tmp_path / name, name, "--lora", "rank=2")
    assert (tmp_path / name / "adapter_model.safetensors").exists()
