"""What the firing of single units reveals about tokens: features beside neurons that are made to
fire as often, and beside those of an untrained model.

A unit's score is the share of its firing's entropy that the current or the next token accounts for,
on held-out tokens. Features of an untrained model can follow the current token as well as those of
a trained one (arXiv 2501.17727); only the next token requires more. Knows activations and ids.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from rahf.interpret.features.dictionary import SparseCodes

PRIORS = (1.0, 4.0, 16.0, 64.0, 256.0, 1024.0)
"""Tokens of the overall rate that are added to the counts of each token: the fewest that help."""


def chosen_activations(
    codes: SparseCodes, latents: Int[Tensor, " units"]
) -> Float[Tensor, "tokens units"]:
    """Return the activations of a few latents, 0 where they are not active."""
    place = torch.full((codes.latents,), -1, device=codes.indices.device)
    place[latents.to(place.device)] = torch.arange(len(latents), device=place.device)
    units = place[codes.indices.long()]
    kept = units >= 0
    whole = codes.values.new_zeros(codes.tokens, len(latents))
    whole[codes.owners()[kept], units[kept]] = codes.values[kept]
    return whole


def firing_at(
    activations: Float[Tensor, "tokens units"], rates: Float[Tensor, " units"]
) -> Bool[Tensor, "tokens units"]:
    """Return where units fire whose thresholds are set so that each fires at its rate."""
    count = len(activations)
    wanted = (rates.double() * count).round().long().clamp(1, count)
    ordered = activations.sort(dim=0, descending=True).values
    return activations >= ordered.gather(0, wanted[None] - 1)


def token_information(
    fires: Bool[Tensor, "tokens units"], ids: Int[Tensor, " tokens"]
) -> Float64[Tensor, " units"]:
    """Return the share of the entropy of a unit's firing that the token's id accounts for.

    Rates per token are counted in the first half of the tokens, and the share is measured on the
    second. How far they are drawn to the overall rate is chosen for each unit within the first
    half. The share is about 0, or a little below, where the id carries no information.

    Raises:
        ValueError: fewer than four tokens.
    """
    if len(ids) < 4:
        raise ValueError(f"{len(ids)} tokens cannot be split in four parts; give more text.")
    known, places = ids.unique(return_inverse=True)
    half, fires = len(ids) // 2, fires.double()
    counts = _Counts(places[: half // 2], fires[: half // 2], len(known))
    inside = slice(half // 2, half)
    tried = torch.stack(
        [counts.share(places[inside], fires[inside], torch.tensor(prior)) for prior in PRIORS]
    )
    prior = torch.tensor(PRIORS)[tried.argmax(0)]
    counts = _Counts(places[:half], fires[:half], len(known))
    return counts.share(places[half:], fires[half:], prior)


class _Counts:
    """How often units fire at each token."""

    def __init__(self, places: Tensor, fires: Tensor, known: int):
        least = 1 / (2 * len(places))
        self.rate = fires.mean(0).clamp(least, 1 - least)
        self.tokens = torch.bincount(places, minlength=known).double()[:, None]
        self.fired = fires.new_zeros(known, fires.shape[1]).index_add_(0, places, fires)

    def share(self, places: Tensor, fires: Tensor, prior: Tensor) -> Float64[Tensor, " units"]:
        """Return the share of the entropy of other tokens that the rates account for."""
        by_token = (self.fired + prior * self.rate) / (self.tokens + prior)
        return 1 - _entropy(by_token[places], fires) / _entropy(self.rate, fires)


def _entropy(rate: Tensor, fires: Tensor) -> Float64[Tensor, " units"]:
    """Return the mean cross entropy of firing under predicted rates, in nats."""
    return -(fires * rate.log() + (1 - fires) * (1 - rate).log()).mean(0)


class Units(NamedTuple):
    """One kind of units at the rates of the features."""

    current: Float64[Tensor, " units"]  # share that the current token accounts for
    next: Float64[Tensor, " units"]  # the next one


def compared_at_one_rate(
    features: Float[Tensor, "tokens units"],
    others: dict[str, Float[Tensor, "tokens units"]],
    ids: Int[Tensor, " tokens"],
    following: Int[Tensor, " tokens"],
) -> dict[str, Units]:
    """Return the scores of features, and of other units that each fire as often as its feature.

    Args:
        features: activations; a feature fires where it is not 0.
        others: activations of as many other units, by name.
        ids: current token of each position.
        following: next token of each position.
    """
    fires = {"features": features != 0}
    rates = fires["features"].double().mean(0)
    fires |= {name: firing_at(activations, rates) for name, activations in others.items()}
    return {
        name: Units(token_information(where, ids), token_information(where, following))
        for name, where in fires.items()
    }
