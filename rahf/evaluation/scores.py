"""What a judge makes of answers: a score for each, the wanted side, and the figures.

A scorer gives the score itself. A chooser decides, in both orders, whether the answer beats the
base's answer to the same prompt: 1, 0, or 0.5 for a tie. Knows judges and texts; knows no model.
"""

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset

from rahf.evaluation.intervals import mean_estimate, share_estimate
from rahf.evaluation.wins import Contest, Outcome, decide
from rahf.judges.judge import Chat, Judge, Value, Verdicts
from rahf.judges.questions import ASPECTS

PAIRS_READ = 500
"""Pairs on which a scorer shows the wanted side of its scale."""


class Judging(NamedTuple):
    """A judge, the verdicts it has given, and the wanted side of its scale."""

    judge: Judge
    verdicts: Verdicts
    sign: int  # 1 or -1; 0: the judge finds no difference
    neutral: tuple[float, float] | None = None  # scores that lean to neither side, if any do
    name: str = ""  # as it was given

    @property
    def compares(self) -> bool:
        """Return whether a score is a win over the base's answer, and not the judge's own."""
        return self.judge.responses == 2


def outcomes_of(
    judge: Judge,
    verdicts: Verdicts,
    chats: Sequence[Chat],
    answers: Sequence[str],
    base: Sequence[str] = (),
) -> list[Outcome]:
    """Return the score of the answer to each chat, and the verdicts that it comes from.

    A score is None where the judge could not be read. A chooser gives no verdict on an answer that
    is the base's own, which is a tie.

    Args:
        base: the base's answers to the same chats, which only a chooser needs.
    """
    if judge.responses == 1:
        read = [judge.read(chat, answer) for chat, answer in zip(chats, answers, strict=True)]
        values = [verdict.value for verdict in verdicts.ask(judge, read)]
        return [Outcome(value, (value,)) for value in values]
    contests = [Contest(*each) for each in zip(chats, answers, base, strict=True)]
    # Both orders of one text twice are the same question: a tie that needs no judgement.
    differing = [contest for contest in contests if contest.first != contest.second]
    decided = iter(decide(judge, differing, verdicts))
    tie = Outcome(0.5, ())
    return [tie if contest.first == contest.second else next(decided) for contest in contests]


def speaking(answers: Sequence[str], base: Sequence[str]) -> list[str]:
    """Return the answers, with the base's in place of empty ones, which show no behaviour."""
    return [
        answer if answer.strip() else untouched
        for answer, untouched in zip(answers, base, strict=True)
    ]


def wanted_side(judge: Judge, verdicts: Verdicts, pairs: Dataset) -> int:
    """Return the side of a scorer's scale of the chosen responses: 1, -1, or 0 for neither.

    A chooser's side is 1. It judges one pair all the same: a key, a URL or a model that
    does not work is reported here, before anything is trained or measured.
    """
    pairs = pairs.select(range(min(len(pairs), PAIRS_READ if judge.responses == 1 else 1)))
    if judge.responses == 2:
        outcomes_of(judge, verdicts, pairs["prompt"], pairs["chosen"], pairs["rejected"])
        return 1
    chosen, rejected = (
        np.nanmean([_number(each.value) for each in outcomes])
        for outcomes in (
            outcomes_of(judge, verdicts, pairs["prompt"], pairs[side])
            for side in ("chosen", "rejected")
        )
    )
    return int(chosen > rejected) - int(chosen < rejected)


def _number(score: float | None) -> float:
    return np.nan if score is None else float(score)


JUDGED = ("judged_mean", "judged_se", "shows_wanted", "shows_opposite")


def judged_figures(
    scores: Sequence[float | None], sign: int, neutral: tuple[float, float] | None
) -> dict[str, float | None]:
    """Return the mean score, its standard error (None of a single score), and the share of answers
    on either side.

    Missing scores are omitted; `verdicts_missing` is their share, where there are any.

    Args:
        sign: the wanted side of the scale, 1 or -1.
        neutral: lowest and highest score that leans to neither side; None: there is none, so that
            no share is known.
    """
    figures: dict[str, float | None] = dict.fromkeys(JUDGED)
    read = [score for score in scores if score is not None]
    if len(read) < len(scores):
        figures["verdicts_missing"] = 1 - len(read) / len(scores)
    if not read:
        return figures
    figures["judged_mean"] = fmean(read)
    figures["judged_se"] = stdev(read) / len(read) ** 0.5 if len(read) > 1 else None
    if neutral is not None:
        below = share_estimate([float(score < neutral[0]) for score in read])
        above = share_estimate([float(score > neutral[1]) for score in read])
        for name, side in zip(
            ("shows_wanted", "shows_opposite"), (above, below)[::sign], strict=True
        ):
            figures[name], *figures[f"{name}_interval"] = side
    return figures


def aspect_figures(values: Sequence[Value]) -> dict[str, dict[str, float]]:
    """Return the mean of each aspect with its interval over responses, and how many are missing."""
    figures = {}
    for name in ASPECTS:
        marks = [value[name] for value in values if isinstance(value, dict)]
        read = [mark for mark in marks if mark is not None]
        mean = mean_estimate(read)
        figures[name] = {"missing": len(values) - len(read)} | (mean.as_dict() if mean else {})
    return figures


def score_figures(values: Sequence[Value], *, share: bool = False) -> dict[str, Any]:
    """Return the mean score with its interval over responses, how many are missing, and how many
    different scores there are.

    Args:
        share: whether a score is 0 or 1, so that the mean is a share.
    """
    scores = [value for value in values if isinstance(value, float)]
    mean = (share_estimate if share else mean_estimate)(scores)
    figures: dict[str, Any] = {"missing": len(values) - len(scores), "distinct": len({*scores})}
    return figures | ({"score": mean.as_dict()} if mean else {})
