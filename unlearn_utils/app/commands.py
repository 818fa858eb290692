"""Commands for a user's own documents and models: unlearn, tune, evaluate and so on.

Imports are lazy, so that `--help` is instant.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from unlearn_utils.app import (
    errors,
    evaluate_command,
    example_command,
    terminal,
    tune_command,
    unlearn_arguments,
    unlearn_command,
)
from unlearn_utils.cache import memory


def add(commands: argparse._SubParsersAction) -> None:
    """Add the commands to a parser's subparsers; `run` runs the one that was chosen.

    `call` is what a command does. `check`, where there is one, looks at its options before, and
    imports nothing that takes time.
    """
    unlearn = commands.add_parser(
        "unlearn", help="make a model unlearn documents; writes a new model"
    )
    unlearn_arguments.add_arguments(unlearn)
    unlearn.set_defaults(check=unlearn_arguments.check_options, call=unlearn_command.unlearn)

    tune = commands.add_parser(
        "tune", help="find the learning rate and the steps of unlearn; writes the best new model"
    )
    tune_command.add_arguments(tune)
    tune.set_defaults(check=tune_command.check_options, call=tune_command.tune)

    evaluate = commands.add_parser(
        "evaluate", help="a model on documents, or on tasks, alone or against another"
    )
    evaluate_command.add_evaluate_arguments(evaluate)
    evaluate.set_defaults(check=evaluate_command.check_options, call=evaluate_command.measure)

    compare = commands.add_parser("compare", help="the same of several models, as a table")
    evaluate_command.add_compare_arguments(compare)
    compare.set_defaults(check=evaluate_command.check_options, call=evaluate_command.measure)

    example = commands.add_parser(
        "example", help="write a small model and documents, to try these commands on"
    )
    example_command.add_arguments(example)
    example.set_defaults(check=example_command.check_options, call=example_command.make)

    methods = commands.add_parser("methods", help="the methods and what each minimises")
    methods.set_defaults(call=show_methods)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one of these commands alone, and return the exit code."""
    parser = terminal.Parser(prog="python -m unlearn_utils")
    add(parser.add_subparsers(required=True, metavar="COMMAND"))
    return run(parser.parse_args(arguments))


def run(options: argparse.Namespace) -> int:
    """Run the chosen command, and return the exit code, as `errors.answer`."""
    return errors.answer(lambda: _checked_and_called(options))


def _checked_and_called(options: argparse.Namespace) -> None:
    """Look at the options, and run the command in every process that the launcher started.

    Where there are several, each looks at the options within the command: then one of them speaks.
    """
    if "check" in options and errors.processes() == 1:
        options.check(options)
    memory.keep_freed()
    with terminal.quiet():
        from unlearn_utils.engine import distributed

        options.call(options)
        distributed.leave()


def show_methods(options: argparse.Namespace) -> None:
    """Print the table of methods."""
    from unlearn_utils.app import cards

    table = cards.method_table()
    widths = [2 + max(map(len, (name, *table[name]))) for name in table]
    for row in (table.columns, *table.to_numpy()):
        cells = [f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)]
        terminal.say("".join(cells).rstrip())
