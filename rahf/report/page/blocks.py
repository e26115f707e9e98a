"""What a section of the page is made of, as the templates draw it: texts, tables, charts.

Every text is plain: the templates escape it.
"""

from collections.abc import Sequence
from typing import NamedTuple


class Cell(NamedTuple):
    """A cell of a table with more than a text."""

    text: str
    kind: str = ""  # class of the style: good, bad, open, mono, wide
    chart: "Forest | None" = None


class Table(NamedTuple):
    """A table; the first cell of a row is its header."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    note: str = ""
    kind: str = "table"


class Forest(NamedTuple):
    """An interval beside a band, in units of a shared axis from -1 to 1."""

    low: float
    mean: float
    high: float
    band: tuple[float, float] | None
    dots: Sequence[float]
    moved: bool


class Line(NamedTuple):
    """A curve or the points of a chart."""

    name: str
    points: Sequence[tuple[float, float]]  # x and y in the units of the drawing
    bars: Sequence[tuple[float, float, float]] = ()  # x, and both ends of an interval


class Tick(NamedTuple):
    place: float
    text: str


class Chart(NamedTuple):
    """A chart, its geometry computed."""

    title: str
    label: str  # what it shows, in words
    x_title: str
    y_title: str
    lines: Sequence[Line]
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    zero: float | None  # place of y = 0 inside of the range
    joined: bool
    kind: str = "chart"


class Token(NamedTuple):
    text: str
    kind: str  # class of its colour


class Tokens(NamedTuple):
    """A text in coloured tokens, and what the colours leave out."""

    title: str
    tokens: Sequence[Token]
    detail: Table | None = None
    kind: str = "tokens"


class Answer(NamedTuple):
    """A prompt with the answers of several models."""

    prompt: str
    answers: Sequence[tuple[str, str, str]]  # model, text, score


class Answers(NamedTuple):
    title: str
    answers: Sequence[Answer]
    note: str = ""
    kind: str = "answers"


class Text(NamedTuple):
    text: str
    style: str = ""  # class of the style: warning, note
    kind: str = "text"


class Folded(NamedTuple):
    """Blocks behind a heading that opens them."""

    title: str
    blocks: Sequence[object]
    kind: str = "folded"


class Command(NamedTuple):
    """The command that made a part, or that repeats it."""

    what: str
    command: str | None
    kind: str = "command"


class Section(NamedTuple):
    name: str  # of its anchor
    title: str
    lead: str
    blocks: Sequence[object]


class Missing(NamedTuple):
    """A part that is not there, and the command that makes it."""

    part: str
    why: str
    command: str
