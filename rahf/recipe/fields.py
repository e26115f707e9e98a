"""A dataclass field with help, and the check of a value against its annotation.

Knows no option by name. The annotation of a field gives its type, choices and limits; the metadata
holds the help and nothing else, since the parsers of transformers and TRL hand it to argparse.
"""

import dataclasses
import math
import re
import types
from collections.abc import Iterable
from dataclasses import field
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)

_LARGEST = 2**63 - 1
"""The largest integer that torch and datasets take."""

_FURTHEST = 1e12
"""The largest size of any other number: a product of two larger ones may leave float32."""


class OptionError(ValueError):
    """One or more options are wrong; `problems` holds one line for each."""

    def __init__(self, problems: Iterable[str], title: str = ""):
        self.problems = tuple(problems)
        lines = [f"- {problem}" for problem in self.problems] if title else self.problems
        super().__init__("\n".join([title, *lines] if title else lines))


class Limits(NamedTuple):
    """Part of the annotation of a number."""

    least: float = -math.inf
    below: float = math.inf
    above: float = -math.inf


class OrAny(NamedTuple):
    """Part of the annotation of text: other types that are taken as well.

    A union would be equivalent, but the parsers of transformers and TRL pick one type of it.
    """

    types: Any


Count = Annotated[int, Limits(least=1)]
CountFromZero = Annotated[int, Limits(least=0)]
Rank = Annotated[int, Limits(least=1, below=2**16)]
Weight = Annotated[float, Limits(least=0)]
Positive = Annotated[float, Limits(above=0)]
Share = Annotated[float, Limits(least=0, below=1)]


def option(default: Any, help: str) -> Any:
    """Return a dataclass field with its help; a default dict or list is copied for every object."""
    if isinstance(default, dict | list):
        return field(default_factory=lambda: type(default)(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


def raise_problems(problems: list[str]) -> None:
    if problems:
        raise OptionError(problems)


def value_problems(options: Any, cls: type) -> list[str]:
    """Return problems of single values of `cls`'s fields: type, choice, limits."""
    return [
        problem
        for name, annotation in annotations(cls).items()
        for problem in value_problem(name, getattr(options, name), annotation)
    ]


def annotations(cls: type) -> dict[str, Any]:
    """Return {field: annotation} of a dataclass, limits included."""
    hints = get_type_hints(cls, include_extras=True)
    return {spec.name: hints[spec.name] for spec in dataclasses.fields(cls)}


def value_problem(name: str, value: Any, annotation: Any) -> list[str]:
    """Return what is wrong with one value; empty where nothing is."""
    if not fits(value, annotation):
        hint = " (put it in quotes)" if fits("text", annotation) else ""
        return [f"{name}: {value!r} is not {describe_type(annotation)}{hint}"]
    if value == "":
        return [f"{name}: is empty text: remove it or give a value"]
    if isinstance(value, float) and not math.isfinite(value):
        return [f"{name}: {value} is not a finite number"]
    if isinstance(value, int) and abs(value) > _LARGEST and not fits(0.5, annotation):
        return [f"{name}: {value} is out of range, it must be at most {_LARGEST}"]
    if isinstance(value, int | float) and fits(0.5, annotation) and abs(value) > _FURTHEST:
        return [f"{name}: {value:g} is out of range, it must be at most {_FURTHEST:g} in size"]
    for limits in _limits(annotation) if isinstance(value, int | float) else ():
        if not (limits.least <= value < limits.below and value > limits.above):
            return [f"{name}: {value} is out of range, it must be {_describe_limits(limits)}"]
    return []


def _limits(annotation: Any) -> list[Limits]:
    if get_origin(annotation) in (Union, types.UnionType):
        return [limits for part in get_args(annotation) for limits in _limits(part)]
    parts = annotation.__metadata__ if get_origin(annotation) is Annotated else ()
    return [part for part in parts if isinstance(part, Limits)]


def _describe_limits(limits: Limits) -> str:
    bounds = (("at least", limits.least), ("above", limits.above), ("below", limits.below))
    return " and ".join(f"{words} {bound:g}" for words, bound in bounds if math.isfinite(bound))


def fits(value: Any, annotation: Any) -> bool:
    """Return whether a value has the annotated type, whatever its limits and the items of a
    container.

    An int passes as a float; a bool passes as neither.
    """
    origin = get_origin(annotation)
    if origin is Annotated:
        return fits(value, whole_type(annotation))
    if origin in (Union, types.UnionType):
        return any(fits(value, part) for part in get_args(annotation))
    if origin is Literal:
        return any(
            value == choice and type(value) is type(choice) for choice in get_args(annotation)
        )
    if annotation is Any:
        return True
    if annotation in (None, type(None)):
        return value is None
    expected = (int, float) if annotation is float else origin or annotation
    return isinstance(value, expected) and (annotation is bool or not isinstance(value, bool))


def whole_type(annotation: Any) -> Any:
    """Return the type of an Annotated value, with those that `OrAny` adds to it."""
    others = [part.types for part in annotation.__metadata__ if isinstance(part, OrAny)]
    return Union[(annotation.__origin__, *others)]


def coerce(value: Any, annotation: Any) -> Any:
    """Return a value from YAML in the annotated type where its meaning is unambiguous, else
    unchanged.

    PyYAML reads 1e-4 as text, 10.0 as a float and an unquoted `no` as false.
    """
    if fits(value, annotation):
        return value
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        value = float(value)
    if value is False and get_origin(annotation) is Literal and "no" in get_args(annotation):
        return "no"
    if isinstance(value, float) and value.is_integer() and not fits(value, annotation):
        return int(value)
    return value


def describe_type(annotation: Any) -> str:
    """Return an annotation in words: `one of a, b` or `a number or null`."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return describe_type(whole_type(annotation))
    if origin in (Union, types.UnionType):
        return " or ".join(describe_type(part) for part in get_args(annotation))
    if origin is Literal:
        return "one of " + ", ".join(str(choice) for choice in get_args(annotation))
    words = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "text",
        list: "a list",
        dict: "a mapping",
    }
    return words.get(origin or annotation, "null")
