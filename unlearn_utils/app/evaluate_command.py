"""The commands `evaluate` and `compare`: models measured on documents, or on tasks.

Imports are lazy, so that `--help` is instant.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unlearn_utils.app import option_checks, task_commands, terminal
from unlearn_utils.app.unlearn_arguments import DOCUMENTS

if TYPE_CHECKING:
    import pandas as pd

    from unlearn_utils.app.user_documents import Tables

FIGURES = (".png", ".pdf", ".svg")


def add_evaluate_arguments(command: argparse.ArgumentParser) -> None:
    """Add the options of `evaluate`."""
    command.add_argument(
        "--model",
        required=True,
        dest="models",
        type=option_checks.text,
        nargs=1,
        metavar="MODEL",
        help="a folder, or a model of the hub",
    )
    command.add_argument(
        "--against",
        type=option_checks.text,
        metavar="MODEL",
        help="another, compared on the same documents or questions",
    )
    command.add_argument(
        "--retrained",
        type=option_checks.text,
        metavar="MODEL",
        help="with --documents: one that never saw them; then the .json has what needs it",
    )
    _add_measurement_arguments(command)


def add_compare_arguments(command: argparse.ArgumentParser) -> None:
    """Add the options of `compare`."""
    command.add_argument(
        "--models", required=True, type=option_checks.text, nargs="+", metavar="MODEL"
    )
    command.set_defaults(against=None, retrained=None)
    _add_measurement_arguments(command)


def _add_measurement_arguments(command: argparse.ArgumentParser) -> None:
    """Add what models are measured on, and where the table goes."""
    which = command.add_mutually_exclusive_group(required=True)
    which.add_argument("--documents", type=option_checks.path, metavar="PATH", help=DOCUMENTS)
    task_commands.add_arguments(command, which)
    command.add_argument(
        "--unseen",
        type=option_checks.path,
        metavar="PATH",
        help="documents that no model has seen, for membership inference",
    )
    command.add_argument(
        "--context",
        type=int,
        help="tokens of a chunk; default: 4096, or what the models read",
    )
    command.add_argument(
        "--out",
        type=option_checks.path,
        metavar="CSV",
        help="a file to write, tidy, and a .json beside it",
    )
    command.add_argument(
        "--plot",
        type=option_checks.path,
        metavar="FILE",
        help="with --documents: a figure to write (.png, .pdf or .svg), its numbers in --out, or "
        "in FILE.csv without it, the ending replaced",
    )


def named_models(options: argparse.Namespace) -> list[str]:
    """Return the names of the models, each once."""
    more = [name for name in (options.against, options.retrained) if name is not None]
    return list(dict.fromkeys([*options.models, *more]))


def check_options(options: argparse.Namespace) -> None:
    """Check all that can be checked before a model is read.

    Raises:
        ValueError: an option cannot be followed.
    """
    task_commands.check_options(options)
    for name in ("documents", "unseen"):
        path = getattr(options, name)
        if path is not None:
            option_checks.check_documents(f"--{name}", path)
    check_files(options)
    for name in named_models(options):  # the last, for it may ask the hub
        option_checks.check_model(name)


def check_files(options: argparse.Namespace) -> None:
    """Check that the table and the figure can be written. Raise ValueError if one cannot."""
    numbers = numbers_file(options)
    if options.plot is not None:
        if options.plot.suffix not in FIGURES:
            raise ValueError(f"--plot {options.plot}: must end in {', '.join(FIGURES)}")
        if numbers == options.plot:
            raise ValueError(f"--plot {options.plot}: --out is the same file; choose another")
        check_new("--plot", options.plot)
    if numbers is not None:
        check_new("--out" if options.out else "--plot, its numbers:", numbers)
    named = named_file(options)
    if named is not None:
        if named in (numbers, options.plot):
            raise ValueError(f"--out {numbers}: a .json goes beside the table; choose another end")
        check_new("--out, its .json:", named)


def check_new(option: str, file: Path) -> None:
    """Check that a file is not there and can be made. Raise ValueError if not."""
    if file.exists():
        raise ValueError(f"{option} {file}: already there; choose another file")
    option_checks.check_writable(option, file)


def numbers_file(options: argparse.Namespace) -> Path | None:
    """Return where the table goes: as --out says, or beside a figure; None: it is printed alone."""
    if options.out is None and options.plot is not None:
        return options.plot.with_suffix(".csv")
    return options.out


def named_file(options: argparse.Namespace) -> Path | None:
    """Return where results go by the names of `interchange`: beside the table of documents."""
    if options.out is None or options.tasks:
        return None
    return options.out.with_suffix(".json")


def measure(options: argparse.Namespace) -> None:
    """Measure models on the same documents or tasks, print a table, write and draw it if asked.

    Raises:
        OSError: the table is nowhere: it was not to be written, and cannot be printed.
    """
    from unlearn_utils.app import figures, interchange
    from unlearn_utils.cache import paths

    check_one_process()
    check_options(options)
    names = named_models(options)
    rows = []
    if options.tasks:
        table = task_commands.measure_on_tasks(names, options, terminal.say)
    else:
        rows, table = measure_on_documents(names, options)
    numbers = numbers_file(options)
    if numbers is not None:
        paths.write_whole(numbers.resolve(), table.to_csv(index=False))
    named = named_file(options)
    if named is not None:
        by_name = interchange.of_models(rows, "documents", options.retrained)
        interchange.write(named.resolve(), by_name)
    if options.plot is not None:
        figures.save(figures.comparison(table), options.plot.resolve())
        terminal.say(f"{options.plot}: the figure; its numbers are in {numbers}")
    if options.out:
        terminal.say(terminal.results_text(table))
    else:
        print(terminal.results_text(table), flush=True)


def check_one_process(
    who: str = "this command is", instead: str = "only unlearn runs in several"
) -> None:
    """Check that no launcher started others beside this process. Raise ValueError if one did.

    who, instead: words of the message.
    """
    from unlearn_utils.engine import distributed

    with distributed.raise_together():
        processes = distributed.process_state().num_processes
        if processes > 1:
            raise ValueError(f"{who} one process, and {processes} were started: {instead}")


def measure_on_documents(
    names: Sequence[str], options: argparse.Namespace
) -> tuple[list[pd.DataFrame], pd.DataFrame]:
    """Return measurements and results of the models on the same chunks.

    Returns:
        Rows of `user_run.measure` of each model; tidy results, as `cards.results_table`, of two
        models also the log ratio of perplexities.

    Raises:
        ValueError: a tokenizer cuts a document otherwise than the first model's, so that
            perplexities of a token would not compare.
    """
    import pandas as pd

    from unlearn_utils.app import cards, settings, user_documents, user_run
    from unlearn_utils.core import tables

    paths = {"documents": options.documents, "unseen": options.unseen}
    documents = user_documents.read_sets(paths)
    models = [user_run.find(name) for name in names]
    context = min(settings.context_of(model.config, options.context) for model in models)
    chunks = []
    for model in models:
        cut = user_documents.cut_sets(documents, model.tokenizer, context, model.config)
        chunks.append(cut)
    check_same_tokens(names, chunks)
    terminal.say("\n".join(user_documents.describe_sets(documents, chunks[0], context)))
    for model in models:  # before the first is measured, which takes time
        user_run.fetch(model.stored)

    rows = []
    for model in models:
        terminal.say(f"measuring {model.stored.name_and_commit}")
        loaded = user_run.load(model.stored)
        measured = user_run.measure(loaded, chunks[0], models[0].tokenizer)
        del loaded  # before the next is loaded
        rows.append(measured.assign(model=model.stored.name))
    table = cards.results_table(rows, "documents")
    if len(rows) == 2:
        ratio = tables.log_ratios(*rows, ["split"], "log ratio of perplexities")
        table = pd.concat([table, ratio.assign(model=" / ".join(names))], ignore_index=True)
    return rows, table


def check_same_tokens(names: Sequence[str], chunks: Sequence[Tables]) -> None:
    """Check that every model reads the same chunks as the first. Raise ValueError if one does not.

    chunks: of each model, as its tokenizer cuts them.
    """
    first = chunks[0]
    for name, own in zip(names, chunks, strict=True):
        for split, table in own.items():
            if list(table.ids) != list(first[split].ids):
                raise ValueError(
                    f"{name} and {names[0]} cut the documents into different tokens: their "
                    "perplexities do not compare"
                )
