"""Files of a run: records of its stages, its metrics, its log. Written whole or not at all.

Knows folders and JSON; knows no model and no method.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

STAGE_FILE = "stage.json"
METRICS_FILE = "metrics.json"
RECIPE_FILE = "recipe.yaml"
LOG_FILE = "log.jsonl"
ANSWERS_FILE = "answers.jsonl"


def write_text(path: Path, text: str) -> None:
    """Write beside and rename, so that a full disk leaves the old file as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}.partial")
    try:
        staging.write_text(text, encoding="utf-8")
        staging.replace(path)
    finally:
        staging.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """One JSON object a line."""
    write_text(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


class StageRecord:
    """What a stage was made with, and whether it is complete; kept in its folder as `stage.json`.

    A stage that was made with other settings is neither reused nor overwritten: the user decides.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]):
        self._path = folder / STAGE_FILE
        self._settings = json.loads(json.dumps(settings))

    def is_complete(self) -> bool:
        """Whether the stage is done with these very settings.

        Raises:
            ValueError: the folder holds the stage, finished or begun, made with other settings.
        """
        if not self._path.exists():
            return False
        record = read_json(self._path)
        changed = _differences(record["settings"], self._settings)
        if changed:
            raise ValueError(
                f"{self._path.parent} holds this stage made with other settings:\n"
                + "\n".join(f"  {line}" for line in changed)
                + "\nGive another output_dir, or delete that folder to make the stage anew."
            )
        return record["complete"]

    def begin(self) -> None:
        write_json(self._path, {"complete": False, "settings": self._settings})

    def finish(self, **results: Any) -> None:
        write_json(self._path, {"complete": True, **results, "settings": self._settings})


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    lines = []
    for key in sorted({*before, *now}):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            lines += _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            lines.append(f"{prefix}{key}: {old!r} there, {new!r} now")
    return lines
