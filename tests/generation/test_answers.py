import pytest
import torch
from tiny_models import EOS, tiny_model, tiny_tokenizer

from rahf.generation.answers import (
    answers,
    generate,
    pad_id,
    sample_texts,
    shared_beginning,
)
from rahf.generation.decoding import Decoding, decode, next_tokens, row_uniforms

PROMPTS = [[5, 6, 7, 8], [9], [10, 11], [12, 13, 14, 15, 16, 17], [18, 19]]


def answer_by_loop(model, tokenizer, prompt, max_new_tokens):
    """Decode greedily, one token at a time, without padding and without a cache."""
    ids = list(prompt)
    for _ in range(max_new_tokens):
        with torch.no_grad():
            token = model(input_ids=torch.tensor([ids])).logits[0, -1].argmax().item()
        ids.append(token)
        if token == EOS:
            break
    return tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True).strip()


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_answers_do_not_depend_on_batch_size_or_padding_and_keep_their_order(architecture):
    model, tokenizer = tiny_model(architecture), tiny_tokenizer()
    expected = [answer_by_loop(model, tokenizer, prompt, 6) for prompt in PROMPTS]
    assert len(set(expected)) > 3
    for batch_size in (1, 2, 5, 16):
        answers = generate(model, tokenizer, PROMPTS, max_new_tokens=6, batch_size=batch_size)
        assert answers == expected


def test_the_head_of_a_frozen_model_reads_states_in_one_piece():
    # From others, torch copies the weights of the head once a row.
    model, seen = tiny_model().requires_grad_(False), []
    model.lm_head.register_forward_hook(
        lambda _, inputs, __: seen.append((len(inputs[0]), inputs[0].is_contiguous()))
    )
    generate(model, tiny_tokenizer(), PROMPTS, max_new_tokens=2)
    assert (len(PROMPTS), True) in seen
    assert all(whole for _, whole in seen)


def test_an_answer_ends_at_its_own_end_of_text_while_others_go_on():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    prompts = [[first, 3] for first in range(2, 12)]
    expected = [answer_by_loop(model, tokenizer, prompt, 20) for prompt in prompts]
    lengths = [len(answer.split()) for answer in expected]
    assert min(lengths) < 20
    assert max(lengths) == 20
    assert generate(model, tokenizer, prompts, max_new_tokens=20) == expected


def test_generating_leaves_the_training_mode_as_it_was():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    for training in (True, False):
        model.train(training)
        generate(model, tokenizer, PROMPTS[:1], max_new_tokens=2)
        assert model.training is training
        sample_texts(model, tokenizer, rows=1, tokens=4, seed=0)
        assert model.training is training


def test_no_prompts_give_no_answers():
    assert generate(tiny_model(), tiny_tokenizer(), [], max_new_tokens=2) == []


def stopped_by_loop(tokenizer, ids, stops):
    """Return the text before the first stop, searched in the full text after every token."""
    for count in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:count], skip_special_tokens=True)
        found = [text.index(stop) for stop in stops if stop in text]
        if found:
            return text[: min(found)], count
    return text, len(ids)


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_each_answer_ends_before_its_own_first_stop(batch_size):
    model, tokenizer = tiny_model(), tiny_tokenizer()
    decoding = Decoding(max_new_tokens=20, temperature=1.0, seed=1)
    whole = decode(
        model,
        PROMPTS,
        decoding,
        row_uniforms(range(len(PROMPTS)), decoding),
        pad_token_id=EOS,
        ended=lambda ids: ids[-1] == EOS,
    )
    stops = ("w3", "1 w2", "w17 ")  # within a word, over two words, and with what follows a word
    cut = dict(answers(model, tokenizer, PROMPTS, decoding, stops=stops, batch_size=batch_size))
    for index, ids in enumerate(whole):
        text, count = stopped_by_loop(tokenizer, ids, stops)
        assert (cut[index].text, cut[index].ids) == (text, ids[:count])
        assert cut[index].finished == (count < len(ids) or ids[-1] == EOS)
    assert len({len(answer.ids) for answer in cut.values()}) > 2


