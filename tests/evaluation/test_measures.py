"""The rows of the last table: preferences, judged answers, loss on unrelated text."""

import math

import pytest
import torch
from tiny_models import EOS, tiny_model, tiny_pairs, tiny_tokenizer

from rahf.evaluation.ability import text_loss
from rahf.evaluation.table import HeldOut, measure
from rahf.judges.lexicon import lexicon_tone, shows, wanted_sign


def test_the_lexicon_tells_praise_from_complaint():
    scores = lexicon_tone()(["What a wonderful, lovely day!", "Awful, dull and sad.", "A door."])
    assert scores[0] > 0.5
    assert scores[1] < -0.5
    assert abs(scores[2]) < 0.05


def test_the_wanted_side_of_the_scale_is_that_of_the_chosen_responses():
    judge = lexicon_tone()
    assert wanted_sign(judge, ["great"], ["terrible"]) == 1
    assert wanted_sign(judge, ["terrible"], ["great"]) == -1


def test_an_answer_shows_the_behaviour_beyond_the_neutral_band_of_the_wanted_side():
    assert shows([0.5, 0.05, -0.5], sign=1) == [True, False, False]
    assert shows([0.5, 0.05, -0.5], sign=-1) == [False, False, True]


def test_a_missing_lexicon_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "vaderSentiment.vaderSentiment", None)
    with pytest.raises(ValueError, match=r"pip install 'rahf\[judges\]'"):
        lexicon_tone()


def test_the_loss_on_text_is_the_mean_over_all_predicted_tokens():
    model, texts = tiny_model(), [[2, 3, 4, 5], [6, 7], [8, 9, 10]]
    expected, tokens = 0.0, 0
    for text in texts:
        logprobs = model(torch.tensor([text])).logits[0].log_softmax(-1)
        expected -= sum(logprobs[place, token].item() for place, token in enumerate(text[1:]))
        tokens += len(text) - 1
    for batch_size in (1, 2, 3):
        assert text_loss(model, texts, EOS, batch_size) == pytest.approx(expected / tokens, 1e-5)


def test_a_row_of_the_table_holds_what_was_asked_for():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    held_out = HeldOut(
        pairs=tiny_pairs(3),
        prompts=[[2, 3], [4, 5, 6]],
        unrelated=[[2, 3, 4]],
        judge=lambda texts: [1.0, -0.5][: len(texts)],
        sign=1,
        max_new_tokens=2,
    )
    row, answers = measure(model, tokenizer, held_out, "base")
    assert len(answers) == row.answers == 2
    assert row.judged_mean == pytest.approx(0.25)
    assert row.judged_se == pytest.approx(0.75)
    assert (row.shows_wanted, row.shows_opposite) == (0.5, 0.5)
    assert row.preference_accuracy in (0, 1 / 3, 2 / 3, 1)
    assert math.isfinite(row.preference_margin)
    assert row.unrelated_loss > 0


def test_what_is_not_asked_for_is_not_measured():
    nothing = HeldOut(pairs=(), prompts=[], unrelated=[], judge=None, sign=1, max_new_tokens=2)
    row, answers = measure(tiny_model(), tiny_tokenizer(), nothing, "base")
    assert answers == []
    assert set(row.as_dict().values()) == {None, 0}
