"""The file of a references judge: right and wrong answers to each prompt.

Knows no encoder, so that a recipe is checked without torch.
"""

from pathlib import Path
from typing import NamedTuple

from rahf.data.prompts import prompt_text, read_prompts
from rahf.data.records import read_records


class References(NamedTuple):
    """Reference answers to one prompt, at least one of each."""

    right: list[str]
    wrong: list[str]


def read_references(path: Path) -> dict[str, References]:
    """Return the reference answers to each prompt of a file, by the prompt's text.

    Raises:
        ValueError: a record without a prompt, or without `right` or `wrong`, a text or a list of
            texts.
    """
    found = {}
    for prompt, (place, record) in zip(read_prompts(path), read_records(path), strict=True):
        sides = []
        for name in References._fields:
            given = record.get(name)
            texts = [given] if isinstance(given, str) else given
            whole = isinstance(texts, list) and all(
                isinstance(text, str) and text.strip() for text in texts
            )
            if not texts or not whole:
                raise ValueError(
                    f"{place}: {name}: {given!r} is neither text nor a list of texts; every record "
                    "needs right and wrong reference answers"
                )
            sides.append(texts)
        found[prompt_text(prompt.messages)] = References(*sides)
    return found
