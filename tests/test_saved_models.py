"""What lies in a model's files: read whole or refused by name, and written as it was."""

import json
import shutil

import peft
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    GenerationConfig,
)
from user_models import SMALL, VOCABULARY, logits, random_model, record, unlearn, write_model

from unlearn_utils.app import lora_adapters, memory_plan, model_files
from unlearn_utils.app.settings import LoraSettings
from unlearn_utils.engine import adapters, models, weight_files

IDS = list(range(2, 40))
SPECIAL = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
TEXT = SMALL | SPECIAL | {"vocab_size": VOCABULARY, "max_position_embeddings": 1024}
GROUPED = TEXT | {"num_key_value_heads": 1, "head_dim": 8}
MIXED = {  # a dense layer first, then experts, one of them for every token
    "num_experts_per_tok": 2,
    "n_routed_experts": 4,
    "moe_intermediate_size": 8,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
}
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 12345678\n"
VISION = {"image_size": 28, "patch_size": 14, "num_hidden_layers": 1, "intermediate_size": 16}
IMAGES = {
    "gemma3": {
        "text_config": GROUPED | {"sliding_window": 16},
        "vision_config": VISION | {"hidden_size": 8, "num_attention_heads": 2},
        "mm_tokens_per_image": 4,
        "image_token_index": 5,
    },
    "qwen3_5": {
        "text_config": GROUPED | {"layer_types": ["full_attention"] * 2},
        "vision_config": {
            "depth": 1,
            "hidden_size": 8,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": 16,
            "patch_size": 14,
        },
        "image_token_id": 5,
    },
}


def make(kind, **settings):
    """Return a random model of a kind of transformers', far from uniform over tokens."""
    config = CONFIG_MAPPING[kind](**settings)
    several = kind in IMAGES
    maker = AutoModelForImageTextToText if several else AutoModelForCausalLM
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = maker.from_config(config).float().eval()
        for weight in model.parameters():
            if weight.dim() > 1:
                torch.nn.init.normal_(weight, std=0.15)
    return model


