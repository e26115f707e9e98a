"""Output folders -> everything that commands have left in them. Knows files; draws nothing."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from rahf.artifacts import METRICS_FILE, STAGE_FILE
from rahf.report.page.kinds import READ, read_part
from rahf.report.page.reading import MONITORED, TRAINER_STATE, Part, Reader, Run, read_run

DEPTH = 3
"""Folders below a given one that are looked into."""

INSIDE = {"teachers", "runs", "test", "trials", "validation", "retrained", "data", "directions"}
INSIDE |= {"choice", "evaluation", "factors", "pairs"}
"""Folders that belong to a result and hold none of their own."""

PLACEBO = "placebo"

OTHERS = {METRICS_FILE, STAGE_FILE, MONITORED, TRAINER_STATE, "config.json", "adapter_config.json"}
OTHERS |= {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json"}
OTHERS |= {"generation_config.json", "dictionary.json", "choice.json", "lengths.json"}
"""JSON files that are no figures of a command, or are read with their run."""


class Found(NamedTuple):
    """Everything that the folders hold."""

    runs: list[Run]
    placebos: list[Run]
    parts: dict[str, list[Part]]  # by the command, as `rahf shift`
    problems: list[str]  # a line for each file that was left out, or lines of it


def read_found(given: Sequence[Path], placebos: Sequence[Path] = ()) -> Found:
    """Return what is in folders and files.

    Args:
        placebos: folders of trainings on pairs whose sides were drawn at random. Folders below one
            named `placebo` are such, too.

    Raises:
        ValueError: a folder or file does not exist.
    """
    for path in placebos:
        if path.is_file():
            raise ValueError(f"--placebo {path} is a file; give the folder of a training.")
    for path in (*given, *placebos):
        if not path.exists():
            raise ValueError(
                f"{path} does not exist: give the output folders of commands, or files."
            )
    reader, found = Reader(), Found([], [], {command: [] for command in READ}, [])
    seen: set[Path] = set()
    for root in given:
        for folder in _folders(root):
            is_placebo = PLACEBO in folder.relative_to(root.parent).parts
            _read_folder(folder, reader, found, seen, is_placebo=is_placebo)
        if root.is_file():
            _add_part(root, reader, found, seen)
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
        if path.name not in OTHERS:
            _add_part(path, reader, found, seen)


def _add_part(path: Path, reader: Reader, found: Found, seen: set[Path]) -> None:
    """Add the figures in a file to those of their command; other JSON is not ours."""
    if path.resolve() in seen:
        return
    seen.add(path.resolve())
    read = read_part(path, reader)
    if read is not None:
        command, part = read
        found.parts[command].append(part)
