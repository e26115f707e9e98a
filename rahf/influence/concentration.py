"""How few pairs hold how much of an influence, and which hits are not to be trusted.

Knows numbers only.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

DRAWS = 200
TAIL_LEAST = 10
"""Fewest pairs that a tail is fitted to."""

CHANCE = 0.01
"""Probability below which the hits of a pair in many lists are no chance."""


class Tail(NamedTuple):
    """A power law for the largest influences: density ~ x^-exponent from `start` on."""

    exponent: float
    start: float
    pairs: int  # in the tail
    ks: float  # Kolmogorov-Smirnov distance of the tail to the law
    p_value: float  # share of samples of the law that are as far from their own fit; < 0.1: refused


def top_share(values: Float[np.ndarray, " pairs"], share: float = 0.01) -> float:
    """Return the share of the sum of |values| that the largest `share` of them hold, at least
    one value; nan where all are 0.
    """
    sizes = np.sort(np.abs(values))[::-1]
    count = max(1, round(share * len(sizes)))
    return float(sizes[:count].sum() / sizes.sum()) if sizes.any() else float("nan")


def tail_of(values: Float[np.ndarray, " pairs"]) -> Tail | None:
    """Return the power law of the tail that is nearest to its values (Clauset et al. 2009).

    None where there are fewer than 2 x TAIL_LEAST values above 0.
    """
    sizes = np.sort(np.abs(values[values != 0]).astype(float))
    if len(sizes) < 2 * TAIL_LEAST:
        return None
    starts = np.unique(np.linspace(0, len(sizes) - TAIL_LEAST, 50).astype(int))
    fits = [(*_fit(sizes[start:]), start) for start in starts]
    distance, exponent, start = min(fits)
    tail, generator = sizes[start:], np.random.default_rng(0)
    if not np.isfinite(exponent):
        return None
    uniform = generator.random((DRAWS, len(tail)))
    samples = tail[0] * (1 - uniform) ** (-1 / (exponent - 1))
    beyond = np.mean([_fit(np.sort(sample), tail[0])[0] >= distance for sample in samples])
    return Tail(float(exponent), float(tail[0]), len(tail), float(distance), float(beyond))


def _fit(tail: np.ndarray, start: float | None = None) -> tuple[float, float]:
    """Return the KS distance and the maximum-likelihood exponent of a sorted tail."""
    start = tail[0] if start is None else start
    logs = np.log(tail / start).sum()
    if logs <= 0:
        return float("inf"), float("inf")
    exponent = 1 + len(tail) / logs
    law = 1 - (tail / start) ** (1 - exponent)
    ranks = np.arange(len(tail) + 1) / len(tail)
    return float(max(np.abs(law - ranks[1:]).max(), np.abs(law - ranks[:-1]).max())), exponent


def spurious_hits(
    places: Int[Tensor, "queries kept"], self_influence: Float[Tensor, " pairs"]
) -> Bool[Tensor, "queries kept"]:
    """Return which of the top pairs would be hits for any query: among the 1 % with the largest
    self-influence, or among the top pairs of at least half of three or more queries, and of more
    than chance gives.
    """
    count = max(1, round(0.01 * len(self_influence)))
    loud = self_influence.argsort(descending=True)[:count]
    flagged = torch.isin(places, loud)
    if len(places) >= 3:
        hits = torch.stack([torch.isin(places, own) for own in places]).sum(0)
        flagged |= hits >= _least_hits(len(places), places.shape[1] / len(self_influence))
    return flagged


def _least_hits(queries: int, share: float) -> int:
    """Return the fewest lists, at least half, that hold a pair by chance with a probability below
    CHANCE, where each holds `share` of the pairs; one more than there are where none is that rare.
    """
    for least in range(-(-queries // 2), queries + 1):
        counts = range(least, queries + 1)
        parts = (math.comb(queries, n) * share**n * (1 - share) ** (queries - n) for n in counts)
        if sum(parts) < CHANCE:
            return least
    return queries + 1
