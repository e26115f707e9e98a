"""Layers and strength from data: which blocks to shift, and how far, before anything is trained.

Windows of blocks are compared at the same cost: for each, the strength is solved for at which the
predictions on neutral text move by a stated divergence. The window that then raises the margin of
held-out pairs more than its neighbours over the depth is taken. Steering by the share of a shift
that training reaches is a proxy for training, which costs many times more. Knows a model and
directions; knows no recipe.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rahf.data.rows import with_context
from rahf.directions.steering import steer
from rahf.directions.vectors import Directions
from rahf.models.likelihood import predictions, preference_margins, rows_for
from rahf.recipe.layers import resolve_layers
from rahf.terms import kl_divergence

WINDOWS = ("0.2-0.5", "0.35-0.65", "0.5-0.8", "0.65-0.95")
"""In the form of `target_layers`; the lowest blocks have no semantic directions."""

NEAR_BEST = 0.1  # a window whose AUC is further below the best is not tried
REACHED = 0.3
"""Share of a shift whose steering is a proxy for a policy that is trained towards all of it. After
8 steps beside a retain term, predictions on neutral text had moved as steering by 0.2 to 0.3 of the
shift moves them (recipes/LOG.md). Longer trainings go further; the policy is measured after it."""

FIRST_SHARE = 0.8
"""Of the residual's RMS, at a budget of 1: where the search for a strength begins."""

STEPS = 12  # at most; three or four are usual
PRECISION = 0.05  # of the budget


@dataclass(frozen=True)
class Candidate:
    """One window, and what came out of it."""

    layers: tuple[int, ...]
    separability: float  # mean AUC of held-out pairs over its layers
    alpha: float | None = None  # None: not tried
    share_of_rms: float | None = None  # |alpha v| / RMS of the residual, mean over its layers
    divergence: float | None = None  # steered by REACHED of it; nats per token, neutral text
    margin_gain: float | None = None  # of held-out pairs, steered by as much; nats per token


@dataclass(frozen=True)
class Choice:
    """The candidate that is taken, beside those that are not."""

    taken: Candidate
    candidates: tuple[Candidate, ...]
    budget: float
    solved: bool  # whether the strength was solved for
    reached: float = REACHED  # share of the shift that is steered by in place of a training

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def windows(depth: int) -> list[tuple[int, ...]]:
    """Return ranges of neighbouring blocks of a model of `depth` blocks, from low to high."""
    return list(dict.fromkeys(resolve_layers(window, depth) for window in WINDOWS))


def windows_within(
    depth: int, fitted: Sequence[int], given: int | str | Sequence[int | str] | None
) -> list[tuple[int, ...]]:
    """Return the windows that the fitted layers cover, or only the layers that are given.

    Args:
        given: as `target_layers`; None: the windows are compared.

    Raises:
        ValueError: the fitted layers cover no window.
    """
    if given is not None:
        return [resolve_layers(given, depth)]
    covered = [each for each in windows(depth) if set(each) <= set(fitted)]
    if not covered:
        raise ValueError(
            f"target_layers: auto compares windows such as {windows(depth)[-1]}, but the "
            f"directions hold layers {list(fitted)}; give target_layers."
        )
    return covered


def solve_strength(
    divergence: Callable[[float], float], budget: float, first: float
) -> tuple[float, float]:
    """Return the strength at which `divergence` meets the budget, and the divergence there.

    A divergence grows with about the square of a small strength; from the second step on the power
    is read off the last two. Where that leads out of what is known to hold the strength, as on the
    plateau of a large one, its middle is taken.
    """
    alpha, power, before = first, 2.0, None
    least, most = 0.0, math.inf  # strengths known to give too little, and too much
    for step in range(STEPS):
        found = max(divergence(alpha), 1e-12)
        if abs(found - budget) <= PRECISION * budget or step == STEPS - 1:
            break
        if before is not None and found != before[1]:
            power = math.log(found / before[1]) / math.log(alpha / before[0])
        before = (alpha, found)
        least, most = (alpha, most) if found < budget else (least, alpha)
        factor = (budget / found) ** (1 / min(max(power, 0.5), 4.0))
        alpha *= min(max(factor, 0.25), 4.0)
        if not least < alpha < most:
            alpha = math.sqrt(least * most)
    return alpha, found


