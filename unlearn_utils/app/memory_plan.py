"""How much memory a run will take, from the model's empty modules, before anything is loaded.

`request_of` reads what the plan depends on, `plan` counts and estimates bytes, `check` compares
them with the machine and says them in words.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil
import torch
from torch import nn
from transformers import PreTrainedConfig

from unlearn_utils.app import lora_adapters, settings
from unlearn_utils.app.settings import LoraSettings, RunSettings
from unlearn_utils.core import efficiency, fused
from unlearn_utils.engine import adapters, architecture, distributed, training
from unlearn_utils.engine.architecture import empty_model

GB = 1e9
FLOAT32, BFLOAT16, MOMENTS = 4, 2, 8  # bytes of a number; of AdamW's two moments

# Bytes that a layer keeps for its backward pass, for each token, in float32. Measured on Llama,
# GPT-NeoX, GPT-2, Qwen3, Gemma 2 and Gemma 3 as 42 to 72 times the hidden width and 8 to 20 times
# the intermediate one (of 130 random kinds the whole estimate is 0.3 to 2.5 times what is kept).
# Under bfloat16 autocast it was 0.65 to 0.85 of that. With layers computed again the peak of a step
# of 8 layers was 0.3 to 0.8 of the estimate, and 0.13 to 0.17 of the peak without.
PER_HIDDEN = 75
PER_INTERMEDIATE = 20
UNDER_BFLOAT16 = 0.85
# Resident memory of a Llama of 6e7 parameters on a CPU, in float32: temporary results that are
# given back late.
WITH_LORA = 1.4
PER_HEAD = 12  # and for each token, head and token before it, where attention is not fused
LOGIT_CHUNKS = 4  # chunks of logits at a time: `core.fused.fused_loss`

SUGGESTED_CONTEXT = 512  # tokens of a chunk, where memory is short
SUGGESTED_LORA = LoraSettings(8, 16.0)


# ------------------------------------------------------------------------- what a plan depends on


@dataclass(frozen=True)
class Request:
    """All that the plan of one process depends on.

    Attributes:
        parameters: of the model, adapters included.
        trained: those that change.
        hidden, intermediate: widths of a layer.
        layers, heads, vocabulary: how many.
        context: tokens of a chunk.
        sequences: chunks at a time, of both sides.
        bf16: products are in bfloat16, under autocast.
        frozen_bytes: of a parameter that does not change.
        reference: the method needs a second copy of the model.
        fused: attention keeps no matrix of token by token.
        device: "cpu" or "cuda".
        checkpointing: layers are computed again in the backward pass.
        processes: how many train together.
        sharded: FSDP divides the model among them.
        few_layers: whole weights of a few layers are trained, and no others.
    """

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
    frozen_bytes: int = FLOAT32
    reference: bool = False
    fused: bool = True
    device: str = "cpu"
    checkpointing: bool = False
    processes: int = 1
    sharded: bool = False
    few_layers: bool = False

    @property
    def lora(self) -> bool:
        """Whether adapters alone are trained."""
        return self.trained < self.parameters and not self.few_layers


def request_of(
    config: PreTrainedConfig, run: RunSettings, context: int, stored: torch.dtype
) -> Request:
    """Return the request of a run.

    stored: the type of the weights on disk.
    """
    model = empty_model(config)
    sizes = architecture.sizes_of(model)
    parameters = efficiency.parameter_count(model)
    trained = parameters
    if run.lora is not None:
        trained = lora_parameters(model, run.lora.rank)
        parameters += trained
    elif run.method.early:
        trained = sum(map(efficiency.parameter_count, training.layers_trained_early(model)))
    process_state = distributed.process_state()
    return Request(
        parameters=parameters,
        trained=trained,
        hidden=sizes.hidden,
        intermediate=sizes.intermediate,
        layers=sizes.layers,
        heads=attention_heads(config),
        vocabulary=len(model.get_input_embeddings().weight),
        context=context,
        sequences=run.micro_batch * len(run.method.terms),
        bf16=run.bf16,
        frozen_bytes=settings.weight_dtype(run, stored).itemsize,
        reference=run.method.needs_reference and run.lora is None,
        fused=attention_is_fused(model.config),
        device=process_state.device.type,
        checkpointing=run.gradient_checkpointing or distributed.launcher_checkpoints(),
        processes=process_state.num_processes,
        sharded=distributed.sharded(),
        few_layers=run.method.early and run.lora is None,
    )


def lora_parameters(model: nn.Module, rank: int) -> int:
    """Return the number of parameters of LoRA adapters: rank x (inputs + outputs) of each layer."""
    layers = adapters.adapted_layers(model).values()
    return sum(rank * sum(layer.weight.shape) for layer in layers)


def attention_heads(config: PreTrainedConfig) -> int:
    """Return how many heads a layer has at most; 0 of state-space models, which have none."""
    return architecture.most_of(getattr(config.get_text_config(), "num_attention_heads", None))


def attention_is_fused(config: PreTrainedConfig) -> bool:
    """Return whether attention keeps no matrix of token by token.

    On a CPU it keeps one where it has dropout, as in GPT-2.
    """
    if config._attn_implementation == "eager":
        return False
    stated = config.get_text_config().to_dict().items()
    dropout = any(value for name, value in stated if "att" in name and "drop" in name)
    return torch.cuda.is_available() or not dropout


# -------------------------------------------------------------------------------------- the plan


@dataclass(frozen=True)
class Plan:
    """Bytes of one training step at its peak, in one process.

    Attributes:
        weights, gradients, optimizer, reference: counted.
        bf16_copies: of all weights, of which some need none: an estimate.
        activations: an estimate.
        gathered: what FSDP has whole at a time: an estimate.
        whole: the model before it is sharded, beside no gradient and no optimizer; not a part of
            the step.
    """

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
    def before_step(self) -> int:
        """What lies there before the model is sharded; 0 where it is not sharded."""
        if self.whole == 0:
            return 0
        return self.whole + self.reference

    @property
    def total(self) -> int:
        """The most at a time: a step, or what lies there before it."""
        return max(self.step, self.before_step)

    @property
    def certain(self) -> int:
        """What is counted, not estimated."""
        counted = self.weights + self.gradients + self.optimizer + self.reference
        return max(counted, self.before_step)


def plan(request: Request) -> Plan:
    """Return the plan of a request.

    What is trained is in float32, with its gradient and AdamW's two moments (4 + 4 + 8 bytes);
    autocast's copies are in bfloat16 (2 bytes). Of several processes each has a second copy of the
    gradients, to sum them in (DDP); or its share of weights, gradients and moments, and what is
    gathered of the others (FSDP). The reference is a whole float32 copy in each; its hidden states,
    up to `training.REFERENCE_BYTES`, are not counted. A task vector copies the weights once more
    where it is looked at, but between two steps, when that copy lies where gradients were.
    """
    frozen = request.parameters - request.trained
    weights = FLOAT32 * request.trained + request.frozen_bytes * frozen
    gradients = FLOAT32 * request.trained
    bf16_copies = 0
    if request.bf16 and request.frozen_bytes == FLOAT32 and not request.sharded:
        bf16_copies = BFLOAT16 * request.parameters
    reference = 0
    if request.reference:
        reference = FLOAT32 * request.parameters
    found = Plan(
        weights=weights,
        bf16_copies=bf16_copies,
        gradients=gradients,
        optimizer=MOMENTS * request.trained,
        reference=reference,
        activations=activations(request),
    )
    if request.sharded:
        return replace(
            found,
            weights=weights // request.processes,
            gradients=gradients // request.processes,
            optimizer=found.optimizer // request.processes,
            gathered=gathered(request),
            whole=weights,
        )
    if request.processes > 1:
        return replace(found, gradients=2 * gradients)
    return found


def gathered(request: Request) -> int:
    """Return the estimated bytes of what FSDP has whole at a time.

    These are two layers, embeddings and head: weights and gradients in the type of the products,
    and gradients once more in float32 to be summed.
    """
    two_layers = 2 * request.parameters // request.layers
    ends = 2 * request.vocabulary * request.hidden
    of_product = BFLOAT16 if request.bf16 else FLOAT32
    return (two_layers + ends) * (of_product * 2 + FLOAT32)


def activations(request: Request) -> int:
    """Return the estimated bytes of what is kept for the backward pass.

    Each token and layer keeps 75 hidden + 20 intermediate, times 0.85 in bfloat16 and 1.4 with
    LoRA, and 12 x heads x context where attention is not fused. If layers are computed again, one
    layer keeps all that and the others their float32 inputs. Then the head: its float32 gradient of
    two sides, if it is trained, and four chunks of float32 logits.
    """
    per_token = PER_HIDDEN * request.hidden + PER_INTERMEDIATE * request.intermediate
    per_token *= UNDER_BFLOAT16 if request.bf16 else 1
    per_token *= WITH_LORA if request.lora else 1
    if not request.fused:
        per_token += PER_HEAD * request.heads * request.context
    if request.checkpointing:
        kept = per_token + FLOAT32 * request.hidden * request.layers
    else:
        kept = request.layers * per_token
    predicted = request.sequences * request.context
    head_gradient = 0
    if request.trained == request.parameters:
        head_gradient = 2 * FLOAT32 * request.vocabulary * request.hidden
    device = torch.device(request.device)
    rows = min(fused.chunk_rows(request.vocabulary, device), predicted)
    logits = LOGIT_CHUNKS * FLOAT32 * rows * request.vocabulary
    return int(predicted * kept) + head_gradient + logits


# ----------------------------------------------------------------------------- against the machine


def check(
    config: PreTrainedConfig,
    run: RunSettings,
    context: int,
    folder: Path,
    checkpoints: Path | None = None,
) -> list[str]:
    """Return the plan in words.

    Args:
        folder: on the disk that the new model goes to.
        checkpoints: on the disk that checkpoints go to, if there are any.

    Raises:
        ValueError: what is certain of the plan does not fit, in memory or on a disk.
    """
    stored = config.dtype or torch.float32  # as the config says: the weights may not be here yet
    request = request_of(config, run, context, stored)
    with_lora = None
    if run.lora is None:
        with_lora = request_of(config, replace(run, lora=SUGGESTED_LORA), context, stored)
    found = plan(request)
    where, free = available()
    changes = alternatives(request, run.micro_batch, with_lora)
    lines = describe(found, where, free, changes)
    if run.lora is not None:
        lines.append(lora_adapters.describe(empty_model(config)))
    if found.certain > free:
        raise ValueError(" ".join(lines))
    if run.lora is None or run.merge:
        written = stored.itemsize * request.parameters
        check_disk("the new model takes", written, folder, "--out")
    if checkpoints is not None:
        # weights and moments in float32; the last checkpoint goes when the next is whole
        kept = 2 * (FLOAT32 + MOMENTS) * request.trained
        check_disk("checkpoints take", kept, checkpoints, "--checkpoints")
    return lines


def check_disk(what: str, size: int, folder: Path, option: str) -> None:
    """Check that so many bytes fit on the disk of a folder. Raise ValueError if they do not."""
    free = shutil.disk_usage(folder).free
    if size > free:
        raise ValueError(
            f"{what} {size / GB:.2f} GB, and {free / GB:.2f} GB are free on the disk of {option}"
        )


def available() -> tuple[str, int]:
    """Return where training would run, and the bytes that are free there now for one process.

    A container's own limit is not seen.
    """
    if torch.cuda.is_available():
        return torch.cuda.get_device_name(), torch.cuda.mem_get_info()[0]
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # of the launcher
    where = "this machine"
    if beside > 1:
        where = f"this machine for each of {beside} processes"
    return where, psutil.virtual_memory().available // beside


def alternatives(request: Request, micro_batch: int, with_lora: Request | None) -> dict[str, int]:
    """Return what to change for less memory, and the most bytes at a time then.

    with_lora: the request with adapters; None if this one has them.
    """
    changes = {}
    if micro_batch > 1:
        changes["--micro-batch 1"] = {"sequences": request.sequences // micro_batch}
    if request.context > SUGGESTED_CONTEXT:
        changes[f"--context {SUGGESTED_CONTEXT}"] = {"context": SUGGESTED_CONTEXT}
    if not request.checkpointing:
        changes["--gradient-checkpointing"] = {"checkpointing": True}

    changed = {}
    if with_lora is not None:
        changed[f"--lora rank={SUGGESTED_LORA.rank}"] = with_lora
    least = with_lora or request
    for name, change in changes.items():
        changed[name] = replace(request, **change)
        least = replace(least, **change)
    if len(changed) > 1:
        changed["all of these"] = least
    return {name: plan(one).total for name, one in changed.items()}


def describe(found: Plan, where: str, free: int, changes: dict[str, int]) -> list[str]:
    """Return the plan in words, in GB (1e9 bytes), and what to change if it does not fit.

    Args:
        where, free: of `available`.
        changes: of `alternatives`.
    """
    parts = []
    for name, size in asdict(found).items():
        if size and name != "whole":
            parts.append(f"{name.replace('_', ' ')} {size / GB:.3g}")
    line = f"memory, GB: {', '.join(parts)} (an estimate); together {found.step / GB:.3g}"
    if found.whole:
        line += f"; before the model is sharded {found.before_step / GB:.3g}"
    lines = [f"{line}; free on {where}: {free / GB:.3g}"]
    if found.total > free:
        verdict = "will not" if found.certain > free else "may not"
        options = [f"{change} ({size / GB:.3g} GB)" for change, size in changes.items()]
        advice = "use a machine or GPU with more memory, or several GPUs"
        if options:
            advice = f"{', '.join(options)}; or {advice}"
        lines.append(f"this {verdict} fit: {advice}")
    return lines
