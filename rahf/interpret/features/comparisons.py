"""Dictionaries beside each other: features that two models share, and features that split when a
dictionary grows.

Knows codes and directions; knows no model and no file.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn

from rahf.interpret.features.dictionary import Dictionary, SparseCodes

LEAST_FIRINGS = 10
"""Tokens in which a latent is active, at least, for its correlations to be counted."""

ROWS_AT_ONCE = 512


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


class Splitting(NamedTuple):
    """How the latents of a smaller dictionary are found in a larger one."""

    children: Int[Tensor, " small"]  # latents of the larger one that are nearest to this one
    nearest: Float[Tensor, " large"]  # cosine of each latent of the larger one with its nearest
    parent: Int[Tensor, " large"]  # that nearest latent; -1: none is near enough

    def shares(self) -> dict[str, float]:
        """Return shares of the smaller one's latents, and of the larger one's that are new."""
        count = self.children
        return {
            "lost": (count == 0).double().mean().item(),
            "kept": (count == 1).double().mean().item(),
            "split": (count > 1).double().mean().item(),
            "new": (self.parent < 0).double().mean().item(),
        }


def check_sizes(small: Dictionary, large: Dictionary) -> None:
    """Refuse dictionaries between which features do not split.

    Raises:
        ValueError: another layer, site, kind or model; the second is not the larger one.
    """
    places = [(each.origin.layer, each.origin.site, each.origin.kind) for each in (small, large)]
    prints = [each.origin.fingerprint for each in (small, large)]
    if places[0] != places[1] or (None not in prints and prints[0] != prints[1]):
        raise ValueError(
            f"the dictionaries are of layer {places[0][0]} ({places[0][1]}, {places[0][2]}) of "
            f"{small.origin.base} and of layer {places[1][0]} ({places[1][1]}, {places[1][2]}) of "
            f"{large.origin.base}: splitting compares two sizes of one."
        )
    if large.latents <= small.latents:
        raise ValueError(
            f"--larger has {large.latents} features, the other {small.latents}: exchange them."
        )


def splitting(
    small: Float[Tensor, "small d_model"],
    large: Float[Tensor, "large d_model"],
    threshold: float,
    *,
    signed: bool = True,
) -> Splitting:
    """Give each direction of the larger dictionary to the nearest of the smaller one.

    Args:
        threshold: least cosine at which it counts as a child.
        signed: whether opposite directions are different; false for codes of either sign.

    Raises:
        ValueError: the dictionaries are of different widths.
    """
    if small.shape[1] != large.shape[1]:
        raise ValueError(
            f"dictionaries of {small.shape[1]} and of {large.shape[1]} dimensions are of different "
            "models: splitting compares dictionaries of one model and layer."
        )
    units, parts = nn.functional.normalize(small.float(), dim=1), []
    for rows in large.split(ROWS_AT_ONCE):
        cosines = nn.functional.normalize(rows.float(), dim=1) @ units.T
        parts.append((cosines if signed else cosines.abs()).max(1))
    nearest = torch.cat([part.values for part in parts])
    parent = torch.cat([part.indices for part in parts]).masked_fill(nearest < threshold, -1)
    children = torch.bincount(parent[parent >= 0], minlength=len(small))
    return Splitting(children, nearest, parent)
