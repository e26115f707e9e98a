"""The commands whose results the page reads, and how a result is known and checked.

Knows files; draws nothing. A training is read by `reading`, from its folder.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from rahf.artifacts import MADE_BY
from rahf.report.page.reading import DamagedError, Part, Reader, Record, checked, number

LARGEST = 100 * 2**20  # bytes of a file that is read

SHIFTED = {"prompt": str, "pieces": list, "kind": list, "bucket": list, "base_rank": list}
SHIFTED |= {"kl": list, "base_choice": list}

FEATURE = ("effect", "low", "high", "q", "size")
"""Numbers of a feature."""


def _checked_diff(part: Part, reader: Reader) -> Part | None:
    return reader.kept(part.path, lambda: _check_diff(part.figures)) and part


def _check_diff(figures: Record) -> bool:
    checked(figures, features=list, dictionary=str, prompts=int, features_tested=int)
    for row in figures["features"]:
        checked(row, feature=int, moved=bool, placebo_size=list, seeds_alike=list)
        for value in (*(row.get(key) for key in FEATURE), *row["placebo_size"]):
            number(value)
    return True


def _checked_preferences(part: Part, reader: Reader) -> Part | None:
    return reader.kept(part.path, lambda: _counted(part.figures.get("pairs", 0))) and part


def _counted(value: object) -> bool:
    """Return True.

    Raises:
        DamagedError: the value is not a count.
    """
    if number(value) < 0:
        raise DamagedError(f"{value!r} is not a count")
    return True


def _with_responses(part: Part, reader: Reader) -> Part:
    return part._replace(records=reader.lines(part.path.with_name("shift.jsonl"), **SHIFTED))


def _with_queries(part: Part, reader: Reader) -> Part:
    """Return a scoring with its queries, and the validation beside it."""
    records = reader.lines(part.path.with_name("queries.jsonl"), query=str, pairs=list)
    validated = reader.object(part.path.with_name("validation.json"))
    return part._replace(figures={**part.figures, "validation": validated}, records=records)


class Kind(NamedTuple):
    """How the page knows the result of a command, and what it reads with it."""

    keys: tuple[set[str], ...] = ()  # sets of keys, one of which a result without a command has
    read: Callable[[Part, Reader], Part | None] | None = None  # with files beside, or a check


READ = {
    "rahf compare": Kind(({"readings", "budget"},)),
    "rahf sweep": Kind(),
    "rahf shift": Kind(({"by_position", "responses"},), _with_responses),
    "rahf features diff": Kind(({"features_tested"},), _checked_diff),
    "rahf influence score": Kind(({"curvature", "unit"},), _with_queries),
    "rahf influence validate": Kind(({"steps", "cpu_seconds"},)),
    "rahf influence clean": Kind(({"arms", "changed"},)),
    "rahf evaluate preferences": Kind(({"longer_is_chosen"},), _checked_preferences),
    "rahf evaluate responses": Kind(({"judge", "missing"}, {"judge", "aspects"})),
    "rahf evaluate tasks": Kind(({"tasks", "made_from"},)),
    "rahf screen": Kind(({"directions", "characters", "rows_found"},)),
}
"""Results in a JSON file, by their command."""

READ_AS_TRAININGS = ("rahf align", "rahf dpo", "rahf quickstart")
"""Commands whose folders are read as those of trainings."""


def read_part(path: Path, reader: Reader) -> tuple[str, Part] | None:
    """Return the command whose figures are in a file, and these; None: they are no such figures."""
    figures = reader.kept(path, lambda: _small(path)) and reader.object(path)
    maker = None if figures is None else command_of(figures)
    if figures is None or maker is None:
        return None
    words = figures.get("command")
    part, read = Part(path, words if isinstance(words, str) else None, figures), READ[maker].read
    whole = part if read is None else read(part, reader)
    return whole and (maker, whole)


def _small(path: Path) -> bool:
    """Return True.

    Raises:
        DamagedError: the file is too large to be figures.
    """
    if (size := path.stat().st_size) > LARGEST:
        raise DamagedError(f"{size / 2**20:.0f} MiB, more than figures take")
    return True


def command_of(figures: Record) -> str | None:
    """Return the command that made figures; None: it is none of those that the page reads."""
    named = figures.get(MADE_BY)
    if isinstance(named, str):
        return named if named in READ else None
    return next(
        (name for name, kind in READ.items() if any(keys <= figures.keys() for keys in kind.keys)),
        None,
    )
