"""Files of a run: records of its stages, its metrics, its log. Written whole or not at all.

Knows folders and JSON; knows no model and no method.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

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
    # Not splitlines(): a text may hold U+2028 and the like, which JSON leaves as they are.
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Keep other processes that make the same file or folder waiting, at `.NAME.lock` beside it.

    The lock of a process that is killed goes with it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(blocking=False)
    except Timeout:
        print(f"waiting for another process, which is making {path}", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


class StageRecord:
    """What a stage was made with, and whether it is complete; kept in its folder as `stage.json`.

    A stage that was made with other settings is neither reused nor overwritten: the user decides.

    Args:
        defaults: what settings stood at that a record of an earlier version does not have yet, and
            what settings stood at without effect that only such a record has.
    """

    def __init__(
        self, folder: Path, settings: Mapping[str, Any], defaults: Mapping[str, Any] | None = None
    ):
        self.folder = folder
        self._path = folder / STAGE_FILE
        self._settings = json.loads(json.dumps(settings))
        self._defaults = json.loads(json.dumps(defaults or {}))

    def is_complete(self) -> bool:
        """Whether the stage is done with these very settings.

        One that stopped before it left anything beside its record is as good as never begun.

        Raises:
            ValueError: the folder holds the stage, finished or begun, made with other settings.
        """
        if not self._path.exists():
            return False
        record = read_json(self._path)
        if not record["complete"] and list(self.folder.iterdir()) == [self._path]:
            return False
        changed = _differences(self._completed(record["settings"]), self._settings)
        if changed:
            raise ValueError(
                f"{self._path.parent} holds this stage made with other settings:\n{changed}\n"
                "Give another output_dir, or delete that folder to make the stage anew."
            )
        return record["complete"]

    def begun(self) -> dict[str, Any]:
        """The figures that a run which was stopped has left; none where settings were others."""
        record = read_json(self._path) if self._path.exists() else {"settings": {}}
        if self._completed(record.pop("settings")) != self._settings:
            return {}
        return {key: value for key, value in record.items() if key != "complete"}

    def _completed(self, made_with: dict[str, Any]) -> dict[str, Any]:
        return _completed(made_with, self._settings, self._defaults)

    def begin(self, **results: Any) -> None:
        """Write the record of a stage that is not complete, with what is known of it already."""
        write_json(self._path, {"complete": False, **results, "settings": self._settings})

    def finish(self, **results: Any) -> None:
        write_json(self._path, {"complete": True, **results, "settings": self._settings})


class ResumableFile:
    """A file that takes long to make: its records are kept one by one, and it is written when all
    are there.

    Beside `FILE` stand `FILE.unfinished` while it is made, and `FILE.run.json`, what it was made
    with, when it is complete. A killed run goes on after the last whole record; a record of which
    only the beginning was written is made again.

    Raises:
        ValueError: the file is there, finished or begun, made with other settings.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]):
        self.path = path
        self.records: list[dict[str, Any]] = []
        self._settings = json.loads(json.dumps(settings))
        self._unfinished = path.with_name(f"{path.name}.unfinished")
        self._run = path.with_name(f"{path.name}.run.json")
        self.complete = path.exists() and not self._unfinished.exists()
        if self.complete:
            self._check(read_json(self._run)["settings"] if self._run.exists() else None)
        elif self._unfinished.exists():
            self._go_on()

    def begin(self) -> None:
        """Make the folder and the file of records, unless a run that was killed has."""
        if not self._unfinished.exists():
            write_lines(self._unfinished, [{"settings": self._settings}])

    def add(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Keep records; they are on the disk when this returns."""
        added = [dict(record) for record in records]
        with self._unfinished.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in added)
        self.records += added

    def finish(self, text: str, **results: Any) -> None:
        """Write the file, and what it was made with and came to beside it."""
        write_text(self.path, text)
        write_json(self._run, {**results, "settings": self._settings})
        self._unfinished.unlink()
        self.complete = True

    def results(self) -> dict[str, Any]:
        """What `finish` was told the complete file came to."""
        run = read_json(self._run)
        return {key: value for key, value in run.items() if key != "settings"}

    def _go_on(self) -> None:
        content = self._unfinished.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if not whole:
            self._unfinished.unlink()
            return
        if len(whole) < len(content):
            with self._unfinished.open("r+b") as file:
                file.truncate(len(whole))
        settings, *self.records = [json.loads(line) for line in whole.splitlines()]
        self._check(settings["settings"])

    def _check(self, made_with: Mapping[str, Any] | None) -> None:
        if made_with is None:
            raise ValueError(f"{self.path} is there already; give another name, or delete it.")
        changed = _differences(made_with, self._settings)
        if changed:
            raise ValueError(
                f"{self.path} was made, or begun, with other settings:\n{changed}\n"
                f"Give another name, or delete it and what stands beside it ({self.path.name}.*)."
            )


def _completed(
    before: Mapping[str, Any], now: Mapping[str, Any], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """What something was made with: defaults for keys that were not there yet, and without the keys
    that are gone where they stood at a value without effect.
    """
    gone = {key for key in before.keys() - now.keys() if key in defaults}
    kept = {key: value for key, value in before.items() if key not in gone}
    kept |= {key: before[key] for key in gone if before[key] != defaults[key]}
    whole = {key: defaults[key] for key in now.keys() & defaults.keys()} | kept
    for key, value in now.items():
        if all(isinstance(each.get(key), dict) for each in (before, now, defaults)):
            whole[key] = _completed(before[key], value, defaults[key])
    return whole


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    return "\n".join(f"  {line}" for line in _changed(before, now))


def _changed(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    lines = []
    for key in sorted({*before, *now}):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            lines += _changed(old, new, f"{prefix}{key}.")
        elif old != new:
            lines.append(f"{prefix}{key}: {old!r} there, {new!r} now")
    return lines
