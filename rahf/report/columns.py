"""Texts beside each other in a terminal: a column each, under its name."""

import shutil
import textwrap
from collections.abc import Mapping
from itertools import zip_longest

from rahf.report.escaping import printable

NARROWEST = 24
"""Characters of a column; where they do not fit beside each other, the texts follow each other."""
GAP = "   "


def columns(texts: Mapping[str, str], width: int | None = None) -> str:
    """Return texts by name, beside each other in lines of `width` (default: the terminal's).

    One text has no name beside it.
    """
    width = width or shutil.get_terminal_size().columns
    if len(texts) == 1:
        [text] = texts.values()
        return "\n".join(_lines(text, width))
    room = (width - len(GAP) * (len(texts) - 1)) // len(texts)
    if room < NARROWEST:
        wrapped = [[f"{name}:", *_lines(text, width)] for name, text in texts.items()]
        return "\n\n".join("\n".join(lines) for lines in wrapped)
    cells = [[name, "-" * room, *_lines(text, room)] for name, text in texts.items()]
    rows = zip_longest(*cells, fillvalue="")
    return "\n".join(GAP.join(cell.ljust(room) for cell in row).rstrip() for row in rows)


def _lines(text: str, width: int) -> list[str]:
    """Return a text in lines of at most `width` characters; its own line breaks stay."""
    broken = [textwrap.wrap(line, width) or [""] for line in printable(text).splitlines()]
    return [line for lines in broken for line in lines]
