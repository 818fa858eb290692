"""LoRA adapters (arXiv 2106.09685): the layers that they go on, and the model with them merged."""

from __future__ import annotations

import copy
import warnings

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch import nn
from transformers import Conv1D, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, rename_source_key


def add(model: nn.Module, rank: int, alpha: float, seed: int) -> PeftModel:
    """Return the model with new adapters on `adapted_layers`.

    They alone are trained, in float32.

    Args:
        model: that is adapted.
        rank: of each adapter.
        alpha: adapters are scaled by alpha / rank.
        seed: decides their first weights.
    """
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=alpha,
        target_modules=list(adapted_layers(model)),
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # GPT-2 stores its matrices transposed; peft sees to it, and says so
        warnings.filterwarnings("ignore", "fan_in_fan_out")
        torch.manual_seed(seed)  # peft initialises from the global generator
        model = get_peft_model(model, config)
    written = model.peft_config["default"]
    written.target_modules = sorted(written.target_modules)  # a set would be written in any order
    return model.eval()


def merged(model: nn.Module) -> nn.Module:
    """Return a copy of the model with its adapters added to its weights; without some, itself."""
    if not isinstance(model, PeftModel):
        return model
    return copy.deepcopy(model).merge_and_unload()


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
