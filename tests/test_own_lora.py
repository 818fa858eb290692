"""LoRA on a user's own model: what is trained, the reference without a copy, adapters and merged weights."""

import copy
import json

import pandas as pd
import pytest
import torch
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file
from test_own import KINDS, arguments, bare, hub_folder, text, unlearn, value, write_documents
from transformers import AutoModelForCausalLM

from unlearn_utils.app import commands, lora_adapters, model_files, settings, user_documents, user_run
from unlearn_utils.core import fused, losses, methods
from unlearn_utils.data import tokens
from unlearn_utils.engine import training
from unlearn_utils.profiles import Unlearning

IDS = torch.arange(2, 40)[None]


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    return write_documents(tmp_path_factory.mktemp("documents"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tokenizer):
    """A folder of each kind of model, made once."""
    root, made = tmp_path_factory.mktemp("kinds"), {}

    def folder(kind, dtype=torch.float32):
        name = f"{kind}-{dtype}"
        if name not in made:
            made[name] = hub_folder(root / name, kind, bare(tokenizer) if kind == "gpt2" else tokenizer, dtype)
        return made[name]

    return folder


def adapted(folder, rank=4, noise=0.05):
    """A model with adapters that already change it: new ones add nothing."""
    base = model_files.find(str(folder))
    model, generator = (
        lora_adapters.adapted(model_files.load(base), settings.LoraSettings(rank, 2.0 * rank), 0, base),
        torch.Generator().manual_seed(1),
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=noise, generator=generator)
    return model


def batch():
    return tokens.collate([list(range(2, 40)), list(range(50, 70)), [5, 9, 11]], 1)


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits.float()


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_sit_on_every_linear_layer_but_the_head(kind, folders):
    model = adapted(folders(kind))
    base = model.get_base_model()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    layers = {name.split(".lora_")[0] for name in trained}
    linear = {n for n, m in AutoModelForCausalLM.from_pretrained(folders(kind)).named_modules() if type(m).__name__ in ("Linear", "Conv1D")}
    head = next(n for n, m in base.named_modules() if m is base.get_output_embeddings())
    assert {n.removeprefix("base_model.model.") for n in layers} == linear - {head} and all("lora_" in name for name in trained)
    assert isinstance(fused.head_of(model).weight, torch.nn.Parameter) and not fused.head_of(model).weight.requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_kl_from_the_model_s_own_original_is_that_from_a_copy(kind, folders):
    """Value and gradients, in training mode: GPT-2 has dropout, the reference none."""
    found = []
    for separate in (False, True):
        model = adapted(folders(kind)).train()
        reference = model_files.load(model_files.find(str(folders(kind)))) if separate else lora_adapters.WithoutAdapters(model)
        torch.manual_seed(0)
        loss = losses.kl_loss(model, reference, batch())
        loss.backward()
        assert model.training and all(p.requires_grad == ("lora_" in n) for n, p in model.named_parameters())
        found.append([loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    assert found[0][0] > 1e-3 and len(found[0]) == len(found[1]) > 1
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_a_run_with_the_model_s_own_original_is_that_with_a_copy(folders, monkeypatch):
    """Weights and losses of several steps, in bfloat16 products and in float32; the adapters start at nothing."""
    forget, retain = [list(range(s, s + 12)) for s in (5, 30, 60)], [list(range(s, s + 9)) for s in (100, 140, 180)]
    for bf16 in (False, True):
        monkeypatch.setattr(training.models, "half_precision", lambda bf16=bf16: bf16)
        runs = []
        for separate in (False, True):
            base = model_files.find(str(folders("llama")))
            model = lora_adapters.adapted(model_files.load(base), settings.LoraSettings(4, 8.0), 0, base)
            reference = copy.deepcopy(model_files.load(base)) if separate else lora_adapters.WithoutAdapters(model)
            recipe = Unlearning(learning_rate=1e-2, batch=3, epochs=3)
            history = training.unlearn(model, "ascent_kl_in_distribution", forget, retain, recipe, 1, 0, reference)
            runs.append((history, torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])))
        (ours, one), (theirs, other) = runs
        assert ours == theirs and torch.equal(one, other) and len(ours) == 3


@pytest.mark.parametrize(("lora", "loads"), [(None, 2), (settings.LoraSettings(2, 4.0), 1)])
def test_kl_with_lora_loads_no_second_model(lora, loads, folders, tokenizer, monkeypatch, tmp_path):
    """Models are made by from_pretrained alone, and the one that comes back is the only one with the base's weights."""
    real, count = AutoModelForCausalLM.from_pretrained, []
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *a, **k: count.append(a) or real(*a, **k))
    given = []
    real_run = training.unlearn
    monkeypatch.setattr(training, "unlearn", lambda *a, **k: given.append(a[7]) or real_run(*a, **k))
    base = model_files.find(str(folders("llama")))
    sets = {}
    for n, name in enumerate(("forget", "retain")):
        (tmp_path / f"{name}.md").write_text(text(name, n, 3))
        sets[name] = user_documents.chunks(user_documents.read(tmp_path / f"{name}.md"), name, tokenizer, 32, 300)
    run = settings.RunSettings("ascent_kl_in_distribution", Unlearning(), 4, 0, lora, False, False)
    model, _, _ = user_run.load_and_unlearn(base, sets, run, model_files.tokenizer_of(base), lambda step, model: None)
    assert len(count) == loads and isinstance(given[0], lora_adapters.WithoutAdapters) is (lora is not None)
    if lora:
        assert list(given[0].parameters()) == [] and given[0].get_output_embeddings() is model.get_base_model().get_output_embeddings()


