"""What a judge makes of answers: scores, the side that is wanted, the figures."""

import pytest
from datasets import Dataset

from rahf.evaluation.scores import (
    JUDGED,
    aspect_figures,
    judged_figures,
    outcomes_of,
    score_figures,
    wanted_side,
)
from rahf.judges.judge import Verdict, Verdicts
from rahf.judges.names import NEUTRAL_SCORES
from rahf.judges.questions import ASPECTS
from rahf.judges.rules import rule

ASKED = [{"role": "user", "content": "w2"}]
LEXICON = NEUTRAL_SCORES["lexicon"]


class PrefersLonger:
    """A chooser; what it reads is the two responses. For a response `?` it has no verdict."""

    responses = 2

    def __init__(self):
        self.id, self.asked = "longer", []

    def read(self, messages, *responses):
        return "|".join(responses)

    def verdicts(self, read):
        for text in read:
            self.asked.append(text)
            first, second = text.split("|")
            lean = (len(first) > len(second)) - (len(first) < len(second))
            yield Verdict(None if "?" in text else (lean + 1) / 2)


def scores_of(*given):
    return [outcome.value for outcome in outcomes_of(*given)]


def pairs_of(chosen, rejected):
    rows = len(chosen)
    return Dataset.from_dict({"prompt": [ASKED] * rows, "chosen": chosen, "rejected": rejected})


# Scores


def test_a_scorers_score_is_its_own_verdict():
    assert scores_of(rule("length"), Verdicts(), [ASKED] * 2, ["abc", "a"]) == [3, 1]


def test_a_choosers_score_is_the_win_over_the_bases_answer_in_both_orders():
    judge, base = PrefersLonger(), ["bb", "bb", "bb", "bb", "?"]
    answers = ["aaa", "a", "aa", "bb", "aaaa"]
    scores = scores_of(judge, Verdicts(), [ASKED] * 5, answers, base)
    assert scores == [1, 0, 0.5, 0.5, None]
    # Both orders of every pair, but none of a text beside itself.
    assert sorted(judge.asked) == sorted(
        ["aaa|bb", "bb|aaa", "a|bb", "bb|a", "aa|bb", "bb|aa", "aaaa|?", "?|aaaa"]
    )


def test_the_base_beside_itself_is_a_half_without_a_request():
    judge = PrefersLonger()
    assert scores_of(judge, Verdicts(), [ASKED] * 2, ["a", "?"], ["a", "?"]) == [0.5, 0.5]
    assert judge.asked == []


# The side that is wanted


@pytest.mark.parametrize(
    ("name", "chosen", "rejected", "side"),
    [
        ("lexicon", "great", "terrible", 1),
        ("lexicon", "terrible", "great", -1),
        ("length", "long", "longer", -1),
        ("refusal", "Yes.", "No.", 0),
    ],
)
def test_the_wanted_side_is_that_of_the_chosen_responses(name, chosen, rejected, side):
    assert wanted_side(rule(name), Verdicts(), pairs_of([chosen] * 2, [rejected] * 2)) == side


def test_more_is_wanted_of_a_chooser_which_is_asked_about_one_pair_at_once():
    judge = PrefersLonger()
    assert wanted_side(judge, Verdicts(), pairs_of(["a", "aa"], ["bb", "b"])) == 1
    assert sorted(judge.asked) == ["a|bb", "bb|a"]


# Figures


def test_an_answer_shows_the_behaviour_beyond_the_neutral_band_of_the_wanted_side():
    scores = [0.5, 0.05, -0.05, -0.5, -0.6]
    for sign, shown in ((1, (0.2, 0.4)), (-1, (0.4, 0.2))):
        figures = judged_figures(scores, sign, LEXICON)
        assert (figures["shows_wanted"], figures["shows_opposite"]) == shown


def test_the_figures_are_the_mean_and_its_standard_error():
    assert judged_figures([1.0, -0.5], 1, LEXICON) == {
        "judged_mean": 0.25,
        "judged_se": pytest.approx(0.75),
        "shows_wanted": 0.5,
        "shows_wanted_interval": pytest.approx([0.0945, 0.9055], abs=1e-4),
        "shows_opposite": 0.5,
        "shows_opposite_interval": pytest.approx([0.0945, 0.9055], abs=1e-4),
    }
    assert judged_figures([1.0], 1, LEXICON)["judged_se"] is None


def test_a_win_over_the_base_is_the_wanted_side_of_a_chooser():
    figures = judged_figures([1, 1, 0.5, 0], 1, NEUTRAL_SCORES["api"])
    assert (figures["shows_wanted"], figures["shows_opposite"]) == (0.5, 0.25)


def test_a_scale_without_a_neutral_score_has_no_shares():
    figures = judged_figures([3.0, 5.0], 1, NEUTRAL_SCORES.get("length"))
    assert (figures["judged_mean"], figures["shows_wanted"]) == (4, None)


def test_missing_scores_are_left_out_and_counted():
    figures = judged_figures([0.5, None, 0.1, None], 1, LEXICON)
    assert (figures["judged_mean"], figures["verdicts_missing"]) == (pytest.approx(0.3), 0.5)
    assert judged_figures([None], 1, LEXICON) == {**dict.fromkeys(JUDGED), "verdicts_missing": 1}


def test_missing_marks_are_counted_and_never_averaged():
    values = [dict.fromkeys(ASPECTS, 2.0), {**dict.fromkeys(ASPECTS, 4.0), "depth": None}, None]
    figures = aspect_figures(values)
    assert (figures["clarity"]["mean"], figures["clarity"]["missing"]) == (3, 1)
    assert (figures["depth"]["mean"], figures["depth"]["missing"]) == (2, 2)
    assert aspect_figures([None]) == {name: {"missing": 1} for name in ASPECTS}
    assert score_figures([1.0, None, 3.0])["score"]["mean"] == 2
    assert score_figures([None]) == {"missing": 1, "distinct": 0}
