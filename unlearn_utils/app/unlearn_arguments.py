"""The options of the command `unlearn`: added, checked, and the settings that they say.

Imports are lazy, so that `--help` is instant.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from unlearn_utils.app import errors, option_checks
from unlearn_utils.core import methods
from unlearn_utils.profiles import Unlearning

if TYPE_CHECKING:
    from unlearn_utils.app.settings import LoraSettings, RunSettings

# `cards.SOURCES` says where they come from
DEFAULTS = {"learning_rate": 2e-5, "epochs": 1, "batch": 4, "retain_weight": 1.0}
# the least and the most: beyond that, something is mistyped
WHOLE_NUMBERS = {"steps": (1, 10**9), "batch": (1, 1_000_000), "seed": (0, 2**32 - 1)}
MOST_EPOCHS = 1_000
GOALS = ("unseen", "auc")  # as in `engine.tuning`, which imports torch
DOCUMENTS = (
    "a .txt, .md, .py, .tex, .jsonl or .parquet file (column text or content), also with .gz, or a "
    "folder of them"
)


# -------------------------------------------------------------------------------------- the options


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the options of `unlearn`."""
    add_model_and_documents(command)
    command.add_argument(
        "--learning-rate", type=float, help="default: 2e-5, as the paper's released code"
    )
    add_length(
        command,
        None,
        "passes over the forget set, also 0.5; default: 1, as the paper's released code",
        "optimizer steps, instead of epochs",
    )
    add_sizes(command)
    add_execution(command)
    command.add_argument(
        "--checkpoints",
        type=option_checks.path,
        metavar="DIR",
        help="a folder outside --out, to go on from after a kill",
    )
    command.add_argument(
        "--until",
        choices=GOALS,
        help="end at a goal and keep the best step: unseen, the perplexity that --unseen had "
        "before; auc, 1/2 for forget against --unseen",
    )


def add_model_and_documents(command: argparse.ArgumentParser) -> None:
    """Add what is unlearned from what, how, and where the new model goes."""
    command.add_argument(
        "--model",
        required=True,
        type=option_checks.text,
        help="a folder as save_pretrained writes it, or a model of the hub",
    )
    command.add_argument(
        "--revision",
        type=option_checks.text,
        help="of a model of the hub; default: main, whose commit is printed",
    )
    command.add_argument(
        "--forget", required=True, type=option_checks.path, metavar="PATH", help=DOCUMENTS
    )
    command.add_argument(
        "--retain",
        type=option_checks.path,
        metavar="PATH",
        help="what the model shall keep; methods with a retain term need it",
    )
    command.add_argument(
        "--unseen",
        type=option_checks.path,
        metavar="PATH",
        help="documents like the forgotten ones that the model has not seen",
    )
    command.add_argument(
        "--general",
        type=option_checks.path,
        metavar="PATH",
        help="other text, which is measured and never trained on",
    )
    command.add_argument(
        "--method", required=True, metavar="NAME", help="see: python -m unlearn_utils methods"
    )
    command.add_argument(
        "--out",
        required=True,
        type=option_checks.path,
        metavar="DIR",
        help="a new or empty folder",
    )


def add_length(
    command: argparse.ArgumentParser, default: int | None, of_epochs: str, of_steps: str
) -> None:
    """Add --epochs and --steps, of which one may be given; the rest is their help."""
    length = command.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=number, default=default, metavar="E", help=of_epochs)
    length.add_argument("--steps", type=int, metavar="N", help=of_steps)


def number(given: str) -> float:
    """Return a number, which is an int if it is whole. Raise ValueError if it is none."""
    found = float(given)
    return int(found) if found.is_integer() else found


def add_sizes(command: argparse.ArgumentParser) -> None:
    """Add sizes, weights and the seed."""
    command.add_argument(
        "--batch",
        type=int,
        help="chunks an optimizer step, of all processes together; default: 4",
    )
    command.add_argument(
        "--micro-batch",
        type=int,
        help="chunks at a time, for less memory; divides the batch, or a process's share of it",
    )
    command.add_argument("--retain-weight", type=float, help="default: 1")
    command.add_argument(
        "--context",
        type=int,
        help="tokens of a chunk; default: 4096, or what the model reads if that is less",
    )
    command.add_argument("--seed", type=int, help="default: 0")


