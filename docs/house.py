"""Draw docs/house.svg, the picture of docs/design.md: `python docs/house.py`."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

PICTURE = Path(__file__).with_name("house.svg")
WIDTH, HEIGHT = 460, 560  # in pixels; narrow enough for the screen of a phone
INK, PAPER, WALL = "#1b1f24", "#ffffff", "#eef3f8"
LINE = 16  # pixels from one line of words to the next


class Room(NamedTuple):
    """A part of the code: its name, what it does, and where its box stands, in pixels."""

    name: str
    words: tuple[str, ...]
    left: int
    top: int
    width: int
    height: int


class Flow(NamedTuple):
    """What goes up from one room to another: words beside an arrow, and where it stands."""

    words: str
    x: int
    bottom: int
    top: int


ROOMS = (
    Room("findings", ("tables, figures,", "a verdict for each claim"), 10, 75, 210, 75),
    Room("study", ("the notebooks' models and runs,", "each a stored artifact"), 10, 190, 210, 75),
    Room(
        "app",
        ("the commands for your own", "documents: unlearn, evaluate,", "compare, methods"),
        240,
        75,
        210,
        190,
    ),
    Room("engine", ("trains, unlearns and measures a model",), 10, 305, 440, 55),
    Room("data", ("documents, their splits, and their tokens",), 10, 400, 440, 55),
    Room("core", ("losses, methods,", "scores"), 10, 475, 140, 75),
    Room("cache", ("stored results,", "folders"), 160, 475, 140, 75),
    Room("profiles.py", ("every setting", "of every profile"), 310, 475, 140, 75),
)
FLOWS = (
    Flow("what is shown", 30, 75, 40),
    Flow("a model and its evidence", 260, 75, 40),
    Flow("rows of measurements", 30, 190, 150),
    Flow("models, rows", 30, 305, 265),
    Flow("models, rows", 260, 305, 265),
    Flow("token ids", 30, 400, 360),
)
OUTSIDE = (("notebooks/, executed by runner", 10), ("you", 240))  # words above the roof, and where


def text(words: str, x: int, y: int, style: str = "") -> str:
    """Return words whose first letter stands at (x, y)."""
    return f'<text x="{x}" y="{y}" {style}>{escape(words)}</text>'


def box(room: Room) -> list[str]:
    """Return a room: its walls, its name in bold, and its words below."""
    lines = [
        f'<rect x="{room.left}" y="{room.top}" width="{room.width}" height="{room.height}" '
        f'rx="4" fill="{WALL}" stroke="{INK}"/>',
        text(room.name, room.left + 10, room.top + 22, 'font-weight="bold"'),
    ]
    for number, words in enumerate(room.words, 1):
        lines.append(text(words, room.left + 10, room.top + 24 + number * LINE))
    return lines


def arrow(flow: Flow) -> list[str]:
    """Return an arrow upwards, with its words on the right."""
    shaft = f"M{flow.x} {flow.bottom - 2} V{flow.top + 4}"
    head = f"M{flow.x - 4} {flow.top + 10} L{flow.x} {flow.top + 3} L{flow.x + 4} {flow.top + 10}"
    middle = (flow.bottom + flow.top) // 2 + 5
    return [
        f'<path d="{shaft} {head}" fill="none" stroke="{INK}"/>',
        text(flow.words, flow.x + 10, middle, 'font-style="italic"'),
    ]


def picture() -> str:
    """Return the whole picture as SVG."""
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" font-size="13" '
        f'fill="{INK}">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="{PAPER}"/>',
    ]
    for words, left in OUTSIDE:
        lines.append(text(words, left, 28))
    for flow in FLOWS:
        lines += arrow(flow)
    for room in ROOMS:
        lines += box(room)
    return "\n".join([*lines, "</svg>\n"])


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
