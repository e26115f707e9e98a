"""Rows one after the other give what each of them gives alone."""

from types import SimpleNamespace

import pytest
import torch
from model_families import family_model
from tiny_models import ARCHITECTURES, EOS, tiny_model, tiny_pairs

from rahf.data.contrast import ContrastCollator, Responses
from rahf.data.rows import first_rows, packed_rows, sequence_rows
from rahf.models.capture import record
from rahf.models.likelihood import likelihood, model_inputs
from rahf.models.packed_attention import packed_attention
from rahf.models.packing import PACKED, use_packed_attention
from rahf.models.row_attention import PIECE, attention_in_pieces, attention_in_whole_rows

WITHOUT_SDPA = ("gemma2",)  # its scores are capped, which sdpa cannot do


def sequences(count=4):
    pairs = tiny_pairs(count)
    return [pair["prompt_ids"] for pair in pairs], [pair["chosen_ids"] for pair in pairs]


def packed_model(architecture="llama"):
    model = tiny_model(architecture)
    assert use_packed_attention(model)
    return model


def logits_alone(model, prompts, responses):
    """Return the logits of each row in a batch of its own."""
    return [
        model(torch.tensor([prompt + response])).logits[0]
        for prompt, response in zip(prompts, responses, strict=True)
    ]


@pytest.mark.parametrize("architecture", sorted({*ARCHITECTURES} - {*WITHOUT_SDPA}))
def test_a_packed_row_has_the_logits_that_it_has_alone(architecture):
    prompts, responses = sequences()
    expected = torch.cat(logits_alone(tiny_model(architecture), prompts, responses))
    model = packed_model(architecture)
    found = model(**model_inputs(packed_rows(prompts, responses))).logits[0]
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gpt2"])
def test_a_model_that_takes_packed_rows_treats_padded_ones_as_before(architecture):
    rows = sequence_rows(*sequences(), EOS)
    expected = tiny_model(architecture)(**model_inputs(rows)).logits
    assert torch.equal(packed_model(architecture)(**model_inputs(rows)).logits, expected)


@pytest.mark.parametrize("architecture", WITHOUT_SDPA)
def test_a_model_without_sdpa_is_left_as_it_is(architecture):
    model = tiny_model(architecture)
    before = model.config._attn_implementation
    assert not use_packed_attention(model)
    assert model.config._attn_implementation == before != PACKED


STAY_PACKED = (
    *("llama", "qwen3", "gemma3_text", "mixtral", "gpt2", "phi3", "olmo2", "cohere2"),
    *("deepseek_v3", "opt", "lfm2"),
)
MIXES_TOKENS = {  # by recurrence, convolution, or attention that drops what packing needs
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2},
    "llama4_text": {"layer_types": ["chunked_attention", "full_attention"] * 2},
    "qwen3_5_text": {},
    "qwen3_next": {},
    "falcon_h1": {},
    "bamba": {},
    "jamba": {},
    "recurrent_gemma": {},
    "nemotron_h": {},
    "stablelm": {},
    "nemotron": {},
    "doge": {},
    "phimoe": {},
}


def state_of(model):
    """Return what a check of the model must leave as it was."""
    weights = {name: (value.clone(), value.grad) for name, value in model.named_parameters()}
    modes = [(module.training, len(module._forward_hooks)) for module in model.modules()]
    windows = [getattr(module, "sliding_window", None) for module in model.modules()]
    return weights, modes, windows, model.config.to_dict()


@pytest.mark.parametrize("family", STAY_PACKED)
def test_a_decoder_of_attention_stays_packed_and_as_it_was(family, caplog):
    model, untouched = family_model(family).train(), family_model(family).train()
    model.lm_head.eval()
    untouched.lm_head.eval()
    assert use_packed_attention(model)
    assert not caplog.records
    untouched.set_attn_implementation(PACKED)
    (weights, *found), (expected_weights, *expected) = map(state_of, (model, untouched))
    assert found == expected
    assert all(
        torch.equal(weights[name][0], value) for name, (value, _) in expected_weights.items()
    )
    assert all(gradient is None for _, gradient in weights.values())
    prompts = [[*range(2, 20)], [*range(3, 12)], [*range(2, 20)]]
    responses = [[5, 6, 7, 8] * 4, [9, 10, 11], [4, 5, 8]]
    alone = logits_alone(family_model(family), prompts, responses)
    rows = packed_rows(prompts, responses)
    packed = model.eval()(**model_inputs(rows)).logits[0]
    for spans, row in zip(rows["spans"], alone, strict=True):
        start, stop = spans[-1]
        assert torch.allclose(packed[start:stop], row[start - stop :], atol=1e-4)


