"""Servers that hang, flood, redirect and echo: what an API judge makes of them."""

import contextlib
import gzip
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from judge_server import server

from rahf.judges.api import Api, ApiJudge
from rahf.judges.http import LARGEST_BODY, redacted
from rahf.judges.judge import Verdicts, first_json_object
from rahf.judges.names import url_problems
from rahf.judges.questions import read_better

KEY = "sk-Very/Secret+1"


@contextlib.contextmanager
def raw_server(parts, pause=0.0):
    """Answer every connection with the parts (bytes) of an answer; yield the URL."""
    listening, over = socket.create_server(("127.0.0.1", 0)), threading.Event()

    def answer(connection):
        with connection, contextlib.suppress(OSError):
            request = b""
            while not request.endswith(b"}"):  # the body
                request += connection.recv(2**16)
            for part in parts():
                connection.sendall(part)
                if over.wait(pause):
                    return

    def accept():
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=answer, args=(listening.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
    finally:
        over.set()
        listening.close()


def forever(first, again):
    yield first
    while True:
        yield again


def answer(body, headers=b""):
    return b"HTTP/1.1 200 OK\r\n" + headers + b"\r\n" + body


def message(content):
    return json.dumps({"choices": [{"message": {"content": content}}]}).encode()


BOMB = gzip.compress(b" " * (LARGEST_BODY + 2**20))

ODDITIES = {
    "never answers": (lambda: forever(b"", b""), 0.1, "within"),
    "headers that never end": (lambda: forever(b"HTTP/1.1 200 OK\r\n", b"a"), 0.1, "within"),
    "a body that never ends": (lambda: forever(answer(b"{"), b" "), 0.1, "within"),
    "a flood": (lambda: forever(answer(b""), b" " * 2**20), 0, "larger than 8 MiB"),
    "a small file that grows": (
        lambda: [answer(BOMB, b"Content-Encoding: gzip\r\n")], 0, "larger than 8 MiB",
    ),
    "no HTTP": (lambda: [b"\x00\xff\r\n\r\n"], 0, "cannot be reached"),
    "nothing": (lambda: [b""], 0, "cannot be reached"),
    "cut off": (lambda: [answer(b"{", b"Content-Length: 9\r\n")], 0, "cannot be reached"),
    "broken gzip": (lambda: [answer(b"{}", b"Content-Encoding: gzip\r\n")], 0, "gzip"),
    "deeply nested": (lambda: [answer(b"[" * 200_000)], 0, "not answer as such an API"),
    "no UTF-8": (lambda: [answer(b"\xff\xfe")], 0, "not answer as such an API"),
    "a number": (lambda: [answer(message(3))], 0, "not answer as such an API"),
    "a list": (lambda: [answer(message([{"type": "text"}]))], 0, "not answer as such an API"),
    "a strange pause": (
        lambda: [b"HTTP/1.1 429 Busy\r\nRetry-After: \xb2\r\n\r\n"], 0, "status 429",
    ),
}  # fmt: skip


@pytest.mark.parametrize("oddity", ODDITIES)
def test_an_odd_server_is_one_clear_error_within_the_time_limit(oddity):
    parts, pause, problem = ODDITIES[oddity]
    with raw_server(parts, pause) as url:
        api, started = Api(url, "wise", KEY, timeout=0.5, tries=1), time.monotonic()
        with pytest.raises(ValueError, match=problem) as error:
            api.complete("x")
    assert time.monotonic() - started < 3
    assert str(error.value).startswith(url)


def test_half_a_character_in_an_answer_can_be_kept(tmp_path):
    with raw_server(lambda: [answer(b'{"choices": [{"message": {"content": "\\ud83d"}}]}')]) as url:
        judge = ApiJudge(Api(url, "wise"), 1, lambda m, a: a, read_better)
        [verdict] = Verdicts(tmp_path / "v.jsonl").ask(judge, ["x"])
    assert verdict.said == "?"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed_with_the_key(status):
    with server((200, {}, "yes")) as (other, reached):
        elsewhere = f"{other.replace('127.0.0.1', 'localhost')}?api_key={KEY}"
        told = pytest.raises(ValueError, match="redirects to http://localhost")
        with server((status, {"Location": elsewhere}, "")) as (url, _), told as error:
            Api(url, "wise", KEY).complete("x")
    assert not reached
    assert KEY not in str(error.value)


@pytest.mark.parametrize("status", [200, 400, 401, 500])
@pytest.mark.parametrize("key", [KEY, 'quote"and\\slash', "x%y&z=1"])
def test_a_server_that_echoes_the_key_does_not_get_it_printed_or_kept(tmp_path, status, key):
    path, said = tmp_path / "v.jsonl", f"You sent Authorization: Bearer {key}."
    with server((status, {}, said), (200, {}, said), (status, {}, said)) as (url, _):
        api = Api(f"{url}/{key}" if status == 401 else url, "wise", key, first_wait=0.01, tries=1)
        judge, shown = ApiJudge(api, 1, lambda m, a: a, read_better, workers=1), ""
        try:
            shown = str(Verdicts(path).ask(judge, ["x"]))
        except ValueError as error:
            shown = str(error)
    shown += path.read_text() if path.exists() else ""
    assert "[redacted]" in shown
    assert key not in shown
    assert json.dumps(key)[1:-1] not in shown
    assert key not in repr(judge) + judge.id


@pytest.mark.parametrize("key", ["sk-abc\ndef", "sk-abc\r\n", "sk abc", "sk-\u2013abc", "\n"])
def test_a_key_that_no_header_can_carry_is_refused_and_not_printed(key):
    with pytest.raises(ValueError, match="API key") as error:
        Api("http://localhost:1/v1", "wise", key)
    assert key not in str(error.value)
    assert "abc" not in str(error.value)


@pytest.mark.parametrize(
    "url",
    ["https://me:s3cret@host/v1", "https://s3cret@host", "http://host/v1?key=s3cret", "x?s3cret"],
)
def test_a_url_that_holds_a_key_is_refused_and_not_printed(url):
    [problem] = url_problems("api:m", url, "--url")
    assert "RAHF_API_KEY" in problem
    assert "s3cret" not in problem


def test_passwords_and_keys_in_urls_of_any_text_are_redacted():
    text = "see http://me:s3cret@host/v1?model=a&api_key=s3cret&n=1 or ask"
    shown = redacted(text)
    assert "s3cret" not in shown
    assert "model=a" in shown
    assert shown.endswith("&n=1 or ask")


def test_a_short_placeholder_of_a_key_is_no_secret():
    assert redacted("a word in an answer", "word") == "a word in an answer"


@pytest.mark.parametrize("text", ["{" * 10**6, '{"a":' * 10**6, "[{" * 10**6, '{"a": 1' * 10**5])
def test_the_search_for_json_in_an_answer_is_bounded(text):
    started = time.monotonic()
    assert first_json_object(text) is None
    assert time.monotonic() - started < 5


HANGING = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background ignores it
from rahf.judges.api import Api, ApiJudge
judge = ApiJudge(Api(sys.argv[1], "wise", first_wait=60), 1, lambda m, a: a, float)
print("asking", flush=True)
list(judge.verdicts([str(index) for index in range(40)]))
"""


@pytest.mark.parametrize("busy", [True, False])
def test_an_interrupt_ends_at_once_while_a_judge_waits(busy):
    reply = b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"
    with raw_server((lambda: [reply]) if busy else (lambda: forever(b"", b"")), 0.1) as url:
        process = subprocess.Popen(
            [sys.executable, "-c", HANGING, url],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        assert process.stdout.readline() == "asking\n"
        time.sleep(0.5)
        started = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, shown = process.communicate(timeout=20)
    assert time.monotonic() - started < 3
    assert re.search("KeyboardInterrupt", shown)
