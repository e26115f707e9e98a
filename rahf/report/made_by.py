"""The command that runs, kept for the results that it writes: a figure is repeated by it."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from rahf.artifacts import write_json

_COMMAND: ContextVar[str | None] = ContextVar("command", default=None)


@contextmanager
def running(words: Sequence[str]) -> Iterator[None]:
    """Keep the words of the command line for the results that are written meanwhile."""
    before = _COMMAND.set(shlex.join(words))
    try:
        yield
    finally:
        _COMMAND.reset(before)


def made_by() -> dict[str, str]:
    """Return the command that runs, for a record; nothing outside of the command line."""
    command = _COMMAND.get()
    return {} if command is None else {"command": command}


def write_result(path: Path, figures: Mapping[str, Any]) -> None:
    """Write the figures of a result with the command that made them."""
    write_json(path, {**figures, **made_by()})