def write(model, folder, tokenizer, change=None):
    """Write a model as the hub has it, its weights changed by a function of the dictionary."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if change is not None:
        change_weights(folder, change)
    return folder


def change_weights(folder, change):
    file = folder / "model.safetensors"
    found = load_file(file)
    save_file(change(found) or found, file, {"format": "pt"})


def weights(folder):
    return load_file(folder / "model.safetensors")


def forget_alone(documents):
    return {"forget": documents["forget"]}


# --------------------------------------------------------------------------- what is written again


def mixture(folder, tokenizer):
    """Experts apart in the file, one tensor in memory; what routes is in float32, as published."""
    model = make("glm4_moe", **GROUPED, **MIXED, tie_word_embeddings=False)

    def in_float32(found):
        found[name] = torch.tensor([0.123456789, 0.1234, 0.12345, 0.1233])

    (name,) = [key for key in model.state_dict() if key.endswith("e_score_correction_bias")]
    return write(model.bfloat16(), folder, tokenizer, in_float32)


def norms_and_head_in_float32(folder, tokenizer):
    """A model in bfloat16 whose norms and head are in float32, and one matrix in float16."""

    def change(found):
        for name, value in found.items():
            if "norm" in name or name == "lm_head.weight":
                found[name] = value.float()
        found["model.layers.0.mlp.up_proj.weight"] = found[
            "model.layers.0.mlp.up_proj.weight"
        ].half()

    return write(random_model("llama").bfloat16(), folder, tokenizer, change)


def first_gpt2(folder, tokenizer):
    """GPT-2 as it was first published: no prefix, a causal mask in every layer."""

    def change(found):
        bare = {name.removeprefix("transformer."): value for name, value in found.items()}
        mask = torch.ones(1024, 1024).tril()[None, None]
        return bare | {f"h.{layer}.attn.bias": mask.clone() for layer in range(2)}

    return write(random_model("gpt2").bfloat16(), folder, tokenizer, change)


def whole_float32(folder, tokenizer):
    """Experts that are views of one tensor once they are apart."""
    settings = {"num_local_experts": 4, "num_experts_per_tok": 2, "tie_word_embeddings": False}
    return write(make("mixtral", **GROUPED, **settings), folder, tokenizer)


BASES = [mixture, norms_and_head_in_float32, first_gpt2, whole_float32]


@pytest.mark.parametrize("more", [(), ("--lora", "rank=2", "--merge")], ids=["all", "merged"])
@pytest.mark.parametrize("make_base", BASES)
def test_every_tensor_keeps_its_name_and_type(make_base, more, documents, tokenizer, tmp_path):
    base, out = make_base(tmp_path / "base", tokenizer), tmp_path / "out"
    given = ("gradient_ascent", "--learning-rate", 1e-2, *more)
    unlearn(base, forget_alone(documents), out, *given)
    old, new = weights(base), weights(out)
    assert {name: value.dtype for name, value in new.items()} == {
        name: value.dtype for name, value in old.items()
    }
    untrained = [name for name in old if name.endswith(("e_score_correction_bias", ".attn.bias"))]
    assert all(torch.equal(old[name], new[name]) for name in untrained)
    moved = [name for name in old if not torch.equal(old[name], new[name])]
    assert len(moved) >= 8
    assert record(out)["changed"] > 0
    for name in ("config.json", "generation_config.json", "tokenizer.json"):
        assert (out / name).read_bytes() == (base / name).read_bytes()
    _, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"]


def test_what_most_weights_are_in_is_the_type_of_a_model(tokenizer, tmp_path):
    norms_and_head_in_float32(tmp_path, tokenizer)
    assert models.stored_dtype(tmp_path) == torch.bfloat16


@pytest.mark.parametrize("kind", IMAGES)
def test_what_reads_images_stays(kind, documents, tokenizer, tmp_path):
    """Adapters leave it alone, and it is written as it was, where it was loaded and where not."""
    base, out, merged = (tmp_path / name for name in ("base", "out", "merged"))
    model = make(kind, **IMAGES[kind])
    seen = {name for name in model.state_dict() if "visi" in name or "visual" in name}
    assert len(seen) > 10

    def add_unused(found):
        if kind == "qwen3_5":
            found["mtp.norm.weight"] = torch.rand(16)

    write(model, base, tokenizer, add_unused)
    processor = {
        "preprocessor_config.json": '{"size": 28}',
        "chat_template.jinja": "{{ messages }}",
    }
    for name, written in processor.items():
        (base / name).write_text(written)

    given = (base, forget_alone(documents))
    unlearn(*given, out, "gradient_ascent", "--learning-rate", 1e-2, "--lora", "rank=2")
    names = load_file(out / "adapter_model.safetensors")
    assert names
    assert not [name for name in names if "visi" in name or "visual" in name or "multi" in name]
    assert not (out / "config.json").exists()
    for more in ((), ("--lora", "rank=2", "--merge")):
        shutil.rmtree(merged, ignore_errors=True)
        unlearn(*given, merged, "gradient_ascent", "--learning-rate", 1e-2, *more)
        old, new = weights(base), weights(merged)
        assert old.keys() == new.keys()
        kept = [name for name in old if torch.equal(old[name], new[name])]
        assert {name for name in old if "visi" in name or "visual" in name or "mtp" in name} <= set(
            kept
        )
        assert len(kept) < len(old)
        assert (merged / "config.json").read_bytes() == (base / "config.json").read_bytes()
        whole, info = AutoModelForImageTextToText.from_pretrained(merged, output_loading_info=True)
        assert type(whole) is type(model)
        assert not info["missing_keys"]
    for name, written in processor.items():
        assert (out / name).read_text() == (merged / name).read_text() == written


def test_a_generation_config_that_transformers_would_not_write_is_kept(
    documents, tokenizer, tmp_path
):
    """Llama 2's has a temperature and does not sample: an error when all is trained."""
    base, out = write_model(tmp_path / "base", "llama", tokenizer), tmp_path / "out"
    odd = json.dumps({"temperature": 0.9, "top_p": 0.6, "do_sample": False})
    (base / "generation_config.json").write_text(odd)
    unlearn(base, forget_alone(documents), out, "gradient_ascent", "--learning-rate", 1e-3)
    assert (out / "generation_config.json").read_text() == odd
    assert GenerationConfig.from_pretrained(out).temperature == 0.9


