"""LoRA adapters (arXiv 2106.09685) on a user's model, and the model as it was before them."""

from __future__ import annotations

import warnings

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from unlearn_utils.app.model_files import StoredModel
from unlearn_utils.app.settings import LoraSettings


def add_adapters(model: nn.Module, lora: LoraSettings, seed: int, base: StoredModel) -> PeftModel:
    """Return the model with new adapters on every linear layer but the head.

    They alone are trained, in float32.

    Args:
        seed: decides their first weights.
        base: where the model is from, which is written with the adapters, so that it is found
            again: a name on the hub, not a place in this machine's cache.
    """
    config = LoraConfig(
        task_type="CAUSAL_LM", r=lora.rank, lora_alpha=lora.alpha, target_modules="all-linear"
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # GPT-2 stores its matrices transposed; peft sees to it, and says so
        warnings.filterwarnings("ignore", "fan_in_fan_out")
        torch.manual_seed(seed)  # peft initialises from the global generator
        model = get_peft_model(model, config)
    written = model.peft_config["default"]
    if base.commit:
        written.base_model_name_or_path = base.name
        written.revision = base.commit
    else:
        written.base_model_name_or_path = str(base.folder)
        written.revision = None
    return model.eval()


class WithoutAdapters(nn.Module):
    """The model as it was: itself with its adapters off.

    So it is a reference for KL without a second copy of the weights. It answers what `core.fused`
    and `engine.training` ask of a reference: `base_model`, `get_output_embeddings`, `config`,
    `device`.
    """

    def __init__(self, model: PeftModel) -> None:
        super().__init__()
        self.adapted = [model]  # in a list: not a part of this module
        self.config = model.config
        self.base_model = self.forward

    @property
    def device(self) -> torch.device:
        """Where the model lies now."""
        return self.adapted[0].device

    def get_output_embeddings(self) -> nn.Module:
        """Return the head, which carries no adapter."""
        return self.adapted[0].get_base_model().get_output_embeddings()

    @torch.no_grad()
    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None, use_cache: bool
    ) -> BaseModelOutput:
        """Return the body's output, without dropout."""
        model = self.adapted[0]
        training = model.training
        with model.disable_adapter():
            body = model.eval().get_base_model().base_model
            output = body(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)
        model.train(training)
        return output
