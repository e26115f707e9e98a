"""What the judge of a comparison makes of measured answers: a score for each.

Knows judges and texts; knows no model.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rahf.data.messages import Message
from rahf.evaluation.scores import Judging, outcomes_of
from rahf.report.comparison import repeated_share


def judged(
    judging: Judging,
    chats: Sequence[Sequence[Message]],
    points: Sequence[Mapping[str, Any]],
    base: Sequence[str],
    repetition_limit: float,
) -> list[dict[str, Any]]:
    """Return the measures at each strength with the judge's `scores`, and the `verdicts` of each.

    Args:
        base: the base's answers to `chats`, for a judge that compares or a limit below 1.
    """
    answers = [answer for point in points for answer in point["answers"]]
    beside = [*base] * len(points)
    if repetition_limit < 1:
        answers = without_loops(answers, beside, repetition_limit)
    outcomes = outcomes_of(judging.judge, judging.verdicts, [*chats] * len(points), answers, beside)
    count = len(chats)
    parts = [outcomes[at : at + count] for at in range(0, len(outcomes), count)]
    return [
        {
            **point,
            "scores": [outcome.value for outcome in part],
            "verdicts": [outcome.orders for outcome in part],
        }
        for point, part in zip(points, parts, strict=True)
    ]


def without_loops(answers: Sequence[str], base: Sequence[str], limit: float) -> list[str]:
    """Return the answers, with the base's in place of those that repeat themselves too much.

    Args:
        limit: largest share of repeated word triples that an answer may have.
    """
    return [
        untouched if repeated_share(answer) > limit else answer
        for answer, untouched in zip(answers, base, strict=True)
    ]