@pytest.mark.parametrize("number", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("family", "changes"), MIXES_TOKENS.items(), ids=list(MIXES_TOKENS))
def test_a_decoder_that_packing_breaks_is_padded_and_named_once(family, changes, number, caplog):
    model = family_model(family, **changes).to(number)
    assert not use_packed_attention(model)
    assert not use_packed_attention(model)
    assert model.config._attn_implementation == "sdpa"
    (record,) = (record for record in caplog.records if record.name == "rahf.models.packing")
    assert "padded, not packed" in record.getMessage()
    assert f"({family})" in record.getMessage()


@pytest.mark.parametrize("mask", ["kept", "dropped"])
def test_blocks_that_drop_row_spans_fail_or_are_padded_and_never_get_another_mask(mask, caplog):
    model = packed_model()
    block = model.model.layers[1]
    left = {"row_spans"} if mask == "kept" else {"row_spans", "attention_mask"}
    whole = block.self_attn.forward
    block.self_attn.forward = lambda *args, **given: whole(
        *args, **{"attention_mask": None} | {k: v for k, v in given.items() if k not in left}
    )
    if mask == "kept":
        with pytest.raises(ValueError, match=r"LlamaAttention got no row_spans.*packing: false"):
            model(**model_inputs(packed_rows(*sequences())))
    model.set_attn_implementation("sdpa")
    assert not use_packed_attention(model)
    assert "padded, not packed" in caplog.text


def test_a_window_is_kept_within_rows_longer_than_it():
    # mistral's window here is 6 tokens; the last token of a row of 14 must not see the first 8.
    model = packed_model("mistral")
    first, second = list(range(2, 16)), list(range(16, 30))
    changed = [39, *first[1:]]
    logits = [
        model(**model_inputs(packed_rows([row, second], [[EOS], [EOS]]))).logits[0]
        for row in (first, changed)
    ]
    # Four blocks see 5 tokens further each: the window shows in the recorded first block alone.
    states = []
    for row in (first, changed):
        rows = packed_rows([row, second], [[EOS], [EOS]])
        with record(model, [0], torch.arange(30), stop=True) as recording:
            model(**model_inputs(rows), use_cache=False)
        states.append(recording.stack()[0])
    moved = (states[0] != states[1]).any(-1).nonzero().flatten().tolist()
    assert moved == list(range(6))
    assert torch.equal(logits[0][15:], logits[1][15:])


def attention_token_by_token(query, key, value, window, scaling):
    """Compute a softmax over the tokens that each of the last ones sees, head by head."""
    heads, queries, before = query.shape[1], query.shape[2], key.shape[2] - query.shape[2]
    rows = []
    for position in range(before, before + queries):
        first = 0 if window is None else max(0, position + 1 - window)
        for head in range(heads):
            group = head * key.shape[1] // heads
            keys, values = (part[0, group, first : position + 1] for part in (key, value))
            scores = scaling * keys @ query[0, head, position - before]
            rows.append(scores.softmax(0) @ values)
    return torch.stack(rows).view(1, queries, heads, -1)


