"""Commands for a user's own documents and models: unlearn, evaluate, compare, methods.

Imports are lazy, so that `--help` is instant.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from unlearn_utils.app import evaluate_command, terminal, unlearn_arguments, unlearn_command

MISTAKE, FAILURE = 2, 1  # exit codes: of the user's mistake, and of a run that cannot end well


def add(commands: argparse._SubParsersAction) -> None:
    """Add the commands to a parser's subparsers; `run` runs the one that was chosen."""
    unlearn = commands.add_parser(
        "unlearn", help="make a model unlearn documents; writes a new model"
    )
    unlearn_arguments.add_arguments(unlearn)
    unlearn.set_defaults(call=unlearn_command.unlearn)

    evaluate = commands.add_parser(
        "evaluate", help="a model on documents, or on tasks, alone or against another"
    )
    evaluate_command.add_evaluate_arguments(evaluate)
    evaluate.set_defaults(call=evaluate_command.evaluate)

    compare = commands.add_parser("compare", help="the same of several models, as a table")
    evaluate_command.add_compare_arguments(compare)
    compare.set_defaults(call=evaluate_command.compare)

    methods = commands.add_parser("methods", help="the methods and what each minimises")
    methods.set_defaults(call=show_methods)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one of these commands alone, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m unlearn_utils")
    add(parser.add_subparsers(required=True, metavar="COMMAND"))
    return run(parser.parse_args(arguments))


def run(options: argparse.Namespace) -> int:
    """Run the chosen command, and return the exit code.

    A mistake of the user's is one line on stderr and exit code 2; so is a run that cannot end well,
    with exit code 1.
    """
    with terminal.quiet(), terminal.exit_on_sigterm():
        from unlearn_utils.engine import distributed

        try:
            options.call(options)
        except (ValueError, OSError) as error:
            return terminal.report_mistake(error, MISTAKE)
        except (MemoryError, FloatingPointError) as error:
            return terminal.report_mistake(error, FAILURE)
        distributed.leave()
    return 0


def show_methods(options: argparse.Namespace) -> None:
    """Print the table of methods."""
    from unlearn_utils.app import cards

    table = cards.method_table()
    widths = [2 + max(map(len, (name, *table[name]))) for name in table]
    for row in (table.columns, *table.to_numpy()):
        cells = [f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)]
        print("".join(cells).rstrip())
