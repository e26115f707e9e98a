"""Steering against a loop that runs one unpadded row at a time without a cache."""

import pytest
import torch
from peft import PeftModel
from reference.steering import logits_by_loops, some_directions
from tiny_models import ARCHITECTURES, D_MODEL, DEPTH, EOS, tiny_model, tiny_pairs, tiny_tokenizer
from transformers import MambaConfig, MambaForCausalLM

from rahf.data.rows import sequence_rows
from rahf.directions.steering import steer
from rahf.directions.vectors import Directions
from rahf.generation.answers import WORTH_SHARING, answers
from rahf.generation.decoding import Decoding
from rahf.generation.unfinished import Prefix, left_padded
from rahf.models.capture import record
from rahf.models.kv_cache import takes_cache, with_cache
from rahf.models.likelihood import model_inputs

PROMPTS = [[5, 6, 7, 8, 9], [10, 11], [12, 13, 14]]
NEW = 4


def generated(model, prompts, **options):
    """Return new ids [rows, NEW] and the logits that they were chosen from [rows, NEW, vocab]."""
    ids, mask = left_padded(prompts, EOS)
    output = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=NEW,
        min_new_tokens=NEW,
        pad_token_id=EOS,
        return_dict_in_generate=True,
        output_logits=True,
        **{"do_sample": False, **options},
    )
    return output.sequences[:, ids.shape[1] :], torch.stack(output.logits, 1)


