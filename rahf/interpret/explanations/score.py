"""Scores of explanations: of each unit's own, of another unit's in its place (the null of shuffled
explanations), and of random directions that went the same way (the null of no meaning).

Knows records and values; the models behind the values are given to it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rahf.interpret.explanations.questions import Question, of_marks, of_texts
from rahf.interpret.explanations.records import Record
from rahf.interpret.explanations.scoring import area_figures, mean_figures, variance_explained
from rahf.interpret.explanations.tokens import TokenTexts
from rahf.interpret.explanations.values import Values

Asking = Callable[[int, str], list[Question]]
"""Place of a unit and an explanation -> what is asked."""

Figures = Callable[[Sequence[Question], Sequence[float | None]], dict[str, Any]]


class Scorer(NamedTuple):
    """One way of scoring."""

    asking: Asking
    values: Values
    figures: Figures
    measure: str  # auc or variance


def areas(questions: Sequence[Question], values: Sequence[float | None]) -> dict[str, Any]:
    return area_figures([q.answer(value) for q, value in zip(questions, values, strict=True)])


def asking_texts(records: Sequence[Record], texts: TokenTexts) -> Asking:
    return lambda unit, sentence: of_texts(sentence, records[unit].examples.scored, texts)


def asking_marks(records: Sequence[Record], texts: TokenTexts) -> Asking:
    return lambda unit, sentence: of_marks(sentence, records[unit].examples.scored, texts)


def round_trip(questions: Sequence[Question], values: Sequence[float | None]) -> dict[str, Any]:
    """Return how far values predict the largest activation in a text."""
    peaks = [question.peak for question in questions]
    return variance_explained(values, peaks, [question.quantile for question in questions])


def shuffled(records: Sequence[Record], seed: int) -> list[str | None]:
    """Return, for each unit, the explanation of another unit, with another text; None: there is
    none.
    """
    rng = np.random.default_rng([seed, 5])
    known = sorted({record.explanation for record in records if record.explanation is not None})
    others = [[text for text in known if text != record.explanation] for record in records]
    return [texts[rng.integers(len(texts))] if texts else None for texts in others]


def questions_of(
    records: Sequence[Record], asking: Asking, others: Sequence[str | None]
) -> list[tuple[int, bool, list[Question]]]:
    """Return what is asked about each explained unit: its place, whether the explanation is its
    own, and the questions.
    """
    return [
        (unit, own, asking(unit, sentence))
        for unit, record in enumerate(records)
        for own, sentence in ((True, record.explanation), (False, others[unit]))
        if record.explanation is not None and sentence is not None
    ]


def score_units(
    records: Sequence[Record], scorer: Scorer, others: Sequence[str | None]
) -> list[dict[str, Any] | None]:
    """Return the figures of each unit, and under `shuffled` those of another unit's explanation.

    All questions are put at once, so that a model is loaded once and a server is kept busy. A unit
    without an explanation has no figures.
    """
    wanted = questions_of(records, scorer.asking, others)
    values = iter(scorer.values([q.asked for _, _, questions in wanted for q in questions]))
    found: list[dict[str, Any] | None] = [None] * len(records)
    for unit, own, questions in wanted:
        figures = scorer.figures(questions, [next(values) for _ in questions])
        if own:
            found[unit] = figures
        else:
            found[unit] |= {"shuffled": figures}
    return found


def summary(
    records: Sequence[Record], scores: Mapping[str, Sequence[dict | None]], measures: Mapping
) -> dict[str, Any]:
    """Return, for each scorer, means over units: own explanations, shuffled ones, random ones."""
    random = [record.unit.kind == "random" for record in records]
    figures = {}
    for name, rows in scores.items():
        own = [row for row, is_random in zip(rows, random, strict=True) if row and not is_random]
        null = [row for row, is_random in zip(rows, random, strict=True) if row and is_random]
        other = [row["shuffled"] for row in own if "shuffled" in row]
        groups = {"explained": own, "shuffled": other, "random": null}
        means = {group: mean_figures(rows, measures[name]) for group, rows in groups.items()}
        figures[name] = {"measure": measures[name], **means}
    return figures
