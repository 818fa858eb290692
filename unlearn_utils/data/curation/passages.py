"""Candidates of the embedded corpus: real text of the pinned packages, cut into passages. `splits` chooses among them."""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from unlearn_utils.data import sources

PROSE_PACKAGES = ("numpy", "scipy", "sklearn", "sympy", "torch")
KEPT_SECTIONS = {"notes", "explanation", "description", "extended summary"}
SECTION = re.compile(
    r"^(args|arguments|keyword args|keyword arguments|inputs?|outputs?|returns?|shape|examples?|attributes|raises|"
    r"parameters|references|see also|variables|warnings?|methods|yields)\s*:{0,2}\s*$",
    re.IGNORECASE,
)
UNLISTED = {"pip", "setuptools", "wheel", "unlearn-utils"}  # these vary between machines
EXTRA = "# The extra `downstream` alone: no source of the embedded corpus."  # a line of the lock; what follows came after the corpus


@dataclass(frozen=True)
class Passage:
    """A cut of 750 to 1,000 characters: where it stands, its unit (`family`) and the stratum that splits balance."""

    domain: str
    file: str
    lines: str
    text: str
    family: str
    stratum: str


def digest(text: str) -> str:
    """16 hexadecimal digits of BLAKE2b; its order is the corpus's only source of 'arbitrary' order."""
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


# ---------------------------------------------------------------------------------------------- passages


def ranges(numbers: Iterable[int]) -> str:
    """`[3, 4, 5, 9]` -> `"3-5,9-9"`: 1-based line numbers as `sources.read_lines` takes them."""
    spans: list[list[int]] = []
    for n in numbers:
        if spans and n == spans[-1][1] + 1:
            spans[-1][1] = n
        else:
            spans.append([n, n])
    return ",".join(f"{a}-{b}" for a, b in spans)


def readable(text: str) -> bool:
    """Text rather than a table of numbers: at least 45% letters and 40 distinct words."""
    return sum(c.isalpha() for c in text) >= 0.45 * len(text) and len(set(re.findall(r"\w+", text.lower()))) >= 40


def cut(file: str, numbered: list[tuple[int, str]]) -> Iterator[tuple[str, str]]:
    """(lines, text) of consecutive passages of 750 to 1,000 characters, ended at a blank line where one comes."""
    block: list[tuple[int, str]] = []
    for n, line in numbered:
        size = sum(len(text) + 1 for _, text in block)
        if block and (size + len(line) > 1000 or (size >= 750 and not line.strip())):
            yield from emit(file, block)
            block = []
        if block or line.strip():
            block.append((n, line))
    yield from emit(file, block)


def emit(file: str, block: list[tuple[int, str]]) -> Iterator[tuple[str, str]]:
    """The block as one passage, if it is long enough and readable."""
    lines = ranges(n for n, _ in block)
    text = sources.read_lines(file, lines) if block else ""
    if 750 <= len(text) <= 1000 and readable(text):
        yield lines, text


def docstring_nodes(tree: ast.Module) -> Iterator[ast.Expr]:
    """The docstring expressions of a module, its classes and functions, in file order."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
            and isinstance(body[0].value.value, str)
        ):
            yield body[0]


def prose(lines: list[str]) -> list[int]:
    """Indices of a docstring's summary, free prose and Notes: parameter tables repeat from function to function."""
    margin = min((len(x) - len(x.lstrip()) for x in lines[1:] if x.strip()), default=0)
    kept, keeping = [], True
    for i, line in enumerate(lines):
        body, below = line.strip(), lines[i + 1].strip() if i + 1 < len(lines) else ""
        underlined = bool(re.fullmatch(r"[-=~]{3,}", below)) and bool(body)
        if underlined or (SECTION.match(body) and len(line) - len(line.lstrip()) == margin):
            keeping = body.lower() in KEPT_SECTIONS
        elif re.fullmatch(r"[-=~]{3,}", body) or body.startswith((">>>", "...")):
            continue
        elif keeping:
            kept.append(i)
    return kept


def modules_of(packages: Iterable[str], holding: str = "") -> Iterator[tuple[str, list[str], ast.Module]]:
    """(file, lines, syntax tree) of every module of the packages that holds a string, tests left out."""
    for package in packages:
        root = sources.site_packages(package)
        for path in sorted((root / package).rglob("*.py")):
            file = path.relative_to(root).as_posix()
            if "/tests/" not in file and "/_vendor/" not in file and "/externals/" not in file:
                text = path.read_text(encoding="utf-8")
                if holding in text:
                    yield file, text.split("\n"), ast.parse(text)


def github() -> Iterator[Passage]:
    """Source code of networkx without its docstrings; unit: the file."""
    for file, lines, tree in modules_of(["networkx"]):
        spoken = {n for d in docstring_nodes(tree) for n in range(d.lineno, d.end_lineno + 1)}
        code = [(n, line) for n, line in enumerate(lines, 1) if n not in spoken]
        for where, text in cut(file, code):
            yield Passage("github", file, where, text, file, str(Path(file).parent))


def arxiv() -> Iterator[Passage]:
    """Scientific prose with formulas: docstrings that hold mathematics; unit: the docstring."""
    for file, lines, tree in modules_of(PROSE_PACKAGES, "math:"):
        for node in docstring_nodes(tree):
            own = lines[node.lineno - 1 : node.end_lineno]
            if ":math:" in "\n".join(own) or ".. math::" in "\n".join(own):
                numbered = [(node.lineno + i, own[i]) for i in prose(own)]
                for where, text in cut(file, numbered):
                    yield Passage("arxiv", file, where, text, f"{file}:{node.lineno}", file.split("/")[0])


def books() -> Iterator[Passage]:
    """The Python Language Reference by topic; unit: the passage."""
    for topic in sources.topics():
        file = f"pydoc_data.topics:{topic}"
        for where, text in cut(file, list(enumerate(sources.source_lines(file), 1))):
            yield Passage("books", file, where, text, f"{file}:{where}", topic)


def general(distributions: Iterable[str]) -> Iterator[Passage]:
    """Package descriptions without badges and HTML; unit: the distribution."""
    noise = re.compile(r"<[^>]+>|\]\(https?://|!\[|^\s*\.\. (image|\|)|^\s*:(target|alt)|https?://\S+\.(svg|png)|https?://")
    for name in distributions:
        file = f"METADATA:{name}"
        numbered = [(n, x) for n, x in enumerate(sources.source_lines(file), 1) if not noise.search(x)]
        for where, text in cut(file, numbered):
            yield Passage("general", file, where, text, name, name)


def locked_distributions(lock: Path) -> list[str]:
    """Names in `requirements.lock`, less those that differ between machines and those of the extra."""
    names = re.findall(r"^([A-Za-z0-9_.-]+)==", lock.read_text().partition(EXTRA)[0], re.MULTILINE)
    return sorted((n for n in names if n.lower() not in UNLISTED), key=str.lower)


def candidates(lock: Path) -> dict[str, list[Passage]]:
    """All passages of each domain, before anything is removed."""
    made = {"github": github(), "arxiv": arxiv(), "books": books(), "general": general(locked_distributions(lock))}
    return {domain: list(passages) for domain, passages in made.items()}
