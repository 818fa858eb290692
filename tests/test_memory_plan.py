"""The memory plan against hand-computed cases, models, and what a backward pass keeps."""

from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig
from user_models import KINDS, kept_for_backward, random_model

from unlearn_utils.app import memory_plan, settings
from unlearn_utils.app.settings import LoraSettings, RunSettings
from unlearn_utils.core import fused, methods
from unlearn_utils.engine import distributed, training
from unlearn_utils.profiles import Unlearning

GB = 10**9
LORA = LoraSettings(2, 4.0)
SMALL = {
    "hidden": 8,
    "intermediate": 16,
    "layers": 3,
    "heads": 2,
    "vocabulary": 100,
    "context": 10,
    "sequences": 2,
}


def run(method="gradient_ascent", micro_batch=4, lora=None, bf16=False):
    method = methods.get_method(method)
    return RunSettings(method, Unlearning(), micro_batch, 0, lora, merge=False, bf16=bf16)


def ask(**changes):
    """Return a request of a model of 7e9 parameters, as Llama 2; one sequence of 4,096 tokens."""
    llama = {
        "parameters": 7 * GB,
        "trained": 7 * GB,
        "hidden": 4096,
        "intermediate": 11008,
        "layers": 32,
        "heads": 32,
        "vocabulary": 32_000,
        "context": 4096,
        "sequences": 1,
    }
    return memory_plan.Request(**(llama | changes))


def request_of(config, run_settings):
    return memory_plan.request_of(config, run_settings, 32, torch.float32)


# --------------------------------------------------------------------------------- bytes, by hand


def test_every_weight_in_float32_by_hand():
    """4 bytes a weight, 4 its gradient, 8 its moments."""
    found = memory_plan.plan(ask())
    assert (found.weights, found.gradients, found.optimizer) == (28 * GB, 28 * GB, 56 * GB)
    assert found.reference == found.bf16_copies == 0
    assert found.certain == 112 * GB
    assert found.total == found.certain + found.activations


def test_kl_and_bfloat16_by_hand():
    found = memory_plan.plan(ask(reference=True, bf16=True))
    assert found.reference == 28 * GB
    assert found.bf16_copies == 14 * GB
    assert found.certain == 140 * GB
    assert found.total == 154 * GB + found.activations


def test_lora_by_hand():
    """20 million adapter weights in float32, the rest as it is: 2 bytes each.

    An adapter weight takes 16 bytes with its gradient and moments.
    """
    adapters = 20_000_000
    found = memory_plan.plan(
        ask(parameters=7 * GB + adapters, trained=adapters, bf16=True, frozen_bytes=2)
    )
    assert found.weights == 14 * GB + 80_000_000
    assert found.gradients == 80_000_000
    assert found.optimizer == 160_000_000
    assert found.bf16_copies == found.reference == 0


def test_activations_by_hand():
    """2 sequences of 10 tokens, 3 layers: 60 x (75 x 8 + 20 x 16) = 55,200.

    The head takes 2 x 4 x 100 x 8 = 6,400, and 4 chunks of 20 x 100 x 4.
    """
    head, logits = 6_400, 32_000
    assert memory_plan.activations(ask(**SMALL)) == 55_200 + head + logits
    scores = 60 * 12 * 2 * 10
    unfused = memory_plan.activations(ask(**SMALL, fused=False))
    assert unfused == 55_200 + scores + head + logits
    assert memory_plan.activations(ask(**SMALL, bf16=True)) == 46_920 + head + logits
    # LoRA: 1.4 x 55,200, and a frozen head has no gradient
    assert memory_plan.activations(ask(**SMALL, trained=5)) == 77_280 + logits


def test_activations_of_layers_computed_again_by_hand():
    """20 tokens: one layer's 920 bytes and three float32 inputs of 8 each; the rest as it is."""
    head, logits = 6_400, 32_000
    found = memory_plan.activations(ask(**SMALL, checkpointing=True))
    assert found == 20 * (920 + 3 * 4 * 8) + head + logits
    unfused = memory_plan.activations(ask(**SMALL, checkpointing=True, fused=False))
    assert unfused == 20 * (920 + 240 + 96) + head + logits


