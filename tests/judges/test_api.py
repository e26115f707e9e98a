"""A judge behind a URL, against a server in this process."""

import json
import threading

import pytest
from judge_server import server

from rahf.judges.api import Api, ApiJudge
from rahf.judges.clients import Function
from rahf.judges.judge import Verdicts
from rahf.judges.questions import read_better


def judge_at(url, **options):
    return ApiJudge(
        Api(url, "wise", first_wait=0.01, **options), 2, lambda m, a, b: f"{a} or {b}?", read_better
    )


def test_a_question_is_one_message_at_temperature_zero():
    with server((200, {}, "yes")) as (url, requests):
        assert Api(url + "/", "wise", key="secret").complete("Is it?") == "yes"
    [(path, headers, body)] = requests
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer secret"
    assert body["messages"] == [{"role": "user", "content": "Is it?"}]
    assert (body["model"], body["temperature"]) == ("wise", 0)


def test_a_busy_server_is_asked_again():
    replies = [(429, {"Retry-After": "0"}, "busy"), (503, {}, "down"), (200, {}, "yes")]
    with server(*replies) as (url, requests):
        assert Api(url, "wise", first_wait=0.01).complete("x") == "yes"
    assert len(requests) == 3


def test_a_refusal_is_reported_and_not_asked_again():
    refused = pytest.raises(ValueError, match=r"status 401.*no key")
    with server((401, {}, {"error": "no key"})) as (url, requests), refused:
        Api(url, "wise", first_wait=0.01).complete("x")
    assert len(requests) == 1


def test_tries_come_to_an_end():
    broken = pytest.raises(ValueError, match="status 500")
    with server((500, {}, "broken")) as (url, requests), broken:
        Api(url, "wise", first_wait=0.001, tries=3).complete("x")
    assert len(requests) == 3
    with pytest.raises(ValueError, match="cannot be reached"):
        Api(url, "wise", first_wait=0.001, tries=2).complete("x")


def test_something_else_than_such_an_api_is_reported():
    other = pytest.raises(ValueError, match="does not answer as such an API")
    with server((200, {}, {"hello": "world"})) as (url, requests), other:
        Api(url, "wise", first_wait=0.001, tries=3).complete("x")
    assert len(requests) == 3  # a body that was cut off may be complete the next time
    used = {"usage": {"prompt_tokens": 7, "completion_tokens": 2}}
    said = {"choices": [{"message": {"content": "yes"}}]}
    for odd in ({"usage": 3}, {"usage": {"prompt_tokens": "7"}}, {}):
        with server((200, {}, {"hello": "world"}), (200, {}, {**said, **odd})) as (url, _):
            assert Api(url, "wise", first_wait=0.001).answer("x") == ("yes", (0, 0))
    with server((200, {}, {**said, **used})) as (url, _):
        assert Api(url, "wise").answer("x") == ("yes", (7, 2))


def test_a_python_function_is_a_client_and_what_it_returns_is_kept(tmp_path):
    told = []

    def call(prompt):
        told.append(prompt)
        return '{"better": "A"}' if "ab" in prompt else "Hm."

    judge = ApiJudge(Function("mine", call), 2, lambda m, a, b: a + b, read_better, workers=2)
    for _ in range(2):
        verdicts = Verdicts(tmp_path / "v.jsonl").ask(judge, ["ab", "cd"])
        assert [verdict.value for verdict in verdicts] == [1.0, None]
    assert sorted(told) == ["ab", "cd"]
    wrong = ApiJudge(Function("mine too", len), 2, lambda m, a, b: a + b, read_better)
    with pytest.raises(ValueError, match="mine too returns int"):
        Verdicts().ask(wrong, ["ab"])


def test_verdicts_come_in_order_unreadable_ones_are_missing_and_none_is_asked_twice(tmp_path):
    said = {"a or b?": '```json\n{"better": "A"}\n```', "c or d?": "Hard to say."}

    def content(body):
        return said.get(body["messages"][0]["content"], '{"better": "tie"}')

    with server((200, {}, content)) as (url, requests):
        judge = judge_at(url)
        read = [judge.read([], *pair) for pair in ("ab", "cd", "ef", "ab")]
        for _ in range(2):
            verdicts = Verdicts(tmp_path / "verdicts.jsonl").ask(judge, read)
            assert [verdict.value for verdict in verdicts] == [1.0, None, 0.5, 1.0]
    assert len(requests) == 3
    lines = [json.loads(line) for line in (tmp_path / "verdicts.jsonl").read_text().splitlines()]
    assert {line["judge"] for line in lines} == {f"wise at {url}"}
    assert lines[1]["said"] == "Hard to say."