# ------------------------------------------------------------------------------- buffers among them


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.float32], ids=str)
@pytest.mark.parametrize("kind", ["gpt2", "gpt_neo", "gpt_neox"])
def test_buffers_that_are_stored_among_weights_are_read_past(kind, dtype, tokenizer, tmp_path):
    """They sort before every weight, and are as many numbers."""
    if kind == "gpt_neo":
        settings = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "vocab_size": VOCABULARY}
        attention = {"attention_types": [[["global", "local"], 1]], "max_position_embeddings": 64}
        model = make(kind, **settings, **attention, **SPECIAL)
    else:
        model = random_model(kind)
    inside = {"gpt2": "attn", "gpt_neo": "attn.attention", "gpt_neox": "attention"}[kind]
    layers = "gpt_neox.layers" if kind == "gpt_neox" else "transformer.h"
    mask = torch.ones(64, 64).tril()[None, None]

    def add(found):
        for layer in range(2):
            found[f"{layers}.{layer}.{inside}.bias"] = mask.to(dtype).clone()
            found[f"{layers}.{layer}.{inside}.masked_bias"] = torch.tensor(-1e9)
            if kind == "gpt_neox":
                found[f"{layers}.{layer}.{inside}.rotary_emb.inv_freq"] = torch.rand(4)

    write(model, tmp_path, tokenizer, add)
    loaded = model_files.load(model_files.find(str(tmp_path)))
    assert torch.equal(logits(loaded, IDS), logits(model, IDS))
    assert models.stored_dtype(tmp_path) == torch.float32


# ------------------------------------------------------------------------------- refused by name


def write_index(folder, text=None):
    """Divide a model's file in two, and write their index."""
    found = weights(folder)
    (folder / "model.safetensors").unlink()
    names = sorted(found)
    files = {
        "model-00001-of-00002.safetensors": names[:9],
        "model-00002-of-00002.safetensors": names[9:],
    }
    listed = {}
    for file, part in files.items():
        save_file({name: found[name] for name in part}, folder / file, {"format": "pt"})
        listed |= dict.fromkeys(part, file)
    index = folder / "model.safetensors.index.json"
    whole = json.dumps({"metadata": {}, "weight_map": listed})
    index.write_text(whole if text is None else text)
    return folder / "model-00002-of-00002.safetensors"


def one_layer_too_few(folder):
    change_config(folder, num_hidden_layers=1)


def one_layer_too_many(folder):
    change_config(folder, num_hidden_layers=3)


def another_width(folder):
    change_config(folder, hidden_size=32)


