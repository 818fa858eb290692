"""The settings of a run, and how much memory it will take: from the model's config alone, before anything is loaded."""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil
import torch
from torch import nn
from transformers import AutoModelForCausalLM, Conv1D, PreTrainedConfig

from unlearn_utils.app import settings
from unlearn_utils.core import efficiency, fused, methods
from unlearn_utils.engine import distributed

# Bytes a layer keeps for its backward pass, for each token, in float32: measured on Llama, GPT-NeoX, GPT-2, Qwen3, Gemma 2 and Gemma 3 as
# 42 to 72 times the hidden width and 8 to 20 times the intermediate one. Under bfloat16 autocast it was 0.65 to 0.85 of that.
# With layers computed again the peak of a step of 8 layers was 0.3 to 0.8 of the estimate, and 0.13 to 0.17 of the peak without.
PER_HIDDEN, PER_INTERMEDIATE, HALF = 75, 20, 0.85
WITH_LORA = 1.4  # resident memory of a Llama of 6e7 parameters on a CPU, in float32: temporary results that are given back late
PER_HEAD = 12  # and for each token, head and token before it, where attention is not fused
CHUNKS = 4  # chunks of logits at a time: `objectives.fused_loss`
FEWER = 512  # tokens of a chunk, to suggest where memory is short


# ---------------------------------------------------------------------------------------------- memory


@dataclass(frozen=True)
class Request:
    """All that the plan of one process depends on. trained: parameters that change; sequences: documents at a time, of both sides; bf16:
    autocast; checkpointing: layers are computed again in the backward pass; processes, sharded: how many, and whether by FSDP."""

    parameters: int
    trained: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    vocabulary: int
    context: int
    sequences: int
    bf16: bool = False
    frozen_bytes: int = 4  # of a parameter that does not change
    reference: bool = False  # whether KL needs a second copy
    fused: bool = True  # attention
    device: str = "cpu"
    checkpointing: bool = False
    processes: int = 1
    sharded: bool = False


@dataclass(frozen=True)
class Plan:
    """Bytes of one training step at its peak, in one process. Activations, bfloat16 copies (of all weights, of which some need none) and
    what FSDP gathers are estimates. whole: the model before it is sharded, measured beside no gradient and no optimizer."""

    weights: int
    bf16_copies: int
    gradients: int
    optimizer: int
    reference: int
    activations: int
    gathered: int = 0
    whole: int = 0

    @property
    def step(self) -> int:
        """Everything of a step."""
        return sum(asdict(self).values()) - self.whole

    @property
    def total(self) -> int:
        """The most at a time: a step, or what lies there before it."""
        return max(self.step, self.whole + self.reference)

    @property
    def certain(self) -> int:
        """What is counted, not estimated."""
        return max(self.weights + self.gradients + self.optimizer + self.reference, self.whole + self.reference)


def plan(ask: Request) -> Plan:
    """Float32 for what is trained, its gradient and AdamW's two moments (4 + 4 + 8 bytes); autocast's copies in bfloat16 (2 bytes).

    Several processes: each has a second copy of the gradients, to sum them in (DDP); or its share of weights, gradients and moments, and
    what is gathered of the others (FSDP). The reference is a whole float32 copy in each; its hidden states, up to
    `training.REFERENCE_BYTES`, are not counted.
    """
    share = ask.processes if ask.sharded else 1
    weights = 4 * ask.trained + ask.frozen_bytes * (ask.parameters - ask.trained)
    summed = ask.processes > 1 and not ask.sharded
    return Plan(
        weights=weights // share,
        bf16_copies=2 * ask.parameters if ask.bf16 and ask.frozen_bytes == 4 and not ask.sharded else 0,
        gradients=4 * ask.trained * (2 if summed else 1) // share,
        optimizer=8 * ask.trained // share,
        reference=4 * ask.parameters if ask.reference else 0,
        activations=activations(ask),
        gathered=gathered(ask) if ask.sharded else 0,
        whole=weights if ask.sharded else 0,
    )


