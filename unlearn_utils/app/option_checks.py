"""What options name, checked before anything heavy is imported: a typo costs no time."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from unlearn_utils.cache import paths
from unlearn_utils.data import hub

HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)


# ----------------------------------------------------------------------------------------- types


def text(given: str) -> str:
    """Return what an option was given.

    Raises:
        argparse.ArgumentTypeError: it is empty, as an unset variable of a shell leaves it.
    """
    if not given.strip():
        raise argparse.ArgumentTypeError(
            "it is empty, as a variable of the shell is that is not set"
        )
    return given


def path(given: str) -> Path:
    """Return the path that an option was given. Raise as `text`: an empty one means the folder."""
    return Path(text(given))


# ------------------------------------------------------------------------------------- what is read


def check_model(name: str, revision: str | None = None) -> None:
    """Check that a model's name is a folder, or one of the hub. Raise ValueError if it is neither.

    What is read of one of the hub before its weights is downloaded, unless cached.
    """
    if Path(name).is_dir():
        check_encoding(name)
        return
    if Path(name).exists():
        raise ValueError(
            f"{name}: a file; name the folder, as save_pretrained writes it, or a model of the hub"
        )
    if not HUB_NAME.fullmatch(name):
        raise ValueError(f"{name}: no such folder, and no name of a model of the hub (OWNER/NAME)")
    hub_folder(name, revision, hub.BEFORE_WEIGHTS)


def hub_folder(name: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """Return the folder of files of a model of the hub. Raise ValueError if the hub has none."""
    try:
        return hub.download(name, "model", revision, patterns)
    except (ValueError, OSError) as error:
        raise ValueError(
            f"{name}: no such folder, and the hub does not give it: {error}"
        ) from error


def check_encoding(name: str | Path) -> None:
    """Check that a model's folder can be opened by safetensors and tokenizers.

    Raises:
        ValueError: its name is not UTF-8.
    """
    try:
        str(name).encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name}: the folder's name is not UTF-8, so safetensors cannot open it; rename it"
        ) from error


def check_documents(option: str, place: Path) -> None:
    """Check that there is a file or folder. Raise ValueError if there is none."""
    if not place.exists():
        raise ValueError(f"{option} {place}: no such file or folder")


# ---------------------------------------------------------------------------------- what is written


def check_new_folder(option: str, given: Path) -> None:
    """Check that a folder is new or empty. Raise ValueError if it is in use, or lies nowhere."""
    out = Path(os.path.realpath(given))
    if out.is_symlink():
        raise ValueError(f"{option} {given}: a link that leads round in a circle")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ValueError(f"{option} {out}: already there and not empty; choose another folder")
    if out.is_mount():
        raise ValueError(f"{option} {out}: a disk is mounted there; choose a new folder in it")
    if not out.parent.is_dir():
        raise ValueError(f"{option} {out}: there is no folder {out.parent}")
    check_encoding(out)


def check_writable(option: str, place: Path) -> None:
    """Check that a file or folder can be made.

    Raises:
        ValueError: nothing can be written there.
    """
    beginning = f".{place.name}."  # of its name while it is not whole, which is longer
    paths.check_folder(existing_folder(place.parent), f"{option} {place}", beginning)


def existing_folder(folder: Path) -> Path:
    """Return a folder, or, while it is not there, the nearest above it that is."""
    return next(one for one in (folder, *folder.parents) if one.exists())


def check_outside(option: str, place: Path, read: Mapping[str, Path]) -> None:
    """Check that a place lies in no folder that is read, so that it stays as it is.

    Args:
        option: that names the place.
        place: where something is written, without links.
        read: by the option that names it.

    Raises:
        ValueError: it lies in one.
    """
    for other, folder in read.items():
        if place.is_relative_to(os.path.realpath(folder)):
            raise ValueError(
                f"{option} {place}: must be outside of {other} {folder}, which is only read"
            )