def change_config(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def with_tensor(name, value):
    def change(folder):
        change_weights(folder, lambda found: found | {name: value})

    return change


def part_missing(folder):
    write_index(folder).unlink()


def part_is_a_pointer(folder):
    write_index(folder).write_text(POINTER)


def part_cut_off(folder):
    part = write_index(folder)
    part.write_bytes(part.read_bytes()[:-10])


def no_index(folder):
    write_index(folder, "{")


def another_index(folder):
    write_index(folder, "[]")


def index_without_metadata(folder):
    write_index(folder, '{"weight_map": {}}')


def only_a_pointer(folder):
    (folder / "model.safetensors").write_text(POINTER)


def no_tensor(folder):
    save_file({}, folder / "model.safetensors", {"format": "pt"})


def only_pickles(folder):
    torch.save(weights(folder), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def pickles_and_a_variant(folder):
    torch.save(weights(folder), folder / "pytorch_model.bin")
    (folder / "model.safetensors").rename(folder / "model.fp16.safetensors")


def pickles_by_config(folder):
    torch.save(weights(folder), folder / "adapter_model.bin")
    change_config(folder, transformers_weights="adapter_model.bin")


def tokenizer_is_a_pointer(folder):
    (folder / "tokenizer.json").write_text(POINTER)


def another_kind(folder):
    change_config(folder, model_type="t5")


BIAS = torch.zeros(16)
QUERY = "model.layers.0.self_attn.q_proj"
REFUSED = [
    (one_layer_too_few, ["9 weights have no place", "LlamaForCausalLM", "model.layers.1."]),
    (with_tensor(f"{QUERY}.bias", BIAS), ["1 weights have no place", f"{QUERY}.bias"]),
    (with_tensor("score.weight", torch.zeros(2, 16)), ["have no place", "score.weight"]),
    (one_layer_too_many, ["9 weights are missing", "model.layers.2."]),
    (another_width, ["weights are of another size", "config.json"]),
    (
        with_tensor(f"{QUERY}.weight", torch.ones(16, 16).to(torch.int8)),
        ["1 weights hold whole numbers", f"{QUERY}.weight"],
    ),
    (
        with_tensor(f"{QUERY}.weight", torch.ones(16, 16).to(torch.float8_e4m3fn)),
        ["model.safetensors", f"{QUERY}.weight is of type F8_E4M3", "BF16"],
    ),
    (part_missing, ["1 of 2 files of weights are missing", "model-00002-of-00002.safetensors"]),
    (part_is_a_pointer, ["model-00002-of-00002.safetensors", "Git LFS", "git lfs pull"]),
    (part_cut_off, ["model-00002-of-00002.safetensors", "damaged"]),
    (no_index, ["model.safetensors.index.json", "no list"]),
    (another_index, ["model.safetensors.index.json", "no list"]),
    (index_without_metadata, ["model.safetensors.index.json", "no list", "metadata"]),
    (only_a_pointer, ["model.safetensors", "Git LFS"]),
    (no_tensor, ["no weights", "which holds nothing"]),
    (only_pickles, ["no weights", ".bin files"]),
    (pickles_and_a_variant, ["no weights", ".bin files"]),
    (pickles_by_config, ["transformers_weights", "adapter_model.bin", "not read"]),
    (tokenizer_is_a_pointer, ["tokenizer.json", "Git LFS"]),
    (another_kind, ["t5", "no kind of causal language model"]),
]


def refuse(*_, **__):
    raise AssertionError("a pickle was read")


def read_model(folder):
    """Find, check and load a model as every command does."""
    stored = model_files.find(str(folder))
    model_files.config_of(stored)
    model_files.tokenizer_of(stored)
    return model_files.load(stored)


@pytest.mark.parametrize(
    ("change", "said"), REFUSED, ids=[f"{n} {said[0]}" for n, (_, said) in enumerate(REFUSED)]
)
def test_what_cannot_be_read_whole_is_refused_by_name(change, said, llama, tmp_path, monkeypatch):
    folder = tmp_path / "model"
    shutil.copytree(llama, folder)
    change(folder)
    monkeypatch.setattr(torch, "load", refuse)
    with pytest.raises(ValueError) as caught:
        read_model(folder)
    message = str(caught.value)
    assert all(word in message for word in said), message
    assert str(folder) in message
    assert message.count("\n") == 0


@pytest.mark.parametrize("divided", [False, True])
def test_pickles_beside_safetensors_are_left_alone(divided, llama, tmp_path, monkeypatch):
    folder = tmp_path / "model"
    shutil.copytree(llama, folder)
    twice = {name: 2 * value for name, value in weights(folder).items()}
    torch.save(twice, folder / "pytorch_model.bin")
    if divided:
        write_index(folder)
    monkeypatch.setattr(torch, "load", refuse)
    expected = logits(AutoModelForCausalLM.from_pretrained(llama), IDS)
    assert torch.equal(logits(read_model(folder), IDS), expected)


# ------------------------------------------------------------------------------- adapters of others


def write_adapters(base, folder, config, change=None, added=0):
    """Write random adapters for a model, their weights changed by a function of the dictionary."""
    model = AutoModelForCausalLM.from_pretrained(base)
    if added:
        model.resize_token_embeddings(VOCABULARY + added)
    adapted = get_peft_model(model, config).eval()
    generator = torch.Generator().manual_seed(0)
    for weight in adapted.parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight, std=0.1, generator=generator)
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *_, **__: None)
        adapted.save_pretrained(folder)
    if change is not None:
        file = folder / "adapter_model.safetensors"
        save_file(change(load_file(file)), file, {"format": "pt"})
    return adapted


