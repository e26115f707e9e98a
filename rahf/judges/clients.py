"""What judges and explainers need of a language model: text in, text out, tokens counted.

A server behind a URL is one (`api.Api`), any Python callable another. Knows no question.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol


class Completion(NamedTuple):
    """What a language model wrote."""

    text: str
    tokens: tuple[int, int] = (0, 0)  # read and written; zeros where the client does not count


class Client(Protocol):
    """A language model that several threads may ask at once."""

    id: str

    def answer(self, prompt: str, stop: threading.Event | None = None) -> Completion:
        """Return the answer to one message.

        Args:
            stop: set once the answer is no longer needed.
        """


@dataclass(frozen=True)
class Function:
    """A Python callable as a client."""

    id: str  # under which its answers are kept: another callable needs another id
    call: Callable[[str], str] = field(repr=False)

    def answer(self, prompt: str, stop: threading.Event | None = None) -> Completion:
        said = self.call(prompt)
        if not isinstance(said, str):
            raise ValueError(f"{self.id} returns {type(said).__name__}: it has to return text.")
        return Completion(said)