@pytest.mark.parametrize("window", [None, 1, 100, 200])
@pytest.mark.parametrize(("queries", "tokens"), [(PIECE, PIECE), (300, 300), (150, 310), (1, 140)])
def test_pieces_and_full_rows_attend_to_what_each_token_attends_to(queries, tokens, window):
    torch.manual_seed(0)
    given = [torch.randn(1, heads, count, 8) for heads, count in ((4, queries), (2, tokens))]
    given = [part.requires_grad_() for part in (*given, torch.randn_like(given[1]))]
    weight = torch.randn(1, queries, 4, 8)
    module = SimpleNamespace(num_key_value_groups=2, is_causal=True)
    unasked = torch.randn(1, 4, tokens - queries, 8)
    whole = torch.cat([unasked, given[0]], dim=2)
    expected, *found = (
        (output, *torch.autograd.grad((output * weight).sum(), given))
        for output in (
            attention_token_by_token(*given, window, scaling=0.7),
            attention_in_pieces(*given, window, scaling=0.7),
            attention_in_whole_rows(module, whole, *given[1:], window, scaling=0.7)[:, -queries:],
        )
    )
    for results in found:
        for result, wanted in zip(results, expected, strict=True):
            assert torch.allclose(result, wanted, atol=2e-5)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("number", [torch.bfloat16, torch.float16])
def test_on_a_cpu_16_bit_rows_are_attended_in_float32(number, autocast):
    torch.manual_seed(0)
    given = [torch.randn(1, heads, 9, 8).to(number) for heads in (4, 2, 2)]
    given, spans = [part.requires_grad_() for part in given], [[(0, 5)], [(5, 9)]]
    module, weight = SimpleNamespace(num_key_value_groups=2), torch.randn(1, 9, 4, 8).to(number)

    def attended(*parts):
        return packed_attention(module, *parts, None, row_spans=spans, scaling=0.7)[0]

    expected = attended(*(part.float() for part in given)).to(number)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = attended(*given)
    gradients = [
        torch.autograd.grad((output * weight).sum(), given) for output in (found, expected)
    ]
    assert found.dtype == number
    assert torch.equal(found, expected)
    assert all(map(torch.equal, *gradients))


