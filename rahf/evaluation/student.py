"""Student's distribution for many values at once: p values, and the quantile of an interval.

Knows numbers only.
"""

import math
from functools import cache

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

NORMAL_FROM = 1000
"""Degrees of freedom from which Student's distribution is taken for the normal one."""


def two_sided_p(t: Float64[Tensor, " latents"], freedom: int) -> Float64[Tensor, " latents"]:
    """Return the probability of a larger |t| under Student's distribution.

    With t = sqrt(freedom) cot(u) its tail is an integral of sin(u)^(freedom - 1) from 0.
    """
    size = t.abs().double()
    if freedom >= NORMAL_FROM:
        return torch.special.erfc(size / math.sqrt(2))
    nodes, weights = _gauss_nodes()
    end = np.arctan2(math.sqrt(freedom), size.numpy())
    places = end[..., None] * (nodes + 1) / 2
    part = (np.sin(places) ** (freedom - 1) @ weights) * end / 2
    whole = math.sqrt(math.pi) / 2
    whole *= math.exp(math.lgamma(freedom / 2) - math.lgamma((freedom + 1) / 2))
    return torch.from_numpy(np.minimum(part / whole, 1.0))


@cache
def _gauss_nodes() -> tuple[np.ndarray, np.ndarray]:
    return np.polynomial.legendre.leggauss(128)


@cache
def t_quantile(freedom: int, beyond: float = 0.05) -> float:
    """Return the |t| that is exceeded with the probability `beyond`."""
    low, high = 0.0, 1e4
    for _ in range(80):
        middle = (low + high) / 2
        larger = two_sided_p(torch.tensor([middle], dtype=torch.double), freedom).item() > beyond
        low, high = (middle, high) if larger else (low, middle)
    return high
