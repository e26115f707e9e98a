"""The scorers by their names: what each asks, who answers, and how the answers are measured.

Models are loaded only for the scorers that need them. Knows records; knows no file.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rahf.interpret.explanations.cost import Cost, estimated
from rahf.interpret.explanations.judging import ANSWER_TOKENS
from rahf.interpret.explanations.questions import Question, of_steered
from rahf.interpret.explanations.records import Record
from rahf.interpret.explanations.score import (
    Asking,
    Scorer,
    areas,
    asking_marks,
    asking_texts,
    questions_of,
    round_trip,
)
from rahf.interpret.explanations.steered import Written
from rahf.interpret.explanations.tokens import TokenTexts
from rahf.interpret.explanations.values import Judged, embedded
from rahf.judges.references import Embed

CONTINUED = 16
"""Neutral texts that are continued while a unit is pinned."""

STEERED_QUESTION = 120
"""Tokens of a question about such a text, about."""

SCORERS = ("detection", "fuzzing", "surprisal", "embedding", "intervention", "round_trip")


@dataclass(frozen=True)
class Means:
    """What scorers are made of."""

    records: Sequence[Record]
    texts: TokenTexts
    judged: Judged
    surprisal: Callable[[], Judged]
    embed: Callable[[], Embed]
    steered: Callable[[], Written]


def scorer_of(name: str, means: Means) -> Scorer:
    """Return a scorer; what it needs beside the judge is loaded now."""
    texts = asking_texts(means.records, means.texts)
    if name == "detection":
        return Scorer(texts, means.judged, areas, "auc")
    if name == "fuzzing":
        return Scorer(asking_marks(means.records, means.texts), means.judged, areas, "auc")
    if name == "surprisal":
        return Scorer(texts, means.surprisal(), areas, "auc")
    if name == "embedding":
        return Scorer(texts, embedded(means.embed()), areas, "auc")
    if name == "round_trip":
        return Scorer(texts, means.judged, round_trip, "variance")
    assert name == "intervention", name
    return Scorer(asking_steered(means.steered(), means.texts), means.judged, areas, "auc")


def estimated_cost(names: Sequence[str], means: Means, others: Sequence[str | None]) -> Cost:
    """Return about what the judge will cost; round trips ask what detection asks."""
    asking = [asking_marks(means.records, means.texts)] if "fuzzing" in names else []
    if {"detection", "round_trip"} & set(names):
        asking.append(asking_texts(means.records, means.texts))
    read = {
        means.judged.judge.read(question.asked)
        for each in asking
        for _, _, questions in questions_of(means.records, each, others)
        for question in questions
    }
    cost = estimated(read, ANSWER_TOKENS)
    if "intervention" in names:
        explained = sum(record.explanation is not None for record in means.records)
        cost.add((STEERED_QUESTION, ANSWER_TOKENS), 4 * CONTINUED * explained)
    return cost


def asking_steered(written: Written, texts: TokenTexts) -> Asking:
    """Ask which texts were written while a unit was pinned; nothing where it could not be."""

    def asking(unit: int, sentence: str) -> list[Question]:
        pinned = written.pinned[unit]
        if pinned is None or pinned.strength is None:
            return []
        return of_steered(sentence, pinned.written, written.plain, texts)

    return asking
