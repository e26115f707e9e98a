"""The strongest pairs at both ends of each query's list, kept while scores stream by.

Knows numbers only.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

BLOCK = 4096
"""Pairs that are sorted at once."""


class Strongest:
    """The pairs with the smallest and the largest values of each query, of any number of pairs."""

    def __init__(self, queries: int, count: int) -> None:
        self.count, self.seen = count, 0
        self.values = torch.empty(queries, 0)
        self.places = torch.empty(queries, 0, dtype=torch.long)

    def add(self, values: Float[Tensor, "pairs queries"]) -> None:
        """Add the pairs that follow those added before; ties are in the order of the pairs."""
        more = torch.arange(self.seen, self.seen + len(values)).expand(values.shape[1], -1)
        self.seen += len(values)
        values = torch.cat([self.values, values.T], 1)
        places = torch.cat([self.places, more], 1)
        order = values.argsort(dim=1, stable=True)
        if order.shape[1] > 2 * self.count:
            order = torch.cat([order[:, : self.count], order[:, -self.count :]], 1)
        self.values, self.places = values.gather(1, order), places.gather(1, order)


def strongest(values: Float[Tensor, "pairs queries"], count: int) -> Int[Tensor, "queries kept"]:
    """Return the places of the `count` smallest values of each query, then of the `count` largest,
    in rising order; of all pairs where they are fewer.
    """
    kept = Strongest(values.shape[1], count)
    for block in values.split(BLOCK):
        kept.add(block)
    return kept.places
