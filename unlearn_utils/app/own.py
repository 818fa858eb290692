"""A user's own documents and model: read, checked, cut into chunks, loaded, unlearned, measured and saved."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from huggingface_hub import snapshot_download
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutput

from unlearn_utils.app import plans
from unlearn_utils.core import methods, objectives
from unlearn_utils.data import corpus, tokens
from unlearn_utils.engine import evaluation, loop, models, training

SMALL = ["*.json", "*.txt", "*.model", "*.jinja", "README.md"]  # of a hub repository: what is read before the weights
WEIGHTS = ["model*.safetensors"]  # no .bin, no second copy in another layout
VOCABULARIES = ["tokenizer.json", "*.model", "vocab.*"]  # files of which a tokenizer has one
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
Sets = Mapping[str, pd.DataFrame]  # "forget", "retain", "unseen" -> `chunks`


# ---------------------------------------------------------------------------------------------- documents


def read(path: Path) -> pd.DataFrame:
    """The documents of a file, or of every readable file below a folder in sorted order: name, text, sha256.

    Raises FileNotFoundError if there is nothing at `path`; ValueError if a file is unreadable, or if there is no document.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    rows = []
    for file in (f for f in files if f.suffix in corpus.SUFFIXES):
        try:
            found = [d["text"] for d in corpus.read_documents(file)]
        except (OSError, ValueError) as error:  # of pyarrow too, which does not name the file
            raise ValueError(str(error) if str(file) in str(error) else f"{file}: {error}") from error
        single = file.suffix not in (".jsonl", ".parquet")
        rows += [(str(file) if single else f"{file}:{i}", text, corpus.hash_text(text)) for i, text in enumerate(found, 1)]
    if not rows:
        raise ValueError(f"{path}: no document found; readable are {', '.join(corpus.SUFFIXES)}")
    return pd.DataFrame(rows, columns=["name", "text", "sha256"])


def chunks(documents: pd.DataFrame, split: str, tokenizer: PreTrainedTokenizerBase, context: int, rows: int) -> pd.DataFrame:
    """Documents cut into consecutive chunks of `context` tokens, the opening token before the first: id, family, split, name, ids.

    A last chunk under `tokens.SHORTEST` tokens is dropped, a document's only one too. family: the document's hash, so that its chunks
    count as one in every interval, as do copies of it. rows: of the model's embedding.
    Raises ValueError, naming the document, for one without a token and for an id beyond the embedding; and if nothing is left.
    """
    table = []
    for document in documents.itertuples():
        try:
            ids = tokens.encode(tokenizer, [document.text], sys.maxsize)[0]
        except ValueError as error:
            raise ValueError(f"{document.name}: {str(error).removeprefix('document 0 ')}") from error
        if max(ids) >= rows:
            raise ValueError(f"{document.name}: the tokenizer gives id {max(ids)}, the model has {rows} embeddings; not its tokenizer?")
        parts = enumerate(tokens.cut(ids, context))
        table += [(f"{document.sha256[:16]}-{i}", document.sha256, split, document.name, chunk) for i, chunk in parts]
    if not table:
        raise ValueError(f"--{split}: no document has {tokens.SHORTEST} tokens")
    return pd.DataFrame(table, columns=["id", "family", "split", "name", "ids"])


def check_apart(sets: Sets) -> None:
    """Raises ValueError, with names, for a document (or a chunk of one) that is in two sets."""
    for (a, ours), (b, theirs) in combinations(sets.items(), 2):
        names = dict(zip(map(tuple, theirs.ids), theirs.name, strict=True))
        both = {(name, names[tuple(ids)]) for name, ids in zip(ours.name, ours.ids, strict=True) if tuple(ids) in names}
        if both:
            shown = ", ".join(f"{x} = {y}" for x, y in sorted(both)[:5])
            raise ValueError(f"{len(both)} in both --{a} and --{b}, wholly or by a chunk: {shown}; remove them from one")


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
    check_head(model.to(loop.place().device).eval(), checkpoint.name)
    return model


