"""The settings of a run of `unlearn`, and what follows from them and the model's config."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedConfig

from unlearn_utils.core.methods import Method
from unlearn_utils.data import tokens
from unlearn_utils.engine import architecture
from unlearn_utils.profiles import Unlearning

PAPER_CONTEXT = 4096  # tokens of a chunk where the model reads so many


@dataclass(frozen=True)
class LoraSettings:
    """The size of LoRA adapters (arXiv 2106.09685).

    Attributes:
        rank: of each adapter.
        alpha: adapters are scaled by alpha / rank.
    """

    rank: int
    alpha: float


@dataclass(frozen=True)
class RunSettings:
    """Every setting of a run but model, documents and context.

    Attributes:
        method: one of `methods.every()`, or your own.
        recipe: learning rate, epochs, batch and so on.
        micro_batch: chunks at a time in each process.
        seed: decides the order of the chunks, random labels and the adapters' first weights.
        lora: train adapters of this size alone; None: every weight.
        merge: adapters are added to the weights, which are then written whole.
        bf16: products are in bfloat16, under autocast.
        gradient_checkpointing: layers are computed again in the backward pass, for less memory.
    """

    method: Method
    recipe: Unlearning
    micro_batch: int
    seed: int
    lora: LoraSettings | None
    merge: bool
    bf16: bool
    gradient_checkpointing: bool = False


def context_of(config: PreTrainedConfig, wanted: int | None) -> int:
    """Return the tokens of a chunk: as wanted, else 4,096, or what the model reads if it is less.

    Raises:
        ValueError: more are wanted than the model reads, or too few to make a chunk; or the model
            reads so few.
    """
    most = architecture.longest_text(config)
    if most is None:
        most = max(PAPER_CONTEXT, wanted or 0)
    if most < tokens.SHORTEST:
        raise ValueError(
            f"config.json: the model reads {most} tokens at a time; a chunk has {tokens.SHORTEST} "
            "at least"
        )
    if wanted is None:
        return min(PAPER_CONTEXT, most)
    if not tokens.SHORTEST <= wanted <= most:
        raise ValueError(
            f"--context {wanted}: choose {tokens.SHORTEST} to {most} tokens, what the model reads"
        )
    return wanted


def weight_dtype(run: RunSettings, stored: torch.dtype) -> torch.dtype:
    """Return the type to load weights in: float32, so that no update is rounded away.

    What LoRA does not train may stay in bfloat16, if it is stored so and products are so.

    stored: the type of the weights on disk.
    """
    if run.lora is not None and run.bf16 and stored == torch.bfloat16:
        return torch.bfloat16
    return torch.float32