def gathered(ask: Request) -> int:
    """Estimated bytes of what FSDP has whole at a time: two layers, embeddings and head; weights and gradients in the type of the products,
    and gradients once more in float32 to be summed."""
    return (2 * ask.parameters // ask.layers + 2 * ask.vocabulary * ask.hidden) * ((2 if ask.bf16 else 4) * 2 + 4)


def activations(ask: Request) -> int:
    """Estimated bytes: tokens x layers x (75 hidden + 20 intermediate), times 0.85 in bfloat16 and 1.4 with LoRA, and 12 x heads x context
    a token and layer where attention is not fused, all for one layer if the others are computed again, and their float32 inputs; then the
    head's float32 gradient of two sides and four chunks of float32 logits."""
    lora = ask.trained < ask.parameters
    a_token = (PER_HIDDEN * ask.hidden + PER_INTERMEDIATE * ask.intermediate) * (HALF if ask.bf16 else 1) * (WITH_LORA if lora else 1)
    a_token += 0 if ask.fused else PER_HEAD * ask.heads * ask.context
    head = 0 if lora else 2 * 4 * ask.vocabulary * ask.hidden
    rows = min(fused.chunk_rows(ask.vocabulary, torch.device(ask.device)), ask.sequences * ask.context)
    kept = a_token + 4 * ask.hidden * ask.layers if ask.checkpointing else ask.layers * a_token
    return int(ask.sequences * ask.context * kept) + head + CHUNKS * 4 * rows * ask.vocabulary


def request(config: PreTrainedConfig, run: settings.RunSettings, context: int, stored: torch.dtype) -> Request:
    """The request of a run. stored: the type of the weights on disk."""
    text, model, retain = config.get_text_config(), empty(config), methods.get_method(run.method).retain
    parameters, lora = efficiency.parameter_count(model), lora_parameters(model, run.lora.rank) if run.lora else 0
    return Request(
        parameters=parameters + lora,
        trained=lora or parameters,
        hidden=text.hidden_size,
        intermediate=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,  # GPT-2 leaves it out
        layers=text.num_hidden_layers,
        heads=text.num_attention_heads,
        vocabulary=text.vocab_size,
        context=context,
        sequences=run.micro_batch * (2 if retain else 1),
        bf16=run.bf16,
        frozen_bytes=settings.weight_dtype(run, stored).itemsize,
        reference=retain == "kl" and not run.lora,
        fused=attention_is_fused(model.config),
        device=distributed.process_state().device.type,
        checkpointing=run.gradient_checkpointing or distributed.launcher_checkpoints(),
        processes=distributed.process_state().num_processes,
        sharded=distributed.sharded(),
    )


def attention_is_fused(config: PreTrainedConfig) -> bool:
    """Whether attention keeps no matrix of token by token; on a CPU it does where it has dropout, as in GPT-2."""
    text = config.get_text_config()
    dropout = getattr(text, "attn_pdrop", 0) or getattr(text, "attention_dropout", 0)
    return config._attn_implementation != "eager" and (torch.cuda.is_available() or not dropout)


def empty(config: PreTrainedConfig) -> nn.Module:
    """The model without memory for its weights (PyTorch's meta device)."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def lora_parameters(model: nn.Module, rank: int) -> int:
    """Parameters of LoRA adapters on every linear layer but the head: rank x (inputs + outputs) of each."""
    head = model.get_output_embeddings()
    layers = [m for m in model.modules() if isinstance(m, (nn.Linear, Conv1D)) and m is not head]
    return sum(rank * sum(layer.weight.shape) for layer in layers)


# ---------------------------------------------------------------------------------------------- against the machine


def available() -> tuple[str, int]:
    """Where training would run, and the bytes that are free there now for one process. A container's own limit is not seen."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name(), torch.cuda.mem_get_info()[0]
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # of the launcher
    where = f"this machine for each of {beside} processes" if beside > 1 else "this machine"
    return where, psutil.virtual_memory().available // beside


def alternatives(ask: Request, micro_batch: int, lora: Request | None) -> dict[str, int]:
    """What to change for less memory, and the total bytes of a step then. lora: the request with adapters, None if this one has them."""
    changes = {"--micro-batch 1": {"sequences": ask.sequences // micro_batch}} if micro_batch > 1 else {}
    if ask.context > FEWER:
        changes[f"--context {FEWER}"] = {"context": FEWER}
    if not ask.checkpointing:
        changes["--gradient-checkpointing"] = {"checkpointing": True}
    found = {"--lora rank=8": lora} if lora else {}
    found |= {name: replace(ask, **change) for name, change in changes.items()}
    if len(found) > 1:
        found["all of these"] = replace(lora or ask, **{k: v for change in changes.values() for k, v in change.items()})
    return {name: plan(new).total for name, new in found.items()}


def check(config: PreTrainedConfig, run: settings.RunSettings, context: int, folder: Path, checkpoints: Path | None = None) -> list[str]:
    """The plan in words. Raises ValueError if what is certain of it does not fit, in memory or on a disk: of `folder`, of `checkpoints`."""
    stored = config.dtype or torch.float32  # as the config says: the weights may not be here yet
    ask = request(config, run, context, stored)
    lora = None if run.lora else request(config, replace(run, lora=settings.LoraSettings(8, 16.0)), context, stored)
    found, (where, free) = plan(ask), available()
    told = lines(found, where, free, alternatives(ask, run.micro_batch, lora))
    if found.certain > free:
        raise ValueError(" ".join(told))
    written = 0 if run.lora and not run.merge else stored.itemsize * ask.parameters
    if written > (room := shutil.disk_usage(folder).free):
        raise ValueError(f"the new model takes {written / 1e9:.2f} GB, and {room / 1e9:.2f} GB are free on the disk of --out")
    kept = 2 * 12 * ask.trained  # weights and moments in float32; the last checkpoint goes when the next is whole
    if checkpoints and kept > (room := shutil.disk_usage(checkpoints).free):
        raise ValueError(f"checkpoints take {kept / 1e9:.2f} GB, and {room / 1e9:.2f} GB are free on the disk of --checkpoints")
    return told


def lines(found: Plan, where: str, free: int, changes: dict[str, int]) -> list[str]:
    """The plan in words, in GB (1e9 bytes); what to change if it does not fit."""
    parts = ", ".join(f"{name.replace('_', ' ')} {size / 1e9:.3g}" for name, size in asdict(found).items() if size and name != "whole")
    before = f"; before the model is sharded {(found.whole + found.reference) / 1e9:.3g}" if found.whole else ""
    told = [f"memory, GB: {parts} (an estimate); together {found.step / 1e9:.3g}{before}; free on {where}: {free / 1e9:.3g}"]
    if found.total > free:
        verdict = "will not" if found.certain > free else "may not"
        options = ", ".join(f"{change} ({size / 1e9:.3g} GB)" for change, size in changes.items())
        told.append(f"this {verdict} fit: {options + '; or ' if options else ''}use a machine or GPU with more memory, or several GPUs")
    return told
