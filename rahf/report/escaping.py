"""Text of data, names and servers made harmless: for a terminal, for a line, for Markdown.

Knows characters; knows nothing of where a text comes from.
"""

import re
from typing import Any

_BIDIRECTIONAL = "\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069"
_UNSEEN = re.compile(f"[\x00-\x08\x0b-\x1f\x7f-\x9f{_BIDIRECTIONAL}\ufeff\ud800-\udfff]")

_MARKDOWN = re.compile(r"([\\`*_\[\]<>|#!~$])")


def printable(text: str) -> str:
    """Return `text` with its control characters and direction marks written as escapes.

    Line breaks and tabs stay: an ESC in a response must not move a terminal's cursor.
    """
    return _UNSEEN.sub(lambda found: ascii(found.group())[1:-1], text)


_MARKS = {" ": "␣", "\n": "⏎", "\t": "⇥", "\r": "␍"}


def visible_token(text: str) -> str:
    """Return the text of a token with every character visible, so that no two tokens look alike:
    spaces as ␣, line breaks as ⏎, tabs as ⇥, other characters without a shape as escapes.
    """
    hidden = {*_MARKS.values(), "∅"}  # which a token may be itself

    def mark(character: str) -> str:
        if character in _MARKS:
            return _MARKS[character]
        seen = character.isprintable() and character not in hidden
        return character if seen else ascii(character)[1:-1]

    return "".join(map(mark, text)) or "∅"


def one_line(text: str, longest: int = 600) -> str:
    """Return `text` printable on one line, cut after `longest` characters."""
    line = printable(" ".join(text.split()))
    return line if len(line) <= longest else f"{line[:longest]}..."


def markdown_text(value: Any) -> str:
    """Return a value as one line of Markdown with every special character escaped."""
    return _MARKDOWN.sub(r"\\\1", printable(" ".join(str(value).split())))


def markdown_code(value: Any) -> str:
    """Return a value as a Markdown code span, whatever backticks it holds."""
    text = printable(" ".join(str(value).split()))
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    if not longest:
        return f"`{text}`"
    fence = "`" * (longest + 1)
    return f"{fence} {text} {fence}"


def is_utf8(text: str) -> bool:
    """Return whether UTF-8 can hold a text: a lone half of a pair of surrogates it cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