@torch.no_grad()
def check_head(model: nn.Module, name: str) -> None:
    """Raises ValueError if the losses, which read hidden states and head apart, would not be those of the model's own logits."""
    ids = torch.arange(8, device=model.device)[None]
    own = model(input_ids=ids).logits.float()
    ours = objectives.head_logits(objectives.hidden_states(model, ids), objectives.head_of(model))
    if (ours - own).norm() > 0.02 * own.norm():  # a model that diverged, all NaN, passes: it is measured, and found out
        raise ValueError(f"{name}: its output head is none that this package knows (linear, scaled, soft-capped)")


# ---------------------------------------------------------------------------------------------- LoRA


def adapted(model: nn.Module, lora: plans.Lora, seed: int, base: Checkpoint) -> PeftModel:
    """The model with new LoRA adapters (arXiv 2106.09685) on every linear layer but the head; they alone are trained, in float32."""
    new = LoraConfig(task_type="CAUSAL_LM", r=lora.rank, lora_alpha=lora.alpha, target_modules="all-linear")
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():  # peft initialises from the global generator
        warnings.filterwarnings("ignore", "fan_in_fan_out")  # GPT-2 stores its matrices transposed; peft sees to it
        torch.manual_seed(seed)
        model = get_peft_model(model, new)
    new = model.peft_config["default"]  # where the base is found again: not in this machine's cache
    new.base_model_name_or_path, new.revision = (base.name, base.commit) if base.commit else (str(base.folder), None)
    return model.eval()


class Original(nn.Module):
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


# ---------------------------------------------------------------------------------------------- a run


def unlearned(
    base: Checkpoint, sets: Sets, run: plans.Run, tokenizer: PreTrainedTokenizerBase, watch: Callable, checkpoints: Path | None = None
) -> tuple:
    """Loads, measures and unlearns: (model, rows of measurements before, history of `training.unlearn`); in every process alike.

    Float32 weights, so that no update is rounded away; what LoRA does not train may stay in bfloat16. watch: called as watch(step, model).
    checkpoints: as `training.unlearn`. FSDP leaves the model sharded. Raises MemoryError if training runs out of memory.
    """
    with loop.agreed():
        model = load(base, plans.weight_dtype(run, stored_dtype(base)))
        rows = measure(model, sets, tokenizer)
        if run.lora:
            model = adapted(model, run.lora, run.seed, base)
    return model, rows, descend(model, base, sets, run, tokenizer, watch, checkpoints)


def descend(
    model: nn.Module, base: Checkpoint, sets: Sets, run: plans.Run, tokenizer: PreTrainedTokenizerBase, watch: Callable, checkpoints=None
) -> list[dict]:
    """Unlearns in place; the history of `training.unlearn`. Raises MemoryError, saying what to lower."""
    forget, retain = (list(sets[name].ids) if name in sets else [] for name in ("forget", "retain"))
    steps, pad = training.steps_of(len(forget), run.recipe.batch, run.recipe.epochs), tokenizer.pad_token_id
    try:
        with loop.agreed():
            reference = None
            if methods.named(run.method).retain == "kl":
                reference = Original(model) if run.lora else load(base)
            labels = training.draw_labels(run.method, forget, model, tokenizer, run.seed)
        with models.products(run.bf16):
            return training.unlearn(
                *(model, run.method, forget, retain, run.recipe, pad, run.seed, reference, labels, watch, range(1, steps + 1)),
                micro_batch=run.micro_batch,
                checkpoints=checkpoints,
                checkpointing=run.gradient_checkpointing,
            )
    except RuntimeError as error:  # torch.OutOfMemoryError is one, of a GPU; on a CPU the allocator says so
        if not isinstance(error, torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
            raise
        lower = "lower --micro-batch or --context, or use --gradient-checkpointing or --lora"
        raise MemoryError(f"out of memory in training: {lower}. Nothing was written") from error


def measure(model: nn.Module, sets: Sets, tokenizer: PreTrainedTokenizerBase) -> pd.DataFrame:
    """One row of measurements for each chunk of each set."""
    return evaluation.measure(model, pd.concat(sets.values(), ignore_index=True), tokenizer)
