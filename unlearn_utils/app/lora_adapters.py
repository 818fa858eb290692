"""LoRA adapters (arXiv 2106.09685) on a user's model, and the model as it was before them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from functools import partial

import torch
from peft import PeftModel
from torch import nn
from transformers.utils import ModelOutput

from unlearn_utils.app.model_files import StoredModel
from unlearn_utils.app.settings import LoraSettings
from unlearn_utils.core import fused
from unlearn_utils.engine import adapters

SHOWN = 5  # names in a message; the rest is a number


def add_adapters(model: nn.Module, lora: LoraSettings, seed: int, base: StoredModel) -> PeftModel:
    """Return the model with new adapters, as `adapters.add`.

    Args:
        seed: decides their first weights.
        base: where the model is from, which is written with the adapters, so that it is found
            again: a name on the hub, not a place in this machine's cache.
    """
    model = adapters.add(model, lora.rank, lora.alpha, seed)
    written = model.peft_config["default"]
    if base.commit:
        written.base_model_name_or_path = base.name
        written.revision = base.commit
    else:
        written.base_model_name_or_path = str(base.folder)
        written.revision = None
    return model


def describe(model: nn.Module) -> str:
    """Return, in words, what adapters would go on, and what is left as it is.

    Raises:
        ValueError: there is nothing that they would go on.
    """
    layers = adapters.adapted_layers(model)
    if not layers:
        raise ValueError(f"--lora: a {type(model).__name__} has no linear layer to adapt")
    adapted = {id(layer.weight) for layer in layers.values()}
    total = share = 0
    left: Counter[str] = Counter()
    for name, weight in model.named_parameters():
        total += weight.numel()
        if id(weight) in adapted:
            share += weight.numel()
        else:
            left[re.sub(r"\.\d+\.", ".*.", name)] += weight.numel()
    names = [name for name, _ in left.most_common(SHOWN)]
    return (
        f"LoRA: adapters on {len(layers)} linear layers with {share / total:.0%} of the weights; "
        f"left as they are: {', '.join(names)} ({len(left)} kinds in all)"
    )


class WithoutAdapters(nn.Module):
    """The model as it was: itself with its adapters off.

    So it is a reference for KL without a second copy of the weights. It answers what `core.fused`
    and `engine.training` ask of a reference: `base_model`, `get_output_embeddings`, `config`,
    `device`, and the model's own call.
    """

    def __init__(self, model: PeftModel) -> None:
        super().__init__()
        self.adapted = [model]  # in a list: not a part of this module
        self.config = model.config
        plain = model.get_base_model()
        self.forward = partial(self._read, plain)
        self.base_model = partial(self._read, fused.body_of(plain))

    @property
    def device(self) -> torch.device:
        """Where the model lies now."""
        return self.adapted[0].device

    def get_output_embeddings(self) -> nn.Module:
        """Return the head, which carries no adapter."""
        return self.adapted[0].get_base_model().get_output_embeddings()

    @torch.no_grad()
    def _read(self, part: Callable[..., ModelOutput], **given: object) -> ModelOutput:
        """Return what a part of the model gives, without adapters and without dropout."""
        model = self.adapted[0]
        training = model.training
        with model.disable_adapter():
            model.eval()
            output = part(**given)
        model.train(training)
        return output
