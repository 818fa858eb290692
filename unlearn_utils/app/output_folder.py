"""The folder of a new model: made whole or not at all; its weights and tokenizer, and their check.

What lies in it beside them is of `cards`.
"""

from __future__ import annotations

import glob
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
from peft import PeftModel
from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from unlearn_utils.app import model_files, settings, terminal, user_run
from unlearn_utils.app.model_files import StoredModel
from unlearn_utils.app.settings import RunSettings
from unlearn_utils.app.user_documents import Tables
from unlearn_utils.cache import paths
from unlearn_utils.engine import distributed, models, weight_files

# files of a model's folder that stay as they are, byte for byte
CONFIGS = ("config.json", "generation_config.json")
PROCESSOR = ("*processor_config.json", "chat_template.*")
TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
)

# ------------------------------------------------------------------------------------- the folder


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Give a folder to fill, the same in every process, that becomes `out` at the end.

    It lies beside `out`, and goes if anything fails inside.

    out: was looked at by `unlearn_arguments.check_out`.

    Raises:
        OSError: something took the place of `out` meanwhile; the message says where the folder is.
    """
    part = distributed.on_main_process(lambda: _make_part(out))
    try:
        yield part
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    distributed.on_main_process(lambda: _put(part, out))


def _make_part(out: Path) -> Path:
    """Make the folder that `new_folder` gives, and return it. Name those of runs that are gone."""
    for left in sorted(out.parent.glob(f".{glob.escape(out.name)}.*{paths.PART}")):
        if paths.is_abandoned(left):
            terminal.say(f"{left}: a run that was killed left it; remove it")
    part = paths.part_of(out)
    part.mkdir()
    return part


def _put(part: Path, out: Path) -> None:
    """Move the filled folder to its place. Raise OSError as `new_folder`."""
    try:
        part.replace(out)
    except OSError as error:
        raise OSError(
            f"--out {out}: in use by now ({error.strerror or error}); the new model is in {part}"
        ) from error


# ------------------------------------------------------------------------------------- the weights


def save_model(model: nn.Module, base: StoredModel, folder: Path) -> None:
    """Write weights in the types that they had on disk, or float32 adapters.

    Every process must call this.
    """
    if isinstance(model, PeftModel):
        models.save(model, folder, save_embedding_layers=False)
    else:
        models.save_like(model, base.folder, folder)


def complete_model(base: StoredModel, merge: bool, folder: Path) -> float | None:
    """Add what lies beside the base model's weights, and adapters to the weights if they merge.

    Config, tokenizer and processor are as they were, without our padding.

    Returns:
        The share of weights that then differ from the base model's, which rounding to 16 bits
        lowers; None for adapters.

    Raises:
        FloatingPointError: no weight differs.
    """
    adapters = list(folder.glob("adapter_*"))
    if adapters and not merge:
        # written anew: beside adapters no config.json says of which kind it is
        tokenizer = AutoTokenizer.from_pretrained(base.folder, trust_remote_code=False)
        tokenizer.save_pretrained(folder)
        _copy(PROCESSOR, base.folder, folder)
        return None
    if merge:  # in float32: rounded once, at the end
        merged = model_files.read(base._replace(adapters=folder)).merge_and_unload()
        models.write_like(merged, merged.state_dict(), base.folder, folder)
        for file in adapters:
            file.unlink()
    _copy((*CONFIGS, *PROCESSOR, *TOKENIZER), base.folder, folder)
    return _changed_share(base, folder)


def _copy(patterns: Sequence[str], source: Path, folder: Path) -> None:
    """Copy files of these names into a folder, byte for byte."""
    for pattern in patterns:
        for file in source.glob(pattern):
            if file.is_file():
                shutil.copyfile(file, folder / file.name)


def _changed_share(base: StoredModel, folder: Path) -> float:
    """Return the share of weights in a folder's files that differ from the base model's."""
    old, new = weight_files.tensors(base.folder), weight_files.tensors(folder)
    changed = total = 0
    for name, tensor in new.items():
        total += tensor.size
        if name not in old:
            changed += tensor.size
            continue
        weight = weight_files.read(new, [name])[name]
        changed += int((weight != weight_files.read(old, [name])[name]).sum())
    if changed == 0:
        raise FloatingPointError(
            f"no weight changed, once rounded to {weight_files.main_dtype(new)}: raise "
            "--learning-rate or --epochs. Nothing was written"
        )
    return changed / total


def measure_saved(
    folder: Path,
    chunks: Tables,
    run: RunSettings,
    base: StoredModel,
    tokenizer: PreTrainedTokenizerBase,
) -> pd.DataFrame:
    """Return the measurements of what was saved, as `user_run.measure`.

    Raises:
        FloatingPointError: a probability is not finite, so that the run diverged.
    """
    dtype = settings.weight_dtype(run, model_files.stored_dtype(base))
    model = user_run.load(model_files.find(str(folder)), dtype)
    rows = user_run.measure(model, chunks, tokenizer)
    if not np.isfinite(rows.nll).all():
        raise FloatingPointError(
            "the run diverged: not every probability is finite; lower --learning-rate. Nothing was "
            "written"
        )
    return rows
