"""Output folders -> what commands have left in them: runs, comparisons, and what looked into them.

A file that is damaged is named and left out. Knows files; loads no model and draws nothing.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from rahf.artifacts import ANSWERS_FILE, LOG_FILE, METRICS_FILE, RECIPE_FILE, STAGE_FILE, TEXTS_FILE

DEPTH = 3
"""Folders below a given one that are looked into."""

INSIDE = {"teachers", "runs", "test", "trials", "validation", "retrained", "data", "directions"}
INSIDE |= {"choice", "evaluation", "factors", "pairs"}
"""Folders that belong to a result and hold none of their own."""

PLACEBO = "placebo"

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


class Found(NamedTuple):
    """Everything that the folders hold."""

    runs: list[Run]
    placebos: list[Run]
    comparisons: list[Part]
    diffs: list[Part]
    shifts: list[Part]
    influences: list[Part]
    preferences: list[Part]
    problems: list[str]  # a line for each file that was left out, or lines of it


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
        except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
            reason = f"not as the command leaves it ({type(error).__name__}: {error})"[:200]
        self.problems.append(f"{path}: left out, {reason}")
        return None

    def object(self, path: Path, **fields: type | tuple[type, ...]) -> dict[str, Any] | None:
        """Return the object in a file that has these fields; None where it is not there."""
        if not path.is_file():
            return None
        return self.kept(path, lambda: checked(_parsed(path.read_bytes()), **fields))

    def lines(
        self, path: Path, check: Callable[[Record], Any] = len, **fields: type | tuple[type, ...]
    ) -> list[dict[str, Any]]:
        """Return the intact objects of a file, one a line; the others are named.

        Args:
            check: raises DamagedError where an object cannot be shown.
        """
        content = self.kept(path, path.read_bytes) if path.is_file() else None
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
    try:
        return json.loads(content)
    except ValueError:
        raise DamagedError("not JSON") from None


def read_found(given: Sequence[Path], placebos: Sequence[Path] = ()) -> Found:
    """Return what is in folders and files.

    Args:
        placebos: folders of trainings on pairs whose sides were drawn at random. Folders below one
            named `placebo` are such, too.

    Raises:
        ValueError: a folder or file is not there.
    """
    for path in (*given, *placebos):
        if not path.exists():
            raise ValueError(
                f"{path} does not exist: give the output folders of commands, or files."
            )
    reader, found = Reader(), Found([], [], [], [], [], [], [], [])
    seen: set[Path] = set()
    for root in given:
        for folder in _folders(root):
            is_placebo = PLACEBO in folder.relative_to(root.parent).parts
            _read_folder(folder, reader, found, seen, is_placebo=is_placebo)
        if root.is_file():
            _read_figures(root, reader, found)
    for root in placebos:
        for folder in _folders(root):
            _read_folder(folder, reader, found, seen, is_placebo=True)
    return found._replace(problems=reader.problems)


def _folders(root: Path, depth: int = DEPTH) -> Iterator[Path]:
    """Yield a folder and those below it that may hold results."""
    if not root.is_dir():
        return
    yield root
    inside = sorted(path for path in root.iterdir() if path.is_dir()) if depth else []
    for path in inside:
        if path.name not in INSIDE and not path.name.startswith((".", "checkpoint-")):
            yield from _folders(path, depth - 1)


def _read_folder(
    folder: Path, reader: Reader, found: Found, seen: set[Path], *, is_placebo: bool
) -> None:
    if folder.resolve() in seen:
        return
    seen.add(folder.resolve())
    if (folder / METRICS_FILE).is_file() or (folder / MONITORED).is_file():
        (found.placebos if is_placebo else found.runs).append(read_run(folder, reader))
    if is_placebo:
        return
    for path in sorted(folder.glob("*.json")):
        if path.name not in OTHERS and path.stat().st_size <= LARGEST:
            _read_figures(path, reader, found)


MONITORED = "directions_before.json"
TRAINER_STATE = "trainer_state.json"

OTHERS = {METRICS_FILE, STAGE_FILE, MONITORED, TRAINER_STATE, "config.json", "adapter_config.json"}
OTHERS |= {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json"}
OTHERS |= {"generation_config.json", "dictionary.json", "choice.json", "lengths.json"}
"""JSON files that are no figures of a command, or are read with their run."""

LARGEST = 100 * 2**20  # bytes of a file that is read

SHIFTED = {"prompt": str, "pieces": list, "kind": list, "bucket": list, "base_rank": list}
SHIFTED |= {"kl": list, "base_choice": list}


def _read_figures(path: Path, reader: Reader, found: Found) -> None:
    """Add the figures in a file to those of their kind; other JSON is not ours."""
    figures = reader.object(path)
    if figures is None:
        return
    command = figures.get("command")
    part = Part(path, command if isinstance(command, str) else None, figures)
    if "features_tested" in figures:
        if reader.kept(path, lambda: _check_diff(figures)):
            found.diffs.append(part)
    elif "readings" in figures and "budget" in figures:
        found.comparisons.append(part)
    elif "longer_is_chosen" in figures:
        found.preferences.append(part)
    elif "by_position" in figures and "responses" in figures:
        records = reader.lines(path.with_name("shift.jsonl"), **SHIFTED)
        found.shifts.append(part._replace(records=records))
    elif "curvature" in figures and "unit" in figures:
        records = reader.lines(path.with_name("queries.jsonl"), query=str, pairs=list)
        validated = reader.object(path.with_name("validation.json"))
        figures = {**figures, "validation": validated}
        found.influences.append(part._replace(figures=figures, records=records))


def _check_diff(figures: Record) -> bool:
    checked(figures, features=list, dictionary=str, prompts=int, features_tested=int)
    for row in figures["features"]:
        checked(row, feature=int, moved=bool, placebo_size=list, seeds_alike=list)
        for value in (*(row.get(key) for key in FEATURE), *row["placebo_size"]):
            number(value)
    return True


FEATURE = ("effect", "low", "high", "q", "size")
"""Numbers of a feature."""


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
        f"rahf align {recipe}" if recipe.is_file() else None,
        stage.get("command"),
        metrics,
        stage,
        _log(folder, reader),
        reader.lines(evaluation / ANSWERS_FILE, prompt=(str, list), answers=dict),
        reader.lines(evaluation / TEXTS_FILE, tokens=int, loss=dict),
        (reader.object(evaluation / STAGE_FILE) or {}).get("command"),
    )


def _recipe(path: Path) -> dict[str, Any]:
    return checked(yaml.safe_load(path.read_text(encoding="utf-8")))


def _log(folder: Path, reader: Reader) -> list[dict[str, Any]]:
    """Return what a trainer has logged, also one that left its checkpoints only."""
    if (folder / LOG_FILE).is_file():
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
