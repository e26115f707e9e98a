"""Which commands a result is of: their names are in the JSON files that they write.

Knows files; knows no command.
"""

import json
from pathlib import Path
from typing import Any

from rahf.artifacts import MADE_BY, expanded

LARGEST = 64 * 2**20
"""Bytes up to which a file is read to find this key."""


def makers(path: Path) -> dict[str, Path]:
    """Return the commands whose results are in a file or folder, and a file that names each.

    Of a folder its own files count, not those of its subfolders.
    """
    if path.is_dir():
        places = [*sorted(path.glob("*.json")), *sorted(path.glob("*.unfinished"))]
    else:
        beside = [path.with_name(f"{path.name}.{end}") for end in ("run.json", "unfinished")]
        places = [path, *beside]
    found: dict[str, Path] = {}
    for place in places:
        record = _first_object(place)
        if isinstance(record, dict) and isinstance(record.get(MADE_BY), str):
            found.setdefault(record[MADE_BY], place)
    return found


def refuse_other_maker(path: Path, command: str | None) -> None:
    """Refuse an output that holds the result of another command, which would be overwritten.

    command: the one that is to write there; None: any.
    """
    found = makers(path) if command is not None else {}
    if found and command not in found:
        maker, place = next(iter(found.items()))
        raise ValueError(
            f"{path} holds a result of `{maker}` ({place.name}), which `{command}` would overwrite "
            "or mix with its own. Give another output, or delete it."
        )


def holds(folder: str | Path, path: Path) -> bool:
    """Return whether a path is that of a folder, or below it."""
    place = expanded(folder)
    return place.is_dir() and path.resolve().is_relative_to(place.resolve())


def _first_object(path: Path) -> Any:
    """Return what a JSON file, or the first line of a file of records, holds; None: not JSON."""
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            if path.suffix == ".unfinished":
                return json.loads(file.readline(LARGEST))
            return json.loads(file.read()) if path.stat().st_size <= LARGEST else None
    except (ValueError, RecursionError):
        return None
