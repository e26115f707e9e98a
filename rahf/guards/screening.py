"""Which traits a data set will move, read from hidden states before any training.

The effect of row i along the direction v is the mean over layers of (h_i+ - h_i-) . v / (v . v):
how much further along v the states of the preferred response are, in units of the direction. The
forecast is the mean over rows. Two things make such a mean large without the trait:

- chance over rows: a t test over prompts, since responses to one prompt are not independent;
- chance over directions: two sides that differ in anything differ along most directions. The
  placebo are random directions of equal norm, drawn as random contrasts of responses of one side:
  they point where responses differ anyway. Directions that are uniform over the sphere point almost
  nowhere, and would make every direction look special.

A p value is the larger of both, and a bank is controlled for false discoveries (Benjamini and
Hochberg 1995). Knows states and groups; knows no model and no text.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from rahf.directions.vectors import Directions
from rahf.evaluation.intervals import Estimate, ratio_estimate
from rahf.evaluation.student import two_sided_p

Numbers = Sequence[float] | np.ndarray

DRAWS = 2000
LEVEL = 0.05
RESPONSES_IN_PLACEBO = 1024  # of each side, at most


class Sides(NamedTuple):
    """Mean states of both responses of every row, at the layers of the directions."""

    first: Float[Tensor, "layers rows d_model"]  # preferred, or of the data
    second: Float[Tensor, "layers rows d_model"]  # rejected, or the base's own
    layers: tuple[int, ...]
    group: Int[np.ndarray, " rows"]  # number of the prompt


class Forecast(NamedTuple):
    """What is forecast along one direction."""

    rows: Float[np.ndarray, " rows"]  # effect of every row
    effect: Estimate  # mean with its 95 % interval over prompts
    p_rows: float  # that rows of no difference give as much
    p_directions: float  # that a random direction of equal norm gives as much
    q: float  # false discovery rate at which the bank would report it
    random: tuple[float, float]  # 95 % band of random directions
    shuffled: tuple[float, float]  # 95 % band of shuffled sides
    verdict: str


def forecast(
    sides: Sides, directions: Mapping[str, Directions], seed: int = 0
) -> dict[str, Forecast]:
    """Return the forecast along every direction of a bank.

    Raises:
        ValueError: fewer than two prompts.
    """
    groups = len(np.unique(sides.group))
    if groups < 2:
        raise ValueError(
            f"the rows have {groups} prompt, and an interval over prompts needs at least 2."
        )
    difference = (sides.first - sides.second).double()
    along = placebo_effects(sides, difference.mean(1), seed)
    found = {}
    for name, each in directions.items():
        vectors = each.select(sides.layers).double()
        rows = row_effects(difference, vectors).numpy()
        sums, counts = totals(rows, sides.group)
        effect = ratio_estimate(sums, counts)
        assert effect is not None  # there are two prompts at least
        placebo = (along / vectors.norm(dim=-1)).mean(1).abs()
        beyond = int((placebo >= abs(effect.mean)).sum())
        edge = float(torch.quantile(placebo, 1 - LEVEL))
        found[name] = Forecast(
            rows,
            effect,
            clustered_p(sums, counts),
            (1 + beyond) / (1 + len(placebo)),
            1.0,
            (-edge, edge),
            shuffled_band(sums, counts, seed),
            "",
        )
    return decided(found)


def row_effects(
    difference: Float[Tensor, "layers rows d_model"], vectors: Float[Tensor, "layers d_model"]
) -> Float[Tensor, " rows"]:
    """Return the effect of each row, mean over layers."""
    size = vectors.square().sum(-1, keepdim=True)
    return (torch.einsum("lrd,ld->lr", difference, vectors) / size).mean(0)


def placebo_effects(
    sides: Sides, difference: Float[Tensor, "layers d_model"], seed: int
) -> Float[Tensor, "draws layers"]:
    """Return the mean difference along random unit directions, layer by layer.

    A draw is one random contrast of responses, the same in every layer, as a direction is.
    """
    generator = torch.Generator().manual_seed(seed)
    count = sides.first.shape[1]
    some = torch.randperm(count, generator=generator)[:RESPONSES_IN_PLACEBO]
    weights = torch.randn(DRAWS, 2 * len(some), generator=generator, dtype=torch.double)
    found = []
    for first, second, wanted in zip(sides.first, sides.second, difference, strict=True):
        # Centred within its side, so that what distinguishes the sides is in no placebo.
        states = torch.cat([_centred(first[some]), _centred(second[some])])
        along = weights @ (states @ wanted)
        norms = (weights @ (states @ states.T) * weights).sum(1).clamp(min=0).sqrt()
        found.append(along / norms.clamp(min=torch.finfo(norms.dtype).tiny))
    return torch.stack(found, 1)


def _centred(states: Float[Tensor, "rows d_model"]) -> Float[Tensor, "rows d_model"]:
    states = states.double()
    return states - states.mean(0)


def totals(rows: Numbers, group: Numbers) -> tuple[np.ndarray, np.ndarray]:
    """Return the sum and the number of the rows of each prompt."""
    _, place = np.unique(group, return_inverse=True)
    return np.bincount(place, weights=rows), np.bincount(place).astype(float)


def clustered_p(sums: np.ndarray, counts: np.ndarray) -> float:
    """Return the p value of the mean over rows being 0, by a t test over prompts.

    The mean is a ratio of sums over prompts, whose error is that of the linearised ratio
    (Cochran 1977, 6.4).
    """
    units, mean = len(sums), sums.sum() / counts.sum()
    left = np.square(sums - mean * counts).sum() * units / (units - 1)
    if left == 0:
        return float(mean == 0)
    t = mean * counts.sum() / left**0.5
    return float(two_sided_p(torch.tensor([t], dtype=torch.double), units - 1)[0])


def shuffled_band(sums: np.ndarray, counts: np.ndarray, seed: int) -> tuple[float, float]:
    """Return the central 95 % of the mean where the sides of each prompt are drawn by chance."""
    signs = np.random.default_rng(seed).choice((-1.0, 1.0), (DRAWS, len(sums)))
    means = signs @ sums / counts.sum()
    low, high = np.quantile(means, (LEVEL / 2, 1 - LEVEL / 2))
    return float(low), float(high)


def decided(found: Mapping[str, Forecast]) -> dict[str, Forecast]:
    """Return the forecasts with the false discovery rate of each, and what it says."""
    p = [max(each.p_rows, each.p_directions) for each in found.values()]
    return {
        name: each._replace(q=q, verdict=verdict(each.effect.mean, q))
        for (name, each), q in zip(found.items(), false_discovery(p), strict=True)
    }


def false_discovery(p: Sequence[float]) -> list[float]:
    """Return the rate at which each p value of a bank is a discovery (Benjamini and Hochberg)."""
    given = np.asarray(p, dtype=float)
    order = np.argsort(given)
    scaled = given[order] * len(p) / np.arange(1, len(p) + 1)
    rates = np.empty(len(p))
    rates[order] = np.minimum.accumulate(scaled[::-1])[::-1].clip(max=1.0)
    return rates.tolist()


def verdict(effect: float, q: float) -> str:
    """Return what is said of a trait."""
    if q > LEVEL:
        return "no sign"
    return "will rise" if effect > 0 else "will fall"