# ---------------------------------------------------------------------------------------------- what is written


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_adapters_alone_load_with_peft_and_with_transformers(kind, folders, documents, tmp_path, capsys):
    base, out = folders(kind), tmp_path / "out"
    unlearn(base, documents, out, "ascent_kl_in_distribution", "--lora", "rank=4", "--learning-rate", 1e-2, "--epochs", 2)
    files = {p.name for p in out.iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "README.md", "results.csv", "run.json", "tokenizer.json"} <= files
    assert "model.safetensors" not in files and all("lora_" in name for name in load_file(out / "adapter_model.safetensors"))
    found = [logits(load.from_pretrained(out)) for load in (AutoPeftModelForCausalLM, AutoModelForCausalLM)]
    torch.testing.assert_close(*found)
    assert (found[0] - logits(AutoModelForCausalLM.from_pretrained(base))).abs().max() > 1e-2
    run = json.loads((out / "run.json").read_text())
    assert run["lora"] == {"rank": 4, "alpha": 8.0} and run["changed"] is None
    assert "LoRA adapters alone" in (out / "README.md").read_text() and "| lora | {'rank'" in (out / "README.md").read_text()
    capsys.readouterr()
    given = ["--documents", str(documents["forget"]), "--context", "32", "--out", str(tmp_path / "out.csv")]
    assert commands.main(["evaluate", "--model", str(out), "--against", str(base), *given]) == 0
    after = value(pd.read_csv(out / "results.csv"), "after", "forget", "perplexity")
    assert value(pd.read_csv(tmp_path / "out.csv"), str(out), "documents", "perplexity") == pytest.approx(after, rel=1e-3)


@pytest.mark.parametrize(("kind", "dtype"), [("llama", torch.bfloat16), ("gpt2", torch.float32)])
def test_merged_weights_are_plain_and_equal_the_adapters(kind, dtype, folders, documents, tmp_path):
    base = folders(kind, dtype)
    for out, more in (("adapters", ()), ("merged", ("--merge",))):
        unlearn(base, documents, tmp_path / out, "gradient_ascent", "--lora", "rank=4,alpha=16", "--learning-rate", 1e-2, *more)
    assert not (tmp_path / "merged" / "adapter_config.json").exists()
    new = load_file(tmp_path / "merged" / "model.safetensors")
    old = load_file(base / "model.safetensors")
    assert new.keys() == old.keys() and {t.dtype for t in new.values()} == {dtype}
    merged, original = (AutoModelForCausalLM.from_pretrained(f, dtype=torch.float32) for f in (tmp_path / "merged", base))
    base_of = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapters = model_files.PeftModel.from_pretrained(base_of, tmp_path / "adapters")
    apart, moved = (logits(merged) - logits(adapters)).norm(), (logits(merged) - logits(original)).norm()
    assert moved > 0 and apart < (0.1 if dtype == torch.bfloat16 else 1e-4) * moved


def test_adapters_train_in_float32_on_a_bfloat16_base(folders):
    base = model_files.find(str(folders("llama", torch.bfloat16)))
    model = lora_adapters.adapted(model_files.load(base, torch.bfloat16), settings.LoraSettings(2, 4.0), 0, base)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}


def test_adapters_follow_the_seed_and_leave_the_global_generator(folders):
    before = torch.get_rng_state()
    base = model_files.find(str(folders("llama")))
    found = [lora_adapters.adapted(model_files.load(base), settings.LoraSettings(2, 4.0), seed, base) for seed in (0, 0, 1)]
    one, again, other = (torch.cat([p.flatten() for n, p in m.named_parameters() if "lora_A" in n]) for m in found)
    assert torch.equal(one, again) and not torch.equal(one, other) and torch.equal(before, torch.get_rng_state())


def test_a_folder_of_adapters_is_not_unlearned_from(folders, documents, tmp_path, capsys):
    unlearn(folders("llama"), documents, tmp_path / "out", "gradient_ascent", "--lora", "rank=2")
    capsys.readouterr()
    assert commands.main(arguments(tmp_path / "out", documents, tmp_path / "again")) == 2
    assert "holds LoRA adapters alone" in capsys.readouterr().err and not (tmp_path / "again").exists()


@pytest.mark.parametrize(("given", "expected"), [("rank=8", (8, 16.0)), ("rank=16,alpha=8", (16, 8.0))])
def test_lora_is_read(given, expected):
    found = commands.lora_of(given)
    assert (found.rank, found.alpha) == expected and commands.lora_of(None) is None


def test_every_method_can_be_adapted(folders, documents, tmp_path):
    for name in ("random_label", "adversarial", "ascent_descent_general"):
        assert name in methods.METHODS
        unlearn(folders("llama"), documents, tmp_path / name, name, "--lora", "rank=2")
