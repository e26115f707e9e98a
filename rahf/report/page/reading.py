"""Files of an output folder -> a training with its metrics, its log, its answers.

A file that is damaged is named and left out. Knows files; loads no model and draws nothing.
"""

import json
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from rahf.artifacts import (
    ANSWERS_FILE,
    LOG_FILE,
    METRICS_FILE,
    RECIPE_FILE,
    STAGE_FILE,
    TEXTS_FILE,
    load_yaml,
)

Record = Mapping[str, Any]


class Run(NamedTuple):
    """A training, and what was measured after it."""

    folder: Path
    settings: Record  # of its recipe
    repeat: str | None  # command that trains it again
    command: str | None  # that trained it
    metrics: Record
    training: Record  # figures of its record: seconds, peak memory
    log: Sequence[Record]
    answers: Sequence[Record]
    texts: Sequence[Record]
    measured_by: str | None  # command of its evaluation


class Part(NamedTuple):
    """The results of another command."""

    path: Path  # of the file that holds the figures
    command: str | None
    figures: Record
    records: Sequence[Record] = ()


class DamagedError(ValueError):
    """A file, or a part of it, that cannot be shown."""


def number(value: Any) -> float:
    """Return a finite number of a file.

    Raises:
        DamagedError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise DamagedError(f"{str(value)[:40]!r} is not a finite number")
    return value


def checked(value: Any, **fields: type | tuple[type, ...]) -> dict[str, Any]:
    """Return an object of a file that has these fields.

    Raises:
        DamagedError: it is no object, or a field is missing or of another type.
    """
    if not isinstance(value, dict):
        raise DamagedError("no JSON object")
    for name, kinds in fields.items():
        if name not in value:
            raise DamagedError(f"{name!r} is missing")
        if not isinstance(value[name], kinds):
            raise DamagedError(f"{name!r} is of another type")
    return value


class Reader:
    """Reads files, and keeps a line for each that it had to leave out."""

    def __init__(self, problems: list[str] | None = None) -> None:
        self.problems = [] if problems is None else problems

    def kept(self, path: Path, read: Callable[[], Any]) -> Any:
        """Return what `read` makes of a file; None, and a line, where the file is damaged."""
        try:
            return read()
        except (DamagedError, OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())[:200]
        except RecursionError:
            reason = "nested too deeply"
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            reason = f"not as the command leaves it ({type(error).__name__}: {error})"[:200]
        self.problems.append(f"{path}: left out, {reason}")
        return None

    def _is_file(self, path: Path) -> bool:
        """Return whether a file is there; what is there and is none is named."""
        found = path.is_file()
        if not found and (path.exists() or path.is_symlink()):
            self.problems.append(f"{path}: left out, not a file")
        return found

    def object(self, path: Path, **fields: type | tuple[type, ...]) -> dict[str, Any] | None:
        """Return the object in a file that has these fields; None where it is not there."""
        if not self._is_file(path):
            return None
        return self.kept(path, lambda: checked(_parsed(path.read_bytes()), **fields))

    def lines(
        self, path: Path, check: Callable[[Record], Any] = len, **fields: type | tuple[type, ...]
    ) -> list[dict[str, Any]]:
        """Return the intact objects of a file, one a line; the others are named.

        Args:
            check: raises DamagedError where an object cannot be shown.
        """
        content = self.kept(path, path.read_bytes) if self._is_file(path) else None
        found, damaged = [], []
        for place, line in enumerate((content or b"").split(b"\n"), 1):
            try:
                if line.strip():
                    record = checked(_parsed(line), **fields)
                    check(record)
                    found.append(record)
            except (DamagedError, RecursionError):
                damaged.append(place)
        if damaged:
            named = ", ".join(map(str, damaged[:5])) + (", ..." if damaged[5:] else "")
            self.problems.append(f"{path}: {len(damaged)} damaged lines left out: {named}")
        return found


def _parsed(content: bytes) -> Any:
    """Return the value of a JSON text; numbers beyond any figure are infinite."""
    try:
        return json.loads(content, parse_int=_figure, parse_float=_figure)
    except ValueError:
        raise DamagedError("not JSON") from None


LARGEST = 1e100
"""Size from which a number is no figure: charts and intervals of it would overflow."""


def _figure(text: str) -> float:
    value = float(text)
    if abs(value) > LARGEST:
        return math.copysign(math.inf, value)
    return int(text) if text.lstrip("-").isdigit() else value


MONITORED = "directions_before.json"
TRAINER_STATE = "trainer_state.json"


def read_run(folder: Path, reader: Reader) -> Run:
    """Return a training with its metrics, its log, its answers."""
    stage = reader.object(folder / STAGE_FILE) or {}
    metrics = reader.object(folder / METRICS_FILE) or {}
    evaluation = folder / "evaluation"
    recipe = folder / RECIPE_FILE
    settings = reader.kept(recipe, lambda: _recipe(recipe)) if recipe.is_file() else None
    settings = settings or metrics.get("settings") or stage.get("settings") or {}
    return Run(
        folder,
        settings if isinstance(settings, dict) else {},
        shlex.join(("rahf", "align", str(recipe))) if recipe.is_file() else None,
        stage.get("command"),
        metrics,
        stage,
        _log(folder, reader),
        reader.lines(evaluation / ANSWERS_FILE, prompt=(str, list), answers=dict),
        reader.lines(evaluation / TEXTS_FILE, tokens=int, loss=dict),
        (reader.object(evaluation / STAGE_FILE) or {}).get("command"),
    )


def _recipe(path: Path) -> dict[str, Any]:
    return checked(load_yaml(path.read_text(encoding="utf-8")))


def _log(folder: Path, reader: Reader) -> list[dict[str, Any]]:
    """Return what a trainer has logged, also one that left its checkpoints only."""
    if (folder / LOG_FILE).exists():
        return reader.lines(folder / LOG_FILE, _check_logged)
    states = sorted(
        folder.glob(f"checkpoint-*/{TRAINER_STATE}"), key=lambda path: path.stat().st_mtime
    )
    states += [folder / TRAINER_STATE] if (folder / TRAINER_STATE).is_file() else []
    state = reader.object(states[-1], log_history=list) if states else None
    lines = [line for line in (state or {}).get("log_history", []) if isinstance(line, dict)]
    return lines if reader.kept(folder, lambda: [1, *map(_check_logged, lines)]) else []


def _check_logged(line: Record) -> None:
    """Refuse a line of a log whose readings are not finite."""
    for key, value in line.items():
        if key == "step" or key.startswith(DIRECTION):
            number(value)


DIRECTION = "directions/"
"""What the names of figures of `guards.monitor.DirectionMonitor` begin with."""


def last_reading(log: Sequence[Record]) -> dict[str, tuple[float, float, float]]:
    """Return the last movement along each watched direction: mean, and the ends of its interval."""
    found = {}
    for line in log:
        for key in line:
            ends = [key, f"{key}/low", f"{key}/high"]
            if key.startswith(DIRECTION) and all(end in line for end in ends):
                found[key.removeprefix(DIRECTION)] = tuple(number(line[end]) for end in ends)
    return found
