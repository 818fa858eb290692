"""The command line: `python -m unlearn_utils COMMAND`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from unlearn_utils import profiles
from unlearn_utils.app import commands, errors, terminal
from unlearn_utils.cache import endings, paths

# ---------------------------------------------------------------------------------------- options


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands and their options.

    `project_command` is what a command of this project calls. The commands that may run in several
    processes, `compute` and those for the user's own documents and models, have `call`, and `check`
    where their options can be looked at before.
    """
    top = terminal.Parser(prog="python -m unlearn_utils", description=__doc__)
    subparsers = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_run(subparsers)
    _add_fetch_and_compute(subparsers)
    commands.add(subparsers)
    _add_claims(subparsers)
    _add_expect_and_manifest(subparsers)
    _add_notebook(subparsers)
    return top


def listed(names: Iterable[str]) -> str:
    """Return `a, b or c`."""
    *others, last = names
    return f"{', '.join(others)} or {last}"


def _add_run(subparsers: argparse._SubParsersAction) -> None:
    run = subparsers.add_parser("run", help="execute the notebooks in order")
    run.add_argument("profile", help=listed(profiles.PROFILES))
    which = run.add_mutually_exclusive_group()
    which.add_argument("--only", metavar="NN", help="only this notebook")
    which.add_argument(
        "--from", metavar="NN", dest="start", help="this notebook and those after it"
    )
    run.add_argument("--fresh", action="store_true", help="ignore stored results")
    run.set_defaults(project_command=run_notebooks)


def _add_fetch_and_compute(subparsers: argparse._SubParsersAction) -> None:
    of_the_hub, in_parts = [], []
    for name, profile in profiles.PROFILES.items():
        if profile.hub or profile.base:
            of_the_hub.append(name)
        if profile.parts:
            in_parts.append(name)
    fetch = subparsers.add_parser(
        "fetch",
        help="download the model and the data of a profile, to go on without a connection",
    )
    fetch.add_argument("profile", help=listed(of_the_hub))
    fetch.set_defaults(project_command=fetch_profile)

    compute = subparsers.add_parser(
        "compute",
        help="train what a profile's notebooks need; in several processes with accelerate launch, "
        f"but for {' and '.join(in_parts)}, which have parts",
    )
    compute.add_argument("profile", help=listed(dict.fromkeys([*in_parts, *of_the_hub])))
    compute.add_argument(
        "--part", metavar="NAME", help="only this part; a wrong name lists them all"
    )
    compute.set_defaults(check=check_compute, call=compute_profile)


def _add_claims(subparsers: argparse._SubParsersAction) -> None:
    claims = subparsers.add_parser(
        "claims",
        help="print each claim with its measured value and verdict, as notebook 14 left them; of "
        "laptop the committed study's, with the values of laptop beside",
    )
    claims.add_argument("profile", nargs="?", default="laptop", help=listed(profiles.PROFILES))
    claims.add_argument("--readme", action="store_true", help="write the table into README.md")
    claims.set_defaults(project_command=show_claims)


def _add_expect_and_manifest(subparsers: argparse._SubParsersAction) -> None:
    expect = subparsers.add_parser(
        "expect",
        help="make the present figures/table*.csv the committed values of "
        "tests/expected/laptop.csv",
    )
    expect.set_defaults(project_command=expect_tables)

    manifest = subparsers.add_parser(
        "manifest",
        help="curate the embedded corpus again and replace unlearn_utils/data/manifest.csv",
    )
    manifest.set_defaults(project_command=write_manifest)


def _add_notebook(subparsers: argparse._SubParsersAction) -> None:
    """Add what `run` starts for notebooks that go side by side; without help it is not listed."""
    notebook = subparsers.add_parser("notebook")
    notebook.add_argument("root", type=Path)
    notebook.add_argument("profile")
    notebook.add_argument("path", type=Path)
    notebook.add_argument("label")
    notebook.add_argument("cores", type=int)
    notebook.set_defaults(project_command=execute_notebook)


# ------------------------------------------------------------------------------------- a command


