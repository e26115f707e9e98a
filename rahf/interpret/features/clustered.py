"""Means of many latents at once with intervals over clusters, and the control of false discoveries.

Tokens of one prompt are not independent: the unit that is drawn is the prompt. Everything streams:
a few numbers are kept per latent, whatever the number of tokens. Knows numbers only.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from rahf.evaluation.student import t_quantile, two_sided_p


class ClusteredMeans(NamedTuple):
    """Mean per token of each latent, with its uncertainty over clusters."""

    mean: Float64[Tensor, " latents"]
    low: Float64[Tensor, " latents"]  # 95 % interval
    high: Float64[Tensor, " latents"]
    p: Float64[Tensor, " latents"]  # two-sided, of the mean being 0; 1 where nothing varies


class ClusteredSums:
    """Sums over clusters of a quantity of each latent; the means are ratios, sum over tokens."""

    def __init__(self, latents: int):
        self.sums, self.squares, self.products = torch.zeros(3, latents, dtype=torch.double)
        self.tokens = self.token_squares = 0.0
        self.clusters = 0

    def add(self, sums: Float[Tensor, " latents"], tokens: int) -> None:
        """Add one cluster: the sum over its tokens, and their number."""
        sums = sums.double()
        self.sums += sums
        self.squares += sums.square()
        self.products += sums * tokens
        self.tokens += tokens
        self.token_squares += tokens**2
        self.clusters += 1

    def means(self) -> ClusteredMeans:
        """Return means with intervals by linearisation of the ratio (Student, clusters - 1).

        Raises:
            ValueError: fewer than two clusters.
        """
        if self.clusters < 2:
            raise ValueError(
                f"{self.clusters} prompts have no interval: give responses to at least 2 prompts."
            )
        mean = self.sums / self.tokens
        left = self.squares - 2 * mean * self.products + mean.square() * self.token_squares
        # Rounding leaves a little where every cluster has the same mean.
        left = torch.where(left > 1e-12 * self.squares, left, torch.zeros_like(left))
        freedom = self.clusters - 1
        error = (left * self.clusters / freedom).sqrt() / self.tokens
        half = t_quantile(freedom) * error
        t = torch.where(mean == 0, torch.zeros_like(mean), mean / error)
        return ClusteredMeans(mean, mean - half, mean + half, two_sided_p(t, freedom))


class Correlations:
    """Pearson correlation of a quantity of each latent with one number, over units."""

    def __init__(self, latents: int):
        self.x, self.xx, self.xy = torch.zeros(3, latents, dtype=torch.double)
        self.y = self.yy = 0.0
        self.units = 0

    def add(self, quantity: Float[Tensor, " latents"], number: float) -> None:
        quantity = quantity.double()
        self.x += quantity
        self.xx += quantity.square()
        self.xy += quantity * number
        self.y += number
        self.yy += number**2
        self.units += 1

    def values(self) -> Float64[Tensor, " latents"]:
        """Return the correlations; 0 where the quantity or the number does not vary."""
        if self.units == 0:
            return self.x
        mean, number = self.x / self.units, self.y / self.units
        spread = self.xx / self.units - mean.square()
        varied = self.yy / self.units - number**2
        known = (spread > 1e-12 * self.xx / self.units) & (varied > 1e-12 * self.yy / self.units)
        together = self.xy / self.units - mean * number
        found = together / (spread * varied).clamp(min=1e-300).sqrt()
        return torch.where(known, found, torch.zeros_like(found)).clamp(-1, 1)

    def p(self) -> Float64[Tensor, " latents"]:
        """Return two-sided p values; 1 with fewer than three units."""
        if self.units < 3:
            return torch.ones_like(self.x)
        found = self.values().clamp(-1 + 1e-12, 1 - 1e-12)
        t = found * ((self.units - 2) / (1 - found.square())).sqrt()
        return two_sided_p(t, self.units - 2)


def benjamini_hochberg(
    p: Float64[Tensor, " latents"], tested: Bool[Tensor, " latents"]
) -> Float64[Tensor, " latents"]:
    """Return q values over the tested latents (Benjamini and Hochberg 1995); 1 for the others.

    Calling all of q below 0.05 discoveries leaves an expected 5 % of them false.
    """
    q = torch.ones_like(p)
    count = int(tested.sum())
    ordered, order = p[tested].sort()
    ranked = ordered * count / torch.arange(1, count + 1, dtype=p.dtype)
    smallest = ranked.flip(0).cummin(0).values.flip(0).clamp(max=1)
    q[tested.nonzero().squeeze(1)[order]] = smallest
    return q
