"""Texts through a model: states, neurons and codes of each token against one text at a time."""

import pytest
import torch
from peft import get_peft_model
from planted_dictionaries import random_dictionary
from tiny_models import D_MODEL, EOS, lora, tiny_model, tiny_tokenizer

from rahf.interpret.features.texts import first_pieces, neuron_module, of_texts, read_texts
from rahf.interpret.features.untrained import untrained_like
from rahf.models.adapters import base_name

TEXTS = ["w5 w6 w7", "w8", "w9 w10 w11 w12 w13 w14 w15", "w4 w3 w2 w5", "[EOS]"]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox"])
def test_tokens_have_the_states_and_neurons_of_each_text_alone(architecture):
    model, tokenizer = tiny_model(architecture), tiny_tokenizer()
    dictionary = random_dictionary(model)
    first = first_pieces(TEXTS, tokenizer, length=5)
    assert first.texts == [0, 2, 3]  # single and special tokens are not read
    batches = list(read_texts(model, dictionary, first, EOS, batch_size=2, neurons=True))
    whole = [torch.cat(part) for part in zip(*batches, strict=True)]
    hidden, ids, following, owners, neurons = whole
    assert ids.tolist() == [6, 7, 10, 11, 12, 13, 3, 2, 5]
    assert following.tolist() == [7, -1, 11, 12, 13, -1, 2, 5, -1]
    assert owners.tolist() == [0, 0, 2, 2, 2, 2, 3, 3, 3]
    expected = ([], [])
    hooks = [
        neuron_module(model, 1).register_forward_pre_hook(
            lambda _module, args: expected[0].append(args[0].flatten(0, -2)[1:])
        )
    ]
    for text in first.texts:
        ids = torch.tensor([tokenizer(TEXTS[text])["input_ids"][:5]])
        with torch.no_grad():
            states = model(input_ids=ids, output_hidden_states=True).hidden_states
        expected[1].append(states[2][0, 1:])
    hooks[0].remove()
    torch.testing.assert_close(neurons, torch.cat(expected[0]), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(hidden, torch.cat(expected[1]), atol=1e-5, rtol=1e-4)
    read = of_texts(iter(batches), dictionary, len(TEXTS), D_MODEL)
    torch.testing.assert_close(read.hidden[3], hidden[-3:].mean(0))
    assert read.hidden[[1, 4]].abs().max() == 0
    assert read.codes.tokens == len(TEXTS)
    assert read.codes.counts()[[1, 4]].tolist() == [0, 0]
    codes = dictionary.encode(hidden[-3:])
    dense = torch.zeros(dictionary.latents).index_add(0, codes.indices.long(), codes.values) / 3
    entries = read.codes.part(3, 4)
    torch.testing.assert_close(entries.values, dense[entries.indices.long()])
    assert len(entries.indices) == int((dense != 0).sum())


def test_an_untrained_model_has_the_shape_and_none_of_the_weights():
    model = tiny_model(seed=7)
    state = torch.random.get_rng_state()
    first, again, other = (untrained_like(model, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    weights = [m.get_decoder().layers[0].mlp.down_proj.weight for m in (model, first, again, other)]
    assert weights[0].shape == weights[1].shape
    assert torch.equal(weights[1], weights[2])
    assert not torch.equal(weights[1], weights[3])
    assert not torch.equal(weights[0], weights[1])
    assert base_name(first) == f"{base_name(model)} with random weights of seed 0"


def test_neurons_are_read_of_a_full_model():
    adapted = get_peft_model(tiny_model(), lora(target_modules=["down_proj"]))
    with pytest.raises(ValueError, match="give the base in place of the adapter"):
        neuron_module(adapted, 1)