def test_a_slow_answer_does_not_let_many_others_be_asked_for_nothing():
    gate, asked = threading.Event(), []

    def content(body):
        asked.append(body)
        if len(asked) == 1:
            gate.wait(10)
        return '{"better": "A"}'

    with server((200, {}, content)) as (url, _):
        judge = ApiJudge(judge_at(url).api, 2, lambda m, a, b: a + b, read_better, workers=2)
        verdicts = judge.verdicts([str(index) for index in range(20)])
        threading.Timer(0.5, gate.set).start()
        next(verdicts)
        assert 2 <= len(asked) <= 4
        assert len(list(verdicts)) == 19


def test_answers_that_came_before_an_error_are_kept(tmp_path):
    replies = [(200, {}, '{"better": "B"}'), (402, {}, "out of credit")]
    with server(*replies) as (url, requests):
        judge = ApiJudge(judge_at(url).api, 2, lambda m, a, b: a + b, read_better, workers=1)
        with pytest.raises(ValueError, match="out of credit"):
            Verdicts(tmp_path / "v.jsonl").ask(judge, ["x", "y", "z"])
    assert len((tmp_path / "v.jsonl").read_text().splitlines()) == 1
    assert len(requests) <= 3


OK, REFUSED = (200, {}, '{"better": "B"}'), (400, {}, "content filter")


def asked_one_by_one(url):
    return ApiJudge(judge_at(url).api, 2, lambda m, a, b: a + b, read_better, workers=1)


@pytest.mark.parametrize(
    ("replies", "values"),
    [
        # The last OK of a row of refusals answers the question whether anything is answered.
        ((REFUSED, OK, REFUSED, OK, OK), [None, 0.0, None, 0.0]),
        ((OK, OK, REFUSED, OK), [0.0, 0.0, None]),
        ((REFUSED, OK), [None]),
    ],
)
def test_a_text_that_a_filter_refuses_is_missing_and_the_others_are_judged(
    tmp_path, replies, values
):
    path = tmp_path / "v.jsonl"
    with server(*replies) as (url, requests):
        judge, texts = asked_one_by_one(url), [str(index) for index in range(len(values))]
        verdicts = Verdicts(path).ask(judge, texts)
        before = len(requests)
        assert Verdicts(path).ask(judge, texts) == verdicts
        assert len(requests) == before
    assert [verdict.value for verdict in verdicts] == values
    assert all(("content filter" in each.said) is (each.value is None) for each in verdicts)


def test_a_filter_may_refuse_many_texts_one_after_the_other(tmp_path):
    def passes(body):
        return "harm" not in body["messages"][0]["content"]

    with server((200, {}, '{"better": "B"}'), refuses=lambda body: not passes(body)) as (url, _):
        read = [f"harm {index}" for index in range(20)] + ["x"]
        verdicts = Verdicts(tmp_path / "v.jsonl").ask(asked_one_by_one(url), read)
        assert [verdict.value for verdict in verdicts] == [None] * 20 + [0.0]
        # Alone, too: nothing else is left to ask about after a stop.
        assert Verdicts().ask(asked_one_by_one(url), read[:20])[0].value is None


@pytest.mark.parametrize("texts", [1, 2, 20])
def test_a_server_that_refuses_everything_is_an_error_and_nothing_of_it_is_kept(tmp_path, texts):
    replies = [(200, {}, '{"better": "B"}'), (400, {}, "no such parameter")]
    with server(*replies) as (url, requests):
        judge = asked_one_by_one(url)
        Verdicts(tmp_path / "v.jsonl").ask(judge, ["before"])
        with pytest.raises(ValueError, match="no such parameter"):
            Verdicts(tmp_path / "v.jsonl").ask(judge, [str(index) for index in range(texts)])
    assert len((tmp_path / "v.jsonl").read_text().splitlines()) == 1
    assert len(requests) <= 8
