"""A file of records that is made one by one: what a killed run has made is kept.

Knows files; knows no model.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rahf.artifacts import (
    MADE_BY,
    alone,
    append_lines,
    differences,
    kept_lines,
    other_content,
    read_object,
    write_json,
    write_lines,
    write_text,
)

HASH = "sha256"
"""Key of the hash of the finished file in its record."""


@contextmanager
def record_file(
    path: Path,
    settings: Mapping[str, Any],
    made_from: Mapping[str, str | None] | None = None,
    made_by: str | None = None,
) -> Iterator["ResumableFile"]:
    """Open a file that no other process may make meanwhile.

    Raises:
        ValueError: another process makes it; see `ResumableFile`.
    """
    with alone(path, wait=False):
        yield ResumableFile(path, settings, made_from, made_by)


class ResumableFile:
    """Keep the records of a file one by one, and write the file when all are there.

    Beside `FILE` are `FILE.unfinished` while it is made, and `FILE.run.json`, what it was made
    with, when it is complete. A killed run resumes with the records that are intact; one that was
    cut off or damaged is named and made again.

    Args:
        made_from: identity of the files that decide the records; see `artifacts.identity_of`.
        made_by: the command, as `rahf generate`.

    Raises:
        ValueError: the file is there, finished or begun, made with other settings; it was changed
            after it was finished.
    """

    def __init__(
        self,
        path: Path,
        settings: Mapping[str, Any],
        made_from: Mapping[str, str | None] | None = None,
        made_by: str | None = None,
    ):
        self.path = path
        self.records: list[dict[str, Any]] = []
        made_with = {"made_from": made_from or {}, "settings": settings}
        made_with |= {} if made_by is None else {MADE_BY: made_by}
        self._made_with = json.loads(json.dumps(made_with))
        self._unfinished = path.with_name(f"{path.name}.unfinished")
        self._run = path.with_name(f"{path.name}.run.json")
        there = path.exists() or path.is_symlink()  # also a link to nothing
        self.complete = there and not self._unfinished.exists()
        if self.complete:
            self._check_finished()
        elif self._unfinished.exists():
            self._go_on()

    def begin(self) -> None:
        """Make the folder and the file of records, unless a run that was killed has."""
        if not self._unfinished.exists():
            write_lines(self._unfinished, [self._made_with])

    def add(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Keep records; they are on the disk when this returns."""
        added = [dict(record) for record in records]
        append_lines(self._unfinished, added)
        self.records += added

    def finish(self, text: str, **results: Any) -> None:
        """Write the file, and what it was made with and came to beside it."""
        write_text(self.path, text)
        written = {HASH: _hash_of(self.path)}
        write_json(self._run, {**results, **written, **self._made_with})
        self._unfinished.unlink()
        self.complete = True

    def results(self) -> dict[str, Any]:
        """Return the results that `finish` was given."""
        own = (HASH, MADE_BY, *self._made_with)
        return {key: value for key, value in self._read_run().items() if key not in own}

    def _check_finished(self) -> None:
        """Refuse a file that `finish` did not write, or that was made with other settings."""
        self._check(self._read_run() if self._run.exists() else None)
        # A record of an earlier version holds no hash.
        if not self.path.is_file() or self._read_run().get(HASH) not in (None, _hash_of(self.path)):
            raise ValueError(
                f"{self.path} has changed since it was written: delete it to make it again, or "
                "give another name."
            )

    def _read_run(self) -> dict[str, Any]:
        remedy = f"Delete it and {self.path.name} to make them again."
        return read_object(self._run, remedy, settings=dict)

    def _go_on(self) -> None:
        kept = kept_lines(self._unfinished, _is_intact)
        if kept and "settings" not in kept[0]:
            raise ValueError(
                f"{self._unfinished}: the first line, what the file was begun with, is damaged. "
                "Delete the file to begin again."
            )
        if not kept:
            self._unfinished.unlink()
            return
        made_with, *self.records = kept
        self._check(made_with)

    def _check(self, made_with: Mapping[str, Any] | None) -> None:
        if made_with is None:
            raise ValueError(f"{self.path} already exists; give another name, or delete it.")
        changed = differences(made_with["settings"], self._made_with["settings"])
        changed += other_content(made_with, self._made_with["made_from"])
        if changed:
            raise ValueError(
                f"{self.path} was made, or begun, with other settings:\n{changed}"
                f"Give another name, or delete it and the files beside it ({self.path.name}.*)."
            )


def _is_intact(line: Any) -> bool:
    """Return whether a line is a record of a row, or what the file was begun with."""
    return isinstance(line, dict) and ("row" in line or "settings" in line)


def _hash_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
