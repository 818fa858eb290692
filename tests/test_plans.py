"""The memory plan against hand-computed cases, against models, and against what a backward pass keeps."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from test_own import KINDS, random_model
from transformers import AutoModelForCausalLM, LlamaConfig

from unlearn_utils.app import memory_plan, settings
from unlearn_utils.core import fused
from unlearn_utils.profiles import Unlearning

GB = 10**9


def run(method="gradient_ascent", micro_batch=4, lora=None, merge=False, bf16=False):
    return settings.RunSettings(method, Unlearning(), micro_batch, 0, lora, merge, bf16)


def ask(**changes):
    """A model of 7e9 parameters, as Llama 2; one sequence of 4,096 tokens."""
    llama = {"parameters": 7 * GB, "trained": 7 * GB, "hidden": 4096, "intermediate": 11008, "layers": 32, "heads": 32}
    return memory_plan.Request(**(llama | {"vocabulary": 32_000, "context": 4096, "sequences": 1} | changes))


# ---------------------------------------------------------------------------------------------- by hand


def test_every_weight_in_float32_by_hand():
    """4 bytes a weight, 4 its gradient, 8 its moments."""
    found = memory_plan.plan(ask())
    assert (found.weights, found.gradients, found.optimizer) == (28 * GB, 28 * GB, 56 * GB)
    assert found.reference == found.bf16_copies == 0 and found.certain == 112 * GB
    assert found.total == found.certain + found.activations


def test_kl_and_bfloat16_by_hand():
    found = memory_plan.plan(ask(reference=True, bf16=True))
    assert found.reference == 28 * GB and found.bf16_copies == 14 * GB
    assert found.certain == 140 * GB and found.total == 154 * GB + found.activations


def test_lora_by_hand():
    """20 million adapter weights in float32 (16 bytes each with gradient and moments), the rest as it is: 2 bytes each."""
    found = memory_plan.plan(ask(parameters=7 * GB + 20_000_000, trained=20_000_000, bf16=True, frozen_bytes=2))
    assert found.weights == 14 * GB + 80_000_000 and found.gradients == 80_000_000 and found.optimizer == 160_000_000
    assert found.bf16_copies == found.reference == 0


def test_activations_by_hand():
    """2 sequences of 10 tokens, 3 layers: 60 x (75 x 8 + 20 x 16) = 55,200; the head 2 x 4 x 100 x 8 = 6,400; 4 chunks of 20 x 100 x 4."""
    small = {"hidden": 8, "intermediate": 16, "layers": 3, "heads": 2, "vocabulary": 100, "context": 10, "sequences": 2}
    assert memory_plan.activations(ask(**small)) == 55_200 + 6_400 + 32_000
    assert memory_plan.activations(ask(**small, fused=False)) == 55_200 + 60 * 12 * 2 * 10 + 6_400 + 32_000
    assert memory_plan.activations(ask(**small, bf16=True)) == 46_920 + 6_400 + 32_000
    assert memory_plan.activations(ask(**small, trained=5)) == 77_280 + 32_000  # LoRA: 1.4 x 55,200; a frozen head has no gradient


def test_activations_of_layers_computed_again_by_hand():
    """20 tokens: one layer's 920 bytes and three float32 inputs of 8 each; the rest as it is."""
    small = {"hidden": 8, "intermediate": 16, "layers": 3, "heads": 2, "vocabulary": 100, "context": 10, "sequences": 2}
    assert memory_plan.activations(ask(**small, checkpointing=True)) == 20 * (920 + 3 * 4 * 8) + 6_400 + 32_000
    assert memory_plan.activations(ask(**small, checkpointing=True, fused=False)) == 20 * (920 + 240 + 96) + 6_400 + 32_000


