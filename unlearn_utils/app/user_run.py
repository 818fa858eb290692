"""One run on a user's model: load, measure, unlearn, in every process alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from unlearn_utils.app import errors, lora_adapters, model_files, settings, terminal
from unlearn_utils.app.model_files import StoredModel
from unlearn_utils.app.settings import RunSettings
from unlearn_utils.app.user_documents import Tables
from unlearn_utils.engine import distributed, evaluation, models, training
from unlearn_utils.engine.trainer import Watch

# when memory ends, and what to do about it
IN_LOADING = "loading the model: use a machine or GPU with more memory"
IN_TRAINING = (
    "training: lower --micro-batch or --context, or use --gradient-checkpointing or --lora"
)
IN_MEASURING = "measuring: lower --context"
SECONDS_APART = 30  # of two lines of a log on measuring


class FoundModel(NamedTuple):
    """A model on disk, with what is read of it before its weights."""

    stored: StoredModel
    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase


# ----------------------------------------------------------------------------------- find and load


def find(name: str, revision: str | None = None) -> FoundModel:
    """Return the model of that name, whose weights may not be here yet.

    Raises:
        ValueError, OSError: there is none, or it cannot be used.
    """
    with errors.reading(name):
        stored = model_files.find(name, revision)
        return FoundModel(stored, model_files.config_of(stored), model_files.tokenizer_of(stored))


def fetch(stored: StoredModel) -> None:
    """Download its weights, unless they are here, and look at their type.

    Raises:
        ValueError, OSError: there are none, or they are damaged.
    """
    with errors.reading(stored.name):
        model_files.fetch(stored)
        model_files.stored_dtype(stored)


def load(stored: StoredModel, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Return a model, as `model_files.load`.

    Raises:
        MemoryError: it does not fit.
        ValueError: its files cannot be used.
    """
    with errors.reading(stored.name), _explained_memory(IN_LOADING):
        return model_files.load(stored, dtype)


def load_to_train(base: StoredModel, run: RunSettings) -> nn.Module:
    """Return a model as a run begins with it, with adapters if it has some. Raise as `load`."""
    model = load(base, settings.weight_dtype(run, model_files.stored_dtype(base)))
    if run.lora is not None:
        model = lora_adapters.add_adapters(model, run.lora, run.seed, base)
    return model


# ----------------------------------------------------------------------------- measure and unlearn


def load_and_unlearn(
    base: StoredModel,
    chunks: Tables,
    run: RunSettings,
    tokenizer: PreTrainedTokenizerBase,
    watch: Callable[[int, nn.Module], None],
    checkpoints: Path | None = None,
) -> tuple[nn.Module, pd.DataFrame, list[dict]]:
    """Load a model, measure it, and make it unlearn.

    Args:
        base: the model.
        chunks: of each set, as `user_documents.cut_sets` gives them.
        tokenizer: of the model.
        watch: called as watch(step, model) after each step.
        checkpoints: a folder for them, as in `training.Execution`.

    Returns:
        The model, which FSDP leaves sharded; its measurements before, as `measure` gives them; the
        history of `training.unlearn`.

    Raises:
        MemoryError: training runs out of memory.
        ValueError: the model's files cannot be used, or it gives no numbers.
    """
    with distributed.raise_together():
        dtype = settings.weight_dtype(run, model_files.stored_dtype(base))
        model = load(base, dtype)
        before = measure(model, chunks, tokenizer)
        check_finite(base, before)
        if run.lora is not None:
            model = lora_adapters.add_adapters(model, run.lora, run.seed, base)
    history = unlearn(model, base, chunks, run, tokenizer, watch, checkpoints)
    return model, before, history


