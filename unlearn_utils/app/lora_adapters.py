"""A user's own documents and model: read, checked, cut into chunks, loaded, unlearned, measured and saved."""

from __future__ import annotations

import warnings

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from unlearn_utils.app import model_files, settings

# ---------------------------------------------------------------------------------------------- LoRA


def adapted(model: nn.Module, lora: settings.LoraSettings, seed: int, base: model_files.Checkpoint) -> PeftModel:
    """The model with new LoRA adapters (arXiv 2106.09685) on every linear layer but the head; they alone are trained, in float32."""
    new = LoraConfig(task_type="CAUSAL_LM", r=lora.rank, lora_alpha=lora.alpha, target_modules="all-linear")
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():  # peft initialises from the global generator
        warnings.filterwarnings("ignore", "fan_in_fan_out")  # GPT-2 stores its matrices transposed; peft sees to it
        torch.manual_seed(seed)
        model = get_peft_model(model, new)
    new = model.peft_config["default"]  # where the base is found again: not in this machine's cache
    new.base_model_name_or_path, new.revision = (base.name, base.commit) if base.commit else (str(base.folder), None)
    return model.eval()


class WithoutAdapters(nn.Module):
    """The model as it was: itself with its adapters off, a reference for KL without a second copy of the weights.

    Answers what `objectives` and `training` ask of a reference: `base_model`, `get_output_embeddings`, `config`, `device`.
    """

    def __init__(self, model: PeftModel) -> None:
        super().__init__()
        self.adapted, self.config, self.base_model = [model], model.config, self.forward  # in a list: not a part of this module

    @property
    def device(self) -> torch.device:
        """Where the model lies now."""
        return self.adapted[0].device

    def get_output_embeddings(self) -> nn.Module:
        """The head, which carries no adapter."""
        return self.adapted[0].get_base_model().get_output_embeddings()

    def set_attn_implementation(self, name: str) -> None:
        """As of the model."""
        self.adapted[0].get_base_model().set_attn_implementation(name)

    @torch.no_grad()
    def forward(self, input_ids: Tensor, attention_mask: Tensor | None, use_cache: bool) -> BaseModelOutput:
        """The body's output, without dropout."""
        model = self.adapted[0]
        training = model.training
        with model.disable_adapter():
            found = model.eval().get_base_model().base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)
        model.train(training)
        return found