def test_an_answer_does_not_depend_on_which_others_are_asked():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    decoding = Decoding(max_new_tokens=9, temperature=1.0)
    whole = dict(answers(model, tokenizer, PROMPTS, decoding))
    part = dict(answers(model, tokenizer, PROMPTS, decoding, only=[3, 1]))
    assert part == {index: whole[index] for index in (1, 3)}


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_progress_is_counted_in_tokens_while_a_batch_is_written(batch_size):
    model, tokenizer, decoding = tiny_model(), tiny_tokenizer(), Decoding(20, temperature=1.0)
    done = []
    given = answers(model, tokenizer, PROMPTS, decoding, batch_size=batch_size, advance=done.append)
    at = [sum(done) for _ in given]
    assert sum(done) == 20 * len(PROMPTS)  # with the tokens that rows which ended do not need
    assert at[0] == 20 * min(batch_size, len(PROMPTS))
    assert len(done) > len(PROMPTS)
    assert min(done) > 0


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_a_beginning_that_all_prompts_share_is_computed_once(batch_size, monkeypatch):
    model, tokenizer, decoding = tiny_model(), tiny_tokenizer(), Decoding(9, temperature=1.0)
    prompts = [[*range(4, 24), *prompt] for prompt in PROMPTS]
    monkeypatch.setattr("rahf.generation.answers.WORTH_SHARING", 99)
    expected = dict(answers(model, tokenizer, prompts, decoding))
    monkeypatch.setattr("rahf.generation.answers.WORTH_SHARING", 20)
    computed = []
    model.register_forward_pre_hook(
        lambda _, args, kwargs: computed.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    assert dict(answers(model, tokenizer, prompts, decoding, batch_size=batch_size)) == expected
    assert computed[0] == (1, 20)
    assert max(width for _, width in computed[1:]) == 6


def test_the_shared_beginning_leaves_every_prompt_an_id_of_its_own():
    assert shared_beginning([[1, 2, 3, 4], [1, 2, 9], [1, 2, 3, 5]]) == 2
    assert shared_beginning([[1, 2, 3], [1, 2, 3]]) == 2
    assert shared_beginning([[1, 2, 3], [1, 2]]) == 1
    assert shared_beginning([[5], [5]]) == 0
    assert shared_beginning([[1, 2, 3]]) == shared_beginning([]) == 0


def test_a_prompt_that_leaves_no_room_is_refused():
    with pytest.raises(ValueError, match=r"62 tokens.*max_new_tokens 3 .* 64 positions"):
        generate(tiny_model(), tiny_tokenizer(), [[5] * 62], max_new_tokens=3)


def sampled(seed=0, **options):
    return sample_texts(
        tiny_model(), tiny_tokenizer(), **{"rows": 5, "tokens": 12, "seed": seed, **options}
    )


def test_sampled_texts_depend_on_the_seed_alone():
    torch.manual_seed(1)
    first = sampled()
    torch.manual_seed(2)
    assert sampled() == first
    assert sampled(seed=1) != first


def test_sampling_does_not_disturb_the_global_random_numbers():
    torch.manual_seed(1)
    undisturbed = torch.rand(3)
    torch.manual_seed(1)
    sampled()
    assert torch.equal(torch.rand(3), undisturbed)


def test_as_many_texts_as_asked_for_none_longer_than_asked_for():
    for batch_size in (2, 5, 32):
        texts = sampled(batch_size=batch_size)
        assert len(texts) == 5
        assert all(9 <= len(text) <= 12 for text in texts)
        assert all(text[0] == EOS for text in texts)
        assert len({tuple(text) for text in texts}) == 5
        assert all(EOS not in text[1:-1] for text in texts)


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_a_text_is_drawn_token_by_token_and_cannot_end_among_the_first(batch_size):
    model, decoding = tiny_model(), Decoding(15, temperature=1.0, seed=4)
    expected = []
    for uniforms in row_uniforms(range(20), decoding):
        text = [EOS]
        for new, uniform in enumerate(uniforms):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([text])).logits[:, -1]
            if new < 8:
                logits[:, EOS] = -torch.inf
            text.append(next_tokens(logits, decoding, uniform[None]).item())
            if text[-1] == EOS:
                break
        expected.append(text)
    assert sampled(rows=20, tokens=16, seed=4, batch_size=batch_size) == expected
    assert min(map(len, expected)) < 16


def test_a_tokenizer_without_padding_pads_with_its_end():
    tokenizer = tiny_tokenizer()
    assert pad_id(tokenizer) == EOS
    tokenizer.pad_token = "w7"
    assert pad_id(tokenizer) == 7
    tokenizer.pad_token = None
    assert pad_id(tokenizer) == EOS
