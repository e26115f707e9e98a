"""The record of a stage: what it was made with, and whether it is complete and intact.

Knows folders and JSON; knows no model and no method.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rahf.artifacts import (
    MADE_BY,
    MANIFEST,
    METRICS_FILE,
    RECIPE_FILE,
    STAGE_FILE,
    WEIGHTS,
    content_of,
    differences,
    other_content,
    read_object,
    write_json,
)
from rahf.records.makers import refuse_other_maker

REWRITTEN = (METRICS_FILE, RECIPE_FILE)
"""Files of a stage that a later stage may write again."""

LEFT = (".safetensors", ".bin", ".json", ".jsonl", ".jinja", ".yaml", ".model", ".txt")
"""Endings of the files that a later stage or a user reads; charts and cards are not among them."""


def again(folder: Path) -> str:
    """Return what makes the stage of a folder again; other stages may be in its subfolders."""
    return f"Delete the files in {folder}, not its subfolders, to make them again."


class StageRecord:
    """Record what a stage was made with and whether it is complete, as `stage.json` in its folder.

    A stage that was made with other settings, or from other content, is neither reused nor
    overwritten: the user decides. A stage whose files are gone or damaged is not complete.

    Args:
        defaults: values of settings that a record of an earlier version lacks, and values without
            effect of settings that only such a record has.
        made_from: identity of everything that the stage reads, by name (see `identity_of`). What
            has no identity now, or is not in the record, is not compared.
        made_by: the command, as `rahf dpo`; a record of an earlier version names none.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        defaults: Mapping[str, Any] | None = None,
        made_from: Mapping[str, str | None] | None = None,
        made_by: str | None = None,
    ):
        self.folder = folder
        self._path = folder / STAGE_FILE
        self._settings = json.loads(json.dumps(settings))
        self._defaults = json.loads(json.dumps(defaults or {}))
        self._made_from = dict(made_from or {})
        self._made_by = made_by
        self._there: dict[str, int] = {}

    def is_complete(self) -> bool:
        """Return whether the stage is done with these very settings and all its files are intact.

        A stage that stopped before it left anything beside its record counts as never begun.

        Raises:
            ValueError: the folder holds the stage, finished or begun, made with other settings or
                from other content, or by another command; its record is damaged; it holds a model
                and no record.
        """
        self.refuse_foreign()
        if not self._path.exists():
            return False
        record = self._record()
        if not record["complete"] and list(self.folder.iterdir()) == [self._path]:
            return False
        before = _completed(record["settings"], self._settings, self._defaults)
        changed = differences(before, self._settings) + other_content(record, self._made_from)
        if changed:
            raise ValueError(
                f"{self._path.parent} holds this stage made with other settings:\n{changed}"
                "Give another output_dir, or delete that folder to make the stage again."
            )
        return record["complete"] and self.damage() is None

    def damage(self) -> str | None:
        """Return which file of a finished stage is gone or damaged; None where all are intact."""
        record = self._record() if self._path.exists() else {"complete": False}
        for name, content in record.get("files", {}).items() if record["complete"] else ():
            path = self.folder / name
            if not path.is_file():
                return f"{path} is missing"
            if content is not None and content_of(path, dated=False) != content:
                return f"{path} differs from what the stage wrote"
        return None

    def begun(self) -> dict[str, Any]:
        """Return the figures that a stopped run has left; empty where its settings differ."""
        record = self._record() if self._path.exists() else {"settings": {}}
        before = _completed(record.pop("settings"), self._settings, self._defaults)
        own = ("complete", "files", "made_from", MADE_BY)
        same = before == self._settings
        return {key: value for key, value in record.items() if same and key not in own}

    def begin(self, **results: Any) -> None:
        """Write the record of an incomplete stage, with the figures known so far."""
        self._there = {path.name: path.stat().st_mtime_ns for path in self._left()}
        self._write(False, results)

    def finish(self, **results: Any) -> None:
        """Write the record of a complete stage, with the files that were written since `begin`."""
        files = {
            path.name: None if path.name in REWRITTEN else content_of(path, dated=False)
            for path in self._left()
            if self._there.get(path.name) != path.stat().st_mtime_ns
        }
        self._write(True, {**results, "files": files})

    def _record(self) -> dict[str, Any]:
        return read_object(self._path, again(self.folder), complete=bool, settings=dict)

    def refuse_foreign(self) -> None:
        """Refuse what would be overwritten: a result of another command, weights or checkpoints
        that rahf has not left.
        """
        refuse_other_maker(self.folder, self._made_by)
        own = {file.parent for file in self.folder.glob(f"checkpoint-[0-9]*/{MANIFEST}")}
        names = (*WEIGHTS, "checkpoint-[0-9]*/*")
        found = {file for name in names for file in self.folder.glob(name)}
        foreign = sorted(file.relative_to(self.folder) for file in found if file.parent not in own)
        if foreign and not self._path.exists():
            raise ValueError(
                f"{self.folder} holds {foreign[0]} and no {STAGE_FILE}: it is the folder of "
                "another model, which would be overwritten. Give another output."
            )

    def _left(self) -> list[Path]:
        found = [path for path in self.folder.glob("[!.]*") if path.suffix in LEFT]
        return sorted(path for path in found if path.is_file() and path != self._path)

    def _write(self, complete: bool, results: Mapping[str, Any]) -> None:
        made_with = {"made_from": self._made_from, "settings": self._settings}
        made_with |= {} if self._made_by is None else {MADE_BY: self._made_by}
        write_json(self._path, {"complete": complete, **results, **made_with})


def _completed(
    before: Mapping[str, Any], now: Mapping[str, Any], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """Return settings with defaults for keys that they lack.

    Keys that are gone now are omitted where they had a value without effect.
    """
    gone = {key for key in before.keys() - now.keys() if key in defaults}
    kept = {key: value for key, value in before.items() if key not in gone}
    kept |= {key: before[key] for key in gone if before[key] != defaults[key]}
    whole = {key: defaults[key] for key in now.keys() & defaults.keys()} | kept
    for key, value in now.items():
        if all(isinstance(each.get(key), dict) for each in (before, now, defaults)):
            whole[key] = _completed(before[key], value, defaults[key])
    return whole
