"""Language models: built, loaded, saved; and the precision that this machine trains in."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from unlearn_utils.cache import paths
from unlearn_utils.data import hub
from unlearn_utils.engine import distributed
from unlearn_utils.profiles import Shape

# what a file of weights calls a type of numbers
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}

logging.disable_progress_bar()  # bars of a second or less, which would be kept in a notebook


# -------------------------------------------------------------------------------- build and load


def build(shape: Shape, tokenizer: PreTrainedTokenizerBase, seed: int) -> LlamaForCausalLM:
    """Return a Llama with random weights, in float32, with tied embeddings.

    The seed alone decides the weights: the global random generator stays as it was.
    """
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
    with torch.random.fork_rng(devices=[]):  # transformers draws from the global generator
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def load(
    folder: Path | str, dtype: torch.dtype = torch.float32, name: str | None = None
) -> nn.Module:
    """Return the model of a local folder, in evaluation mode, on the GPU if there is one.

    Its attention is the one that transformers finds right for its kind.

    Args:
        folder: what `save_pretrained` writes.
        dtype: the type of the weights in memory.
        name: what an error calls the model; None: its folder.

    Raises:
        FileNotFoundError: the folder holds no model.
        ValueError: weights are missing.
    """
    if not (Path(folder) / "config.json").exists():
        raise FileNotFoundError(
            f"{folder}: no config.json, so no model; expected what save_pretrained writes"
        )
    release()
    model, info = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        local_files_only=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    missing = info["missing_keys"]
    if missing:
        raise ValueError(
            f"{name or folder}: {len(missing)} weights are missing, {min(missing)} among them"
        )
    return model.to(device()).eval()


def device() -> str:
    """Return where models go: the GPU, if there is one; of several the one of this process."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def release() -> None:
    """Free what a GPU holds of models that are no longer used.

    The Trainer leaves cycles of objects, which wait for Python's collector.
    """
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()


def stored_dtype(folder: Path | str, name: str | None = None) -> torch.dtype:
    """Return the type of a stored model's weights, as the header of the first file says.

    Args:
        folder: holds the weights.
        name: what an error calls the model; None: its folder.

    Raises:
        ValueError: there are no weights, they are damaged, or their type is none of `DTYPES`.
    """
    files = sorted(Path(folder).glob(hub.WEIGHTS))
    if not files:
        raise ValueError(
            f"{name or folder}: no weights ({hub.WEIGHTS}; .bin files, which can run code, are not "
            "read)"
        )
    try:
        with safe_open(files[0], "pt") as file:
            first = next(iter(file.keys()))
            stated = file.get_slice(first).get_dtype()
    except SafetensorError as error:
        raise ValueError(f"{files[0]}: damaged: {error}") from error
    if stated not in DTYPES:
        readable = ", ".join(DTYPES)
        raise ValueError(f"{files[0]}: weights of type {stated}; readable are {readable}")
    return DTYPES[stated]


def load_tokenizer(folder: Path | str) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a local folder.

    One without a padding token pads with the end token, or with token 0 if there is none either:
    padding never counts.
    """
    tokenizer = AutoTokenizer.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False
    )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer


# ------------------------------------------------------------------------------------------ save


def save(
    model: nn.Module, folder: Path, dtype: torch.dtype | None = None, **options: object
) -> None:
    """Write weights (safetensors) and config, as `load` and any transformers program read them.

    The first process writes; FSDP may divide the model among the processes. Every process must
    call this, and it returns when the files are there.

    Args:
        dtype: the type that the weights are written in; None: their own.
        options: of the model's `save_pretrained`.
    """
    state = distributed.gathered_state(model)

    def write() -> None:
        weights = state
        if dtype is not None:
            weights = {name: _rounded(value, dtype) for name, value in state.items()}
        model.save_pretrained(folder, state_dict=weights, **options)
        config = Path(folder) / "config.json"
        if dtype is not None and config.exists():
            _state_dtype(config, dtype)

    distributed.on_main_process(write)


def _rounded(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return a weight in another type; what is no floating-point number stays."""
    return value.to(dtype) if value.is_floating_point() else value


def _state_dtype(config: Path, dtype: torch.dtype) -> None:
    """Write the type of the weights on disk into a config, which has that of those in memory."""
    settings = json.loads(config.read_text())
    settings["dtype"] = str(dtype).removeprefix("torch.")
    config.write_text(json.dumps(settings, indent=2) + "\n")


# ---------------------------------------------------------------------------- memory and precision


@contextmanager
def checkpointed(model: nn.Module) -> Iterator[None]:
    """Compute layers again in the backward pass, inside, in training.

    A layer then keeps its input alone (arXiv 1604.06174): the same losses and gradients for less
    memory and about a third more time.

    Raises:
        ValueError: this kind of model cannot.
    """
    word = "gradient"
    if hasattr(model, "activation_checkpointing_enable"):  # the newer of transformers' two names
        word = "activation"
    enable = getattr(model, f"{word}_checkpointing_enable")
    disable = getattr(model, f"{word}_checkpointing_disable")
    enable(**{f"{word}_checkpointing_kwargs": {"use_reentrant": False}})
    try:
        yield
    finally:
        disable()


_chosen: ContextVar[bool | None] = ContextVar("chosen", default=None)


def half_precision() -> bool:
    """Return whether matrices are multiplied in bfloat16.

    That is as `matmul_precision` says; else, unless the user wants float32, where this machine does
    so natively (a GPU, or a CPU with AVX-512 BF16 or AMX), for elsewhere it is slower.
    """
    chosen = _chosen.get()
    if chosen is not None:
        return chosen
    if paths.precision() == paths.FLOAT32:
        return False
    return torch.cuda.is_available() or torch.ops.mkldnn._is_mkldnn_bf16_supported()


@contextmanager
def matmul_precision(bf16: bool) -> Iterator[None]:
    """Multiply in bfloat16 or not, inside, as told, whatever the machine."""
    token = _chosen.set(bf16)
    try:
        yield
    finally:
        _chosen.reset(token)
