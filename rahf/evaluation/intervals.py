"""How sure a mean or a share is: 95 % intervals over the units that were drawn (prompts, pairs).

A mean has a bootstrap interval, one of few units Student's, a share Wilson's. A value that is not
finite is an error: no interval may be drawn from it. Knows numbers only.
"""

from collections.abc import Sequence
from math import inf, isnan, nan
from typing import NamedTuple

import numpy as np

from rahf.evaluation.student import t_quantile

DRAWS = 2000
SEED = 0  # of the draws
FEW = 30
"""Units below which an interval is Student's: of three, a bootstrap's holds the mean in 76 %."""


Z = 1.959963984540054  # 97.5 % quantile of the normal distribution


def check_finite(values: Sequence[float], what: str) -> None:
    """Raise ValueError where a value is NaN or infinite, with the place of the first.

    Args:
        what: a value is called in the error, such as "the margin of pair".
    """
    wrong = np.flatnonzero(~np.isfinite(np.asarray(values, dtype=float)))
    if len(wrong):
        raise ValueError(
            f"{what} {wrong[0] + 1} of {len(values)} is {float(values[wrong[0]])}: {len(wrong)} of "
            "them are not finite, so nothing can be measured. Check the model's weights and number "
            "format."
        )


class Estimate(NamedTuple):
    """A mean with its 95 % interval; the ends are NaN where a single unit leaves none."""

    mean: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float | None]:
        """Return the figures for a file: None in the place of NaN, which is no JSON."""
        return {name: None if isnan(value) else value for name, value in self._asdict().items()}


def ratio_estimate(
    sums: Sequence[float] | np.ndarray,
    counts: Sequence[float] | np.ndarray,
    least: float = -inf,
    most: float = inf,
) -> Estimate | None:
    """Return sum over sum with a percentile bootstrap over units, or Student's interval of few.

    What a unit holds is drawn together. For tokens of responses a unit is a response, since its
    tokens are not independent.

    Args:
        sums: a unit's total of what is averaged.
        counts: a unit's number of items.
        least: smallest possible mean, below which Student's interval does not reach.
        most: largest possible mean.

    Returns:
        None where there is no item.

    Raises:
        ValueError: a sum is not finite.
    """
    check_finite(sums, "the value of unit")
    sums, counts = np.asarray(sums, dtype=float), np.asarray(counts, dtype=float)
    if counts.sum() == 0:
        return None
    if np.count_nonzero(counts) < FEW:
        return _student(sums, counts, least, most)
    drawn = np.random.default_rng(SEED).integers(len(sums), size=(DRAWS, len(sums)))
    totals = counts[drawn].sum(1)
    ratios = sums[drawn].sum(1)[totals > 0] / totals[totals > 0]
    low, high = np.quantile(ratios, (0.025, 0.975))
    return Estimate(float(sums.sum() / counts.sum()), float(low), float(high))


def _student(sums: np.ndarray, counts: np.ndarray, least: float, most: float) -> Estimate:
    """Return sum over sum with Student's interval of the linearised ratio (Cochran 1977, 6.4)."""
    mean, units = sums.sum() / counts.sum(), np.count_nonzero(counts)
    if units == 1:
        return Estimate(float(mean), nan, nan)
    freedom = units - 1
    error = (np.square(sums - mean * counts).sum() * units / freedom) ** 0.5 / counts.sum()
    half = t_quantile(freedom) * error
    return Estimate(float(mean), float(max(least, mean - half)), float(min(most, mean + half)))


def mean_estimate(
    values: Sequence[float], least: float = -inf, most: float = inf
) -> Estimate | None:
    """Return the mean of single values with its interval, see `ratio_estimate`; None where there
    are none.
    """
    return ratio_estimate(values, np.ones(len(values)), least, most)


def share_estimate(values: Sequence[float]) -> Estimate | None:
    """Return the mean of values from 0 to 1 with Wilson's interval; None where there are none.

    Three of three is 1 [0.44, 1], where a bootstrap draws nothing but threes (Wilson 1927, eq. 4).
    With values between 0 and 1 (ties) the interval is wider than it need be.

    Raises:
        ValueError: a value is not finite.
    """
    if len(values) == 0:
        return None
    check_finite(values, "the value of unit")
    return interval_of_share(float(np.mean(np.asarray(values, dtype=float))), len(values))


def interval_of_share(mean: float, count: int) -> Estimate:
    """Return a share of `count` values with Wilson's interval, see `share_estimate`."""
    centre = (mean + Z**2 / (2 * count)) / (1 + Z**2 / count)
    half = Z / (1 + Z**2 / count) * (mean * (1 - mean) / count + Z**2 / (4 * count**2)) ** 0.5
    # Rounding must not put an end of the interval on the wrong side of the mean.
    return Estimate(mean, max(0.0, min(mean, centre - half)), min(1.0, max(mean, centre + half)))
