"""What an explanation is asked about: texts, marked tokens of texts, and texts of a steered model.

Each question has the answer that a true explanation gives. Knows examples; knows no judge.
"""

from collections.abc import Sequence
from typing import NamedTuple

from rahf.interpret.explanations.examples import Example
from rahf.interpret.explanations.judging import Asked
from rahf.interpret.explanations.scoring import Answer
from rahf.interpret.explanations.tokens import TokenTexts


class Question(NamedTuple):
    """Something that an explanation should fit, or should not."""

    asked: Asked
    fits: bool
    group: str
    quantile: int | None = None
    peak: float = 0.0  # largest activation in the text

    def answer(self, value: float | None) -> Answer:
        return Answer(value, self.fits, self.group, self.quantile)


def of_texts(explanation: str, examples: Sequence[Example], texts: TokenTexts) -> list[Question]:
    """Ask whether the unit is active in a text."""
    return [
        Question(
            asked_of(explanation, example.ids, texts),
            example.activates,
            example.kind,
            example.quantile,
            example.peak,
        )
        for example in examples
    ]


def of_marks(explanation: str, examples: Sequence[Example], texts: TokenTexts) -> list[Question]:
    """Ask whether marked tokens are those at which the unit is active; each text is asked about
    twice, with the right tokens marked and with as many others.
    """
    return [
        Question(
            asked_of(explanation, example.ids, texts, sorted(marked)),
            marked is example.active,
            "right" if marked is example.active else "wrong",
            example.quantile,
            example.peak,
        )
        for example in examples
        if example.activates and example.wrong
        for marked in (example.active, example.wrong)
    ]


def of_steered(
    explanation: str, steered: Sequence[list[int]], plain: Sequence[list[int]], texts: TokenTexts
) -> list[Question]:
    """Ask whether a text was written while the unit was pinned."""
    return [
        Question(asked_of(explanation, ids, texts), fits, "steered" if fits else "plain")
        for written, fits in ((steered, True), (plain, False))
        for ids in written
    ]


def asked_of(
    explanation: str, ids: Sequence[int], texts: TokenTexts, marked: Sequence[int] | None = None
) -> Asked:
    tokens = [texts.shown(token) for token in ids]
    return Asked(explanation, texts.text(ids, marked or ()), tokens, marked)
