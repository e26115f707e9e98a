import pytest
import torch
from tiny_models import EOS, tiny_model

from rahf.generation.decoding import (
    Decoding,
    _drawn_from_likeliest,
    decode,
    next_tokens,
    row_uniforms,
)
from rahf.generation.reading import reading_of
from rahf.generation.unfinished import Prefix, left_padded

PROMPTS = [[5, 6, 7, 8], [9], [10, 11], [12, 13, 14, 15, 16, 17], [18, 19], [2, 3], [4, 3]]
ENDS = set(range(1, 40, 6))  # many, so that rows end at different places
ROWS = range(len(PROMPTS))
SAMPLED = Decoding(max_new_tokens=16, temperature=1.3, top_p=0.95, seed=4)


def by_loop(model, prompt, decoding, row):
    """Decode one row, one token at a time, without padding and without a cache."""
    uniforms, ids = row_uniforms([row], decoding)[0], list(prompt)
    for step in range(decoding.max_new_tokens):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
        ids.append(choose_by_loop(logits, decoding, uniforms[step].item()))
        if ids[-1] in ENDS:
            break
    return ids[len(prompt) :]


def choose_by_loop(logits, decoding, uniform):
    if decoding.temperature == 0:
        return int(logits.argmax())
    share = (logits.double() / decoding.temperature).softmax(-1).tolist()
    ranked = sorted(range(len(share)), key=lambda token: -share[token])
    ranked = ranked[: decoding.top_k or None]
    whole, kept, mass = sum(share[token] for token in ranked), [], 0.0
    for token in ranked:
        if mass / whole >= decoding.top_p:
            break
        kept.append(token)
        mass += share[token]
    reached = 0.0
    for token in kept:
        reached += share[token]
        if uniform * mass < reached:
            return token
    return kept[-1]


def decoded(model, decoding, rows=ROWS, prefix=None):
    rows = list(rows)
    return decode(
        model,
        [(prefix.ids if prefix else []) + PROMPTS[row] for row in rows],
        decoding,
        row_uniforms(rows, decoding),
        pad_token_id=EOS,
        ended=lambda ids: ids[-1] in ENDS,
        prefix=prefix,
    )


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3", "mistral"])
@pytest.mark.parametrize("decoding", [Decoding(max_new_tokens=16), SAMPLED])
def test_tokens_are_those_of_a_loop_over_single_rows(architecture, decoding):
    model = tiny_model(architecture)
    expected = [by_loop(model, prompt, decoding, row) for row, prompt in enumerate(PROMPTS)]
    assert len({len(ids) for ids in expected}) > 1
    assert decoded(model, decoding) == expected
    for row in ROWS:
        assert decoded(model, decoding, [row]) == [expected[row]]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3", "mistral"])
@pytest.mark.parametrize("length", [1, 4, 12])
def test_a_prefix_computed_once_changes_nothing(architecture, length):
    # length 1 and 4: shorter than the padding of the shortest prompt, and just longer
    model = tiny_model(architecture)
    ids = [20 + place for place in range(length)]
    expected = [by_loop(model, ids + p, SAMPLED, row) for row, p in enumerate(PROMPTS)]
    prefix = Prefix(model, ids)
    for _ in range(2):  # the second batch finds the prefix as it was
        assert decoded(model, SAMPLED, prefix=prefix) == expected
    assert decoded(model, SAMPLED, [1, 2], prefix) == expected[1:3]