def add_execution(command: argparse.ArgumentParser) -> None:
    """Add adapters, and what costs time or memory."""
    command.add_argument(
        "--lora",
        metavar="rank=8[,alpha=16]",
        help="train LoRA adapters only; alpha: twice the rank by default",
    )
    command.add_argument(
        "--gradient-checkpointing",
        action="store_true",
        help="less memory, about a third more time",
    )
    command.add_argument(
        "--merge",
        action="store_true",
        help="with --lora: write whole weights, the adapters added to them",
    )
    precision = command.add_mutually_exclusive_group()
    precision.add_argument(
        "--bf16",
        dest="bf16",
        action="store_true",
        default=None,
        help="bfloat16 products; default where it is native",
    )
    precision.add_argument(
        "--float32", dest="bf16", action="store_false", default=None, help="float32 products"
    )


# --------------------------------------------------------------------------------------- the checks


def check_options(options: argparse.Namespace) -> None:
    """Check all that can be checked before the model is read.

    Raises:
        ValueError: an option cannot be followed.
    """
    method = methods.get_method(options.method)
    check_numbers(options)
    lora = _lora_numbers(options.lora)
    if options.merge and lora is None:
        raise ValueError("--merge adds LoRA adapters to the weights, so it needs --lora")
    if method.retain is not None and options.retain is None:
        raise ValueError(
            f"--retain is missing: {method.name} has a retain term; give text that the model shall "
            "keep"
        )
    if options.until is not None:
        check_goal(options, "--until")
        if options.checkpoints is not None:
            raise ValueError("--checkpoints: a run with --until keeps none; leave one of them out")
    for option, path in _read(options).items():
        option_checks.check_documents(option, path)
    check_out(options)
    checkpoints_folder(options)
    option_checks.check_model(options.model, options.revision)


def check_goal(options: argparse.Namespace, what: str) -> None:
    """Check that there is something to take a goal from. Raise ValueError if not."""
    if options.unseen is None:
        raise ValueError(
            f"--unseen is missing: {what} takes its goal from it; give documents like the "
            "forgotten ones that the model was never trained on"
        )


def check_numbers(options: argparse.Namespace) -> None:
    """Check that rates, sizes and the seed make sense. Raise ValueError for one that does not."""
    recipe = _recipe(options)
    if recipe.learning_rate == math.inf:
        raise ValueError("--learning-rate inf: choose a finite one")
    if not 0 < recipe.retain_weight < math.inf:
        raise ValueError(f"--retain-weight must be positive, not {recipe.retain_weight}")
    if recipe.epochs > MOST_EPOCHS:
        raise ValueError(
            f"--epochs {recipe.epochs}: choose a number above 0, {MOST_EPOCHS} at most"
        )
    for name, (least, most) in WHOLE_NUMBERS.items():
        given = getattr(options, name)
        if given is not None and not least <= given <= most:
            raise ValueError(f"--{name} {given}: choose {least} to {most}")
    _micro_batch(options, recipe.batch, errors.processes())


def check_out(options: argparse.Namespace) -> None:
    """Check that the new model's folder can be made.

    Raises:
        ValueError: it is in use, lies nowhere or in what is only read, or cannot be written.
    """
    option_checks.check_new_folder("--out", options.out)
    out = Path(os.path.realpath(options.out))
    option_checks.check_outside("--out", out, _read(options))
    option_checks.check_writable("--out", out)


def checkpoints_folder(options: argparse.Namespace) -> Path | None:
    """Return the folder in --checkpoints that is this run's alone, for others may share it.

    Raises:
        ValueError: none can be made, or it lies in --out or in what is only read.
    """
    if options.checkpoints is None:
        return None
    folder = Path(os.path.realpath(options.checkpoints))
    out = Path(os.path.realpath(options.out))
    can_be_made = folder.parent.is_dir() and not folder.exists()
    if not folder.is_dir() and not can_be_made:
        raise ValueError(f"--checkpoints {folder}: no folder, and none can be made there")
    if out in (folder, *folder.parents):
        raise ValueError(f"--checkpoints {folder}: must be outside of --out")
    option_checks.check_outside("--checkpoints", folder, _read(options))
    digest = hashlib.sha256(str(out).encode()).hexdigest()
    own = folder / f"{out.name}-{digest[:8]}"
    option_checks.check_writable("--checkpoints", own)
    return own


def _read(options: argparse.Namespace) -> dict[str, Path]:
    """Return the files and folders that are read, by the option that names them."""
    found = {}
    for name in ("forget", "retain", "unseen", "general"):
        path = getattr(options, name)
        if path is not None:
            found[f"--{name}"] = path
    if Path(options.model).is_dir():
        found["--model"] = Path(options.model)
    return found


