"""Blocks below every adapter are run once a batch: losses and gradients are those without."""

import logging
from dataclasses import replace

import pytest
import torch
from test_alignment import METHODS, RETAINED, batch_of, method_options, stored_directions
from tiny_models import DEPTH, UPPER, lora, randomize, tiny_model, tiny_pairs

from rahf.alignment import build_alignment
from rahf.models.adapters import attach_policy, trainable
from rahf.models.capture import Trunk, find_blocks, record
from rahf.models.trunk import shared_blocks
from rahf.recipe.methods import METHODS as TABLE
from rahf.training.preparation import mean_shift

FIRST, LAYERS = UPPER[0], list(UPPER)


def alignment_from(family, options, **adapter):
    views = TABLE[options.method].views(options.reference)
    needed = {name: family.adapters[name] for name in views.teachers()}
    directions = None
    if options.method == "direction":
        directions = replace(stored_directions(), layers=tuple(LAYERS))
    config = lora(layers_to_transform=list(UPPER), **adapter)
    made = build_alignment(family.load_base(), options, config, needed, directions)
    randomize(made.model, "default", seed=9, scale=0.1)
    return made


def loss_and_gradients(alignment, batch):
    alignment.model.train()
    loss = alignment(alignment.model, batch).loss
    return loss, torch.autograd.grad(loss.sum(), trainable(alignment.model))


def runs_of_blocks(model):
    """Return a list that counts, per block, how often it runs from now on."""
    counts = [0] * DEPTH
    for layer, block in enumerate(find_blocks(model).modules):

        def count(*_, layer=layer):
            counts[layer] += 1

        block.register_forward_hook(count)
    return counts


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(("method", "reference"), METHODS)
def test_losses_and_gradients_are_those_of_the_plain_path(upper_family, method, reference, packed):
    weights = {"retain_weight": 0.5, "kl_weight": 0.1, "kl_rows": "responses"}
    options = method_options(
        method, reference, target_layers=LAYERS, packing=packed, shift="token", **weights
    )
    alignment = alignment_from(upper_family, options)
    assert alignment.trunk_depth == FIRST
    batch = batch_of(tiny_pairs(4), options, RETAINED, packed=alignment.packed)
    counts = runs_of_blocks(alignment.model)
    loss, gradients = loss_and_gradients(alignment, batch)
    assert counts[:FIRST] == [min(counts)] * FIRST
    passes_on_other_rows = sum(
        view is not None and view.rows != "reference"
        for view in (alignment.frozen_views.views.positive, alignment.frozen_views.views.negative)
    )
    assert counts[0] == 1 + (0 if method == "direction" else passes_on_other_rows)
    assert counts[FIRST] > counts[0]
    plain = replace(alignment, trunk_depth=0)
    expected, expected_gradients = loss_and_gradients(plain, batch)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients, expected_gradients)
    assert any(gradient.abs().max() > 1e-4 for gradient in gradients)


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputed_blocks_give_the_same_gradients(upper_family, reentrant):
    options = method_options("dual", target_layers=LAYERS, shift="token")
    alignment = alignment_from(upper_family, options)
    batch = batch_of(tiny_pairs(4), options, packed=alignment.packed)
    _, expected = loss_and_gradients(alignment, batch)
    model = alignment.model.get_base_model()
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    alignment.model.enable_input_require_grads()
    alignment.model.train()
    alignment(alignment.model, batch).loss.sum().backward()
    found = [parameter.grad for parameter in trainable(alignment.model)]
    torch.testing.assert_close(found, list(expected))


def test_a_mean_shift_is_that_of_the_plain_path(upper_family):
    options = method_options("dual", target_layers=LAYERS)
    alignment = alignment_from(upper_family, options)
    batch = batch_of(tiny_pairs(4), options, packed=alignment.packed)
    counts = runs_of_blocks(alignment.model)
    fitted = mean_shift(alignment, [(batch, True)], torch.device("cpu"))
    assert counts[: FIRST + 1] == [1, 1, 2]
    plain = mean_shift(replace(alignment, trunk_depth=0), [(batch, True)], torch.device("cpu"))
    torch.testing.assert_close(fitted.vectors, plain.vectors)


def test_the_trunk_ends_below_the_lowest_adapter_and_the_lowest_target_layer(upper_family):
    base = attach_policy(upper_family.load_base(), lora(), range(1, DEPTH))
    assert shared_blocks(base, 3) == 1
    upper = attach_policy(upper_family.load_base(), lora(), range(3, DEPTH))
    assert (shared_blocks(upper, 3), shared_blocks(upper, 2)) == (3, 2)
    everywhere = attach_policy(upper_family.load_base(), lora(), range(DEPTH))
    assert shared_blocks(everywhere, 3) == 0


class ReadsTheBlockBelow(torch.nn.Module):
    """A block that reads more than its input, as keys and values of lower blocks."""

    def __init__(self, block, below):
        super().__init__()
        self.block, self.seen = block, []
        below.register_forward_hook(lambda *_: self.seen.append(1))

    def forward(self, hidden, *args, **kwargs):
        if not self.seen:
            raise KeyError("keys of block 0")
        output = self.block(hidden, *args, **kwargs) * len(self.seen)
        self.seen.clear()
        return output

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("block"), name)


def test_a_model_whose_blocks_read_lower_ones_runs_all_blocks_and_is_named(caplog):
    model = attach_policy(tiny_model("llama"), lora(), range(FIRST, DEPTH))
    blocks = find_blocks(model).modules
    blocks[FIRST] = ReadsTheBlockBelow(blocks[FIRST], blocks[0])
    with caplog.at_level(logging.WARNING):
        assert shared_blocks(model, FIRST) == 0
    assert "llama" in caplog.text
    assert "keys of block 0" in caplog.text


def test_a_pass_on_fewer_rows_reads_the_first_of_the_trunk(upper_family):
    model = upper_family.load_base()
    ids = torch.arange(2, 14).view(2, 6)
    trunk, positions = Trunk(FIRST), torch.arange(6)
    with record(model, [3], torch.arange(12), stop=True, trunk=trunk) as both:
        model(input_ids=ids, use_cache=False)
    with record(model, [3], positions, stop=True, trunk=trunk) as first:
        model(input_ids=ids[:1], use_cache=False)
    torch.testing.assert_close(first.stack(), both.stack()[:, :6])