def test_columns_of_the_prefix_are_not_computed_again():
    model, lengths = tiny_model(), []
    assert all(reading_of(model))  # checked before the forwards are counted
    prefix = Prefix(model, list(range(10, 30)))
    model.register_forward_pre_hook(
        lambda _, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    decoded(model, Decoding(max_new_tokens=3), prefix=prefix)
    assert lengths == [6, 1, 1]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_model_that_predicts_nothing_finite_writes_nothing(value, temperature):
    model, decoding, one = tiny_model(), Decoding(3, temperature=temperature), torch.tensor([9])
    model.lm_head.register_forward_hook(lambda *given: given[2].index_fill(2, one, value))
    asked = {"pad_token_id": EOS, "ended": lambda ids: False}
    with pytest.raises(ValueError, match="predicts NaN or infinity, so it writes nothing"):
        decode(model, [[5, 6], [7]], decoding, row_uniforms(range(2), decoding), **asked)


def test_a_row_that_has_ended_leaves_the_batch():
    model, rows = tiny_model(), []
    assert all(reading_of(model))  # checked before the forwards are counted
    model.register_forward_pre_hook(
        lambda _, args, kwargs: rows.append(kwargs["input_ids"].shape[0]), with_kwargs=True
    )
    written = decoded(model, SAMPLED)
    assert rows == [sum(len(ids) > step for ids in written) for step in range(len(rows))]
    assert rows[-1] < rows[0]


@pytest.mark.parametrize(
    "decoding",
    [
        Decoding(temperature=1.0),
        Decoding(temperature=0.7, top_p=0.6),
        Decoding(temperature=1.5, top_k=3),
        Decoding(temperature=1.0, top_k=5, top_p=0.5),
    ],
)
def test_tokens_are_drawn_with_their_probability(decoding):
    logits = torch.tensor([0.3, 2.0, -1.0, 1.0, 0.0, 1.5])
    draws = 2000
    uniforms = (torch.arange(draws, dtype=torch.float64) + 0.5) / draws
    tokens = next_tokens(logits.expand(draws, -1), decoding, uniforms)
    assert tokens.tolist() == [choose_by_loop(logits, decoding, u) for u in uniforms.tolist()]
    kept = torch.bincount(tokens, minlength=6) > 0
    share = (logits / decoding.temperature).softmax(-1) * kept
    share /= share.sum()
    torch.testing.assert_close(
        torch.bincount(tokens, minlength=6) / draws, share, atol=1 / draws, rtol=0
    )


@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.3])
@pytest.mark.parametrize("spread", [0.2, 3.0])
def test_drawing_from_the_likeliest_tokens_is_drawing_from_all_in_order(monkeypatch, top_p, spread):
    generator = torch.Generator().manual_seed(0)
    # Steps of an eighth, as 16 bits leave: many tokens are equally likely.
    logits = (torch.randn(64, 500, generator=generator) * spread * 8).round() / 8
    uniforms = torch.rand(64, dtype=torch.float64, generator=generator)
    uniforms[:2] = torch.tensor([0.0, 1 - 2.0**-53])
    decoding, told = Decoding(temperature=1.0, top_p=top_p), []
    monkeypatch.setattr("rahf.generation.decoding.LIKELIEST", 500)
    in_order = next_tokens(logits, decoding, uniforms)
    monkeypatch.setattr("rahf.generation.decoding.LIKELIEST", 40)
    whole = _drawn_from_likeliest

    def watched(*given):
        told.append(whole(*given))
        return told[-1].clone()

    monkeypatch.setattr("rahf.generation.decoding._drawn_from_likeliest", watched)
    assert next_tokens(logits, decoding, uniforms).tolist() == in_order.tolist()
    found = (told[0] >= 0).float().mean()
    # Of a flat distribution hardly any draw falls among them, of a steep one nearly every one.
    assert found < 0.5 if spread < 1 else found > 0.6


def test_the_last_of_the_random_numbers_draws_a_token_that_is_kept():
    logits = torch.tensor([[3.0, 2.0, -20.0, -30.0]])
    nearly_one = torch.tensor([1 - 2.0**-53], dtype=torch.float64)
    assert next_tokens(logits, Decoding(temperature=1.0, top_p=0.9), nearly_one).item() == 1
    assert next_tokens(logits, Decoding(temperature=1.0, top_p=1e-6), nearly_one).item() == 0


def test_random_numbers_of_a_row_do_not_depend_on_other_rows():
    whole = row_uniforms([0, 1, 2], SAMPLED)
    assert torch.equal(row_uniforms([2, 0], SAMPLED), whole[[2, 0]])
    assert not torch.equal(whole[0], whole[1])
    other_seed = Decoding(max_new_tokens=8, temperature=1.3, seed=5)
    assert not torch.equal(row_uniforms([0], other_seed)[0], whole[0])


def test_padding_is_on_the_left():
    ids, mask = left_padded([[5, 6, 7], [8]], pad_token_id=1)
    assert ids.tolist() == [[5, 6, 7], [1, 1, 8]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_k": -1}, "top_k is -1"),
        ({"seed": -2}, "seed is -2"),
    ],
)
def test_wrong_settings_are_reported(wrong, said):
    with pytest.raises(ValueError, match=said):
        Decoding(**wrong)