def test_a_process_of_several_by_hand():
    """DDP: all of it, and the gradients once more to be summed. FSDP: an eighth, but the reference and, at first, the model are whole."""
    beside, share = memory_plan.plan(ask(processes=8, reference=True)), memory_plan.plan(ask(processes=8, sharded=True, reference=True))
    assert (beside.weights, beside.gradients, beside.optimizer, beside.reference) == (28 * GB, 56 * GB, 56 * GB, 28 * GB)
    assert (share.weights, share.gradients, share.optimizer, share.reference) == (3.5 * GB, 3.5 * GB, 7 * GB, 28 * GB)
    assert share.whole == 28 * GB and share.certain == 56 * GB  # whole and reference, before the first step
    assert share.gathered == (2 * 7 * GB // 32 + 2 * 32_000 * 4096) * 12
    assert share.step == 42 * GB + share.gathered + share.activations and share.total == max(share.step, 56 * GB)
    half = memory_plan.plan(ask(processes=8, sharded=True, bf16=True))
    assert half.bf16_copies == 0 and half.gathered == share.gathered * 8 / 12
    adapters = memory_plan.plan(ask(processes=8, sharded=True, trained=8_000_000, bf16=True, frozen_bytes=2))
    assert adapters.whole == 14 * GB + 16_000_000 and adapters.weights == adapters.whole // 8


def test_logits_are_chunked():
    """On a CPU 96 rows of float32 logits of 32,000 tokens (12 MB), though the batch has 4,096."""
    size = memory_plan.activations(ask()) - memory_plan.activations(ask(vocabulary=1))
    assert size == 8 * 4096 * 31_999 + 4 * 4 * (96 * 32_000 - 4096)


def test_alternatives_by_hand():
    lora = ask(parameters=7 * GB + 20_000_000, trained=20_000_000, sequences=8)
    found = memory_plan.alternatives(ask(sequences=8), 4, lora)
    assert list(found) == ["--lora rank=8", "--micro-batch 1", "--context 512", "--gradient-checkpointing", "all of these"]
    assert found["--lora rank=8"] == memory_plan.plan(lora).total and found["--micro-batch 1"] == memory_plan.plan(ask(sequences=2)).total
    assert found["--context 512"] == memory_plan.plan(ask(sequences=8, context=512)).total
    assert found["--gradient-checkpointing"] == memory_plan.plan(ask(sequences=8, checkpointing=True)).total
    least = ask(parameters=7 * GB + 20_000_000, trained=20_000_000, sequences=2, context=512, checkpointing=True)
    assert found["all of these"] == memory_plan.plan(least).total == min(found.values())
    assert memory_plan.alternatives(ask(context=512, checkpointing=True), 1, None) == {}


def test_the_plan_in_words():
    found = memory_plan.Plan(28 * GB, 0, 28 * GB, 56 * GB, 0, 8 * GB)
    (one,) = memory_plan.lines(found, "card", 120 * GB, {})
    assert "weights 28, gradients 28, optimizer 56, activations 8 (an estimate); together 120; free on card: 120" in one
    _, maybe = memory_plan.lines(found, "card", 115 * GB, {"--micro-batch 1": 90 * GB})
    assert maybe.startswith("this may not fit: --micro-batch 1 (90 GB); or use")
    assert memory_plan.lines(found, "card", 100 * GB, {})[1].startswith("this will not fit: use")
    shared = memory_plan.Plan(2 * GB, 0, 2 * GB, 4 * GB, 3 * GB, GB, GB, 16 * GB)
    (one,) = memory_plan.lines(shared, "card", 19 * GB, {})
    assert "together 13; before the model is sharded 19; free on card: 19" in one
    assert memory_plan.lines(shared, "card", 19 * GB - 1, {})[1].startswith("this will not fit")


# ---------------------------------------------------------------------------------------------- against models


@pytest.mark.parametrize("kind", KINDS)
def test_the_plan_of_a_tiny_model_is_its_parameters_times_bytes(kind):
    model = random_model(kind)
    size = sum(p.numel() for p in model.parameters())
    found = memory_plan.plan(memory_plan.request(model.config, run("ascent_kl_general"), 32, torch.float32))
    assert (found.weights, found.gradients, found.optimizer, found.reference) == (4 * size, 4 * size, 8 * size, 4 * size)
    assert memory_plan.request(model.config, run("ascent_kl_general"), 32, torch.float32).sequences == 8
    assert memory_plan.request(model.config, run(), 32, torch.float32).sequences == 4


@pytest.mark.parametrize("kind", KINDS)
def test_the_plan_counts_adapters_as_peft_makes_them(kind):
    model = random_model(kind)
    base = sum(p.numel() for p in model.parameters())
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear"))
    asked = memory_plan.request(
        random_model(kind).config, run("ascent_kl_general", lora=settings.LoraSettings(4, 8.0), bf16=True), 32, torch.bfloat16
    )
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert (asked.trained, asked.parameters) == (trained, base + trained)
    assert memory_plan.plan(asked).weights == 4 * trained + 2 * base and not asked.reference


@pytest.mark.parametrize("kind", KINDS)
def test_activations_are_near_what_a_backward_pass_keeps(kind):
    """At least as much, and no more than two and a half times."""
    config = KINDS[kind]
    wide = {"n_embd": 64, "n_head": 4} if kind == "gpt2" else {"hidden_size": 64, "intermediate_size": 160, "num_attention_heads": 4}
    grouped = {"num_key_value_heads": 2, "head_dim": 16} if hasattr(config, "head_dim") and config.head_dim else {}
    heads = {"num_key_value_heads": 4} if kind == "llama" else {}
    config = type(config).from_dict(config.to_dict() | wide | grouped | heads | {"vocab_size": 300})
    model = AutoModelForCausalLM.from_config(config).train()
    weights, kept = {p.data_ptr() for p in model.parameters()}, {}

    def pack(x):
        storage = x.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        states = fused.hidden_states(model, torch.randint(0, 300, (2, 128)))
    found = sum(size for size, _ in kept.values())
    asked = memory_plan.request(config, run(micro_batch=2), 128, torch.float32)
    head = 2 * 4 * 300 * 64 + 4 * 4 * 256 * 300
    assert states.requires_grad and found <= memory_plan.activations(asked) - head <= 2.5 * found


def test_nothing_is_loaded_to_plan():
    """A model of 7e9 parameters is counted without memory for it."""
    config = LlamaConfig(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32, vocab_size=32_000)
    assert all(p.is_meta for p in memory_plan.empty(config).parameters())
    assert memory_plan.request(config, run(), 4096, torch.float32).parameters == 6_738_415_616


# ---------------------------------------------------------------------------------------------- against the machine


def test_what_certainly_does_not_fit_is_refused(monkeypatch, tmp_path):
    config = random_model("llama").config
    asked = memory_plan.plan(memory_plan.request(config, run(), 32, torch.float32))
    for free, lines in ((asked.total, 1), (asked.total - 1, 2), (asked.certain, 2)):
        monkeypatch.setattr(memory_plan, "available", lambda free=free: ("here", free))
        assert len(memory_plan.check(config, run(), 32, tmp_path)) == lines
    monkeypatch.setattr(memory_plan, "available", lambda: ("here", asked.certain - 1))
    with pytest.raises(ValueError, match=r"will not fit: --lora rank=8 .*, --micro-batch 1 .* GPU with more memory"):
        memory_plan.check(config, run(), 32, tmp_path)


def test_a_full_disk_is_found_before_training(monkeypatch, tmp_path):
    config = random_model("llama").config
    size = 4 * memory_plan.request(config, run(), 32, torch.float32).parameters
    for free, lora, fits in ((size, None, True), (size - 1, None, False), (0, settings.LoraSettings(2, 4.0), True)):
        monkeypatch.setattr(memory_plan.shutil, "disk_usage", lambda _, free=free: type("", (), {"free": free}))
        if fits:
            memory_plan.check(config, run(lora=lora), 32, tmp_path)
        else:
            with pytest.raises(ValueError, match="free on the disk of --out"):
                memory_plan.check(config, run(lora=lora), 32, tmp_path)


def test_a_disk_too_full_for_checkpoints_is_found(monkeypatch, tmp_path):
    config = random_model("llama").config
    size = 24 * memory_plan.request(config, run(), 32, torch.float32).parameters
    for free, fits in ((size, True), (size - 1, False)):
        monkeypatch.setattr(memory_plan.shutil, "disk_usage", lambda _, free=free: type("", (), {"free": free}))
        memory_plan.check(config, run(), 32, tmp_path)
        if fits:
            memory_plan.check(config, run(), 32, tmp_path, tmp_path)
        else:
            with pytest.raises(ValueError, match="free on the disk of --checkpoints"):
                memory_plan.check(config, run(), 32, tmp_path, tmp_path)


def test_free_memory_is_this_machine_s(monkeypatch):
    """Shared by the processes that a launcher started on it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    where, free = memory_plan.available()
    assert where == "this machine" and 2**28 < free < 2**45
    monkeypatch.setattr(memory_plan.psutil, "virtual_memory", lambda: type("", (), {"available": 9}))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert memory_plan.available() == ("this machine for each of 2 processes", 4)


def test_what_the_launcher_says_is_planned(monkeypatch):
    """FSDP where there is a GPU; accelerate does not shard on a CPU."""
    config = random_model("llama").config
    for name in ("ACCELERATE_USE_FSDP", "FSDP_ACTIVATION_CHECKPOINTING"):
        monkeypatch.setenv(name, "true")
    for device, shared in (("cpu", False), ("cuda", True)):
        place = type("", (), {"num_processes": 2, "device": torch.device(device)})
        monkeypatch.setattr(memory_plan.loop, "place", lambda place=place: place)
        asked = memory_plan.request(config, run(), 32, torch.float32)
        assert (asked.processes, asked.sharded, asked.checkpointing, asked.device) == (2, shared, shared, device)


def test_contexts():
    """4,096 or what the model reads; never more than that, nor less than the shortest chunk."""
    short, long = LlamaConfig(max_position_embeddings=64), LlamaConfig(max_position_embeddings=131_072)
    assert settings.context_of(short, None) == 64 and settings.context_of(long, None) == 4096 and settings.context_of(long, 8192) == 8192
    for wanted in (65, 4, 0, -1):
        with pytest.raises(ValueError, match="choose 5 to 64 tokens"):
            settings.context_of(short, wanted)


def test_only_frozen_weights_may_stay_in_bfloat16():
    half, full, lora = torch.bfloat16, torch.float32, settings.LoraSettings(2, 4.0)
    assert settings.weight_dtype(run(lora=lora, bf16=True), half) == half
    for one, stored in ((run(bf16=True), half), (run(lora=lora), half), (run(lora=lora, bf16=True), full)):
        assert settings.weight_dtype(one, stored) == full
