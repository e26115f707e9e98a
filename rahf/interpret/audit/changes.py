"""Whether a trait changed, and by more than a training on pairs without a preference changes it.

A trait is measured on the same units (prompts, texts) before and after, and after each placebo. It
has moved where two tests reject at once: its mean change is not zero, over units; and it is not
that of another placebo, over runs. The larger p value counts, corrected for all traits looked at.
Knows numbers only.
"""

from collections.abc import Sequence
from math import inf, sqrt
from typing import NamedTuple

import numpy as np
import torch

from rahf.evaluation.intervals import Estimate, ratio_estimate
from rahf.evaluation.student import t_quantile, two_sided_p
from rahf.interpret.features.clustered import benjamini_hochberg
from rahf.interpret.features.movement import FALSE_DISCOVERIES

SHARED = 4
"""Degrees of freedom that the spread of all traits adds to a trait's own spread over placebos."""

Z = 1.96
MANY = 1000
"""Units from which an interval is the normal one: a bootstrap of 10,000 takes minutes."""


class Looked(NamedTuple):
    """The change of one trait."""

    name: str
    unit: str  # of the effect
    before: float | None  # mean before the training, where it is known
    effect: Estimate  # mean change, with its interval
    p: float  # of a mean change of 0, over units
    spread: float  # of the trait over units: its size is effect / spread
    placebos: tuple[float, ...] = ()  # mean change by each placebo
    asked: bool = False  # whether it is what the training was for


class Line(NamedTuple):
    """A line of the audit."""

    looked: Looked
    band: tuple[float, float] | None  # 95 % of placebos' changes; None: no placebo
    p: float  # the larger one of both tests
    q: float  # of Benjamini and Hochberg, over all traits but the asked ones
    moved: bool


def change_of(
    name: str,
    unit: str,
    before: Sequence[float],
    after: Sequence[float],
    placebos: Sequence[Sequence[float]] = (),
    counts: Sequence[float] | None = None,
    *,
    asked: bool = False,
) -> Looked | None:
    """Return the change of a trait that is known of each unit; None where there is no unit.

    Args:
        placebos: the same units, after each placebo.
        counts: items that a unit's value is the sum of; None: a unit is one value.
    """
    weights = np.ones(len(before)) if counts is None else np.asarray(counts, dtype=float)
    start = np.asarray(before, dtype=float)
    sums = np.asarray(after, dtype=float) - start
    if not weights.sum():
        return None
    effect = ratio_estimate(sums, weights) if len(sums) < MANY else _normal(sums, weights)
    others = [np.asarray(each, dtype=float) for each in placebos]
    means = tuple(float((each - start).sum() / weights.sum()) for each in others)
    values = np.concatenate([start, np.asarray(after, dtype=float), *others])
    spread = np.std(values / np.tile(weights, 2 + len(others)))
    mean = float(start.sum() / weights.sum())
    p = paired_p(sums, weights)
    return Looked(name, unit, mean, effect, p, float(spread), means, asked)


def paired_p(sums: np.ndarray, counts: np.ndarray) -> float:
    """Return the two-sided p value of sum over sum being 0 (Student, units - 1); 1 of one unit."""
    units = np.count_nonzero(counts)
    mean = sums.sum() / counts.sum()
    if units < 2 or mean == 0:
        return 1.0
    error = _error(sums, counts)
    return p_of(mean / error if error > 0 else inf, units - 1)


def _error(sums: np.ndarray, counts: np.ndarray) -> float:
    """Return the standard error of sum over sum (Cochran 1977, 6.4)."""
    units = np.count_nonzero(counts)
    left = np.square(sums - sums.sum() / counts.sum() * counts).sum()
    return sqrt(left * units / (units - 1)) / counts.sum()


def _normal(sums: np.ndarray, counts: np.ndarray) -> Estimate:
    """Return the interval of many units, from whose bootstrap it hardly differs."""
    mean, half = float(sums.sum() / counts.sum()), Z * _error(sums, counts)
    return Estimate(mean, mean - half, mean + half)


def interval_p(estimate: Estimate) -> float:
    """Return the p value of a mean being 0, from its 95 % interval; 1 where there is none."""
    half = (estimate.high - estimate.low) / 2
    if not half >= 0 or estimate.mean == 0:
        return 1.0
    return p_of(Z * estimate.mean / half if half else inf, 10**6)


def p_of(t: float, freedom: int) -> float:
    return two_sided_p(torch.tensor([t], dtype=torch.double), freedom).item()


class _Runs(NamedTuple):
    """Changes that another placebo would make."""

    centre: float
    error: float  # of a single one around the centre
    freedom: int


def _runs(looked: Looked, shared: float) -> _Runs:
    """Return what placebos do to a trait.

    One placebo has no spread of its own. Each trait's spread over placebos is drawn towards that of
    all traits (Smyth 2004, Statistical Applications in Genetics and Molecular Biology 3, eq. 3).

    Args:
        shared: variance of the placebos' sizes over all traits.
    """
    own, centre = len(looked.placebos) - 1, float(np.mean(looked.placebos))
    left = float(np.square(np.asarray(looked.placebos) - centre).sum())
    variance = (SHARED * shared * looked.spread**2 + left) / (SHARED + own)
    return _Runs(centre, sqrt(variance * (1 + 1 / (own + 1))), SHARED + own)


def _shared(all_looked: Sequence[Looked]) -> float:
    """Return the variance of sizes over placebos, around their mean, or around 0 of a single one.

    Any size of a single placebo counts as chance: what every training does is not known from it.
    """
    squares, freedom = 0.0, 0
    for looked in all_looked:
        if not looked.placebos or not looked.spread:
            continue
        sizes = np.asarray(looked.placebos) / looked.spread
        if len(sizes) > 1:
            sizes = sizes - sizes.mean()
        squares += float(np.square(sizes).sum())
        freedom += max(1, len(sizes) - 1)
    return squares / freedom if freedom else 0.0


def audit(all_looked: Sequence[Looked]) -> list[Line]:
    """Return a line for each trait: those that moved first, then by their p value."""
    shared, found = _shared(all_looked), []
    for looked in all_looked:
        band, p = None, looked.p
        if looked.placebos:
            runs = _runs(looked, shared)
            half = t_quantile(runs.freedom) * runs.error
            band = (runs.centre - half, runs.centre + half)
            off = looked.effect.mean - runs.centre
            p = max(
                p, p_of(off / runs.error if runs.error else inf * off if off else 0, runs.freedom)
            )
        found.append(Line(looked, band, p, 1.0, False))
    tested = torch.tensor([not line.looked.asked for line in found])
    p = torch.tensor([line.p for line in found], dtype=torch.double)
    q = benjamini_hochberg(p, tested).tolist() if len(found) else []
    lines = [
        line._replace(q=value, moved=not line.looked.asked and value < FALSE_DISCOVERIES)
        for line, value in zip(found, q, strict=True)
    ]
    return sorted(lines, key=lambda line: (line.looked.asked, not line.moved, line.p))
