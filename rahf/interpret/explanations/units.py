"""What is explained: latents of a dictionary, and directions, among them random ones.

A direction counts as active where its projection exceeds a threshold, so that it is read, explained
and steered as a latent is. Knows dictionaries and states; knows no text and no file.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from rahf.interpret.features.dictionary import (
    Dictionary,
    Origin,
    SparseCodes,
    codes_of_active,
    decoded,
)

UnitKind = Literal["feature", "vector", "random"]

RATES = (0.002, 0.1)
"""Lowest and highest share of tokens in which a direction counts as active."""


class Unit(NamedTuple):
    """What one explanation is of."""

    kind: UnitKind
    number: int  # latent, layer of the direction, or number of the random direction
    layer: int


@dataclass(frozen=True)
class Projections:
    """Directions as a dictionary: activation is the projection above a threshold."""

    origin: Origin
    directions: Float[Tensor, "latents d_model"]  # of norm 1
    thresholds: Float[Tensor, " latents"]

    @property
    def d_model(self) -> int:
        return self.directions.shape[1]

    @property
    def latents(self) -> int:
        return self.directions.shape[0]

    @property
    def bias(self) -> Float[Tensor, " d_model"]:
        return torch.zeros_like(self.directions[0])

    def encode(self, hidden: Float[Tensor, "tokens d_model"]) -> SparseCodes:
        return codes_of_active((hidden @ self.directions.T - self.thresholds).relu())

    def decode(self, codes: SparseCodes) -> Float[Tensor, "tokens d_model"]:
        return decoded(codes, self.directions, self.bias)


def projections(
    directions: Float[Tensor, "latents d_model"],
    states: Float[Tensor, "tokens d_model"],
    rate: float,
    origin: Origin,
) -> Projections:
    """Return directions with the thresholds that a share `rate` of these states exceeds."""
    units = nn.functional.normalize(directions.to(states), dim=1)
    ordered = (states @ units.T).sort(dim=0, descending=True).values
    place = round(rate * len(states))
    return Projections(origin, units, ordered[min(max(1, place), len(states) - 1)])


def random_directions(count: int, d_model: int, seed: int) -> Float[Tensor, "count d_model"]:
    """Return directions of no meaning, drawn in all directions alike."""
    # Not torch's generator: with the seed that a dictionary started from, its vectors come back.
    drawn = np.random.default_rng([seed, d_model]).standard_normal((count, d_model))
    return torch.from_numpy(drawn).float()


class Part(NamedTuple):
    """Latents of one dictionary that are explained."""

    dictionary: Dictionary
    latents: Int64[Tensor, " latents"]
    units: tuple[Unit, ...]  # their names


@dataclass(frozen=True)
class Units:
    """All that is explained, read in one pass; a unit is known by its place."""

    parts: tuple[Part, ...]

    @cached_property
    def names(self) -> tuple[Unit, ...]:
        return tuple(unit for part in self.parts for unit in part.units)

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(sorted({part.dictionary.origin.layer for part in self.parts}))

    def place(self, index: int) -> tuple[Dictionary, int]:
        """Return the dictionary of a unit, and its latent there."""
        for part in self.parts:
            if index < len(part.units):
                return part.dictionary, int(part.latents[index])
            index -= len(part.units)
        raise IndexError(index)

    def vector(self, index: int) -> Float[Tensor, " d_model"]:
        dictionary, latent = self.place(index)
        return dictionary.directions[latent].float().cpu()

    def encode(self, states: Mapping[int, Float[Tensor, "tokens d_model"]]) -> SparseCodes:
        """Return the activations of the units, given the states of each layer."""
        owners, indices, values, before = [], [], [], 0
        for part in self.parts:
            codes = part.dictionary.encode(states[part.dictionary.origin.layer])
            place = torch.full((codes.latents,), -1, device=codes.indices.device)
            place[part.latents.to(place.device)] = torch.arange(
                before, before + len(part.units), device=place.device
            )
            units = place[codes.indices.long()]
            kept = units >= 0
            owners.append(codes.owners()[kept])
            indices.append(units[kept])
            values.append(codes.values[kept])
            before += len(part.units)
        return _codes(
            torch.cat(owners), torch.cat(indices), torch.cat(values), codes.tokens, before
        )


def _codes(owners: Tensor, indices: Tensor, values: Tensor, tokens: int, units: int) -> SparseCodes:
    """Return the codes of entries in any order."""
    order = (owners * units + indices).argsort()
    counts = torch.bincount(owners, minlength=tokens)
    offsets = nn.functional.pad(counts.cumsum(0), (1, 0))
    return SparseCodes(offsets, indices[order].int(), values[order], units)


def feature_part(dictionary: Dictionary, latents: Sequence[int]) -> Part:
    """Return latents of a dictionary as units.

    Raises:
        ValueError: the dictionary lacks one of them, or one is given twice.
    """
    wrong = [latent for latent in latents if not 0 <= latent < dictionary.latents]
    if wrong:
        raise ValueError(
            f"feature {wrong[0]}: the dictionary has features 0 to {dictionary.latents - 1}."
        )
    if len(set(latents)) < len(latents):
        raise ValueError("a feature is given twice: give each of them once.")
    layer = dictionary.origin.layer
    units = tuple(Unit("feature", latent, layer) for latent in latents)
    return Part(dictionary, torch.tensor(latents, dtype=torch.long), units)


def firing_rate(parts: Sequence[Part], states: Mapping[int, Tensor]) -> float:
    """Return the median share of tokens in which the latents that fire at all are active.

    Random directions are made to fire as often.
    """
    codes = Units(tuple(parts)).encode(states)
    firings = codes.firings()
    alive = firings[firings > 0].double()
    rate = alive.median().item() / codes.tokens if len(alive) else 0.0
    return min(max(rate, RATES[0]), RATES[1])
