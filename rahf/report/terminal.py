"""Output of a command for any reader: any encoding, a pipe that closes early."""

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from rahf.report.escaping import printable


class ReaderGoneError(BrokenPipeError):
    """The program that reads the output has closed it, as `head` does."""


QUIET = "RAHF_QUIET"
"""Environment variable of --quiet, which ranks inherit."""


def is_quiet() -> bool:
    """Return whether only results and errors are printed: no progress, no notes."""
    return os.environ.get(QUIET, "0") not in ("", "0")


# What a progress bar writes: back to the start of the line, text, and again; or up some lines.
_PROGRESS = re.compile(r"(\r?)(.*?)(\r?)", re.DOTALL)
_UP = re.compile(r"\n*(\x1b\[A)*")


class _Plain:
    """A stream on which control characters of data and names are printed as escapes.

    progress: the moves of a progress bar stay, or are dropped with their text under --quiet.
    """

    def __init__(self, stream: TextIO, progress: bool):
        self._stream = stream
        self._progress = progress
        self._dropping = False  # what was written last belongs to a bar and is not shown

    def write(self, text: str) -> int:
        start, end = "", ""
        if self._progress and is_quiet():
            part_of_bar = text.startswith("\r") or _UP.fullmatch(text) is not None
            self._dropping = part_of_bar and (self._dropping or text.strip("\n") != "")
            if self._dropping:
                return len(text)
        if self._progress:
            parts = _PROGRESS.fullmatch(text)
            assert parts is not None  # it matches every text
            start, text, end = parts.groups()
        if not (self._progress and _UP.fullmatch(text)):
            text = printable(text)
        try:
            return self._stream.write(f"{start}{text}{end}")
        except BrokenPipeError as error:
            raise ReaderGoneError(*error.args) from None

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError as error:
            raise ReaderGoneError(*error.args) from None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def quiet(wanted: bool) -> Iterator[None]:
    """Print only results and errors inside, also in processes that are started, where `wanted`."""
    before = os.environ.get(QUIET)
    if wanted:
        os.environ[QUIET] = "1"
    try:
        yield
    finally:
        if wanted:
            os.environ.pop(QUIET)
        if wanted and before is not None:
            os.environ[QUIET] = before


@contextlib.contextmanager
def plain_output() -> Iterator[None]:
    """Print what the encoding lacks as escapes too, and flush at the end, so that a reader that
    has gone is noticed here.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    plain, errors = _Plain(sys.stdout, progress=False), _Plain(sys.stderr, progress=True)
    with contextlib.redirect_stdout(plain), contextlib.redirect_stderr(errors):
        try:
            yield
        except SystemExit:
            plain.flush()
            raise
        plain.flush()


def leave_quietly() -> None:
    """Discard the rest of the output: Python flushes it once more at its end."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
