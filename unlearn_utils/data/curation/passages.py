"""Candidates of the embedded corpus: real text of the pinned packages, cut into passages.

`splits` chooses among them.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from unlearn_utils.data import sources

CODE_PACKAGES = ("networkx",)
PROSE_PACKAGES = ("numpy", "scipy", "sklearn", "sympy", "torch")

# headings of a docstring: what follows is kept below some, and left out below the others
KEPT_SECTIONS = {"notes", "explanation", "description", "extended summary"}
SECTION = re.compile(
    r"^(args|arguments|keyword args|keyword arguments|inputs?|outputs?|returns?|shape|examples?|"
    r"attributes|raises|parameters|references|see also|variables|warnings?|methods|yields)"
    r"\s*:{0,2}\s*$",
    re.IGNORECASE,
)
RULE = re.compile(r"[-=~]{3,}")  # the line under a heading

# badges, pictures, links and HTML of a package's description
NOISE = re.compile(
    r"<[^>]+>|\]\(https?://|!\[|^\s*\.\. (image|\|)|^\s*:(target|alt)|"
    r"https?://\S+\.(svg|png)|https?://"
)

UNLISTED = {"pip", "setuptools", "wheel", "unlearn-utils"}  # these vary between machines

# a line of the lock; what follows it came after the corpus
EXTRA = "# The extra `downstream` alone: no source of the embedded corpus."

SHORTEST = 750  # characters of a passage
LONGEST = 1000


@dataclass(frozen=True)
class Passage:
    """A cut of 750 to 1,000 characters.

    Attributes:
        domain: github, arxiv, books or general.
        file, lines: where it stands, as `sources.read_lines` takes them.
        text: what it says.
        family: its unit.
        stratum: what splits balance.
    """

    domain: str
    file: str
    lines: str
    text: str
    family: str
    stratum: str


def digest(text: str) -> str:
    """Return 16 hexadecimal digits of BLAKE2b.

    Their order is the corpus's only source of 'arbitrary' order.
    """
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


# ------------------------------------------------------------------------------------- passages


def ranges(numbers: Iterable[int]) -> str:
    """Return 1-based line numbers as `sources.read_lines` takes them: 3, 4, 5, 9 as "3-5,9-9"."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ",".join(f"{first}-{last}" for first, last in spans)


def readable(text: str) -> bool:
    """Return whether this is text, not a table of numbers.

    Text has at least 45% letters and 40 distinct words.
    """
    letters = sum(character.isalpha() for character in text)
    words = set(re.findall(r"\w+", text.lower()))
    return letters >= 0.45 * len(text) and len(words) >= 40


def cut(file: str, numbered: list[tuple[int, str]]) -> Iterator[tuple[str, str]]:
    """Yield (lines, text) of consecutive passages of 750 to 1,000 characters.

    A passage ends at a blank line where one comes.

    Args:
        file: the source, as `sources.read_lines` takes it.
        numbered: (number, text) of the lines that may be used.
    """
    block: list[tuple[int, str]] = []
    for number, line in numbered:
        blank = not line.strip()
        size = sum(len(text) + 1 for _, text in block)
        full = size + len(line) > LONGEST or (size >= SHORTEST and blank)
        if block and full:
            yield from emit(file, block)
            block = []
        if block or not blank:
            block.append((number, line))
    yield from emit(file, block)


def emit(file: str, block: list[tuple[int, str]]) -> Iterator[tuple[str, str]]:
    """Yield the block as one passage, if it is long enough and readable."""
    if not block:
        return
    lines = ranges(number for number, _ in block)
    text = sources.read_lines(file, lines)
    if SHORTEST <= len(text) <= LONGEST and readable(text):
        yield lines, text


# ----------------------------------------------------------------------------------- docstrings


