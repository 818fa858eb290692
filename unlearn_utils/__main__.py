"""The command line: `python -m unlearn_utils COMMAND`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from unlearn_utils.app import commands

MARKS = ("<!-- claims: python -m unlearn_utils claims --readme -->", "<!-- end of claims -->")  # in the README


def parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    top = argparse.ArgumentParser(prog="python -m unlearn_utils", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="execute the notebooks in order")
    run.add_argument("profile", help="smoke, laptop, study, gpu or paper")
    which = run.add_mutually_exclusive_group()
    which.add_argument("--only", metavar="NN", help="only this notebook")
    which.add_argument("--from", metavar="NN", dest="start", help="this notebook and those after it")
    run.add_argument("--fresh", action="store_true", help="ignore stored results")
    fetch = commands.add_parser("fetch", help="download the model and the data of a profile, to go on without a connection")
    fetch.add_argument("profile", help="gpu or paper")
    compute = commands.add_parser("compute", help="train what a profile's notebooks need; in several processes with accelerate launch")
    compute.add_argument("profile", help="gpu or paper")
    compute.set_defaults(call=everything)
    commands.add(commands)
    claims = commands.add_parser("claims", help="print each claim with its measured value and verdict, as notebook 14 left them")
    claims.add_argument("profile", nargs="?", default="laptop", help="laptop, study, smoke, gpu or paper")
    claims.add_argument("--readme", action="store_true", help="write the table into README.md")
    commands.add_parser("expect", help="make the present figures/table*.csv the committed values of tests/expected/laptop.csv")
    commands.add_parser("manifest", help="curate the embedded corpus again and replace unlearn_utils/data/manifest.csv")
    step = commands.add_parser("step")  # what `run` starts for notebooks that go side by side; not in the help
    for name, kind in {"root": Path, "profile": str, "path": Path, "label": str, "cores": int}.items():
        step.add_argument(name, type=kind)
    return top


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code. A mistake of the user's is one line on stderr and exit code 2."""
    options = parser().parse_args(arguments)
    if hasattr(options, "call"):  # a command for the user's own documents and models
        return commands.run(options)
    try:
        return dispatch(options)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def dispatch(options: argparse.Namespace) -> int:
    """The command itself. Imports are lazy: `run` needs neither torch nor datasets in this process."""
    if options.command == "manifest":
        from unlearn_utils.data.curation import splits

        splits.write_manifest()
        return 0
    if options.command == "fetch":
        return fetch(options.profile)
    from unlearn_utils.cache import paths
    from unlearn_utils.runner import expected, notebooks

    if options.command == "claims":
        return claims(options.profile, options.readme)
    if options.command == "expect":
        expected.expect(paths.PROJECT)
        return 0
    if options.command == "step":
        return notebooks.step(options.root, options.profile, options.path, options.label, options.cores)
    return notebooks.run(paths.PROJECT, options.profile, options.only, options.start, options.fresh)


def everything(options: argparse.Namespace) -> None:
    """Trains what a profile's notebooks need, alone or as one of several processes."""
    from unlearn_utils import profiles
    from unlearn_utils.study import everything

    everything.compute(profiles.profile(options.profile))


def fetch(name: str) -> int:
    """Downloads all that a profile reads from the hub, and says where it lies."""
    from unlearn_utils import profiles
    from unlearn_utils.data import hub

    profile = profiles.profile(name)
    found = hub.fetch(profile)
    for folder in found:
        print(folder)
    if profile.tasks:
        from unlearn_utils.engine import downstream

        print("\n".join(downstream.described(downstream.load(profile.tasks))))
    print(f"The profile {name} reads nothing else from the hub." if found else f"The profile {name} reads nothing from the hub.")
    return 0


def claims(profile: str, readme: bool) -> int:
    """Prints the claims' table of a profile, or writes it into the README between its marks."""
    import pandas as pd

    from unlearn_utils import profiles
    from unlearn_utils.cache import paths
    from unlearn_utils.findings import claims
    from unlearn_utils.runner import notebooks

    profiles.profile(profile)
    path = notebooks.figures(paths.PROJECT, profile) / "table14_claims.csv"
    if not path.exists():
        raise FileNotFoundError(f"no {path}: execute ./run_all.sh {profile} --only 14 first")
    text = claims.markdown(pd.read_csv(path, dtype={"notebook": str}))
    if not readme:
        print(text, end="")
        return 0
    file = paths.PROJECT / "README.md"
    before, start, rest = file.read_text(encoding="utf-8").partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not (start and end):
        raise ValueError(f"{file} lacks the marks between which the table goes: {MARKS[0]} and, below it, {MARKS[1]}")
    file.write_text(f"{before}{start}\n{text}{end}{after}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
