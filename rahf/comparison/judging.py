"""What the judge of a comparison makes of answers: a number each, and the side that is wanted.

A scorer gives the number itself. A chooser is asked, in both orders, whether the answer beats the
one that the untouched base gave to the same prompt: 1, 0, or 0.5 for a tie. Knows judges and texts.
"""

from collections.abc import Sequence

import numpy as np
from datasets import Dataset

from rahf.data.messages import Message
from rahf.evaluation.wins import Contest, Outcome, decide
from rahf.judges.judge import Judge, Verdicts
from rahf.report.comparison import repeated_share

ROWS_READ = 500
"""Training pairs on which a scorer shows what side of its scale is wanted."""


def outcomes_of(
    judge: Judge,
    verdicts: Verdicts,
    chats: Sequence[Sequence[Message]],
    answers: Sequence[str],
    base: Sequence[str] = (),
) -> list[Outcome]:
    """A number for the answer to each chat, None where the judge could not be read, and the
    verdicts that it comes from: none where an answer is the base's own.

    Args:
        base: the base's answers to the same chats, which only a chooser needs.
    """
    if judge.responses == 1:
        read = [judge.read(chat, answer) for chat, answer in zip(chats, answers, strict=True)]
        values = [verdict.value for verdict in verdicts.ask(judge, read)]
        return [Outcome(value, (value,)) for value in values]
    contests = [Contest(*each) for each in zip(chats, answers, base, strict=True)]
    # Both orders of one text twice are the same question: a tie that need not be asked about.
    differing = [contest for contest in contests if contest.first != contest.second]
    decided = iter(decide(judge, differing, verdicts))
    tie = Outcome(0.5, ())
    return [tie if contest.first == contest.second else next(decided) for contest in contests]


def without_loops(answers: Sequence[str], base: Sequence[str], limit: float) -> list[str]:
    """The answers, with the base's in place of those of which a larger share than `limit` repeats
    itself.
    """
    return [
        untouched if repeated_share(answer) > limit else answer
        for answer, untouched in zip(answers, base, strict=True)
    ]


def wanted_side(judge: Judge, verdicts: Verdicts, pairs: Dataset) -> int:
    """The side of the judge's scale that the chosen responses lean to: 1 or -1.

    Of a chooser it is 1. It is asked about one pair all the same, so that a key, a URL or a model
    that does not work is told before anything is trained.

    Raises:
        ValueError: a scorer finds no difference.
    """
    pairs = pairs.select(range(min(len(pairs), ROWS_READ if judge.responses == 1 else 1)))
    if judge.responses == 2:
        outcomes_of(judge, verdicts, pairs["prompt"], pairs["chosen"], pairs["rejected"])
        return 1
    outcomes = {
        side: outcomes_of(judge, verdicts, pairs["prompt"], pairs[side])
        for side in ("chosen", "rejected")
    }
    chosen, rejected = (
        np.nanmean(np.array([outcome.value for outcome in each], dtype=float))
        for each in outcomes.values()
    )
    if chosen == rejected:
        raise ValueError(
            f"compare.judge: {judge.id} gives the chosen and the rejected responses of the "
            f"training pairs the same mean, {chosen:g}: it cannot tell what is wanted"
        )
    return 1 if chosen > rejected else -1