def test_a_process_beside_others_by_hand():
    """DDP: all of it, and the gradients once more to be summed."""
    found = memory_plan.plan(ask(processes=8, reference=True))
    assert (found.weights, found.gradients) == (28 * GB, 56 * GB)
    assert (found.optimizer, found.reference) == (56 * GB, 28 * GB)


def test_a_share_of_a_sharded_model_by_hand():
    """FSDP: an eighth, but the reference and, at first, the model are whole."""
    found = memory_plan.plan(ask(processes=8, sharded=True, reference=True))
    assert (found.weights, found.gradients) == (3.5 * GB, 3.5 * GB)
    assert (found.optimizer, found.reference) == (7 * GB, 28 * GB)
    assert found.whole == 28 * GB
    assert found.certain == 56 * GB  # whole and reference, before the first step
    assert found.gathered == (2 * 7 * GB // 32 + 2 * 32_000 * 4096) * 12
    assert found.step == 42 * GB + found.gathered + found.activations
    assert found.total == max(found.step, 56 * GB)

    half = memory_plan.plan(ask(processes=8, sharded=True, bf16=True))
    assert half.bf16_copies == 0
    assert half.gathered == found.gathered * 8 / 12

    adapters = {"trained": 8_000_000, "bf16": True, "frozen_bytes": 2}
    few = memory_plan.plan(ask(processes=8, sharded=True, **adapters))
    assert few.whole == 14 * GB + 16_000_000
    assert few.weights == few.whole // 8


def test_logits_are_chunked():
    """On a CPU 96 rows of float32 logits of 32,000 tokens (12 MB) are kept of the batch's 4,096."""
    size = memory_plan.activations(ask()) - memory_plan.activations(ask(vocabulary=1))
    assert size == 8 * 4096 * 31_999 + 4 * 4 * (96 * 32_000 - 4096)


def test_alternatives_by_hand():
    adapters = {"parameters": 7 * GB + 20_000_000, "trained": 20_000_000}
    lora = ask(**adapters, sequences=8)
    found = memory_plan.alternatives(ask(sequences=8), 4, lora)
    changed = {
        "--lora rank=8": lora,
        "--micro-batch 1": ask(sequences=2),
        "--context 512": ask(sequences=8, context=512),
        "--gradient-checkpointing": ask(sequences=8, checkpointing=True),
        "all of these": ask(**adapters, sequences=2, context=512, checkpointing=True),
    }
    assert list(found) == list(changed)
    assert found == {name: memory_plan.plan(one).total for name, one in changed.items()}
    assert found["all of these"] == min(found.values())
    assert memory_plan.alternatives(ask(context=512, checkpointing=True), 1, None) == {}


# -------------------------------------------------------------------------------------- the words


def test_the_plan_in_words():
    found = memory_plan.Plan(28 * GB, 0, 28 * GB, 56 * GB, 0, 8 * GB)
    (line,) = memory_plan.describe(found, "card", 120 * GB, {})
    assert line == (
        "memory, GB: weights 28, gradients 28, optimizer 56, activations 8 (an estimate); "
        "together 120; free on card: 120"
    )
    _, maybe = memory_plan.describe(found, "card", 115 * GB, {"--micro-batch 1": 90 * GB})
    assert maybe.startswith("this may not fit: --micro-batch 1 (90 GB); or use")
    _, never = memory_plan.describe(found, "card", 100 * GB, {})
    assert never.startswith("this will not fit: use")


def test_the_plan_of_a_sharded_model_in_words():
    found = memory_plan.Plan(2 * GB, 0, 2 * GB, 4 * GB, 3 * GB, GB, gathered=GB, whole=16 * GB)
    (line,) = memory_plan.describe(found, "card", 19 * GB, {})
    assert "together 13; before the model is sharded 19; free on card: 19" in line
    _, never = memory_plan.describe(found, "card", 19 * GB - 1, {})
    assert never.startswith("this will not fit")


# ---------------------------------------------------------------------------------- against models


@pytest.mark.parametrize("kind", KINDS)
def test_the_plan_of_a_tiny_model_is_its_parameters_times_bytes(kind):
    model = random_model(kind)
    size = sum(parameter.numel() for parameter in model.parameters())
    request = request_of(model.config, run("ascent_kl_general"))
    found = memory_plan.plan(request)
    assert (found.weights, found.gradients, found.optimizer) == (4 * size, 4 * size, 8 * size)
    assert found.reference == 4 * size
    assert request.sequences == 8
    assert request_of(model.config, run()).sequences == 4


def test_a_reference_is_planned_where_the_method_reads_one():
    config = random_model("llama").config
    for name, method in methods.METHODS.items():
        request = request_of(config, run(name))
        assert request.reference is method.needs_reference
        assert request.sequences == (8 if method.retain is not None else 4)


def test_a_method_of_early_states_is_planned_with_the_layers_that_it_trains():
    """All weights and the reference are there, but gradients and moments of some alone."""
    model = random_model("llama")
    whole = sum(parameter.numel() for parameter in model.parameters())
    with training.trained_alone(model, methods.get_method("rmu")):
        some = sum(one.numel() for one in model.parameters() if one.requires_grad)
    assert 0 < some < whole
    request = request_of(model.config, run("rmu"))
    found = memory_plan.plan(request)
    assert (found.weights, found.reference) == (4 * whole, 4 * whole)
    assert (found.gradients, found.optimizer) == (4 * some, 8 * some)
    assert not request.lora
    both = request_of(model.config, run("ascent_descent_in_distribution"))
    head = 2 * 4 * model.lm_head.weight.numel()
    assert memory_plan.activations(both) - memory_plan.activations(request) == head
    assert request_of(model.config, run("rmu", lora=LORA)).lora


def test_a_task_vector_s_copy_lies_where_gradients_were():
    """When it is looked at, no weight has a gradient: the copy is planned as one."""
    seen = []

    def watch(step, model):
        seen.append([weight.grad for weight in model.parameters()])

    model = random_model("llama")
    recipe = Unlearning(learning_rate=1e-3, batch=1)
    method = methods.get_method("task_vector")
    text = [[3, 4, 5], [6, 7, 8]]
    job = training.Job(method, text, [], recipe, 0, 0, reference=random_model("llama"))
    training.unlearn(model, job, training.Execution(watch=watch, watched=(1, 2)))
    assert len(seen) == 2 and not any(grad is not None for grads in seen for grad in grads)


@pytest.mark.parametrize("kind", KINDS)
def test_the_plan_counts_adapters_as_peft_makes_them(kind):
    settings_given = run("ascent_kl_general", lora=LoraSettings(4, 8.0), bf16=True)
    config = random_model(kind).config
    request = memory_plan.request_of(config, settings_given, 32, torch.bfloat16)

    model = random_model(kind)
    base = sum(parameter.numel() for parameter in model.parameters())
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")
    adapted = get_peft_model(model, lora)
    trained = sum(one.numel() for one in adapted.parameters() if one.requires_grad)
    assert (request.trained, request.parameters) == (trained, base + trained)
    assert memory_plan.plan(request).weights == 4 * trained + 2 * base
    assert not request.reference


def wider(kind):
    """Return the config of a kind with width 64 and four heads."""
    config = KINDS[kind]
    if kind == "gpt2":
        changes = {"n_embd": 64, "n_head": 4}
    else:
        changes = {"hidden_size": 64, "intermediate_size": 160, "num_attention_heads": 4}
    if getattr(config, "head_dim", None):
        changes |= {"num_key_value_heads": 2, "head_dim": 16}
    if kind == "llama":
        changes |= {"num_key_value_heads": 4}
    return type(config).from_dict(config.to_dict() | changes | {"vocab_size": 300})


@pytest.mark.parametrize("kind", KINDS)
def test_activations_are_near_what_a_backward_pass_keeps(kind):
    """At least as much, and no more than two and a half times."""
    config = wider(kind)
    model = AutoModelForCausalLM.from_config(config).train()
    with kept_for_backward(model) as kept:
        states = fused.hidden_states(model, torch.randint(0, 300, (2, 128)))
    assert states.requires_grad
    found = sum(kept.values())
    request = memory_plan.request_of(config, run(micro_batch=2), 128, torch.float32)
    head = 2 * 4 * 300 * 64 + 4 * 4 * 256 * 300
    assert found <= memory_plan.activations(request) - head <= 2.5 * found


def test_nothing_is_loaded_to_plan():
    """A model of 7e9 parameters is counted without memory for it."""
    config = LlamaConfig(
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        vocab_size=32_000,
    )
    assert all(parameter.is_meta for parameter in memory_plan.empty_model(config).parameters())
    request = memory_plan.request_of(config, run(), 4096, torch.float32)
    assert request.parameters == 6_738_415_616


# ----------------------------------------------------------------------------- against the machine


def test_what_certainly_does_not_fit_is_refused(monkeypatch, tmp_path):
    config = random_model("llama").config
    plan = memory_plan.plan(request_of(config, run()))
    for free, lines in ((plan.total, 1), (plan.total - 1, 2), (plan.certain, 2)):
        monkeypatch.setattr(memory_plan, "available", lambda free=free: ("here", free))
        assert len(memory_plan.check(config, run(), 32, tmp_path)) == lines
    monkeypatch.setattr(memory_plan, "available", lambda: ("here", plan.certain - 1))
    said = r"will not fit: --lora rank=8 .*, --micro-batch 1 .* GPU with more memory"
    with pytest.raises(ValueError, match=said):
        memory_plan.check(config, run(), 32, tmp_path)


def set_free_disk(monkeypatch, free):
    usage = SimpleNamespace(free=free)
    monkeypatch.setattr(memory_plan.shutil, "disk_usage", lambda _: usage)


def test_a_full_disk_is_found_before_training(monkeypatch, tmp_path):
    config = random_model("llama").config
    size = 4 * request_of(config, run()).parameters
    for free, lora in ((size, None), (0, LORA)):
        set_free_disk(monkeypatch, free)
        assert memory_plan.check(config, run(lora=lora), 32, tmp_path)
    set_free_disk(monkeypatch, size - 1)
    with pytest.raises(ValueError, match="free on the disk of --out"):
        memory_plan.check(config, run(), 32, tmp_path)


def test_a_disk_too_full_for_checkpoints_is_found(monkeypatch, tmp_path):
    config = random_model("llama").config
    size = 24 * request_of(config, run()).parameters
    set_free_disk(monkeypatch, size)
    assert memory_plan.check(config, run(), 32, tmp_path, tmp_path)
    set_free_disk(monkeypatch, size - 1)
    assert memory_plan.check(config, run(), 32, tmp_path)
    with pytest.raises(ValueError, match="free on the disk of --checkpoints"):
        memory_plan.check(config, run(), 32, tmp_path, tmp_path)


def test_free_memory_is_this_machine_s(monkeypatch):
    """Shared by the processes that a launcher started on it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    where, free = memory_plan.available()
    assert where == "this machine"
    assert 2**28 < free < 2**45
    memory = SimpleNamespace(available=9)
    monkeypatch.setattr(memory_plan.psutil, "virtual_memory", lambda: memory)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert memory_plan.available() == ("this machine for each of 2 processes", 4)


@pytest.mark.parametrize(("device", "shared"), [("cpu", False), ("cuda", True)])
def test_what_the_launcher_says_is_planned(device, shared, monkeypatch):
    """FSDP where there is a GPU; accelerate does not shard on a CPU."""
    config = random_model("llama").config
    for name in ("ACCELERATE_USE_FSDP", "FSDP_ACTIVATION_CHECKPOINTING"):
        monkeypatch.setenv(name, "true")
    state = SimpleNamespace(num_processes=2, device=torch.device(device))
    monkeypatch.setattr(distributed, "process_state", lambda: state)
    request = request_of(config, run())
    assert request.processes == 2
    assert request.sharded is request.checkpointing is shared
    assert request.device == device


# ---------------------------------------------------------------------- what follows from settings


def test_contexts():
    """4,096 or what the model reads; never more than that, nor less than the shortest chunk."""
    short = LlamaConfig(max_position_embeddings=64)
    long = LlamaConfig(max_position_embeddings=131_072)
    assert settings.context_of(short, None) == 64
    assert settings.context_of(long, None) == 4096
    assert settings.context_of(long, 8192) == 8192
    for wanted in (65, 4, 0, -1):
        with pytest.raises(ValueError, match="choose 5 to 64 tokens"):
            settings.context_of(short, wanted)


def test_only_frozen_weights_may_stay_in_bfloat16():
    half, full = torch.bfloat16, torch.float32
    assert settings.weight_dtype(run(lora=LORA, bf16=True), half) == half
    assert settings.weight_dtype(run(bf16=True), half) == full
    assert settings.weight_dtype(run(lora=LORA), half) == full
    assert settings.weight_dtype(run(lora=LORA, bf16=True), full) == full