def lora(**settings):
    return LoraConfig(task_type="CAUSAL_LM", **({"r": 2, "target_modules": ["q_proj"]} | settings))


THEIRS = {
    "DoRA": lora(use_dora=True, target_modules=["q_proj", "down_proj"]),
    "embeddings": lora(target_modules=["embed_tokens", "v_proj"]),
    "norms": lora(modules_to_save=["norm"]),
    "no task": LoraConfig(r=2, target_modules=["o_proj"], use_rslora=True),
    "IA3": peft.IA3Config(
        task_type="CAUSAL_LM",
        target_modules=["k_proj", "down_proj"],
        feedforward_modules=["down_proj"],
    ),
}


@pytest.mark.parametrize("name", THEIRS)
def test_adapters_of_others_are_measured_as_they_are(name, llama, tmp_path):
    theirs = write_adapters(llama, tmp_path, THEIRS[name])
    ours = read_model(tmp_path)
    torch.testing.assert_close(logits(ours, IDS), logits(theirs, IDS))
    plain = logits(AutoModelForCausalLM.from_pretrained(llama), IDS)
    assert (logits(ours, IDS) - plain).abs().max() > 1e-2


def no_adapters(base, folder):
    write_adapters(base, folder, lora(), lambda found: {})


def adapters_are_a_pointer(base, folder):
    write_adapters(base, folder, lora())
    (folder / "adapter_model.safetensors").write_text(POINTER)


def adapters_cut_off(base, folder):
    write_adapters(base, folder, lora())
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def pickled_adapters(base, folder):
    write_adapters(base, folder, lora())
    file = folder / "adapter_model.safetensors"
    torch.save(load_file(file), folder / "adapter_model.bin")
    file.unlink()


def config_alone(base, folder):
    write_adapters(base, folder, lora())
    (folder / "adapter_model.safetensors").unlink()


def damaged_config(base, folder):
    write_adapters(base, folder, lora())
    (folder / "adapter_config.json").write_text("{")


def change_adapter_config(**changes):
    def change(base, folder):
        write_adapters(base, folder, lora())
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


def no_type(base, folder):
    write_adapters(base, folder, lora())
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text())
    del config["peft_type"]
    file.write_text(json.dumps(config))


def prompt_tuning(base, folder):
    settings = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 4}
    write_adapters(base, folder, peft.PromptTuningConfig(**settings))


def prefix_tuning(base, folder):
    settings = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 4}
    write_adapters(base, folder, peft.PrefixTuningConfig(**settings))


def added_tokens(base, folder):
    write_adapters(base, folder, lora(modules_to_save=["embed_tokens", "lm_head"]), added=2)


def of_another_width(base, folder):
    write_adapters(base, folder, lora(), lambda found: {n: v[:1] for n, v in found.items()})


def half_of_them(base, folder):
    def half(found):
        return {name: value for name, value in found.items() if "layers.0" in name}

    write_adapters(base, folder, lora(), half)


