"""Features that two models share: correlations of activations on the same tokens.

Knows codes and states; knows no model and no file.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from rahf.interpret.features.dictionary import SparseCodes

LEAST_FIRINGS = 10
"""Tokens in which a latent is active, at least, for its correlations to be counted."""


class Universality(NamedTuple):
    """The largest correlation of each chosen latent with a latent of the other dictionary."""

    latents: Int[Tensor, " chosen"]  # those that are active often enough
    best: Int[Tensor, " chosen"]  # latent of the other dictionary
    correlation: Float64[Tensor, " chosen"]
    shuffled: Float64[Tensor, " chosen"]  # the largest one where the tokens do not correspond


class SharedFeatures:
    """Gathers activations of two dictionaries on the same tokens.

    Args:
        chosen: latents of the first dictionary; all of the other are compared with them.
        seed: of the order that the tokens are shuffled into for the null.
    """

    def __init__(self, chosen: Int[Tensor, " chosen"], latents: tuple[int, int], seed: int = 0):
        self.chosen, self.tokens = chosen, 0
        self._place = torch.full((latents[0],), -1).index_copy(0, chosen, torch.arange(len(chosen)))
        self._first = torch.zeros(3, len(chosen), dtype=torch.double)  # sums, squares, firings
        self._other = torch.zeros(3, latents[1], dtype=torch.double)
        self._products, self._shuffled = torch.zeros(2, len(chosen), latents[1])
        self._generator = torch.Generator().manual_seed(seed)

    def add(self, first: SparseCodes, other: SparseCodes) -> None:
        """Add codes of the same tokens.

        Raises:
            ValueError: the codes are not of equally many tokens.
        """
        if first.tokens != other.tokens:
            raise ValueError(
                f"codes of {first.tokens} and of {other.tokens} tokens: universality compares the "
                "same tokens, so both models need one tokenizer."
            )
        places = self._place[first.indices.long().cpu()]
        kept = places >= 0
        rows, places = first.owners().cpu()[kept], places[kept]
        values = first.values.float().cpu()[kept]
        columns, numbers = other.indices.long().cpu(), other.values.float().cpu()
        _add(self._first, places, values)
        _add(self._other, columns, numbers)
        order = torch.randperm(first.tokens, generator=self._generator)
        for products, tokens in ((self._products, rows), (self._shuffled, order[rows])):
            counts = other.counts().cpu()[tokens]
            entries = _ranges(other.offsets.cpu()[tokens], counts)
            i = places.repeat_interleave(counts)
            together = values.repeat_interleave(counts) * numbers[entries]
            products.view(-1).index_add_(0, i * products.shape[1] + columns[entries], together)
        self.tokens += first.tokens

    def universality(self) -> Universality:
        """Return the best matches of the latents that are active often enough."""
        kept = (self._first[2] >= LEAST_FIRINGS).nonzero().squeeze(1)
        rare = self._other[2] < LEAST_FIRINGS
        found = []
        for products in (self._products, self._shuffled):
            correlations = self._correlations(products[kept].double(), kept)
            found.append(correlations.masked_fill(rare, -1).max(1))
        (best, places), (null, _) = found
        return Universality(self.chosen[kept], places, best, null)

    def _correlations(self, products: Tensor, kept: Tensor) -> Tensor:
        first, other = self._first[:, kept] / self.tokens, self._other / self.tokens
        spread = (first[1] - first[0].square())[:, None] * (other[1] - other[0].square())
        together = products / self.tokens - first[0][:, None] * other[0]
        return (together / spread.clamp(min=1e-30).sqrt()).clamp(-1, 1)


def _add(totals: Tensor, indices: Tensor, values: Tensor) -> None:
    values = values.double()
    for total, added in zip(
        totals, (values, values.square(), torch.ones_like(values)), strict=True
    ):
        total.index_add_(0, indices, added)


def _ranges(starts: Int[Tensor, " ranges"], counts: Int[Tensor, " ranges"]) -> Tensor:
    """Return start, start + 1, ... of each range, `count` numbers, one range after the other."""
    begun = counts.cumsum(0) - counts
    return torch.arange(int(counts.sum())) + (starts - begun).repeat_interleave(counts)


class SharedDimensions:
    """The same for single dimensions of hidden states, of either sign: the rival of features."""

    def __init__(self, first: int, other: int):
        self._sums = torch.zeros(first).double(), torch.zeros(other).double()
        self._squares = torch.zeros(first).double(), torch.zeros(other).double()
        self._products, self._tokens = torch.zeros(first, other).double(), 0

    def add(
        self, first: Float[Tensor, "tokens d_first"], other: Float[Tensor, "tokens d_other"]
    ) -> None:
        both = first.double().cpu(), other.double().cpu()
        for sums, squares, states in zip(self._sums, self._squares, both, strict=True):
            sums += states.sum(0)
            squares += states.square().sum(0)
        self._products += both[0].T @ both[1]
        self._tokens += len(first)

    def best(self) -> Float64[Tensor, " d_first"]:
        """Return the largest correlation of each dimension of the first model, by size."""
        means = [sums / self._tokens for sums in self._sums]
        spreads = [
            (squares / self._tokens - mean.square()).clamp(min=1e-30).sqrt()
            for squares, mean in zip(self._squares, means, strict=True)
        ]
        together = self._products / self._tokens - torch.outer(*means)
        return (together / torch.outer(*spreads)).abs().clamp(max=1).max(1).values


def universality_figures(features: SharedFeatures, dimensions: SharedDimensions) -> dict[str, Any]:
    """Return the quartiles of the correlations, and the best match of each feature.

    Raises:
        ValueError: no feature is active often enough.
    """
    found = features.universality()
    if len(found.latents) == 0:
        raise ValueError(
            f"none of the {len(features.chosen)} features drawn is active in {LEAST_FIRINGS} of "
            f"{features.tokens} tokens: give more text (--tokens)."
        )
    parts = {
        "features": found.correlation,
        "features, tokens shuffled": found.shuffled,
        "dimensions": dimensions.best(),
    }
    lists = (part.tolist() for part in (found.latents, found.best, found.correlation))
    return {
        "tokens": features.tokens,
        "correlations": {name: _quartiles(part) for name, part in parts.items()},
        "features": [
            {"feature": latent, "other": other, "correlation": correlation}
            for latent, other, correlation in zip(*lists, strict=True)
        ],
    }


def _quartiles(values: Float64[Tensor, " values"]) -> dict[str, int | float]:
    levels = torch.tensor([0.25, 0.5, 0.75], dtype=values.dtype)
    found = zip(("q25", "median", "q75"), values.quantile(levels).tolist(), strict=True)
    return {"count": len(values), **dict(found)}
