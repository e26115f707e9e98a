"""Curves of a comparison: the change at an equal cost, with its interval.

Change is the judge's mean over the answers, cost the ability loss, both against the
base. The intervals resample prompts, texts and seeds; all rows share the draws of prompts and
texts, since all answered the same. A prompt is omitted at the strength and seed where its verdict
is missing. A change without any verdict is nan, and is not on the curve. Knows numbers only.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from rahf.evaluation.intervals import check_finite
from rahf.report.tradeoff_chart import Point

DRAWS = 1000
SEED = 0  # of the draws

Line = list[tuple[float, float]]
"""(cost, change) at every strength."""

Cost = Literal["loss", "kl"]


class Curves(NamedTuple):
    """The measures of one row; `seeds` is 1 where a row is not trained."""

    strengths: tuple[float, ...]
    scores: Float[np.ndarray, "seeds strengths prompts"]  # the judge's; nan: unreadable
    losses: Float[np.ndarray, "seeds strengths texts"]  # nats of each text
    kls: Float[np.ndarray, "seeds strengths texts"]  # nats of each text
    tokens: Float[np.ndarray, " texts"]


def curves_of(by_seed: Sequence[Sequence[Mapping[str, Any]]]) -> Curves:
    """Return the curves of a row from its measures at each strength, for each seed."""

    def array(key: str) -> np.ndarray:
        return np.array([[point[key] for point in points] for points in by_seed], dtype=float)

    strengths = tuple(point["strength"] for point in by_seed[0])
    tokens = np.array(by_seed[0][0]["text_tokens"], dtype=float)
    for points in by_seed:
        for point in points:
            for key in ("text_loss", "text_kl"):
                at = f"{key} at strength {point['strength']:g} of unrelated text"
                check_finite(point[key], at)
    return Curves(strengths, array("scores"), array("text_loss"), array("text_kl"), tokens)


class Draw(NamedTuple):
    """How often each prompt, text and seed counts."""

    prompts: Float[np.ndarray, " prompts"]
    texts: Float[np.ndarray, " texts"]
    seeds: Float[np.ndarray, " seeds"]


def everything(row: Curves) -> Draw:
    """Return the draw that counts each of them once."""
    return Draw(*(np.ones(size) for size in _sizes(row)))


def line(row: Curves, base: Curves, draw: Draw, cost: Cost, sign: int) -> Line:
    """Return means over seeds; a change without any verdict is nan."""
    change = _mean(sign * (row.scores - base.scores), draw.prompts)
    read = draw.texts / (draw.texts @ row.tokens)
    spent = row.kls @ read if cost == "kl" else row.losses @ read - (base.losses @ read).item()
    over_seeds = _mean(spent.T, draw.seeds), _mean(change.T, draw.seeds)
    return list(zip(*(values.tolist() for values in over_seeds), strict=True))


def readable(found: Line) -> Line:
    """Return the strengths whose change is not nan."""
    return [at for at in found if not np.isnan(at[1])]


def points(row: Curves, base: Curves, cost: Cost, sign: int) -> list[Point]:
    """Return the row's curve, with the interval of the change at each strength that has one."""
    draws = _draws(row, np.random.default_rng(SEED))
    drawn = np.array([line(row, base, draw, cost, sign) for draw in draws])[:, :, 1]
    found = line(row, base, everything(row), cost, sign)
    return [
        Point(*at, *_interval(drawn[:, index]), f"{row.strengths[index]:g}")
        for index, at in enumerate(found)
        if not np.isnan(at[1])
    ]


class Reading(NamedTuple):
    """Change at an equal cost."""

    change: float
    low: float  # 95 % interval
    high: float
    reached: bool  # whether a strength costs as much; if not, a higher one may change more


Readings = tuple[dict[str, Reading], dict[tuple[str, str], Reading]]
"""Of every row, and the difference of any two rows."""


def read_at(rows: Mapping[str, Curves], base: Curves, at: float, cost: Cost, sign: int) -> Readings:
    """Return the change of every row at the cost `at`, and the difference of any two rows.

    A row without a readable verdict is omitted.
    """
    return read_at_each(rows, base, [at], cost, sign)[0]


def read_at_each(
    rows: Mapping[str, Curves],
    base: Curves,
    costs: Sequence[float],
    cost: Cost,
    sign: int,
) -> list[Readings]:
    """Return `read_at` for each of `costs`, with the same draws."""
    whole = {
        name: readable(line(row, base, everything(row), cost, sign)) for name, row in rows.items()
    }
    # The same generator for all rows: they share the draws of prompts and texts.
    drawn = {
        name: [
            line(row, base, draw, cost, sign) for draw in _draws(row, np.random.default_rng(SEED))
        ]
        for name, row in rows.items()
        if whole[name]
    }
    return [_readings({name: whole[name] for name in drawn}, drawn, at) for at in costs]


def _readings(whole: Mapping[str, Line], drawn: Mapping[str, list[Line]], at: float) -> Readings:
    change = {name: change_within(found, at) for name, found in whole.items()}
    reached = {name: max(found)[0] >= at for name, found in whole.items()}
    spread = {name: [change_at_most(found, at) for found in lines] for name, lines in drawn.items()}
    alone = {name: Reading(change[name], *_interval(spread[name]), reached[name]) for name in whole}
    differences = {
        (one, other): Reading(
            change[one] - change[other],
            *_interval(np.subtract(spread[one], spread[other])),
            reached[one] and reached[other],
        )
        for one in whole
        for other in whole
        if one != other
    }
    return alone, differences


def change_at_most(found: Line, at: float) -> float:
    """Return the most change for at most the cost `at`; nan where no verdict could be read."""
    known = readable(found)
    return change_within(known, at) if known else float("nan")


def _interval(drawn: Sequence[float]) -> tuple[float, float]:
    """Return the ends of the 95 % interval; draws without a verdict are omitted."""
    low, high = np.nanquantile(drawn, (0.025, 0.975))
    return float(low), float(high)


def _sizes(row: Curves) -> tuple[int, int, int]:
    return row.scores.shape[2], row.losses.shape[2], row.scores.shape[0]


def _draws(row: Curves, random: np.random.Generator):
    prompts, texts, seeds = _sizes(row)
    of_seeds = np.random.default_rng(random.integers(2**32))
    for _ in range(DRAWS):
        yield Draw(
            *(random.multinomial(size, np.full(size, 1 / size)) for size in (prompts, texts)),
            of_seeds.multinomial(seeds, np.full(seeds, 1 / seeds)),
        )


def _mean(values: Float[np.ndarray, "... n"], weights: Float[np.ndarray, " n"]) -> np.ndarray:
    """Return the weighted mean over the last axis without nan; nan where no weight is left."""
    weight = ~np.isnan(values) @ weights
    missing = np.full(weight.shape, np.nan)
    return np.divide(np.nan_to_num(values) @ weights, weight, out=missing, where=weight > 0)


def change_within(points: Iterable[tuple[float, float]], cost: float) -> float:
    """Return the most change that (cost, change) points bring for at most `cost`.

    Points on the lines between them, and from the base at the origin, count. A gain of ability
    costs 0.
    """
    line = [(0.0, 0.0), *sorted((max(spent, 0.0), change) for spent, change in points)]
    reached = [change for spent, change in line if spent <= cost]
    for (before, low), (after, high) in pairwise(line):
        if before < cost < after:
            reached.append(low + (cost - before) / (after - before) * (high - low))
    return max(reached)
