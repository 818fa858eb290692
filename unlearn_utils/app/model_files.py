"""A user's model on disk or on the hub: found, checked, loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from peft.utils import CONFIG_NAME
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)

from unlearn_utils.app import adapter_files, errors, option_checks
from unlearn_utils.core import fused
from unlearn_utils.data import hub
from unlearn_utils.engine import distributed, models, weight_files

VOCABULARIES = ("tokenizer.json", "*.model", "vocab.*")  # files of which a tokenizer has one


class StoredModel(NamedTuple):
    """A model on disk.

    Attributes:
        name: as the user gave it.
        folder: holds config, tokenizer and weights.
        commit: on the hub; None: it is a local folder.
        adapters: a folder of adapters on top of it, if there are any.
    """

    name: str
    folder: Path
    commit: str | None = None
    adapters: Path | None = None

    @property
    def name_and_commit(self) -> str:
        """The name, and the commit of a model of the hub, for messages."""
        return f"{self.name}, commit {self.commit}" if self.commit else self.name


# ------------------------------------------------------------------------------------------- find


def find(
    name: str, revision: str | None = None, patterns: Sequence[str] = hub.BEFORE_WEIGHTS
) -> StoredModel:
    """Return the model of a local folder, or of a hub repository.

    Of a repository the files of these patterns are downloaded, unless cached; they are those of
    main where no revision is given. A folder of adapters gives the model that they are for.

    Raises:
        ValueError, OSError: there is neither, or a revision is given of a folder.
    """
    if not Path(name).is_dir():
        return _find_on_hub(name, revision, patterns)
    if revision:
        raise ValueError(f"--revision is for a model of the hub, and {name} is a folder")
    folder = Path(name).resolve()
    if not (folder / CONFIG_NAME).exists():
        return StoredModel(name, folder)
    config = adapter_files.config_of(folder)
    base = Path(config.base_model_name_or_path)
    if base.is_absolute() and not base.is_dir():
        raise ValueError(f"{name}: adapters of {base}, and there is no such folder")
    if (base / CONFIG_NAME).exists():
        raise ValueError(f"{name}: adapters of {base}, which holds adapters itself; merge those")
    if base.is_dir():
        found = find(str(base), None, patterns)
    else:
        found = _find_on_hub(config.base_model_name_or_path, config.revision, patterns)
    return found._replace(name=name, adapters=folder)


def _find_on_hub(name: str, revision: str | None, patterns: Sequence[str]) -> StoredModel:
    """Return a model of the hub, as `find`. Raise ValueError if there is none."""
    folder = option_checks.hub_folder(name, revision, patterns)
    if (folder / CONFIG_NAME).exists():
        raise ValueError(
            f"{name} holds adapters: download it, `hf download {name} --local-dir DIR`, and give "
            "that folder"
        )
    return StoredModel(name, folder, commit=folder.name)


def fetch(stored: StoredModel) -> None:
    """Download the weights of a hub's model, which `find` left, unless they are cached."""
    if not stored.commit:
        return
    revision = stored.commit
    if stored.adapters:
        revision = None  # of a folder, whose adapters know the commit
    find(stored.name, revision, [hub.WEIGHTS])


# ------------------------------------------------------------------------------------------ check


def config_of(stored: StoredModel) -> PreTrainedConfig:
    """Return its config.

    Raises:
        ValueError: there is none, it needs code of its own, it is of no causal language model, or
            its weights are quantized.
    """
    try:
        config = AutoConfig.from_pretrained(stored.folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"{stored.name}: no usable config.json: {error}") from error
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(
            f"{stored.name}: {config.model_type} is no kind of causal language model that "
            "transformers knows (AutoModelForCausalLM)"
        )
    if hasattr(config, "quantization_config"):
        raise ValueError(
            f"{stored.name}: its weights are quantized; take the model that they were made from"
        )
    return config


def tokenizer_of(stored: StoredModel) -> PreTrainedTokenizerBase:
    """Return its tokenizer, with a padding token, as `models.load_tokenizer`.

    Raises:
        ValueError: there is none, or a damaged one.
    """
    files = [file for pattern in VOCABULARIES for file in stored.folder.glob(pattern)]
    if not files:  # transformers would make an empty one
        raise ValueError(
            f"{stored.name}: no tokenizer; add tokenizer.json and tokenizer_config.json of the "
            "model"
        )
    for file in files:
        weight_files.refuse_pointer(file)
    with errors.reading(f"{stored.name}: its tokenizer"):
        return models.load_tokenizer(stored.folder)


def stored_dtype(stored: StoredModel) -> torch.dtype:
    """Return the type of its weights on disk.

    Raises:
        ValueError: there are none, or damaged ones.
    """
    return models.stored_dtype(stored.folder, stored.name)


# ------------------------------------------------------------------------------------------- load


def load(stored: StoredModel, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Return the model, in evaluation mode, on the GPU if there is one.

    dtype: the type of the weights in memory.

    Raises:
        ValueError: as `read`, or the model is no causal language model.
    """
    model = read(stored, dtype)
    try:
        fused.reading_of(model)
    except ValueError as error:
        raise ValueError(f"{stored.name}: {error}") from error
    return model


def read(stored: StoredModel, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Return the model as `load`, with its weights as they are stored.

    `load` looks at what the model gives, and RWKV divides weights when it is called.

    Raises:
        ValueError: weights are missing or damaged, or adapters do not fit.
    """
    model = models.load(stored.folder, dtype, stored.name)
    if stored.adapters:
        model = adapter_files.put_on(model, stored.adapters)
    return model.to(distributed.process_state().device).eval()