def test_long_rows_that_share_their_beginning_have_the_logits_that_they_have_alone():
    common = [2 + token % 30 for token in range(2 * PIECE + 5)]
    prompts = [[*common, 3, 4], [*common, 5], [*range(2, 12)]]
    responses = [[7 + token % 20 for token in range(count)] for count in (3, PIECE + 9, 2)]
    alone = logits_alone(tiny_model(), prompts, responses)
    rows, model = packed_rows(prompts, responses), packed_model()
    assert [len(spans) for spans in rows["spans"]] == [1, 2, 1]
    found = model(**model_inputs(rows)).logits[0]
    for spans, expected in zip(rows["spans"], alone, strict=True):
        start, stop = spans[-1]
        assert torch.allclose(found[start:stop], expected[start - stop :], atol=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gpt2"])
def test_recomputed_blocks_give_the_same_gradient(architecture):
    gradients = []
    for checkpointing in (False, True):
        model = packed_model(architecture).train()
        if checkpointing:
            model.activation_checkpointing_enable()
        inputs = model_inputs(packed_rows(*sequences()))
        model(**inputs, use_cache=False).logits.square().sum().backward()
        gradients.append(model.get_input_embeddings().weight.grad)
    assert torch.allclose(*gradients, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("without_prompt", [False, True])
def test_the_likelihood_of_packed_responses_is_that_of_padded_ones(without_prompt):
    prompts, responses = sequences()
    if without_prompt:
        prompts = [[] for _ in prompts]
        responses = [[5, *response] for response in responses]
    model = packed_model()
    padded = likelihood(model, sequence_rows(prompts, responses, EOS))
    packed = likelihood(model, packed_rows(prompts, responses))
    assert torch.allclose(packed.sums(), padded.sums(), atol=1e-4)
    assert torch.allclose(packed.means(), padded.means(), atol=1e-5)
    assert torch.equal(packed.owner, padded.owner)


@pytest.mark.parametrize("positions", ["response", "response_and_tail"])
@pytest.mark.parametrize("retain", [(), ([3, 4, 5], [6, 7])])
def test_packed_and_padded_batches_align_the_same_tokens(positions, retain):
    dataset = Responses(tiny_pairs(2), "both", retain)
    items = [dataset[index] for index in range(len(dataset))]
    padded, packed = (
        ContrastCollator(EOS, positions, packed=packed)(items) for packed in (False, True)
    )
    assert packed["aligned_responses"] == padded["aligned_responses"]
    for block in ("reference", "positive", "negative"):
        own, other = packed[block], padded[block]
        assert own["aligned_owner"].tolist() == other["aligned_owner"].tolist()
        lengths = [stop - start for [(start, stop)] in own["spans"]]
        assert lengths == other["attention_mask"].sum(1).tolist()
        assert sum(lengths) == own["input_ids"].shape[1]
        for name in ("input_ids", "position_ids", "response_mask"):
            found, expected = (
                rows[name].flatten()[rows["aligned"]].tolist() for rows in (own, other)
            )
            assert found == expected


def pairs_that_begin_alike(prompt_tokens=20):
    """Return both responses of two pairs: all prompts share 17 tokens, both of a pair all 20."""
    common = [2 + token % 30 for token in range(17)]
    prompts = [[*common, *range(start, start + prompt_tokens - 17)] for start in (3, 3, 9, 9)]
    return prompts, [[21, 22, EOS], [23, EOS], [24, EOS], [25, 26, 27, EOS]]


def test_rows_share_the_beginning_of_their_prompts():
    prompts, responses = pairs_that_begin_alike()
    rows = packed_rows(prompts, responses, own_tail=2)
    # The second row of each pair has its own last two prompt tokens; the third the 3 after 17.
    assert rows["spans"] == [
        [(0, 23)],
        [(0, 18), (23, 27)],
        [(0, 17), (27, 32)],
        [(0, 17), (27, 28), (32, 38)],
    ]
    for row, spans in enumerate(rows["spans"]):
        for name, expected in (
            ("input_ids", prompts[row] + responses[row]),
            ("position_ids", range(20 + len(responses[row]))),
        ):
            found = [rows[name][0, place].item() for span in spans for place in range(*span)]
            assert found == [*expected]
    assert rows["input_ids"][0][rows["response_mask"][0]].tolist() == [
        token for response in responses for token in response
    ]


def test_short_beginnings_are_not_shared():
    prompts, responses = [[*range(2, 17), 20, 21], [*range(2, 17), 22, 23]], [[EOS], [EOS]]
    assert packed_rows(prompts, responses)["spans"] == [[(0, 18)], [(18, 36)]]


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gpt2", "gpt_neox"])
def test_shared_beginnings_change_no_likelihood_and_no_gradient(architecture):
    rows, results = pairs_that_begin_alike(), []
    for made in (sequence_rows(*rows, EOS), packed_rows(*rows)):
        model = packed_model(architecture)
        means = likelihood(model, made).means()
        means.sum().backward()
        results.append((means, model.get_input_embeddings().weight.grad))
    (padded, padded_gradient), (packed, packed_gradient) = results
    assert torch.allclose(packed, padded, atol=1e-5)
    assert torch.allclose(packed_gradient, padded_gradient, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("positions", ["response", "response_and_tail"])
def test_shared_beginnings_leave_the_aligned_states_as_they_are(positions):
    prompts, responses = pairs_that_begin_alike()
    items = [
        {"row": row, "prompt_ids": prompt, "response_ids": response, "chosen": row % 2 == 0}
        for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True))
    ]
    model, found = packed_model(), []
    for packed in (False, True):
        rows = ContrastCollator(EOS, positions, tail_tokens=4, packed=packed)(items)["reference"]
        with record(model, [0, 3], rows["aligned"], stop=True) as recording:
            model(**model_inputs(rows), use_cache=False)
        found.append((recording.stack(), rows["aligned_owner"]))
    assert torch.allclose(found[0][0], found[1][0], atol=1e-5)
    assert torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize("packed", [False, True])
def test_the_first_rows_of_a_block_are_those_of_a_block_made_of_them(packed):
    prompts, responses = sequences()
    make = packed_rows if packed else lambda *ids: sequence_rows(*ids, EOS, width=14)
    cut, alone = first_rows(make(prompts, responses), 2), make(prompts[:2], responses[:2])
    assert cut.keys() == alone.keys()
    for name, value in cut.items():
        same = torch.equal if isinstance(value, torch.Tensor) else list.__eq__
        assert same(value, alone[name])
