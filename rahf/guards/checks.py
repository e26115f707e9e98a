"""What every guard checks of the directions and numbers that it is given. Knows no model."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rahf.directions.vectors import Directions


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number, and no bool."""
    return isinstance(value, int | float) and type(value) is not bool and math.isfinite(value)


def check_count(name: str, value: int) -> None:
    """Refuse what is not a whole number of at least 1.

    Raises:
        ValueError: names the value and what it should be.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}: {value!r} should be a whole number, at least 1.")


def check_trainer(trainer: Any) -> None:
    """Refuse what is not a trainer with a model and a tokenizer.

    Raises:
        ValueError: names what is missing.
    """
    lacking = [
        name for name in ("model", "processing_class") if getattr(trainer, name, None) is None
    ]
    if lacking:
        raise ValueError(
            f"trainer: {trainer!r:.80} has no {' and no '.join(lacking)}: give a Trainer of "
            "transformers, with processing_class=tokenizer."
        )


def check_records(name: str, given: Any, form: str) -> None:
    """Refuse what is neither the name of a file nor records.

    Raises:
        ValueError: names the value, and the form of a record.
    """
    if isinstance(given, str | Path):
        return
    several = isinstance(given, Iterable) and not isinstance(given, Mapping)
    if not several or not all(isinstance(each, Mapping) for each in given):
        raise ValueError(f"{name}: {given!r:.80} should be a file, or records as {form}.")


def check_directions(directions: Any, name: str = "directions") -> None:
    """Refuse what is not Directions with at least one layer.

    Raises:
        ValueError: the value is of another type, for instance a path, or holds no layer.
    """
    if not isinstance(directions, Directions):
        raise ValueError(
            f"{name}: {directions!r} is not a rahf.Directions: load a folder with Directions.load."
        )
    if not directions.layers:
        raise ValueError(f"{name}: the directions hold no layer: fit them again.")


def increments(directions: Directions) -> Directions:
    """Return what each layer adds to the layers before it, in ascending order of the layers."""
    return directions.only(tuple(sorted(directions.layers))).increments()