def main(arguments: list[str] | None = None) -> int:
    """Run one command, and return the exit code, as `errors.answer`.

    Variables are looked at before: by the first of several processes, for all have the same.
    """
    options = parser().parse_args(arguments)
    if errors.first_process():
        code = errors.answer(paths.check)
        if code:
            return code
    if "call" in options:
        endings.end_with_launcher()
        return commands.run(options)
    return errors.answer(lambda: options.project_command(options))


# --------------------------------------------------------------- the commands of this project
#
# Each takes the options and returns the exit code. Imports are lazy: `run` needs neither torch nor
# datasets in this process.


def run_notebooks(options: argparse.Namespace) -> int:
    """Execute the notebooks of a profile."""
    from unlearn_utils.runner import profile_run

    root = paths.PROJECT
    return profile_run.run(root, options.profile, options.only, options.start, options.fresh)


def execute_notebook(options: argparse.Namespace) -> int:
    """Execute one notebook of a run, in a process of its own."""
    from unlearn_utils.runner import profile_run
    from unlearn_utils.runner.places import Places

    places = Places(options.root, options.profile)
    return profile_run.execute_and_stamp(places, options.path, options.label, options.cores)


def fetch_profile(options: argparse.Namespace) -> int:
    """Download all that a profile reads from the hub, and say where it lies."""
    profile = profiles.profile(options.profile)
    from unlearn_utils.data import hub

    folders = hub.fetch(profile)
    for folder in folders:
        print(folder)
    if profile.tasks:
        print(fetch_tasks(profile))
    nothing = "nothing else" if folders else "nothing"
    print(f"The profile {profile.name} reads {nothing} from the hub.")
    return 0


def fetch_tasks(profile: profiles.Profile) -> str:
    """Download the questions of a profile's downstream tasks, and return what they are.

    A model that a package carries stands in where there is no hub: then there are no questions
    either, and its notebook goes on without them.

    Raises:
        ValueError: as `downstream.load`.
    """
    from unlearn_utils.engine import downstream

    try:
        return "\n".join(downstream.describe(downstream.load(profile.tasks)))
    except ValueError as error:
        if profile.base is None:
            raise
        return f"not available: questions of downstream tasks ({error})"


def check_compute(options: argparse.Namespace) -> None:
    """Check the profile's name, that it has parts if one is asked for, and the scheduler.

    Raises:
        ValueError: one of them is not as it should be.
    """
    from unlearn_utils.cache import workers

    workers.check_scheduler()
    profile = profiles.profile(options.profile)
    if options.part and not profile.parts:
        raise ValueError(f"the profile {profile.name} has no parts; leave --part out")


def compute_profile(options: argparse.Namespace) -> None:
    """Train what a profile's notebooks need, alone or as one of several processes.

    The study goes part by part, and writes the rows of each when it ends.

    Raises:
        ValueError: there is no such part.
    """
    from unlearn_utils.study import everything, parts

    check_compute(options)
    profile = profiles.profile(options.profile)
    if profile.parts:
        parts.compute(profile, options.part)
    else:
        everything.compute(profile)


def show_claims(options: argparse.Namespace) -> int:
    """Print the table of claims, or write it into the README between its marks.

    It is the committed study's, with the values of the default profile beside; of another profile,
    or without a study, it is the profile's alone.
    """
    profile = profiles.profile(options.profile)
    from unlearn_utils.findings import claims, plots
    from unlearn_utils.runner.places import COMMITTED, Places

    path = Places(paths.PROJECT, profile.name).figures / f"{claims.TABLE}.csv"
    if not path.exists():
        raise FileNotFoundError(f"no {path}: execute ./run_all.sh {profile.name} --only 14 first")
    here = claims.stored(path)
    table = claims.markdown(here)
    if profile.name == COMMITTED and plots.is_committed(claims.TABLE):
        table = claims.markdown(claims.study_table(), here)
    if options.readme:
        claims.write_into(paths.PROJECT / "README.md", table)
    else:
        print(table, end="")
    return 0


def expect_tables(options: argparse.Namespace) -> int:
    """Make the present tables the committed values."""
    from unlearn_utils.runner import expected

    expected.expect(paths.PROJECT)
    return 0


def write_manifest(options: argparse.Namespace) -> int:
    """Curate the embedded corpus again."""
    from unlearn_utils.data.curation import splits

    splits.write_manifest()
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except endings.Ended as ended:
        endings.leave(ended)