def assert_generated_by_loops(model, found, edits_of_row, mode="add", first=None):
    """Compare with the loops, steered from `first` columns before the end of the prompt."""
    new, logits = found
    for row, prompt in enumerate(PROMPTS):
        start = None if first is None else len(prompt) - first
        ids = prompt + new[row].tolist()
        whole = logits_by_loops(model, ids, edits_of_row(row), mode, start)
        expected = whole[len(prompt) - 1 : len(ids) - 1]
        torch.testing.assert_close(logits[row], expected, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_padded_batch_with_a_cache_is_steered_like_single_rows(architecture):
    model, directions = tiny_model(architecture), some_directions()
    with steer(model, directions, 0.7):
        found = generated(model, PROMPTS)
    assert_generated_by_loops(model, found, lambda row: [(directions, 0.7)])
    assert not torch.allclose(found[1], generated(model, PROMPTS)[1], atol=1e-2)


@pytest.mark.parametrize(
    ("start", "use_cache"), [("generated", True), ("column", True), ("column", False)]
)
def test_what_is_generated_can_be_steered_alone(start, use_cache):
    model, directions = tiny_model(), some_directions()
    width = max(map(len, PROMPTS))
    with steer(model, directions, 0.7, start=width - 1 if start == "column" else start):
        found = generated(model, PROMPTS, use_cache=use_cache)
    assert_generated_by_loops(model, found, lambda row: [(directions, 0.7)], first=1)


@pytest.mark.parametrize("start", ["generated", None])
def test_a_beginning_that_is_computed_once_is_steered_as_if_it_were_not(start):
    model, directions, tokenizer = tiny_model(), some_directions(), tiny_tokenizer()
    beginning = [2 + index % 30 for index in range(WORTH_SHARING)]
    prompts = [[*beginning, 33, 34], [*beginning, 35]]
    with steer(model, directions, 2.0, start=start):
        together = dict(answers(model, tokenizer, prompts, Decoding(12)))
        apart = [dict(answers(model, tokenizer, [prompt], Decoding(12)))[0] for prompt in prompts]
    assert [together[row].text for row in (0, 1)] == [answer.text for answer in apart]


def test_keys_of_a_beginning_are_left_alone_where_only_what_is_generated_is_steered():
    model, directions = tiny_model(), some_directions()
    plain = Prefix(model, PROMPTS[0]).cache(torch.tensor([0])).layers[-1].keys
    for start, same in (("generated", True), (None, False)):
        with steer(model, directions, 1.0, start=start):
            keys = Prefix(model, PROMPTS[0]).cache(torch.tensor([0])).layers[-1].keys
        assert torch.equal(keys, plain) == same


def test_every_row_has_its_own_strength():
    model, directions = tiny_model(), some_directions()
    strengths = [0.0, 0.5, -1.0]
    with steer(model, directions, strengths):
        found = generated(model, PROMPTS)
    assert_generated_by_loops(model, found, lambda row: [(directions, strengths[row])])


def test_several_directions_act_at_once_each_on_its_layers():
    model = tiny_model()
    first, second = some_directions(), some_directions(seed=1, layers=(1, 2, 3))
    with steer(model, [first, second], [0.5, -0.4]):
        found = generated(model, PROMPTS)
    assert_generated_by_loops(model, found, lambda row: [(first, 0.5), (second, -0.4)])
    strengths = torch.tensor([[0.5, 0.1], [0.0, 1.0], [-1.0, 0.0]])
    with steer(model, [first, second], strengths):
        found = generated(model, PROMPTS)
    assert_generated_by_loops(
        model,
        found,
        lambda row: list(zip((first, second), strengths[row].tolist(), strict=True)),
    )


def test_nested_contexts_add_up():
    model, directions = tiny_model(), some_directions()
    with steer(model, directions, 0.5):
        with steer(model, directions, 0.25):
            nested = generated(model, PROMPTS)[1]
        outer = generated(model, PROMPTS)[1]
    with steer(model, directions, 0.75):
        torch.testing.assert_close(generated(model, PROMPTS)[1], nested, atol=1e-4, rtol=1e-3)
    with steer(model, directions, 0.5):
        assert torch.equal(generated(model, PROMPTS)[1], outer)


@pytest.mark.parametrize("alpha", [1.0, 0.3])
def test_ablation_removes_the_part_along_the_direction(alpha):
    model, directions = tiny_model(), some_directions()
    with steer(model, directions, alpha, mode="ablate"):
        found = generated(model, PROMPTS)
    assert_generated_by_loops(model, found, lambda row: [(directions, alpha)], mode="ablate")


def states(model, layers, rows):
    wanted = rows["response_mask"].flatten().nonzero().squeeze(1)
    with torch.no_grad(), record(model, layers, wanted, stop=True) as recording:
        model(**model_inputs(rows))
    return recording.stack()


def some_rows():
    pairs = tiny_pairs(3)
    return sequence_rows(
        [pair["prompt_ids"] for pair in pairs], [pair["chosen_ids"] for pair in pairs], EOS
    )


def test_directions_that_are_not_orthogonal_are_ablated_as_one_space():
    model, rows = tiny_model(), some_rows()
    first, second = some_directions(layers=(1,)), some_directions(seed=1, layers=(1,))
    leaning = Directions((1,), first.vectors + 0.1 * second.vectors)
    with steer(model, [first, leaning], mode="ablate"):
        hidden = states(model, (1,), rows)
    for vector in (first.vectors[0], second.vectors[0]):
        assert (hidden @ vector).abs().max() < 1e-3
    assert hidden.abs().max() > 0.1
    with steer(model, [first, first], mode="ablate"):
        twice = states(model, (1,), rows)
    with steer(model, first, mode="ablate"):
        torch.testing.assert_close(states(model, (1,), rows), twice, atol=1e-5, rtol=1e-4)


def test_a_zero_vector_ablates_nothing():
    model, rows = tiny_model(), some_rows()
    nothing = Directions((1,), torch.zeros(1, D_MODEL))
    with steer(model, nothing, mode="ablate"):
        assert torch.equal(states(model, (1,), rows), states(model, (1,), rows))
    plain = states(model, (1,), rows)
    with steer(model, nothing, mode="ablate"):
        assert torch.equal(states(model, (1,), rows), plain)


def test_what_is_recorded_is_steered():
    model, rows, directions = tiny_model(), some_rows(), some_directions(layers=(1,))
    plain = states(model, (0, 1), rows)
    with steer(model, directions, 2.0):
        steered = states(model, (0, 1), rows)
    assert torch.equal(steered[0], plain[0])
    torch.testing.assert_close(steered[1], plain[1] + 2 * directions.vectors[0])


def test_a_row_may_have_its_own_start():
    model, directions = tiny_model(), some_directions()
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    with torch.no_grad(), steer(model, directions, 1.0, start=[3, 1]):
        logits = model(input_ids=ids).logits
    for row, start in enumerate((3, 1)):
        expected = logits_by_loops(model, ids[row].tolist(), [(directions, 1.0)], start=start)
        torch.testing.assert_close(logits[row], expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("options", [{"num_beams": 2}, {"num_return_sequences": 2}])
def test_rows_that_generation_repeats_keep_their_strength(options):
    model, directions = tiny_model(), some_directions()
    if "num_return_sequences" in options:
        options = {**options, "do_sample": True}
    rows = []
    with torch.random.fork_rng(), steer(model, directions, [0.0, 0.6, -0.6]):
        torch.manual_seed(0)
        logits = generated(model, PROMPTS, **options)[1]
    repeats = len(logits) // len(PROMPTS)
    assert repeats == 2
    for prompt, alpha in zip(PROMPTS, (0.0, 0.6, -0.6), strict=True):
        rows.append(logits_by_loops(model, prompt, [(directions, alpha)])[-1])
    # The first new token's logits depend on the prompt alone, whichever beam it is.
    for row in range(len(logits)):
        torch.testing.assert_close(logits[row, 0], rows[row // repeats], atol=2e-4, rtol=1e-3)


def test_off_is_the_model_as_it_was_to_the_bit():
    model, directions = tiny_model(), some_directions()
    before = generated(model, PROMPTS)[1]
    for alpha in (0.0, [0.0, 0.0, 0.0], 1.0):
        with steer(model, directions, alpha):
            inside = generated(model, PROMPTS)[1]
        assert torch.equal(inside, before) == (alpha != 1.0)
        assert torch.equal(generated(model, PROMPTS)[1], before)
    with pytest.raises(KeyError), steer(model, directions, 1.0):
        raise KeyError
    assert torch.equal(generated(model, PROMPTS)[1], before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_row_of_strength_zero_is_as_it_was():
    model, directions = tiny_model(), some_directions()
    before = generated(model, PROMPTS)[1]
    with steer(model, directions, [0.0, 1.0, 0.0]):
        inside = generated(model, PROMPTS)[1]
    assert torch.equal(inside[[0, 2]], before[[0, 2]])
    assert not torch.equal(inside[1], before[1])


def test_a_model_with_an_adapter_is_steered(family):
    model = PeftModel.from_pretrained(family.load_base(), family.adapters["positive"]).eval()
    directions = some_directions()
    with steer(model, directions, 0.5):
        found = generated(model, PROMPTS)
    assert_generated_by_loops(model, found, lambda row: [(directions, 0.5)])


def test_gradients_pass_through_with_and_without_recomputation():
    directions, grads = some_directions(), []
    for recompute in (False, True):
        model = tiny_model()
        if recompute:
            model.activation_checkpointing_enable({"use_reentrant": False})
        model.train()
        with steer(model, directions, 0.5):
            model(input_ids=torch.tensor([PROMPTS[0]]), use_cache=False).logits.sum().backward()
        grads.append(model.get_input_embeddings().weight.grad)
    torch.testing.assert_close(grads[0], grads[1])
    assert grads[0].abs().sum() > 0


@pytest.mark.parametrize(
    ("given", "alpha", "options", "message"),
    [
        (some_directions(width=8), 1.0, {}, "8 dimensions, the model's hidden states 16"),
        (some_directions(layers=(0, DEPTH)), 1.0, {}, "hold layer 4, the model 4 blocks"),
        ([some_directions()] * 2, [1.0, 2.0, 3.0], {}, r"shape \(3,\), which fits 2 directions"),
        (some_directions(), [[1.0, 2.0]], {}, "fits 1 directions in no way"),
        ([some_directions()] * 2, [1.0, 2.0], {"mode": "ablate"}, "need one strength"),
        (some_directions(), 3e38, {}, r"in layer \d has the norm .* give a smaller strength"),
        (some_directions(), [-1e20], {"mode": "ablate"}, "float32 can read"),
    ],
)
def test_what_does_not_fit_is_refused(given, alpha, options, message):
    with pytest.raises(ValueError, match=message), steer(tiny_model(), given, alpha, **options):
        pass


def test_without_a_cache_it_is_unknown_what_was_generated():
    model = tiny_model()
    with (
        pytest.raises(ValueError, match="needs the key-value cache"),
        steer(model, some_directions(), 1.0, start="generated"),
    ):
        generated(model, PROMPTS, use_cache=False)


@pytest.mark.parametrize("start", ["generated", 3, [3, 5], None])
def test_a_recurrent_model_is_steered_from_a_column_by_counting(start):
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": D_MODEL, "state_size": 4}
    model = MambaForCausalLM(MambaConfig(**sizes, num_hidden_layers=DEPTH)).eval()
    directions, rows = some_directions(), torch.tensor([PROMPTS[0], PROMPTS[0][::-1]])
    options = {"max_new_tokens": NEW, "min_new_tokens": NEW, "pad_token_id": EOS}
    options |= {"do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    if start is not None and not takes_cache(model.get_decoder()):  # before transformers 5.24
        with (
            pytest.raises(ValueError, match="its key-value cache cannot be read"),
            steer(model, directions, 0.7, start=start),
        ):
            pass
        return
    with steer(model, directions, 0.7, start=start):
        found = model.generate(rows, **options)
    for row, ids in enumerate(found.sequences.tolist()):
        first = {"generated": 4, None: None}.get(str(start) if start else start, start)
        first = first[row] if isinstance(first, list) else first
        whole = logits_by_loops(model, ids, [(directions, 0.7)], "add", first)
        logits = torch.stack(found.logits, 1)[row]
        torch.testing.assert_close(logits, whole[4 : 4 + NEW], atol=2e-4, rtol=1e-3)
    before = model(rows).to_tuple()[1]
    if start is not None:
        with (
            pytest.raises(ValueError, match="recurrent state from before steering began"),
            steer(model, directions, 0.7, start=start),
        ):
            model(rows[:, :1], **with_cache(model, before))


def test_strengths_of_another_number_of_rows_are_refused():
    model = tiny_model()
    with (
        pytest.raises(ValueError, match="given for 2 rows, but the batch has 3"),
        steer(model, some_directions(), [1.0, 2.0]),
    ):
        generated(model, PROMPTS)
