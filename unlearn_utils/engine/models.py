"""Language models: build, load, save, and the precision that this machine trains in."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase
from transformers.utils import logging

from unlearn_utils.engine import distributed
from unlearn_utils.profiles import Shape

_chosen: ContextVar[bool | None] = ContextVar("chosen", default=None)
logging.disable_progress_bar()  # bars of a second or less, which would be kept in a notebook's outputs


def build(shape: Shape, tokenizer: PreTrainedTokenizerBase, seed: int) -> LlamaForCausalLM:
    """A Llama with random weights, float32, tied embeddings; the seed alone decides the weights."""
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        max_position_embeddings=shape.context,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):  # transformers initialises from the global generator: give it back unchanged
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def load(folder: Path | str) -> nn.Module:
    """The model of a local folder, float32, in evaluation mode, on the GPU if there is one.

    Raises FileNotFoundError if the folder holds no model.
    """
    if not (Path(folder) / "config.json").exists():
        raise FileNotFoundError(f"{folder}: no config.json, so no model; expected what save_pretrained writes")
    release()
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).to(device()).eval()


def device() -> str:
    """Where models go: the GPU, if there is one; of several the one that this process was given."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def release() -> None:
    """Frees what a GPU holds of models that are no longer used; the Trainer's cycles wait for Python's collector."""
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()


def stored_dtype(folder: Path | str) -> torch.dtype:
    """The type of a stored model's weights, as its config says."""
    return AutoConfig.from_pretrained(folder, local_files_only=True).dtype or torch.float32


def load_tokenizer(folder: Path | str) -> PreTrainedTokenizerBase:
    """The tokenizer of a local folder; one without a padding token pads with the end token (else with token 0): padding never counts."""
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer


def save(model: nn.Module, folder: Path) -> None:
    """Writes weights (safetensors) and config, as `load` and any transformers program read them."""
    model.save_pretrained(folder)


@contextmanager
def checkpointed(model: nn.Module) -> Iterator[None]:
    """Inside, in training, a layer keeps its input alone for the backward pass, and is computed again there (arXiv 1604.06174): the same
    losses and gradients for less memory and about a third more time. Raises ValueError for a kind of model that cannot."""
    word = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"  # the newer of transformers' two names
    getattr(model, f"{word}_checkpointing_enable")(**{f"{word}_checkpointing_kwargs": {"use_reentrant": False}})
    try:
        yield
    finally:
        getattr(model, f"{word}_checkpointing_disable")()


def half_precision() -> bool:
    """Whether to multiply in bfloat16: as `products` says, else where this machine does so natively (a GPU, or a CPU with AVX-512 BF16 or
    AMX); elsewhere it is slower."""
    if (chosen := _chosen.get()) is not None:
        return chosen
    return torch.cuda.is_available() or torch.ops.mkldnn._is_mkldnn_bf16_supported()


@contextmanager
def matmul_precision(bf16: bool) -> Iterator[None]:
    """Inside, products are in bfloat16 or not as told, whatever the machine."""
    token = _chosen.set(bf16)
    try:
        yield
    finally:
        _chosen.reset(token)


def save_from_all(model: nn.Module, folder: Path, dtype: torch.dtype | None = None, **options) -> None:
    """Writes weights (safetensors; in `dtype`, if given) and config, in the first process. options: of the model's `save_pretrained`.

    Every process must call it; it returns when the files are there.
    """
    state = distributed.gathered_state(model)

    def write() -> None:
        whole = {n: x.to(dtype) if x.is_floating_point() else x for n, x in state.items()}
        model.save_pretrained(folder, state_dict=whole, **options)
        config = Path(folder) / "config.json"
        if dtype and config.exists():  # it says the type of the model in memory
            config.write_text(json.dumps(json.loads(config.read_text()) | {"dtype": str(dtype).removeprefix("torch.")}, indent=2) + "\n")

    distributed.on_main_process(write)
