"""Adapters on disk, those of other programs too: checked, and put on their model."""

from __future__ import annotations

import textwrap
import warnings
from pathlib import Path

from peft import PeftConfig, PeftModel, TaskType, get_peft_model
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from torch import nn

from unlearn_utils.engine import weight_files

SHOWN = 300  # letters of what a library says


def config_of(folder: Path) -> PeftConfig:
    """Return the config of a folder of adapters, which are looked at too.

    Raises:
        ValueError: there are no adapters, or damaged ones, or such as this package does not measure
            rightly.
    """
    file = folder / CONFIG_NAME
    try:
        config = PeftConfig.from_pretrained(folder)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file}: no config of adapters: {error!r}") from error
    if not config.peft_type or not config.base_model_name_or_path:
        raise ValueError(f"{file}: no config of adapters: peft_type or the base model is missing")
    if config.is_prompt_learning:
        raise ValueError(
            f"{folder} holds {config.peft_type.lower()}, which changes no weight of a model; give "
            "a model, or adapters of its weights such as LoRA"
        )
    if config.task_type not in (None, TaskType.CAUSAL_LM):
        raise ValueError(
            f"{folder} holds adapters for {config.task_type}, not for a language model"
        )
    _check_weights(folder / SAFETENSORS_WEIGHTS_NAME)
    return config


def _check_weights(file: Path) -> None:
    """Raise ValueError if a file of adapters is missing, damaged or empty."""
    if not file.exists():
        raise ValueError(
            f"{file.parent}: no {file.name}, so no adapters; .bin files, which can run code, are "
            "not read"
        )
    if not weight_files.tensors_of_file(file):
        raise ValueError(f"{file}: empty: no weight of adapters is in it")


def put_on(model: nn.Module, folder: Path) -> PeftModel:
    """Return a model with the adapters of a folder, which are not trained.

    Raises:
        ValueError: they are not for this model, or as `config_of`.
    """
    config = config_of(folder)
    config.inference_mode = True
    misfit = f"{folder}: these adapters do not fit their model, {config.base_model_name_or_path}"
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The PEFT config's `base_model_name_or_path`")
            adapted = get_peft_model(model, config)
        found = adapted.load_adapter(folder, "default")
    except (KeyError, RuntimeError, ValueError) as error:
        said = textwrap.shorten(str(error), SHOWN)
        raise ValueError(
            f"{misfit}: {said} (if tokens were added, merge the adapters into it first)"
        ) from error
    lost = [*found.missing_keys, *found.unexpected_keys]
    if lost:
        raise ValueError(f"{misfit}: {len(lost)} weights of theirs, {min(lost)} among them")
    return adapted
