"""A judge behind any OpenAI-compatible URL (`POST URL/chat/completions`).

Knows what such a server answers; knows no library of a vendor.
"""

import json
import re
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import SimpleQueue

from rahf.judges.clients import Client, Completion
from rahf.judges.http import Reply, UnreachableError, check_key, post_json, redacted, without_key
from rahf.judges.judge import Chat, Value, Verdict

RETRIED = (408, 409, 425, 429, 500, 502, 503, 504, 529)
"""Statuses that another try may change."""

ABOUT_THE_TEXT = (400, 413, 422)
"""Statuses that may concern one text only: it is too long, or a filter does not let it pass."""

REFUSED_IN_A_ROW = 4
"""Texts refused one after the other, after which a harmless question is sent."""

HARMLESS = "Reply with the word yes."
"""What no filter stops: a server that refuses it refuses everything."""

LONGEST_WAIT = 60.0

SHOWN = 200
"""Characters of a server's text that an error shows."""

AHEAD = 2
"""Texts for each worker that may be sent before the first of them is answered. That many requests
are lost at most when a run is stopped, since verdicts are kept in order."""


class RefusedTextError(ValueError):
    """The server refuses this text, and may answer the next."""


@dataclass(frozen=True)
class Api:
    """A model behind a URL, and how long to wait for it.

    Raises:
        ValueError: a key that no header can carry.
    """

    url: str = field(repr=False)  # up to and without /chat/completions
    model: str
    key: str | None = field(default=None, repr=False)
    max_tokens: int = 1024
    timeout: float = 120.0  # seconds for one try, from the connection to the last byte
    tries: int = 6
    first_wait: float = 1.0  # seconds before the second try; doubled before each further one

    def __post_init__(self):
        check_key(self.key)

    @property
    def shown_url(self) -> str:
        """Return the URL without what is secret in it, as it may be printed and stored."""
        return redacted(self.url, self.key)

    @property
    def id(self) -> str:
        return redacted(f"{self.model} at {self.url}", self.key)

    def complete(self, prompt: str) -> str:
        """Return the text of the model's answer; see `answer`."""
        return self.answer(prompt).text

    def answer(self, prompt: str, stop: threading.Event | None = None) -> Completion:
        """Return the model's answer to one message, at temperature 0.

        A server that is busy, cannot be reached or answers something else is asked again.

        Args:
            stop: ends the waiting between tries once it is set.

        Raises:
            RefusedTextError: the server refuses with a status that may concern this prompt only.
            ValueError: the server refuses, redirects, cannot be reached, or answers something
                else, after all tries.
        """
        wait, stop = self.first_wait, stop or threading.Event()
        for left in reversed(range(self.tries)):
            try:
                reply = self._ask(prompt)
            except UnreachableError as error:
                problem = ValueError(f"{self.shown_url} cannot be reached: {error}")
            else:
                found = self._completion(reply.text) if reply.status == 200 else None
                if found is not None:
                    return found
                problem = self._refusal(reply)
                if reply.status not in (200, *RETRIED):
                    raise problem
                given = reply.headers.get("retry-after", "")
                wait = max(wait, float(given)) if re.fullmatch("[0-9]{1,9}", given) else wait
            if not left or stop.wait(min(wait, LONGEST_WAIT)):
                raise problem
            wait *= 2
        raise AssertionError("the last try returns or raises")

    def _ask(self, prompt: str) -> Reply:
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "max_tokens": self.max_tokens,
        }
        try:
            return post_json(
                f"{self.url.rstrip('/')}/chat/completions", body, self.key, self.timeout
            )
        except UnreachableError:
            raise
        except ValueError as error:
            raise ValueError(f"{self.shown_url}: {error}") from None

    def _refusal(self, reply: Reply) -> ValueError:
        said = redacted(reply.text, self.key)[:SHOWN]
        if reply.status == 200:
            return ValueError(f"{self.shown_url} does not answer as such an API: {said!r}")
        if 300 <= reply.status < 400:
            to = redacted(reply.headers.get("location", "nowhere"), self.key)[:SHOWN]
            return ValueError(
                f"{self.shown_url} redirects to {to}, which is not followed, since the key is for "
                "the given server only. Give that URL if you trust it."
            )
        kind = RefusedTextError if reply.status in ABOUT_THE_TEXT else ValueError
        return kind(f"{self.shown_url} refuses: status {reply.status}: {said}")

    def _completion(self, text: str) -> Completion | None:
        """Return what a body holds; None where it is not that of such an API."""
        try:
            body = json.loads(text)
            content = body["choices"][0]["message"]["content"] or ""
            if isinstance(content, str):
                # Escapes of JSON may hide a key, or stand for half a character.
                shown = without_key(content, self.key).encode(errors="replace").decode()
                return Completion(shown, _usage(body))
        except (ValueError, KeyError, IndexError, TypeError, RecursionError):
            pass
        return None


def _usage(body: dict) -> tuple[int, int]:
    """Return the tokens that a server reports as read and written, zeros where it reports none."""
    usage = body.get("usage")
    found = usage if isinstance(usage, dict) else {}
    counts = (found.get("prompt_tokens"), found.get("completion_tokens"))
    read, written = (max(0, n) if type(n) is int else 0 for n in counts)
    return read, written


@dataclass(frozen=True)
class ApiJudge:
    """A judge behind a client, whose question and reading are functions.

    A text that the server refuses has no verdict, and the refusal replaces the judge's
    words, once the server has answered another. Where it refuses everything, that is an error.
    """

    api: Client
    responses: int
    question: Callable[..., str]  # messages and responses -> the message to the model
    parse: Callable[[str], Value]
    workers: int = 8  # requests at once

    @property
    def id(self) -> str:
        return self.api.id

    def read(self, messages: Chat, *responses: str) -> str:
        return self.question(messages, *responses)

    def verdicts(self, read: Sequence[str]) -> Iterator[Verdict]:
        refused: list[Verdict] = []  # held back until the server has answered something
        for reply in self._replies(read):
            try:
                said = reply.result()
            except RefusedTextError as error:
                refused.append(Verdict(None, str(error)))
                if len(refused) == REFUSED_IN_A_ROW:
                    yield from self._kept(refused)
                continue
            yield from refused
            refused.clear()
            yield Verdict(self.parse(said.text), said.text, said.tokens)
        yield from self._kept(refused)

    def _kept(self, refused: list[Verdict]) -> list[Verdict]:
        """Empty the list and return its refusals, if the server answers anything at all."""
        if refused:
            self.api.answer(HARMLESS)
        kept = refused.copy()
        refused.clear()
        return kept

    def _replies(self, read: Sequence[str]) -> Iterator[Future[Completion]]:
        """Yield what the server answers, in the order of the texts.

        The workers are daemons: Ctrl-C ends the process without waiting for their requests.
        """
        tasks, waiting, stop = SimpleQueue(), deque[Future[Completion]](), threading.Event()
        for _ in range(self.workers):
            threading.Thread(target=self._work, args=(tasks, stop), daemon=True).start()
        try:
            for text in read:
                waiting.append(Future())
                tasks.put((text, waiting[-1]))
                if len(waiting) == AHEAD * self.workers:
                    yield waiting.popleft()
            yield from waiting
        finally:  # after an error or an interrupt nothing more is sent
            stop.set()
            for _ in range(self.workers):
                tasks.put(None)

    def _work(self, tasks: SimpleQueue, stop: threading.Event) -> None:
        while (task := tasks.get()) and not stop.is_set():
            text, reply = task
            try:
                reply.set_result(self.api.answer(text, stop))
            except Exception as error:
                reply.set_exception(error)
