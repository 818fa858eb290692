"""A user's own documents and model: read, checked, cut into chunks, loaded, unlearned, measured and saved."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from huggingface_hub import snapshot_download
from peft import PeftConfig, PeftModel
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedTokenizerBase

from unlearn_utils.core import fused
from unlearn_utils.engine import distributed, models

SMALL = ["*.json", "*.txt", "*.model", "*.jinja", "README.md"]  # of a hub repository: what is read before the weights
WEIGHTS = ["model*.safetensors"]  # no .bin, no second copy in another layout
VOCABULARIES = ["tokenizer.json", "*.model", "vocab.*"]  # files of which a tokenizer has one
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


# ---------------------------------------------------------------------------------------------- models


class Checkpoint(NamedTuple):
    """A model on disk: its name as given, its folder, its commit on the hub (None: a local folder), LoRA adapters on top of it."""

    name: str
    folder: Path
    commit: str | None = None
    adapters: Path | None = None


def find(name: str, revision: str | None = None, patterns: list[str] = SMALL) -> Checkpoint:
    """A local folder, or a hub repository's files of these patterns, downloaded unless cached; main where no revision is given.

    Raises ValueError or OSError where there is neither, and for a revision of a folder.
    """
    if not Path(name).is_dir():
        try:
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
        except (ValueError, OSError) as error:
            raise ValueError(f"{name}: no such folder, and the hub does not give it: {error}") from error
        return Checkpoint(name, folder, folder.name)  # the cache names a snapshot's folder by its commit
    if revision:
        raise ValueError(f"--revision is for a model of the hub, and {name} is a folder")
    folder = Path(name).resolve()
    if not (folder / "adapter_config.json").exists():
        return Checkpoint(name, folder)
    adapters = PeftConfig.from_pretrained(folder)
    return find(adapters.base_model_name_or_path, adapters.revision, patterns)._replace(name=name, adapters=folder)


def fetch(checkpoint: Checkpoint) -> None:
    """Downloads the weights of a hub's model, unless cached; `find` left them."""
    if checkpoint.commit:
        find(checkpoint.name, None if checkpoint.adapters else checkpoint.commit, WEIGHTS)


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
    """The type of its weights on disk, read from the first file's header. Raises ValueError if there are none, or damaged ones."""
    files = sorted(checkpoint.folder.glob(WEIGHTS[0]))
    if not files:
        raise ValueError(f"{checkpoint.name}: no weights ({WEIGHTS[0]}; .bin files, which can run code, are not read)")
    try:
        with safe_open(files[0], "pt") as file:
            name = file.get_slice(next(iter(file.keys()))).get_dtype()
    except SafetensorError as error:
        raise ValueError(f"{files[0]}: damaged: {error}") from error
    if name not in DTYPES:
        raise ValueError(f"{files[0]}: weights of type {name}; readable are {', '.join(DTYPES)}")
    return DTYPES[name]


def load(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The model, in evaluation mode, on the GPU if there is one, with the attention that transformers finds right for its kind.

    Raises ValueError if weights are missing, or if its logits are not those of `objectives.head_of`.
    """
    stored_dtype(checkpoint)
    model, info = AutoModelForCausalLM.from_pretrained(checkpoint.folder, dtype=dtype, output_loading_info=True, trust_remote_code=False)
    if info["missing_keys"]:
        raise ValueError(f"{checkpoint.name}: {len(info['missing_keys'])} weights are missing, {min(info['missing_keys'])} among them")
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