def docstring_nodes(tree: ast.Module) -> Iterator[ast.Expr]:
    """Yield the docstring expressions of a module, its classes and functions, in walking order."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) or not node.body:
            continue
        first = node.body[0]
        if not isinstance(first, ast.Expr) or not isinstance(first.value, ast.Constant):
            continue
        if isinstance(first.value.value, str):
            yield first


def prose(lines: list[str]) -> list[int]:
    """Return indices of the lines of a docstring that are its summary, free prose and Notes.

    Tables of parameters are left out, for they repeat from function to function.
    """
    margin = min((_indent(line) for line in lines[1:] if line.strip()), default=0)
    below = [line.strip() for line in lines[1:]] + [""]
    kept = []
    keeping = True
    for i, line in enumerate(lines):
        body = line.strip()
        underlined = bool(body) and RULE.fullmatch(below[i])
        titled = SECTION.match(body) and _indent(line) == margin
        left_out = RULE.fullmatch(body) or body.startswith((">>>", "..."))
        if underlined or titled:
            keeping = body.lower() in KEPT_SECTIONS
        elif keeping and not left_out:
            kept.append(i)
    return kept


def _indent(line: str) -> int:
    """Return the number of blank characters before a line's text."""
    return len(line) - len(line.lstrip())


def modules_of(
    packages: Iterable[str], holding: str = ""
) -> Iterator[tuple[str, list[str], ast.Module]]:
    """Yield (file, lines, syntax tree) of every module of the packages.

    Tests and vendored code are left out, and modules that do not hold the string `holding`.
    """
    for package in packages:
        root = sources.site_packages(package)
        for path in sorted((root / package).rglob("*.py")):
            file = path.relative_to(root).as_posix()
            if "/tests/" in file or "/_vendor/" in file or "/externals/" in file:
                continue
            text = path.read_text(encoding="utf-8")
            if holding in text:
                yield file, text.split("\n"), ast.parse(text)


# -------------------------------------------------------------------------------------- domains


def github() -> Iterator[Passage]:
    """Yield source code of networkx without its docstrings; the unit is the file."""
    for file, lines, tree in modules_of(CODE_PACKAGES):
        spoken: set[int] = set()
        for node in docstring_nodes(tree):
            spoken.update(range(node.lineno, node.end_lineno + 1))
        numbered = [(n, line) for n, line in enumerate(lines, 1) if n not in spoken]
        folder = str(Path(file).parent)
        for where, text in cut(file, numbered):
            yield Passage("github", file, where, text, family=file, stratum=folder)


def arxiv() -> Iterator[Passage]:
    """Yield scientific prose: docstrings that hold mathematics; the unit is the docstring."""
    for file, lines, tree in modules_of(PROSE_PACKAGES, "math:"):
        package = file.split("/")[0]
        for node in docstring_nodes(tree):
            own = lines[node.lineno - 1 : node.end_lineno]
            text = "\n".join(own)
            if ":math:" not in text and ".. math::" not in text:
                continue
            unit = f"{file}:{node.lineno}"
            numbered = [(node.lineno + i, own[i]) for i in prose(own)]
            for where, passage in cut(file, numbered):
                yield Passage("arxiv", file, where, passage, family=unit, stratum=package)


def books() -> Iterator[Passage]:
    """Yield the Python Language Reference by topic; the unit is the passage."""
    for topic in sources.topics():
        file = f"{sources.TOPICS}:{topic}"
        numbered = list(enumerate(sources.source_lines(file), 1))
        for where, text in cut(file, numbered):
            yield Passage("books", file, where, text, family=f"{file}:{where}", stratum=topic)


def general(distributions: Iterable[str]) -> Iterator[Passage]:
    """Yield package descriptions without badges and HTML; the unit is the distribution."""
    for name in distributions:
        file = f"{sources.DESCRIPTION}:{name}"
        numbered = []
        for number, line in enumerate(sources.source_lines(file), 1):
            if not NOISE.search(line):
                numbered.append((number, line))
        for where, text in cut(file, numbered):
            yield Passage("general", file, where, text, family=name, stratum=name)


def locked_distributions(lock: Path) -> list[str]:
    """Return the names in `requirements.lock` that are sources, sorted without regard to case.

    Left out are those that differ between machines and those of the extra.
    """
    before_extra = lock.read_text().partition(EXTRA)[0]
    names = re.findall(r"^([A-Za-z0-9_.-]+)==", before_extra, re.MULTILINE)
    return sorted((name for name in names if name.lower() not in UNLISTED), key=str.lower)


def candidates(lock: Path) -> dict[str, list[Passage]]:
    """Return all passages of each domain, before anything is removed."""
    return {
        "github": list(github()),
        "arxiv": list(arxiv()),
        "books": list(books()),
        "general": list(general(locked_distributions(lock))),
    }
