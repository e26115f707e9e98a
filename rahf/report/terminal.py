"""Output of a command for any reader: any encoding, a pipe that closes early."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from rahf.report.escaping import printable


class ReaderGoneError(BrokenPipeError):
    """The program that reads the output has closed it, as `head` does."""


class _Plain:
    """Standard output, on which control characters of data and names are printed as escapes."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(printable(text))
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
def plain_output() -> Iterator[None]:
    """Print what the encoding lacks as escapes too, and flush at the end, so that a reader that
    has gone is noticed here.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    plain = _Plain(sys.stdout)
    with contextlib.redirect_stdout(plain):
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
