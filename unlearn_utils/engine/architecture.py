"""Facts of a model that its modules show: its layers and their widths, and how much it reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import nn
from transformers import AutoModelForCausalLM, Conv1D, PreTrainedConfig

# what configs call the number of tokens that a model reads; the first that is there counts
LENGTHS = (
    "max_position_embeddings",
    "max_seq_len",
    "max_seq_length",
    "max_sequence_length",
    "seq_length",
    "context_length",
    "model_max_length",
    "n_positions",
    "n_ctx",
    "max_target_positions",
)
MOST_LAYERS = 2_000  # of a config: with more, building the modules takes minutes
ROUTED = ("top_k", "num_experts_per_tok")  # what modules call the experts that a token goes through


def empty_model(config: PreTrainedConfig) -> nn.Module:
    """Return the model of a config without memory for its weights (PyTorch's meta device).

    Raises:
        ValueError: there is no such model, or it has more than `MOST_LAYERS`.
    """
    layers = most_of(getattr(config.get_text_config(), "num_hidden_layers", None))
    if layers > MOST_LAYERS:
        raise ValueError(f"config.json: {layers} layers; {MOST_LAYERS} are the most")
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:  # anything, where numbers do not fit each other
        raise ValueError(f"config.json: no model can be made of it: {error!r}") from error


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """Return the layers that text goes through: the largest list of modules, or the whole model."""
    most = []
    for layers in _lists(model):
        if _size(layers) > _size(most):
            most = list(layers)
    return most or [model]


def _lists(module: nn.Module) -> Iterator[nn.ModuleList]:
    """Yield the lists of modules that are in no other."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield child
        else:
            yield from _lists(child)


def _size(layers: list[nn.Module] | nn.ModuleList) -> int:
    """Return the number of parameters of some layers."""
    return sum(one.numel() for layer in layers for one in layer.parameters())


# ----------------------------------------------------------------------------------------- widths


class Sizes(NamedTuple):
    """Sizes that decide what a layer keeps for its backward pass.

    Attributes:
        layers: how many.
        hidden: the width that most of their products read or write.
        intermediate: the widest that a product reads; with experts, these too, as many as a token
            goes through.
    """

    layers: int
    hidden: int
    intermediate: int


def sizes_of(model: nn.Module) -> Sizes:
    """Return the sizes of a model's layers."""
    layers = decoder_layers(model)
    widths: Counter[int] = Counter()
    read = []
    for layer in layers:
        for part in layer.modules():
            if isinstance(part, (nn.Linear, Conv1D)):
                widths.update(part.weight.shape)
                read.append(part.weight.shape[0 if isinstance(part, Conv1D) else 1])
    ((hidden, _),) = widths.most_common(1)
    intermediate = max(read) + _routed(model) * _expert_width(layers, hidden)
    return Sizes(len(layers), hidden, intermediate)


def _routed(model: nn.Module) -> int:
    """Return how many experts a token goes through at most; 0 if there are none."""
    found = [0]
    for part in model.modules():
        for name in ROUTED:
            stated = getattr(part, name, None)
            if isinstance(stated, int):
                found.append(stated)
    return max(found)


def _expert_width(layers: list[nn.Module], hidden: int) -> int:
    """Return the width inside an expert; 0 if no layer has (experts, width, hidden) weights."""
    found = []
    for layer in layers:
        for weight in layer.parameters():
            if weight.dim() == 3 and hidden in weight.shape[1:]:
                found.append(weight.shape[1] * weight.shape[2] // hidden)
    return min(found, default=0)


# ------------------------------------------------------------------------------------------- text


def longest_text(config: PreTrainedConfig) -> int | None:
    """Return how many tokens a model reads at a time; None: nothing bounds it.

    Tables of positions that begin with those of padding, as RoBERTa's, are for so many fewer.

    Raises:
        ValueError: as `empty_model`.
    """
    text = config.get_text_config()
    stated = [getattr(text, name, None) for name in LENGTHS]
    known = [length for length in stated if length not in (None, -1)]  # -1: no bound, as XLNet's
    if not known:
        return None
    most = most_of(known[0])
    model = empty_model(config)
    words = model.get_input_embeddings()
    for table in model.modules():
        if isinstance(table, nn.Embedding) and table is not words and len(table.weight) == most:
            reserved = 0 if table.padding_idx is None else table.padding_idx + 1
            return most - reserved
    return most


def most_of(stated: object) -> int:
    """Return a number of a config, the highest of a list (one a layer), or 0 for none."""
    if isinstance(stated, list | tuple):
        return max(map(most_of, stated), default=0)
    return stated if isinstance(stated, int) else 0
