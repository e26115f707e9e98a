"""TopK dictionaries: gradients against autograd, and a planted dictionary that is found again."""

import pytest
import torch
from torch.nn import functional

from rahf.interpret.features.coder import AUXILIARY_WEIGHT, Coder, keep_turning
from rahf.interpret.features.dictionary import Origin
from rahf.interpret.features.topk import (
    Auxiliary,
    TopKDictionary,
    Weights,
    chosen_latents,
    largest,
    training_step,
)

ORIGIN = Origin("tiny", None, 1, "residual")


def weights(latents=20, width=6, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    directions = functional.normalize(draw(latents, width), dim=1)
    return Weights(draw(latents, width), 0.1 * draw(latents), directions, 0.1 * draw(width))


def dense_loss(hidden, given, k, signed, auxiliary):
    """Compute the loss as one would write it down, over all latents."""
    activations = (hidden - given.bias) @ given.encoder.T + given.encoder_bias

    def made(allowed, k):
        sizes = (activations.abs() if signed else activations).masked_fill(~allowed, -torch.inf)
        mask = torch.zeros_like(sizes).scatter(1, sizes.topk(k).indices, 1.0)
        return (activations if signed else activations.relu()) * mask @ given.directions

    everything = torch.ones(len(given.encoder), dtype=torch.bool)
    left = hidden - given.bias - made(everything, k)
    loss = left.square().mean()
    if auxiliary is None:
        return loss
    dead = torch.zeros_like(everything)
    dead[auxiliary.dead] = True
    # What is left is a fixed target, and so is what the encoder reads.
    held = Weights(*given[:3], given.bias.detach())
    activations = (hidden - held.bias) @ held.encoder.T + held.encoder_bias
    spare = made(dead, min(auxiliary.k, len(auxiliary.dead)))
    return loss + auxiliary.weight * (left.detach() - spare).square().mean()


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("auxiliary", [None, Auxiliary(torch.tensor([3, 11, 17]), 2, 0.5)])
def test_gradients_are_those_of_autograd(signed, auxiliary, monkeypatch):
    monkeypatch.setattr("rahf.interpret.features.topk.AT_ONCE", 60)
    hidden = torch.randn(9, 6, generator=torch.Generator().manual_seed(1))
    leaves = Weights(*(part.requires_grad_() for part in weights()))
    expected = torch.autograd.grad(dense_loss(hidden, leaves, 4, signed, auxiliary), leaves)
    step = training_step(hidden, weights(), 4, signed, auxiliary)
    for name, mine, theirs in zip(Weights._fields, step.gradients, expected, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6), name
    assert step.unexplained.item() == pytest.approx(
        dense_loss(hidden, weights(), 4, signed, None).item()
    )
    assert step.active.sum() == len(
        chosen_latents(hidden, weights(), 4, signed).indices.unique()
        if signed
        else TopKDictionary(ORIGIN, weights(), 4).encode(hidden).indices.unique()
    )


@pytest.mark.parametrize(
    ("latents", "k"), [(64, 4), (64, 3), (65, 4), (160, 10), (160, 11), (16, 1)]
)
def test_the_largest_are_those_of_a_full_ranking(latents, k):
    sizes = torch.randn(200, latents, generator=torch.Generator().manual_seed(k))
    expected = sizes.topk(k).values
    found = sizes.gather(1, largest(sizes, k)).sort(dim=1, descending=True).values
    assert torch.equal(found, expected)
    alike = torch.randint(0, 3, (200, latents)).float()
    places = largest(alike, k)
    assert torch.equal(alike.gather(1, places).sort(1, True).values, alike.topk(k).values)
    assert all(len(row.unique()) == k for row in places)


def test_no_latent_is_above_k_and_only_a_signed_one_is_negative():
    hidden = torch.randn(50, 6)
    codes = TopKDictionary(ORIGIN, weights(), 4).encode(hidden)
    assert codes.counts().max() <= 4
    assert codes.values.min() > 0
    codes = TopKDictionary(ORIGIN, weights(), 4, signed=True).encode(hidden)
    assert (codes.counts() == 4).all()
    assert codes.values.min() < 0


def planted(tokens, directions, active, signed, generator):
    """Draw states that are sums of a few planted directions, around a mean."""
    count = len(directions)
    chosen = torch.rand(tokens, count, generator=generator).topk(active).indices
    values = torch.rand(tokens, active, generator=generator) + 0.5
    if signed:
        values *= torch.randint(0, 2, values.shape, generator=generator) * 2 - 1
    sums = torch.zeros(tokens, count).scatter(1, chosen, values) @ directions
    return 7 * (sums + 0.02 * torch.randn(sums.shape, generator=generator)) + 3


@pytest.mark.parametrize("signed", [False, True])
def test_a_planted_dictionary_is_recovered(signed):
    generator = torch.Generator().manual_seed(0)
    directions = functional.normalize(torch.randn(48, 24, generator=generator), dim=1)
    coder = Coder.begin(
        planted(4000, directions, 3, signed, generator), 64, 3, signed, seed=0, learning_rate=6e-3
    )
    for step in range(300):
        coder.step(planted(512, directions, 3, signed, generator), step / 300, dead_after=20_000)
    found = coder.dictionary(ORIGIN)
    cosines = directions @ found.directions.T
    cosines = cosines.abs() if signed else cosines
    assert cosines.amax(1).mean() > 0.9
    held_out = planted(1000, directions, 3, signed, generator)
    left = held_out - found.decode(found.encode(held_out))
    assert left.var() / held_out.var() < 0.15
    assert torch.allclose(found.directions.norm(dim=1), torch.ones(64), atol=1e-5)


def test_a_gradient_turns_its_direction_and_does_not_stretch_it(monkeypatch):
    monkeypatch.setattr("rahf.interpret.features.coder.ROWS", 7)
    directions, gradients = weights().directions, torch.randn(20, 6)
    along = (gradients * directions).sum(1, keepdim=True) * directions
    kept = gradients.clone()
    keep_turning(kept, directions)
    assert torch.allclose(kept, gradients - along, atol=1e-6)


def test_dead_latents_come_back():
    generator = torch.Generator().manual_seed(0)
    directions = functional.normalize(torch.randn(48, 24, generator=generator), dim=1)

    def dead_after_training(weight):
        first = planted(2000, directions, 3, False, generator)
        coder = Coder.begin(first, 64, 3, False, seed=0, learning_rate=3e-3)
        coder.weights.encoder_bias[:32] = -5.0
        for step in range(200):
            states = planted(256, directions, 3, False, generator)
            coder.step(states, step / 200, dead_after=2000, auxiliary_weight=weight)
        return int((coder.silent > 2000).sum())

    assert dead_after_training(0.0) >= 32
    assert dead_after_training(AUXILIARY_WEIGHT) < 24
