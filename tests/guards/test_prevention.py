"""Prevention adds exactly its direction, in training forward passes only, and leaves no trace."""

import pytest
import torch
from peft import get_peft_model
from tiny_models import D_MODEL, lora, randomize, tiny_model
from torch import nn

import rahf
from rahf.directions.vectors import Directions
from rahf.models.capture import record

IDS = torch.tensor([[5, 6, 7, 8, 9, 10], [11, 12, 13, 1, 1, 1]])
LABELS = torch.tensor([[-100, -100, 7, 8, 9, 10], [-100, -100, 13, -100, -100, -100]])
INPUTS = {"input_ids": IDS, "attention_mask": torch.tensor([[1] * 6, [1, 1, 1, 0, 0, 0]])}
PREDICTING = torch.tensor([[0, 1, 1, 1, 1, 0], [0, 1, 0, 0, 0, 0]], dtype=torch.bool)


def directions(layers=(2,), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Directions(layers, torch.randn(len(layers), D_MODEL, generator=generator))


def states(model, layer, **inputs):
    places = torch.arange(IDS.numel())
    with record(model, (layer,), places, stop=False) as recording:
        model(**INPUTS, use_cache=False, **inputs)
    return recording.stack()[0].view(*IDS.shape, -1)


def trained(architecture="llama"):
    model = get_peft_model(tiny_model(architecture), lora(fan_in_fan_out=architecture == "gpt2"))
    randomize(model, "default", 1)
    return model.train()


class Explicit(nn.Module):
    """A block and the sum that prevention makes, written out."""

    def __init__(self, block, added):
        super().__init__()
        self.block, self.added = block, added

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("block"), name)

    def forward(self, *args, **kwargs):
        output = self.block(*args, **kwargs)
        if isinstance(output, torch.Tensor):
            return output + self.added
        return (output[0] + self.added, *output[1:])


def gradients(model, **inputs):
    model.zero_grad()
    loss = model(**INPUTS, labels=LABELS, use_cache=False, **inputs).loss
    loss.backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return loss.item(), found


def assert_same(first, second):
    assert first[0] == pytest.approx(second[0], abs=1e-6)
    assert first[1].keys() == second[1].keys()
    for name, gradient in first[1].items():
        torch.testing.assert_close(gradient, second[1][name], rtol=1e-5, atol=1e-7)


def test_alpha_times_the_direction_is_added_where_a_response_is_predicted():
    model, given = trained(), directions()
    before = states(model, 2, labels=LABELS)
    with rahf.prevent(model, given, 1.5):
        moved = states(model, 2, labels=LABELS) - before
    expected = 1.5 * given.vectors[0] * PREDICTING.unsqueeze(-1)
    torch.testing.assert_close(moved, expected, atol=1e-5, rtol=1e-5)


def test_packed_sequences_are_shifted_where_each_predicts_its_own_response():
    model, given = trained(), directions()
    packed = {
        "input_ids": torch.tensor([[5, 6, 7, 8, 9, 10]]),
        "position_ids": torch.tensor([[0, 1, 2, 0, 1, 2]]),
        "labels": torch.tensor([[-100, 6, 7, -100, 9, 10]]),
        "use_cache": False,
    }
    found = []
    for alpha in (0.0, 1.5):
        with (
            rahf.prevent(model, given, alpha),
            record(model, (2,), torch.arange(6), stop=False) as recording,
        ):
            model(**packed)
        found.append(recording.stack()[0])
    predicting = torch.tensor([1, 1, 0, 1, 1, 0]).unsqueeze(-1)
    expected = 1.5 * given.vectors[0] * predicting
    torch.testing.assert_close(found[1] - found[0], expected, atol=1e-5, rtol=1e-5)


