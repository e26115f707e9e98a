"""One POST request to a server that is not trusted: bounded in time and size, and discreet.

The key goes to the given host only, so no redirect is followed. Nothing that is returned or raised
holds the key. Knows HTTP; knows no judge.
"""

import json
import re
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, NamedTuple
from urllib.parse import quote

import requests

from rahf.report.secrets import HIDDEN, without_secrets

LARGEST_BODY = 8 * 2**20
"""Bytes of an answer, after decompression."""

SHORTEST_KEY = 6
"""Characters of a key that is redacted. Shorter ones are placeholders, as local servers take."""


class UnreachableError(ValueError):
    """The server cannot be reached or does not finish its answer in time; it may later."""


class Reply(NamedTuple):
    """What the server answered."""

    status: int
    headers: dict[str, str]  # names in lower case
    text: str


def without_key(text: str, key: str | None) -> str:
    """Return the text without the key: as it is, and as a URL or a JSON text writes it."""
    if key and len(key) >= SHORTEST_KEY:
        for written in {key, quote(key), quote(key, safe=""), json.dumps(key)[1:-1]}:
            text = text.replace(written, HIDDEN)
    return text


def redacted(text: str, key: str | None = None) -> str:
    """Return the text without the key, and without passwords and keys of URLs in it."""
    return without_secrets(without_key(text, key))


def check_key(key: str | None) -> None:
    """Raise ValueError for a key that no header can carry; the message does not hold the key."""
    if key is not None and not re.fullmatch(r"[\x21-\x7e]*", key):
        raise ValueError(
            "the API key (RAHF_API_KEY or OPENAI_API_KEY) has a line break, a space or another "
            "character that a key cannot have: set it again without it"
        )


def post_json(url: str, body: Any, key: str | None, timeout: float) -> Reply:
    """Return the server's answer to `body`; a redirect is an answer like any other.

    Args:
        timeout: seconds for all of it, from the connection to the last byte.

    Raises:
        UnreachableError: no connection, or no complete answer in time.
        ValueError: the request cannot be made, or the answer is larger than `LARGEST_BODY`.
    """
    check_key(key)
    # A server may send a byte now and then for ever, which no timeout of a socket notices.
    reply = in_background(lambda: _post(url, body, key, timeout))
    try:
        return reply.result(timeout)
    except (requests.Timeout, TimeoutError):
        problem = UnreachableError(f"no complete answer within {timeout:g} seconds")
    except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
        problem = UnreachableError(redacted(str(error), key))
    except (requests.RequestException, OSError, ValueError) as error:
        problem = ValueError(redacted(str(error), key))
    raise problem  # without its cause, whose text may hold the key


def in_background(call: Callable[[], Any]) -> Future:
    """Start a call on a thread of its own, for which the end of the process does not wait."""
    future = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def _post(url: str, body: Any, key: str | None, timeout: float) -> Reply:
    def sign(request: requests.PreparedRequest) -> requests.PreparedRequest:
        if key:
            request.headers["Authorization"] = f"Bearer {key}"
        return request

    content = bytearray()
    # `auth`, so that no password of ~/.netrc takes the place of the key.
    with requests.post(
        url, json=body, auth=sign, timeout=timeout, allow_redirects=False, stream=True
    ) as reply:
        for part in reply.iter_content(2**16):
            content += part
            if len(content) > LARGEST_BODY:
                raise ValueError(f"the answer is larger than {LARGEST_BODY // 2**20} MiB")
    headers = {name.lower(): without_key(value, key) for name, value in reply.headers.items()}
    return Reply(reply.status_code, headers, without_key(content.decode(errors="replace"), key))
