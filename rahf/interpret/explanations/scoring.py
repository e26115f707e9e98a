"""How well values separate activating texts from others: AUC with its interval, by quantile and
kind of the other texts, with failures counted and never scored.

A judge that always answers the same has an AUC of 0.5; for answers yes and no the AUC is the
balanced accuracy. Knows numbers only.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from rahf.evaluation.intervals import DRAWS, SEED, mean_estimate, ratio_estimate

LEAST = 4
"""Texts of either side without which nothing is scored."""


class Answer(NamedTuple):
    """What a scorer made of one text."""

    value: float | None  # larger: the explanation fits better; None: it failed
    fits: bool  # whether the explanation should fit
    group: str  # kind of the text
    quantile: int | None = None


def area(positive: np.ndarray, negative: np.ndarray) -> float:
    """Return the probability that a positive value exceeds a negative one; ties count a half."""
    return float(_wins(positive, negative).mean())


def _wins(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    difference = positive[:, None] - negative[None]
    return (difference > 0) + 0.5 * (difference == 0)


def area_interval(positive: np.ndarray, negative: np.ndarray) -> dict[str, float]:
    """Return the AUC with a percentile bootstrap over the texts of either side.

    Where all texts are on the right side, a bootstrap draws nothing but the same: the interval then
    begins where a share of 1 with as many texts would (Wilson).
    """
    wins, rng = _wins(positive, negative), np.random.default_rng(SEED)
    sides = [rng.multinomial(n, np.full(n, 1 / n), DRAWS) / n for n in wins.shape]
    drawn = np.einsum("dp,pn,dn->d", sides[0], wins, sides[1], optimize=True)
    low, high = np.quantile(drawn, (0.025, 0.975)).clip(0, 1)  # rounding
    mean, slack = float(wins.mean()), _slack(min(wins.shape))
    low = min(float(low), 1 - slack) if mean == 1 else float(low)
    high = max(float(high), slack) if mean == 0 else float(high)
    return {"mean": mean, "low": low, "high": high}


def _slack(count: int) -> float:
    return 1.96**2 / (count + 1.96**2)


def area_figures(answers: Sequence[Answer]) -> dict[str, Any]:
    """Return the AUC of answers, or only how many failed where too few are left.

    `against` has the AUC against each kind of other text, `by_quantile` that of the activating
    texts of each quantile, the lowest first.
    """
    read = [answer for answer in answers if answer.value is not None]
    figures: dict[str, Any] = {"asked": len(answers), "failed": len(answers) - len(read)}
    positive, negative = (_values(read, fits=side) for side in (True, False))
    if min(len(positive), len(negative)) < LEAST:
        return figures | {"auc": None}
    kinds = sorted({answer.group for answer in read if not answer.fits})
    quantiles = sorted({a.quantile for a in read if a.fits and a.quantile is not None})
    return figures | {
        "auc": area_interval(positive, negative),
        "balanced_accuracy": float(((positive >= 0.5).mean() + (negative < 0.5).mean()) / 2),
        "against": {kind: area(positive, _values(read, False, kind)) for kind in kinds},
        "by_quantile": [area(_values(read, True, None, q), negative) for q in quantiles],
    }


def _values(
    answers: Sequence[Answer], fits: bool, group: str | None = None, quantile: int | None = None
) -> np.ndarray:
    return np.array(
        [
            answer.value
            for answer in answers
            if answer.fits == fits
            and group in (None, answer.group)
            and quantile in (None, answer.quantile)
        ],
        dtype=float,
    )


def variance_explained(
    values: Sequence[float | None],
    activations: Sequence[float],
    quantiles: Sequence[int | None],
) -> dict[str, Any]:
    """Return the share of the variance of activations that values predict, each text by a line that
    is fitted to all others; below 0 where they mislead.

    `by_quantile` has the mean activation of the texts of each quantile and the mean prediction.
    """
    rows = zip(values, activations, quantiles, strict=True)
    read = [(v, a, -1 if q is None else q) for v, a, q in rows if v is not None]
    figures: dict[str, Any] = {"asked": len(values), "failed": len(values) - len(read)}
    if len(read) < 2 * LEAST:
        return figures | {"variance": None}
    given, wanted, groups = np.array(read, dtype=float).T
    others = ~np.eye(len(read), dtype=bool)
    guess = np.array([_line(given[o], wanted[o], x) for o, x in zip(others, given, strict=True)])
    left, around = (wanted - guess) ** 2, (wanted - wanted.mean()) ** 2
    if not around.sum() > 0:
        return figures | {"variance": None}
    lost = ratio_estimate(left, around)
    means = [
        [float(part[groups == group].mean()) for part in (wanted, guess)]
        for group in np.unique(groups[groups >= 0])
    ]
    variance = {"mean": 1 - lost.mean, "low": 1 - lost.high, "high": 1 - lost.low}
    return figures | {"variance": variance, "by_quantile": means}


def _line(given: np.ndarray, wanted: np.ndarray, asked: float) -> float:
    """Return the prediction of the least-squares line through the given points."""
    spread = given.var()
    slope = np.cov(given, wanted, bias=True)[0, 1] / spread if spread > 0 else 0.0
    return wanted.mean() + slope * (asked - given.mean())


def mean_figures(figures: Sequence[dict[str, Any]], measure: str) -> dict[str, Any]:
    """Return the mean over units with its interval, units without a figure, and failures.

    Args:
        measure: `auc` or `variance`.
    """
    known = [each[measure] for each in figures if each[measure] is not None]
    means = [each["mean"] for each in known]
    # Of one unit, the interval over its texts: over units there is none.
    estimate = known[0] if len(known) == 1 else _mean(means)
    asked, failed = (sum(each[name] for each in figures) for name in ("asked", "failed"))
    return {
        "units": len(means),
        "unscored": len(figures) - len(means),
        "mean": estimate,
        "asked": asked,
        "failed": failed,
    }


def _mean(values: Sequence[float]) -> dict[str, float] | None:
    return mean_estimate(values).as_dict() if values else None
