import itertools
import random

import pytest
import torch
from tiny_models import EOS, tiny_model, tiny_pairs

from rahf.data.rows import sequence_rows
from rahf.models import scoring
from rahf.models.likelihood import (
    likelihood,
    pair_likelihoods,
    preference_margins,
    state_inputs,
)
from rahf.models.packing import use_packed_attention
from rahf.models.scoring import scored_together


def log_probability_by_loop(model, prompt, response):
    """Sum over the response tokens of log p(token | all before it), one forward a token."""
    total, ids = 0.0, list(prompt)
    for token in response:
        with torch.no_grad():
            total += model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)[token]
        ids.append(token)
    return total.item()


def prompts_and_responses():
    pairs = tiny_pairs(4)
    return [pair["prompt_ids"] for pair in pairs], [pair["chosen_ids"] for pair in pairs]


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("width", [0, 20])
def test_likelihood_equals_one_forward_a_token_whatever_the_padding(architecture, side, width):
    model = tiny_model(architecture)
    prompts, responses = prompts_and_responses()
    with torch.no_grad():
        found = likelihood(model, sequence_rows(prompts, responses, EOS, side, width))

    expected = [
        log_probability_by_loop(model, prompt, response)
        for prompt, response in zip(prompts, responses, strict=True)
    ]
    lengths = torch.tensor([len(response) for response in responses])
    assert torch.allclose(found.sums(), torch.tensor(expected), atol=1e-4)
    assert torch.allclose(found.means(), torch.tensor(expected) / lengths, atol=1e-5)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("width", [0, 9])
def test_the_first_token_of_a_text_without_a_prompt_has_no_score(side, width):
    model, text = tiny_model(), [7, 8, 9]
    rows = sequence_rows([[], [4]], [text, [5, 6, 7, 8, 9]], EOS, side, width)
    with torch.no_grad():
        found = likelihood(model, rows)
    assert torch.bincount(found.owner).tolist() == [2, 5]
    expected = log_probability_by_loop(model, text[:1], text[1:])
    assert found.sums()[0].item() == pytest.approx(expected, abs=1e-4)
    assert found.means()[0].item() == pytest.approx(expected / 2, abs=1e-4)


def test_the_head_is_applied_to_the_columns_that_predict_and_to_no_others():
    model = tiny_model()
    seen = []
    model.lm_head.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape))
    rows = sequence_rows([[2, 3, 4, 5], [2, 3, 4, 5]], [[6], [7, 8]], EOS)
    likelihood(model, rows)
    assert seen == [(2, 2, model.config.hidden_size)]


def test_the_head_reads_no_column_where_states_are_read():
    model, seen = tiny_model(), []
    model.lm_head.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[1]))
    model(**state_inputs(sequence_rows([[2, 3, 4, 5], [2, 3]], [[6], [7, 8]], EOS)))
    assert seen == [0]


@pytest.mark.parametrize("packed", [True, False])
def test_preference_margins_do_not_depend_on_the_batch_size(packed):
    model = tiny_model()
    assert not packed or use_packed_attention(model)
    pairs = [{**pair, "prompt_ids": 6 * pair["prompt_ids"]} for pair in tiny_pairs(5)]
    pairs[3]["prompt_ids"] = [*pairs[1]["prompt_ids"], 5]  # as an instruction in front of both
    expected = [
        log_probability_by_loop(model, pair["prompt_ids"], pair["chosen_ids"])
        / len(pair["chosen_ids"])
        - log_probability_by_loop(model, pair["prompt_ids"], pair["rejected_ids"])
        / len(pair["rejected_ids"])
        for pair in pairs
    ]
    for batch_size in (1, 2, 5, 8):
        margins = preference_margins(model, pairs, EOS, batch_size)
        assert margins.tolist() == pytest.approx(expected, abs=1e-5)


def test_responses_of_a_pair_share_their_prompt_where_the_model_takes_packed_rows():
    model, seen = tiny_model(), []
    use_packed_attention(model)
    model.model.register_forward_pre_hook(
        lambda _, __, given: seen.append(given["input_ids"].numel()), with_kwargs=True
    )
    prompt = list(range(2, 32))
    pair = {"prompt_ids": prompt, "chosen_ids": [7, 8, EOS], "rejected_ids": [9, EOS]}
    preference_margins(model, [pair], EOS)
    # The last prompt token, which predicts the response, is each row's own.
    assert seen == [len(prompt) + 3 + 1 + 2]


def test_the_margin_changes_sign_when_the_sides_are_swapped():
    model, pairs = tiny_model(), tiny_pairs(3)
    swapped = [
        {**pair, "chosen_ids": pair["rejected_ids"], "rejected_ids": pair["chosen_ids"]}
        for pair in pairs
    ]
    margins = preference_margins(model, pairs, EOS)
    assert torch.allclose(preference_margins(model, swapped, EOS), -margins, atol=1e-6)
    assert margins.abs().min() > 1e-3


# What is scored at once


def test_rows_are_scored_together_in_their_order_and_within_both_bounds(monkeypatch):
    monkeypatch.setattr(scoring, "SCORED_AT_ONCE", 12)
    draw = random.Random(0)
    for _ in range(50):
        lengths = [draw.randint(1, 15) for _ in range(draw.randint(0, 20))]
        parts = list(scored_together(lengths, batch_size=4))
        assert [index for part in parts for index in range(len(lengths))[part]] == [
            *range(len(lengths))
        ]
        for part in parts:
            given = lengths[part]
            assert len(given) == 1 or (len(given) <= 4 and len(given) * max(given) <= 12)
        for part, behind in itertools.pairwise(parts):
            # None could have taken the next row as well.
            more = lengths[part] + lengths[behind][:1]
            assert len(more) > 4 or len(more) * max(more) > 12


@pytest.mark.parametrize("packed", [False, True])
def test_long_responses_are_scored_a_few_at_a_time_and_come_out_the_same(packed, monkeypatch):
    model, pairs, seen = tiny_model(), tiny_pairs(6), []
    if packed:
        use_packed_attention(model)
    whole = pair_likelihoods(model, pairs, EOS, batch_size=6)
    model.lm_head.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[:-1]))
    monkeypatch.setattr(scoring, "SCORED_AT_ONCE", 24)
    parts = pair_likelihoods(model, pairs, EOS, batch_size=6)
    assert len(seen) > 1
    assert max(shape.numel() for shape in seen) <= 24
    for one, other in zip(whole, parts, strict=True):
        assert torch.allclose(one, other, atol=1e-4)
