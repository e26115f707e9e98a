"""Win rates: both orders, ties, missing verdicts, length."""

import numpy as np
import pytest

from rahf.data.prompts import Response
from rahf.evaluation.wins import (
    Contest,
    by_orders,
    by_scores,
    contests_of,
    decide,
    rate_at_equal_length,
    win_rates,
)
from rahf.judges.judge import Verdict, Verdicts


class Chooser:
    """Likes the text with more 'x'; ties fall to the first place; no verdict on 'mute'."""

    id, responses = "x", 2

    def read(self, messages, *responses):
        return "|".join(responses)

    def verdicts(self, read):
        for text in read:
            first, second = text.split("|")
            if "mute" in text:
                yield Verdict(None, "hm")
            else:
                yield Verdict(float(first.count("x") >= second.count("x")))


class Scorer(Chooser):
    responses = 1

    def verdicts(self, read):
        return (Verdict(float(text.count("x"))) for text in read)


CONTESTS = [
    Contest([], "xx", "x"),
    Contest([], "x", "xxxx"),
    Contest([], "a", "bbb"),
    Contest([], "mute", "xxx"),
    Contest([], "x", "aa"),
]


def test_a_chooser_reads_both_orders_and_its_liking_for_a_place_is_a_tie():
    outcomes = decide(Chooser(), CONTESTS, Verdicts())
    assert [outcome.value for outcome in outcomes] == [1, 0, 0.5, None, 1]
    figures = win_rates(CONTESTS, outcomes, chooser=True)
    assert (figures["prompts"], figures["missing"]) == (5, 1)
    assert (figures["wins"], figures["ties"], figures["losses"]) == (2, 1, 1)
    assert figures["win_rate"]["mean"] == 2.5 / 4
    assert figures["orders_agree"] == 3 / 4
    assert figures["first_place_preferred"] == 5 / 8
    assert figures["characters"] == [(2 + 1 + 1 + 1) / 4, (1 + 4 + 3 + 2) / 4]
    assert figures["longer_wins"]["mean"] == (1 + 1 + 0.5 + 0) / 4


def test_a_scorer_reads_each_response_once():
    outcomes = decide(Scorer(), CONTESTS, Verdicts())
    assert [outcome.value for outcome in outcomes] == [1, 0, 0.5, 0, 1]
    figures = win_rates(CONTESTS, outcomes, chooser=False)
    assert "orders_agree" not in figures


def test_rates_of_the_two_sides_are_complements():
    turned = [Contest(c.messages, c.second, c.first) for c in CONTESTS]
    here, there = (
        win_rates(given, decide(Chooser(), given, Verdicts()), chooser=True)
        for given in (CONTESTS, turned)
    )
    for name in ("win_rate", "win_rate_at_equal_length"):
        assert here[name]["mean"] + there[name]["mean"] == pytest.approx(1)
    assert here["longer_wins"] == there["longer_wins"]


def test_where_every_verdict_is_missing_there_is_no_rate():
    given = [Contest([], "mute", "a")]
    figures = win_rates(given, decide(Chooser(), given, Verdicts()), chooser=True)
    assert figures["missing"] == 1
    assert "win_rate" not in figures


@pytest.mark.parametrize(
    ("first", "second", "value"),
    [
        (0.9, 0.2, 1),
        (0.9, 0.95, 0),
        (0.5, 0.5, 0.5),
        (1.0, 1.0, 0.5),
        (1.0, 0.5, 1),
        (None, 1, None),
    ],
)
def test_orders_are_weighed_against_each_other(first, second, value):
    assert by_orders(first, second) == value


def test_scores_are_compared():
    assert (by_scores(1.0, 0.5), by_scores(0.5, 1.0), by_scores(1.0, 1.0)) == (1, 0, 0.5)
    assert by_scores(None, 1.0) is None


def drawn_contests(length_effect, merit, count=3000, seed=0):
    """Draw wins from the very form that is fitted; the first responses are the longer ones."""
    generator = np.random.default_rng(seed)
    differences = generator.normal(60, 80, size=count)
    lean = np.tanh(differences / differences.std())
    chance = 1 / (1 + np.exp(-(merit + length_effect * lean)))
    values = (generator.random(count) < chance).astype(float)
    return values.tolist(), [(500 + int(d), 500) for d in differences]


def test_the_rate_at_equal_length_takes_out_what_length_alone_brings():
    values, lengths = drawn_contests(length_effect=2.0, merit=0.0)
    assert np.mean(values) > 0.6
    rate = rate_at_equal_length(values, lengths)
    assert rate["mean"] == pytest.approx(0.5, abs=0.04)
    assert rate["low"] < 0.5 < rate["high"]


def test_the_rate_at_equal_length_keeps_what_length_does_not_explain():
    values, lengths = drawn_contests(length_effect=0.0, merit=1.0)
    assert rate_at_equal_length(values, lengths)["mean"] == pytest.approx(0.731, abs=0.04)
    same = [(10, 10)] * len(values)
    assert rate_at_equal_length(values, same)["mean"] == pytest.approx(np.mean(values), abs=1e-3)


def test_the_rate_at_equal_length_bears_wins_that_length_explains_wholly():
    values = [1.0, 0.0] * 10
    rate = rate_at_equal_length(values, [(9, 5), (5, 9)] * 10)
    assert rate["mean"] == pytest.approx(0.5, abs=1e-6)
    assert rate_at_equal_length([1.0] * 4, [(9, 5)] * 4)["mean"] > 0.9


def said(prompt, text):
    return Response([{"role": "user", "content": prompt}], text, "")


def test_responses_of_two_files_are_matched_by_their_prompts():
    contests = contests_of([said("p", "1"), said("q", "2")], [said("q", "4"), said("p", "3")])
    assert [(contest.first, contest.second) for contest in contests] == [("1", "3"), ("2", "4")]
    with pytest.raises(
        ValueError,
        match=r"first file .* that the second file does not \(1, for instance 'p'",
    ):
        contests_of([said("p", "1")], [said("q", "2")])
    with pytest.raises(ValueError, match="first file: the prompt 'p' has 2 responses"):
        contests_of([said("p", "1"), said("p", "2")], [said("p", "3")])
