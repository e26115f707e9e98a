"""The command that runs, kept in the results that it writes: a figure is repeated by it."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from rahf.artifacts import MADE_BY, write_json

_WORDS: ContextVar[str | None] = ContextVar("command", default=None)


@contextmanager
def running(words: Sequence[str]) -> Iterator[None]:
    """Keep the words of the command line for the results that are written meanwhile."""
    before = _WORDS.set(shlex.join(words))
    try:
        yield
    finally:
        _WORDS.reset(before)


def command_line() -> dict[str, str]:
    """Return the command line for a record; nothing outside of the command line."""
    words = _WORDS.get()
    return {} if words is None else {"command": words}


def write_result(path: Path, made_by: str, figures: Mapping[str, Any]) -> None:
    """Write the figures of a result with the command that made them.

    Args:
        made_by: the command's name, as `rahf compare`; a result of Python has it too, and no other
            command overwrites it.
    """
    write_json(path, {MADE_BY: made_by, **figures, **command_line()})
