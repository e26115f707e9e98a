"""What a sentence of the statistics explainer claims, in a form that can be checked without a
model: a claim becomes a sentence, and the sentence is read back as the claim.

A claim is about each token of a text: its class, the token itself, the token before it, or the
words of the text around it. Knows texts of tokens only.
"""

import json
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

ClaimKind = Literal["class", "tokens", "after", "about"]


def _is_punctuation(text: str) -> bool:
    return all(unicodedata.category(character)[0] in "PS" for character in text)


def _letters(text: str) -> bool:
    return text.strip().isalpha()


CLASSES: Mapping[str, Callable[[str], bool]] = {
    "digits": lambda text: text.strip().isdecimal(),
    "punctuation": lambda text: bool(text.strip()) and _is_punctuation(text.strip()),
    "line breaks": lambda text: text.isspace() and "\n" in text,
    "whitespace": str.isspace,
    "words in capitals": lambda text: _letters(text) and text.isupper() and len(text.strip()) > 1,
    "words that begin with a capital": lambda text: _letters(text) and text.strip()[0].isupper(),
    "letters beyond ASCII": lambda text: _letters(text) and not text.isascii(),
    "ends of words": lambda text: text[:1].islower(),
    "bytes of a character": lambda text: re.fullmatch(r"(\\x[0-9a-f]{2})+", text) is not None,
}
"""Classes of tokens, by the name that a sentence gives them."""

WORD = re.compile(r"[^\W\d_]{3,}")

_BEGINNINGS: Mapping[ClaimKind, str] = {
    "class": "Active on tokens that are ",
    "tokens": "Active on the tokens ",
    "after": "Active on tokens after ",
    "about": "Active in text with the words ",
}
_SHARE = re.compile(r" \(\d+ % of its (?:activations|texts)\)$")
_TYPICAL = "; most typical tokens: "


@dataclass(frozen=True)
class Claim:
    """When a unit is active."""

    kind: ClaimKind
    values: tuple[str, ...]  # names of classes, tokens or words, of which any counts

    def sentence(self, share: float | None = None, typical: Sequence[str] = ()) -> str:
        """Return the claim in words.

        Args:
            share: of the active tokens or, of words, of the activating texts that it is true of.
            typical: tokens that are named beside it.
        """
        values = " or ".join(self.values) if self.kind == "class" else _listed(self.values)
        of = "texts" if self.kind == "about" else "activations"
        known = "" if share is None else f" ({share * 100:.0f} % of its {of})"
        beside = _TYPICAL + _listed(typical) if typical else ""
        return f"{_BEGINNINGS[self.kind]}{values}{known}{beside}."

    def holds(self, tokens: Sequence[str]) -> list[bool]:
        """Return for which tokens of a text the claim is true."""
        if self.kind == "about":
            return [not set(self.values).isdisjoint(words_of(tokens))] * len(tokens)
        if self.kind == "class":
            return [any(CLASSES[name](token) for name in self.values) for token in tokens]
        checked = tokens if self.kind == "tokens" else ["", *tokens[:-1]]
        return [token in self.values for token in checked]


def read_claim(sentence: str) -> Claim | None:
    """Return what a sentence claims; None where it is no sentence of a claim."""
    stated = _SHARE.sub("", sentence.removesuffix(".").split(_TYPICAL)[0])
    for kind, beginning in _BEGINNINGS.items():
        if stated.startswith(beginning):
            values = _read(kind, stated.removeprefix(beginning))
            return Claim(kind, values) if values else None
    return None


def _read(kind: ClaimKind, text: str) -> tuple[str, ...]:
    if kind == "class":
        names = tuple(text.split(" or "))
        return names if set(names) <= CLASSES.keys() else ()
    try:
        values = json.loads(f"[{text}]")
    except ValueError:
        return ()
    return tuple(values) if all(isinstance(value, str) for value in values) else ()


def words_of(tokens: Sequence[str]) -> set[str]:
    """Return the words of a text, in small letters."""
    return {word.lower() for word in WORD.findall("".join(tokens))}


def _listed(values: Sequence[str]) -> str:
    return ", ".join(json.dumps(value, ensure_ascii=False) for value in values)
