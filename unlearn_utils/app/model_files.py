"""A user's own documents and model: read, checked, cut into chunks, loaded, unlearned, measured and saved."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from peft import PeftConfig, PeftModel
from torch import nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedTokenizerBase

from unlearn_utils.core import fused
from unlearn_utils.data import hub
from unlearn_utils.engine import distributed, models

SMALL = (*hub.BESIDE_WEIGHTS, "README.md")  # of a hub repository: what is read before the weights
VOCABULARIES = ["tokenizer.json", "*.model", "vocab.*"]  # files of which a tokenizer has one


# ---------------------------------------------------------------------------------------------- models


class Checkpoint(NamedTuple):
    """A model on disk: its name as given, its folder, its commit on the hub (None: a local folder), LoRA adapters on top of it."""

    name: str
    folder: Path
    commit: str | None = None
    adapters: Path | None = None


def find(
    name: str, revision: str | None = None, patterns: Sequence[str] = SMALL
) -> Checkpoint:
    """Return the checkpoint of a local folder, or of a hub repository.

    Of a repository the files of these patterns are downloaded, unless cached; they are those of
    main where no revision is given.

    Raises:
        ValueError, OSError: there is neither, or a revision is given of a folder.
    """
    if not Path(name).is_dir():
        try:
            folder = hub.download(name, "model", revision, patterns)
        except (ValueError, OSError) as error:
            raise ValueError(
                f"{name}: no such folder, and the hub does not give it: {error}"
            ) from error
        return Checkpoint(name, folder, commit=folder.name)
    if revision:
        raise ValueError(f"--revision is for a model of the hub, and {name} is a folder")
    folder = Path(name).resolve()
    if not (folder / "adapter_config.json").exists():
        return Checkpoint(name, folder)
    adapters = PeftConfig.from_pretrained(folder)
    base = find(adapters.base_model_name_or_path, adapters.revision, patterns)
    return base._replace(name=name, adapters=folder)


def fetch(checkpoint: Checkpoint) -> None:
    """Downloads the weights of a hub's model, unless cached; `find` left them."""
    if checkpoint.commit:
        find(checkpoint.name, None if checkpoint.adapters else checkpoint.commit, [hub.WEIGHTS])


def config_of(checkpoint: Checkpoint) -> PreTrainedConfig:
    """Its config. Raises ValueError if there is none, if it needs code of its own, or if its weights are quantized."""
    try:
        config = AutoConfig.from_pretrained(checkpoint.folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"{checkpoint.name}: no usable config.json: {error}") from error
    if hasattr(config, "quantization_config"):
        raise ValueError(f"{checkpoint.name}: its weights are quantized; take the model that they were made from")
    return config


def tokenizer_of(checkpoint: Checkpoint) -> PreTrainedTokenizerBase:
    """Its tokenizer; one without a padding token pads with the end token (else with token 0), and padding never counts.

    Raises ValueError if there is none, or a damaged one.
    """
    if not any(file for pattern in VOCABULARIES for file in checkpoint.folder.glob(pattern)):  # transformers would make an empty one
        raise ValueError(f"{checkpoint.name}: no tokenizer; add tokenizer.json and tokenizer_config.json of the model")
    try:
        return models.load_tokenizer(checkpoint.folder)
    except Exception as error:  # the tokenizers package raises nothing narrower for a damaged file
        raise ValueError(f"{checkpoint.name}: its tokenizer cannot be read: {error!r}") from error


def stored_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """Return the type of its weights on disk.

    Raises:
        ValueError: there are none, or damaged ones.
    """
    return models.stored_dtype(checkpoint.folder, checkpoint.name)


def load(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Return the model, in evaluation mode, on the GPU if there is one.

    dtype: the type of the weights in memory.

    Raises:
        ValueError: weights are missing or damaged, or the model's logits are not those that the
            losses compute from hidden states and head.
    """
    stored_dtype(checkpoint)  # says what is wrong with the files, before they are read
    model = models.load(checkpoint.folder, dtype, checkpoint.name)
    if checkpoint.adapters:
        model = PeftModel.from_pretrained(model, checkpoint.adapters)
    check_head(model.to(distributed.process_state().device).eval(), checkpoint.name)
    return model


@torch.no_grad()
def check_head(model: nn.Module, name: str) -> None:
    """Raises ValueError if the losses, which read hidden states and head apart, would not be those of the model's own logits."""
    ids = torch.arange(8, device=model.device)[None]
    own = model(input_ids=ids).logits.float()
    ours = fused.head_logits(fused.hidden_states(model, ids), fused.head_of(model))
    if (ours - own).norm() > 0.02 * own.norm():  # a model that diverged, all NaN, passes: it is measured, and found out
        raise ValueError(f"{name}: its output head is none that this package knows (linear, scaled, soft-capped)")
