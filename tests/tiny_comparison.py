"""Curves of a comparison that nobody has trained."""

import numpy as np

from rahf.comparison.curves import Curves


def row(change: float, loss: float, seeds: int = 2, noise: float = 0.0, seed: int = 0) -> Curves:
    """Change and loss grow with the strength, 1 and 2."""
    random = np.random.default_rng(seed)
    shape, strengths = (seeds, 2, 20), np.array([1.0, 2.0])[None, :, None]
    tokens = random.integers(5, 10, size=6).astype(float)
    scores = change * strengths + noise * random.normal(size=shape)
    losses = (3 + loss * strengths) * tokens * np.ones((seeds, 1, 1))
    return Curves((1.0, 2.0), scores, losses, losses - 3 * tokens, tokens)


BASE = Curves(
    (0.0,), np.zeros((1, 1, 20)), (3 * row(0, 0).tokens)[None, None], np.zeros((1, 1, 6)),
    row(0, 0).tokens,
)  # fmt: skip
