"""Text that every machine has: lines of installed packages, their place and their licence.

A source is named by one string: a file of a package (`networkx/classes/graph.py`), a topic of the
Python Language Reference (`pydoc_data.topics:TOPIC`) or the description of a package
(`METADATA:DISTRIBUTION`).
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import sys
import textwrap
from email import message_from_string
from functools import cache
from importlib.metadata import distribution
from pathlib import Path

DISTRIBUTIONS = {"sklearn": "scikit-learn"}  # import name -> name on the index, where they differ
TOPICS = "pydoc_data.topics"
DESCRIPTION = "METADATA"


def site_packages(package: str) -> Path:
    """Return the folder that holds an importable package, found without importing it.

    Raises:
        FileNotFoundError: the package is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            f"package {package} is not installed: the embedded corpus is read from it"
        )
    return Path(next(iter(spec.submodule_search_locations))).parent


@cache
def topics() -> dict[str, str]:
    """Return the Python Language Reference by topic, as Python ships it for `help()`."""
    from pydoc_data.topics import topics as found

    return dict(sorted(found.items()))


@cache
def source_lines(file: str) -> list[str]:
    """Return the lines of a source; none where this machine lacks it."""
    kind, _, name = file.partition(":")
    if kind == TOPICS:
        return topics().get(name, "").split("\n")
    if kind == DESCRIPTION:
        text = distribution(name).read_text("METADATA") or ""
        return message_from_string(text).get_payload().split("\n")  # what `metadata` gives varies
    path = site_packages(file.split("/")[0]) / file
    if not path.exists():
        return []
    return path.read_text(encoding="utf-8").split("\n")


def read_lines(file: str, lines: str) -> str:
    """Return the text at some lines of a source, dedented; "" where the source has no such lines.

    lines: 1-based spans, as in "3-5,9-9". The quotes of a docstring are left out.
    """
    numbered = source_lines(file)
    found = []
    for span in lines.split(","):
        first, last = map(int, span.split("-"))
        found += [line.rstrip() for line in numbered[first - 1 : last]]
    if not found:
        return ""
    opening = re.match(r'\s*[rRuU]?"""', found[0])
    head = [found[0][opening.end() :]] if opening else []
    body = textwrap.dedent("\n".join(found[len(head) :]))
    return "\n".join([*head, body]).strip("\n").removesuffix('"""').rstrip()


@cache
def licence(package: str) -> str:
    """Return the licence that a distribution states, in at most 60 characters.

    That is its SPDX expression, else its classifier, else the first line of its licence field.
    """
    if package == "python":
        return "PSF-2.0"
    metadata = distribution(package).metadata
    stated = metadata.get("License-Expression")
    if not stated:
        for classifier in metadata.get_all("Classifier", []):
            if classifier.startswith("License :: OSI"):
                stated = classifier.split(" :: ")[-1]
                break
    stated = stated or metadata.get("License") or "not stated"
    return stated.strip().splitlines()[0][:60]


def origin(file: str) -> tuple[str, str, str]:
    """Return (package, version, licence) of a source; a local part of the version is left out."""
    kind, _, name = file.partition(":")
    if kind == TOPICS:
        return "python", "{}.{}.{}".format(*sys.version_info), licence("python")
    top = file.split("/")[0]
    package = name if kind == DESCRIPTION else DISTRIBUTIONS.get(top, top)
    return package, distribution(package).version.partition("+")[0], licence(package)


def hash_text(text: str) -> str:
    """Return the SHA-256 of a text, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()
