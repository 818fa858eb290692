"""The files that a model's weights are read from: which they are, and what lies in them.

These are safetensors alone: nothing here reads a `.bin` file, which can run code.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

# what a file calls a type of numbers: those that weights are in
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
# and those of masks and counters, which older programs stored among them
WHOLE = ("BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64")
POINTER = b"version https://git-lfs"


class Stored(NamedTuple):
    """A tensor in a file.

    Attributes:
        file: holds it.
        stated: what the file calls the type of its numbers.
        size: how many.
    """

    file: Path
    stated: str
    size: int

    @property
    def dtype(self) -> torch.dtype | None:
        """The type of its numbers; None: whole ones, so it is no weight."""
        return DTYPES.get(self.stated)


def tensors(folder: Path | str, name: str | None = None) -> dict[str, Stored]:
    """Return all that lies in the files that transformers reads a model's weights from.

    Args:
        folder: holds the files.
        name: what an error calls the model; None: its folder.

    Raises:
        ValueError: there are no weights, some are missing or damaged, or their type is none of
            `DTYPES`.
    """
    found = {}
    for file in _files(Path(folder), name or str(folder)):
        found |= tensors_of_file(file)
    types = {tensor.stated for tensor in found.values()}
    if not types & DTYPES.keys():
        held = ", ".join(sorted(types)) or "nothing"
        raise ValueError(
            f"{name or folder}: no weights in {SAFE_WEIGHTS_NAME}, which holds {held}; readable "
            f"are {', '.join(DTYPES)}"
        )
    return found


def main_dtype(stored: Mapping[str, Stored]) -> torch.dtype:
    """Return the type that most of the weights have.

    stored: of `tensors`.
    """
    sizes = dict.fromkeys(DTYPES.values(), 0)
    for tensor in stored.values():
        if tensor.dtype is not None:
            sizes[tensor.dtype] += tensor.size
    return max(sizes, key=sizes.get)


def read(stored: Mapping[str, Stored], names: Iterable[str]) -> dict[str, Tensor]:
    """Return some of the tensors, as they are stored."""
    found = {}
    for name in names:
        with safe_open(stored[name].file, "pt") as file:
            found[name] = file.get_tensor(name)
    return found


def tensors_of_file(file: Path) -> dict[str, Stored]:
    """Return what lies in one file, as its header says. Raise ValueError as `tensors`."""
    refuse_pointer(file)
    found = {}
    try:
        with safe_open(file, "pt") as opened:
            names = opened.keys()
            for name in names:
                tensor = opened.get_slice(name)
                found[name] = Stored(file, tensor.get_dtype(), math.prod(tensor.get_shape()))
    except SafetensorError as error:
        raise ValueError(f"{file}: damaged: {error}") from error
    for name, tensor in found.items():
        if tensor.stated not in (*DTYPES, *WHOLE):
            readable = ", ".join(DTYPES)
            raise ValueError(f"{file}: {name} is of type {tensor.stated}; readable are {readable}")
    return found


def refuse_pointer(file: Path) -> None:
    """Raise ValueError if a file is what Git LFS leaves in the place of one it did not fetch."""
    with file.open("rb") as opened:
        beginning = opened.read(len(POINTER))
    if beginning == POINTER:
        raise ValueError(f"{file}: a pointer of Git LFS; fetch the file itself with `git lfs pull`")


def _files(folder: Path, name: str) -> list[Path]:
    """Return the files that transformers reads. Raise ValueError as `tensors`."""
    if (folder / SAFE_WEIGHTS_NAME).exists():
        return [folder / SAFE_WEIGHTS_NAME]
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    if not index.exists():
        raise ValueError(
            f"{name}: no weights ({SAFE_WEIGHTS_NAME}, or {index.name} and the files that it "
            "lists; .bin files, which can run code, are not read)"
        )
    parts = [folder / part for part in _listed(index)]
    missing = [part.name for part in parts if not part.exists()]
    if missing:
        raise ValueError(
            f"{name}: {len(missing)} of {len(parts)} files of weights are missing, {missing[0]} "
            "among them"
        )
    return parts


def _listed(index: Path) -> list[str]:
    """Return the names of the files that an index lists. Raise ValueError if it is damaged."""
    try:
        listed = json.loads(index.read_text(encoding="utf-8"))
        listed["metadata"]  # without it transformers does not read the files
        return sorted(set(listed["weight_map"].values()))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{index}: no list of files of weights: {error!r}") from error
