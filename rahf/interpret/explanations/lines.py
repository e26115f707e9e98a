"""Lines of the files that `rahf features explain` and `score` write, checked field by field.

Knows JSON and units; knows no model.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

from rahf.interpret.explanations.units import Unit, UnitKind

Made = TypeVar("Made")


def read_each(path: Path, made: Callable[[Any], Made], what: str, remedy: str) -> Iterator[Made]:
    """Yield what is made of each line of a file of JSON lines.

    Raises:
        ValueError: a line is not JSON, or `made` finds what it needs missing or of another type.
    """
    for number, text in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if not text:
            continue
        try:
            found = made(json.loads(text))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            why = f"no {error}" if isinstance(error, KeyError) else error
            raise ValueError(f"{path}, line {number}: not {what} ({why}). {remedy}.") from None
        yield found


def unit_of(line: Mapping[str, Any]) -> Unit:
    """Return the unit of a line.

    Raises:
        ValueError: a kind that no unit has, or numbers that are not whole.
    """
    if line["kind"] not in get_args(UnitKind):
        raise ValueError(f"kind {line['kind']!r}")
    return Unit(line["kind"], count_in(line, "number"), count_in(line, "layer"))


def explanation_in(line: Mapping[str, Any]) -> str | None:
    if not isinstance(line["explanation"], str | None):
        raise ValueError(f"explanation {line['explanation']!r}")
    return line["explanation"]


def scored_line(line: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a line that shows an explanation, with its scores where it has any.

    Raises:
        ValueError: a score is not an estimate with its interval, or of no known measure.
    """
    unit_of(line)
    explanation_in(line)
    scores = line.get("scores")
    if not isinstance(scores, dict | None):
        raise ValueError(f"scores {scores!r}")
    for name, figures in (scores or {}).items():
        if not isinstance(figures, dict | None):
            raise ValueError(f"scores of {name} {figures!r}")
        for measure in ("auc", "variance"):
            estimate = (figures or {}).get(measure)
            for end in ("mean", "low", "high") if estimate else ():
                number_in(estimate, end)
    return line


def count_in(line: Mapping[str, Any], name: str) -> int:
    if type(line[name]) is not int or line[name] < 0:
        raise ValueError(f"{name} {line[name]!r}")
    return line[name]


def number_in(line: Mapping[str, Any], name: str) -> float:
    if type(line[name]) not in (int, float) or not math.isfinite(line[name]):
        raise ValueError(f"{name} {line[name]!r}")
    return line[name]
