"""The settings of a run, and how much memory it will take: from the model's config alone, before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedConfig

from unlearn_utils.data import tokens
from unlearn_utils.profiles import Unlearning

CONTEXT = 4096  # tokens of a chunk where the model reads so many: the paper's


@dataclass(frozen=True)
class LoraSettings:
    """Rank of the adapters, and alpha: they are scaled by alpha / rank."""

    rank: int
    alpha: float


@dataclass(frozen=True)
class RunSettings:
    """Every setting of a run but model, documents and context. micro_batch: in each process; merge: adapters into whole weights; bf16:
    products under autocast."""

    method: str
    recipe: Unlearning
    micro_batch: int
    seed: int
    lora: LoraSettings | None
    merge: bool
    bf16: bool
    gradient_checkpointing: bool = False


def context_of(config: PreTrainedConfig, wanted: int | None) -> int:
    """Tokens of a chunk: as wanted, else 4,096 or what the model reads. Raises ValueError for more, or too few."""
    most = getattr(config.get_text_config(), "max_position_embeddings", None) or CONTEXT
    if wanted is not None and not tokens.SHORTEST <= wanted <= most:
        raise ValueError(f"--context {wanted}: choose {tokens.SHORTEST} to {most} tokens, what the model reads")
    return wanted or min(CONTEXT, most)


def weight_dtype(run: RunSettings, stored: torch.dtype) -> torch.dtype:
    """The type to load weights in: float32, but bfloat16 for those that LoRA does not train, if they and the products are."""
    return torch.bfloat16 if run.lora and run.bf16 and stored == torch.bfloat16 else torch.float32
