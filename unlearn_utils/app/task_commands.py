"""`evaluate --tasks` and `compare --tasks`: what models can still do, side by side.

Imports are lazy, so that `--help` is instant.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from unlearn_utils.app import option_checks
from unlearn_utils.profiles import TASKS

if TYPE_CHECKING:
    import pandas as pd

ONLY_WITH = {  # an option -> the others that do something beside it alone
    "tasks": ("limit", "task_folder", "unsafe_code"),
    "documents": ("unseen", "context", "plot"),
}


def add_arguments(command: argparse.ArgumentParser, which: argparse._ArgumentGroup) -> None:
    """Add --tasks and what goes with it.

    which: the group of the command's options in which --tasks excludes --documents.
    """
    listed = ",".join(TASKS)
    which.add_argument(
        "--tasks",
        type=option_checks.text,
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
        type=option_checks.path,
        metavar="DIR",
        help="with --tasks: your own, as YAML; Python that they name is run",
    )
    command.add_argument(
        "--unsafe-code",
        action="store_true",
        help="with --tasks: also such as run code that the model wrote (humaneval)",
    )


def check_options(options: argparse.Namespace) -> None:
    """Check that every option does something, and what can be checked before a task is loaded.

    Raises:
        ValueError: an option would do nothing, or cannot be followed.
    """
    absent = "documents" if options.tasks else "tasks"
    for name in ONLY_WITH[absent]:
        if getattr(options, name) not in (None, False):
            raise ValueError(f"--{name.replace('_', '-')} goes with --{absent} only")
    if not options.tasks:
        return
    if "" in asked(options):
        raise ValueError(f"--tasks {options.tasks}: an empty name beside a comma")
    if options.limit is not None and options.limit < 1:
        raise ValueError(f"--limit: a number of questions above 0, not {options.limit}")
    folder = options.task_folder
    if folder is not None and not folder.is_dir():
        raise ValueError(
            f"--task-folder {folder}: no folder of tasks: it is no folder, or not there"
        )


def asked(options: argparse.Namespace) -> list[str]:
    """Return the names of the tasks, each once."""
    return list(dict.fromkeys(name.strip() for name in options.tasks.split(",")))


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

    from unlearn_utils.app import user_run
    from unlearn_utils.engine import downstream

    models = {name: user_run.find(name) for name in names}
    tasks = downstream.load(asked(options), options.task_folder, options.unsafe_code)
    say("\n".join(downstream.describe(tasks)))
    for found in models.values():  # before the first is measured, which takes time
        user_run.fetch(found.stored)

    answers = {}
    for name, found in models.items():
        say(f"measuring {found.stored.name_and_commit}")
        model = user_run.load(found.stored)
        answers[name] = downstream.answers(
            model, found.tokenizer, tasks, options.limit, unsafe_code=options.unsafe_code
        )
        del model  # before the next is loaded

    parts = []  # each task by itself, so that no interval depends on what stands beside it
    for name, rows in answers.items():
        for _, part in rows.groupby("task", sort=False):
            parts.append(downstream.summarise(part).assign(model=name))
    if len(answers) == 2:
        one, other = (dict(list(rows.groupby("task", sort=False))) for rows in answers.values())
        for task, part in one.items():
            difference = downstream.differences(part, other[task])
            parts.append(difference.assign(model=" - ".join(answers)))
    table = pd.concat(parts, ignore_index=True)
    return table[["model", *table.columns.drop("model")]]
