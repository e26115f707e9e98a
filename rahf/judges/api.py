"""A judge behind any OpenAI-compatible URL (`POST URL/chat/completions`).

Knows HTTP; knows no library of a vendor.
"""

import json
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from rahf.data.messages import Message
from rahf.judges.judge import Value, Verdict

RETRIED = (408, 409, 425, 429, 500, 502, 503, 504, 529)
"""Statuses that another try may change."""

ABOUT_THE_TEXT = (400, 413, 422)
"""Statuses that may concern one text alone: it is too long, or a filter does not let it pass."""

REFUSED_IN_A_ROW = 4
"""Texts refused one after the other, after which it is tried whether anything is answered."""

HARMLESS = "Reply with the word yes."
"""What no filter stops: a server that refuses it refuses everything."""

LONGEST_WAIT = 60.0

AHEAD = 2
"""Texts for each worker that may be asked about before the first of them is answered: what is lost
at most when a run is stopped, since verdicts are kept in order."""


class RefusedTextError(ValueError):
    """The server refuses this text, and may answer the next."""


@dataclass(frozen=True)
class Api:
    """Where a model is asked, and how patiently."""

    url: str  # up to and without /chat/completions
    model: str
    key: str | None = None
    max_tokens: int = 1024
    timeout: float = 120.0  # seconds for one try
    tries: int = 6
    first_wait: float = 1.0  # seconds before the second try; doubled before each further one

    def complete(self, prompt: str) -> str:
        """The model's answer to one message, at temperature 0.

        Raises:
            RefusedTextError: the server refuses with a status that may concern this prompt alone.
            ValueError: the server refuses, cannot be reached, or answers something else, after all
                tries.
        """
        wait = self.first_wait
        for left in reversed(range(self.tries)):
            try:
                return self._ask(prompt)
            except urllib.error.HTTPError as error:
                told = f"status {error.code}: {error.read()[:200].decode(errors='replace')}"
                if error.code not in RETRIED or not left:
                    kind = RefusedTextError if error.code in ABOUT_THE_TEXT else ValueError
                    raise kind(f"{self.url} refuses: {told}") from error
                asked_for = error.headers.get("Retry-After", "")
                wait = max(wait, float(asked_for)) if asked_for.isdigit() else wait
            except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
                if not left:
                    raise ValueError(f"{self.url} cannot be reached: {error}") from error
            time.sleep(min(wait, LONGEST_WAIT))
            wait *= 2
        raise AssertionError("the last try returns or raises")

    def _ask(self, prompt: str) -> str:
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "max_tokens": self.max_tokens,
        }
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        request = urllib.request.Request(
            f"{self.url.rstrip('/')}/chat/completions", json.dumps(body).encode(), headers
        )
        with urllib.request.urlopen(request, timeout=self.timeout) as reply:
            text = reply.read().decode()
        try:
            return json.loads(text)["choices"][0]["message"]["content"] or ""
        except (json.JSONDecodeError, KeyError, IndexError, TypeError) as error:
            raise ValueError(
                f"{self.url} does not answer as such an API: {text[:200]!r}"
            ) from error


@dataclass(frozen=True)
class ApiJudge:
    """A chooser or scorer whose question and reading are functions.

    A text that the server refuses has no verdict, and the refusal stands in place of the judge's
    words, once the server is seen to answer another; where it refuses everything, that is an error.
    """

    api: Api
    responses: int
    question: Callable[..., str]  # messages and responses -> what is asked
    parse: Callable[[str], Value]
    workers: int = 8  # requests at once

    @property
    def id(self) -> str:
        return f"{self.api.model} at {self.api.url}"

    def read(self, messages: Sequence[Message], *responses: str) -> str:
        return self.question(messages, *responses)

    def verdicts(self, read: Sequence[str]) -> Iterator[Verdict]:
        refused: list[Verdict] = []  # held back until the server is seen to answer something
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
            yield Verdict(self.parse(said), said)
        yield from self._kept(refused)

    def _kept(self, refused: list[Verdict]) -> list[Verdict]:
        """The refusals, which are taken out of the list, if they are the texts' and not all's."""
        if refused:
            self.api.complete(HARMLESS)
        kept = refused.copy()
        refused.clear()
        return kept

    def _replies(self, read: Sequence[str]) -> Iterator[Future[str]]:
        """What the server says, in the order of the texts."""
        pool, waiting = ThreadPoolExecutor(self.workers), deque[Future[str]]()
        try:
            for text in read:
                waiting.append(pool.submit(self.api.complete, text))
                if len(waiting) == AHEAD * self.workers:
                    yield waiting.popleft()
            yield from waiting
        finally:
            # After an error or an interrupt nothing more is asked.
            pool.shutdown(wait=False, cancel_futures=True)
