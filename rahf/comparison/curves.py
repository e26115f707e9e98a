"""What the measures of a comparison say: curves, the change at an equal cost, and how sure it is.

Change is the judge's mean over the answers, cost what general ability was lost, both against the
base. Prompts, texts and seeds are drawn anew for the intervals, prompts and texts alike for all
rows, since all answered the same. Knows numbers only.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from rahf.report.tradeoff import Point, change_within

DRAWS = 1000

Cost = Literal["loss", "kl"]


class Curves(NamedTuple):
    """The measures of one row; `seeds` is 1 where a row is not trained."""

    strengths: tuple[float, ...]
    scores: Float[np.ndarray, "seeds strengths prompts"]  # the judge's; nan: unreadable
    losses: Float[np.ndarray, "seeds strengths texts"]  # nats of each text
    kls: Float[np.ndarray, "seeds strengths texts"]  # nats of each text
    tokens: Float[np.ndarray, " texts"]


def curves_of(by_seed: Sequence[Sequence[Mapping[str, Any]]]) -> Curves:
    """From the measures at each strength, for each seed."""

    def array(key: str) -> np.ndarray:
        return np.array([[point[key] for point in points] for points in by_seed], dtype=float)

    strengths = tuple(point["strength"] for point in by_seed[0])
    tokens = np.array(by_seed[0][0]["text_tokens"], dtype=float)
    return Curves(strengths, array("scores"), array("text_loss"), array("text_kl"), tokens)


class Draw(NamedTuple):
    """How often each prompt, text and seed counts."""

    prompts: Float[np.ndarray, " prompts"]
    texts: Float[np.ndarray, " texts"]
    seeds: Float[np.ndarray, " seeds"]


def everything(row: Curves) -> Draw:
    """Each of them once."""
    return Draw(*(np.ones(size) for size in _sizes(row)))


def line(row: Curves, base: Curves, draw: Draw, cost: Cost, sign: int) -> list[tuple[float, float]]:
    """(cost, change) at every strength: means over seeds."""
    change = sign * (_mean_score(row, draw) - _mean_score(base, draw._replace(seeds=np.ones(1))))
    read = draw.texts / (draw.texts @ row.tokens)
    spent = row.kls @ read if cost == "kl" else row.losses @ read - (base.losses @ read).item()
    weights = draw.seeds / draw.seeds.sum()
    return list(zip((weights @ spent).tolist(), (weights @ change).tolist(), strict=True))


def points(row: Curves, base: Curves, cost: Cost, sign: int, seed: int = 0) -> list[Point]:
    """The row's curve, with the interval of the change at each strength."""
    drawn = [
        [change for _, change in line(row, base, draw, cost, sign)]
        for draw in _draws(row, np.random.default_rng(seed))
    ]
    low, high = np.quantile(np.array(drawn), (0.025, 0.975), axis=0)
    found = line(row, base, everything(row), cost, sign)
    return [
        Point(*at, float(low[index]), float(high[index]), f"{row.strengths[index]:g}")
        for index, at in enumerate(found)
    ]


class Reading(NamedTuple):
    """Change at an equal cost."""

    change: float
    low: float  # 95 % interval
    high: float
    reached: bool  # whether any strength costs so much: if not, more might have brought more


def read_at(
    rows: Mapping[str, Curves], base: Curves, at: float, cost: Cost, sign: int, seed: int = 0
) -> tuple[dict[str, Reading], dict[tuple[str, str], Reading]]:
    """The change of every row at the cost `at`, and the difference of any two rows."""
    drawn: dict[str, list[float]] = {}
    for name, row in rows.items():
        # The same generator for all rows: prompts and texts are drawn alike.
        lines = (
            line(row, base, draw, cost, sign) for draw in _draws(row, np.random.default_rng(seed))
        )
        drawn[name] = [change_within(found, at) for found in lines]
    whole = {name: line(row, base, everything(row), cost, sign) for name, row in rows.items()}
    change = {name: change_within(found, at) for name, found in whole.items()}
    reached = {name: max(found)[0] >= at for name, found in whole.items()}

    def reading(value: float, draws: Sequence[float], reached: bool) -> Reading:
        low, high = np.quantile(draws, (0.025, 0.975))
        return Reading(value, float(low), float(high), reached)

    alone = {name: reading(change[name], drawn[name], reached[name]) for name in rows}
    differences = {
        (one, other): reading(
            change[one] - change[other],
            np.subtract(drawn[one], drawn[other]),
            reached[one] and reached[other],
        )
        for one in rows
        for other in rows
        if one != other
    }
    return alone, differences


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


def _mean_score(row: Curves, draw: Draw) -> np.ndarray:
    """[seeds, strengths]; an unreadable verdict is left out."""
    readable = ~np.isnan(row.scores)
    return (np.nan_to_num(row.scores) @ draw.prompts) / np.maximum(readable @ draw.prompts, 1)