def unlearn(
    model: nn.Module,
    base: StoredModel,
    chunks: Tables,
    run: RunSettings,
    tokenizer: PreTrainedTokenizerBase,
    watch: Watch,
    checkpoints: Path | None = None,
) -> list[dict]:
    """Unlearn in place and return the history of `training.unlearn`.

    Args:
        model: the base, perhaps with adapters.
        base, chunks, run, tokenizer, watch, checkpoints: as for `load_and_unlearn`.

    Raises:
        MemoryError: training runs out of memory; the message says what to lower.
        ValueError: the model does not compute in bfloat16.
    """
    forget = list(chunks["forget"].ids)
    forget_labels = evaluation.labels_of(chunks["forget"])
    retain, retain_labels = [], []
    if "retain" in chunks:
        retain = list(chunks["retain"].ids)
        retain_labels = evaluation.labels_of(chunks["retain"])
    steps = training.steps_of(len(forget), run.recipe.batch, run.recipe.epochs)
    with _explained_memory(IN_TRAINING):
        with distributed.raise_together():
            job = training.Job(
                method=run.method,
                forget=forget,
                retain=retain,
                recipe=run.recipe,
                pad_id=tokenizer.pad_token_id,
                seed=run.seed,
                reference=_reference(model, base, run),
                labels=training.draw_labels(
                    run.method, forget, model, tokenizer, run.seed, labels=forget_labels
                ),
                nested=True,
                retain_labels=retain_labels,
            )
        execution = training.Execution(
            watch=watch,
            watched=range(1, steps + 1),
            micro_batch=run.micro_batch,
            checkpoints=checkpoints,
            recompute_layers=run.gradient_checkpointing,
        )
        with models.matmul_precision(run.bf16), _explained_precision():
            return training.unlearn(model, job, execution)


def _reference(model: nn.Module, base: StoredModel, run: RunSettings) -> nn.Module | None:
    """Return the original model where the method reads it: a copy, or the one under adapters."""
    if not run.method.needs_reference:
        return None
    if run.lora is not None:
        return lora_adapters.WithoutAdapters(model)
    return load(base)


@contextmanager
def _explained_memory(said: str) -> Iterator[None]:
    """Raise MemoryError where memory ends inside.

    A GPU's end of memory is torch.OutOfMemoryError, a RuntimeError; on a CPU the allocator says so.

    said: what the error says: when, and what to lower.
    """
    try:
        yield
    except RuntimeError as error:
        on_gpu = isinstance(error, torch.OutOfMemoryError)
        if not on_gpu and "DefaultCPUAllocator" not in str(error):
            raise
        raise MemoryError(f"out of memory in {said}. Nothing was written") from error


@contextmanager
def _explained_precision() -> Iterator[None]:
    """Raise ValueError where a kind of model does not compute in bfloat16, inside."""
    try:
        yield
    except RuntimeError as error:
        if "BFloat16" not in str(error):
            raise
        raise ValueError(
            "this kind of model does not train in bfloat16: add --float32. Nothing was written"
        ) from error


def check_finite(base: StoredModel, before: pd.DataFrame) -> None:
    """Check that a model gives numbers, before anything is trained. Raise ValueError if not.

    before: rows of `measure`.
    """
    if not np.isfinite(before.nll).all():
        raise ValueError(
            f"{base.name}: not every probability is finite, before anything is trained; are "
            "its weights damaged?"
        )


def check_numbers(model: StoredModel, rows: pd.DataFrame) -> None:
    """Check that a model gives numbers, in rows of its measures. Raise ValueError if not."""
    if not np.isfinite(rows.nll).all():
        raise ValueError(f"{model.name}: not every probability is finite; are its weights damaged?")


def measure(model: nn.Module, chunks: Tables, tokenizer: PreTrainedTokenizerBase) -> pd.DataFrame:
    """Return a row of measurements for each chunk of each set, as `evaluation.measure`.

    A set is read by itself, so that what stands beside it changes no digit.

    Raises:
        MemoryError: it runs out of memory.
    """
    rows = []
    progress = terminal.Progress(
        "measuring", sum(map(len, chunks.values())), "chunk", apart=SECONDS_APART
    )
    with _explained_memory(IN_MEASURING), closing(progress):
        for table in chunks.values():
            rows.append(evaluation.measure(model, table, tokenizer, seen=progress.advance))
    return pd.concat(rows, ignore_index=True)
