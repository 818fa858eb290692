"""A user's own documents and model: read, checked, cut into chunks, loaded, unlearned, measured and saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from unlearn_utils.app import lora_adapters, model_files, settings, user_documents
from unlearn_utils.core import methods
from unlearn_utils.engine import distributed, evaluation, models, training

# ---------------------------------------------------------------------------------------------- a run


def load_and_unlearn(
    base: model_files.Checkpoint,
    sets: user_documents.Sets,
    run: settings.RunSettings,
    tokenizer: PreTrainedTokenizerBase,
    watch: Callable,
    checkpoints: Path | None = None,
) -> tuple:
    """Loads, measures and unlearns: (model, rows of measurements before, history of `training.unlearn`); in every process alike.

    Float32 weights, so that no update is rounded away; what LoRA does not train may stay in bfloat16. watch: called as watch(step, model).
    checkpoints: as `training.unlearn`. FSDP leaves the model sharded. Raises MemoryError if training runs out of memory.
    """
    with distributed.raise_together():
        model = model_files.load(base, settings.weight_dtype(run, model_files.stored_dtype(base)))
        rows = measure(model, sets, tokenizer)
        if run.lora:
            model = lora_adapters.adapted(model, run.lora, run.seed, base)
    return model, rows, unlearn(model, base, sets, run, tokenizer, watch, checkpoints)


def unlearn(
    model: nn.Module,
    base: model_files.Checkpoint,
    sets: user_documents.Sets,
    run: settings.RunSettings,
    tokenizer: PreTrainedTokenizerBase,
    watch: Callable,
    checkpoints=None,
) -> list[dict]:
    """Unlearns in place; the history of `training.unlearn`. Raises MemoryError, saying what to lower."""
    forget, retain = (list(sets[name].ids) if name in sets else [] for name in ("forget", "retain"))
    steps, pad = training.steps_of(len(forget), run.recipe.batch, run.recipe.epochs), tokenizer.pad_token_id
    try:
        with distributed.raise_together():
            reference = None
            if methods.get_method(run.method).retain == "kl":
                reference = lora_adapters.WithoutAdapters(model) if run.lora else model_files.load(base)
            labels = training.draw_labels(run.method, forget, model, tokenizer, run.seed)
        with models.matmul_precision(run.bf16):
            return training.unlearn(
                *(model, run.method, forget, retain, run.recipe, pad, run.seed, reference, labels, watch, range(1, steps + 1)),
                micro_batch=run.micro_batch,
                checkpoints=checkpoints,
                checkpointing=run.gradient_checkpointing,
            )
    except RuntimeError as error:  # torch.OutOfMemoryError is one, of a GPU; on a CPU the allocator says so
        if not isinstance(error, torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
            raise
        lower = "lower --micro-batch or --context, or use --gradient-checkpointing or --lora"
        raise MemoryError(f"out of memory in training: {lower}. Nothing was written") from error


def measure(model: nn.Module, sets: user_documents.Sets, tokenizer: PreTrainedTokenizerBase) -> pd.DataFrame:
    """One row of measurements for each chunk of each set."""
    return evaluation.measure(model, pd.concat(sets.values(), ignore_index=True), tokenizer)
