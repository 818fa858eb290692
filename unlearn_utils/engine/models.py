"""Language models: built, loaded, saved; and the precision that this machine trains in."""

from __future__ import annotations

import gc
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
)
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    rename_source_key,
    revert_weight_conversion,
)
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, logging

from unlearn_utils.cache import paths
from unlearn_utils.engine import distributed, weight_files
from unlearn_utils.engine.weight_files import Stored
from unlearn_utils.profiles import Shape

BUFFERS = (".inv_freq", ".masked_bias")  # once stored among weights, now computed
LARGEST_FILE = "50GB"  # of weights, as transformers writes them

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
        ValueError: weights are missing or damaged, or have no place in the model.
    """
    called = name or str(folder)
    if not (Path(folder) / "config.json").exists():
        raise FileNotFoundError(
            f"{folder}: no config.json, so no model; expected what save_pretrained writes"
        )
    stored = weight_files.tensors(folder, called)
    _check_named_files(Path(folder), called)
    release()
    model, info = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        ignore_mismatched_sizes=True,  # `_check_all_read` names them
        output_loading_info=True,
    )
    _check_all_read(model, stored, info, called)
    return model.to(device()).eval()


def _check_named_files(folder: Path, name: str) -> None:
    """Check that a config names no files of its own, which transformers would read instead.

    Raises:
        ValueError: it does; the message calls the model by `name`.
    """
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    named = getattr(config, "transformers_weights", None)
    if named not in (None, SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME):
        raise ValueError(
            f"{name}: transformers_weights in config.json names {named}, which is not read; "
            f"rename it to {SAFE_WEIGHTS_NAME}, and take the line out"
        )


def _check_all_read(
    model: nn.Module, stored: Mapping[str, Stored], info: Mapping[str, Collection], name: str
) -> None:
    """Check that every weight of a model was read, and that every stored one has a place in it.

    Buffers that are stored among the weights are read past, and what transformers knows to be of no
    use to the model.

    Args:
        stored: of `weight_files.tensors`.
        info: of `from_pretrained`.
        name: what an error calls the model.

    Raises:
        ValueError: a weight is missing, of another size, no weight at all, or has no place.
    """
    own = {place for place, _ in model.named_parameters(remove_duplicate=False)}
    whole = {key for key, tensor in stored.items() if tensor.dtype is None}
    whole = set(_places(model, own, whole).values())
    buffers = {buffer for buffer, _ in model.named_buffers()} | whole
    unexpected = []
    for key in info["unexpected_keys"]:
        named = {key, f"{model.base_model_prefix}.{key}"}
        if not named & buffers and not key.endswith(BUFFERS):
            unexpected.append(key)
    wrong = {
        "are missing": info["missing_keys"],
        "are of another size than config.json says": [key for key, *_ in info["mismatched_keys"]],
        "hold whole numbers": whole & own,
        f"have no place in the {type(model).__name__} of config.json": unexpected,
    }
    for what, keys in wrong.items():
        if keys:
            raise ValueError(f"{name}: {len(keys)} weights {what}, {min(keys)} among them")


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
    """Return the type of a stored model's weights: that of most of them.

    Raises:
        ValueError: as `weight_files.tensors`, which has the same arguments.
    """
    return weight_files.main_dtype(weight_files.tensors(folder, name))


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


def save_like(model: nn.Module, base: Path, folder: Path) -> None:
    """Write a model's weights as `write_like`. Every process must call this, as `save`."""
    state = distributed.gathered_state(model)
    distributed.on_main_process(lambda: write_like(model, state, base, folder))


def write_like(model: nn.Module, state: Mapping[str, Tensor], base: Path, folder: Path) -> None:
    """Write weights (safetensors) as the model that they came from has them.

    Each has the name and the type that it has in `base`. What lies there beside the weights, such
    as layers that transformers has no use for, is copied.

    Args:
        model: as `load` made it.
        state: its weights.
        base: the folder that it was loaded from.
        folder: where the files go.
    """
    stored = weight_files.tensors(base)
    main = weight_files.main_dtype(stored)
    own = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    repeated = own - {name for name, _ in model.named_parameters()}  # tied to others
    once = {name: value for name, value in state.items() if name not in repeated}

    written = {}
    for name, value in revert_weight_conversion(model, once).items():
        bare = name.removeprefix(f"{model.base_model_prefix}.")
        if name not in stored and bare in stored:  # as of GPT-2
            name = bare
        dtype = main
        if name in stored:
            dtype = stored[name].dtype or main
        value = _rounded(value, dtype)
        if value.untyped_storage().nbytes() > value.nbytes:  # a part of several that were one
            value = value.clone()
        written[name] = value

    known = own | set(state)
    beside = [name for name, place in _places(model, known, stored).items() if place not in known]
    written |= weight_files.read(stored, beside)
    save_torch_state_dict(written, folder, max_shard_size=LARGEST_FILE, metadata={"format": "pt"})


def _places(model: nn.Module, known: Collection[str], stored: Iterable[str]) -> dict[str, str]:
    """Return the names that transformers gives in a model to what is stored, by its stored names.

    Args:
        model: as `load` made it.
        known: names of the model; others have no place there.
        stored: names in the files.
    """
    renamings = [one for one in model._weight_conversions if isinstance(one, WeightRenaming)]
    converters = [one for one in model._weight_conversions if isinstance(one, WeightConverter)]
    own = dict.fromkeys(known, True)
    places = {}
    for name in stored:
        place, _ = rename_source_key(name, renamings, converters, model.base_model_prefix, own)
        if place not in own and name in own:
            place = name
        places[name] = place
    return places


def _rounded(value: Tensor, dtype: torch.dtype) -> Tensor:
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
