"""LoRA adapters (arXiv 2106.09685) on a user's model, and the model as it was before them."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch import nn
from transformers import Conv1D, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, rename_source_key
from transformers.utils import ModelOutput

from unlearn_utils.app.model_files import StoredModel
from unlearn_utils.app.settings import LoraSettings
from unlearn_utils.core import fused

SHOWN = 5  # names in a message; the rest is a number


def add_adapters(model: nn.Module, lora: LoraSettings, seed: int, base: StoredModel) -> PeftModel:
    """Return the model with new adapters on `adapted_layers`.

    They alone are trained, in float32.

    Args:
        seed: decides their first weights.
        base: where the model is from, which is written with the adapters, so that it is found
            again: a name on the hub, not a place in this machine's cache.
    """
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=list(adapted_layers(model)),
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # GPT-2 stores its matrices transposed; peft sees to it, and says so
        warnings.filterwarnings("ignore", "fan_in_fan_out")
        torch.manual_seed(seed)  # peft initialises from the global generator
        model = get_peft_model(model, config)
    written = model.peft_config["default"]
    written.target_modules = sorted(written.target_modules)  # a set would be written in any order
    if base.commit:
        written.base_model_name_or_path = base.name
        written.revision = base.commit
    else:
        written.base_model_name_or_path = str(base.folder)
        written.revision = None
    return model.eval()


def adapted_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers that adapters go on, by name: the linear ones that text goes through.

    The head is left alone; so are what reads images or sounds, routers and others that compute more
    than a product, the last product of Mamba and its kin, whose kernels do not call that layer, and
    what peft takes for experts by its name, or would call otherwise when it reads adapters.
    """
    text = set(model.base_model.get_decoder().modules())
    for part in model.modules():
        if isinstance(part, PreTrainedModel) and "text" not in part.input_modalities:
            text -= set(part.modules())
    text.discard(model.get_output_embeddings())

    found = {}
    for name, layer in model.named_modules():
        parent, _, own_name = name.rpartition(".")
        is_last_of_mamba = own_name == "out_proj" and hasattr(model.get_submodule(parent), "D")
        if layer in text and _is_product(layer) and not is_last_of_mamba:
            found[name] = layer
    config = LoraConfig(target_modules=list(found))
    convert_peft_config_for_transformers(config, model, conversions=None)
    conversions = get_model_conversion_mapping(model)
    renamings = [one for one in conversions if isinstance(one, WeightRenaming)]
    adapted = {}
    for name, layer in found.items():
        read_as, _ = rename_source_key(f"{name}.weight", renamings, [])
        if name in config.target_modules and read_as == f"{name}.weight":
            adapted[name] = layer
    return adapted


def _is_product(layer: nn.Module) -> bool:
    """Return whether a layer is a plain linear one, such as subclasses with more parts are not."""
    return type(layer).__init__ in (nn.Linear.__init__, Conv1D.__init__)


def describe(model: nn.Module) -> str:
    """Return, in words, what adapters would go on, and what is left as it is.

    Raises:
        ValueError: there is nothing that they would go on.
    """
    layers = adapted_layers(model)
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
