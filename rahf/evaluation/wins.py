"""Two models' responses to the same prompts: how often the one is judged better.

A chooser reads each pair in both orders, so that a liking for the first place cancels out; a scorer
reads each response once. Ties count half. The rate is reported beside the lengths, and beside an
estimate of what it would be at equal length. Knows judges and texts; knows no model.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import permutations
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

from rahf.data.prompts import Response, prompt_text
from rahf.evaluation.intervals import share_estimate
from rahf.judges.judge import Chat, Judge, Verdicts

NEWTON_STEPS = 25
RATE_DRAWS = 200  # for the interval of the rate at equal length
RIDGE = 0.1
"""Weight of the squared slope in the fit, beside the sum over prompts: where all wins go to the
longer responses, the likelihood has no maximum."""


class Contest(NamedTuple):
    """One prompt and two responses to it."""

    messages: Chat
    first: str
    second: str


def contests_of(
    first: Sequence[Response],
    second: Sequence[Response],
    files: tuple[str, str] = ("the first file", "the second file"),
) -> list[Contest]:
    """Return the responses of two files, matched by their prompts, in the order of the first.

    Raises:
        ValueError: a prompt is in one file only, or twice in one.
    """
    mine, other = (
        {prompt_text(response.messages): response for response in given}
        for given in (first, second)
    )
    for file, given in zip(files, (first, second), strict=True):
        counts = Counter(prompt_text(each.messages) for each in given)
        for prompt, number in counts.items():
            if number == 1:
                continue
            raise ValueError(
                f"{file}: the prompt {prompt[:120]!r} has {number} responses, so it is not known "
                "which to compare: keep one"
            )
    for (file, keys), (against, others) in permutations(zip(files, (mine, other), strict=True)):
        alone = sorted(keys.keys() - others.keys())
        if alone:
            raise ValueError(
                f"{file} answers prompts that {against} does not ({len(alone)}, for instance "
                f"{alone[0][:120]!r}): give responses to the same prompts"
            )
    return [
        Contest(response.messages, response.text, other[prompt].text)
        for prompt, response in mine.items()
    ]


class Outcome(NamedTuple):
    """How one contest ended."""

    value: float | None  # 1: first is better, 0: second, 0.5: tie, None: a verdict is missing
    orders: tuple[Any, ...]  # verdicts: a chooser's on both orders, a scorer's on the responses


def decide(judge: Judge, contests: Sequence[Contest], verdicts: Verdicts) -> list[Outcome]:
    """Let a judge decide every contest."""
    if judge.responses == 1:
        given = [((c.first,), (c.second,)) for c in contests]
    else:
        given = [((c.first, c.second), (c.second, c.first)) for c in contests]
    read = [
        judge.read(contest.messages, *responses)
        for contest, orders in zip(contests, given, strict=True)
        for responses in orders
    ]
    values = [verdict.value for verdict in verdicts.ask(judge, read)]
    outcome = by_scores if judge.responses == 1 else by_orders
    return [
        Outcome(outcome(*orders), orders) for orders in zip(values[0::2], values[1::2], strict=True)
    ]


def by_scores(first: float | None, second: float | None) -> float | None:
    if first is None or second is None:
        return None
    return 0.5 if first == second else float(first > second)


def by_orders(first_first: float | None, second_first: float | None) -> float | None:
    """Return the outcome from how far the response in the first place is better, in both orders.

    The mean of p and 1 - q is above a half where p is above q.
    """
    return by_scores(first_first, second_first)


def win_rates(
    contests: Sequence[Contest], outcomes: Sequence[Outcome], *, chooser: bool
) -> dict[str, Any]:
    """Return the figures of a comparison, without missing verdicts.

    Rates are those of the first responses, with 95 % intervals over prompts.
    """
    judged = [
        (contest, outcome)
        for contest, outcome in zip(contests, outcomes, strict=True)
        if outcome.value is not None
    ]
    values = [outcome.value for _, outcome in judged]
    lengths = [(len(contest.first), len(contest.second)) for contest, _ in judged]
    figures: dict[str, Any] = {
        "prompts": len(contests),
        "missing": len(contests) - len(judged),
        "wins": values.count(1.0),
        "ties": values.count(0.5),
        "losses": values.count(0.0),
    }
    if not judged:
        return figures
    figures["win_rate"] = share_estimate(values).as_dict()
    figures["win_rate_at_equal_length"] = rate_at_equal_length(values, lengths)
    figures["characters"] = [fmean(first for first, _ in lengths), fmean(s for _, s in lengths)]
    figures["longer_wins"] = _longer_wins(values, lengths)
    if chooser:
        figures |= place_figures([outcome.orders for _, outcome in judged])
    return figures


def place_figures(orders: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Return how much of a chooser's judgement is the place, from its verdicts on both orders."""
    agree = share_estimate([float((a > 0.5) == (b < 0.5)) for a, b in orders])
    first = share_estimate([fmean(pair) for pair in orders])
    return {
        "first_place_preferred": first.mean,
        "first_place_preferred_interval": [first.low, first.high],
        "orders_agree": agree.mean,
        "orders_agree_interval": [agree.low, agree.high],
        "contests": len(orders),
    }


def _longer_wins(
    values: Sequence[float], lengths: Sequence[tuple[int, int]]
) -> dict[str, float] | None:
    """Return how often the longer response of two is judged better, whoever wrote it."""
    of_longer = [
        value if first > second else 1 - value
        for value, (first, second) in zip(values, lengths, strict=True)
        if first != second
    ]
    return share_estimate(of_longer).as_dict() if of_longer else None


def rate_at_equal_length(
    values: Sequence[float], lengths: Sequence[tuple[int, int]]
) -> dict[str, float]:
    """Return the win rate of the first responses at equal length, by logistic regression.

    `P(win) = sigmoid(a + b tanh(d))`, d the difference of the lengths in characters over its
    standard deviation; reported is sigmoid(a). The form of length control in AlpacaEval 2 (Dubois
    et al. 2024, arXiv 2404.04475) without its term for the difficulty of each instruction, so not
    to be compared with figures of that benchmark.
    """
    values, differences = np.asarray(values), np.diff(np.asarray(lengths), axis=1)[:, 0] * -1.0
    scale = differences.std() or 1.0
    lean = np.tanh(differences / scale)
    drawn = np.random.default_rng(0).integers(len(values), size=(RATE_DRAWS, len(values)))
    rates = [_sigmoid(_fit(values[rows], lean[rows])[0]) for rows in drawn]
    low, high = np.quantile(rates, (0.025, 0.975))
    mean = _sigmoid(_fit(values, lean)[0])
    if values.min() == values.max():  # every draw is the same
        _, low, high = share_estimate(values)
    return {"mean": float(mean), "low": float(low), "high": float(high)}


def _fit(values: np.ndarray, lean: np.ndarray) -> np.ndarray:
    """Return intercept and slope by Newton's method.

    The ridge holds back the slope only: what length does not explain is kept.
    """
    design = np.stack([np.ones_like(lean), lean], axis=1)
    ridge = np.diag([1e-6, RIDGE])
    weights = np.zeros(2)
    for _ in range(NEWTON_STEPS):
        chance = _sigmoid(design @ weights)
        gradient = design.T @ (chance - values) + ridge @ weights
        curvature = (design * (chance * (1 - chance))[:, None]).T @ design + ridge
        step = np.linalg.solve(curvature, gradient)
        weights = weights - np.clip(step, -2, 2)
    return weights


def _sigmoid(x: np.ndarray | float) -> np.ndarray | float:
    return 1 / (1 + np.exp(-x))
