"""`evaluate --tasks` and `compare --tasks`: what models can still do, side by side.

Imports are lazy, so that `--help` is instant.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unlearn_utils.profiles import TASKS

if TYPE_CHECKING:
    import pandas as pd

ONLY_WITH = {  # an option -> the others that do something beside it alone
    "tasks": ("limit", "task_folder", "unsafe_code"),
    "documents": ("unseen", "context"),
}


def add_arguments(command: argparse.ArgumentParser, which: argparse._ArgumentGroup) -> None:
    """Add --tasks and what goes with it.

    which: the group of the command's options in which --tasks excludes --documents.
    """
    listed = ",".join(TASKS)
    which.add_argument(
        "--tasks",
        nargs="?",
        const=listed,
        metavar="NAMES",
        help=f"of lm-evaluation-harness; without names: {listed}",
    )
    command.add_argument(
        "--limit",
        type=int,
        metavar="N",
        help="with --tasks: the first N questions of each alone",
    )
    command.add_argument(
        "--task-folder",
        type=Path,
        metavar="DIR",
        help="with --tasks: your own, as YAML; Python that they name is run",
    )
    command.add_argument(
        "--unsafe-code",
        action="store_true",
        help="with --tasks: also such as run code that the model wrote (humaneval)",
    )


def check_options(options: argparse.Namespace) -> None:
    """Check that every option does something. Raise ValueError for one that would do nothing."""
    absent = "documents" if options.tasks else "tasks"
    for name in ONLY_WITH[absent]:
        if getattr(options, name) not in (None, False):
            raise ValueError(f"--{name.replace('_', '-')} goes with --{absent} only")


def measure_on_tasks(
    names: Sequence[str], options: argparse.Namespace, say: Callable[[str], None]
) -> pd.DataFrame:
    """Measure the models on the same questions.

    Args:
        names: folders, or models of the hub.
        options: of the command line.
        say: prints a line.

    Returns:
        Tidy results: model, task, measure, value, low, high, n; of two models also their paired
        difference.
    """
    import pandas as pd

    from unlearn_utils.app import model_files
    from unlearn_utils.engine import downstream

    stored_models = {name: model_files.find(name) for name in names}
    tokenizers = {}
    for name, stored in stored_models.items():
        tokenizers[name] = model_files.tokenizer_of(stored)
    asked = dict.fromkeys(name.strip() for name in options.tasks.split(","))
    tasks = downstream.load(list(asked), options.task_folder, options.unsafe_code)
    say("\n".join(downstream.describe(tasks)))

    answers = {}
    for name, stored in stored_models.items():
        model_files.config_of(stored)
        model_files.fetch(stored)
        say(f"measuring {stored.name_and_commit}")
        model = model_files.load(stored)
        answers[name] = downstream.answers(
            model, tokenizers[name], tasks, options.limit, unsafe_code=options.unsafe_code
        )
        del model  # before the next is loaded

    parts = []
    for name, rows in answers.items():
        parts.append(downstream.summarise(rows).assign(model=name))
    if len(answers) == 2:
        difference = downstream.differences(*answers.values())
        parts.append(difference.assign(model=" - ".join(answers)))
    table = pd.concat(parts, ignore_index=True)
    return table[["model", *table.columns.drop("model")]]