# ------------------------------------------------------------------------------------- the settings


def run_settings(options: argparse.Namespace) -> RunSettings:
    """Return the settings as given, or their defaults.

    Raises:
        ValueError: the launcher's processes, or its configuration, do not go with them.
    """
    from unlearn_utils.app.settings import RunSettings
    from unlearn_utils.engine import distributed, models

    recipe = _recipe(options)
    processes = distributed.process_state().num_processes
    micro_batch = _micro_batch(options, recipe.batch, processes)
    if options.gradient_checkpointing and distributed.launcher_checkpoints():
        raise ValueError(
            "--gradient-checkpointing: this launcher's configuration does it already "
            "(fsdp_activation_checkpointing)"
        )
    return RunSettings(
        method=methods.get_method(options.method),
        recipe=recipe,
        micro_batch=micro_batch,
        seed=_given_or(options.seed, 0),
        lora=lora_settings(options.lora),
        merge=options.merge,
        bf16=_given_or(options.bf16, models.half_precision()),
        gradient_checkpointing=options.gradient_checkpointing,
    )


def with_epochs(run: RunSettings, steps: int | None, chunks: int) -> RunSettings:
    """Return the settings with the epochs that `steps` full batches come to; None: as they are.

    chunks: of the forget set.

    Raises:
        ValueError: steps are too many, or a part of an epoch is less than one step.
    """
    epochs, batch = run.recipe.epochs, run.recipe.batch
    if steps is None:
        if epochs < 1 and epochs * chunks < batch:
            raise ValueError(
                f"--epochs {epochs:g}: {epochs * chunks:.3g} of {chunks} forget chunks, less than "
                f"a step of {batch}; give more, or --steps 1"
            )
        return run
    if steps * batch > MOST_EPOCHS * chunks:
        raise ValueError(
            f"--steps {steps}: more than {MOST_EPOCHS} epochs of {chunks} forget chunks; choose "
            f"{MOST_EPOCHS * chunks // batch} at most"
        )
    return replace(run, recipe=replace(run.recipe, epochs=steps * batch / chunks))


def _recipe(options: argparse.Namespace) -> Unlearning:
    """Return the recipe as given. Raise ValueError for a number that is not positive."""
    values = {}
    for name, default in DEFAULTS.items():
        values[name] = _given_or(getattr(options, name), default)
    return Unlearning(**values)


def _given_or(given: object, default: object) -> object:
    """Return the default of an option that was not given."""
    return default if given is None else given


def lora_settings(text: str | None) -> LoraSettings | None:
    """Return the settings that the text of --lora says. Raise ValueError as `_lora_numbers`."""
    from unlearn_utils.app.settings import LoraSettings

    numbers = _lora_numbers(text)
    return None if numbers is None else LoraSettings(*numbers)


def _lora_numbers(text: str | None) -> tuple[int, float] | None:
    """Return rank and alpha as `rank=8` or `rank=8,alpha=16` says; None of None.

    Raises:
        ValueError: the text says anything else.
    """
    if text is None:
        return None
    found = re.fullmatch(r"rank=([1-9]\d{0,4})(?:,alpha=([1-9]\d{0,4}))?", text)
    if found is None:
        raise ValueError(
            f"--lora {text}: expected rank=8 or rank=8,alpha=16, whole numbers above 0 and below "
            "100000"
        )
    rank, alpha = found.groups()
    if alpha is None:
        alpha = 2 * int(rank)
    return int(rank), float(alpha)


def _micro_batch(options: argparse.Namespace, batch: int, processes: int) -> int:
    """Return the chunks that one process reads at a time.

    batch: of all processes together.

    Raises:
        ValueError: processes do not divide the batch, or micro-batches not a process's share.
    """
    if batch % processes:
        raise ValueError(
            f"--batch {batch}: it is that of all {processes} processes together; choose a multiple "
            f"of {processes}"
        )
    share = batch // processes
    micro_batch = _given_or(options.micro_batch, share)
    if micro_batch < 1 or share % micro_batch:
        among = f" among {processes} processes" if processes > 1 else ""
        raise ValueError(
            f"--micro-batch {micro_batch}: must be positive and divide the batch of {batch}{among}"
        )
    return micro_batch


def chosen_settings(options: argparse.Namespace) -> list[str]:
    """Return the names of the settings that differ from their defaults."""
    from unlearn_utils.app import cards

    chosen = []
    for name in cards.SOURCES:
        if getattr(options, name, None) not in (None, DEFAULTS.get(name)):
            chosen.append(name)
    return chosen
