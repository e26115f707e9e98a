"""Scores of measured answers by the judges of a comparison.

Knows judges and texts; knows no model.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rahf.data.messages import Message
from rahf.evaluation.scores import Judging, Outcome, outcomes_of, speaking
from rahf.report.comparison import repeated_share


def judged(
    judgings: Sequence[Judging],
    chats: Sequence[Sequence[Message]],
    points: Sequence[Mapping[str, Any]],
    base: Sequence[str],
    repetition_limit: float,
) -> list[dict[str, Any]]:
    """Return the measures at each strength with the first judge's `scores` and `verdicts`, and
    with the scores of all `by_judge`, where there are several.

    An empty answer counts as the base's: it shows no behaviour.

    Args:
        base: the base's answers to `chats`, for a judge that compares, empty answers, or a limit
            below 1.
    """
    beside = [*base] * len(points)
    answers = [answer for point in points for answer in point["answers"]]
    if base:
        answers = without_loops(answers, beside, repetition_limit)
    by_judge = {
        judging.name: outcomes_of(
            judging.judge, judging.verdicts, [*chats] * len(points), answers, beside
        )
        for judging in judgings
    }
    count = len(chats)
    return [
        point | _judgements(by_judge, slice(index * count, (index + 1) * count))
        for index, point in enumerate(points)
    ]


def _judgements(by_judge: Mapping[str, Sequence[Outcome]], part: slice) -> dict[str, Any]:
    """Return the scores and verdicts to keep of one point, those of the first judge on top."""
    first = next(iter(by_judge.values()))[part]
    scores = {
        name: [outcome.value for outcome in outcomes[part]] for name, outcomes in by_judge.items()
    }
    return {
        "scores": [outcome.value for outcome in first],
        "verdicts": [outcome.orders for outcome in first],
        **({"by_judge": scores} if len(scores) > 1 else {}),
    }


def without_loops(answers: Sequence[str], base: Sequence[str], limit: float) -> list[str]:
    """Return the answers, with the base's in place of empty ones and of those that repeat
    themselves too much.

    Args:
        limit: largest share of repeated word triples that an answer may have.
    """
    return [
        untouched if repeated_share(answer) > limit else answer
        for answer, untouched in zip(speaking(answers, base), base, strict=True)
    ]
