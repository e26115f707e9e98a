"""What a judge is, and how its verdicts are kept.

A judge reads a text that is made of a prompt and one response, or two, and gives a verdict. Each
verdict is kept with the judge's id and a hash of what it read. So nothing is judged twice, and two
judges, or two wordings of one, are not mixed up. Knows no model and no network.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from rahf.artifacts import append_lines, identity_of, kept_lines
from rahf.data.messages import Message

LONGEST_SEARCHED = 2**16
"""Characters of an answer in which a JSON object is looked for."""

MOST_BRACES = 1000
"""Opening braces at which a JSON object is looked for."""

SHOWN = 80
"""Characters of a text that an error shows."""

Chat = Sequence[Message]

Value = float | dict[str, float | None] | None


class Verdict(NamedTuple):
    """A judge's verdict on one text."""

    value: Value  # None: its answer could not be read
    said: str = ""  # its own words, where it has any
    tokens: tuple[int, int] = (0, 0)  # read and written for it, where the judge counts them


class Judge(Protocol):
    """A scorer reads one response and gives a number (or one by aspect); a chooser reads two and
    gives, from 0 to 1, how far the first is the better one.
    """

    id: str
    responses: int  # that it reads at once: 1 or 2

    def read(self, messages: Chat, *responses: str) -> str:
        """Return the text that the judge is to read."""

    def verdicts(self, read: Sequence[str]) -> Iterator[Verdict]:
        """Yield a verdict a text, in their order, each as soon as it is there."""


def id_of_model(name: str, dtype: str, *bases: str | None) -> str:
    """Return the id of a local model as judge: name, dtype, content of its files here."""
    content = identity_of(*filter(None, (name, *bases)))
    return " ".join(filter(None, (name, dtype, content)))


class Verdicts:
    """Verdicts on the disk, one a line; what a damaged line was about is judged again.

    Args:
        path: a file that may be there already, and may hold verdicts of several judges; None: they
            are kept in memory.

    Raises:
        ValueError: the file holds something, but no verdict.
    """

    def __init__(self, path: Path | None = None):
        self._path = path
        self._known: dict[str, Verdict] = {}
        if path is not None and path.exists():
            for record in kept_lines(path, _is_kept_verdict, "verdicts"):
                key = record["judge"], record["prompt_hash"]
                tokens = tuple(record.get("tokens", (0, 0)))
                self._known[key] = Verdict(record["value"], record["said"], tokens)

    def ask(self, judge: Judge, read: Sequence[str]) -> list[Verdict]:
        """Return the judge's verdicts; it reads only what it has not read before.

        Raises:
            ValueError: a verdict is NaN or infinite.
        """
        keys = [(judge.id, prompt_hash(text)) for text in read]
        new = {key: text for key, text in zip(keys, read, strict=True) if key not in self._known}
        given = judge.verdicts(list(new.values())) if new else ()
        for place, (key, verdict) in enumerate(zip(new, given, strict=True), 1):
            if not is_finite(verdict.value):
                raise ValueError(
                    f"judge {judge.id}: the verdict on text {place} of {len(new)} is not finite "
                    f"({verdict.value}): check the judge's weights and dtype. The text: "
                    f"{new[key][:SHOWN]!r}"
                )
            self._known[key] = verdict
            self._keep(key, verdict)
        return [self._known[key] for key in keys]

    def _keep(self, key: tuple[str, str], verdict: Verdict) -> None:
        if self._path is not None:
            record = {"judge": key[0], "prompt_hash": key[1], **verdict._asdict()}
            append_lines(self._path, [record])


def is_finite(value: Value) -> bool:
    """Return whether all numbers of a verdict are finite; a missing verdict has none."""
    numbers = value.values() if isinstance(value, dict) else [value]
    return all(number is None or math.isfinite(number) for number in numbers)


def _is_kept_verdict(line: Any) -> bool:
    """Return whether a line holds a verdict of which nothing is missing or not finite."""
    if not isinstance(line, dict) or "value" not in line:
        return False
    value = line["value"]
    numbers = value.values() if isinstance(value, dict) else [value]
    tokens = line.get("tokens", [0, 0])  # an earlier version counted none
    return (
        isinstance(tokens, list)
        and [type(count) for count in tokens] == [int, int]
        and all(isinstance(line.get(key), str) for key in ("judge", "prompt_hash", "said"))
        and all(number is None or type(number) in (int, float) for number in numbers)
        and is_finite(value)
    )


def prompt_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def first_json_object(text: str) -> Mapping[str, Any] | None:
    """Return the first JSON object in a text: alone, fenced or among words; None: there is none.

    The search is bounded: a model that writes braces for ever costs a second at most.
    """
    decoder, text = json.JSONDecoder(), text[:LONGEST_SEARCHED]
    for start in islice(re.finditer(r"\{", text), MOST_BRACES):
        try:
            return decoder.raw_decode(text, start.start())[0]
        except (ValueError, RecursionError):  # ValueError: also a number of 10,000 digits
            continue
    return None
