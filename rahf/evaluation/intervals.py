"""How sure a mean is: bootstrap intervals over the units that were drawn (prompts, pairs).

Knows numbers only.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

DRAWS = 2000
SEED = 0  # of the draws


class Estimate(NamedTuple):
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        return self._asdict()


def ratio_estimate(sums: Sequence[float], counts: Sequence[float]) -> Estimate | None:
    """Sum over sum with a percentile bootstrap over units: what a unit holds is drawn together.

    For tokens of responses a unit is a response: its tokens are not independent.

    Args:
        sums: a unit's total of what is averaged.
        counts: a unit's number of items.

    Returns:
        None where there is no item.
    """
    sums, counts = np.asarray(sums, dtype=float), np.asarray(counts, dtype=float)
    if counts.sum() == 0:
        return None
    drawn = np.random.default_rng(SEED).integers(len(sums), size=(DRAWS, len(sums)))
    totals = counts[drawn].sum(1)
    ratios = sums[drawn].sum(1)[totals > 0] / totals[totals > 0]
    low, high = np.quantile(ratios, (0.025, 0.975))
    return Estimate(float(sums.sum() / counts.sum()), float(low), float(high))


def mean_estimate(values: Sequence[float]) -> Estimate | None:
    """The mean of single values with its bootstrap interval; None where there are none."""
    return ratio_estimate(values, np.ones(len(values)))
