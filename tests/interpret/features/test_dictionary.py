"""Sparse codes against the dense ones, and the check that a dictionary is of the model it reads."""

import pytest
import torch
from peft import get_peft_model
from tiny_models import lora, randomize, tiny_model

from rahf.interpret.features.bases import check_base, fingerprint_of
from rahf.interpret.features.dictionary import (
    Origin,
    codes_of_active,
    codes_of_chosen,
    decoded,
    joined,
)


def dense(seed=0, tokens=7, latents=12):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(tokens, latents, generator=generator)
    values[torch.rand(tokens, latents, generator=generator) < 0.7] = 0
    values[3] = 0
    return values


def densified(codes):
    whole = torch.zeros(codes.tokens, codes.latents)
    whole[codes.owners(), codes.indices.long()] = codes.values
    return whole


def test_codes_are_the_dense_activations():
    values = dense()
    codes = codes_of_active(values)
    assert torch.equal(densified(codes), values)
    assert codes.counts().tolist() == (values != 0).sum(1).tolist()
    assert codes.firings().tolist() == (values != 0).sum(0).tolist()
    chosen, indices = values.topk(12)
    assert all(map(torch.equal, codes_of_chosen(indices, chosen, 12)[:3], codes[:3]))


def test_decoding_is_the_dense_product():
    values, directions, bias = dense(), torch.randn(12, 5), torch.randn(5)
    assert torch.allclose(
        decoded(codes_of_active(values), directions, bias), values @ directions + bias, atol=1e-6
    )


def test_parts_joined_are_the_whole():
    codes = codes_of_active(dense())
    parts = [codes.part(0, 2), codes.part(2, 4), codes.part(4, 4), codes.part(4, 7)]
    assert all(map(torch.equal, joined(parts)[:3], codes[:3]))
    with pytest.raises(ValueError, match="0 parts of sparse codes"):
        joined([])
    with pytest.raises(ValueError, match=r"dictionaries with \[9, 12\] latents"):
        joined([codes, codes_of_active(dense(latents=9))])


@pytest.mark.parametrize("values", [2**24 + 2, 28_311_552, 1, 2, 63, 65])
def test_a_weight_of_any_size_has_a_fingerprint_of_its_ends(values):
    model = torch.nn.Module()
    model.weight = torch.nn.Parameter(torch.zeros(values, dtype=torch.bfloat16))
    before = fingerprint_of(model)
    for place in (0, values - 1):
        model.weight.data[place] = 1.0
        assert fingerprint_of(model) != before
        model.weight.data[place] = 0.0


class OfLayer:
    """As much of a dictionary as the check reads."""

    def __init__(self, width=16, layer=1, fingerprint=None):
        self.d_model = width
        self.origin = Origin("another", fingerprint, layer, "residual")


def test_the_fingerprint_is_of_the_base_in_any_format_under_any_adapter():
    model = tiny_model("llama")
    found = fingerprint_of(model)
    assert fingerprint_of(tiny_model("llama")) == found
    assert fingerprint_of(tiny_model("llama").bfloat16()) == found
    assert fingerprint_of(tiny_model("llama", seed=1)) != found
    adapted = get_peft_model(model, lora(modules_to_save=["lm_head"]))
    randomize(adapted, "default", 1)
    assert fingerprint_of(adapted) == found


def test_a_dictionary_of_another_model_is_refused():
    model = tiny_model("llama")
    width = model.config.hidden_size
    check_base(OfLayer(width), model)
    check_base(OfLayer(width, fingerprint=fingerprint_of(model)), model)
    for wrong, message in (
        (OfLayer(width + 1), f"states of {width + 1} dimensions, those of .* have {width}"),
        (OfLayer(width, layer=99), "of layer 99, but .* blocks"),
        (OfLayer(width, fingerprint="0" * 16), "another with the fingerprint 0000"),
    ):
        with pytest.raises(ValueError, match=message):
            check_base(wrong, model)