class NeutralText:
    """What a model, as it is now, predicts on texts that have nothing to do with the pairs.

    Args:
        texts: their ids.
    """

    def __init__(self, model: nn.Module, texts: Sequence[list[int]], pad_token_id: int):
        self.model = model
        self.rows = rows_for(model, [[] for _ in texts], texts, pad_token_id)
        self.rows["response_mask"] = with_context(self.rows)
        self.before = self._predictions()

    @torch.no_grad()
    def _predictions(self) -> Float[Tensor, "tokens vocab"]:
        return predictions(self.model, self.rows)

    def divergence(self) -> float:
        """Return the KL divergence of the policy's predictions at that time from those before, nats
        per token.
        """
        found = kl_divergence(
            self.before, self._predictions(), self.rows["response_mask"], self.rows
        )
        return found.double().mean().item()


class Calibration:
    """A model, what it is compared with, and what is measured on it.

    Args:
        pairs: held-out tokenised pairs.
        neutral: ids of texts that have nothing to do with them.
    """

    def __init__(
        self,
        model: nn.Module,
        pairs: Sequence[Mapping[str, Any]],
        neutral: Sequence[list[int]],
        pad_token_id: int,
    ):
        self.model, self.pairs, self.pad_token_id = model, pairs, pad_token_id
        self.neutral = NeutralText(model, neutral, pad_token_id)
        self.margin = self._margin()

    def _margin(self) -> float:
        margins = preference_margins(self.model, self.pairs, self.pad_token_id)
        return margins.double().mean().item()

    def divergence(self, directions: Directions, alpha: float) -> float:
        """Return the KL divergence of the steered predictions from the plain ones, nats per neutral
        token.
        """
        with steer(self.model, directions.increments(), alpha):
            return self.neutral.divergence()

    def gain(self, directions: Directions, alpha: float) -> float:
        """Return the growth of the held-out margin by steering, nats per token."""
        with steer(self.model, directions.increments(), alpha):
            return self._margin() - self.margin


def choose(
    calibration: Calibration,
    directions: Directions,
    separability: Float[Tensor, " layers"],
    rms: Float[Tensor, " layers"],
    tried: Sequence[tuple[int, ...]],
    *,
    alpha: float | None,
    budget: float,
) -> Choice:
    """Climb over the windows `tried`, from the upper middle to the neighbour that gains more.

    Args:
        separability: AUC of each of the directions' layers on held-out pairs.
        rms: root mean square of the states' norms after each of these layers.
        tried: from low to high.
        alpha: a strength that is given; None: solved for.
    """
    place = {layer: index for index, layer in enumerate(directions.layers)}
    areas = [separability[[place[layer] for layer in layers]].mean().item() for layers in tried]
    candidates = [Candidate(*each) for each in zip(tried, areas, strict=True)]
    likely = [index for index, area in enumerate(areas) if area >= max(areas) - NEAR_BEST]
    share = FIRST_SHARE * math.sqrt(budget)

    def gain(index: int) -> float:
        nonlocal share
        if candidates[index].margin_gain is None:
            layers = tried[index]
            size = rms[[place[layer] for layer in layers]]
            found = _compared(
                calibration, directions.only(layers), areas[index], size, alpha, budget, share
            )
            candidates[index] = found
            share = found.share_of_rms  # shares differ less between windows than strengths
        return candidates[index].margin_gain

    top = climb(gain, likely)
    return Choice(candidates[top], tuple(candidates), budget, solved=alpha is None)


def climb(height: Callable[[int], float], places: Sequence[int]) -> int:
    """Return the one of `places` in a row that is higher than those beside it, uphill from the
    middle.
    """
    at = len(places) // 2
    while True:
        beside = [near for near in (at, at - 1, at + 1) if 0 <= near < len(places)]
        top = max(beside, key=lambda near: height(places[near]))
        if top == at:
            return places[at]
        at = top


def _compared(
    calibration: Calibration,
    directions: Directions,
    area: float,
    rms: Float[Tensor, " layers"],
    alpha: float | None,
    budget: float,
    share: float,
) -> Candidate:
    """Return the window of these directions at the budget, or at a given strength."""
    unit = (directions.vectors.norm(dim=-1) / rms).mean().item()

    def divergence(strength: float) -> float:
        return calibration.divergence(directions, REACHED * strength)

    if alpha is None:
        strength, found = solve_strength(divergence, budget, share / unit)
    else:
        strength, found = alpha, divergence(alpha)
    gain = calibration.gain(directions, REACHED * strength)
    return Candidate(directions.layers, area, strength, abs(strength) * unit, found, gain)


def strength_within(divergence: Callable[[float], float], budget: float) -> tuple[float, float]:
    """Return the largest strength of an adapter, at most 1, that keeps to the budget, and the
    divergence there.
    """
    found = divergence(1.0)
    if found <= budget:
        return 1.0, found
    aim = budget / (1 + PRECISION)
    return solve_strength(divergence, aim, math.sqrt(aim / found))