def more_than_the_config_says(base, folder):
    write_adapters(base, folder, lora(target_modules=["q_proj", "v_proj"]))
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"target_modules": ["q_proj"]}))


def of_a_layer_that_is_not_there(base, folder):
    change_adapter_config(target_modules=["c_attn"])(base, folder)


def base_is_gone(base, folder):
    change_adapter_config(base_model_name_or_path=str(folder / "gone"))(base, folder)


def adapters_of_adapters(base, folder):
    write_adapters(base, folder / "first", lora())
    change_adapter_config(base_model_name_or_path=str(folder / "first"))(base, folder)


def adapters_of_themselves(base, folder):
    change_adapter_config(base_model_name_or_path=str(folder))(base, folder)


REFUSED_ADAPTERS = [
    (no_adapters, ["adapter_model.safetensors", "empty"]),
    (adapters_are_a_pointer, ["adapter_model.safetensors", "Git LFS"]),
    (adapters_cut_off, ["adapter_model.safetensors", "damaged"]),
    (pickled_adapters, ["no adapter_model.safetensors", ".bin files", "not read"]),
    (config_alone, ["no adapter_model.safetensors"]),
    (damaged_config, ["adapter_config.json", "no config of adapters"]),
    (no_type, ["adapter_config.json", "peft_type"]),
    (change_adapter_config(peft_type=None), ["adapter_config.json", "no config of adapters"]),
    (change_adapter_config(peft_type="UNHEARD"), ["adapter_config.json", "UNHEARD"]),
    (change_adapter_config(base_model_name_or_path=None), ["the base model is missing"]),
    (change_adapter_config(task_type="SEQ_CLS"), ["SEQ_CLS", "not for a language model"]),
    (prompt_tuning, ["prompt_tuning", "changes no weight"]),
    (prefix_tuning, ["prefix_tuning", "changes no weight"]),
    (added_tokens, ["do not fit", "302", "300", "merge"]),
    (of_another_width, ["do not fit", "size mismatch"]),
    (half_of_them, ["do not fit", "layers.1"]),
    (more_than_the_config_says, ["do not fit", "v_proj"]),
    (of_a_layer_that_is_not_there, ["do not fit", "c_attn"]),
    (base_is_gone, ["adapters of", "gone, and there is no such folder"]),
    (adapters_of_adapters, ["holds adapters itself"]),
    (adapters_of_themselves, ["holds adapters itself"]),
]


@pytest.mark.parametrize(
    ("prepare", "said"),
    REFUSED_ADAPTERS,
    ids=[f"{n} {said[0]}" for n, (_, said) in enumerate(REFUSED_ADAPTERS)],
)
def test_adapters_that_do_not_fit_are_refused_by_name(prepare, said, llama, tmp_path, monkeypatch):
    folder = tmp_path / "adapters"
    prepare(llama, folder)
    monkeypatch.setattr(torch, "load", refuse)
    with pytest.raises(ValueError) as caught:
        read_model(folder)
    message = str(caught.value)
    assert all(word in message for word in said), message
    assert str(folder) in message
    assert len(message) < 1000
    assert message.count("\n") == 0


def test_pickled_adapters_beside_safetensors_are_left_alone(llama, tmp_path, monkeypatch):
    theirs = write_adapters(llama, tmp_path, lora())
    torch.save({"a": torch.ones(1)}, tmp_path / "adapter_model.bin")
    monkeypatch.setattr(torch, "load", refuse)
    torch.testing.assert_close(logits(read_model(tmp_path), IDS), logits(theirs, IDS))