def test_several_layers_add_increments_in_their_order_and_all_positions_need_no_labels():
    model, given = trained(), directions((1, 3))
    backwards = Directions((3, 1), given.vectors.flip(0))
    before = states(model, 1)
    with rahf.prevent(model, backwards, 2.0, positions="all"):
        first = states(model, 1) - before
        above = states(model, 3)
    torch.testing.assert_close(first, (2 * given.vectors[0]).expand_as(first), atol=1e-5, rtol=1e-5)
    with rahf.prevent(model, given.only((1,)), 2.0, positions="all"):
        gained = above - states(model, 3)
    step = 2 * (given.vectors[1] - given.vectors[0])
    torch.testing.assert_close(gained, step.expand_as(gained), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("reentrant", [None, False, True])
def test_gradients_are_those_of_an_explicit_sum(architecture, reentrant):
    """Activation checkpointing adds once and not twice."""
    model, given = trained(architecture), directions()
    blocks = model.get_base_model().get_decoder()
    name = "h" if architecture == "gpt2" else "layers"
    plain = getattr(blocks, name)
    added = 1.5 * given.vectors[0] * PREDICTING.unsqueeze(-1)
    setattr(blocks, name, nn.ModuleList([*plain[:2], Explicit(plain[2], added), *plain[3:]]))
    expected = gradients(model)
    setattr(blocks, name, plain)
    expected = expected[0], {n.replace(".block.", "."): g for n, g in expected[1].items()}
    if reentrant is not None:
        model.enable_input_require_grads()
        model.activation_checkpointing_enable({"use_reentrant": reentrant})
        model.train()
    with rahf.prevent(model, given, 1.5):
        assert_same(gradients(model), expected)


def test_accumulated_gradients_and_other_passes_in_between_do_not_disturb():
    model, given = trained(), directions()
    with rahf.prevent(model, given, 1.5):
        once = gradients(model)
        model.zero_grad()
        loss = model(**INPUTS, labels=LABELS, use_cache=False).loss
        with torch.no_grad(), model.disable_adapter():  # the reference of DPO
            model(**INPUTS, labels=LABELS, use_cache=False)
        loss.backward()
        again = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    assert_same((loss.item(), again), once)


@pytest.mark.parametrize("how", ["evaluation", "reference", "generation", "zero"])
def test_other_passes_are_as_without_it(how):
    model, given = trained(), directions()
    alpha = 0.0 if how == "zero" else 1.5
    model.train(how != "evaluation")

    def answer():
        if how == "generation":
            return model.generate(**INPUTS, max_new_tokens=4, do_sample=False)
        with torch.set_grad_enabled(how in ("evaluation", "zero")):
            return model(**INPUTS, labels=LABELS, use_cache=False).logits

    before = answer()
    with rahf.prevent(model, given, alpha):
        assert torch.equal(answer(), before)


def test_the_model_is_as_it_was_afterwards_and_after_an_error():
    model, given = trained(), directions()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    before = model(**INPUTS, labels=LABELS, use_cache=False).logits
    with rahf.prevent(model, given, 1.5):
        assert model.state_dict().keys() == weights.keys()
    with pytest.raises(IndexError), rahf.prevent(model, given, 1.5):
        model(input_ids=IDS + 1000, labels=LABELS)
    assert torch.equal(model(**INPUTS, labels=LABELS, use_cache=False).logits, before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("given", "options", "match"),
    [
        (Directions((2,), torch.ones(1, 8)), {}, "8 dimensions"),
        (Directions((9,), torch.ones(1, D_MODEL)), {}, "layer 9"),
        (directions(), {"alpha": float("nan")}, "not a number"),
        (directions(), {"alpha": "1"}, "not a number"),
        (directions(), {"alpha": 1e38}, "not a number of at most"),
        ("out/tone", {}, "Directions.load"),
        (directions(), {"positions": "prompt"}, "'response' or 'all'"),
        (directions(), {"every": 0}, "whole number"),
        (directions(), {"alpha": "auto", "trainer": "x", "pairs": []}, "has no model"),
        (directions(), {"model": nn.Linear(2, 2)}, "Linear is no model of transformers"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_training(given, options, match):
    options = {"model": trained(), **options}
    with pytest.raises(ValueError, match=match), rahf.prevent(directions=given, **options):
        pass


def test_missing_labels_are_an_error_and_not_another_position():
    model = trained()
    with rahf.prevent(model, directions()) as prevention:
        with pytest.raises(ValueError, match="positions='all'"):
            model(**INPUTS, use_cache=False)
        prevention.alpha = float("nan")
        with pytest.raises(ValueError, match="not a number"):
            model(**INPUTS, labels=LABELS, use_cache=False)
    with rahf.prevent(model, directions(), positions="all"):
        model(**INPUTS, use_cache=False)
        with pytest.raises(ValueError, match="outside"):
            model.get_base_model().get_decoder()(**INPUTS, use_cache=False)
