"""The command `evaluate --tasks`: what models can still do, side by side. Imports are lazy, as in `commands`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unlearn_utils.profiles import TASKS

if TYPE_CHECKING:
    import pandas as pd

OPTIONS = {"tasks": ("limit", "task_folder", "unsafe_code"), "documents": ("unseen", "context")}  # which go with which


def add(command: argparse.ArgumentParser, which) -> None:
    """Adds the options; `which`: the group of a command's in which --tasks excludes --documents."""
    listed = ",".join(TASKS)
    which.add_argument("--tasks", nargs="?", const=listed, metavar="NAMES", help=f"of lm-evaluation-harness; without names: {listed}")
    command.add_argument("--limit", type=int, metavar="N", help="with --tasks: the first N questions of each alone")
    command.add_argument("--task-folder", type=Path, metavar="DIR", help="with --tasks: your own, as YAML; Python that they name is run")
    command.add_argument("--unsafe-code", action="store_true", help="with --tasks: also such as run code that the model wrote (humaneval)")


def check(options: argparse.Namespace) -> None:
    """Raises ValueError for an option that would do nothing."""
    other = "documents" if options.tasks else "tasks"
    idle = [name.replace("_", "-") for name in OPTIONS[other] if getattr(options, name) not in (None, False)]
    if idle:
        raise ValueError(f"--{idle[0]} goes with --{other} only")


def results(names: Sequence[str], options: argparse.Namespace, say: Callable[[str], None]) -> pd.DataFrame:
    """Measures the models on the same questions: model, task, measure, value, low, high, n; of two models also their paired difference."""
    import pandas as pd

    from unlearn_utils.app import model_files
    from unlearn_utils.engine import downstream

    checkpoints = {name: model_files.find(name) for name in names}
    tokenizers = {name: model_files.tokenizer_of(checkpoint) for name, checkpoint in checkpoints.items()}
    tasks = dict.fromkeys(name.strip() for name in options.tasks.split(","))
    found = downstream.load(list(tasks), options.task_folder, options.unsafe_code)
    say("\n".join(downstream.described(found)))
    rows = {}
    for name, checkpoint in checkpoints.items():
        model_files.config_of(checkpoint)
        model_files.fetch(checkpoint)
        say(f"measuring {name}{f', commit {checkpoint.commit}' if checkpoint.commit else ''}")
        model = model_files.load(checkpoint)
        rows[name] = downstream.answers(model, tokenizers[name], found, options.limit, unsafe_code=options.unsafe_code)
        del model  # before the next is loaded
    parts = [downstream.summarise(part).assign(model=name) for name, part in rows.items()]
    if len(rows) == 2:
        parts.append(downstream.differences(*rows.values()).assign(model=" - ".join(rows)))
    table = pd.concat(parts, ignore_index=True)
    return table[["model", *table.columns.drop("model")]]