def test_weights_that_a_pass_changes_are_kept_as_they_are_stored(documents, tokenizer, tmp_path):
    """RWKV divides those of its later layers, when it does not train."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "rescale_every": 1, "context_length": 64}
    model = make("rwkv", **sizes, vocab_size=VOCABULARY, tie_word_embeddings=False, **SPECIAL)
    base = write(model, tmp_path / "base", tokenizer)
    stored = model_files.find(str(base))
    expected = weights(base)
    for name, value in model_files.read(stored).state_dict().items():
        assert torch.equal(value, expected[name]), name
    loaded = model_files.load(stored).state_dict()
    assert any(not torch.equal(loaded[name], value) for name, value in expected.items())

    out = tmp_path / "out"
    given = ("gradient_ascent", "--learning-rate", 1e-3, "--lora", "rank=2", "--merge")
    unlearn(base, forget_alone(documents), out, *given)
    for name, value in weights(out).items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0.05)


# ------------------------------------------------------------------------------ what LoRA adapts

STATE_SPACE = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
ADAPTED = {  # kind -> its settings, layers that are adapted, and some that are left
    "phimoe": (GROUPED | EXPERTS, {"q_proj", "k_proj", "v_proj", "o_proj"}, "mlp.router.weight"),
    "glm4_moe": (GROUPED | MIXED, {"q_proj", "k_proj", "v_proj", "o_proj"}, "experts.gate_up_proj"),
    "laguna": (  # a renaming of transformers' takes its shared experts for others
        GROUPED | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8},
        {"q_proj", "k_proj", "v_proj", "o_proj", "g_proj", "gate_proj", "up_proj", "down_proj"},
        "shared_experts.down_proj",
    ),
    "falcon": (
        TEXT | {"new_decoder_architecture": False},
        {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"},
        "word_embeddings",
    ),
    "mamba": (STATE_SPACE, {"in_proj", "x_proj", "dt_proj"}, "mixer.out_proj.weight"),
    "gemma3": (
        IMAGES["gemma3"],
        {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
        "vision_tower",
    ),
}


@pytest.mark.parametrize("kind", ADAPTED)
def test_adapters_go_where_they_can_and_what_is_left_is_said(kind):
    settings, names, left = ADAPTED[kind]
    model = make(kind, **settings)
    layers = adapters.adapted_layers(model)
    assert {name.rpartition(".")[2] for name in layers} == names
    assert not [name for name in layers if left in name or "vision" in name]

    said = lora_adapters.describe(memory_plan.empty_model(model.config))
    assert said == lora_adapters.describe(model)
    assert f"adapters on {len(layers)} linear layers" in said
    assert left in said
    stored = model_files.StoredModel("it", None)
    adapted = lora_adapters.add_adapters(model, LoraSettings(2, 4.0), 0, stored)
    trained = {name for name, weight in adapted.named_parameters() if weight.requires_grad}
    found = {name.split(".lora_")[0].removeprefix("base_model.model.") for name in trained}
    assert found == set(layers)
    assert adapted.peft_config["default"].target_modules == sorted(
        adapted.peft_config["default"].target_modules
    )
    assert logits(adapted, IDS).isfinite().all()


def test_a_model_without_linear_layers_is_not_adapted():
    model = make("llama", **TEXT | {"num_hidden_layers": 0})
    assert adapters.adapted_layers(model) == {}
    with pytest.raises(ValueError, match="LlamaForCausalLM has no linear layer"):
        lora_adapters.describe(model)


def test_files_say_what_they_hold(tmp_path):
    held = {"mask": torch.ones(3, dtype=torch.bool), "w": torch.ones(2, 2).half()}
    save_file(held | {"b": torch.ones(2)}, tmp_path / "model.safetensors")
    found = weight_files.tensors(tmp_path)
    file = tmp_path / "model.safetensors"
    assert found == {
        "mask": weight_files.Stored(file, "BOOL", 3),
        "w": weight_files.Stored(file, "F16", 4),
        "b": weight_files.Stored(file, "F32", 2),
    }
    assert found["mask"].dtype is None
    assert weight_files.main_dtype(found) == found["w"].dtype == torch.float16
    read = weight_files.read(found, ["mask", "w"])
    assert read.keys() == {"mask", "w"}
    assert all(torch.equal(read[name], held[name]) for name in read)
